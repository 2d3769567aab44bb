//! BProc's commands, for those who have scripts from then: `bpsh`, `bpstat`, `bpctl`, `bpcp`, by
//! the name that the program is called by. Flags and exit codes are BProc's; a flag that could
//! not do what it did there is absent.

mod bpctl;
mod bpsh;
mod bpstat;

use std::ffi::OsString;

use clap::Parser;
use wiglaf_wire::client::{NodeInfo, NodeState};
use wiglaf_wire::id::NodeId;
use wiglaf_wire::nodeset::{BprocNodes, parse_bproc};

use crate::CommandResult;
use crate::commands::{cp, nodes};
use crate::error::CommandError;

/// The head, as BProc numbers it.
pub(crate) const HEAD_NUMBER: i32 = -1;

#[derive(Parser)]
#[command(
    name = "bpcp",
    about = "Copy files from and to nodes: PATH or NODE:PATH, node -1 is the head"
)]
struct Bpcp {
    #[command(flatten)]
    args: cp::Args,
}

/// Runs the command that the program was called as, if that is one of BProc's.
pub(crate) fn run(name: &str, words: &[OsString]) -> Option<CommandResult> {
    match name {
        "bpsh" => Some(bpsh::run(bpsh::Args::parse_from(words))),
        "bpstat" => Some(bpstat::run(&bpstat::Args::parse_from(words))),
        "bpctl" => Some(bpctl::run(&bpctl::Args::parse_from(words))),
        "bpcp" => Some(by_number(Bpcp::parse_from(words).args)),
        _ => None,
    }
}

/// `bpcp` names nodes by number.
fn by_number(mut args: cp::Args) -> CommandResult {
    let list = nodes::list(None)?;
    for path in [&mut args.from, &mut args.to] {
        let Some((number, rest)) = path.split_once(':') else {
            continue;
        };
        let Ok(number) = number.parse::<i32>() else {
            continue;
        };
        *path = if number == HEAD_NUMBER {
            rest.to_owned()
        } else {
            format!("{}:{rest}", find(&list, number)?.name)
        };
    }
    cp::run(&args)
}

fn find(list: &[NodeInfo], number: i32) -> Result<&NodeInfo, CommandError> {
    let id = u32::try_from(number).ok().map(NodeId);
    list.iter().find(|node| Some(node.id) == id).ok_or_else(|| {
        CommandError::new(format!("there is no node {number}")).hint("`bpstat` shows the nodes")
    })
}

/// The nodes that a set names: `3`, `0-4,7`, `-1`, `all`, `allup`, `alldown`.
fn select<'a>(list: &'a [NodeInfo], text: &str) -> Result<Vec<&'a NodeInfo>, CommandError> {
    let of = |wanted: &dyn Fn(&NodeInfo) -> bool| list.iter().filter(|node| wanted(node)).collect();
    match text {
        "allup" => return Ok(of(&|node| node.state == NodeState::Up)),
        "alldown" => return Ok(of(&|node| node.state == NodeState::Down)),
        _ => {}
    }
    match parse_bproc(text)? {
        BprocNodes::All => Ok(list.iter().collect()),
        BprocNodes::Numbers(numbers) => numbers
            .into_iter()
            .map(|number| find(list, number))
            .collect(),
    }
}

/// Permissions as `ls` shows them, which is how BProc does.
fn mode_text(mode: u32) -> String {
    let bit = |bit| if mode & bit != 0 { 'x' } else { '-' };
    format!("---{}--{}--{}", bit(0o100), bit(0o010), bit(0o001))
}
