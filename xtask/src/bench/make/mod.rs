//! `cargo xtask bench make`: real builds by make, Wiglaf, distcc and icecream.
//!
//! `cluster` is Wiglaf's nodes, `farm` the peers', `builder` those who build, `measure` one build;
//! `quota` and `medium` make nodes and wires slow; `parts` says who builds what and when, `table`
//! writes.

mod builder;
mod cluster;
mod farm;
mod measure;
mod medium;
mod parts;
mod quota;
mod table;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Parser;

use super::ground::report::Report;
use super::ground::stage::Stage;
use super::ground::{build_wiglaf, packages};
use crate::inputs::place::Place;
use crate::inputs::{Store, by_name};
use crate::run;
use cluster::Cluster;
use farm::Farm;
use measure::Ground;
use parts::NODES;
use quota::Quota;

const TABLE: &str = "docs/benchmarks/make.md";
const TITLE: &str = "What builds cost";
const INTRODUCTION: &str = "Medians, with the least and the most in parentheses; the contenders took turns in the same \
     run, each at a fresh copy at the same path. All nodes are on this machine's processors, so \
     that more of them make nothing faster but where they are slow.";
const REDIS: &str = "redis-deps";
const LINUX: &str = "linux";
/// Of even pieces, as one long piece would bound the time on many nodes.
const SLOW: &str = "linux-lib";

#[derive(Parser)]
#[command(name = "cargo xtask bench make", no_binary_name = true)]
struct Args {
    /// One round of redis, two numbers of slow nodes; the table on standard output only
    #[arg(long)]
    quick: bool,
    /// Without Wiglaf; on standard output only
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
    /// redis' libraries by all in turns
    Redis,
    /// Linux by all in turns
    Linux,
    Cold,
    Killed,
    Slow,
}

/// How often each thing is measured.
struct Effort {
    redis_rounds: usize,
    linux_rounds: usize,
    cold_rounds: usize,
    killed_rounds: usize,
    slow_nodes: &'static [u32],
}

const FULL: Effort = Effort {
    redis_rounds: 5,
    linux_rounds: 2,
    cold_rounds: 3,
    killed_rounds: 3,
    slow_nodes: &[1, 2, 4, 8, 16],
};

const QUICK: Effort = Effort {
    redis_rounds: 1,
    linux_rounds: 0,
    cold_rounds: 1,
    killed_rounds: 1,
    slow_nodes: &[8, 16],
};

pub(super) fn run(args: &[String]) -> Result<()> {
    let args = Args::try_parse_from(args).unwrap_or_else(|error| error.exit());
    if !rustix::process::geteuid().is_root() {
        bail!("run it as root: it needs network namespaces, cgroups and daemons of its own");
    }
    let effort = if args.quick { QUICK } else { FULL };
    let binary = match &args.binary {
        _ if args.peers => None,
        Some(path) => Some(path.canonicalize().context("--binary")?),
        None => Some(build_wiglaf()?),
    };
    packages::install_missing(farm::PACKAGES)?;
    let store = Store::open()?;
    let mut report = Report::new(TITLE, &args.command_line(), INTRODUCTION);
    let failures = {
        let stage = Stage::set()?;
        report.machine(&versions()?, stage.groups.describe());
        measure(&stage, &args, &effort, binary, &store, &mut report)?
    };
    let text = report.markdown();
    println!("\n{text}");
    if !failures.is_empty() {
        bail!("not everything could be measured:\n{}", failures.join("\n"));
    }
    if args.is_whole() {
        let path = store.workspace().join(TABLE);
        std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        println!("written to {TABLE}");
    }
    Ok(())
}

impl Args {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn is_whole(&self) -> bool {
        !self.quick && !self.peers && self.only.is_empty() && self.binary.is_none()
    }

    fn command_line(&self) -> String {
        let mut text = "cargo xtask bench make".to_owned();
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
}

/// Measures part by part; one that fails is told of, and the others still run.
fn measure(
    stage: &Stage,
    args: &Args,
    effort: &Effort,
    binary: Option<PathBuf>,
    store: &Store,
    report: &mut Report,
) -> Result<Vec<String>> {
    // Not in /tmp, whose contents a node may have to itself.
    let work = PathBuf::from(format!("/var/tmp/wgb.{}", std::process::id()));
    std::fs::create_dir(&work).with_context(|| format!("can't make {}", work.display()))?;
    stage.sweeper.add_dir(&work)?;
    let most = effort.slow_nodes.iter().copied().max().unwrap_or(NODES);
    let mut farm = Farm::lay(stage, most.max(NODES))?;
    farm.start_distcc()?;
    let takes_turns = args.has(Part::Redis) || args.has(Part::Linux);
    if takes_turns {
        farm.start_ice(NODES)?;
    }
    let mut cluster = match binary {
        Some(binary) => Some(Cluster::start(stage, binary, NODES)?),
        None => None,
    };
    let ground = |name: &str| Ground::new(stage, Place::new(store, by_name(name)?, &work)?);
    let mut failures = Vec::new();
    let mut rows = Vec::new();
    let redis = ground(REDIS)?;
    if args.has(Part::Redis) {
        rows.extend(parts::turns(
            &redis,
            effort.redis_rounds,
            cluster.as_ref(),
            &farm,
        ));
    }
    if args.has(Part::Linux) && effort.linux_rounds > 0 {
        let linux = ground(LINUX)?;
        rows.extend(parts::turns(
            &linux,
            effort.linux_rounds,
            cluster.as_ref(),
            &farm,
        ));
    }
    if takes_turns {
        table::write_turns(&rows, report);
    }
    let mut tell = |name: &str, result: Result<()>, report: &mut Report| {
        if let Err(error) = result {
            println!("=== {name} FAILED: {error:#}");
            failures.push(format!("{name}: {error:#}"));
            report.note(format!("{name} could not be measured: {error:#}"));
        }
    };
    if let Some(cluster) = &mut cluster {
        if args.has(Part::Cold) {
            let result = parts::cold(&redis, effort.cold_rounds, cluster)
                .map(|cold| table::write_cold(REDIS, &cold, report));
            tell("cold starts", result, report);
        }
        if args.has(Part::Killed) {
            let result = parts::killed(&redis, effort.killed_rounds, cluster)
                .map(|killed| table::write_killed(REDIS, &killed, report));
            tell("a node's death", result, report);
        }
    }
    if args.has(Part::Slow) {
        let result = ground(SLOW)
            .and_then(|lib| {
                let quota = Quota::new(stage)?;
                parts::slow(&lib, effort, cluster.as_mut(), &farm, &quota)
            })
            .map(|rows| table::write_slow(SLOW, &rows, report));
        tell("slow nodes", result, report);
    }
    report.note(
        "distcc: lzo, no fallback to the head (DISTCC_FALLBACK=0), two slots for each node. icecream: \
         two slots for each node, none on the head, and 8 s of rest before its builds: its nodes take \
         nothing while they find their processors busy, with each other's work as well, and then it \
         compiles on the head. A build of which it has distributed less than 70 % is a failure here. \
         Both call the compiler for the kernel's host programs as well."
            .to_owned(),
    );
    Ok(failures)
}

fn versions() -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${Version}\n"]);
    query.args(["make", "gcc", "distcc", "icecc"]);
    Ok(run::output(&mut query)?.trim().replace('\n', ", "))
}
