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

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use super::ground::report::Report;
use super::ground::stage::Stage;
use super::ground::{invocation, packages};
use crate::inputs::place::Place;
use crate::inputs::{Store, by_name};
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
const ABOUT_PEERS: &str = "distcc: lzo, no fallback to the head (DISTCC_FALLBACK=0), two slots for each \
     node. icecream: two slots for each node, none on the head, and 8 s of rest before its builds: \
     its nodes take nothing while they find their processors busy, with each other's work as well, \
     and then it compiles on the head. A build of which it has distributed less than 70 % is a \
     failure here. Both call the compiler for the kernel's host programs as well.";
const NAMES_OF_PEERS: &[&str] = &["make", "gcc", "distcc", "icecc"];
const ABOUT_IDLE_PAGES: &str = "This machine's kernel takes away what was not used for a while even \
     where there is memory to spare (DAMON): nodes whose turn comes late have lost the compiler that \
     they had, and fetch it again. That is in their bytes, and on the hub in their time.";
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
    /// Only these parts
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
    redis_rounds: 3,
    linux_rounds: 1,
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
    invocation::need_root("network namespaces, cgroups and daemons of its own")?;
    let effort = if args.quick { QUICK } else { FULL };
    let binary = match &args.binary {
        _ if args.peers => None,
        named => Some(invocation::binary(named.as_deref())?),
    };
    packages::install_missing(farm::PACKAGES)?;
    let store = Store::open()?;
    let mut failures = Vec::new();
    for part in Part::value_variants()
        .iter()
        .filter(|part| args.has(**part))
    {
        let mut report = Report::new(part.title(), &args.command_line(*part), part.about());
        let outcome = Stage::set().and_then(|stage| {
            report.machine(
                &packages::versions(NAMES_OF_PEERS)?,
                stage.groups.describe(),
            );
            measure(*part, &stage, &effort, binary.clone(), &store, &mut report)
        });
        let text = report.markdown();
        println!("\n{text}");
        match outcome {
            Ok(()) if args.is_written() => {
                let root = store.workspace();
                let before = std::fs::read_to_string(root.join(TABLE)).unwrap_or_default();
                invocation::write_table(root, TABLE, &filed(&before, *part, &text))?;
            }
            Ok(()) => {}
            Err(error) => {
                println!("=== {} FAILED: {error:#}", part.title());
                failures.push(format!("{}: {error:#}", part.title()));
            }
        }
    }
    if !failures.is_empty() {
        bail!("not everything could be measured:\n{}", failures.join("\n"));
    }
    Ok(())
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Redis => "redis",
            Part::Linux => "linux",
            Part::Cold => "cold",
            Part::Killed => "killed",
            Part::Slow => "slow",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Part::Redis => "redis' libraries",
            Part::Linux => "Linux",
            Part::Cold => "The first build",
            Part::Killed => "A node's death",
            Part::Slow => "Slow nodes, and a slow hub",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Part::Redis | Part::Linux => {
                "Total CPU is of everything that took part, head CPU of what ran outside the nodes."
            }
            Part::Cold => "Whoever builds first pays for what the nodes do not have yet.",
            Part::Killed => "One node's agent is killed by SIGKILL while its compiler runs.",
            Part::Slow => {
                "Each node has a bounded share of a processor, so that more of them are faster; the \
                 hub is one wire of 10 Mb/s for all."
            }
        }
    }
}

/// Puts what one part has given into the table, in the place of what it gave before. The parts
/// take hours together, so each has its own date and commit.
fn filed(before: &str, part: Part, text: &str) -> String {
    let mut whole = format!("# {TITLE}\n\n{INTRODUCTION}\n");
    for each in Part::value_variants() {
        let section = if *each == part {
            text.lines()
                .map(|line| match line.strip_prefix('#') {
                    Some(_) => format!("#{line}\n"),
                    None => format!("{line}\n"),
                })
                .collect()
        } else {
            match section_of(before, *each) {
                Some(section) => section.to_owned(),
                None => continue,
            }
        };
        let name = each.name();
        whole.push_str(&format!(
            "\n<!-- {name} -->\n{section}<!-- end of {name} -->\n"
        ));
    }
    whole
}

fn section_of(text: &str, part: Part) -> Option<&str> {
    let name = part.name();
    let (_, rest) = text.split_once(&format!("<!-- {name} -->\n"))?;
    rest.split_once(&format!("<!-- end of {name} -->"))
        .map(|(section, _)| section)
}

impl Args {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn is_written(&self) -> bool {
        !self.quick && !self.peers && self.binary.is_none()
    }

    fn command_line(&self, part: Part) -> String {
        let flags = [
            ("--quick", self.quick),
            ("--peers", self.peers),
            ("--binary …", self.binary.is_some()),
        ];
        invocation::command_line(&format!("make --only {}", part.name()), &flags)
    }
}

/// Measures one part.
fn measure(
    part: Part,
    stage: &Stage,
    effort: &Effort,
    binary: Option<PathBuf>,
    store: &Store,
    report: &mut Report,
) -> Result<()> {
    // Not in /tmp, whose contents a node may have to itself.
    let work = PathBuf::from(format!("/var/tmp/wgb.{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("can't make {}", work.display()))?;
    stage.sweeper.add_dir(&work)?;
    let most = match part {
        Part::Slow => effort.slow_nodes.iter().copied().max().unwrap_or(NODES),
        _ => NODES,
    };
    let mut farm = Farm::lay(stage, most)?;
    farm.start_distcc()?;
    let mut cluster = match binary {
        Some(binary) => Some(Cluster::start(stage, binary, NODES)?),
        None => None,
    };
    let ground = |name: &str| Ground::new(stage, Place::new(store, by_name(name)?, &work)?);
    match (part, &mut cluster) {
        (Part::Redis | Part::Linux, cluster) => {
            farm.start_ice(NODES)?;
            let (name, rounds) = match part {
                Part::Redis => (REDIS, effort.redis_rounds),
                _ => (LINUX, effort.linux_rounds),
            };
            if rounds > 0 {
                let rows = parts::turns(&ground(name)?, rounds, cluster.as_ref(), &farm);
                table::write_turns(&rows, report);
            }
            report.note(ABOUT_PEERS.to_owned());
        }
        (Part::Cold, Some(cluster)) => {
            let cold = parts::cold(&ground(REDIS)?, effort.cold_rounds, cluster)?;
            table::write_cold(REDIS, &cold, report);
        }
        (Part::Killed, Some(cluster)) => {
            let killed = parts::killed(&ground(REDIS)?, effort.killed_rounds, cluster)?;
            table::write_killed(REDIS, &killed, report);
        }
        (Part::Cold | Part::Killed, None) => println!("nothing of this is the peers'"),
        (Part::Slow, cluster) => {
            let quota = Quota::new(stage)?;
            let rows = parts::slow(&ground(SLOW)?, effort, cluster.as_mut(), &farm, &quota)?;
            table::write_slow(SLOW, &rows, report);
            if takes_idle_pages()? {
                report.note(ABOUT_IDLE_PAGES.to_owned());
            }
        }
    }
    Ok(())
}

/// Whether this kernel reclaims memory before it is short of it.
fn takes_idle_pages() -> Result<bool> {
    let processes = std::fs::read_dir("/proc").context("/proc")?.flatten();
    Ok(processes.into_iter().any(|process| {
        std::fs::read_to_string(process.path().join("comm"))
            .is_ok_and(|name| name.starts_with("kdamond"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_takes_its_own_place_and_leaves_the_others() {
        let text = filed("", Part::Slow, "# Slow\n\none\n");
        let text = filed(&text, Part::Redis, "# Redis\n\n## T\n\ntwo\n");
        assert!(text.find("## Redis").unwrap() < text.find("## Slow").unwrap());
        assert!(text.contains("### T\n"));
        let text = filed(&text, Part::Redis, "# Redis\n\nthree\n");
        assert!(text.contains("three") && text.contains("one") && !text.contains("two"));
    }
}
