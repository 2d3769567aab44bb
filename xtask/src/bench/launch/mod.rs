//! `cargo xtask bench launch`: what a launch costs, beside fork+exec, Hydra, ssh and xargs.
//!
//! `stage` is the private ground on which all runs (a folder, cgroups, a watchdog), `sweeper` the
//! process that clears it away however we end, `cluster` and `peers` the contenders. `latency`,
//! `width`, `streams` and `ghosts` measure, `report` writes.

mod child;
mod cluster;
mod ghosts;
mod groups;
mod latency;
mod memory;
mod peers;
mod report;
mod sshd;
mod stage;
mod statistics;
mod streams;
mod sweeper;
mod width;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::run;
use cluster::Cluster;
use peers::Peers;
use report::Report;
use stage::Stage;

const TABLE: &str = "docs/benchmarks/launch.md";
const NODES: u32 = 16;

#[derive(Parser)]
#[command(name = "cargo xtask bench launch", no_binary_name = true)]
struct Args {
    /// Fewer repetitions, and the table on standard output only
    #[arg(long)]
    quick: bool,
    /// Only the peers, without Wiglaf; on standard output only
    #[arg(long)]
    peers: bool,
    /// Only these parts; on standard output only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure this binary rather than build one; on standard output only
    #[arg(long, value_name = "WIGLAF")]
    binary: Option<PathBuf>,
    /// What the benchmark starts to clear up after itself
    #[arg(long, hide = true, value_name = "PID")]
    sweep_after: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Latency,
    Width,
    Streams,
    Ghosts,
}

/// How often each thing is measured.
struct Effort {
    latency_rounds: usize,
    width_rounds: usize,
    /// Runs between two readings of the CPU time.
    width_batch: u32,
    stream_rounds: usize,
    stream_bytes: u64,
    ghost_rounds: usize,
    ghosts: u32,
    ps_runs: usize,
}

const FULL: Effort = Effort {
    latency_rounds: 60,
    width_rounds: 9,
    width_batch: 10,
    stream_rounds: 5,
    stream_bytes: 1 << 30,
    ghost_rounds: 3,
    ghosts: 1000,
    ps_runs: 5,
};

const QUICK: Effort = Effort {
    latency_rounds: 10,
    width_rounds: 2,
    width_batch: 5,
    stream_rounds: 1,
    stream_bytes: 1 << 28,
    ghost_rounds: 1,
    ..FULL
};

pub(super) fn run(args: &[String]) -> Result<()> {
    let args = Args::try_parse_from(args).unwrap_or_else(|error| error.exit());
    if let Some(pid) = args.sweep_after {
        return sweeper::sweep(pid);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("run it as root: it needs cgroups, an sshd and an account of its own");
    }
    let is_whole = !args.quick && !args.peers && args.only.is_empty() && args.binary.is_none();
    let effort = if args.quick { QUICK } else { FULL };
    let binary = match (&args.binary, args.peers) {
        (_, true) => None,
        (Some(path), false) => Some(path.canonicalize().context("--binary")?),
        (None, false) => Some(cluster::build()?),
    };
    peers::install_missing()?;
    let mut report = Report::new(&args.command_line());
    let failures = {
        let stage = Stage::set()?;
        measure(&stage, &args, &effort, binary, &mut report)?
    };
    let text = report.markdown();
    println!("\n{text}");
    if !failures.is_empty() {
        bail!("not everything could be measured:\n{}", failures.join("\n"));
    }
    if is_whole {
        let root = cargo_metadata::MetadataCommand::new()
            .no_deps()
            .exec()?
            .workspace_root;
        let path = root.join(TABLE);
        std::fs::create_dir_all(path.parent().context("the table's folder")?)?;
        std::fs::write(&path, text).with_context(|| format!("can't write {path}"))?;
        println!("written to {TABLE}");
    }
    Ok(())
}

impl Args {
    fn command_line(&self) -> String {
        let mut text = "cargo xtask bench launch".to_owned();
        for (flag, is_given) in [
            (" --quick", self.quick),
            (" --peers", self.peers),
            (" --only …", !self.only.is_empty()),
            (" --binary …", self.binary.is_some()),
        ] {
            if is_given {
                text.push_str(flag);
            }
        }
        text
    }

    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Measures part by part; one that fails is told of, and the others still run.
fn measure(
    stage: &Stage,
    args: &Args,
    effort: &Effort,
    binary: Option<PathBuf>,
    report: &mut Report,
) -> Result<Vec<String>> {
    let peers = Peers::start(stage)?;
    report.machine(&peers.versions()?, stage.groups.describe());
    let cluster = match binary {
        Some(binary) => Some(Cluster::start(stage, binary, NODES)?),
        None => None,
    };
    let cluster = cluster.as_ref();
    let mut failures = Vec::new();
    type Measure = fn(&Stage, &Effort, Option<&Cluster>, &Peers, &mut Report) -> Result<()>;
    let parts: [(Part, &str, Measure); 4] = [
        (Part::Latency, "latency", latency::measure),
        (Part::Width, "width", width::measure),
        (Part::Streams, "streams", streams::measure),
        (Part::Ghosts, "ghosts", ghosts::measure),
    ];
    for (part, name, measure) in parts {
        if !args.has(part) {
            continue;
        }
        println!("\n=== {name}");
        if let Err(error) = measure(stage, effort, cluster, &peers, report) {
            println!("=== {name} FAILED: {error:#}");
            failures.push(format!("{name}: {error:#}"));
            report.note(format!("{name} could not be measured: {error:#}"));
        }
        stage.check_alive()?;
    }
    Ok(failures)
}

/// What this command is called in the table.
fn text_of(command: &std::process::Command) -> String {
    run::text_of(command)
}
