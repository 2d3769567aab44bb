//! `wiglaf logs`

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::id::JobId;

use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;

/// How often a followed log is looked at.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// Print the output of a detached job
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The job's number, as `wiglaf run --detach` printed it
    job: u64,
    /// Which of its tasks
    #[arg(short, long, default_value_t = 0)]
    task: u32,
    /// Go on until the task has ended
    #[arg(short, long)]
    follow: bool,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let mut head = Head::connect()?;
    let request = Request::Logs {
        job: JobId(args.job),
        index: args.task,
    };
    let mut running = is_running(&mut head, &request)?;
    let mut out: File = head.descriptor()?.into();
    let mut err: File = head.descriptor()?.into();
    loop {
        copy(&mut out, &mut io::stdout().lock())?;
        copy(&mut err, &mut io::stderr().lock())?;
        if !args.follow || !running {
            return Ok(0);
        }
        std::thread::sleep(FOLLOW_POLL);
        // Asked before the files are read again, so that what comes last is not missed.
        running = is_running(&mut head, &request)?;
        drop((head.descriptor()?, head.descriptor()?));
    }
}

fn is_running(head: &mut Head, request: &Request) -> Result<bool, CommandError> {
    match head.ask(request)? {
        Reply::Logs { running } => Ok(running),
        other => Err(CommandError::from_reply(other)),
    }
}

fn copy(from: &mut File, to: &mut impl Write) -> Result<(), CommandError> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes)?;
        if read == 0 {
            to.flush()?;
            return Ok(());
        }
        to.write_all(&bytes[..read])?;
    }
}
