//! Starting and ending the daemons of a cluster on this machine.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wiglaf_head::config::Layout;
use wiglaf_linux::process::kill;
use wiglaf_linux::status::start_time;
use wiglaf_wire::client::{HeadStatus, Reply, Request};

use crate::error::CommandError;
use crate::head::Head;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// How long a daemon may take to start.
const START_WAIT: Duration = Duration::from_secs(10);
/// How long daemons may take to end before they are killed.
const END_WAIT: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_millis(10);
/// This very program.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";
/// How much of a log is shown when a daemon fails.
const SHOWN_LOG_LINES: usize = 5;

/// Starts one of our daemons with its log file.
pub(crate) fn spawn(layout: &Layout, name: &str, args: &[&str]) -> Result<Child, CommandError> {
    let path = layout.log(name);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|error| CommandError::new(format!("{}: {error}", path.display())))?;
    // By this name it is found even if the file has been replaced by a newer version meanwhile.
    let child = Command::new(OWN_PROGRAM)
        .arg0("wiglaf")
        .arg(name)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

/// Starts the head unless it runs, and waits until it answers.
pub(crate) fn ensure_head(layout: &Layout) -> Result<Head, CommandError> {
    if let Ok(head) = Head::connect_to(layout) {
        return Ok(head);
    }
    let mut child = spawn(layout, "head", &["--background"])?;
    let deadline = Instant::now() + START_WAIT;
    loop {
        if let Ok(head) = Head::connect_to(layout) {
            return Ok(head);
        }
        if let Some(status) = child.try_wait()? {
            return Err(failed(layout, "head", &format!("ended ({status})")));
        }
        if Instant::now() > deadline {
            return Err(failed(layout, "head", "does not answer"));
        }
        std::thread::sleep(POLL);
    }
}

/// A daemon's failure with the end of its log.
pub(crate) fn failed(layout: &Layout, name: &str, how: &str) -> CommandError {
    let path = layout.log(name);
    let log = fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..].join("\n        ");
    let hint = if tail.is_empty() {
        format!("see {}", path.display())
    } else {
        tail
    };
    CommandError::new(format!("the {name} {how}")).hint(hint)
}

/// What the head says of itself.
pub(crate) fn status(head: &mut Head) -> Result<HeadStatus, CommandError> {
    match head.ask(&Request::HeadStatus)? {
        Reply::HeadStatus(status) => Ok(status),
        other => Err(CommandError::from_reply(other)),
    }
}

/// A process that was seen to be one of ours; its start time keeps a reused PID from being taken
/// for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pid: i32,
    started: u64,
}

impl Known {
    pub(crate) fn of(pid: i32) -> Option<Known> {
        (pid > 0)
            .then(|| start_time(pid).ok().map(|started| Known { pid, started }))
            .flatten()
    }

    /// From the file that a daemon has written.
    pub(crate) fn read(path: &Path) -> Option<Known> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let known = Known {
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        };
        known.lives().then_some(known)
    }

    fn lives(self) -> bool {
        start_time(self.pid).is_ok_and(|started| started == self.started) && !is_zombie(self.pid)
    }
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}

/// Writes who this process is, for [`Known::read`].
pub(crate) fn write_pid_file(path: &Path) -> Result<(), CommandError> {
    use std::io::Write;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let mut file = File::create(path)?;
    writeln!(file, "{pid} {}", start_time(pid)?)?;
    Ok(())
}

/// Waits until these processes are gone; those that stay are killed.
pub(crate) fn end(processes: &[Known]) {
    let waiting = |processes: &[Known]| processes.iter().any(|process| process.lives());
    let deadline = Instant::now() + END_WAIT;
    while waiting(processes) && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    for signal in [SIGTERM, SIGKILL] {
        for process in processes.iter().filter(|process| process.lives()) {
            let _ = kill(process.pid, signal);
        }
        let deadline = Instant::now() + END_WAIT / 6;
        while waiting(processes) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
}
