//! Files by descriptor: opening again what a descriptor names, and what it is.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use wiglaf_wire::view::{Attributes, FileId};

/// Longest name that a question may have; Linux file systems have none longer.
const MAX_NAME_BYTES: usize = 255;
/// Somebody's lease is waited for, during which all questions wait. Deputies, who ask by one
/// whether a file is written, give it up at once. The pause doubles each time.
const FIRST_LEASE_PAUSE: Duration = Duration::from_micros(50);
/// Then the lease is believed to last.
const MAX_LEASE_PAUSE: Duration = Duration::from_secs(1);

pub(super) fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    let several = name.contains(&b'/') || name.contains(&0);
    if name.is_empty() || several || name == b"." || name == b".." {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// A descriptor that only names a file.
pub(super) fn name_in(directory: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = rustix::fs::openat(directory, name, flags, Mode::empty());
    path.map_err(without_room)
}

/// The path by which the kernel follows a descriptor to its very file.
pub(super) fn magic(file: impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// Opens the very file that a descriptor names, with the rights of now; for writing, only one
/// that the table knows to be written.
pub(super) fn reopen(file: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Nothing of the view waits in an open, nor becomes the deputy's terminal.
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut pause = FIRST_LEASE_PAUSE;
    loop {
        match rustix::fs::open(magic(&file), flags, Mode::empty()) {
            Err(Errno::AGAIN) if pause < MAX_LEASE_PAUSE => std::thread::sleep(pause),
            opened => return opened.map_err(without_room),
        }
        pause *= 2;
    }
}

/// This process's limit is the whole table's limit to whoever asks.
pub(super) fn without_room(errno: Errno) -> Errno {
    if errno == Errno::MFILE {
        return Errno::NFILE;
    }
    errno
}

pub(super) fn status(file: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted())
}

/// What a name of a directory stands for.
pub(super) fn status_in(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, wanted())
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | StatxFlags::BTIME
}

pub(super) fn device(stat: &Statx) -> u64 {
    rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

/// Whether a file has extended attributes; yes, if it can't be told.
pub(super) fn has_xattrs(file: impl AsFd) -> bool {
    let size = match rustix::fs::flistxattr_query(&file) {
        // It only names the file.
        Err(Errno::BADF) => rustix::fs::listxattr_query(magic(file)),
        size => size,
    };
    !matches!(size, Ok(0) | Err(Errno::OPNOTSUPP))
}

pub(super) fn attributes(file: FileId, stat: &Statx, xattrs: bool, watched: bool) -> Attributes {
    let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
    Attributes {
        file,
        ino: stat.stx_ino,
        device: device(stat),
        mode: u32::from(stat.stx_mode),
        links: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        block_size: stat.stx_blksize,
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        times: times.map(|time| (time.tv_sec, time.tv_nsec)),
        watched,
        xattrs,
    }
}

/// Permission bits of a message.
pub(super) fn mode(bits: u32) -> Mode {
    const PERMISSIONS: u32 = 0o7777;
    Mode::from_raw_mode(bits & PERMISSIONS)
}
