//! `wiglaf nodes`

use serde::Serialize;
use wiglaf_wire::client::{NodeInfo, NodeState, Reply, Request};

use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

/// Show the nodes and their states
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Wait until this many are up
    #[arg(long, value_name = "N")]
    wait: Option<u32>,
    /// Machines that boot from the network and that nobody has adopted
    #[arg(long, conflicts_with = "wait")]
    unknown: bool,
    /// Addresses and names, as /etc/hosts has them
    #[arg(long, conflicts_with_all = ["unknown", "json"])]
    hosts: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
pub(crate) struct Row {
    id: u32,
    name: String,
    state: &'static str,
    user: String,
    group: String,
    mode: String,
    tasks: u32,
    slots: u32,
    load: f64,
    cpus: u32,
    memory_kib: u64,
    available_kib: u64,
    address: String,
    arch: String,
    kernel: String,
    r#virtual: bool,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    if args.unknown {
        return crate::commands::machine::list_unknown(args.json);
    }
    let nodes = list(args.wait)?;
    if args.hosts {
        let known = nodes.iter().filter(|node| !node.machine.address.is_empty());
        for node in known {
            output::print(&format!("{}\t{}\n", node.machine.address, node.name))?;
        }
    } else if args.json {
        output::json(&nodes.iter().map(row).collect::<Vec<_>>())?;
    } else {
        print(&nodes)?;
    }
    Ok(0)
}

/// All nodes, once so many are up.
pub(crate) fn list(wait: Option<u32>) -> Result<Vec<NodeInfo>, CommandError> {
    let mut head = Head::connect()?;
    let mut ask = |request| match head.ask(&request)? {
        Reply::Nodes(nodes) => Ok(nodes),
        other => Err(CommandError::from_reply(other)),
    };
    let nodes = ask(Request::Nodes)?;
    let Some(count) = wait else {
        return Ok(nodes);
    };
    let up = nodes.iter().filter(|node| node.state == NodeState::Up);
    if up.count() < usize::try_from(count)? {
        tell_withheld(&nodes);
    }
    ask(Request::WaitNodes { count })
}

/// Says which nodes are connected, but are kept from taking work: nobody waits for those.
pub(crate) fn tell_withheld(nodes: &[NodeInfo]) {
    for node in nodes.iter().filter(|node| is_withheld(node.state)) {
        eprintln!(
            "wiglaf: {name} takes no work (its state is {state}): `wiglaf node resume {name}`",
            name = node.name,
            state = node.state.name(),
        );
    }
}

/// Connected, but by somebody's word not up.
pub(crate) fn is_withheld(state: NodeState) -> bool {
    matches!(
        state,
        NodeState::Drain | NodeState::Unavailable | NodeState::Error
    )
}

pub(crate) fn row(node: &NodeInfo) -> Row {
    Row {
        id: node.id.0,
        name: node.name.clone(),
        state: node.state.name(),
        user: output::user(node.uid),
        group: output::group(node.gid),
        mode: format!("{:03o}", node.mode),
        tasks: node.tasks,
        slots: node.slots,
        load: f64::from(node.load_centi) / 100.0,
        cpus: node.machine.cpus,
        memory_kib: node.machine.memory_kib,
        available_kib: node.available_kib,
        address: node.machine.address.clone(),
        arch: node.machine.arch.clone(),
        kernel: node.machine.kernel.clone(),
        r#virtual: node.is_virtual,
    }
}

pub(crate) fn print(nodes: &[NodeInfo]) -> Result<(), CommandError> {
    if nodes.is_empty() {
        eprintln!(
            "no nodes yet: `wiglaf up -n 4` makes virtual ones, `wiglaf boot enable` lets machines boot"
        );
        return Ok(());
    }
    let columns = [
        Column("NODE", Align::Left),
        Column("STATE", Align::Left),
        Column("TASKS", Align::Right),
        Column("LOAD", Align::Right),
        Column("CPUS", Align::Right),
        Column("FREE", Align::Right),
        Column("ADDRESS", Align::Left),
        Column("KERNEL", Align::Left),
    ];
    let cells: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                node.name.clone(),
                node.state.name().to_owned(),
                format!("{}/{}", node.tasks, node.slots),
                format!("{}.{:02}", node.load_centi / 100, node.load_centi % 100),
                node.machine.cpus.to_string(),
                output::size(node.available_kib),
                node.machine.address.clone(),
                node.machine.kernel.clone(),
            ]
        })
        .collect();
    output::table(&columns, &cells)
}
