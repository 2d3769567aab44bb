//! What rustix lacks for descriptors.

use crate::arch::{checked, int};
use rustix::io::Errno;
use std::os::fd::{IntoRawFd, OwnedFd};

/// Closes a descriptor and says what the file system says to that: it may be the first to know
/// that what was written is lost.
pub fn close(fd: OwnedFd) -> Result<(), Errno> {
    let fd = fd.into_raw_fd();
    // SAFETY: it was owned, and nobody uses it any more. It is closed even if that fails.
    unsafe { checked(libc::SYS_close, [int(fd)]) }.map(|_| ())
}
