//! `cargo xtask bench view`: the same work on this machine itself, and on a second one through
//! Wiglaf's view, sshfs and outrun.
//!
//! `cable` lays the wire to the second machine, which `delay` slows down, with an sshd at each end
//! (`ssh`). `contender` and `cluster` are who works, `materials` what on, `work` what; `measure`
//! has them do it, `coherence` measures launches, `table` writes. `restart` is a part of its own:
//! what a node that keeps what it reads saves.

mod cable;
mod cluster;
mod coherence;
mod contender;
pub(super) mod delay;
mod materials;
mod measure;
mod restart;
mod ssh;
mod table;
mod work;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;

use super::ground::report::Report;
use super::ground::stage::Stage;
use super::ground::{invocation, packages};
use cable::{Cable, Wire};
use cluster::Cluster;
use contender::{Contender, Native, Outrun, Sshfs};
use materials::Materials;
use measure::{Figures, Ground};
use ssh::Ssh;
use table::Results;
use work::Work;

const TABLE: &str = "docs/benchmarks/view.md";
const TITLE: &str = "What work through the view costs";
const INTRODUCTION: &str = "Medians, with the least and the most in parentheses; the contenders took turns in the same \
     run, all as root, as outrun works for nobody else. Cold: Wiglaf's agent has just joined, \
     sshfs is newly mounted, outrun's cache is removed; the head's own page cache is warm always. \
     Warm: the second run or a later one. Both machines are on the same processors.";
const PACKAGES: &[(&str, &str)] = &[
    (contender::SSHFS, "sshfs"),
    (ssh::SSHD, "openssh-server"),
    ("/usr/bin/ssh", "openssh-client"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/bin/git", "git"),
    ("/usr/bin/python3", "python3"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
    ("/usr/bin/xz", "xz-utils"),
];

#[derive(Parser)]
#[command(name = "cargo xtask bench view", no_binary_name = true)]
struct Args {
    /// One repetition, and the table on standard output only
    #[arg(long)]
    quick: bool,
    /// Only these contenders beside native; on standard output only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Who>,
    /// Only this work, by the first word of its name; on standard output only
    #[arg(long, value_delimiter = ',')]
    work: Vec<String>,
    /// Only what a restarted node has to read again, of which the rest of the table keeps its date
    #[arg(long, conflicts_with_all = ["only", "work"])]
    restart: bool,
    /// Measure this binary rather than build one; on standard output only
    #[arg(long, value_name = "WIGLAF")]
    binary: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Who {
    Wiglaf,
    Sshfs,
    Outrun,
}

/// How often each thing is measured.
struct Effort {
    cold_rounds: usize,
    warm_rounds: usize,
    write_rounds: usize,
    launch_rounds: usize,
}

const FULL: Effort = Effort {
    cold_rounds: 3,
    warm_rounds: 7,
    write_rounds: 3,
    launch_rounds: 60,
};

const QUICK: Effort = Effort {
    cold_rounds: 1,
    warm_rounds: 1,
    write_rounds: 1,
    launch_rounds: 10,
};

pub(super) fn run(args: &[String]) -> Result<()> {
    let args = Args::try_parse_from(args).unwrap_or_else(|error| error.exit());
    invocation::need_root("a network namespace, mounts, cgroups and sshds of its own")?;
    let metadata = cargo_metadata::MetadataCommand::new().no_deps().exec()?;
    let store = metadata.target_directory.join("bench").into_std_path_buf();
    let binary = match &args.binary {
        _ if !args.has(Who::Wiglaf) => None,
        named => Some(invocation::binary(named.as_deref())?),
    };
    packages::install_missing(PACKAGES)?;
    let root = metadata.workspace_root.as_std_path();
    if !args.restart {
        let mut report = Report::new(TITLE, &args.command_line(), INTRODUCTION);
        {
            let stage = Stage::set()?;
            measure(&stage, &args, binary.as_deref(), &store, &mut report)?;
        }
        let text = report.markdown();
        println!("\n{text}");
        if args.is_written() {
            let before = std::fs::read_to_string(root.join(TABLE)).unwrap_or_default();
            invocation::write_table(root, TABLE, &restart::joined(&text, &before))?;
        }
    }
    let Some(binary) = binary.filter(|_| args.only.is_empty() && args.work.is_empty()) else {
        return Ok(());
    };
    let text = restart::run(args.quick, &binary, &args.command_line())?;
    println!("\n{text}");
    if args.is_written() {
        let before = std::fs::read_to_string(root.join(TABLE)).unwrap_or_default();
        invocation::write_table(root, TABLE, &restart::joined(&before, &text))?;
    }
    Ok(())
}

impl Args {
    fn has(&self, who: Who) -> bool {
        self.only.is_empty() || self.only.contains(&who)
    }

    fn has_work(&self, work: &Work) -> bool {
        self.work.is_empty()
            || self
                .work
                .iter()
                .any(|word| work.name.split(' ').next() == Some(word))
    }

    fn is_written(&self) -> bool {
        !self.quick && self.only.is_empty() && self.work.is_empty() && self.binary.is_none()
    }

    fn command_line(&self) -> String {
        let flags = [
            ("--quick", self.quick),
            ("--only …", !self.only.is_empty()),
            ("--work …", !self.work.is_empty()),
            ("--restart", self.restart),
            ("--binary …", self.binary.is_some()),
        ];
        invocation::command_line("view", &flags)
    }
}

fn measure(
    stage: &Stage,
    args: &Args,
    binary: Option<&Path>,
    store: &Path,
    report: &mut Report,
) -> Result<()> {
    let effort = if args.quick { QUICK } else { FULL };
    let cable = Cable::lay(stage)?;
    let wire = cable.measure().context("the cable can't be measured")?;
    report.machine(
        &format!("{}{}", contender::versions()?, about(&cable, &wire)),
        stage.groups.describe(),
    );
    let ssh = Ssh::start(stage, &cable)?;
    let cluster = binary.map(|binary| Cluster::start(stage, &cable, binary));
    let mut cluster = cluster.transpose()?;
    let mut native = Native(stage);
    let sshfs = args
        .has(Who::Sshfs)
        .then(|| Sshfs::new(stage, &cable, &ssh));
    let mut sshfs = sshfs.transpose()?;
    let outrun = args
        .has(Who::Outrun)
        .then(|| Outrun::install(stage, &cable, &ssh, store));
    let mut outrun = outrun.transpose()?;
    let mut contenders: Vec<&mut dyn Contender> = vec![&mut native];
    contenders.extend(cluster.as_mut().map(|each| each as &mut dyn Contender));
    contenders.extend(sshfs.as_mut().map(|each| each as &mut dyn Contender));
    contenders.extend(outrun.as_mut().map(|each| each as &mut dyn Contender));
    let names: Vec<_> = contenders.iter().map(|each| each.name()).collect();
    // Not in /tmp, which is the node's own for some.
    let dir = PathBuf::from(format!("/var/tmp/wgb.{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    stage.sweeper.add_dir(&dir)?;
    let materials = Materials::make(&dir, store, &names)?;
    let ground = Ground {
        stage,
        cable: &cable,
        materials: &materials.dir,
        runs: Cell::new(0),
    };
    for contender in &mut contenders {
        contender.freshen()?;
    }
    let mut results = Results {
        names,
        rows: Vec::new(),
    };
    for work in work::all(&materials) {
        if args.has_work(&work) {
            println!("\n=== {}: {}", work.name, work.about);
            let figures = ground.measure(&effort, &work, &mut contenders)?;
            results.rows.push((work, figures));
        }
    }
    results.write(&wire, report);
    if let Some(cluster) = &cluster {
        note_cluster(cluster, &ground, &materials, &results, report);
    }
    if let Some(binary) = binary
        && let Err(error) = coherence::measure(stage, &effort, binary, report)
    {
        report.note(format!("What the view adds to a launch: failed: {error:#}"));
    }
    note_ways(report);
    Ok(())
}

/// The agent's memory after all this, and what a warm compilation still says.
fn note_cluster(
    cluster: &Cluster,
    ground: &Ground,
    materials: &Materials,
    results: &Results,
    report: &mut Report,
) {
    match cluster.agent_memory_bytes() {
        Ok(bytes) => report.note(format!(
            "Memory of Wiglaf's agent (Pss of its processes) after all this: {:.1} MB.",
            bytes as f64 / 1e6
        )),
        Err(error) => report.note(format!("Memory of Wiglaf's agent: failed: {error:#}")),
    }
    if let Some(packets) = results.warm_packets(work::GCC) {
        report.note(format!(
            "A warm `gcc` of Wiglaf: {packets:.0} packets on the cable, the launch included; a warm \
             `true`: {:.0}.",
            results.warm_packets(work::TRUE).unwrap_or(f64::NAN)
        ));
    }
    let works = work::all(materials);
    let Some(gcc) = works.iter().find(|work| work.name == work::GCC) else {
        return;
    };
    let Some(before) = cluster.round_trips() else {
        return;
    };
    let mut figures = Figures::default();
    let ran = ground.once(gcc, cluster, &mut figures.warm);
    if let (Ok(()), Some(after)) = (ran, cluster.round_trips()) {
        report.note(format!(
            "Round trips of the view during a warm `gcc`: {}.",
            after.saturating_sub(before)
        ));
    }
}

fn about(cable: &Cable, wire: &Wire) -> String {
    let delay = match &cable.undelayed {
        None => format!(
            "delay by NFQUEUE on what comes in at the node ({:.1} % of a core on the full wire, not \
             in the CPU times below)",
            wire.delay_load * 100.0
        ),
        Some(reason) => {
            format!("WITHOUT the delay of 0.3 ms, as NFQUEUE is not to be had: {reason}")
        }
    };
    format!(
        "\n- Cable: veth, 1 Gb/s each way by tbf, {delay}; measured by plain TCP: a round trip of \
         {:.0} µs, {:.1} MB/s",
        wire.round_trip_us,
        wire.bytes_per_s / 1e6
    )
}

fn note_ways(report: &mut Report) {
    report.note(format!(
        "sshfs: all of the head's files, with kernel_cache, auto_cache, all time-outs 3,600 s, \
         max_conns=4, {} and no compression; the work is in a chroot there, with /proc, /dev and \
         /tmp the node's own. Its launch costs no message, and its mounting is not counted.",
        ssh::CIPHER
    ));
    report.note(
        "outrun: by the same cipher, its cache on the node's disk; each command sets up its \
         connection and its mount, as it does. It looks for FUSE with lsmod, which has to be \
         replaced where FUSE is built into the kernel."
            .to_owned(),
    );
    report.note(
        "git's index was made on the head. sshfs shows other inode numbers than the head's, so that \
         git reads all files again when it is cold."
            .to_owned(),
    );
    report.note(
        "Each contender has a repository and a folder of its own; what it was to print or to make is \
         checked on the head after each run. Who has used 8 s for a column gets no further turn in it."
            .to_owned(),
    );
}
