//! aarch64: the entry and the numbers.

use core::arch::global_asm;

pub(crate) const FCNTL: usize = 25;
pub(crate) const IOCTL: usize = 29;
pub(crate) const OPENAT: usize = 56;
pub(crate) const CLOSE: usize = 57;
pub(crate) const READ: usize = 63;
pub(crate) const WRITE: usize = 64;
pub(crate) const PPOLL: usize = 73;
pub(crate) const SIGNALFD: usize = 74;
pub(crate) const READLINKAT: usize = 78;
pub(crate) const EXIT_GROUP: usize = 94;
pub(crate) const KILL: usize = 129;
pub(crate) const SIGACTION: usize = 134;
pub(crate) const SIGPROCMASK: usize = 135;
pub(crate) const GETPGID: usize = 155;
pub(crate) const PRCTL: usize = 167;
pub(crate) const GETPID: usize = 172;
pub(crate) const SOCKET: usize = 198;
pub(crate) const CONNECT: usize = 203;
pub(crate) const SENDMSG: usize = 211;
pub(crate) const RECVMSG: usize = 212;
pub(crate) const EXECVEAT: usize = 281;
pub(crate) const CLOSE_RANGE: usize = 436;

global_asm!(
    ".globl _start, empty_handler, signal_restorer",
    "_start: mov x0, sp",
    "bl program_main",
    "empty_handler: ret",
    "signal_restorer: mov x8, #139",
    "svc #0",
);

unsafe extern "C" {
    #[link_name = "empty_handler"]
    pub(crate) fn handler();
    #[link_name = "signal_restorer"]
    pub(crate) fn restorer();
}
