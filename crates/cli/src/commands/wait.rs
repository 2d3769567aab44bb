//! `wiglaf wait`

use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::id::JobId;
use wiglaf_wire::status::Status;

use crate::CommandResult;
use crate::commands::jobs;
use crate::error::CommandError;
use crate::head::Head;
use crate::output;

/// Wait for a job to end, and exit as it did
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The job's number, as `wiglaf run --detach` printed it
    job: u64,
    /// Print the job as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let job = match Head::connect()?.ask(&Request::WaitJob {
        job: JobId(args.job),
    })? {
        Reply::JobEnded(job) => job,
        other => return Err(CommandError::from_reply(other)),
    };
    if args.json {
        output::json(&jobs::row(&job))?;
    }
    for task in &job.tasks {
        if let Some((Status::Failed { reason, .. }, _)) = &task.ended {
            eprintln!("wiglaf: task {} on {}: {reason}", task.index, task.node);
        }
    }
    Ok(jobs::exit_code(&job).unwrap_or(0))
}
