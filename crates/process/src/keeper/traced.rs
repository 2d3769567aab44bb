//! The shell around the pure ghosts: ptrace, control sockets, reports.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::SendFlags;
use wiglaf_linux::process::{self, ExitStatus};
use wiglaf_linux::trace::{Stop, StopKind, TraceError};
use wiglaf_wire::id::{Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostMode};

use super::daemon::log;
use super::ghost::{Effect, Event, Ghost, Packet, Report, Sender, State};
use super::held::HeldReports;
use super::seize::{SeizeError, seize};
use super::{Keeper, STOPS_PER_TURN, Watched};

/// `ToKeeper::Seize`.
pub(super) struct Asked {
    pub(super) task: TaskId,
    pub(super) pid: Pid,
    pub(super) uid: u32,
    pub(super) start_time: u64,
    pub(super) mode: GhostMode,
    pub(super) record: Vec<u8>,
}

/// A ghost with what the kernel has of it.
pub(super) struct Traced {
    pub(super) pid: Pid,
    pub(super) record: Vec<u8>,
    pub(super) held: HeldReports,
    /// When it is killed for not having ended.
    pub(super) deadline: Option<Instant>,
    ghost: Ghost,
    pidfd: OwnedFd,
    control: OwnedFd,
    token: wiglaf_link::Token,
}

impl Traced {
    /// How it died, unasked.
    pub(super) fn died(&self) -> Option<GhostEnd> {
        match self.ghost.state() {
            State::Dead(end) => Some(end),
            _ => None,
        }
    }
}

impl Keeper {
    pub(super) fn seize(&mut self, asked: Asked, control: OwnedFd) {
        let task = asked.task;
        if let Err(error) = self.try_seize(asked, control) {
            log(&format!("task {task} got no ghost: {error}"));
            self.tell(
                &FromKeeper::SeizeFailed {
                    task,
                    reason: error.to_string(),
                },
                vec![],
            );
        }
    }

    fn try_seize(&mut self, asked: Asked, control: OwnedFd) -> Result<(), SeizeError> {
        let Asked {
            task,
            pid,
            uid,
            start_time,
            mode,
            record,
        } = asked;
        if self.ghosts.contains_key(&task) || self.tasks.contains_key(&pid.0) {
            return Err(SeizeError::Twice { task, pid });
        }
        if self.shutdown.is_some() {
            return Err(SeizeError::ShuttingDown);
        }
        let (pidfd, verdict) = seize(&self.tracer, pid, uid, start_time)?;
        if let Err(error) = verdict {
            self.let_go(pid, pidfd);
            return Err(error);
        }
        let token =
            self.watch(&pidfd, Watched::Ghost(task))
                .map_err(|errno| SeizeError::System {
                    pid,
                    what: "watch it",
                    errno,
                })?;
        let held = HeldReports::default();
        let ghost = Ghost::new(mode);
        self.ghosts.insert(
            task,
            Traced {
                pid,
                record,
                held,
                deadline: None,
                ghost,
                pidfd,
                control,
                token,
            },
        );
        self.tasks.insert(pid.0, task);
        self.apply(task, Event::Seized);
        Ok(())
    }

    /// PTRACE_DETACH needs a stopped tracee: it is interrupted, and let go at its next stop.
    fn let_go(&mut self, pid: Pid, pidfd: OwnedFd) {
        let _ = self.tracer.interrupt(pid.0);
        if self.watch(&pidfd, Watched::Released(pid.0)).is_ok() {
            self.released.insert(pid.0, pidfd);
        }
    }

    /// It died before it was let go: its parent is waiting for us to reap it.
    pub(super) fn forget_released(&mut self, pid: i32) {
        if let Some(pidfd) = self.released.remove(&pid) {
            let _ = self.poll.remove(&pidfd);
            self.watched
                .retain(|_, watched| *watched != Watched::Released(pid));
            let _ = self.tracer.reap(pid);
        }
    }

    /// Takes the stops that wait; returns whether there may be more.
    pub(super) fn look_at_stops(&mut self) -> bool {
        for _ in 0..STOPS_PER_TURN {
            match self.tracer.next_stop() {
                Ok(Some(stop)) => self.stopped(stop),
                Ok(None) => return false,
                Err(error) => {
                    log(&format!("cannot look for stopped ghosts: {error}"));
                    return false;
                }
            }
        }
        true
    }

    fn stopped(&mut self, stop: Stop) {
        if let Some(pidfd) = self.released.remove(&stop.pid) {
            let signal = match stop.kind {
                StopKind::Delivery(signal) => signal,
                StopKind::GroupStop(_) | StopKind::Trap | StopKind::Event(_) => 0,
            };
            let _ = self.poll.remove(&pidfd);
            self.watched
                .retain(|_, watched| *watched != Watched::Released(stop.pid));
            let _ = self.tracer.detach(stop.pid, signal);
            return;
        }
        // A deputy that somebody stopped is seen here, too.
        let Some(task) = self.tasks.get(&stop.pid).copied() else {
            return;
        };
        match stop.kind {
            StopKind::Delivery(signal) => self.delivery(task, stop.pid, number(signal)),
            StopKind::GroupStop(signal) => self.apply(task, Event::GroupStop(number(signal))),
            StopKind::Trap | StopKind::Event(_) => self.apply(task, Event::Trap),
        }
    }

    fn delivery(&mut self, task: TaskId, pid: i32, signal: u8) {
        // It fails only when a SIGKILL came first, and then the death is told.
        let Ok(info) = self.tracer.siginfo(pid) else {
            return;
        };
        let keeper = rustix::process::getpid().as_raw_nonzero().get();
        let sender = Sender::of(signal, info.code, info.pid, pid, keeper);
        self.apply(task, Event::Delivery(signal, sender));
    }

    /// Its pidfd is readable.
    pub(super) fn ghost_died(&mut self, task: TaskId) {
        let Some(traced) = self.ghosts.get(&task) else {
            return;
        };
        let end = match self.tracer.peek_exit(traced.pid.0) {
            Ok(Some(status)) => end_of(status),
            Ok(None) => return,
            Err(error) => {
                log(&format!(
                    "the ghost of task {task} ended, nobody knows how: {error}"
                ));
                GhostEnd::Signal(super::ghost::SIGKILL)
            }
        };
        let _ = self.poll.remove(&traced.pidfd);
        self.watched.remove(&traced.token);
        self.apply(task, Event::Died(end));
    }

    /// One step of one ghost. A task that is not here is gone already; the inventory told so.
    pub(super) fn apply(&mut self, task: TaskId, event: Event) {
        let Some(traced) = self.ghosts.get_mut(&task) else {
            return;
        };
        match traced.ghost.step(event) {
            Ok(effects) => effects
                .into_iter()
                .for_each(|effect| self.perform(task, effect)),
            Err(error) => log(&format!("task {task}: {error}")),
        }
        if self
            .ghosts
            .get(&task)
            .is_some_and(|traced| traced.ghost.state() == State::Gone)
        {
            self.forget(task);
        }
    }

    fn perform(&mut self, task: TaskId, effect: Effect) {
        let Some(traced) = self.ghosts.get(&task) else {
            return;
        };
        let pid = traced.pid.0;
        let done = match effect {
            Effect::Resume(signal) => self.tracer.cont(pid, signal.into()),
            Effect::Listen => self.tracer.listen(pid),
            Effect::Reap => self.tracer.reap(pid).map(|_| ()),
            Effect::Kill(signal) => return traced.kill(task, signal),
            Effect::Send(packet) => return traced.send(task, &packet),
            Effect::Report(report) => return self.report(task, report),
        };
        match done {
            // Killed in mid-call: the pidfd says so.
            Ok(()) | Err(TraceError::Gone { .. }) => {}
            Err(error) => log(&format!("task {task}: {error}")),
        }
    }

    fn forget(&mut self, task: TaskId) {
        if let Some(traced) = self.ghosts.remove(&task) {
            self.tasks.remove(&traced.pid.0);
            self.watched.remove(&traced.token);
        }
    }

    pub(super) fn report(&mut self, task: TaskId, report: Report) {
        let Some(pid) = self.ghosts.get(&task).map(|traced| traced.pid) else {
            return;
        };
        let message = match report {
            Report::Seized => FromKeeper::Seized { task },
            Report::Signal {
                signal,
                from_kernel,
            } => FromKeeper::Signal {
                task,
                signal,
                from_kernel,
                leads_group: leads_group(pid),
            },
            Report::Stopped(signal) => FromKeeper::Stopped { task, signal },
            Report::Continued => FromKeeper::Continued { task },
            Report::Died(end) => FromKeeper::Died { task, end },
            Report::Gone => FromKeeper::Gone { task },
        };
        let sent = self.tell(&message, vec![]);
        if let (false, Some(traced)) = (sent, self.ghosts.get_mut(&task)) {
            traced.held.hold(report);
        }
    }
}

impl Traced {
    fn kill(&self, task: TaskId, signal: u8) {
        match process::pidfd_send_signal(&self.pidfd, signal.into()) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => log(&format!(
                "task {task}: cannot send signal {signal}: {errno}"
            )),
        }
    }

    fn send(&self, task: TaskId, packet: &Packet) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(&self.control, &packet.bytes(), flags) {
            // A ghost that has died does not read; that it did is told by its pidfd.
            Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {}
            Err(errno) => log(&format!(
                "task {task}: its ghost can't be told {packet:?}: {errno}"
            )),
        }
    }
}

/// The kernel knows 64 signals.
fn number(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or(0)
}

fn end_of(status: ExitStatus) -> GhostEnd {
    match status {
        ExitStatus::Exited(code) => GhostEnd::Exit(u8::try_from(code).unwrap_or(u8::MAX)),
        ExitStatus::Signaled { signal, .. } => GhostEnd::Signal(number(signal)),
    }
}

fn leads_group(pid: Pid) -> bool {
    process::process_group(pid.0) == Ok(pid.0)
}
