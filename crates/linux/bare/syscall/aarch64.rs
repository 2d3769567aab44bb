//! aarch64: the one way into the kernel, for the library and for the programs without a C library.

use core::arch::asm;
use core::ffi::c_long;

/// # Safety
/// As the system call: pointers among the arguments must be valid for what it does.
#[inline(always)]
pub(crate) unsafe fn syscall6(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> isize {
    let result: isize;
    // SAFETY: the kernel preserves every register but x0; the rest is the caller's promise.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
    }
    result
}
