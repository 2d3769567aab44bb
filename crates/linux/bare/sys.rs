//! System calls, as programs without a C library need them.
#![expect(dead_code, reason = "each program uses a part of it")]

#[cfg_attr(target_arch = "x86_64", path = "arch/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "arch/aarch64.rs")]
pub(crate) mod arch;
#[cfg_attr(target_arch = "x86_64", path = "syscall/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "syscall/aarch64.rs")]
mod syscall;

use core::ffi::c_long;
use core::mem::MaybeUninit;

pub(crate) const LAST_SIGNAL: usize = 64;
pub(crate) const EINTR: isize = 4;
pub(crate) const EAGAIN: isize = 11;
pub(crate) const POLLIN: i16 = 1;
pub(crate) const POLLOUT: i16 = 4;
pub(crate) const POLLERR: i16 = 8;

const PR_SET_NAME: usize = 15;
pub(crate) const SIG_BLOCK: usize = 0;
pub(crate) const SIG_UNBLOCK: usize = 1;
pub(crate) const SIG_SETMASK: usize = 2;
const SA_RESTORER: usize = 0x0400_0000;
pub(crate) const SET_BYTES: usize = 8;

/// A system call without a fifth argument, which is then 0: `ppoll` ignores it without a mask,
/// `prctl` wants it.
///
/// # Safety
/// As the system call.
#[inline(always)]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { syscall5(number, a, b, c, d, 0) }
}

/// # Safety
/// As the system call.
#[inline(always)]
pub(crate) unsafe fn syscall5(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
) -> isize {
    // SAFETY: the caller's promise; none of those that are made here has a sixth argument.
    unsafe { syscall::syscall6(number as c_long, a, b, c, d, e, 0) }
}

#[repr(C)]
pub(crate) struct Poll {
    fd: i32,
    events: i16,
    pub(crate) happened: i16,
}

impl Poll {
    /// A negative descriptor is left out.
    pub(crate) fn new(fd: i32, events: i16) -> Poll {
        Poll {
            fd,
            events,
            happened: 0,
        }
    }
}

pub(crate) fn poll<const N: usize>(fds: &mut [Poll; N], timeout_ms: Option<u32>) -> isize {
    let mut timeout = MaybeUninit::<[usize; 2]>::uninit();
    let timeout = match timeout_ms {
        Some(ms) => timeout.write([0, ms as usize * 1_000_000]).as_ptr() as usize,
        None => 0,
    };
    // SAFETY: as many structs as said; the time is read only.
    unsafe { syscall(arch::PPOLL, fds.as_mut_ptr() as usize, N, timeout, 0) }
}

pub(crate) fn read(fd: usize, to: *mut u8, length: usize) -> isize {
    // SAFETY: the callers pass buffers of this length.
    unsafe { syscall(arch::READ, fd, to as usize, length, 0) }
}

/// Whether all of it could be written.
pub(crate) fn write_all(fd: usize, mut from: *const u8, mut length: usize) -> bool {
    while length != 0 {
        // SAFETY: the callers pass buffers of this length.
        let written = unsafe { syscall(arch::WRITE, fd, from as usize, length, 0) };
        if written == -EINTR {
            continue;
        }
        if written <= 0 {
            return false;
        }
        from = from.wrapping_add(written as usize);
        length -= written as usize;
    }
    true
}

pub(crate) fn ioctl(fd: usize, request: usize, argument: usize) -> isize {
    // SAFETY: the callers pass what the request wants.
    unsafe { syscall(arch::IOCTL, fd, request, argument, 0) }
}

pub(crate) fn group() -> i32 {
    // SAFETY: no pointer is passed.
    unsafe { syscall(arch::GETPGID, 0, 0, 0, 0) as i32 }
}

pub(crate) fn close(fd: usize) {
    // SAFETY: no pointer is passed.
    unsafe { syscall(arch::CLOSE, fd, 0, 0, 0) };
}

pub(crate) fn close_from(first: usize) {
    // SAFETY: no pointer is passed.
    unsafe { syscall(arch::CLOSE_RANGE, first, u32::MAX as usize, 0, 0) };
}

/// # Safety
/// `name` is a C string or null.
pub(crate) unsafe fn set_name(name: *const u8) {
    // SAFETY: the caller's promise; the kernel answers a null pointer with an error.
    unsafe { syscall(arch::PRCTL, PR_SET_NAME, name as usize, 0, 0) };
}

pub(crate) fn kill_self(signal: usize) {
    // SAFETY: no pointer is passed.
    unsafe {
        let pid = syscall(arch::GETPID, 0, 0, 0, 0) as usize;
        syscall(arch::KILL, pid, signal, 0, 0);
    }
}

pub(crate) fn exit(code: usize) -> ! {
    loop {
        // SAFETY: no pointer is passed.
        unsafe { syscall(arch::EXIT_GROUP, code, 0, 0, 0) };
    }
}

/// Has a signal do nothing but interrupt, so that a moment without tracer does not kill us.
/// All others wait meanwhile.
pub(crate) fn catch(signal: usize) {
    set_action(signal, arch::handler as *const () as usize);
}

pub(crate) fn default(signal: usize) {
    set_action(signal, 0);
}

fn set_action(signal: usize, handler: usize) {
    let action = [
        handler,
        SA_RESTORER,
        arch::restorer as *const () as usize,
        usize::MAX,
    ];
    // SAFETY: the kernel's struct of four words; SIGKILL and SIGSTOP are refused, as they may.
    unsafe {
        syscall(
            arch::SIGACTION,
            signal,
            action.as_ptr() as usize,
            0,
            SET_BYTES,
        )
    };
}

pub(crate) fn unblock_all() {
    change_mask(SIG_SETMASK, 0);
}

/// Changes the signal mask; returns the one before.
pub(crate) fn change_mask(how: usize, set: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: the sets have the size said.
    unsafe {
        syscall(
            arch::SIGPROCMASK,
            how,
            &raw const set as usize,
            &raw mut old as usize,
            SET_BYTES,
        )
    };
    // SAFETY: a local that the kernel has written.
    unsafe { (&raw const old).read_volatile() }
}
