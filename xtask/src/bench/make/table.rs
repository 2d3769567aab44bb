//! The aims and the tables.

use super::measure::Figures;
use super::parts::{Cold, HUB, HUB_FROM_NODES, Killed, Row, SlowRow};
use crate::bench::ground::report::Report;

const PLAIN: &str = "make";
const WIGLAF: &str = "Wiglaf";
const DISTCC: &str = "distcc";
const CPU_AIM: f64 = 1.05;
const HEAD_AIM: f64 = 0.25;
const WALL_AIM: f64 = 1.05;
const COLD_AIM: f64 = 1.15;
const KILLED_AIM: f64 = 1.10;
/// Nodes, and how many times as fast as one they are to be.
const SLOW_AIMS: [(u32, f64); 2] = [(8, 7.0), (16, 12.0)];

pub(super) fn write_turns(rows: &[Row], report: &mut Report) {
    for row in rows {
        let cell = |name: &str| {
            row.columns
                .iter()
                .find(|(each, figures)| *each == name && figures.failure.is_none())
                .map(|(_, figures)| figures)
        };
        let Some(plain) = cell(PLAIN) else { continue };
        if !row.columns.iter().any(|(name, _)| *name == WIGLAF) {
            continue;
        }
        let wiglaf = cell(WIGLAF);
        let what = |what: &str| format!("{what}, {} -j{}", row.input, row.jobs);
        ratio(
            report,
            &what("CPU time in all"),
            CPU_AIM,
            "plain make's",
            wiglaf.map(|each| each.cpu_s.median()),
            plain.cpu_s.median(),
        );
        if let Some(distcc) = cell(DISTCC) {
            ratio(
                report,
                &what("the head's CPU time"),
                HEAD_AIM,
                "distcc's",
                wiglaf.map(|each| each.head_cpu_s.median()),
                distcc.head_cpu_s.median(),
            );
        }
        if row.jobs == super::parts::JOBS[0] {
            ratio(
                report,
                &what("wall clock"),
                WALL_AIM,
                "plain make's",
                wiglaf.map(|each| each.wall_s.median()),
                plain.wall_s.median(),
            );
        }
    }
    let cells = rows.iter().flat_map(|row| {
        let plain = row
            .columns
            .iter()
            .find(|(name, _)| *name == PLAIN)
            .map(|(_, figures)| (figures.wall_s.median(), figures.cpu_s.median()))
            .unwrap_or((f64::NAN, f64::NAN));
        row.columns.iter().map(move |(name, figures)| {
            let mut cells = vec![
                format!("{} ({} objects) -j{}", row.input, row.objects, row.jobs),
                (*name).to_owned(),
            ];
            if figures.wall_s.is_empty() {
                cells.extend(["failed", "", "", "", "", ""].map(str::to_owned));
                return cells;
            }
            let (wall, cpu) = (figures.wall_s.median(), figures.cpu_s.median());
            cells.extend([
                format!("{} = {:.2} ×", figures.wall_s.text(2), wall / plain.0),
                format!("{} = {:.2} ×", figures.cpu_s.text(2), cpu / plain.1),
                figures.head_cpu_s.text(2),
                format!("{:.0} %", figures.on_nodes.median() * 100.0),
                figures.remote.text(0),
                figures.different_objects.text(0),
            ]);
            cells
        })
    });
    let head = [
        "",
        "by",
        "wall clock, s",
        "CPU in all, s",
        "of it on the head, s",
        "on nodes",
        "compiled or run there",
        "objects that differ",
    ];
    let how = "× plain make; daemons included. What was compiled on nodes is distccd's and icecream's \
               scheduler's own count, for Wiglaf that of lines. Of Wiglaf all files must be the same \
               as those of a build here; of the others objects are counted that are not";
    report.table("In turns, 4 nodes", how, &head, cells.collect());
    note_failures(
        rows.iter().flat_map(|row| {
            row.columns.iter().map(move |(name, figures)| {
                (format!("{name} at {} -j{}", row.input, row.jobs), figures)
            })
        }),
        report,
    );
}

fn ratio(report: &mut Report, what: &str, aim: f64, of: &str, own: Option<f64>, other: f64) {
    let aim_text = format!("≤ {aim} × {of}");
    match own {
        Some(own) if own.is_finite() && other.is_finite() => {
            let figure = format!("{:.2} × ({own:.2} of {other:.2} s)", own / other);
            report.aim(what, aim_text, figure, own / other <= aim);
        }
        _ => report.aim(what, aim_text, "failed".to_owned(), false),
    }
}

fn note_failures<'a>(all: impl Iterator<Item = (String, &'a Figures)>, report: &mut Report) {
    for (what, figures) in all {
        if let Some(reason) = &figures.failure {
            report.note(format!("{what} failed: {reason}"));
        }
    }
}

pub(super) fn write_cold(input: &str, cold: &Cold, report: &mut Report) {
    let (first, second) = (cold.first.wall_s.median(), cold.second.wall_s.median());
    ratio(
        report,
        &format!("the first build after a cold start, {input} -j2"),
        COLD_AIM,
        "the second's wall clock",
        Some(first),
        second,
    );
    let row = |name: &str, figures: &Figures| {
        vec![
            name.to_owned(),
            figures.wall_s.text(2),
            figures.cpu_s.text(2),
            figures.head_cpu_s.text(2),
        ]
    };
    report.table(
        "After a cold start",
        &format!(
            "{input} -j2 on nodes that have just been made, and again; the aim is for a tree that \
             was built before, of which the durations of lines are known"
        ),
        &["", "wall clock, s", "CPU in all, s", "of it on the head, s"],
        vec![
            row("first, nothing learned of it", &cold.unlearned),
            row("first, built before", &cold.first),
            row("second", &cold.second),
        ],
    );
    note_failures(
        [
            ("the first ever", &cold.unlearned),
            ("the first", &cold.first),
            ("the second", &cold.second),
        ]
        .into_iter()
        .map(|(name, figures)| (format!("{name} build after a cold start"), figures)),
        report,
    );
}

pub(super) fn write_killed(input: &str, killed: &Killed, report: &mut Report) {
    let what = format!("a node killed in mid-build, {input} -j4, files identical");
    let (disturbed, undisturbed) = (&killed.disturbed, &killed.undisturbed);
    let of = "undisturbed, and the lost line";
    if disturbed.failure.is_none() && disturbed.tried_again.least() < 1.0 {
        let aim = format!("≤ {KILLED_AIM} × {of}");
        let figure = "no line was lost, so that it says nothing".to_owned();
        report.aim(&what, aim, figure, false);
    } else {
        let own = disturbed.failure.is_none();
        let own = own.then(|| disturbed.wall_s.median());
        let other = undisturbed.wall_s.median();
        ratio(report, &what, KILLED_AIM, of, own, other);
    }
    let row = |name: &str, figures: &Figures| {
        vec![
            name.to_owned(),
            figures.wall_s.text(2),
            figures.cpu_s.text(2),
            figures.tried_again.text(0),
        ]
    };
    report.table(
        "A node is killed",
        &format!(
            "{input} -j4 on 4 nodes, one of which is killed after 40 % of the time, while it \
             compiles; the lost line's own time is in the figure"
        ),
        &["", "wall clock, s", "CPU in all, s", "lines tried again"],
        vec![
            row("undisturbed", &killed.undisturbed),
            row("one killed", &killed.disturbed),
        ],
    );
    note_failures(
        [
            ("undisturbed", &killed.undisturbed),
            ("killed", &killed.disturbed),
        ]
        .into_iter()
        .map(|(name, figures)| (format!("the build {name}"), figures)),
        report,
    );
}

pub(super) fn write_slow(input: &str, rows: &[SlowRow], report: &mut Report) {
    let wall = |nodes: u32, name: &str| {
        let row = rows.iter().find(|row| row.nodes == nodes)?;
        let cell = row.series.iter().find(|cell| cell.name == name)?;
        (!cell.wall_s.is_empty()).then(|| cell.wall_s.median())
    };
    let has_wiglaf = rows
        .iter()
        .any(|row| row.series.iter().any(|cell| cell.name == WIGLAF));
    for (nodes, aim) in SLOW_AIMS {
        let is_measured = |nodes| rows.iter().any(|row: &SlowRow| row.nodes == nodes);
        if !has_wiglaf || !is_measured(1) || !is_measured(nodes) {
            continue;
        }
        let what = format!("{nodes} slow nodes, {input}");
        let aim_text = format!("≥ {aim} × as fast as one");
        match (wall(1, WIGLAF), wall(nodes, WIGLAF)) {
            (Some(one), Some(all)) => {
                let figure = format!("{:.1} × ({all:.1} of {one:.1} s)", one / all);
                report.aim(&what, aim_text, figure, one / all >= aim);
            }
            _ => report.aim(&what, aim_text, "failed".to_owned(), false),
        }
    }
    let Some(longest) = rows.iter().max_by_key(|row| row.series.len()) else {
        return;
    };
    let mut head = vec!["nodes"];
    head.extend(longest.series.iter().map(|cell| cell.name.as_str()));
    let cells = rows.iter().map(|row| {
        let mut cells = vec![row.nodes.to_string()];
        cells.extend(longest.series.iter().map(|column| {
            let Some(cell) = row.series.iter().find(|cell| cell.name == column.name) else {
                return "—".to_owned();
            };
            if cell.wall_s.is_empty() {
                return "failed".to_owned();
            }
            let unhindered = cell.name.strip_suffix(HUB).unwrap_or(&cell.name);
            let one = wall(1, unhindered).unwrap_or(f64::NAN);
            let own = cell.wall_s.median();
            format!(
                "{own:.1} s = {:.1} ×, {:.1} MB",
                one / own,
                cell.megabytes.median()
            )
        }));
        cells
    });
    let how = format!(
        "{input} at two jobs for each node, of which each has {} % of a processor; how many times as \
         fast as one node without the hub, and what the head has sent and received. 10 Mb/s: all \
         of that goes through one token bucket, both ways in turns, as on a hub, from {HUB_FROM_NODES} nodes on. All nodes have the \
         compiler before",
        super::quota::PERCENT
    );
    report.table("Slow nodes", &how, &head, cells.collect());
    for row in rows {
        for cell in &row.series {
            if let Some(reason) = &cell.failure {
                report.note(format!(
                    "{} on {} slow nodes failed: {reason}",
                    cell.name, row.nodes
                ));
            }
        }
    }
}
