//! The record as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::report::described;
use super::{Place, Record, Report, Row, Share};

/// Longer plans are gathered by reasons.
const MAX_PLAN_ROWS: usize = 500;
/// Rows of a table of the report.
const MAX_REPORT_ROWS: usize = 20;

/// `7:45` from a minute on, `12.34 s` below.
pub(super) fn clock(us: u64) -> String {
    let hundredths = us.saturating_add(5_000) / 10_000;
    if hundredths < 6_000 {
        return format!("{}.{:02} s", hundredths / 100, hundredths % 100);
    }
    let seconds = us.saturating_add(500_000) / 1_000_000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

fn place(row: &Row) -> &str {
    match &row.place {
        Some(Place::Here) => "here",
        Some(Place::Node(name)) => name,
        None => "-",
    }
}

/// Why there, with what was expected of it where that decided.
fn why(row: &Row) -> String {
    let mut why = row.reason.clone();
    let is_on_node = matches!(row.place, Some(Place::Node(_)));
    if let Some(expected) = row.expected_us
        && (is_on_node || row.in_head_slot)
    {
        let _ = write!(why, ", {} expected", clock(expected));
    }
    if is_on_node && let Some(name) = &row.shares_tmp {
        let _ = write!(why, ", shares {name}");
    }
    if row.in_head_slot {
        why.push_str(", sooner here");
    }
    if let Some(reason) = &row.fell_back {
        let _ = write!(why, ", but {reason}");
    } else if let Some(failure) = row.failures.last() {
        let _ = write!(why, ", again because {failure}");
    }
    if !row.status.is_empty() {
        let _ = write!(why, " [{}]", row.status);
    }
    why
}

/// `n3: 0.42 s gcc net/core/dev.o (compile, 0.40 s expected)`
pub(super) fn one_row(row: &Row) -> String {
    format!(
        "{}: {} {} ({})",
        place(row),
        clock(row.wall_us()),
        described(row),
        why(row)
    )
}

pub(super) fn plan(record: &Record) -> String {
    if record.rows.len() > MAX_PLAN_ROWS {
        return gathered(record);
    }
    let mut rows: Vec<&Row> = record.rows.iter().collect();
    rows.sort_by_key(|row| row.number);
    let mut table = Table::new(&["where", ">ran", ">waited", ">cpu", ">tries", "what", "why"]);
    for row in rows {
        let cpu = row.cpu_us.map_or_else(|| "-".to_owned(), clock);
        table.add([
            place(row).to_owned(),
            clock(row.wall_us()),
            clock(row.queued_us()),
            cpu,
            row.attempts.to_string(),
            described(row),
            why(row),
        ]);
    }
    table.text()
}

/// One row for each place and reason; each line that fell back or was tried again by itself.
fn gathered(record: &Record) -> String {
    let mut reasons: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for row in &record.rows {
        let reason = reasons
            .entry((place(row), row.reason.as_str()))
            .or_default();
        reason.0 += 1;
        reason.1 += row.wall_us();
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|((place, _), (_, time))| (*place, u64::MAX - time));
    let mut table = Table::new(&["where", ">lines", ">ran", "why"]);
    for ((place, reason), (count, time)) in reasons {
        table.add([
            place.to_owned(),
            count.to_string(),
            clock(time),
            reason.to_owned(),
        ]);
    }
    let mut text = table.text();
    let is_odd = |row: &&Row| row.fell_back.is_some() || row.attempts > 1;
    for row in record.rows.iter().filter(is_odd).take(MAX_PLAN_ROWS) {
        let _ = writeln!(text, "{}", one_row(row));
    }
    if record.omitted > 0 {
        let _ = writeln!(text, "{} lines more are not listed", record.omitted);
    }
    text
}

pub(super) fn report(report: &Report) -> String {
    let mut text = String::new();
    let total = report.sum_us.max(1);
    let tables = [
        ("directory", &report.directories),
        ("target", &report.targets),
        ("node", &report.nodes),
    ];
    for (name, shares) in tables {
        if !shares.is_empty() {
            text.push_str(&shares_table(name, shares, total));
            text.push('\n');
        }
    }
    let on_nodes: u64 = report.nodes.iter().map(|share| share.lines).sum();
    let _ = writeln!(
        text,
        "all lines  {} together, each as long as it took beside the others",
        clock(report.sum_us)
    );
    let _ = writeln!(
        text,
        "wall clock {}, {}.{} lines at once",
        clock(report.wall_us),
        report.parallel_milli / 1000,
        report.parallel_milli % 1000 / 100
    );
    let _ = writeln!(
        text,
        "lines      {}: {} on nodes ({} CPU), {} here, {} of them fallen back; {} tried again",
        report.lines,
        on_nodes,
        clock(report.cpu_us),
        report.here,
        report.fallen_back,
        report.tried_again
    );
    text.push_str(&chain(report));
    text
}

fn chain(report: &Report) -> String {
    let chain = &report.chain;
    if chain.steps.is_empty() {
        return String::new();
    }
    let speedup = report.wall_us.saturating_mul(10) / chain.length_us.max(1);
    let mut text = format!(
        "bound      {}: {} lines that waited for one another; more slots make it at most {} times \
         faster",
        clock(chain.length_us),
        chain.step_count,
        format_args!("{}.{}", speedup / 10, speedup % 10),
    );
    if chain.is_cut {
        let _ = write!(
            text,
            " (followed back to {}; before, all slots were taken)",
            clock(chain.from_us)
        );
    }
    text.push('\n');
    let mut steps: Vec<_> = chain.steps.iter().zip(&report.chain_names).collect();
    // The longest say what to look at; in the order in which they ran.
    steps.sort_by_key(|(step, _)| std::cmp::Reverse(step.took_us));
    steps.truncate(MAX_REPORT_ROWS);
    steps.sort_by_key(|(step, _)| chain.steps.iter().position(|other| other == *step));
    for (step, name) in steps {
        let _ = writeln!(text, "{:>10}  {name}", clock(step.took_us));
    }
    text
}

fn shares_table(name: &str, shares: &[Share], total: u64) -> String {
    let mut table = Table::new(&[">time", ">share", ">lines", name]);
    for share in shares.iter().take(MAX_REPORT_ROWS) {
        let tenths = share.time_us.saturating_mul(1000) / total;
        table.add([
            clock(share.time_us),
            format!("{}.{}%", tenths / 10, tenths % 10),
            share.lines.to_string(),
            share.name.clone(),
        ]);
    }
    let rest = shares.get(MAX_REPORT_ROWS..).unwrap_or_default();
    if !rest.is_empty() {
        let time: u64 = rest.iter().map(|share| share.time_us).sum();
        let tenths = time.saturating_mul(1000) / total;
        table.add([
            clock(time),
            format!("{}.{}%", tenths / 10, tenths % 10),
            rest.iter()
                .map(|share| share.lines)
                .sum::<u64>()
                .to_string(),
            format!("{} others", rest.len()),
        ]);
    }
    table.text()
}

pub(super) fn fallen_back(record: &Record) -> Option<String> {
    if record.fallback_count == 0 {
        return None;
    }
    let reasons: Vec<String> = record
        .fallbacks
        .iter()
        .map(|(reason, count)| format!("{count}: {reason}"))
        .collect();
    let lines = if record.fallback_count == 1 {
        "line"
    } else {
        "lines"
    };
    Some(format!(
        "{} {lines} meant for nodes ran here ({})",
        record.fallback_count,
        reasons.join("; ")
    ))
}

/// Columns as wide as what stands in them; a `>` before a name moves it to the right.
struct Table<const N: usize> {
    right: [bool; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(names: &[&str; N]) -> Table<N> {
        Table {
            right: names.map(|name| name.starts_with('>')),
            rows: vec![names.map(|name| name.trim_start_matches('>').to_owned())],
        }
    }

    fn add(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..N).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match self.right[column] {
                    true => write!(line, "{cell:>width$}  "),
                    false => write!(line, "{cell:<width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}
