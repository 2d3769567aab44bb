//! Taking a process as a ghost: first it is seized, then looked at, so that what was looked at
//! can't be another one any more (S3).

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use wiglaf_linux::process;
use wiglaf_linux::status;
use wiglaf_linux::trace::{TraceError, Tracer};
use wiglaf_wire::id::{Pid, TaskId};

/// Soft RLIMIT_CORE of a ghost: it may have to die by a signal that dumps, and would overwrite
/// the user's `core`. 1 is below every dump's least size, and unlike 0 it also keeps a piped
/// `core_pattern` from running (`core(5)`; the kernel takes 1 as its mark against recursion).
const NO_CORE: u64 = 1;

/// Why a process is no ghost.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeizeError {
    #[error("task {task} or process {pid} has a ghost already")]
    Twice { task: TaskId, pid: Pid },
    #[error("the cluster is shutting down")]
    ShuttingDown,
    #[error("process {pid} ended before it could become a ghost")]
    Ended { pid: Pid },
    #[error(
        "process {pid} can't be traced: it is traced by another (strace, gdb: put them behind \
         `wiglaf run` instead), or /proc/sys/kernel/yama/ptrace_scope forbids it"
    )]
    Refused { pid: Pid },
    #[error("process {pid} is not the one that asked (uid {uid}, start time {start_time})")]
    Another { pid: Pid, uid: u32, start_time: u64 },
    #[error("cannot {what} (process {pid}): {errno}")]
    System {
        pid: Pid,
        what: &'static str,
        errno: Errno,
    },
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Seizes `pid`. The outer error: nothing was seized. The inner one: what was seized is not the
/// right process, and has to be let go.
pub(super) fn seize(
    tracer: &Tracer,
    pid: Pid,
    uid: u32,
    start_time: u64,
) -> Result<(OwnedFd, Result<(), SeizeError>), SeizeError> {
    let system = |what| move |errno| SeizeError::System { pid, what, errno };
    let pidfd = match process::pidfd_open(pid.0) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Err(SeizeError::Ended { pid }),
        Err(errno) => return Err(system("open it")(errno)),
    };
    match tracer.seize(pid.0, 0) {
        Ok(()) => {}
        Err(TraceError::Gone { .. }) => return Err(SeizeError::Ended { pid }),
        Err(TraceError::Failed {
            errno: Errno::PERM, ..
        }) => {
            return Err(SeizeError::Refused { pid });
        }
        Err(error) => return Err(error.into()),
    }
    let verdict = verify(pid, &pidfd, uid, start_time);
    Ok((pidfd, verdict))
}

fn verify(pid: Pid, pidfd: &OwnedFd, uid: u32, start_time: u64) -> Result<(), SeizeError> {
    let another = SeizeError::Another {
        pid,
        uid,
        start_time,
    };
    match (status::read_status(pid.0), status::start_time(pid.0)) {
        (Ok(found), Ok(started)) if found.uids == [uid; 4] && started == start_time => {}
        _ => return Err(another),
    }
    // It lives still, so all of the above was about one process: the one that the pidfd holds.
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) {
        Ok(0) => {}
        Ok(_) => return Err(SeizeError::Ended { pid }),
        Err(errno) => {
            return Err(SeizeError::System {
                pid,
                what: "watch it",
                errno,
            });
        }
    }
    keep_from_dumping(pid)
}

fn keep_from_dumping(pid: Pid) -> Result<(), SeizeError> {
    let target = rustix::process::Pid::from_raw(pid.0);
    let limit = |bytes| {
        let both = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        rustix::process::prlimit(target, Resource::Core, both)
    };
    // One that has a hard limit of 0 can't be given 1 without privilege.
    match limit(NO_CORE).or_else(|_| limit(0)) {
        // Without CAP_SYS_RESOURCE (in a container) or with a core pattern of another user's
        // concern: `wiglaf run` has lowered its own limit before it asked.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(SeizeError::System {
            pid,
            what: "limit its core dumps",
            errno,
        }),
    }
}
