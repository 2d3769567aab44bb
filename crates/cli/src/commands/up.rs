//! `wiglaf up`

use std::process::Child;
use std::time::{Duration, Instant};

use wiglaf_head::config::Layout;
use wiglaf_wire::client::{NodeInfo, NodeState, Reply, Request};

use crate::CommandResult;
use crate::commands::nodes;
use crate::daemons;
use crate::error::CommandError;
use crate::output;
use crate::view_args::ViewArgs;

/// Virtual nodes of one cluster, at most.
const MAX_VIRTUAL_NODES: u32 = 200;
/// How long the nodes may take to join.
const JOIN_WAIT: Duration = Duration::from_secs(60);
const JOIN_POLL: Duration = Duration::from_millis(10);

/// Start a cluster of virtual nodes on this machine
///
/// As root the nodes have network addresses of their own; an ordinary user gets the same inside a
/// user namespace. `wiglaf down` ends it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many nodes
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VIRTUAL_NODES)))]
    nodes: u32,
    /// How tasks come to this machine's files
    #[arg(long, value_enum, value_name = "HOW")]
    files: Option<Files>,
    #[command(flatten)]
    view: ViewArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Files {
    /// As other machines do, over the network (what is used if nothing is said)
    View,
    /// By this machine's kernel
    Disk,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let layout = Layout::own()?;
    layout.make()?;
    let mut head = daemons::ensure_head(&layout)?;
    if daemons::status(&mut head)?.rack_pid.is_some() {
        return Err(
            CommandError::new("this cluster has its virtual nodes already")
                .hint("`wiglaf nodes` shows them; `wiglaf down` ends them"),
        );
    }
    let count = args.nodes.to_string();
    let mut options = vec!["--nodes", &count];
    match (args.files, wiglaf_view::check_device()) {
        (Some(Files::Disk), _) => options.push("--disk"),
        (_, Ok(())) => {}
        (Some(Files::View), Err(error)) => return Err(CommandError::new(error.to_string())),
        (None, Err(error)) => {
            options.push("--disk");
            use std::io::Write;
            // Nobody to tell is no reason to fail.
            let _ = writeln!(
                std::io::stderr(),
                "wiglaf: {error}\nwiglaf: the nodes read this machine's disk by its kernel \
                 instead, which `--files disk` asks for"
            );
        }
    }
    let view = args.view.arguments();
    options.extend(view.iter().map(String::as_str));
    let mut rack = daemons::spawn(&layout, "rack", &options)?;
    let started = Instant::now();
    while connected(&mut head)?.len() < usize::try_from(args.nodes)? {
        if let Some(status) = rack.try_wait()? {
            return Err(daemons::failed(
                &layout,
                "rack",
                &format!("ended ({status})"),
            ));
        }
        if started.elapsed() > JOIN_WAIT {
            return Err(give_up(&layout, &mut rack));
        }
        std::thread::sleep(JOIN_POLL);
    }
    // They were before, and a new start changes nothing of that.
    nodes::tell_withheld(&connected(&mut head)?);
    output::print(&format!(
        "{} nodes are up; try `wiglaf run -a -l hostname`, and `wiglaf down` at the end\n",
        args.nodes
    ))?;
    Ok(0)
}

fn connected(head: &mut crate::head::Head) -> Result<Vec<NodeInfo>, CommandError> {
    match head.ask(&Request::Nodes)? {
        Reply::Nodes(mut nodes) => {
            let is_there = |state| state == NodeState::Up || nodes::is_withheld(state);
            nodes.retain(|node| node.is_virtual && is_there(node.state));
            Ok(nodes)
        }
        other => Err(CommandError::from_reply(other)),
    }
}

fn give_up(layout: &Layout, rack: &mut Child) -> CommandError {
    let _ = rack.kill();
    daemons::failed(layout, "rack", "did not get its nodes to join in time")
}
