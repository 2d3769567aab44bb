//! Children that can't hang us: what overstays its time is killed, and if even that does not let
//! us go on (a ghost is reaped by its tracer first), so is everything in our cgroups.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::groups::Groups;
use super::text_of;

/// How often the watchdog looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// From the killing of a child to that of all.
const KILL_GRACE: Duration = Duration::from_secs(5);

pub(in crate::bench) struct Watchdog {
    watch: Arc<Mutex<Option<Watch>>>,
    has_killed_all: Arc<AtomicBool>,
}

struct Watch {
    child: OwnedFd,
    deadline: Instant,
    is_killed: bool,
}

/// As long as it lives, the child is watched.
pub(in crate::bench) struct Watched<'a> {
    watchdog: &'a Watchdog,
    timeout: Duration,
}

impl Watchdog {
    pub(in crate::bench) fn start(groups: Arc<Groups>) -> Result<Watchdog> {
        let watch = Arc::new(Mutex::new(None));
        let has_killed_all = Arc::new(AtomicBool::new(false));
        let dog = Watchdog {
            watch: watch.clone(),
            has_killed_all: has_killed_all.clone(),
        };
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(WATCH_INTERVAL);
                    let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
                    if look(&mut watch, &groups) {
                        has_killed_all.store(true, Ordering::SeqCst);
                    }
                }
            })?;
        Ok(dog)
    }

    pub(in crate::bench) fn has_killed_all(&self) -> bool {
        self.has_killed_all.load(Ordering::SeqCst)
    }

    pub(in crate::bench) fn watch(&self, child: &Child, timeout: Duration) -> Result<Watched<'_>> {
        let pid = Pid::from_child(child);
        let child = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        let watch = Watch {
            child,
            deadline: Instant::now() + timeout,
            is_killed: false,
        };
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        Ok(Watched {
            watchdog: self,
            timeout,
        })
    }

    /// Runs it to its end and says how long that took.
    pub(in crate::bench) fn time(
        &self,
        command: &mut Command,
        timeout: Duration,
    ) -> Result<(Duration, ExitStatus)> {
        let started = Instant::now();
        let mut child = spawn(command)?;
        let watched = self.watch(&child, timeout)?;
        let status = child.wait()?;
        let took = started.elapsed();
        watched.end(command)?;
        Ok((took, status))
    }

    /// The same; anything but success is an error.
    pub(in crate::bench) fn time_success(
        &self,
        command: &mut Command,
        timeout: Duration,
    ) -> Result<Duration> {
        let (took, status) = self.time(command, timeout)?;
        if !status.success() {
            bail!("`{}` failed: {status}", text_of(command));
        }
        Ok(took)
    }
}

impl Watched<'_> {
    /// An error if it had to be killed.
    pub(in crate::bench) fn end(self, command: &Command) -> Result<()> {
        let watch = self
            .watchdog
            .watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if watch.is_some_and(|watch| watch.is_killed) {
            bail!(
                "`{}` did not end within {} s and was killed",
                text_of(command),
                self.timeout.as_secs()
            );
        }
        Ok(())
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        *self
            .watchdog
            .watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }
}

pub(in crate::bench) fn spawn(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .with_context(|| format!("can't start `{}`", text_of(command)))
}

/// Whether all were killed.
fn look(slot: &mut Option<Watch>, groups: &Groups) -> bool {
    let Some(watch) = slot else { return false };
    let now = Instant::now();
    if now < watch.deadline {
        return false;
    }
    if !watch.is_killed {
        watch.is_killed = true;
        watch.deadline = now + KILL_GRACE;
        let _ = pidfd_send_signal(watch.child.as_fd(), Signal::KILL);
        return false;
    }
    // Nothing in these groups is not ours.
    kill_all(&groups.all_members());
    true
}

pub(in crate::bench) fn kill_all(pids: &[i32]) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
