use core::arch::{asm, global_asm};

pub(crate) const READ: usize = 0;
pub(crate) const WRITE: usize = 1;
pub(crate) const CLOSE: usize = 3;
pub(crate) const SIGACTION: usize = 13;
pub(crate) const SIGPROCMASK: usize = 14;
pub(crate) const IOCTL: usize = 16;
pub(crate) const GETPID: usize = 39;
pub(crate) const KILL: usize = 62;
pub(crate) const GETPGID: usize = 121;
pub(crate) const PRCTL: usize = 157;
pub(crate) const EXIT_GROUP: usize = 231;
pub(crate) const PPOLL: usize = 271;
pub(crate) const CLOSE_RANGE: usize = 436;

// The handler's `ret` goes to the restorer, which the kernel leaves to the program here.
global_asm!(
    ".globl _start, ghost_handler, ghost_restorer",
    "_start: mov rdi, rsp",
    "and rsp, -16",
    "call ghost_main",
    "ghost_handler: ret",
    "ghost_restorer: mov eax, 15",
    "syscall",
);

unsafe extern "C" {
    #[link_name = "ghost_handler"]
    pub(crate) fn handler();
    #[link_name = "ghost_restorer"]
    pub(crate) fn restorer();
}

/// # Safety
/// As the system call.
#[inline(always)]
pub(crate) unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // The fifth argument is always 0: `ppoll` ignores it without a mask, `prctl` wants it.
    // SAFETY: the kernel clobbers rcx and r11 only; the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") 0_usize,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}
