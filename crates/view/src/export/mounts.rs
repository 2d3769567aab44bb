//! What becomes of beliefs when something is mounted, moved or unmounted on the head.
//!
//! Numbers of mounts, devices and even whole lines of the mount table come again, so it is not
//! asked what has changed: every name that may depend on mounts is compared with what is so. One
//! that led to another mount is looked up again; one in a directory that something is mounted in
//! is taken back. All other names, and files of file systems that were watched all the time, stay
//! as they were told.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType};
use wiglaf_wire::view::{Change, FileId};

use super::table::{Directory, Table};
use super::{Asker, Export, descriptor};
use crate::watch::{Event, Mounts};

/// How often the mount table may be another one after the names were compared with it. Only a
/// mount point that is renamed in another mount namespace does that unseen.
const MAX_LOOKS: usize = 3;
/// When there are so many names that lead to other mounts, those of unknown directories are
/// forgotten.
const MANY_CROSSINGS: usize = 1024;

/// The names that were told and led from one mount to another.
#[derive(Default)]
pub(super) struct Crossings {
    names: HashMap<(FileId, Box<[u8]>), Crossing>,
    /// How many there may be until it is looked which are needed.
    most: usize,
}

struct Crossing {
    /// What was found.
    file: FileId,
    mount: u64,
}

impl Crossings {
    /// A name was found to lead to this file.
    pub(super) fn learn(
        &mut self,
        table: &Table,
        directory: &Directory,
        name: &[u8],
        (file, mount): (FileId, u64),
    ) {
        if directory.mount == mount {
            return;
        }
        if self.names.len() > self.most.max(MANY_CROSSINGS) {
            self.names
                .retain(|(directory, _), _| table.files.contains_key(directory));
            self.most = 2 * self.names.len();
        }
        let crossing = Crossing { file, mount };
        self.names.insert((directory.file, name.into()), crossing);
    }

    pub(super) fn clear(&mut self) {
        self.names.clear();
    }
}

impl Export {
    /// Has a descriptor of no more files than so many without need, instead of as many as the
    /// process may have. A file system of which none is held can be unmounted.
    pub fn hold_at_most(&mut self, files: usize) {
        self.table.held.set_most(files);
    }

    pub(super) fn remounted(&mut self, mounts: &Mounts) {
        for file in self.table.unwatch(mounts.gone()) {
            self.doubt(file);
        }
        let root = self.table.files.get(&FileId::ROOT);
        if !root.is_some_and(|root| mounts.begins_on(root.identity.mount)) {
            return self.obey(&Event::Lost);
        }
        self.compare_names(mounts);
        let mut compared = mounts.moved_since();
        for _ in 1..MAX_LOOKS {
            let Ok(Some(now)) = compared else {
                break;
            };
            self.compare_names(&now);
            compared = now.moved_since();
        }
        if !matches!(compared, Ok(None)) {
            self.obey(&Event::Lost);
        }
    }

    fn compare_names(&mut self, mounts: &Mounts) {
        let mut broken = Vec::new();
        let mut crossings = std::mem::take(&mut self.crossings);
        crossings.names.retain(|(directory, name), crossing| {
            let leads = self.still_leads(*directory, name, crossing, mounts);
            if !leads {
                broken.push((*directory, name.clone()));
            }
            leads
        });
        for directory in self.directories_mounted_in(mounts) {
            let Ok(path) = self.table.walk_to(directory) else {
                self.doubt(directory);
                continue;
            };
            let on = |file| mounts.on(self.table.files.get(&file)?.identity.mount);
            if let (Some(path), Some(points)) = (path_of(&path), on(directory)) {
                let names = points.names_in(&path).into_iter();
                let names = names.map(|name| (directory, Box::from(name)));
                broken.extend(names.filter(|name| !crossings.names.contains_key(name)));
            }
        }
        self.crossings = crossings;
        for (directory, name) in broken {
            self.name_of_file_changed(directory, &name, Asker::Nobody);
        }
    }

    /// Whether a name is known to lead to the file that it led to. Only what is watched is looked
    /// at: it does not wait for another machine or a user's program.
    fn still_leads(
        &mut self,
        directory: FileId,
        name: &[u8],
        crossing: &Crossing,
        mounts: &Mounts,
    ) -> bool {
        let is_watched = self.table.is_watched(directory) && self.table.is_watched(crossing.file);
        if !is_watched || !mounts.may_be_reached(crossing.mount) {
            return false;
        }
        let found = self
            .table
            .walk_to(directory)
            .and_then(|directory| descriptor::name_in(&directory, name))
            .and_then(descriptor::status);
        let Ok(stat) = found else {
            return false;
        };
        let file = self.table.files.get(&crossing.file);
        file.is_some_and(|file| file.looks_like(&stat)) && !self.hidden.hides(&stat, name)
    }

    /// Watched directories of mounts that something is mounted on, under a name of which some
    /// node believes something.
    fn directories_mounted_in(&mut self, mounts: &Mounts) -> Vec<FileId> {
        let files = self.table.files.iter();
        let found = files.filter(|(_, file)| {
            file.kind == FileType::Directory
                && file.is_watched()
                && mounts
                    .on(file.identity.mount)
                    .is_some_and(|points| file.beliefs().any(|belief| belief.is_about_any(points)))
        });
        found.map(|(number, _)| *number).collect()
    }

    /// Nothing is sure any more of a file and its names.
    fn doubt(&mut self, file: FileId) {
        self.readers.drop(file);
        for (link, telling) in self.table.tellings(file) {
            if std::mem::take(&mut telling.belief).is_any() {
                self.news.push((*link, Change::Doubtful { file }));
            }
        }
    }
}

/// Where a directory is, in the words of the mount table.
fn path_of(directory: &OwnedFd) -> Option<PathBuf> {
    let path = rustix::fs::readlinkat(CWD, descriptor::magic(directory.as_fd()), Vec::new());
    Some(std::ffi::OsString::from_vec(path.ok()?.into_bytes()).into())
}
