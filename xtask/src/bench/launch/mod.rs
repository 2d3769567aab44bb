//! `cargo xtask bench launch`: what a launch costs, beside fork+exec, Hydra, ssh and xargs.
//!
//! `cluster` and `peers` are the contenders; `latency`, `width`, `streams` and `ghosts` measure.

mod cluster;
mod ghosts;
mod latency;
mod memory;
mod peers;
mod sshd;
mod streams;
mod width;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use crate::bench::ground::report::Report;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::{invocation, packages};
use cluster::Cluster;
use peers::Peers;

const TABLE: &str = "docs/benchmarks/launch.md";
const TITLE: &str = "What a launch costs";
const INTRODUCTION: &str = "All figures are medians, with the least and the most in parentheses; \
                            the contenders took turns in the same run.";
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
    invocation::need_root("cgroups, an sshd and an account of its own")?;
    let is_whole = !args.quick && !args.peers && args.only.is_empty() && args.binary.is_none();
    let effort = if args.quick { QUICK } else { FULL };
    let binary = match &args.binary {
        _ if args.peers => None,
        named => Some(invocation::binary(named.as_deref())?),
    };
    packages::install_missing(peers::PACKAGES)?;
    let mut report = Report::new(TITLE, &args.command_line(), INTRODUCTION);
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
        invocation::write_table(root.as_std_path(), TABLE, &text)?;
    }
    Ok(())
}

impl Args {
    fn command_line(&self) -> String {
        let flags = [
            ("--quick", self.quick),
            ("--peers", self.peers),
            ("--only …", !self.only.is_empty()),
            ("--binary …", self.binary.is_some()),
        ];
        invocation::command_line("launch", &flags)
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
