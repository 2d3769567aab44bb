//! The mount table, as far as names of watched directories depend on it.
//!
//! Nothing here trusts a mount's number to be that of an earlier mount: whoever is told of a
//! change compares what is believed with what is so ([`crate::export`]).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use wiglaf_linux::mountinfo::{self, MAX_MOUNTS_BYTES, Mount};

/// What is mounted where, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    by_id: HashMap<u64, Line>,
    on: HashMap<u64, Points>,
    watched: BTreeSet<u64>,
    gone: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    parent: u64,
    superblock: u64,
    path: PathBuf,
}

/// The names that are mounted on below one mount, each with the paths of its directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Points(HashMap<Box<[u8]>, Vec<PathBuf>>);

impl Mounts {
    /// Reads the table; whoever watches says which superblocks.
    pub(super) fn read(watched: BTreeSet<u64>) -> Result<Mounts, io::Error> {
        let table = mountinfo::read()?;
        if table.len() as u64 >= MAX_MOUNTS_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Mounts::new(&mountinfo::parse(&table), watched))
    }

    fn new(table: &[Mount<'_>], watched: BTreeSet<u64>) -> Mounts {
        let mut mounts = Mounts {
            watched,
            ..Mounts::default()
        };
        for mount in table {
            if let (Some(directory), Some(name)) = (mount.path.parent(), mount.path.file_name()) {
                let names = &mut mounts.on.entry(mount.parent).or_default().0;
                let directories = names.entry(name.as_bytes().into()).or_default();
                directories.push(directory.to_owned());
            }
            let line = Line {
                parent: mount.parent,
                superblock: mount.device,
                path: mount.path.clone(),
            };
            mounts.by_id.insert(mount.id, line);
        }
        mounts
    }

    /// The devices (`st_dev`) whose files nobody watches any more.
    pub(super) fn set_gone(&mut self, gone: Vec<u64>) {
        self.gone = gone;
    }

    pub(crate) fn gone(&self) -> &[u64] {
        &self.gone
    }

    /// The table as it is now. `None`: what stands in both is where it was.
    pub(crate) fn moved_since(&self) -> Result<Option<Mounts>, io::Error> {
        let now = Mounts::read(self.watched.clone())?;
        let is_same = |(id, then): (&u64, &Line)| {
            let line = now.by_id.get(id);
            line.is_none_or(|now| now.parent == then.parent && now.path == then.path)
        };
        let stays = self.by_id.iter().all(is_same);
        Ok((!stays).then_some(now))
    }

    /// Whether paths of the table begin on this mount.
    pub(crate) fn begins_on(&self, mount: u64) -> bool {
        let line = self.by_id.get(&mount);
        line.is_some_and(|line| line.path == Path::new("/"))
    }

    /// Whether a name may lead to this mount's root: it is there and watched, and nothing is
    /// mounted over it.
    pub(crate) fn may_be_reached(&self, mount: u64) -> bool {
        let Some(line) = self.by_id.get(&mount) else {
            return false;
        };
        let (Some(directory), Some(name)) = (line.path.parent(), line.path.file_name()) else {
            return false;
        };
        let covered = self
            .on(mount)
            .is_some_and(|points| points.has(directory, name.as_bytes()));
        self.watched.contains(&line.superblock) && !covered
    }

    /// What is mounted on directories of this mount.
    pub(crate) fn on(&self, mount: u64) -> Option<&Points> {
        self.on.get(&mount)
    }
}

impl Points {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn has_name(&self, name: &[u8]) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.keys().map(|name| &**name)
    }

    fn has(&self, directory: &Path, name: &[u8]) -> bool {
        let directories = self.0.get(name);
        directories.is_some_and(|all| all.iter().any(|one| one == directory))
    }

    /// Those that are in the directory of this path.
    pub(crate) fn names_in(&self, directory: &Path) -> Vec<&[u8]> {
        let names = self.names();
        names.filter(|name| self.has(directory, name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
1 0 8:1 / / rw - ext4 a rw
2 1 8:2 / /mnt rw - ext4 b rw
3 2 8:3 / /mnt/mnt rw - ext4 c rw
4 3 8:4 / /mnt/mnt rw - ext4 d rw
5 1 0:9 / /a/b rw - fuse e rw
6 1 8:1 /x /mnt rw - ext4 a rw
";

    fn mounts() -> Mounts {
        let watched = (1..=4).map(|minor| rustix::fs::makedev(8, minor));
        Mounts::new(&mountinfo::parse(TABLE), watched.collect())
    }

    #[test]
    fn names_belong_to_the_mount_that_their_directory_is_of() {
        let mounts = mounts();
        let on = |mount| mounts.on(mount).unwrap();
        assert_eq!(on(1).names_in(Path::new("/")), [b"mnt"]);
        assert_eq!(on(1).names_in(Path::new("/a")), [b"b"]);
        assert_eq!(on(1).names_in(Path::new("/mnt")), [] as [&[u8]; 0]);
        assert_eq!(on(2).names_in(Path::new("/mnt")), [b"mnt"]);
        assert!(mounts.on(5).is_none());
        assert!(mounts.begins_on(1) && !mounts.begins_on(2) && !mounts.begins_on(7));
    }

    #[test]
    fn what_is_covered_or_unwatched_or_gone_is_not_reached() {
        let reached = [1, 2, 3, 4, 5, 6, 7].map(|mount| mounts().may_be_reached(mount));
        // The first is no name's; the third has the fourth over it.
        assert_eq!(reached, [false, true, false, true, false, true, false]);
    }
}
