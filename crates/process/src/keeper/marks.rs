//! Which file systems a deputy's `fanotify(7)` group watches: all that are the kernel's own and
//! can be trusted with it. Marking takes root's rights, and looks at paths, which may hang; so it
//! is done by forks of the keeper, never by the keeper.

mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use wiglaf_linux::fanotify::Group;
use wiglaf_linux::handle;
use wiglaf_linux::mountinfo::{self, MOUNTS, Mount};
use wiglaf_wire::marks::{FileSystem, MAX_FILE_SYSTEMS};

pub use self::survey::{Unwatched, unwatched};

/// What a deputy watches the head's files with.
#[derive(Debug)]
pub struct Marks {
    /// The group.
    pub group: OwnedFd,
    /// The mount table, opened before the marks were made.
    pub mounts: OwnedFd,
    /// To the keeper, which answers each [`Look`](wiglaf_wire::marks::Look) with a
    /// [`Marked`](wiglaf_wire::marks::Marked); a packet socket.
    pub keeper: OwnedFd,
    /// What is marked.
    pub file_systems: Vec<FileSystem>,
}

/// Longest chain of mounts upon mounts.
const MAX_DEPTH: usize = 64;

/// Types whose changes all come by this kernel's calls, and whose files keep their handles. Not
/// vfat and exfat: there a file that nobody has open gets another handle.
const WATCHABLE: [&str; 8] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs", "overlay",
];
/// Types that never change. Their marks say only that they are there still.
const IMMUTABLE: [&str; 5] = ["squashfs", "erofs", "iso9660", "cramfs", "romfs"];
/// Types that a path may go through without waiting for another machine or a user's program.
const LOCAL: [&str; 6] = ["rootfs", "ramfs", "devtmpfs", "vfat", "exfat", "bcachefs"];
/// The node's own, which no view shows; and what is written to `/dev/null` is no news.
const NOT_SHOWN: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Its subvolumes have device numbers that the mount table does not tell.
const BTRFS: &str = "btrfs";

/// Opens the mount table, to see changes of it from now on.
pub(super) fn open_mounts() -> Result<OwnedFd, Errno> {
    rustix::fs::open(MOUNTS, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Marks what can be watched and has not been, which is told by the numbers of its superblocks,
/// and says what that is. What should and can't be goes to `skipped`, in words; types that never
/// are, such as NFS, do not.
///
/// # Errors
/// The mount table can't be read.
pub fn mark_all(
    group: &Group,
    watched: &BTreeSet<u64>,
    mut skipped: impl FnMut(String),
) -> Result<Vec<FileSystem>, std::io::Error> {
    let table = mountinfo::read()?;
    let mut marked: BTreeMap<u64, FileSystem> = BTreeMap::new();
    for mount in watchable(&mountinfo::parse(&table)) {
        if watched.len() + marked.len() >= MAX_FILE_SYSTEMS {
            skipped("too many file systems are mounted".to_owned());
            break;
        }
        if watched.contains(&mount.device) || marked.contains_key(&mount.device) {
            continue;
        }
        match mark(group, &mount) {
            Ok(file_system) => {
                marked.insert(mount.device, file_system);
            }
            // Something else is mounted over it.
            Err(Errno::XDEV | Errno::NOENT) if mount.kind != BTRFS => {}
            Err(errno) => {
                let (path, kind) = (mount.path.display(), mount.kind);
                skipped(format!("{path} ({kind}): {errno}"));
            }
        }
    }
    Ok(marked.into_values().collect())
}

fn mark(group: &Group, mount: &Mount<'_>) -> Result<FileSystem, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(CWD, &mount.path, flags, Mode::empty(), resolve)?;
    let device = rustix::fs::fstat(&file)?.st_dev;
    if mount.kind != BTRFS && device != mount.device {
        return Err(Errno::XDEV);
    }
    group.mark_file_system(file.as_fd())?;
    Ok(FileSystem {
        device,
        superblock: mount.device,
        fsid: handle::file_system_of(file.as_fd())?,
    })
}

/// The mounts that may be watched.
fn watchable<'a>(mounts: &[Mount<'a>]) -> Vec<Mount<'a>> {
    let by_id: BTreeMap<u64, &Mount<'_>> = mounts.iter().map(|mount| (mount.id, mount)).collect();
    let is_watched = |kind: &str| WATCHABLE.contains(&kind) || IMMUTABLE.contains(&kind);
    let is_local = |kind: &str| is_watched(kind) || LOCAL.contains(&kind);
    let is_reached = |mount: &Mount<'_>| {
        let mut at = mount.parent;
        for _ in 0..MAX_DEPTH {
            match by_id.get(&at) {
                // The root of all, or of what this namespace shows.
                None => return true,
                Some(above) if !is_local(above.kind) => return false,
                Some(above) if above.id == above.parent => return true,
                Some(above) => at = above.parent,
            }
        }
        false
    };
    let is_shown = |path: &Path| {
        path.as_os_str().as_bytes().starts_with(b"/")
            && !NOT_SHOWN.iter().any(|own| path.starts_with(own))
    };
    let good =
        |mount: &&Mount<'_>| is_watched(mount.kind) && is_shown(&mount.path) && is_reached(mount);
    mounts.iter().filter(good).cloned().collect()
}

#[cfg(test)]
mod tests;
