//! What `wiglaf node` and `wiglaf nodes --unknown` do with machines that boot from the network.

mod vendor;
mod why;

use std::io::Read;

use clap::Subcommand;
use serde::Serialize;
use wiglaf_wire::agent::PowerAction;
use wiglaf_wire::boot::{BootRequest, Mac, MachineInfo, Stage, Switch};
use wiglaf_wire::client::{NodeState, Reply, Request};

use crate::CommandResult;
use crate::commands::boot::ask;
use crate::commands::nodes;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Make a machine a node; `wiglaf nodes --unknown` shows those that have asked
    Adopt {
        /// Its Ethernet address
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        mac: Option<Mac>,
        /// The node's name; the next that is free if left out. With --all, %d stands for the next
        /// free number, for example gpu%d
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
        /// Every machine that comes within so many minutes; 0 ends that
        #[arg(long, value_name = "MINUTES")]
        all: Option<u64>,
        /// One at a time, the next when the one before is up, so that numbers follow the order in
        /// which machines are switched on
        #[arg(long, requires = "all")]
        ordered: bool,
    },
    /// Let a machine join for the first time: compare the code on its console
    Approve {
        /// The node, or its Ethernet address
        node: String,
        /// The code that its console shows
        code: String,
    },
    /// Undo an adoption
    Forget {
        /// The node, or its Ethernet address
        node: String,
    },
    /// Forget nodes for good; their names are free again
    Remove {
        /// Node set
        nodes: String,
    },
    /// Tell how far a machine is, why it is stuck, and what to do
    Why {
        /// The node, or its Ethernet address
        node: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what a node said when it booted
    Log {
        /// The node, or its Ethernet address
        node: String,
    },
    /// Start nodes anew
    Reboot {
        /// Node set
        nodes: String,
        /// Straight into the new kernel, without the firmware
        #[arg(long)]
        kexec: bool,
        /// Off and on, whatever they do, by what [power] in the configuration says
        #[arg(long, conflicts_with = "kexec")]
        force: bool,
    },
    /// Stop nodes, and leave them switched on
    Halt {
        /// Node set
        nodes: String,
    },
    /// Switch nodes off
    Poweroff {
        /// Node set
        nodes: String,
        /// Whatever they do, by what [power] in the configuration says
        #[arg(long)]
        force: bool,
    },
    /// Switch nodes on, by what [power] in the configuration says, else by a packet that their
    /// network cards wait for
    Wake {
        /// Node set
        nodes: String,
    },
}

pub(crate) fn run(action: Action) -> CommandResult {
    match action {
        Action::Adopt {
            all: Some(minutes),
            name,
            ordered,
            ..
        } => {
            let window_ms = minutes.saturating_mul(60_000);
            ask(BootRequest::AdoptAll {
                window_ms,
                names: name,
                is_ordered: ordered,
            })?;
            if minutes > 0 {
                let how = if ordered {
                    ", one after the other as each is up"
                } else {
                    ""
                };
                output::print(&format!(
                    "every machine that comes within {minutes} minutes becomes a node{how}\n"
                ))?;
            }
        }
        Action::Adopt { mac, name, .. } => {
            let Some(mac) = mac else {
                return Err(CommandError::new("no Ethernet address was given")
                    .hint("`wiglaf nodes --unknown` shows the machines that have asked"));
            };
            let list = machines(BootRequest::Adopt { mac, name })?;
            for machine in &list {
                let name = machine.name.as_deref().unwrap_or("?");
                output::print(&format!(
                    "{mac} is {name}{}; it boots at its next try, and then shows a code, as does \
                     `wiglaf node why {name}`\n",
                    at(machine)
                ))?;
            }
        }
        Action::Approve { node, code } => {
            for machine in machines(BootRequest::Approve {
                machine: node,
                code,
            })? {
                let name = machine.name.as_deref().unwrap_or("?");
                let when = if machine.is_approved {
                    "now and whenever it starts"
                } else {
                    "this time"
                };
                output::print(&format!(
                    "{name} may join, {when}; it is up in a moment: `wiglaf nodes`\n"
                ))?;
            }
        }
        Action::Forget { node } => {
            ask(BootRequest::Forget { machine: node })?;
        }
        Action::Remove { nodes } => {
            ask(BootRequest::Remove { nodes })?;
        }
        Action::Why { node, json } => return why(&node, json),
        Action::Log { node } => return log(node),
        Action::Reboot {
            nodes, force: true, ..
        } => {
            let switch = Switch::Cycle;
            ask(BootRequest::Switch { nodes, switch })?;
        }
        Action::Poweroff { nodes, force: true } => {
            let switch = Switch::Off;
            ask(BootRequest::Switch { nodes, switch })?;
        }
        Action::Reboot { nodes, kexec, .. } => {
            let action = if kexec {
                PowerAction::Kexec
            } else {
                PowerAction::Reboot
            };
            ask(BootRequest::Power { nodes, action })?;
        }
        Action::Halt { nodes } => {
            let action = PowerAction::Halt;
            ask(BootRequest::Power { nodes, action })?;
        }
        Action::Poweroff { nodes, .. } => {
            let action = PowerAction::PowerOff;
            ask(BootRequest::Power { nodes, action })?;
        }
        Action::Wake { nodes } => {
            ask(BootRequest::Wake { nodes })?;
        }
    }
    Ok(0)
}

fn at(machine: &MachineInfo) -> String {
    let address = machine.address.map(|address| format!(" at {address}"));
    address.unwrap_or_default()
}

fn machines(request: BootRequest) -> Result<Vec<MachineInfo>, CommandError> {
    match ask(request)? {
        Reply::Machines(list) => Ok(list),
        other => Err(CommandError::from_reply(other)),
    }
}

fn log(machine: String) -> CommandResult {
    for line in read_log(machine)?.lines() {
        let (at, what) = line.split_once(' ').unwrap_or(("", line));
        let ago = at.parse().map_or_else(|_| at.to_owned(), output::ago);
        output::print(&format!("{ago}: {what}\n"))?;
    }
    Ok(0)
}

fn read_log(machine: String) -> Result<String, CommandError> {
    let mut head = Head::connect()?;
    match head.ask(&Request::Boot(BootRequest::Log { machine }))? {
        Reply::NodeLog => {}
        other => return Err(CommandError::from_reply(other)),
    }
    let mut file: std::fs::File = head.descriptor()?.into();
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// What keeps a machine it mostly says itself.
fn last_words(machine: &MachineInfo) -> Option<String> {
    let text = read_log(machine.mac.to_string()).ok()?;
    let (_, what) = text.lines().last()?.split_once(' ')?;
    Some(what.to_owned())
}

fn find(text: &str) -> Result<MachineInfo, CommandError> {
    let mac: Option<Mac> = text.parse().ok();
    let list = machines(BootRequest::Machines)?;
    list.into_iter()
        .find(|machine| machine.name.as_deref() == Some(text) || Some(machine.mac) == mac)
        .ok_or_else(|| {
            CommandError::new(format!("{text} is no machine that boots from the network"))
                .hint("`wiglaf nodes` shows all nodes, `wiglaf nodes --unknown` those that asked")
        })
}

fn why(text: &str, json: bool) -> CommandResult {
    let machine = find(text)?;
    let state = match &machine.name {
        Some(name) => {
            let nodes = nodes::list(None)?;
            nodes
                .into_iter()
                .find(|node| node.name == *name)
                .map(|node| node.state)
        }
        None => None,
    };
    let mut line = why::line(&machine, state, output::unix_now());
    let is_at_init = machine.stage == Some(Stage::Init) && state != Some(NodeState::Up);
    if is_at_init && let Some(last) = last_words(&machine) {
        line.push_str(&format!("\nit said last: {last}"));
    }
    if json {
        #[derive(Serialize)]
        struct Why {
            #[serde(flatten)]
            machine: Row,
            why: String,
        }
        output::json(&Why {
            machine: row(&machine),
            why: line,
        })?;
    } else {
        output::print(&format!("{line}\n"))?;
    }
    Ok(0)
}

#[derive(Serialize)]
struct Row {
    mac: String,
    vendor: Option<String>,
    name: Option<String>,
    address: Option<String>,
    interface: Option<String>,
    client: Option<String>,
    stage: Option<&'static str>,
    stage_since: Option<i64>,
    first_seen: Option<i64>,
    image: Option<String>,
    approved: bool,
    code: Option<String>,
    refusal: Option<String>,
}

fn row(machine: &MachineInfo) -> Row {
    Row {
        mac: machine.mac.to_string(),
        vendor: vendor::name(machine.mac),
        name: machine.name.clone(),
        address: machine.address.map(|address| address.to_string()),
        interface: machine.interface.clone(),
        client: machine.client.clone(),
        stage: machine.stage.map(|stage| stage.name()),
        stage_since: machine.stage_s,
        first_seen: machine.first_s,
        image: machine.image.clone(),
        approved: machine.is_approved,
        code: machine.code.clone(),
        refusal: machine.refusal.clone(),
    }
}

/// `wiglaf nodes --unknown`
pub(crate) fn list_unknown(json: bool) -> CommandResult {
    let mut list = machines(BootRequest::Machines)?;
    list.retain(|machine| machine.name.is_none());
    if json {
        output::json(&list.iter().map(row).collect::<Vec<_>>())?;
        return Ok(0);
    }
    if list.is_empty() {
        eprintln!(
            "no unknown machine has asked: `wiglaf boot status` shows where they are listened for"
        );
        return Ok(0);
    }
    let columns = [
        Column("MAC", Align::Left),
        Column("VENDOR", Align::Left),
        Column("CLIENT", Align::Left),
        Column("INTERFACE", Align::Left),
        Column("STAGE", Align::Left),
        Column("WHEN", Align::Right),
    ];
    let cells: Vec<_> = list
        .iter()
        .map(|machine| {
            let text = |text: &Option<String>| text.clone().unwrap_or("-".into());
            vec![
                machine.mac.to_string(),
                text(&vendor::name(machine.mac)),
                text(&machine.client),
                text(&machine.interface),
                machine.stage.map_or("-", |stage| stage.name()).to_owned(),
                machine.stage_s.map_or("-".into(), output::ago),
            ]
        })
        .collect();
    output::table(&columns, &cells)?;
    eprintln!("`wiglaf node adopt MAC` makes one a node");
    Ok(0)
}
