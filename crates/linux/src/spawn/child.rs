//! The child, from its first instruction to the exec: raw system calls on the caller's memory,
//! nothing else.

use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::ptr;

use rustix::io::Errno;

use super::image::execute;
use super::stage::step;
use super::{Context, Limit, Membership, SpawnRequest, Stage};
use crate::arch::{self, int, raw};
use crate::signal::{KernelSigaction, LAST_SIGNAL, SignalSet};

/// The exit code of a child that failed; nobody sees it, as it is reaped here.
const CHILD_FAILED: i32 = 127;

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
