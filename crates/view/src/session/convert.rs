//! Between the deputy's words and the kernel's.

use wiglaf_fuse::{Attributes as Shown, SetTime as KernelTime, StatFs};
use wiglaf_wire::view::{Attributes, SetTime, Space};

/// A directory that anyone may list and enter.
const PLAIN_DIRECTORY_MODE: u32 = 0o040_755;
const PLAIN_DIRECTORY_LINKS: u32 = 2;
const LINK_MODE: u32 = 0o120_777;
const BLOCK_BYTES: u32 = 4096;

pub(super) fn attributes(told: &Attributes) -> Shown {
    let [accessed, modified, changed] = told.times;
    Shown {
        ino: told.ino,
        size: told.size,
        blocks: told.blocks,
        accessed,
        modified,
        changed,
        mode: told.mode,
        links: told.links,
        uid: told.uid,
        gid: told.gid,
        rdev: kernel_device(told.rdev),
        block_size: told.block_size,
    }
}

/// A device number, spread over the upper half of an inode number, where most file systems have
/// nothing (the multiplier is that of Fibonacci hashing: Knuth, The Art of Computer Programming,
/// volume 3, 6.4).
pub(super) fn spread(device: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    device.wrapping_mul(GOLDEN) & !u64::from(u32::MAX)
}

/// A directory of the node's own, to mount something on.
pub(super) fn own_directory(node: u64) -> Shown {
    Shown {
        ino: node,
        size: 0,
        blocks: 0,
        accessed: (0, 0),
        modified: (0, 0),
        changed: (0, 0),
        mode: PLAIN_DIRECTORY_MODE,
        links: PLAIN_DIRECTORY_LINKS,
        uid: 0,
        gid: 0,
        rdev: 0,
        block_size: BLOCK_BYTES,
    }
}

/// A link of the node's own, whose text has this many bytes.
pub(super) fn own_link(node: u64, size: u64) -> Shown {
    Shown {
        size,
        mode: LINK_MODE,
        links: 1,
        ..own_directory(node)
    }
}

pub(super) fn space(told: &Space) -> StatFs {
    StatFs {
        blocks: told.blocks,
        free: told.free,
        available: told.available,
        files: told.files,
        free_files: told.free_files,
        block_size: told.block_size,
        name_length: told.name_length,
        fragment_size: told.fragment_size,
    }
}

pub(super) fn set_time(time: KernelTime) -> SetTime {
    match time {
        KernelTime::Now => SetTime::Now,
        KernelTime::At(seconds, nanoseconds) => SetTime::At(seconds, nanoseconds),
    }
}

/// The kernel's 32-bit form of a device number: 12 bits of major between 8 and 12 of minor.
fn kernel_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

pub(super) fn from_kernel_device(device: u32) -> u64 {
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xfff00),
    );
    rustix::fs::makedev(major, minor)
}
