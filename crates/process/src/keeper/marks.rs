//! Which file systems a deputy's `fanotify(7)` group watches: all that are the kernel's own and
//! can be trusted with it. Marking takes root's rights, and looks at paths, which may hang; so it
//! is done by forks of the keeper, never by the keeper.

mod survey;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use wiglaf_linux::fanotify::Group;
use wiglaf_linux::handle;
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

pub(super) const MOUNTS: &str = "/proc/self/mountinfo";
/// Longest mount table that is read; tens of thousands of mounts. What comes after is unwatched.
const MAX_MOUNTS_BYTES: u64 = 8 << 20;
/// Longest chain of mounts upon mounts.
const MAX_DEPTH: usize = 64;

/// Types whose changes all come by this kernel's calls, and whose files keep their handles. Not
/// vfat and exfat: there a file that nobody has open gets another handle.
const WATCHABLE: [&str; 8] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs", "overlay",
];
/// Types that never change: they need no mark.
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

/// Marks what can be watched, and says what that is. What should and can't be goes to `skipped`,
/// in words; types that never are, such as NFS, do not.
///
/// # Errors
/// The mount table can't be read.
pub fn mark_all(
    group: &Group,
    mut skipped: impl FnMut(String),
) -> Result<Vec<FileSystem>, std::io::Error> {
    let table = read_mounts()?;
    let mut marked = BTreeMap::new();
    for mount in watchable(&parse(&table)) {
        if marked.len() >= MAX_FILE_SYSTEMS {
            skipped("too many file systems are mounted".to_owned());
            break;
        }
        if marked.contains_key(&mount.device) {
            continue;
        }
        match mark(group, &mount) {
            Ok(file_system) => {
                marked.entry(file_system.device).or_insert(file_system);
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
    if IMMUTABLE.contains(&mount.kind) {
        // No event will come; the number only has to be nobody else's.
        let fsid = device.to_ne_bytes();
        return Ok(FileSystem { device, fsid });
    }
    group.mark_file_system(file.as_fd())?;
    let fsid = handle::file_system_of(file.as_fd())?;
    Ok(FileSystem { device, fsid })
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount<'a> {
    id: u32,
    parent: u32,
    device: u64,
    path: PathBuf,
    kind: &'a str,
}

fn read_mounts() -> Result<Vec<u8>, std::io::Error> {
    let mut table = Vec::new();
    std::fs::File::open(MOUNTS)?
        .take(MAX_MOUNTS_BYTES)
        .read_to_end(&mut table)?;
    Ok(table)
}

fn parse(table: &[u8]) -> Vec<Mount<'_>> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mount/point options optional:… - type source options`.
fn parse_line(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok();
    let id = number()?.parse().ok()?;
    let parent = number()?.parse().ok()?;
    let (major, minor) = number()?.split_once(':')?;
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    let path = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = std::str::from_utf8(rest.next()?).ok()?;
    Some(Mount {
        id,
        parent,
        device,
        path,
        kind,
    })
}

/// Spaces and the like are octal: `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match (first, after.split_at_checked(3)) {
            (b'\\', Some((digits, later))) if let Some(byte) = octal(digits) => {
                bytes.push(byte);
                rest = later;
            }
            _ => bytes.push(*first),
        }
    }
    OsString::from_vec(bytes).into()
}

/// The mounts that may be watched.
fn watchable<'a>(mounts: &[Mount<'a>]) -> Vec<Mount<'a>> {
    let by_id: BTreeMap<u32, &Mount<'_>> = mounts.iter().map(|mount| (mount.id, mount)).collect();
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
