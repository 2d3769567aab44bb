//! `wiglaf ps`

use std::collections::BTreeMap;

use serde::Serialize;
use wiglaf_wire::client::{ProcessInfo, Reply, Request};

use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

/// Show the processes of all tasks on all nodes, as trees
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this user's
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Only on these nodes, by name
    #[arg(short = 'w', long, value_name = "NODE", value_delimiter = ',')]
    nodes: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    node: String,
    pid: i32,
    ppid: i32,
    task: Option<String>,
    user: String,
    state: char,
    cpu_ms: u64,
    rss_kib: u64,
    started_ms: u64,
    command: String,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let uid = match &args.user {
        Some(name) => Some(output::id_of(name, "/etc/passwd").ok_or_else(|| {
            CommandError::new(format!("there is no user {name}")).hint("give a name or a number")
        })?),
        None => None,
    };
    let (mut list, silent) = match Head::connect()?.ask(&Request::Processes)? {
        Reply::Processes { list, silent } => (list, silent),
        other => return Err(CommandError::from_reply(other)),
    };
    list.retain(|info| {
        uid.is_none_or(|uid| uid == info.process.uid)
            && (args.nodes.is_empty() || args.nodes.contains(&info.node))
    });
    let rows = as_trees(list);
    if args.json {
        let rows: Vec<_> = rows.iter().map(|(_, info)| json_row(info)).collect();
        output::json(&rows)?;
    } else {
        print_table(&rows)?;
    }
    for node in &silent {
        eprintln!("wiglaf: {node} did not answer in time; its processes are not shown");
    }
    Ok(u8::from(!silent.is_empty()))
}

/// Depth first, each process with its depth in its tree.
fn as_trees(list: Vec<ProcessInfo>) -> Vec<(usize, ProcessInfo)> {
    let mut children: BTreeMap<(String, i32), Vec<ProcessInfo>> = BTreeMap::new();
    let known: std::collections::BTreeSet<_> = list
        .iter()
        .map(|info| (info.node.clone(), info.process.pid.0))
        .collect();
    let mut roots = Vec::new();
    for info in list {
        let parent = (info.node.clone(), info.process.parent.0);
        if known.contains(&parent) && parent.1 != info.process.pid.0 {
            children.entry(parent).or_default().push(info);
        } else {
            roots.push(info);
        }
    }
    roots.sort_by_key(|info| (info.node.clone(), info.process.pid));
    let mut rows = Vec::new();
    let mut stack: Vec<_> = roots.into_iter().rev().map(|info| (0, info)).collect();
    while let Some((depth, info)) = stack.pop() {
        let key = (info.node.clone(), info.process.pid.0);
        let mut below = children.remove(&key).unwrap_or_default();
        below.sort_by_key(|info| std::cmp::Reverse(info.process.pid));
        rows.push((depth, info));
        stack.extend(below.into_iter().map(|info| (depth + 1, info)));
    }
    rows
}

fn json_row(info: &ProcessInfo) -> Row {
    let process = &info.process;
    Row {
        node: info.node.clone(),
        pid: process.pid.0,
        ppid: process.parent.0,
        task: process.task.map(|task| task.to_string()),
        user: output::user(process.uid),
        state: process.state,
        cpu_ms: process.cpu_ms,
        rss_kib: process.rss_kib,
        started_ms: process.started_ms,
        command: process.command.clone(),
    }
}

fn print_table(rows: &[(usize, ProcessInfo)]) -> Result<(), CommandError> {
    let columns = [
        Column("NODE", Align::Left),
        Column("PID", Align::Right),
        Column("USER", Align::Left),
        Column("S", Align::Left),
        Column("CPU", Align::Right),
        Column("RSS", Align::Right),
        Column("AGE", Align::Right),
        Column("COMMAND", Align::Left),
    ];
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let now_s = u64::try_from(now.tv_sec).unwrap_or(0);
    let cells: Vec<_> = rows
        .iter()
        .map(|(depth, info)| {
            let process = &info.process;
            vec![
                info.node.clone(),
                process.pid.to_string(),
                output::user(process.uid),
                process.state.to_string(),
                clock(process.cpu_ms / 1000),
                output::size(process.rss_kib),
                clock(now_s.saturating_sub(process.started_ms / 1000)),
                format!("{}{}", "  ".repeat(*depth), process.command),
            ]
        })
        .collect();
    output::table(&columns, &cells)
}

fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}
