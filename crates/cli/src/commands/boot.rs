//! `wiglaf boot`

mod interfaces;

pub(crate) use interfaces::default_route;

use std::net::Ipv4Addr;

use clap::Subcommand;
use serde::Serialize;
use wiglaf_head::config::Layout;
use wiglaf_wire::boot::{AddressService, BootInterface, BootRequest, BootStatus};
use wiglaf_wire::client::{Reply, Request};

use crate::CommandResult;
use crate::daemons;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

/// Serve machines that start from the network: DHCP, BOOTP, TFTP and HTTP, all built in
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Answer machines behind a network interface, and behind no other
    ///
    /// The interface gets an address if it has none. Before anybody is answered, another DHCP
    /// server on that wire is looked for.
    Enable {
        /// The interface; without it, those that there are are shown
        #[arg(long, value_name = "NAME")]
        interface: Option<String>,
        /// The head's address there, with the bits of the network's part, for example 10.77.0.1/24
        #[arg(long, value_name = "ADDRESS/BITS", value_parser = interfaces::network)]
        address: Option<(Ipv4Addr, u8)>,
        /// Leave addresses to the DHCP server that this wire has, and add only what to boot
        #[arg(long)]
        proxy: bool,
        /// The router that machines are told
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<Ipv4Addr>,
        /// Even if this machine's own way to the outer world goes by that interface
        #[arg(long)]
        on_default_route: bool,
    },
    /// Answer nobody there any more
    Disable {
        /// The interface
        #[arg(long, value_name = "NAME")]
        interface: String,
    },
    /// Show what is served where, and what is wrong
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: Args) -> CommandResult {
    match args.action {
        Action::Enable {
            interface,
            address,
            proxy,
            gateway,
            on_default_route,
        } => {
            let Some(name) = interface else {
                interfaces::print()?;
                return Err(CommandError::new("no interface was given")
                    .hint("`wiglaf boot enable --interface NAME`"));
            };
            let (address, sets_address) = interfaces::choose(&name, address, on_default_route)?;
            let service = if proxy {
                AddressService::Proxy
            } else {
                AddressService::Full
            };
            enable(
                BootInterface {
                    name,
                    address: address.0,
                    prefix: address.1,
                    service,
                    // The head chooses.
                    unknown: (address.0, address.0),
                    gateway,
                },
                sets_address,
            )
        }
        Action::Disable { interface } => ask(BootRequest::Disable { interface }).map(|_| 0),
        Action::Status { json } => status(json),
    }
}

/// Asks the head something about machines.
pub(crate) fn ask(request: BootRequest) -> Result<Reply, CommandError> {
    match Head::connect()?.ask(&Request::Boot(request))? {
        refused @ Reply::Refused { .. } => Err(CommandError::from_reply(refused)),
        other => Ok(other),
    }
}

fn asked_status(request: BootRequest) -> Result<BootStatus, CommandError> {
    match ask(request)? {
        Reply::Boot(status) => Ok(status),
        other => Err(CommandError::from_reply(other)),
    }
}

fn enable(interface: BootInterface, sets_address: bool) -> CommandResult {
    if !rustix::process::geteuid().is_root() {
        return Err(CommandError::new("only root can answer DHCP and TFTP")
            .hint("sudo wiglaf boot enable …"));
    }
    let layout = Layout::own()?;
    layout.make()?;
    daemons::ensure_head(&layout)?;
    let (name, address) = (interface.name.clone(), interface.address);
    let prefix = interface.prefix;
    let is_proxy = interface.service == AddressService::Proxy;
    let status = asked_status(BootRequest::Enable {
        interface,
        sets_address,
    })?;
    let how = if is_proxy {
        "what to boot; addresses are the other server's"
    } else {
        "addresses and what to boot"
    };
    output::print(&format!(
        "{name}: machines get {how}; the head is {address}/{prefix} there\n"
    ))?;
    if let Some((_, problem)) = status.problems.last() {
        eprintln!("wiglaf: {problem}");
    }
    let next = if status.image.is_none() {
        "next: `wiglaf image build`, then switch a machine on and set it to boot from the network"
    } else {
        "next: switch a machine on that boots from the network, and see `wiglaf nodes --unknown`"
    };
    output::print(&format!("{next}\n"))?;
    Ok(0)
}

#[derive(Serialize)]
struct InterfaceRow {
    interface: String,
    address: String,
    service: &'static str,
    /// The other DHCP server, for whose sake nobody is given an address.
    silent_for: Option<Ipv4Addr>,
    unknown_first: Ipv4Addr,
    unknown_last: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
}

#[derive(Serialize)]
struct StatusRow {
    serving: bool,
    image: Option<String>,
    group_images: Vec<(String, String)>,
    http: Vec<String>,
    adopting_until: Option<i64>,
    interfaces: Vec<InterfaceRow>,
    problems: Vec<(i64, String)>,
}

fn rows(status: &BootStatus) -> Vec<InterfaceRow> {
    let row = |wire: &BootInterface| InterfaceRow {
        interface: wire.name.clone(),
        address: format!("{}/{}", wire.address, wire.prefix),
        service: match wire.service {
            AddressService::Full => "dhcp",
            AddressService::Proxy => "proxy",
        },
        silent_for: status
            .silent
            .iter()
            .find(|(name, _)| *name == wire.name)
            .map(|(_, server)| *server),
        unknown_first: wire.unknown.0,
        unknown_last: wire.unknown.1,
        gateway: wire.gateway,
    };
    status.interfaces.iter().map(row).collect()
}

fn status(json: bool) -> CommandResult {
    let status = asked_status(BootRequest::Status)?;
    if json {
        output::json(&StatusRow {
            serving: status.is_serving,
            image: status.image.clone(),
            group_images: status.group_images.clone(),
            http: status.http.iter().map(ToString::to_string).collect(),
            adopting_until: status.adopts_until_s,
            interfaces: rows(&status),
            problems: status.problems.clone(),
        })?;
        return Ok(0);
    }
    if status.interfaces.is_empty() {
        output::print("no interface is served: `wiglaf boot enable --interface NAME`\n")?;
        return Ok(0);
    }
    let columns = [
        Column("INTERFACE", Align::Left),
        Column("ADDRESS", Align::Left),
        Column("SERVICE", Align::Left),
        Column("UNKNOWN MACHINES GET", Align::Left),
    ];
    let cells: Vec<_> = rows(&status)
        .into_iter()
        .map(|row| {
            let pool = match row.service {
                _ if row.silent_for.is_some() => "nothing".to_owned(),
                "dhcp" => format!("{}-{}", row.unknown_first, row.unknown_last),
                _ => "-".to_owned(),
            };
            let service = match row.silent_for {
                Some(server) => format!("silent, for {server}"),
                None => row.service.to_owned(),
            };
            vec![row.interface, row.address, service, pool]
        })
        .collect();
    output::table(&columns, &cells)?;
    let image = match &status.image {
        Some(image) => format!("image: {image}\n"),
        None => "image: none yet; `wiglaf image build` makes one\n".to_owned(),
    };
    output::print(&image)?;
    for (group, image) in &status.group_images {
        output::print(&format!("image of @{group}: {image}\n"))?;
    }
    if !status.is_serving {
        output::print("the boot service does not run\n")?;
    }
    if let Some(until) = status.adopts_until_s {
        let left = until.saturating_sub(output::unix_now());
        output::print(&format!(
            "every machine that comes is adopted, for {left} s more\n"
        ))?;
        if let Some(name) = &status.adopts_after {
            output::print(&format!("the next one is when {name} is up\n"))?;
        }
    }
    for (at, problem) in &status.problems {
        let ago = output::ago(*at);
        output::print(&format!("{ago}: {problem}\n"))?;
    }
    Ok(0)
}
