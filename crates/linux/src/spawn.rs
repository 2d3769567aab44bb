//! Starts a task's main process, cheaply, with a chosen PID.
//!
//! The child shares the caller's memory until it execs (`vfork`'s way), so starting a process
//! costs the same from a small agent and from a large one. Everything that the child needs is
//! laid out before; the child makes raw system calls only.
//!
//! # What the caller should know
//! - **The calling thread waits until the exec is done.** If the program lies on a file system
//!   that the calling process itself serves, another thread must be serving it.
//! - **Dumpability.** `setresuid` in the child clears the dumpable flag of the shared memory,
//!   which keeps the user from attaching to a process that still has the caller's memory.
//!   The flag is put back when the last running spawn ends.
//! - **Signals.** Between `setresuid` and the exec the user may signal the child. A SIGKILL is
//!   then seen as a process that died of it; a SIGSTOP holds the caller until SIGCONT.

mod child;
mod image;
mod stage;

pub(crate) use child::{child, exit, set_signals, take_terminal};
pub(crate) use image::pointers;
pub use stage::Stage;
pub(crate) use stage::step;

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;

use image::{Image, candidates};
use rustix::io::Errno;

use crate::arch::{checked, int};
use crate::signal::SignalSet;
use crate::vfork;

/// Everything about the process to be started.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// Without a slash it is sought along the `PATH` of `env`, in the child's file system.
    pub program: &'a CStr,
    /// The whole argument list, `argv[0]` included.
    pub argv: &'a [CString],
    /// The whole environment, `NAME=value` each.
    pub env: &'a [CString],
    /// The working directory, entered with the user's rights.
    pub cwd: &'a CStr,
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
    /// The supplementary groups; `None` leaves them alone (rootless: they can't be set).
    pub groups: Option<&'a [u32]>,
    /// The file mode creation mask.
    pub umask: u32,
    /// Resource limits; what may not be raised is clamped to the hard limit.
    pub limits: &'a [Limit],
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The mount namespace to enter.
    pub mount_ns: Option<BorrowedFd<'a>>,
    /// A directory to `chroot` to, after entering the namespace.
    pub root: Option<BorrowedFd<'a>>,
    /// The cgroup (v2) to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A UTS namespace of its own, needed to set the host name for this task alone.
    pub new_uts: bool,
    /// The host name to set.
    pub hostname: Option<&'a [u8]>,
    /// The PID in the caller's PID namespace; `None` lets the kernel choose.
    pub pid: Option<i32>,
    /// Make standard input the controlling terminal. (For one with job control, see
    /// [`crate::session`].)
    pub controlling_tty: bool,
    /// Signals that the process is to ignore; all others get their default action.
    pub ignored_signals: SignalSet,
    /// The signal mask to start with.
    pub blocked_signals: SignalSet,
}

/// One resource limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// `RLIMIT_…`.
    pub resource: u32,
    /// The soft limit, `u64::MAX` for none.
    pub soft: u64,
    /// The hard limit, `u64::MAX` for none.
    pub hard: u64,
}

/// A process that runs.
#[derive(Debug)]
pub struct Spawned {
    /// Its PID in the caller's namespace.
    pub pid: i32,
    /// A descriptor that names it for ever.
    pub pidfd: OwnedFd,
}

/// Why no process runs.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnError {
    /// The chosen PID is in use.
    #[error("process number {pid} is taken")]
    PidTaken {
        /// The PID asked for.
        pid: i32,
    },
    /// The kernel made no process.
    #[error("can't create a process: {errno}")]
    Clone {
        /// `clone3`'s error. EINVAL with a chosen PID: it is above `pid_max`.
        errno: Errno,
    },
    /// The leader of its session was killed before it could tell.
    #[error("the leader of its session was killed")]
    Leader,
    /// The process was made, failed at this stage and is gone.
    #[error("{stage}: {errno}")]
    Child {
        /// What it was doing.
        stage: Stage,
        /// What went wrong.
        errno: Errno,
    },
}

/// Starts the process; returns when it has exec'd or failed.
pub fn spawn(request: &SpawnRequest<'_>) -> Result<Spawned, SpawnError> {
    let mut context = Context::new(request, Membership::Leads);
    let options = options(request);
    let context: *mut Context<'_, '_> = &raw mut context;
    // SAFETY: `child` makes raw system calls only, and the context outlives the call.
    let (pid, pidfd) = unsafe { vfork::run(&options, child, context.cast()) }
        .map_err(|errno| clone_error(request, errno))?;
    // SAFETY: the child no longer shares our memory, so this is the only access.
    match unsafe { failure(context) } {
        None => Ok(Spawned { pid, pidfd }),
        Some((stage, errno)) => {
            reap_failed(pid);
            Err(SpawnError::Child { stage, errno })
        }
    }
}

pub(crate) fn options<'a>(request: &SpawnRequest<'a>) -> vfork::Options<'a> {
    vfork::Options {
        flags: if request.new_uts {
            libc::CLONE_NEWUTS.cast_unsigned().into()
        } else {
            0
        },
        pid: request.pid,
        cgroup: request.cgroup,
    }
}

pub(crate) fn clone_error(request: &SpawnRequest<'_>, errno: Errno) -> SpawnError {
    match request.pid {
        Some(pid) if errno == Errno::EXIST => SpawnError::PidTaken { pid },
        _ => SpawnError::Clone { errno },
    }
}

/// What the child has left in the context.
///
/// # Safety
/// The child no longer shares our memory.
pub(crate) unsafe fn failure(context: *const Context<'_, '_>) -> Option<(Stage, Errno)> {
    // SAFETY: the caller's promise; volatile because the compiler does not see the child's
    // write.
    unsafe { ptr::read_volatile(&raw const (*context).failure) }
}

/// What the process is in its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Membership {
    /// It leads a session of its own.
    Leads,
    /// Its parent leads it; it leads the group in the foreground of the terminal, which is
    /// this one of its standard descriptors.
    Foreground { terminal: usize },
}

/// Takes a failed child away, so that the caller never hears of it. An error means that
/// SIGCHLD is ignored and the kernel has done so already.
pub(crate) fn reap_failed(pid: i32) {
    loop {
        // SAFETY: no pointer is passed.
        let result = unsafe { checked(libc::SYS_wait4, [int(pid), 0, int(libc::__WALL), 0]) };
        if result != Err(Errno::INTR) {
            return;
        }
    }
}

/// What parent and child share.
pub(crate) struct Context<'r, 'a> {
    request: &'r SpawnRequest<'a>,
    membership: Membership,
    image: Image,
    failure: Option<(Stage, Errno)>,
}

impl<'r, 'a> Context<'r, 'a> {
    /// All allocating is done here, before there is a child.
    pub(crate) fn new(request: &'r SpawnRequest<'a>, membership: Membership) -> Self {
        let candidates = candidates(request.program, request.env);
        let image = Image::new(candidates, request.argv, request.env);
        Context {
            request,
            membership,
            image,
            failure: None,
        }
    }
}
