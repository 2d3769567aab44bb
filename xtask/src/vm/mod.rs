//! `cargo xtask vm-test`: real firmware and real kernels, in QEMU, boot from a head.
//!
//! `ground` gives us namespaces that end with us, `wire` a network in them, `guest` a machine and
//! `console` what it shows; `dnsmasq` is somebody else's server. `stage` is what a scenario has,
//! `head` our cluster on it; the scenarios themselves are in `scenarios`, and `guide` reads the
//! commands of a guide.

mod console;
mod dnsmasq;
mod ground;
mod guest;
mod guide;
mod head;
mod scenarios;
mod stage;
mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::debs::Kernel;
use crate::{debootstrap, debs, packages, run};
use ground::Ground;
use scenarios::{IN_CI, Need, SCENARIOS, SMOKE, Scenario};
use stage::Stage;

/// What guests and their surroundings need from Debian.
const PACKAGES: &[&str] = &[
    "binutils",
    "cpio",
    "dnsmasq-base",
    "e2fsprogs",
    "gcc",
    "grub-common",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "iproute2",
    "ipxe",
    "ipxe-qemu",
    "kmod",
    "libc6-dev",
    "make",
    "mtools",
    "nftables",
    "ovmf",
    "qemu-system-x86",
    "seabios",
    "squashfs-tools",
    "util-linux",
    "xorriso",
];
/// Unpacked only: it would drive out the other busybox of whoever has that.
const BUSYBOX: &str = "busybox-static";
/// What the scenario `delay` leaves in its folder of logs: what the machine showed when it was
/// new, and when it was started anew.
pub(crate) const DELAY_CONSOLES: [&str; 2] = ["first.console", "later.console"];
/// A larger binary has symbols, which would cost a guest its memory.
const LARGEST_BINARY: u64 = 16 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which scenarios; all if none is named
    names: Vec<String>,
    /// The short form, of some two minutes
    #[arg(long, conflicts_with = "names")]
    smoke: bool,
    /// What CI runs, of some seven
    #[arg(long, conflicts_with_all = ["names", "smoke"])]
    ci: bool,
    /// Say which scenarios there are
    #[arg(long)]
    list: bool,
    /// Use this binary rather than build one
    #[arg(long, value_name = "WIGLAF")]
    binary: Option<PathBuf>,
    /// We are on the ground, whose folder this is
    #[arg(long, hide = true, value_name = "DIR")]
    ground: Option<PathBuf>,
}

impl Args {
    /// What CI runs, by the release binary.
    pub(crate) fn in_ci() -> Args {
        Args {
            names: Vec::new(),
            smoke: false,
            ci: true,
            list: false,
            binary: None,
            ground: None,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for scenario in SCENARIOS {
            println!("{:<12} {}", scenario.name, scenario.about);
        }
        return Ok(());
    }
    let chosen = choose(args)?;
    if !cfg!(target_arch = "x86_64") {
        println!("SKIPPED: the guests are x86_64 machines, and this is none");
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: guests in namespaces need root");
        return Ok(());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in no workspace")?;
    let target = workspace.join("target");
    if let Some(dir) = &args.ground {
        let binary = args.binary.as_deref().context("no binary is named")?;
        return play(&Ground::arrive(dir)?, &chosen, binary, workspace);
    }
    // The ground has no way to a mirror.
    packages::install(PACKAGES)?;
    Kernel::fetch(&target)?;
    let needed = |need| chosen.iter().any(|scenario| scenario.needs.contains(&need));
    if needed(Need::Busybox) {
        debs::fetch(&target, BUSYBOX)?;
    }
    if needed(Need::GenericKernel) {
        Kernel::fetch_generic(&target)?;
    }
    if needed(Need::System) {
        debootstrap::fetch(&target)?;
    }
    if needed(Need::Resolved) {
        scenarios::fetch_resolved(&target)?;
    }
    let binary = match &args.binary {
        Some(path) => path.canonicalize().context("--binary")?,
        None => crate::binary::build()?,
    };
    let binary = without_symbols(&binary, &target.join("vm"))?;
    let mut words = vec!["vm-test".to_owned()];
    words.extend(chosen.iter().map(|scenario| scenario.name.to_owned()));
    words.extend(["--binary".to_owned(), binary.to_string_lossy().into_owned()]);
    words.push("--ground".to_owned());
    let status = ground::enter(&words)?;
    if !status.success() {
        bail!("not all scenarios went well");
    }
    Ok(())
}

fn choose(args: &Args) -> Result<Vec<&'static Scenario>> {
    let named = |name: &str| {
        SCENARIOS
            .iter()
            .find(|scenario| scenario.name == name)
            .with_context(|| format!("there is no scenario {name}; --list shows them"))
    };
    if args.smoke {
        return SMOKE.iter().map(|name| named(name)).collect();
    }
    if args.ci {
        return IN_CI.iter().map(|name| named(name)).collect();
    }
    if args.names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    args.names.iter().map(|name| named(name)).collect()
}

fn play(ground: &Ground, chosen: &[&Scenario], binary: &Path, workspace: &Path) -> Result<()> {
    let target = workspace.join("target");
    let logs = target.join("vm");
    let mut failed = Vec::new();
    for scenario in chosen {
        println!("\n--- {}: {}", scenario.name, scenario.about);
        let started = Instant::now();
        let kernel = if scenario.needs.contains(&Need::GenericKernel) {
            Kernel::fetch_generic(&target)?
        } else {
            Kernel::fetch(&target)?
        };
        let stage = Stage::set(ground, scenario.name, &logs, &kernel, binary, workspace)?;
        let result = (scenario.play)(&stage);
        ground.kill_strays();
        let took = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("--- {}: ok after {took:.1} s", scenario.name),
            Err(error) => {
                stage.show_logs();
                println!("--- {}: FAILED after {took:.1} s: {error:#}", scenario.name);
                failed.push(scenario.name);
            }
        }
    }
    let passed = chosen.len() - failed.len();
    println!("\n{passed} passed, {} failed", failed.len());
    if !failed.is_empty() {
        bail!("these failed: {}", failed.join(", "));
    }
    Ok(())
}

/// A debugging build is fit to be a node's /init only without its symbols.
fn without_symbols(binary: &Path, dir: &Path) -> Result<PathBuf> {
    if binary.metadata().context("the binary")?.len() <= LARGEST_BINARY {
        return Ok(binary.to_owned());
    }
    std::fs::create_dir_all(dir)?;
    let stripped = dir.join("wiglaf");
    run::check(
        Command::new("strip")
            .arg("-o")
            .args([&stripped, &binary.to_owned()]),
    )?;
    Ok(stripped)
}
