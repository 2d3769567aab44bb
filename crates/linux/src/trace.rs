//! Tracing ghosts with ptrace, `PTRACE_SEIZE`'s way.
//!
//! A tracee belongs to the *thread* that seized it, hence [`Tracer`] stays in its thread.
//! A tracee that dies in mid-call gives [`TraceError::Gone`]: its end is then waiting to be
//! seen by [`Tracer::peek_exit`].

use crate::arch::{checked, int};
use crate::process::ExitStatus;
use rustix::io::Errno;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// `PTRACE_EVENT_STOP`, the event of stops that are no signal's delivery.
const EVENT_STOP: i32 = 128;

/// Calls that the kernel ties to one thread.
#[derive(Debug, Default)]
pub struct Tracer {
    not_send: PhantomData<*const ()>,
}

/// A tracee that has stopped and waits for a word from its tracer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    /// The tracee.
    pub pid: i32,
    /// Why it stopped.
    pub kind: StopKind,
}

/// Why a tracee stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopKind {
    /// A signal is about to be delivered: [`Tracer::siginfo`] says whose, [`Tracer::cont`]
    /// injects it or swallows it.
    Delivery(i32),
    /// Its whole group is stopped by this signal: [`Tracer::listen`] keeps it so.
    GroupStop(i32),
    /// By [`Tracer::interrupt`], or because a group stop has ended.
    Trap,
    /// An event asked for by an option (`PTRACE_EVENT_…`).
    Event(i32),
}

/// Where a signal comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SigInfo {
    /// Its number.
    pub signo: i32,
    /// `SI_USER`, `SI_KERNEL` (a terminal), `SI_TKILL` …
    pub code: i32,
    /// The sender as the tracer's PID namespace numbers it, 0 from the kernel.
    pub pid: i32,
    /// The sender's real uid.
    pub uid: u32,
}

/// Why a call on a tracee failed.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceError {
    /// It is dead, or not stopped, or not this thread's tracee (the kernel does not tell).
    #[error("process {pid} is gone or not stopped")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// It is still alive, so it can't be reaped.
    #[error("process {pid} has not ended")]
    Alive {
        /// The process.
        pid: i32,
    },
    /// Anything else. EPERM from seizing: not allowed, or traced by another.
    #[error("can't {operation} process {pid}: {errno}")]
    Failed {
        /// The process.
        pid: i32,
        /// What was tried.
        operation: &'static str,
        /// What went wrong.
        errno: Errno,
    },
}

impl Tracer {
    /// For the calling thread.
    #[must_use]
    pub fn new() -> Tracer {
        Tracer::default()
    }

    /// Becomes the tracer of a running process, without stopping it. `options` are
    /// `PTRACE_O_…`, usually none: with `PTRACE_O_EXITKILL` it would not survive us.
    pub fn seize(&self, pid: i32, options: i32) -> Result<(), TraceError> {
        request(libc::PTRACE_SEIZE, "seize", pid, 0, int(options))
    }

    /// Stops it; it then reports [`StopKind::Trap`] (or the group stop that it is in).
    pub fn interrupt(&self, pid: i32) -> Result<(), TraceError> {
        request(libc::PTRACE_INTERRUPT, "interrupt", pid, 0, 0)
    }

    /// Leaves it in its group stop until SIGCONT, which shows as [`StopKind::Trap`].
    pub fn listen(&self, pid: i32) -> Result<(), TraceError> {
        request(libc::PTRACE_LISTEN, "listen to", pid, 0, 0)
    }

    /// Lets it go on, from a delivery with `signal` (0: none).
    pub fn cont(&self, pid: i32, signal: i32) -> Result<(), TraceError> {
        request(libc::PTRACE_CONT, "continue", pid, 0, int(signal))
    }

    /// The origin of the signal that is about to be delivered.
    pub fn siginfo(&self, pid: i32) -> Result<SigInfo, TraceError> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let data = info.as_mut_ptr().expose_provenance();
        request(libc::PTRACE_GETSIGINFO, "read the signal of", pid, 0, data)?;
        // SAFETY: filled in by the kernel, and zeroed before; pid and uid stand at the same
        // place for all codes that have them.
        unsafe {
            let info = info.assume_init();
            Ok(SigInfo {
                signo: info.si_signo,
                code: info.si_code,
                pid: info.si_pid(),
                uid: info.si_uid(),
            })
        }
    }

    /// Lets a stopped tracee go, with `signal` (0: none) if it was being delivered.
    pub fn detach(&self, pid: i32, signal: i32) -> Result<(), TraceError> {
        request(libc::PTRACE_DETACH, "detach", pid, 0, int(signal))
    }

    /// The next stop of any of this thread's tracees. Ends are left alone, so that who waits
    /// for them goes on waiting until [`Tracer::reap`].
    pub fn next_stop(&self) -> Result<Option<Stop>, Errno> {
        let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
        loop {
            let found = match waitid(libc::P_ALL, 0, options) {
                Ok(found) => found,
                // Nobody is traced just now.
                Err(Errno::CHILD) => None,
                Err(error) => return Err(error),
            };
            let Some(found) = found else { return Ok(None) };
            // The stop of an untraced child of this thread is nobody's business here.
            if found.code == libc::CLD_TRAPPED {
                return Ok(Some(Stop {
                    pid: found.pid,
                    kind: StopKind::decode(found.status),
                }));
            }
        }
    }

    /// How the tracee ended, if it has; it stays a zombie.
    pub fn peek_exit(&self, pid: i32) -> Result<Option<ExitStatus>, TraceError> {
        self.exit(pid, libc::WNOWAIT)
    }

    /// How the tracee ended. It is gone then, for its parent to hear of.
    pub fn reap(&self, pid: i32) -> Result<ExitStatus, TraceError> {
        self.exit(pid, 0)?.ok_or(TraceError::Alive { pid })
    }

    fn exit(&self, pid: i32, flags: i32) -> Result<Option<ExitStatus>, TraceError> {
        let options = flags | libc::WEXITED | libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
        let id = pid.cast_unsigned();
        match waitid(libc::P_PID, id, options) {
            Ok(found) => Ok(found.and_then(|it| ExitStatus::from_siginfo(it.code, it.status))),
            Err(Errno::CHILD) => Err(TraceError::Gone { pid }),
            Err(errno) => Err(TraceError::Failed {
                pid,
                operation: "wait for",
                errno,
            }),
        }
    }
}

impl StopKind {
    fn decode(status: i32) -> StopKind {
        let signal = status & 0x7f;
        match status >> 8 {
            0 => StopKind::Delivery(status & 0xff),
            EVENT_STOP if signal == libc::SIGTRAP => StopKind::Trap,
            EVENT_STOP => StopKind::GroupStop(signal),
            event => StopKind::Event(event),
        }
    }
}

fn request(
    request: libc::c_uint,
    operation: &'static str,
    pid: i32,
    address: usize,
    data: usize,
) -> Result<(), TraceError> {
    // SAFETY: `data` is a pointer for PTRACE_GETSIGINFO only, whose caller passes room for it.
    match unsafe {
        checked(
            libc::SYS_ptrace,
            [request as usize, int(pid), address, data],
        )
    } {
        Ok(_) => Ok(()),
        Err(Errno::SRCH) => Err(TraceError::Gone { pid }),
        Err(errno) => Err(TraceError::Failed {
            pid,
            operation,
            errno,
        }),
    }
}

struct Found {
    pid: i32,
    code: i32,
    status: i32,
}

fn waitid(id_type: libc::idtype_t, id: u32, options: i32) -> Result<Option<Found>, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let args = [
        id_type as usize,
        id as usize,
        info.as_mut_ptr().expose_provenance(),
        int(options),
        0,
    ];
    loop {
        // SAFETY: the kernel writes one siginfo.
        match unsafe { checked(libc::SYS_waitid, args) } {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    // SAFETY: zeroed before, filled in for SIGCHLD if anything was found.
    let found = unsafe {
        let info = info.assume_init();
        Found {
            pid: info.si_pid(),
            code: info.si_code,
            status: info.si_status(),
        }
    };
    Ok((found.pid != 0).then_some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        let stop = EVENT_STOP << 8;
        assert_eq!(
            StopKind::decode(libc::SIGINT),
            StopKind::Delivery(libc::SIGINT)
        );
        assert_eq!(
            StopKind::decode(libc::SIGTRAP),
            StopKind::Delivery(libc::SIGTRAP)
        );
        assert_eq!(StopKind::decode(stop | libc::SIGTRAP), StopKind::Trap);
        assert_eq!(
            StopKind::decode(stop | libc::SIGTSTP),
            StopKind::GroupStop(libc::SIGTSTP)
        );
        let exec = libc::SIGTRAP | libc::PTRACE_EVENT_EXEC << 8;
        assert_eq!(
            StopKind::decode(exec),
            StopKind::Event(libc::PTRACE_EVENT_EXEC)
        );
    }
}
