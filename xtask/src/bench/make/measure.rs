//! One build, measured: time, processor time at both ends, where files were compiled, and whether
//! they are what they should be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::builder::{Builder, Job};
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::Samples;
use crate::inputs::place::Place;
use crate::inputs::record::Lines;
use crate::inputs::tree;

/// The slowest build of all is one on a single slow node.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// What a run leaves to daemons is charged to it if it is done by then.
const SETTLE: Duration = Duration::from_millis(200);
const SHOWN_FINDINGS: usize = 5;
const SHOWN_LOG_LINES: usize = 8;
/// Who has less than this part of the object files compiled on nodes has not distributed the
/// build, and its figures say nothing.
const LEAST_REMOTE: f64 = 0.7;

#[derive(Default)]
pub(super) struct Figures {
    pub(super) wall_s: Samples,
    pub(super) cpu_s: Samples,
    pub(super) head_cpu_s: Samples,
    /// Compiled on nodes; or, by Wiglaf, lines that ran there.
    pub(super) remote: Samples,
    /// Of the processor time, what was spent on nodes.
    pub(super) on_nodes: Samples,
    pub(super) different_objects: Samples,
    /// Lines that were launched again.
    pub(super) tried_again: Samples,
    pub(super) failure: Option<String>,
}

/// What one build cost.
pub(super) struct Outcome {
    pub(super) wall_s: f64,
    head_s: f64,
    nodes_s: f64,
    remote: Option<u64>,
    different_objects: usize,
    pub(super) lines: Option<Lines>,
}

pub(super) struct Ground<'a> {
    pub(super) stage: &'a Stage,
    pub(super) place: Place<'a>,
    /// What a build here made.
    reference: PathBuf,
    objects: usize,
}

impl<'a> Ground<'a> {
    /// Builds it once for comparison.
    pub(super) fn new(stage: &'a Stage, place: Place<'a>) -> Result<Ground<'a>> {
        println!("\n=== {}", place.input.name);
        place.prepare()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = u32::try_from(cores).unwrap_or(1);
        let words = place.words(cores);
        let mut command = place.command(&words[0], cores);
        place.logged(command.args(&words[1..]), "reference")?;
        let reference = place.put_aside("reference")?;
        let objects = objects(&reference)?;
        println!("{objects} object files");
        Ok(Ground {
            stage,
            place,
            reference,
            objects,
        })
    }

    pub(super) fn objects(&self) -> usize {
        self.objects
    }

    /// A build that counts; what goes wrong is kept, and ends this builder's turns.
    pub(super) fn turn(&self, builder: &dyn Builder, jobs: u32, nodes: u32, figures: &mut Figures) {
        if figures.failure.is_some() {
            return;
        }
        match self.build(builder, jobs, nodes, || Ok(())) {
            Ok(outcome) => figures.add(&outcome),
            Err(error) => {
                println!("{}: {error:#}", builder.name());
                figures.failure = Some(one_line(&error));
            }
        }
    }

    /// A fresh copy is built, with something done while it runs.
    pub(super) fn build(
        &self,
        builder: &dyn Builder,
        jobs: u32,
        nodes: u32,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Outcome> {
        self.stage.groups.leave()?;
        self.place.prepare()?;
        let job = Job {
            place: &self.place,
            jobs,
            nodes,
            log: self.stage.dir.join("build.log"),
        };
        let mut command = builder.command(&job)?;
        // What unpacking wrote is not to be written now.
        rustix::fs::sync();
        std::thread::sleep(builder.rest());
        self.stage.groups.enter(Group::Head)?;
        let used = |group| self.stage.groups.cpu_ms(group);
        let before = (used(Group::Head)?, used(Group::Nodes)?);
        let count = builder.done_remotely()?;
        let (took, succeeded) = self.run(&mut command, meanwhile)?;
        std::thread::sleep(SETTLE);
        let after = (used(Group::Head)?, used(Group::Nodes)?);
        self.stage.check_alive()?;
        if !succeeded {
            bail!("the build failed{}", end_of(&job.log));
        }
        let lines = builder.lines(&job.log)?;
        let remote = match (count, builder.done_remotely()?) {
            (Some(before), Some(after)) => Some(after - before),
            _ => lines.map(|lines| lines.on_nodes),
        };
        let different_objects = self.check(builder)?;
        let outcome = Outcome {
            wall_s: took.as_secs_f64(),
            head_s: (after.0 - before.0) / 1e3,
            nodes_s: (after.1 - before.1) / 1e3,
            remote,
            different_objects,
            lines,
        };
        println!(
            "{:9} {:10} -j{jobs} {:7.2} s wall {:7.2} s CPU, {:6.2} s of it on the head; {} on nodes",
            builder.name(),
            self.place.input.name,
            outcome.wall_s,
            outcome.head_s + outcome.nodes_s,
            outcome.head_s,
            outcome
                .remote
                .map_or("nothing".to_owned(), |n| n.to_string()),
        );
        if remote.is_some_and(|count| (count as f64) < LEAST_REMOTE * self.objects as f64) {
            let (count, all) = (remote.unwrap_or(0), self.objects);
            bail!("only {count} of {all} object files were compiled on nodes");
        }
        Ok(outcome)
    }

    fn run(
        &self,
        command: &mut Command,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<(Duration, bool)> {
        let started = Instant::now();
        let mut child = crate::bench::ground::child::spawn(command)?;
        let watched = self.stage.watchdog.watch(&child, TIMEOUT)?;
        let done = meanwhile();
        let status = child.wait()?;
        let took = started.elapsed();
        watched.end(command)?;
        done?;
        Ok((took, status.success()))
    }

    /// How many object files differ; from whom is faithful, nothing may.
    fn check(&self, builder: &dyn Builder) -> Result<usize> {
        let (findings, _) = tree::compare(&self.reference, &self.place.dir)?;
        let unknown = tree::unknown(&findings, self.place.input.differences);
        if builder.is_faithful() && !unknown.is_empty() {
            let shown: Vec<String> = unknown
                .iter()
                .take(SHOWN_FINDINGS)
                .map(|each| format!("{} {}", each.path, each.what))
                .collect();
            bail!("{} files differ: {}", unknown.len(), shown.join(", "));
        }
        Ok(unknown
            .iter()
            .filter(|each| each.path.ends_with(".o"))
            .count())
    }
}

impl Figures {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        let all = outcome.head_s + outcome.nodes_s;
        self.wall_s.push(outcome.wall_s);
        self.cpu_s.push(all);
        self.head_cpu_s.push(outcome.head_s);
        self.on_nodes.push(outcome.nodes_s / all);
        self.different_objects
            .push(outcome.different_objects as f64);
        if let Some(lines) = outcome.lines {
            self.tried_again.push(lines.tried_again as f64);
        }
        if let Some(count) = outcome.remote {
            self.remote.push(count as f64);
        }
    }
}

/// For a table.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}").replace('|', " ");
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ")
}

fn objects(top: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(top).with_context(|| format!("can't read {}", top.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            count += objects(&path)?;
        } else if path.extension().is_some_and(|end| end == "o") {
            count += 1;
        }
    }
    Ok(count)
}

fn end_of(log: &Path) -> String {
    let log = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..]
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect()
}
