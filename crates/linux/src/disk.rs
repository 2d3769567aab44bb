//! Swap areas, and disks whose table of partitions has changed.

use crate::arch::{checked, int};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

/// `BLKRRPART` (linux/fs.h).
const BLKRRPART: usize = 0x125f;

/// Has the kernel use an area as more memory, as `swapon(2)`.
///
/// # Errors
/// `EINVAL`: it has no header of a swap area. `EBUSY`: it is in use already. `EPERM`.
pub fn swap_on(path: &CStr) -> Result<(), Errno> {
    let args = [path.as_ptr().expose_provenance(), 0];
    // SAFETY: the kernel reads a path that ends in 0.
    unsafe { checked(libc::SYS_swapon, args) }.map(|_| ())
}

/// Has the kernel take everything back from an area, as `swapoff(2)`.
///
/// # Errors
/// `EINVAL`: it is none that is used. `ENOMEM`: there is no room for what it holds. `EPERM`.
pub fn swap_off(path: &CStr) -> Result<(), Errno> {
    let args = [path.as_ptr().expose_provenance()];
    // SAFETY: the kernel reads a path that ends in 0.
    unsafe { checked(libc::SYS_swapoff, args) }.map(|_| ())
}

/// Has the kernel read a disk's table of partitions anew.
///
/// # Errors
/// `EBUSY`: a partition is in use. `EINVAL`: it is not a whole disk. `EACCES`.
pub fn reread_partitions(disk: impl AsFd) -> Result<(), Errno> {
    let args = [int(disk.as_fd().as_raw_fd()), BLKRRPART, 0];
    // SAFETY: this request has no argument.
    unsafe { checked(libc::SYS_ioctl, args) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(reread_partitions(&file), Err(Errno::NOTTY));
        let nowhere = c"/nowhere/swap";
        // EPERM without root's rights.
        for result in [swap_on(nowhere), swap_off(nowhere)] {
            assert!(
                matches!(result, Err(Errno::NOENT | Errno::PERM)),
                "{result:?}"
            );
        }
    }
}
