//! Processes: descriptors that name them, their end, what `ps` shows of us, and forking.

use crate::arch::{self, CloneArgs, checked, int};
use rustix::io::Errno;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

pub use rustix::thread::UnshareFlags as NamespaceFlags;

/// A descriptor that names the process `pid`, which is not reused while it lives or is unreaped.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { checked(libc::SYS_pidfd_open, [int(pid), 0]) }?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { owned(fd) })
}

/// Sends any signal, real-time ones and 0 (a probe) included.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let args = [int(pidfd.as_fd().as_raw_fd()), int(signal), 0, 0];
    // SAFETY: the siginfo pointer is null, which the kernel fills in itself.
    unsafe { checked(libc::SYS_pidfd_send_signal, args) }.map(|_| ())
}

/// Sends any signal as `kill(2)` does: to a process, a group (negative) or all (−1).
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointer is passed.
    unsafe { checked(libc::SYS_kill, [int(pid), int(signal)]) }.map(|_| ())
}

/// A process's group, 0 being the caller: 0 if its leader is outside the caller's PID namespace,
/// for which the safe interface has no value.
///
/// # Errors
/// `ESRCH`.
pub fn process_group(pid: i32) -> Result<i32, Errno> {
    // SAFETY: no memory is passed.
    let group = unsafe { checked(libc::SYS_getpgid, [int(pid)]) }?;
    Ok(i32::try_from(group).unwrap_or(0))
}

/// # Safety
/// `fd` is a descriptor that nothing else owns.
unsafe fn owned(fd: usize) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(arch::pid_from(fd)) }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitStatus {
    /// By `exit`, with the low eight bits of its argument.
    Exited(i32),
    /// By a signal.
    Signaled {
        /// Which one.
        signal: i32,
        /// Whether the kernel says that it dumped core.
        core: bool,
    },
}

impl ExitStatus {
    /// What a shell would show as `$?`.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Exited(code) => code,
            ExitStatus::Signaled { signal, .. } => 128 + signal,
        }
    }

    /// From `siginfo`'s `CLD_…` code and status; `None` for other codes.
    pub(crate) fn from_siginfo(code: i32, status: i32) -> Option<ExitStatus> {
        match code {
            libc::CLD_EXITED => Some(ExitStatus::Exited(status & 0xff)),
            libc::CLD_KILLED | libc::CLD_DUMPED => Some(ExitStatus::Signaled {
                signal: status,
                core: code == libc::CLD_DUMPED,
            }),
            _ => None,
        }
    }
}

/// What happened to a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChildState {
    /// It ended and is reaped.
    Ended(ExitStatus),
    /// It was stopped by this signal.
    Stopped(i32),
    /// It was continued.
    Continued,
}

/// What a child and its own reaped children have used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// CPU time in user mode.
    pub user_us: u64,
    /// CPU time in the kernel.
    pub system_us: u64,
    /// The largest resident set.
    pub max_rss_kb: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Blocks of 512 bytes read.
    pub blocks_in: u64,
    /// Blocks of 512 bytes written.
    pub blocks_out: u64,
    /// Times that it waited.
    pub voluntary_switches: u64,
    /// Times that it was made to wait.
    pub involuntary_switches: u64,
}

/// A change of a child's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChildChange {
    /// Which child.
    pub pid: i32,
    /// What happened.
    pub state: ChildState,
    /// Filled in when it ended.
    pub usage: Usage,
}

/// Waits for the end of the child `pid`; with `nohang`, `None` if it still runs.
pub fn wait(pid: i32, nohang: bool) -> Result<Option<ChildChange>, Errno> {
    wait4(pid, flags(nohang))
}

/// Waits for any child to end, stop or continue; with `nohang`, `None` if none has.
/// ECHILD when there is none at all.
pub fn wait_any_child(nohang: bool) -> Result<Option<ChildChange>, Errno> {
    wait4(-1, flags(nohang) | libc::WUNTRACED | libc::WCONTINUED)
}

fn flags(nohang: bool) -> i32 {
    libc::__WALL | if nohang { libc::WNOHANG } else { 0 }
}

/// Allocates nothing, so that forks of a process with several threads may call it.
pub(crate) fn wait4(pid: i32, options: i32) -> Result<Option<ChildChange>, Errno> {
    let mut status = 0_i32;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let found = loop {
        let args = [
            int(pid),
            (&raw mut status).expose_provenance(),
            int(options),
            usage.as_mut_ptr().expose_provenance(),
        ];
        // SAFETY: the kernel writes one int and one rusage.
        match unsafe { checked(libc::SYS_wait4, args) } {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(0) => return Ok(None),
            Ok(found) => break arch::pid_from(found),
        }
    };
    let state = if libc::WIFEXITED(status) {
        ChildState::Ended(ExitStatus::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        ChildState::Ended(ExitStatus::Signaled {
            signal: libc::WTERMSIG(status),
            core: libc::WCOREDUMP(status),
        })
    } else if libc::WIFSTOPPED(status) {
        ChildState::Stopped(libc::WSTOPSIG(status))
    } else {
        ChildState::Continued
    };
    // SAFETY: zeroed before, and every bit pattern is a valid one.
    let usage = unsafe { usage.assume_init() };
    Ok(Some(ChildChange {
        pid: found,
        state,
        usage: Usage {
            user_us: microseconds(usage.ru_utime),
            system_us: microseconds(usage.ru_stime),
            max_rss_kb: usage.ru_maxrss.cast_unsigned(),
            minor_faults: usage.ru_minflt.cast_unsigned(),
            major_faults: usage.ru_majflt.cast_unsigned(),
            blocks_in: usage.ru_inblock.cast_unsigned(),
            blocks_out: usage.ru_oublock.cast_unsigned(),
            voluntary_switches: usage.ru_nvcsw.cast_unsigned(),
            involuntary_switches: usage.ru_nivcsw.cast_unsigned(),
        },
    }))
}

fn microseconds(time: libc::timeval) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_usec.cast_unsigned()
}

/// Which side of a fork the caller is on.
#[derive(Debug)]
pub enum Fork {
    /// The caller; the child is named by both.
    Parent {
        /// The child's PID in the caller's namespace.
        pid: i32,
        /// A descriptor that names it for ever.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// Forks. For processes with one thread only: a second thread's locks would stay locked in
/// the child for ever, and its data be caught half-changed.
pub fn fork() -> Result<Fork, Errno> {
    // SAFETY: the libc wrapper keeps the allocator usable in the child; what else a second
    // thread could spoil is the documented limit.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        0 => Ok(Fork::Child),
        pid => match pidfd_open(pid) {
            Ok(pidfd) => Ok(Fork::Parent { pid, pidfd }),
            Err(error) => {
                // A child that the caller can't name must not go on as if all were well.
                let _ = kill(pid, libc::SIGKILL);
                let _ = wait(pid, false);
                Err(error)
            }
        },
    }
}

/// Makes a child that does `life` and ends, with no descriptor of ours and with all signals
/// blocked. The caller may have several threads, so `life` must take no lock, which one of them
/// may have held: the allocator is the only one that works there, and nothing can be printed.
pub fn fork_aside(life: impl FnOnce()) -> Result<(i32, OwnedFd), Errno> {
    /// A panic must not unwind into the copy of the caller's frames.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            crate::spawn::exit(0)
        }
    }
    // The child keeps this mask.
    let _blocked = crate::vfork::Blocked::all();
    // SAFETY: the libc wrapper keeps the allocator usable in the child, whatever other threads
    // were at; the rest is what is asked of `life`. The child never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        0 => {
            let _end = End;
            // SAFETY: whoever owns these descriptors lives on in the parent only.
            unsafe { arch::raw(libc::SYS_close_range, [0, u32::MAX as usize, 0]) };
            life();
            crate::spawn::exit(0)
        }
        pid => pidfd_open(pid).map(|pidfd| (pid, pidfd)).inspect_err(|_| {
            let _ = kill(pid, libc::SIGKILL);
            let _ = wait(pid, false);
        }),
    }
}

/// Forks into new namespaces, for virtual nodes. Same limit as [`fork`].
pub fn clone_into(flags: NamespaceFlags) -> Result<Fork, Errno> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: u64::from(flags.bits()) | libc::CLONE_PIDFD.cast_unsigned() as u64,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        ..CloneArgs::default()
    };
    // glibc keeps the thread's number in its own memory and has its `fork` write it anew;
    // the kernel tells where that is.
    if let Ok(Some(tid)) = rustix::thread::get_clear_child_tid_address() {
        args.flags |=
            (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID).cast_unsigned() as u64;
        args.child_tid = tid.as_ptr().expose_provenance() as u64;
    }
    let clone = [
        (&raw const args).expose_provenance(),
        size_of::<CloneArgs>(),
    ];
    // SAFETY: without CLONE_VM and with no stack named, this is a fork: the child goes on
    // with a copy of this very stack.
    match unsafe { checked(libc::SYS_clone3, clone) }? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent {
            pid: arch::pid_from(pid),
            // SAFETY: CLONE_PIDFD stored a descriptor that nothing else knows of.
            pidfd: unsafe { OwnedFd::from_raw_fd(std::ptr::read_volatile(&raw const pidfd)) },
        }),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Has the kernel send us `signal` when the *thread* that made us ends (0: never). Check the
/// parent afterwards: it may have ended before. Cleared by a change of credentials.
pub fn set_pdeathsig(signal: i32) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, int(signal))
}

/// Whether the process may be dumped, and be traced by others of the same user.
pub fn set_dumpable(dumpable: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, usize::from(dumpable))
}

/// Lets any process trace us so far as Yama is concerned, or takes that back. Fine without
/// Yama too.
pub fn set_ptracer_any(any: bool) -> Result<(), Errno> {
    /// `PR_SET_PTRACER_ANY`.
    const ANY: usize = usize::MAX;
    match prctl(libc::PR_SET_PTRACER, if any { ANY } else { 0 }) {
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// Whether orphaned descendants become our children.
pub fn set_child_subreaper(subreaper: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, usize::from(subreaper))
}

fn prctl(option: i32, argument: usize) -> Result<(), Errno> {
    // SAFETY: only options whose argument is no pointer are passed.
    unsafe { checked(libc::SYS_prctl, [int(option), argument, 0, 0, 0]) }.map(|_| ())
}

/// Why the process has kept its title.
#[derive(thiserror::Error, Debug)]
pub enum TitleError {
    /// `/proc/self/stat` can't be read or understood.
    #[error("can't find the arguments' place in /proc/self/stat: {0}")]
    Arguments(#[source] std::io::Error),
    /// The short name was refused.
    #[error("can't set the process name: {0}")]
    Name(#[source] Errno),
}

/// Has `ps` show `title` instead of our arguments, cut to the room that those took, and `comm`
/// the part of it before a colon. For a process's start: `std::env::args` reads the same bytes.
pub fn set_process_title(title: &str) -> Result<(), TitleError> {
    ArgumentArea::find()?.write(title);
    let short = title.split(':').next().unwrap_or(title).replace('\0', "");
    let name = std::ffi::CString::new(short).unwrap_or_default();
    rustix::thread::set_name(&name).map_err(TitleError::Name)
}

/// Where `ps` finds our arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArgumentArea {
    start: usize,
    end: usize,
}

impl ArgumentArea {
    pub(crate) fn find() -> Result<ArgumentArea, TitleError> {
        let (start, end) = argument_area().map_err(TitleError::Arguments)?;
        Ok(ArgumentArea { start, end })
    }

    /// Allocates nothing, so that forks of a process with several threads may call it.
    pub(crate) fn write(self, title: &str) {
        let mut bytes = title.bytes().filter(|&byte| byte != 0);
        for address in self.start..self.end {
            // The last byte stays NUL, or the kernel takes the environment for a part of it.
            let last = address + 1 == self.end;
            let byte = if last { 0 } else { bytes.next().unwrap_or(0) };
            // SAFETY: the kernel says that the argument strings, which are writable memory of
            // this process for all its life, span these addresses. Atomic, because another
            // thread may be reading its arguments.
            let place =
                unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
            place.store(byte, Ordering::Relaxed);
        }
    }
}

fn argument_area() -> std::io::Result<(usize, usize)> {
    /// `arg_start`, counted from the field after the command's closing parenthesis.
    const ARG_START: usize = 48 - 3;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let parse = || {
        let mut fields = stat
            .rsplit_once(')')?
            .1
            .split_ascii_whitespace()
            .skip(ARG_START);
        let start: usize = fields.next()?.parse().ok()?;
        let end: usize = fields.next()?.parse().ok()?;
        (start != 0 && start <= end).then_some((start, end))
    };
    parse().ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}
