//! What is not watched, for those who ask.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use wiglaf_linux::mountinfo::{self, Mount};
use wiglaf_wire::marks::FileSystem;

use super::{BTRFS, NOT_SHOWN};

/// The node's own, though the marks don't spare it.
const RUN: &str = "/run";
/// Types that hold no files of anybody's.
const PSEUDO: [&str; 9] = [
    "proc",
    "sysfs",
    "nsfs",
    "autofs",
    "rpc_pipefs",
    "nfsd",
    "binfmt_misc",
    "fusectl",
    "mqueue",
];

/// A file system that a view shows and nobody watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwatched {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its type.
    pub kind: String,
}

/// The file systems that views show and [`mark_all`](super::mark_all) has not marked.
///
/// # Errors
/// The mount table can't be read.
pub fn unwatched(marked: &[FileSystem]) -> Result<Vec<Unwatched>, io::Error> {
    let table = mountinfo::read()?;
    let marked: BTreeSet<u64> = marked.iter().map(|one| one.device).collect();
    // The mount table does not tell the device numbers of btrfs; its files can be asked without
    // waiting for another machine.
    let device = |mount: &Mount<'_>| match mount.kind {
        BTRFS => rustix::fs::stat(&mount.path).map_or(mount.device, |stat| stat.st_dev),
        _ => mount.device,
    };
    Ok(left(&mountinfo::parse(&table), |mount| {
        marked.contains(&device(mount))
    }))
}

/// One for each device, in the order of their paths.
fn left(mounts: &[Mount<'_>], is_marked: impl Fn(&Mount<'_>) -> bool) -> Vec<Unwatched> {
    // What is mounted last at a place is what is seen there.
    let seen: BTreeMap<&Path, &Mount<'_>> = mounts
        .iter()
        .map(|mount| (mount.path.as_path(), mount))
        .collect();
    let is_own = |path: &Path| {
        NOT_SHOWN
            .iter()
            .chain([&RUN])
            .any(|own| path.starts_with(own))
    };
    let mut devices = BTreeSet::new();
    seen.into_values()
        .filter(|mount| !is_own(&mount.path) && !PSEUDO.contains(&mount.kind))
        .filter(|mount| !is_marked(mount) && devices.insert(mount.device))
        .map(|mount| Unwatched {
            path: mount.path.clone(),
            kind: mount.kind.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_and_not_marked_is_named_once() {
        let table = b"\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /proc rw - proc proc rw
3 1 0:6 / /home rw - nfs4 server:/home rw
4 1 0:6 /b /also\\040home rw - nfs4 server:/home rw
5 1 0:7 / /run rw - tmpfs tmpfs rw
6 5 0:8 / /run/media/x rw - fuseblk /dev/sdb1 rw
7 1 0:9 / /mnt rw - vfat /dev/sdc1 rw
8 1 8:2 / /mnt rw - ext4 /dev/sdd1 rw
9 1 0:10 / /media rw - exfat /dev/sde1 rw
10 1 0:11 / /procession rw - 9p tag rw
";
        let ext4 = |mount: &Mount<'_>| mount.kind == "ext4";
        let found = left(&mountinfo::parse(table), ext4);
        let found: Vec<_> = found
            .iter()
            .map(|one| (one.path.to_str().unwrap(), one.kind.as_str()))
            .collect();
        let expected = [
            ("/also home", "nfs4"),
            ("/media", "exfat"),
            ("/procession", "9p"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn this_machines_mounts_can_be_read() {
        // Nothing is marked, so the root file system is among them.
        let all = unwatched(&[]).unwrap();
        assert!(all.iter().any(|one| one.path == Path::new("/")), "{all:?}");
    }
}
