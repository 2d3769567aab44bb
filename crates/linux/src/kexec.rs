//! Loading a kernel that the running one hands the machine to.

use crate::arch::{checked, int};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Loads a kernel and its initramfs, to be started by `reboot(2)` with
/// [`rustix::system::RebootCommand::Kexec`].
///
/// # Errors
/// `ENOSYS`: this kernel can't. `EPERM`: it is locked down. `ENOEXEC`: that is no kernel.
pub fn kexec_file_load(
    kernel: BorrowedFd<'_>,
    initramfs: BorrowedFd<'_>,
    command_line: &CStr,
) -> Result<(), Errno> {
    let line = command_line.to_bytes_with_nul();
    let args = [
        int(kernel.as_raw_fd()),
        int(initramfs.as_raw_fd()),
        line.len(),
        line.as_ptr().expose_provenance(),
        0,
    ];
    // SAFETY: the kernel reads so many bytes of the line, the last of which is 0 as it wants.
    unsafe { checked(libc::SYS_kexec_file_load, args) }.map(|_| ())
}
