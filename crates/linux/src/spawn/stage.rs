//! What the child is doing, so that its failure can be told.

use std::ffi::c_long;

use rustix::io::Errno;

use crate::arch::{self, raw};

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
