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

use crate::arch::{self, checked, int, raw};
use crate::signal::{KernelSigaction, LAST_SIGNAL, SignalSet};
use crate::vfork;
use rustix::io::Errno;
use std::ffi::{CStr, CString, c_char, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

/// Where programs are sought when the new environment has no `PATH`, as in glibc.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// What runs a file that is executable and has no known format, as `execvp` does.
const SHELL: &CStr = c"/bin/sh";
/// The exit code of a child that failed; nobody sees it, as it is reaped here.
const CHILD_FAILED: i32 = 127;

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

/// The steps of the child, in their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Entering the mount namespace.
    MountNs,
    /// Entering the root directory.
    Chroot,
    /// Setting the host name.
    Hostname,
    /// Starting a session.
    Session,
    /// Taking the controlling terminal.
    Terminal,
    /// Placing the standard descriptors and closing the others.
    Stdio,
    /// Setting resource limits.
    Limits,
    /// Setting supplementary groups.
    Groups,
    /// Setting the group ids.
    Gid,
    /// Setting the user ids.
    Uid,
    /// Entering the working directory.
    Cwd,
    /// Setting what signals do.
    Signals,
    /// Executing the program.
    Exec,
}

impl Stage {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Stage; 13] = [
        Stage::MountNs,
        Stage::Chroot,
        Stage::Hostname,
        Stage::Session,
        Stage::Terminal,
        Stage::Stdio,
        Stage::Limits,
        Stage::Groups,
        Stage::Gid,
        Stage::Uid,
        Stage::Cwd,
        Stage::Signals,
        Stage::Exec,
    ];
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::MountNs => "can't enter the mount namespace",
            Stage::Chroot => "can't enter the root directory",
            Stage::Hostname => "can't set the host name",
            Stage::Session => "can't start a session",
            Stage::Terminal => "can't take the controlling terminal",
            Stage::Stdio => "can't place the standard descriptors",
            Stage::Limits => "can't set the resource limits",
            Stage::Groups => "can't set the supplementary groups",
            Stage::Gid => "can't set the group ids",
            Stage::Uid => "can't set the user ids",
            Stage::Cwd => "can't enter the working directory",
            Stage::Signals => "can't set the signal actions",
            Stage::Exec => "can't execute the program",
        })
    }
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

/// What `execve` needs, as the pointer arrays that it wants.
struct Image {
    candidates: Vec<CString>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// `/bin/sh CANDIDATE ARGS…`; the second place is filled in by the child.
    shell_argv: *mut *const c_char,
    _shell_argv: Box<[*const c_char]>,
}

impl Image {
    fn new(candidates: Vec<CString>, argv: &[CString], env: &[CString]) -> Image {
        let mut shell_argv: Box<[*const c_char]> = [SHELL.as_ptr(), ptr::null()]
            .into_iter()
            .chain(argv.iter().skip(1).map(|arg| arg.as_ptr()))
            .chain([ptr::null()])
            .collect();
        Image {
            candidates,
            argv: pointers(argv),
            env: pointers(env),
            shell_argv: shell_argv.as_mut_ptr(),
            _shell_argv: shell_argv,
        }
    }
}

/// A null-terminated array of the strings' addresses.
pub(crate) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// The paths to try, in order.
fn candidates(program: &CStr, env: &[CString]) -> Vec<CString> {
    let name = program.to_bytes();
    if name.is_empty() || name.contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = env
        .iter()
        .find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(|&byte| byte == b':')
        .filter_map(|directory| {
            let mut candidate = directory.to_vec();
            // An empty entry means the working directory.
            if !candidate.is_empty() && !candidate.ends_with(b"/") {
                candidate.push(b'/');
            }
            candidate.extend_from_slice(name);
            // Neither part can hold a NUL: both came from C strings.
            CString::new(candidate).ok()
        })
        .collect()
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

/// The child: raw system calls on the caller's memory, nothing else.
pub(crate) extern "C" fn child(context: *mut c_void) -> ! {
    let context = context.cast::<Context<'_, '_>>();
    // SAFETY: the parent passed its context and waits until we are done with it.
    let (request, membership, image) =
        unsafe { ((*context).request, (*context).membership, &(*context).image) };
    let (stage, errno) = match prepare(request, membership) {
        Err(failure) => failure,
        Ok(()) => (Stage::Exec, execute(image)),
    };
    // SAFETY: as above; we are the only one who runs.
    unsafe { ptr::write_volatile(&raw mut (*context).failure, Some((stage, errno))) };
    exit(CHILD_FAILED)
}

/// Ends the calling process with no ceremony.
pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: no pointer is passed.
        unsafe { raw(libc::SYS_exit_group, [int(code)]) };
    }
}

/// A system call on behalf of a stage.
///
/// # Safety
/// As [`raw`].
#[inline]
pub(crate) unsafe fn step<const N: usize>(
    stage: Stage,
    number: c_long,
    args: [usize; N],
) -> Result<usize, (Stage, Errno)> {
    // SAFETY: the caller's promise.
    let result = unsafe { raw(number, args) };
    if result < 0 {
        Err((stage, arch::errno(result)))
    } else {
        Ok(result.cast_unsigned())
    }
}

fn prepare(request: &SpawnRequest<'_>, membership: Membership) -> Result<(), (Stage, Errno)> {
    // SAFETY: every pointer below belongs to the request, which outlives this child; lengths
    // are those of the slices. No call writes to memory.
    unsafe {
        if let Some(namespace) = request.mount_ns {
            let args = [int(namespace.as_raw_fd()), int(libc::CLONE_NEWNS)];
            step(Stage::MountNs, libc::SYS_setns, args)?;
        }
        if let Some(root) = request.root {
            step(Stage::Chroot, libc::SYS_fchdir, [int(root.as_raw_fd())])?;
            step(
                Stage::Chroot,
                libc::SYS_chroot,
                [c".".as_ptr().expose_provenance()],
            )?;
        }
        if let Some(name) = request.hostname {
            let args = [name.as_ptr().expose_provenance(), name.len()];
            step(Stage::Hostname, libc::SYS_sethostname, args)?;
        }
        match membership {
            Membership::Leads => step(Stage::Session, libc::SYS_setsid, [])?,
            Membership::Foreground { .. } => step(Stage::Session, libc::SYS_setpgid, [0, 0])?,
        };
        place_stdio(request.stdio.map(|fd| fd.as_raw_fd()))?;
        match membership {
            Membership::Leads if request.controlling_tty => take_terminal(0)?,
            Membership::Leads => {}
            Membership::Foreground { terminal } => come_to_foreground(terminal)?,
        }
        for limit in request.limits {
            set_limit(limit)?;
        }
        raw(libc::SYS_umask, [request.umask as usize]);
        if let Some(groups) = request.groups {
            let args = [groups.len(), groups.as_ptr().expose_provenance()];
            step(Stage::Groups, libc::SYS_setgroups, args)?;
        }
        step(Stage::Gid, libc::SYS_setresgid, [request.gid as usize; 3])?;
        step(Stage::Uid, libc::SYS_setresuid, [request.uid as usize; 3])?;
        let cwd = request.cwd.as_ptr().expose_provenance();
        step(Stage::Cwd, libc::SYS_chdir, [cwd])?;
        set_signals(request.ignored_signals, request.blocked_signals)
    }
}

/// Makes a terminal the controlling one of the calling process, which leads a session.
///
/// # Safety
/// Only in a child, whose descriptor it is.
pub(crate) unsafe fn take_terminal(terminal: usize) -> Result<(), (Stage, Errno)> {
    let ioctl = usize::try_from(libc::TIOCSCTTY).unwrap_or(0);
    // SAFETY: the argument is no pointer.
    unsafe { step(Stage::Terminal, libc::SYS_ioctl, [terminal, ioctl, 0]) }.map(|_| ())
}

/// Makes the calling process's group the one that the terminal's keys are for. It is in the
/// background until then, and would be stopped if SIGTTOU were not blocked.
///
/// # Safety
/// Only in a child that leads its group and blocks all signals.
unsafe fn come_to_foreground(terminal: usize) -> Result<(), (Stage, Errno)> {
    let ioctl = usize::try_from(libc::TIOCSPGRP).unwrap_or(0);
    // SAFETY: no pointer is passed.
    let group = arch::pid_from(unsafe { step(Stage::Terminal, libc::SYS_getpid, []) }?);
    let args = [terminal, ioctl, (&raw const group).expose_provenance()];
    // SAFETY: the kernel reads one int.
    unsafe { step(Stage::Terminal, libc::SYS_ioctl, args) }.map(|_| ())
}

/// Puts the descriptors at 0, 1 and 2 and closes all others.
///
/// # Safety
/// Only in a child: every other descriptor is closed.
unsafe fn place_stdio(mut stdio: [i32; 3]) -> Result<(), (Stage, Errno)> {
    const STAGE: Stage = Stage::Stdio;
    // SAFETY: no pointer is passed, and the descriptors are the child's own.
    unsafe {
        for fd in &mut stdio {
            // One that lies in the way of another would be overwritten before its turn.
            if *fd < 3 {
                let args = [int(*fd), int(libc::F_DUPFD), 3];
                *fd = arch::pid_from(step(STAGE, libc::SYS_fcntl, args)?);
            }
        }
        for (target, fd) in stdio.into_iter().enumerate() {
            step(STAGE, libc::SYS_dup3, [int(fd), target, 0])?;
        }
        step(STAGE, libc::SYS_close_range, [3, u32::MAX as usize, 0])?;
    }
    Ok(())
}

#[repr(C)]
struct KernelRlimit {
    soft: u64,
    hard: u64,
}

/// # Safety
/// Only in a child: it changes this process's limits.
unsafe fn set_limit(limit: &Limit) -> Result<(), (Stage, Errno)> {
    const STAGE: Stage = Stage::Limits;
    let resource = limit.resource as usize;
    let mut wanted = KernelRlimit {
        soft: limit.soft.min(limit.hard),
        hard: limit.hard,
    };
    let new = (&raw const wanted).expose_provenance();
    // SAFETY: the kernel reads one struct.
    match unsafe { step(STAGE, libc::SYS_prlimit64, [0, resource, new, 0]) } {
        Err((_, Errno::PERM)) => {}
        other => return other.map(|_| ()),
    }
    let mut found = KernelRlimit { soft: 0, hard: 0 };
    let old = (&raw mut found).expose_provenance();
    // SAFETY: the kernel writes one struct.
    unsafe { step(STAGE, libc::SYS_prlimit64, [0, resource, 0, old]) }?;
    // SAFETY: a plain local, written by the kernel.
    let ceiling = unsafe { ptr::read_volatile(&raw const found.hard) };
    wanted.hard = wanted.hard.min(ceiling);
    wanted.soft = wanted.soft.min(ceiling);
    let new = (&raw const wanted).expose_provenance();
    // SAFETY: the kernel reads one struct.
    unsafe { step(STAGE, libc::SYS_prlimit64, [0, resource, new, 0]) }.map(|_| ())
}

/// Sets every action before the mask, so that no handler of the parent's can run here.
///
/// # Safety
/// Only in a child.
pub(crate) unsafe fn set_signals(
    ignored: SignalSet,
    blocked: SignalSet,
) -> Result<(), (Stage, Errno)> {
    const STAGE: Stage = Stage::Signals;
    let default = KernelSigaction::plain(libc::SIG_DFL);
    let ignore = KernelSigaction::plain(libc::SIG_IGN);
    let mut signal = 1;
    while signal <= LAST_SIGNAL {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            let action = if ignored.contains(signal) {
                &raw const ignore
            } else {
                &raw const default
            };
            let args = [int(signal), action.expose_provenance(), 0, size_of::<u64>()];
            // SAFETY: the action is the kernel's struct.
            unsafe { step(STAGE, libc::SYS_rt_sigaction, args) }?;
        }
        signal += 1;
    }
    let mask = blocked.bits();
    let args = [
        int(libc::SIG_SETMASK),
        (&raw const mask).expose_provenance(),
        0,
        size_of::<u64>(),
    ];
    // SAFETY: the mask is eight bytes, as said.
    unsafe { step(STAGE, libc::SYS_rt_sigprocmask, args) }.map(|_| ())
}

/// Tries the candidates as `execvp` does; returns only if none could be run.
fn execute(image: &Image) -> Errno {
    let mut denied = false;
    let mut last = Errno::NOENT;
    for candidate in &image.candidates {
        // SAFETY: null-terminated arrays of C strings that the parent keeps.
        last = unsafe { execve(candidate.as_ptr(), image.argv.as_ptr(), image.env.as_ptr()) };
        if last == Errno::NOEXEC {
            // SAFETY: the array has a second place, and the parent waits for us.
            unsafe {
                image.shell_argv.add(1).write(candidate.as_ptr());
                execve(SHELL.as_ptr(), image.shell_argv, image.env.as_ptr());
            }
            return Errno::NOEXEC;
        }
        match last {
            // As shells have it: a file that may not be executed is remembered (126), one that is
            // not even seen, because its directory may not be searched, is not there (127).
            // SAFETY: a C string that the parent keeps.
            Errno::ACCESS => denied |= unsafe { is_seen(candidate.as_ptr()) },
            Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT => {}
            other => return other,
        }
    }
    match last {
        _ if denied => Errno::ACCESS,
        Errno::ACCESS if image.candidates.len() > 1 => Errno::NOENT,
        other => other,
    }
}

/// # Safety
/// The pointer is a C string.
unsafe fn is_seen(path: *const c_char) -> bool {
    let at = int(libc::AT_FDCWD);
    let exists = int(libc::F_OK);
    // SAFETY: the caller's promise.
    unsafe { checked(libc::SYS_faccessat, [at, path.expose_provenance(), exists]) }.is_ok()
}

/// # Safety
/// The pointers are a C string and two null-terminated arrays of C strings.
unsafe fn execve(
    path: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
) -> Errno {
    let args = [
        path.expose_provenance(),
        argv.expose_provenance(),
        env.expose_provenance(),
    ];
    // SAFETY: the caller's promise.
    arch::errno(unsafe { raw(libc::SYS_execve, args) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(program: &CStr, path: &CStr) -> Vec<String> {
        candidates(program, &[path.to_owned()])
            .into_iter()
            .map(|candidate| candidate.into_string().expect("UTF-8"))
            .collect()
    }

    #[test]
    fn the_new_environments_path_is_searched() {
        assert_eq!(paths(c"ls", c"PATH=/a:/b/"), ["/a/ls", "/b/ls"]);
        assert_eq!(paths(c"ls", c"PATH=:/b"), ["ls", "/b/ls"]);
        assert_eq!(paths(c"ls", c"HOME=/"), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(paths(c"./ls", c"PATH=/a"), ["./ls"]);
        assert_eq!(paths(c"", c"PATH=/a"), [""]);
    }
}
