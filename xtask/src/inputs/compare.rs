//! `cargo xtask compare`: builds inputs here twice and over a cluster once, and compares all files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::place::{Place, remove};
use super::record::Lines;
use super::tree::{self, Finding};
use super::{Store, by_names};
use crate::bench::ground::sweeper::Sweeper;
use crate::run;

const SHOWN_FINDINGS: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which inputs; all if none is named
    names: Vec<String>,
    /// Two builds here only, without Wiglaf
    #[arg(long)]
    local: bool,
    /// Over so many virtual nodes
    #[arg(long, default_value_t = 4)]
    nodes: u32,
    /// Lines at once over the cluster
    #[arg(long, short, default_value_t = 4)]
    jobs: u32,
    /// Use this binary rather than build one
    #[arg(long, value_name = "WIGLAF")]
    binary: Option<PathBuf>,
    /// Leave what was built where it is, beside the logs in target/inputs/compare
    #[arg(long)]
    keep: bool,
}

impl Args {
    /// These inputs, over four nodes, by the release binary.
    pub(crate) fn over_nodes(names: &[&str]) -> Args {
        Args {
            names: names.iter().map(ToString::to_string).collect(),
            local: false,
            nodes: 4,
            jobs: 4,
            binary: None,
            keep: false,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let store = Store::open()?;
    let inputs = by_names(&args.names)?;
    let work = store.dir.join("compare");
    let places: Vec<Place> = inputs
        .iter()
        .map(|input| Place::new(&store, input, &work))
        .collect::<Result<_>>()?;
    let cluster = if args.local {
        None
    } else {
        Some(Cluster::start(args)?)
    };
    let mut failures = Vec::new();
    for place in &places {
        if let Err(error) = compare(place, cluster.as_ref(), args) {
            println!("{}: {error:#}", place.input.name);
            failures.push(place.input.name);
        }
    }
    if !failures.is_empty() {
        bail!("not as they should be: {}", failures.join(", "));
    }
    Ok(())
}

fn compare(place: &Place, cluster: Option<&Cluster>, args: &Args) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = u32::try_from(cores).unwrap_or(1);
    let here = |name: &str| -> Result<PathBuf> {
        place.prepare()?;
        let words = place.words(cores);
        let took = build(place, &mut place.command(&words[0], cores), &words, name)?;
        println!("{}: {name} here {took:.1?}", place.input.name);
        place.put_aside(name)
    };
    let first = here("first")?;
    let second = here("second")?;
    check(place, "two builds here", &first, &second)?;
    let mut made = vec![first.clone(), second];
    if let Some(cluster) = cluster {
        place.prepare()?;
        let words = place.words_by(&cluster.binary, &["--require-cluster", "--json"], args.jobs);
        let mut command = place.command(&words[0], args.jobs);
        command.env("WIGLAF_DIR", &cluster.dir);
        command.env("XDG_CACHE_HOME", cluster.dir.join("cache"));
        let took = build(place, &mut command, &words, "cluster")?;
        let lines = Lines::read(&place.log("cluster"))?;
        println!(
            "{}: over the cluster {took:.1?}: {} of {} lines on nodes",
            place.input.name, lines.on_nodes, lines.all
        );
        let over = place.put_aside("cluster")?;
        check(
            place,
            "a build here and one over the cluster",
            &first,
            &over,
        )?;
        made.push(over);
        if lines.on_nodes == 0 || lines.fallen_back > 0 {
            bail!(
                "{} lines ran on nodes, and {} that should have did not",
                lines.on_nodes,
                lines.fallen_back
            );
        }
    }
    if !args.keep {
        made.iter().try_for_each(|dir| remove(dir))?;
    }
    Ok(())
}

fn build(place: &Place, command: &mut Command, words: &[String], name: &str) -> Result<Duration> {
    let started = Instant::now();
    place.logged(command.args(&words[1..]), name)?;
    Ok(started.elapsed())
}

fn check(place: &Place, what: &str, one: &Path, other: &Path) -> Result<()> {
    let (findings, amount) = tree::compare(one, other)?;
    let unknown = tree::unknown(&findings, place.input.differences);
    let known = findings.len() - unknown.len();
    println!(
        "{}: {what}: {} files, {:.1} MB; {} differ{}",
        place.input.name,
        amount.files,
        amount.bytes as f64 / 1e6,
        unknown.len(),
        match known {
            0 => String::new(),
            count => format!(", and {count} that never agree"),
        }
    );
    if unknown.is_empty() {
        return Ok(());
    }
    bail!("{what} differ:{}", shown(&unknown));
}

fn shown(findings: &[&Finding]) -> String {
    let mut text: String = findings
        .iter()
        .take(SHOWN_FINDINGS)
        .map(|each| format!("\n  {} {}", each.path, each.what))
        .collect();
    if findings.len() > SHOWN_FINDINGS {
        text.push_str(&format!("\n  and {} more", findings.len() - SHOWN_FINDINGS));
    }
    text
}

/// Virtual nodes that end with us, however we end.
struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    sweeper: Sweeper,
}

impl Cluster {
    fn start(args: &Args) -> Result<Cluster> {
        let binary = match &args.binary {
            Some(path) => path.canonicalize().context("--binary")?,
            None => crate::binary::build()?,
        };
        let sweeper = Sweeper::start()?;
        // Short, as sockets are in it.
        let dir = PathBuf::from(format!("/tmp/wgc.{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        sweeper.add_dir(&dir)?;
        sweeper.add_cluster(&binary, &dir)?;
        let cluster = Cluster {
            binary,
            dir,
            sweeper,
        };
        run::check(
            Command::new(&cluster.binary)
                .args(["up", "-n", &args.nodes.to_string()])
                .env("WIGLAF_DIR", &cluster.dir)
                .stdout(Stdio::null()),
        )?;
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.sweeper.finish();
    }
}
