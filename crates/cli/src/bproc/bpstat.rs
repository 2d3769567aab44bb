//! `bpstat`

use std::io::BufRead;

use wiglaf_wire::client::{NodeInfo, Reply, Request};

use super::{mode_text, select};
use crate::CommandResult;
use crate::commands::nodes;
use crate::error::CommandError;
use crate::head::Head;
use crate::output;

/// Show nodes, as BProc's bpstat did
#[derive(clap::Parser)]
#[command(name = "bpstat")]
pub(crate) struct Args {
    /// Nodes that agree in one line (the default)
    #[arg(short, long)]
    compact: bool,
    /// A line for each node
    #[arg(short, long)]
    long: bool,
    /// Only addresses
    #[arg(short, long)]
    address: bool,
    /// Only states
    #[arg(short, long)]
    status: bool,
    /// Only numbers
    #[arg(short, long)]
    number: bool,
    /// How many nodes there are
    #[arg(short, long)]
    total: bool,
    /// The node of each process
    #[arg(short = 'p')]
    processes: bool,
    /// Put the node's number before each line of `ps` read from standard input
    #[arg(short = 'P')]
    augment_ps: bool,
    /// Nodes: numbers and ranges, all, allup, alldown
    nodes: Vec<String>,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let list = nodes::list(None)?;
    let mut chosen = Vec::new();
    for set in &args.nodes {
        chosen.extend(select(&list, set)?);
    }
    if args.nodes.is_empty() {
        chosen = list.iter().collect();
    }
    let lines: Vec<String> = if args.processes || args.augment_ps {
        return processes(&list, args.augment_ps);
    } else if args.total {
        vec![chosen.len().to_string()]
    } else if args.number {
        chosen.iter().map(|node| node.id.to_string()).collect()
    } else if args.address {
        chosen
            .iter()
            .map(|node| node.machine.address.clone())
            .collect()
    } else if args.status {
        chosen
            .iter()
            .map(|node| node.state.name().to_owned())
            .collect()
    } else {
        table(&chosen, args.long)
    };
    output::print(
        &lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )?;
    Ok(0)
}

fn table(nodes: &[&NodeInfo], long: bool) -> Vec<String> {
    let line = |numbers: &str, rest: &[String; 4]| {
        let [state, mode, user, group] = rest;
        format!("{numbers:<30} {state:<12} {mode:<10} {user:<10} {group}")
    };
    let heads = ["Status", "Mode", "User", "Group"].map(str::to_owned);
    let mut lines = vec![line("Node(s)", &heads)];
    let mut groups: Vec<([String; 4], Vec<u32>)> = Vec::new();
    for node in nodes {
        let rest = [
            node.state.name().to_owned(),
            mode_text(node.mode),
            output::user(node.uid),
            output::group(node.gid),
        ];
        match groups.iter_mut().find(|(known, _)| !long && *known == rest) {
            Some((_, numbers)) => numbers.push(node.id.0),
            None => groups.push((rest, vec![node.id.0])),
        }
    }
    lines.extend(
        groups
            .iter()
            .map(|(rest, numbers)| line(&ranges(numbers), rest)),
    );
    lines
}

/// `0-3,5`
fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let texts: Vec<_> = parts
        .iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    texts.join(",")
}

fn processes(nodes: &[NodeInfo], augment: bool) -> CommandResult {
    let list = match Head::connect()?.ask(&Request::Processes)? {
        Reply::Processes { list, .. } => list,
        other => return Err(CommandError::from_reply(other)),
    };
    let number = |name: &str| {
        nodes
            .iter()
            .find(|node| node.name == name)
            .map(|node| node.id.0)
    };
    let mut text = String::new();
    if augment {
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let pid = line
                .split_whitespace()
                .find_map(|word| word.parse::<i32>().ok());
            let found = list.iter().find(|info| Some(info.process.pid.0) == pid);
            let node = found.and_then(|info| number(&info.node));
            let node = node.map_or_else(String::new, |node| node.to_string());
            text.push_str(&format!("{node:<4} {line}\n"));
        }
    } else {
        text.push_str("PID\tNode\n");
        for info in &list {
            if let Some(node) = number(&info.node) {
                text.push_str(&format!("{}\t{node}\n", info.process.pid));
            }
        }
    }
    output::print(&text)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 5, 7, 8]), "0-3,5,7-8");
    }
}
