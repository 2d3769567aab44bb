//! `wiglaf jobs`

use serde::Serialize;
use wiglaf_wire::client::{JobInfo, Reply, Request};
use wiglaf_wire::status::Status;

use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

/// Show jobs, running and ended
#[derive(clap::Args)]
pub(crate) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
pub(crate) struct Row {
    job: u64,
    user: String,
    state: &'static str,
    exit_code: Option<u8>,
    tasks: Vec<TaskRow>,
    command: String,
}

#[derive(Serialize)]
struct TaskRow {
    index: u32,
    node: String,
    pid: i32,
    exit_code: Option<u8>,
    signal: Option<u8>,
    reason: Option<String>,
    user_us: Option<u64>,
    system_us: Option<u64>,
    max_rss_kib: Option<u64>,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let jobs = match Head::connect()?.ask(&Request::Jobs)? {
        Reply::Jobs(jobs) => jobs,
        other => return Err(CommandError::from_reply(other)),
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    if args.json {
        output::json(&rows)?;
        return Ok(0);
    }
    let columns = [
        Column("JOB", Align::Right),
        Column("USER", Align::Left),
        Column("STATE", Align::Left),
        Column("EXIT", Align::Right),
        Column("TASKS", Align::Right),
        Column("COMMAND", Align::Left),
    ];
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            vec![
                row.job.to_string(),
                row.user.clone(),
                row.state.to_owned(),
                row.exit_code
                    .map_or_else(String::new, |code| code.to_string()),
                row.tasks.len().to_string(),
                row.command.clone(),
            ]
        })
        .collect();
    output::table(&columns, &cells)?;
    Ok(0)
}

/// A job's exit code: the largest of its tasks', once all have ended.
pub(crate) fn exit_code(job: &JobInfo) -> Option<u8> {
    let codes = job
        .tasks
        .iter()
        .map(|task| task.ended.as_ref().map(|(s, _)| s.exit_code()));
    codes.collect::<Option<Vec<_>>>()?.into_iter().max()
}

pub(crate) fn row(job: &JobInfo) -> Row {
    let exit = exit_code(job);
    let tasks = job
        .tasks
        .iter()
        .map(|task| {
            let status = task.ended.as_ref().map(|(status, _)| status);
            let usage = task.ended.as_ref().map(|(_, usage)| usage);
            TaskRow {
                index: task.index,
                node: task.node.clone(),
                pid: task.pid.0,
                exit_code: status.map(Status::exit_code),
                signal: status.and_then(|status| match status {
                    Status::Signaled(signal) => Some(*signal),
                    _ => None,
                }),
                reason: status.and_then(|status| match status {
                    Status::Failed { reason, .. } => Some(reason.clone()),
                    _ => None,
                }),
                user_us: usage.map(|usage| usage.user_us),
                system_us: usage.map(|usage| usage.system_us),
                max_rss_kib: usage.map(|usage| usage.max_rss_kib),
            }
        })
        .collect();
    Row {
        job: job.job.0,
        user: output::user(job.uid),
        state: if exit.is_some() { "ended" } else { "running" },
        exit_code: exit,
        tasks,
        command: job.command.clone(),
    }
}
