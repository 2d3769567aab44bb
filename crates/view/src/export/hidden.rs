//! Paths that the view never shows, whatever is there.

use std::path::PathBuf;

use rustix::fs::{AtFlags, Statx, StatxFlags};

use super::descriptor::device;

#[derive(Debug)]
pub(super) struct Hidden {
    paths: Vec<HiddenPath>,
}

#[derive(Debug)]
struct HiddenPath {
    path: PathBuf,
    /// Device and inode number of what was there when last looked at; none if there was nothing,
    /// or this user could not reach it.
    found: Option<(u64, u64)>,
}

impl HiddenPath {
    fn look(&mut self) {
        let stat = rustix::fs::statx(
            rustix::fs::CWD,
            &self.path,
            AtFlags::empty(),
            StatxFlags::BASIC_STATS,
        );
        self.found = stat.ok().map(|stat| (device(&stat), stat.stx_ino));
    }

    fn ends_in(&self, name: &[u8]) -> bool {
        self.path
            .file_name()
            .is_some_and(|last| last.as_encoded_bytes() == name)
    }
}

impl Hidden {
    pub(super) fn new(paths: Vec<PathBuf>) -> Hidden {
        let mut paths: Vec<_> = paths
            .into_iter()
            .map(|path| HiddenPath { path, found: None })
            .collect();
        paths.iter_mut().for_each(HiddenPath::look);
        Hidden { paths }
    }

    /// Whether this file, found under `name`, is at one of the paths, by whatever way it was
    /// reached.
    pub(super) fn hides(&mut self, stat: &Statx, name: &[u8]) -> bool {
        // Another file may be there by now.
        let named = self.paths.iter_mut().filter(|path| path.ends_in(name));
        named.for_each(HiddenPath::look);
        self.has(device(stat), stat.stx_ino)
    }

    /// Whether `name` may be one of the paths, so that [`Hidden::hides`] has to be asked.
    pub(super) fn may_hide(&self, name: &[u8]) -> bool {
        self.paths.iter().any(|path| path.ends_in(name))
    }

    /// Whether a directory on `device` must not list the inode.
    pub(super) fn has(&self, device: u64, ino: u64) -> bool {
        self.paths
            .iter()
            .any(|path| path.found == Some((device, ino)))
    }
}
