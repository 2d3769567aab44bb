//! A process that unmounts the views of an agent which is dead and can't end.
//!
//! A thread of a killed agent may wait in the kernel, where no signal reaches it, for an answer
//! that the agent would have given: the notifier for a directory that is in use, the spawner for
//! a file. That thread keeps the device open, so nobody is told that no answer will come: the
//! agent stays, its tasks live on without it, and the head sees nothing but silence. An unmount by
//! force from outside fails whatever waits.
//!
//! The watchdog is a child of the agent's main thread and told of that thread's end by the kernel
//! (`PR_SET_PDEATHSIG`). It lives in the agent's namespaces and dies with them: a PID namespace is
//! not emptied before the last thread of its first process is gone. Whatever kills all processes
//! of the node, as the agent does when its lease is over, kills the watchdog too; the agent starts
//! another.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use wiglaf_link::{Interest, Poll, Token};
use wiglaf_linux::process::{fork_aside, set_pdeathsig, set_process_title};
use wiglaf_linux::signal::{SignalFd, SignalSet};
use wiglaf_view::FILE_SYSTEM_TYPE;

use crate::root::STAGE;

const TITLE: &str = "wiglaf: watchdog";
/// The agent, as all of its namespace see it.
const AGENT: i32 = 1;
/// The last real-time signal: each is delivered on its own, and nobody sends it by habit.
const AGENT_ENDS: i32 = 64;
/// `si_code` of what was sent by `kill(2)` or for a parent's end. The kernel lets nobody else
/// claim it together with another process's PID.
const SI_USER: i32 = 0;
/// Something may be killing watchdogs as fast as they come.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// The agent's end of it.
#[derive(Debug)]
pub(super) struct Watchdog {
    pid: i32,
    pidfd: OwnedFd,
    /// When a new one is due.
    restart_at: Option<Instant>,
}

impl Watchdog {
    /// Starts it. The caller is the main thread of PID 1, best before there is another: then the
    /// PID is none that a ghost can have.
    pub(super) fn start() -> Result<Watchdog, Errno> {
        let (pid, pidfd) = fork_aside(watch)?;
        Ok(Watchdog {
            pid,
            pidfd,
            restart_at: None,
        })
    }

    /// Has the loop told of its end.
    pub(super) fn add_to(&self, poll: &Poll, token: Token) -> Result<(), Errno> {
        poll.add(&self.pidfd, token, Interest::Read)
    }

    /// Its PID.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// It has ended.
    pub(super) fn ended(&mut self, poll: &Poll) {
        // Fails only for a set that is broken itself.
        let _ = poll.remove(&self.pidfd);
        self.restart_at = Some(Instant::now() + RESTART_PAUSE);
    }

    /// When to call [`Watchdog::tick`].
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.restart_at
    }

    /// Starts another one if it is time to.
    pub(super) fn tick(&mut self, poll: &Poll, token: Token) -> Result<(), Errno> {
        let now = Instant::now();
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = Some(now + RESTART_PAUSE);
            let next = Watchdog::start()?;
            next.add_to(poll, token)?;
            *self = next;
        }
        Ok(())
    }
}

/// The watchdog's life. What it can't do, nobody can be told: the agent finds that it has ended.
fn watch() {
    let _ = set_process_title(TITLE);
    let Ok(signals) = SignalFd::new(SignalSet::of(&[AGENT_ENDS])) else {
        return;
    };
    if set_pdeathsig(AGENT_ENDS).is_err() {
        return;
    }
    // It may have ended before that.
    while !is_ended(AGENT) {
        match signals.read() {
            Ok(Some(signal)) if signal.code == SI_USER && signal.pid == AGENT => break,
            Ok(Some(_)) => {}
            Ok(None) => match poll(&mut [PollFd::new(&signals, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            },
            Err(_) => return,
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for view in views(&mounts) {
        // One that is gone needs none. The path's last part is not looked into.
        let _ = wiglaf_view::unmount(Path::new(view));
    }
}

/// Whether the process's first thread has ended.
fn is_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

/// Where `/proc/PID/mountinfo` has views on the stage. Their paths need no unescaping.
fn views(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        let path = place.split(' ').nth(4)?;
        let is_staged = path
            .strip_prefix(STAGE)
            .is_some_and(|rest| rest.starts_with('/'));
        let kind = what.split(' ').next()?;
        (is_staged && kind == FILE_SYSTEM_TYPE).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_views_on_the_stage_are_unmounted() {
        let mounts = "\
            21 1 0:19 / / rw,relatime shared:1 - fuse.wiglaf wiglaf rw,user_id=0\n\
            22 21 0:20 / /tmp rw,nosuid - tmpfs tmpfs rw,mode=755\n\
            23 22 0:21 / /tmp/view-2 rw,nodev,relatime - fuse.wiglaf wiglaf rw,user_id=0\n\
            24 22 0:22 / /tmp/view-4 rw,nodev master:7 propagate_from:2 - fuse.wiglaf wiglaf rw\n\
            25 22 0:23 / /tmp/own/proc rw - proc proc rw\n\
            26 22 0:24 / /tmp/sshfs rw - fuse.sshfs far: rw\n\
            27 21 0:25 / /tmpfoo/view-2 rw - fuse.wiglaf wiglaf rw\n\
            nonsense\n";
        assert_eq!(
            views(mounts).collect::<Vec<_>>(),
            ["/tmp/view-2", "/tmp/view-4"]
        );
    }

    #[test]
    fn who_lives_has_not_ended() {
        assert!(!is_ended(std::process::id().cast_signed()));
        assert!(is_ended(i32::MAX));
    }
}
