//! Directories that the view never shows.

use std::path::PathBuf;

use rustix::fs::{AtFlags, Statx, StatxFlags};

use super::descriptor::device;

#[derive(Debug)]
pub(super) struct Hidden {
    found: Vec<(u64, u64)>,
    /// Paths that did not exist, or that this user could not reach, when last tried.
    missing: Vec<PathBuf>,
}

impl Hidden {
    pub(super) fn new(paths: Vec<PathBuf>) -> Hidden {
        let mut hidden = Hidden {
            found: Vec::new(),
            missing: paths,
        };
        hidden.find();
        hidden
    }

    fn find(&mut self) {
        let found = &mut self.found;
        self.missing.retain(|path| {
            let stat = rustix::fs::statx(
                rustix::fs::CWD,
                path,
                AtFlags::empty(),
                StatxFlags::BASIC_STATS,
            );
            if let Ok(stat) = &stat {
                found.push((device(stat), stat.stx_ino));
            }
            stat.is_err()
        });
    }

    /// Whether this file, found under `name`, is one of them.
    pub(super) fn hides(&mut self, stat: &Statx, name: &[u8]) -> bool {
        let ends_so = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|last| last.as_encoded_bytes() == name)
        };
        if self.missing.iter().any(ends_so) {
            self.find();
        }
        self.found.contains(&(device(stat), stat.stx_ino))
    }

    /// Whether a directory on `device` must not list the inode.
    pub(super) fn lists(&self, device: u64, ino: u64) -> bool {
        self.found.contains(&(device, ino))
    }
}
