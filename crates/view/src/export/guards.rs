//! Guards on the files that nodes have open for reading. Stores to memory make no event; but who
//! stores has to open the file for writing before, and of a guarded file every open is told. Then
//! it is looked whether somebody has it open for writing. So a store that was complete before a
//! launch is known before that launch's barrier (V1).
//!
//! As long as there is such a one, the file's content is kept nowhere and its attributes are
//! believed for a moment only. What a guard can't show: stores to a file that no node has open,
//! whose attributes may be known all the same; and, while a node itself has the file open for
//! writing or locks records of it, stores by those who came later. Both are seen when the memory
//! is unmapped. A file of which it can't be told who writes to it (its file system has no leases,
//! `/proc/sys/fs/leases-enable` is 0, or this process lacks `CAP_LEASE` for somebody else's file)
//! is never kept.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use wiglaf_linux::lease;
use wiglaf_wire::view::FileId;

use super::handles::is_written;
use super::table::Inode;
use super::writers::Writing;
use super::{Asker, Export, LinkId};
use crate::watch::FileKey;

/// The files that are open for reading only, and of which the watch says who else opens them.
#[derive(Default)]
pub(super) struct Guards {
    files: HashMap<FileKey, Guard>,
    /// Those that somebody may have opened for writing.
    doubted: HashSet<FileKey>,
}

/// One file.
struct Guard {
    /// That of the first handle, which stays open as long as there is one.
    file: Rc<OwnedFd>,
    inode: Inode,
    handles: u32,
    /// Nobody had it open for writing, and nobody has opened it since.
    sure: bool,
}

impl Guards {
    /// Somebody has opened a file.
    pub(super) fn doubt(&mut self, key: &FileKey) {
        if let Some(guard) = self.files.get_mut(key) {
            guard.sure = false;
            self.doubted.insert(key.clone());
        }
    }

    /// Somebody may have opened any file.
    pub(super) fn doubt_all(&mut self) {
        for (key, guard) in &mut self.files {
            guard.sure = false;
            self.doubted.insert(key.clone());
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }
}

impl Export {
    /// Guards a file for one more handle. `None`: it can't be.
    pub(super) fn guard(&mut self, number: FileId, file: &Rc<OwnedFd>) -> Option<FileKey> {
        let key = self.table.key(number)?.clone();
        if let Some(guard) = self.guards.files.get_mut(&key) {
            guard.handles += 1;
            return Some(key);
        }
        self.watch.as_ref()?.hear_opens(file.as_fd()).ok()?;
        let guard = Guard {
            file: Rc::clone(file),
            inode: self.table.inode(number)?,
            handles: 1,
            sure: false,
        };
        self.guards.files.insert(key.clone(), guard);
        Some(key)
    }

    /// A handle less; the guard goes with the last.
    pub(super) fn unguard(&mut self, key: &FileKey) {
        let Some(guard) = self.guards.files.get_mut(key) else {
            return;
        };
        guard.handles -= 1;
        if guard.handles > 0 {
            return;
        }
        if let Some(watch) = &self.watch {
            watch.ignore_opens(guard.file.as_fd());
        }
        self.guards.files.remove(key);
    }

    /// Whether the content of a file that was just opened may change without anyone being told.
    pub(super) fn is_unkept(&mut self, link: LinkId, number: FileId) -> bool {
        let Some(key) = self.table.key(number).cloned() else {
            // Nobody is told anyway, and so the node keeps it for a moment only.
            return false;
        };
        match self.table.writing(link, number) {
            Writing::Others => true,
            Writing::Own => false,
            Writing::Unknown => self.probe(&key) != Some(false),
        }
    }

    /// Whether somebody on the head who was seen to write to a file can do so still.
    pub(super) fn is_still_written(&mut self, link: LinkId, number: FileId) -> bool {
        if !self.table.is_written(number) {
            return false;
        }
        let path = self.path(link, number);
        let written = path.map_or(true, |path| is_written(path.as_fd()));
        if let Some(inode) = self.table.inode(number) {
            self.set_written(inode, written);
        }
        written
    }

    /// A link, or a lock, has a file open for writing no more. Others may have come meanwhile.
    pub(super) fn end_writing(&mut self, number: FileId, link: Option<LinkId>) {
        self.table.end_writing(number, link);
        if let Some(key) = self.table.key(number).cloned() {
            self.look_for_writer(&key);
        }
    }

    /// Looks who has opened the files of which there is a doubt.
    pub(super) fn look_for_writers(&mut self) {
        for key in std::mem::take(&mut self.guards.doubted) {
            self.look_for_writer(&key);
        }
    }

    fn look_for_writer(&mut self, key: &FileKey) {
        if self.probe(key) == Some(true)
            && let Some(inode) = self.guards.files.get(key).map(|guard| guard.inode)
        {
            self.inode_changed(inode, true, Asker::Nobody, None);
        }
    }

    /// Whether somebody on the head can write to a guarded file; `None`: it can't be told, or not
    /// while this process can.
    fn probe(&mut self, key: &FileKey) -> Option<bool> {
        let guard = self.guards.files.get_mut(key)?;
        if guard.sure {
            return Some(false);
        }
        let inode = guard.inode;
        let mut numbers = self.table.of_inode(inode).into_iter();
        if numbers.any(|number| self.table.is_written_here(number)) {
            return None;
        }
        let written = lease::is_open_for_writing(guard.file.as_fd()).ok()?;
        guard.sure = !written;
        self.set_written(inode, written);
        Some(written)
    }

    /// Of a file under all mounts that show it.
    fn set_written(&mut self, inode: Inode, written: bool) {
        for number in self.table.of_inode(inode) {
            self.table.set_written(number, written);
        }
    }
}
