//! The two things that must be written in assembler: a system call that does not touch
//! glibc's `errno`, and a `clone3` whose child starts on another stack.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg_attr(target_arch = "aarch64", path = "../../bare/syscall/aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "../../bare/syscall/x86_64.rs")]
mod syscall;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as current;
#[cfg(target_arch = "x86_64")]
use x86_64 as current;

pub(crate) use current::clone3_on_stack;
use syscall::syscall6;

use rustix::io::Errno;
use std::ffi::c_long;

/// The argument block of `clone3` (`struct clone_args`, version 2).
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// A system call that returns the kernel's own result.
///
/// # Safety
/// As the system call: pointers among the arguments must be valid for what it does.
#[inline(always)]
pub(crate) unsafe fn raw<const N: usize>(number: c_long, args: [usize; N]) -> isize {
    const { assert!(N <= 6) };
    let at = |i: usize| if i < N { args[i] } else { 0 };
    // SAFETY: the caller's promise.
    unsafe { syscall6(number, at(0), at(1), at(2), at(3), at(4), at(5)) }
}

/// A system call whose failure is an [`Errno`].
///
/// # Safety
/// As [`raw`].
#[inline]
pub(crate) unsafe fn checked<const N: usize>(
    number: c_long,
    args: [usize; N],
) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    decode(unsafe { raw(number, args) })
}

/// Splits the kernel's result into a value and an error.
pub(crate) fn decode(result: isize) -> Result<usize, Errno> {
    match usize::try_from(result) {
        Ok(value) => Ok(value),
        Err(_) => Err(errno(result)),
    }
}

/// The error in a negative result.
pub(crate) fn errno(result: isize) -> Errno {
    Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL))
}

/// A process number in a system call's result, which is never wider than 32 bits.
pub(crate) fn pid_from(result: usize) -> i32 {
    i32::try_from(result).unwrap_or(i32::MAX)
}

/// An `int` as the register that carries it.
pub(crate) fn int(value: i32) -> usize {
    value as isize as usize
}
