//! What rustix lacks for mounts; callers use `rustix::mount` for the rest.

use crate::arch::{checked, int};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the directory `root`, which must be a mount point, the root of the mount namespace
/// and throws the old root away.
pub fn pivot_into(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    // The old root is stacked upon the new one and lies at "." afterwards: no directory is
    // needed to put it in.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// What to change of mounts (`struct mount_attr`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_…` to set.
    pub set: u64,
    /// `MOUNT_ATTR_…` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace of an idmapped mount, with `MOUNT_ATTR_IDMAP`.
    pub user_ns: u64,
}

/// Changes the mount at `path` below `directory`, with `recursive` everything below it too.
/// An empty path means the mount that `directory` itself is (as `open_tree` gives it).
pub fn mount_setattr(
    directory: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: &MountAttributes,
) -> Result<(), Errno> {
    let mut flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    let args = [
        int(directory.as_raw_fd()),
        path.as_ptr().expose_provenance(),
        int(flags),
        std::ptr::from_ref(attributes).expose_provenance(),
        size_of::<MountAttributes>(),
    ];
    // SAFETY: a C string and one struct of the size said, which the kernel only reads.
    unsafe { checked(libc::SYS_mount_setattr, args) }.map(|_| ())
}
