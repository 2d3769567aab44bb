//! `cargo xtask bench boot`: machines that ask for addresses, and that fetch what they boot, from
//! Wiglaf and from the servers that others use.
//!
//! `wire` lays a cable in networks of its own for each `server`; `perfdhcp` is a crowd that asks
//! there, `client` one that fetches. `dhcp`, `flood`, `storm`, `adoption`,
//! `image` and `guest` measure.

mod adoption;
pub(super) mod client;
mod dhcp;
mod flood;
mod guest;
mod image;
mod perfdhcp;
mod server;
mod storm;
mod wire;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Parser;

use super::ground::report::Report;
use super::ground::stage::Stage;
use super::ground::{invocation, packages};
use dhcp::Contender;
use server::{Head, Server};

const TABLE: &str = "docs/benchmarks/boot.md";
const TITLE: &str = "What booting machines from the network costs the head";
const INTRODUCTION: &str = "Each server is in a network namespace of its own, at a veth to its \
     clients; all are on the same processors, and took turns in the same run. Medians, with the \
     least and the most in parentheses, unless something else is said.";
const PACKAGES: &[(&str, &str)] = &[
    (perfdhcp::PROGRAM, "kea-admin"),
    (server::KEA, "kea-dhcp4-server"),
    (server::DNSMASQ, "dnsmasq-base"),
    (storm::NGINX, "nginx-light"),
];
const NAMES_OF_PEERS: &[&str] = &["kea-dhcp4-server", "kea-admin", "dnsmasq-base", "nginx"];

/// Kinds of Ethernet addresses.
const ADOPTED: u8 = 0;
const UNKNOWN: u8 = 1;
const FLOODING: u8 = 2;
/// Wiglaf has 4,096 addresses for machines that nobody knows.
const UNKNOWN_COUNT: u16 = 4_000;
const FLOODING_COUNT: u16 = 10_000;

#[derive(Parser)]
#[command(name = "cargo xtask bench boot", no_binary_name = true)]
struct Args {
    /// Less of everything, and the table on standard output only
    #[arg(long)]
    quick: bool,
    /// Only these parts; on standard output only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// So many clients in the storm; on standard output only
    #[arg(long, value_name = "COUNT")]
    clients: Option<usize>,
    /// Measure this binary rather than build one; on standard output only
    #[arg(long, value_name = "WIGLAF")]
    binary: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Dhcp,
    Flood,
    Storm,
    Guest,
}

/// How much of each thing is done.
struct Effort {
    rates: &'static [u32],
    rounds: usize,
    seconds: u32,
    flood_s: u32,
    /// A cluster has no more nodes than 448.
    adopted: u16,
    storm_clients: usize,
    storm_rounds: usize,
}

const FULL: Effort = Effort {
    rates: &[200, 1_000, 2_000, 4_000],
    rounds: 3,
    seconds: 5,
    flood_s: 10,
    adopted: 448,
    storm_clients: 1_000,
    storm_rounds: 3,
};

const QUICK: Effort = Effort {
    rates: &[200, 2_000],
    rounds: 1,
    seconds: 2,
    flood_s: 2,
    adopted: 20,
    storm_clients: 50,
    storm_rounds: 1,
};

pub(super) fn run(args: &[String]) -> Result<()> {
    let args = Args::try_parse_from(args).unwrap_or_else(|error| error.exit());
    invocation::need_root("network namespaces, cgroups, and DHCP's ports")?;
    let metadata = cargo_metadata::MetadataCommand::new().no_deps().exec()?;
    let root = metadata.workspace_root.into_std_path_buf();
    let target = root.join("target");
    let binary = invocation::binary(args.binary.as_deref())?;
    packages::install_missing(PACKAGES)?;
    let mut report = Report::new(TITLE, &args.command_line(), INTRODUCTION);
    {
        let stage = Stage::set()?;
        report.machine(
            &packages::versions(NAMES_OF_PEERS)?,
            stage.groups.describe(),
        );
        if args.only != [Part::Guest] {
            measure(&stage, &args, &binary, &target, &mut report)?;
        }
    }
    // A guest has namespaces and a head of its own, and a processor of the two.
    if args.has(Part::Guest) && !args.quick {
        guest::measure(&binary, &target, &mut report)?;
    }
    let text = report.markdown();
    println!("\n{text}");
    if args.is_whole() {
        invocation::write_table(&root, TABLE, &text)?;
    }
    Ok(())
}

impl Args {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn is_whole(&self) -> bool {
        !self.quick && self.only.is_empty() && self.clients.is_none() && self.binary.is_none()
    }

    fn command_line(&self) -> String {
        let flags = [
            ("--quick", self.quick),
            ("--only …", !self.only.is_empty()),
            ("--clients …", self.clients.is_some()),
            ("--binary …", self.binary.is_some()),
        ];
        invocation::command_line("boot", &flags)
    }
}

fn measure(
    stage: &Stage,
    args: &Args,
    binary: &Path,
    target: &Path,
    report: &mut Report,
) -> Result<()> {
    let mut effort = if args.quick { QUICK } else { FULL };
    if let Some(clients) = args.clients {
        effort.storm_clients = clients;
        effort.adopted = u16::try_from(clients).map_or(FULL.adopted, |all| all.min(FULL.adopted));
    }
    let adopted = wire::macs(ADOPTED, effort.adopted);
    let lists = Lists {
        known: list(stage, "known", &adopted[..1])?,
        adopted: list(stage, "adopted", &adopted)?,
        unknown: list(stage, "unknown", &wire::macs(UNKNOWN, UNKNOWN_COUNT))?,
        flooding: list(stage, "flooding", &wire::macs(FLOODING, FLOODING_COUNT))?,
    };
    let head = Head::found(stage, binary)?;
    let machines = adoption::adopt(&head, &adopted, report)?;
    head.server.wait_until_ready(&lists.known)?;
    if args.has(Part::Dhcp) || args.has(Part::Flood) {
        let dnsmasq = Server::dnsmasq(stage, &adopted[0])?;
        let kea = Server::kea(stage, &adopted[0])?;
        dnsmasq.wait_until_ready(&lists.known)?;
        kea.wait_until_ready(&lists.known)?;
        let contender = |label, server, macs| Contender {
            label,
            server,
            macs,
        };
        if args.has(Part::Dhcp) {
            let contenders = [
                contender("Wiglaf, unknown", &head.server, &*lists.unknown),
                contender("Wiglaf, adopted", &head.server, &lists.adopted),
                contender("dnsmasq", &dnsmasq, &lists.unknown),
                contender("Kea", &kea, &lists.unknown),
            ];
            dhcp::measure(&contenders, &effort, report)?;
        }
        if args.has(Part::Flood) {
            let servers = [&head.server, &dnsmasq, &kea];
            flood::measure(
                &head,
                &servers,
                &lists.known,
                &lists.flooding,
                &effort,
                report,
            )?;
        }
    }
    if args.has(Part::Storm) {
        let image = image::build(&head, target, report)?;
        storm::measure(&head, &image, &machines, &effort, report)?;
    }
    note_ways(args, report);
    Ok(())
}

/// Who asks, by files for perfdhcp.
struct Lists {
    known: PathBuf,
    adopted: PathBuf,
    unknown: PathBuf,
    flooding: PathBuf,
}

fn list(stage: &Stage, name: &str, macs: &[String]) -> Result<PathBuf> {
    let path = stage.dir.join(format!("{name}.macs"));
    std::fs::write(&path, macs.join("\n") + "\n")?;
    Ok(path)
}

fn note_ways(args: &Args, report: &mut Report) {
    if args.has(Part::Dhcp) || args.has(Part::Flood) {
        report.note(
            "All leases are of 120 s, out of 4,096 addresses of a /16. Wiglaf makes those of \
             machines that nobody knows durable (fdatasync) before it answers, one write for all \
             that came in one turn; an adopted machine's address is its own for ever, and needs \
             none. dnsmasq calls fsync for each lease, Kea's memfile is written and not synced \
             (both by strace)."
                .to_owned(),
        );
        report.note(
            "perfdhcp asks as a relay, so that answers go to its own address; it runs with one \
             thread. dnsmasq runs with --no-ping, as it looks for each address else; Kea with its \
             defaults."
                .to_owned(),
        );
    }
    if args.has(Part::Storm) {
        report.note(
            "nginx: Debian's defaults (sendfile, tcp_nopush, a worker for each processor) without \
             the access log. The clients' windows are of 208 kB, about iPXE's. They compare what \
             they receive on the same processors. A packet that crosses a veth is handled in the time \
             of either side, so that only the sum of both sides' CPU times compares servers."
                .to_owned(),
        );
        report.note(
            "A cluster has at most 448 nodes (their PIDs are unique), so that more clients than \
             that share addresses."
                .to_owned(),
        );
    }
}
