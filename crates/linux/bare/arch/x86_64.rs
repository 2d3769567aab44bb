//! x86_64: the entry and the numbers.

use core::arch::global_asm;

pub(crate) const READ: usize = 0;
pub(crate) const WRITE: usize = 1;
pub(crate) const CLOSE: usize = 3;
pub(crate) const SIGACTION: usize = 13;
pub(crate) const SIGPROCMASK: usize = 14;
pub(crate) const IOCTL: usize = 16;
pub(crate) const GETPID: usize = 39;
pub(crate) const SOCKET: usize = 41;
pub(crate) const CONNECT: usize = 42;
pub(crate) const SENDMSG: usize = 46;
pub(crate) const RECVMSG: usize = 47;
pub(crate) const KILL: usize = 62;
pub(crate) const FCNTL: usize = 72;
pub(crate) const GETPGID: usize = 121;
pub(crate) const PRCTL: usize = 157;
pub(crate) const EXIT_GROUP: usize = 231;
pub(crate) const OPENAT: usize = 257;
pub(crate) const READLINKAT: usize = 267;
pub(crate) const PPOLL: usize = 271;
pub(crate) const SIGNALFD: usize = 289;
pub(crate) const EXECVEAT: usize = 322;
pub(crate) const CLOSE_RANGE: usize = 436;

// The handler's `ret` goes to the restorer, which the kernel leaves to the program here.
global_asm!(
    ".globl _start, empty_handler, signal_restorer",
    "_start: mov rdi, rsp",
    "and rsp, -16",
    "call program_main",
    "empty_handler: ret",
    "signal_restorer: mov eax, 15",
    "syscall",
);

unsafe extern "C" {
    #[link_name = "empty_handler"]
    pub(crate) fn handler();
    #[link_name = "signal_restorer"]
    pub(crate) fn restorer();
}
