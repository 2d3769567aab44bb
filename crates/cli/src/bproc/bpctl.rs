//! `bpctl`

use wiglaf_wire::client::{NodeChange, NodeState};

use super::select;
use crate::CommandResult;
use crate::commands::{node, nodes};
use crate::error::CommandError;
use crate::output;

/// Change nodes, as BProc's bpctl did
#[derive(clap::Parser)]
#[command(name = "bpctl")]
pub(crate) struct Args {
    /// The nodes: numbers and ranges, all, allup, alldown
    #[arg(short = 'S', value_name = "NODES", required = true)]
    nodes: String,
    /// State: up, unavailable, error
    #[arg(short = 's', value_name = "STATE")]
    state: Option<String>,
    /// Execute permissions, octal
    #[arg(short = 'm', value_name = "MODE")]
    mode: Option<String>,
    /// Owner
    #[arg(short = 'u', value_name = "USER")]
    user: Option<String>,
    /// Group
    #[arg(short = 'g', value_name = "GROUP")]
    group: Option<String>,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let mut changes = Vec::new();
    if let Some(name) = &args.state {
        let state = NodeState::from_name(name).ok_or_else(|| {
            CommandError::new(format!("there is no state {name}")).hint("up, unavailable or error")
        })?;
        changes.push(NodeChange::State(state));
    }
    if let Some(mode) = &args.mode {
        let mode = u32::from_str_radix(mode, 8)
            .map_err(|_| CommandError::new(format!("{mode} is no octal mode")).hint("as 0111"))?;
        changes.push(NodeChange::Mode(mode));
    }
    if let Some(user) = &args.user {
        changes.push(NodeChange::Owner(id(user, "/etc/passwd", "user")?));
    }
    if let Some(group) = &args.group {
        changes.push(NodeChange::Group(id(group, "/etc/group", "group")?));
    }
    if changes.is_empty() {
        return Err(CommandError::new("nothing to change was given").hint("bpctl -S all -m 0100"));
    }
    let list = nodes::list(None)?;
    let names: Vec<_> = select(&list, &args.nodes)?
        .iter()
        .map(|n| n.name.clone())
        .collect();
    for change in changes {
        node::set(&names.join(","), change)?;
    }
    Ok(0)
}

fn id(name: &str, file: &str, what: &str) -> Result<u32, CommandError> {
    output::id_of(name, file).ok_or_else(|| CommandError::new(format!("there is no {what} {name}")))
}
