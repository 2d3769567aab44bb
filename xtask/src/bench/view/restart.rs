//! What a node reads again when it has been restarted: with nothing kept, and with what it kept on
//! its disk, over cables of several speeds.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::Advice;

use super::Effort;
use super::cable::{Cable, GIGABIT, HUNDRED, Rate, TEN};
use super::cluster::Cluster;
use super::contender::Contender;
use super::measure::{Column, Figures, Ground};
use super::table::WHOLE_MS;
use super::work::{self, Work, clear};
use super::{about, materials};
use crate::bench::ground::groups::Group;
use crate::bench::ground::packages;
use crate::bench::ground::report::Report;
use crate::bench::ground::stage::Stage;

const TITLE: &str = "After a restart";
const INTRODUCTION: &str = "An agent that has just joined reads each for the first time: one that keeps nothing, one by \
     `--keep` with an empty directory, and one that was started again with what that has kept, whose \
     pages were dropped from memory, so that it comes from the disk; they took turns. The cable is set \
     to each row's rate; the head's own page cache is warm, and each work was done once before, so \
     that the deputy knows what it uses.";
/// Around the section.
const BEGIN: &str = "<!-- restart -->\n";
const END: &str = "<!-- end of restart -->\n";
/// Each with its rounds: slow ones differ less.
const RATES: &[(&Rate, usize)] = &[(&GIGABIT, 5), (&HUNDRED, 3), (&TEN, 3)];
/// Ratios below have more decimals.
const SMALL_RATIO: f64 = 0.1;
/// An agent writes what it has read when it has time. Nothing more has come for so long:
const REST: Duration = Duration::from_millis(300);
const REST_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(30);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Nothing,
    First,
    Again,
}

impl Way {
    const ALL: [Way; 3] = [Way::Nothing, Way::First, Way::Again];

    fn name(self) -> &'static str {
        match self {
            Way::Nothing => "nothing",
            Way::First => "first",
            Way::Again => "again",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Way::Nothing => "keeps nothing",
            Way::First => "keeps, first time",
            Way::Again => "keeps, restarted",
        }
    }
}

/// An agent, and what it keeps.
struct Agent<'a, 'b> {
    way: Way,
    cluster: &'a RefCell<Cluster<'b>>,
    keep: &'a Path,
}

impl Contender for Agent<'_, '_> {
    fn name(&self) -> &'static str {
        self.way.name()
    }

    fn group(&self) -> Group {
        Group::Head
    }

    fn freshen(&mut self) -> Result<()> {
        let mut cluster = self.cluster.borrow_mut();
        if self.way == Way::Again {
            wait_for_rest(self.keep)?;
        }
        cluster.end_agent()?;
        match self.way {
            Way::Nothing => return cluster.start_agent(None),
            Way::First => {
                clear(self.keep)?;
                fs::create_dir(self.keep)?;
            }
            Way::Again => drop_pages(self.keep)?,
        }
        cluster.start_agent(Some(self.keep))
    }

    fn command(&self, words: &[String]) -> Command {
        self.cluster.borrow().command(words)
    }
}

/// Measures, and gives the section.
pub(super) fn run(is_quick: bool, binary: &Path, command_line: &str) -> Result<String> {
    let mut report = Report::new(TITLE, command_line, INTRODUCTION);
    {
        let stage = Stage::set()?;
        measure(is_quick, &stage, binary, &mut report)?;
    }
    Ok(section(&report.markdown()))
}

fn measure(is_quick: bool, stage: &Stage, binary: &Path, report: &mut Report) -> Result<()> {
    let cable = Cable::lay(stage)?;
    let wire = cable.measure().context("the cable can't be measured")?;
    report.machine(
        &format!("{}{}", packages::versions(&["gcc"])?, about(&cable, &wire)),
        stage.groups.describe(),
    );
    // Not in /tmp, which is the node's own, and may be in memory.
    let dir = PathBuf::from(format!("/var/tmp/wgb.{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    stage.sweeper.add_dir(&dir)?;
    materials::make_few(&dir, &Way::ALL.map(Way::name))?;
    let keep = dir.join("kept");
    let cluster = RefCell::new(Cluster::start(stage, &cable, binary)?);
    let mut agents = Way::ALL.map(|way| Agent {
        way,
        cluster: &cluster,
        keep: &keep,
    });
    let ground = Ground {
        stage,
        cable: &cable,
        materials: &dir,
        runs: Cell::new(0),
    };
    let works = work::of_a_restart();
    agents[0].freshen()?;
    for work in &works {
        ground.once(work, &agents[0], &mut Column::default())?;
    }
    let mut rows = Vec::new();
    for (rate, rounds) in RATES {
        let effort = Effort {
            cold_rounds: if is_quick { 1 } else { *rounds },
            warm_rounds: 0,
            write_rounds: 0,
            launch_rounds: 0,
        };
        cable.set(rate)?;
        for work in &works {
            println!("\n=== {}, {}: {}", rate.name, work.name, work.about);
            let [nothing, first, again] = &mut agents;
            let mut contenders: [&mut dyn Contender; 3] = [nothing, first, again];
            let figures = ground.measure(&effort, work, &mut contenders)?;
            rows.push((*rate, work, figures));
        }
    }
    write(&rows, report);
    Ok(())
}

fn write(rows: &[(&Rate, &Work, Vec<Figures>)], report: &mut Report) {
    for (rate, work, all) in rows {
        for (way, figures) in Way::ALL.iter().zip(all) {
            if let Some(reason) = &figures.failure {
                report.note(format!(
                    "{} failed at {}, {}: {reason}",
                    way.title(),
                    work.name,
                    rate.name
                ));
            }
        }
    }
    let mut table = |title: &str, how: &str, cell: &dyn Fn(&Column, &Column) -> String| {
        let head: Vec<_> = [""].into_iter().chain(Way::ALL.map(Way::title)).collect();
        let rows = rows.iter().map(|(rate, work, all)| {
            let mut row = vec![format!("{}, **{}**: {}", rate.name, work.name, work.about)];
            for figures in all {
                row.push(match figures.failure {
                    Some(_) => "failed".to_owned(),
                    None => cell(&figures.cold, &all[0].cold),
                });
            }
            row
        });
        report.table(title, how, &head, rows.collect());
    };
    table(
        "Wall clock, ms",
        "× the agent that keeps nothing in each cell; who has used 8 s for a cell gets no further turn in it",
        &|own, nothing| {
            let median = own.wall_ms.median();
            let decimals = usize::from(median < WHOLE_MS);
            let ratio = median / nothing.wall_ms.median();
            let places = if ratio < SMALL_RATIO { 3 } else { 2 };
            format!("{} = {ratio:.places$} ×", own.wall_ms.text(decimals))
        },
    );
    table(
        "CPU time, ms",
        "Of the head's daemons and the command; of everything on the node",
        &|own, _| {
            let head = own.head_ms.median();
            format!("{head:.0}; {:.0}", own.cpu_ms.median() - head)
        },
    );
    table("On the cable", "Both directions", &|own, _| {
        format!(
            "{:.2} MB, {:.0} packets",
            own.bytes.median() / 1e6,
            own.packets.median()
        )
    });
    report.note(
        "Not measured: NFS with FS-Cache and cachefilesd, whose cache survives a restart, too. It \
         compares what the server says of a file's times, size or change counter; Wiglaf's head reads \
         and hashes the bytes each time, which is in its CPU time."
            .to_owned(),
    );
}

/// What is read next comes from the disk.
fn drop_pages(keep: &Path) -> Result<()> {
    for path in files_in(keep)? {
        let file = fs::File::open(&path).with_context(|| format!("{}", path.display()))?;
        // Only pages that have been written can be dropped.
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Until the agent has written what it has read.
fn wait_for_rest(keep: &Path) -> Result<()> {
    let deadline = Instant::now() + REST_TIMEOUT;
    let (mut bytes, mut since) = (bytes_in(keep)?, Instant::now());
    while since.elapsed() < REST {
        if Instant::now() > deadline {
            bail!("the agent does not stop writing to {}", keep.display());
        }
        std::thread::sleep(POLL);
        let now = bytes_in(keep)?;
        if now != bytes {
            (bytes, since) = (now, Instant::now());
        }
    }
    if bytes == 0 {
        bail!("the agent has kept nothing in {}", keep.display());
    }
    Ok(())
}

fn bytes_in(keep: &Path) -> Result<u64> {
    let files = files_in(keep)?;
    let lengths = files
        .iter()
        .map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    Ok(lengths.sum())
}

/// Those of the store, which has a directory of its own there.
fn files_in(keep: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(keep).with_context(|| format!("{}", keep.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_in(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// A part of the table: with a date and commit of its own.
fn section(text: &str) -> String {
    let mut section = BEGIN.to_owned();
    for line in text.lines() {
        if line.starts_with('#') {
            section.push('#');
        }
        section.push_str(line);
        section.push('\n');
    }
    section + END
}

/// The one text without its section, and the section of the other.
pub(super) fn joined(main: &str, restart: &str) -> String {
    let main = main.split(BEGIN).next().unwrap_or_default().trim_end();
    let section = restart.split_once(BEGIN).map(|(_, section)| section);
    match section {
        Some(section) => format!("{main}\n\n{BEGIN}{section}"),
        None => format!("{main}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_table_is_replaced_without_the_other() {
        let old = joined("# View\n\none\n", &section("# After\n\n## T\n\ntwo\n"));
        assert!(
            old.contains("\n## After\n") && old.contains("\n### T\n"),
            "{old}"
        );
        let text = joined(&old, &section("# After\n\nthree\n"));
        assert!(text.contains("one") && text.contains("three") && !text.contains("two"));
        let text = joined("# View\n\nfour\n", &old);
        assert!(text.contains("four") && text.contains("two") && !text.contains("one"));
        assert_eq!(joined("# View\n", ""), "# View\n");
        assert_eq!(joined(&text, &text), text);
    }
}
