//! x86_64: the one way into the kernel, for the library and for the programs without a C library.

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
    // SAFETY: the kernel clobbers rcx and r11 only; the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}
