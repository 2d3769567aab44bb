//! Names that come, go and move.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, CWD, FileType, RenameFlags};
use rustix::io::Errno;
use wiglaf_wire::view::{FileId, NewFile, Reply};

use super::maker::Owner;
use super::reach::Place;
use super::table::{Directory, Identity, Inode};
use super::{Asker, Export, LinkId, descriptor};

impl Export {
    pub(super) fn make(
        &mut self,
        link: LinkId,
        who: Owner,
        (parent, name): (FileId, &[u8]),
        what: &NewFile,
        mode: u32,
        umask: u32,
    ) -> Result<Reply, Errno> {
        let directory = self.directory_to_change(link, parent, name)?;
        let path = directory.path.as_fd();
        let permissions = descriptor::mode(mode);
        self.maker.make(who, umask, || match what {
            NewFile::Directory => rustix::fs::mkdirat(path, name, permissions),
            NewFile::Link(text) => rustix::fs::symlinkat(text.as_slice(), path, name),
            NewFile::Special { device } => {
                let kind = FileType::from_raw_mode(mode);
                rustix::fs::mknodat(path, name, kind, permissions, *device)
            }
        })?;
        self.entry_changed(link, parent, name);
        let attributes = self.find(link, &directory, name)?;
        // The node knows that it is empty. What somebody put into it meanwhile is told after this.
        if matches!(what, NewFile::Directory)
            && let Some(belief) = self.table.belief(link, attributes.file)
        {
            belief.tell_listing(true);
        }
        Ok(Reply::Entry(Some(attributes)))
    }

    pub(super) fn link(
        &mut self,
        link: LinkId,
        file: FileId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Reply, Errno> {
        let directory = self.directory_to_change(link, parent, name)?;
        let path = self.path(link, file)?;
        // The other way to name a descriptor, AT_EMPTY_PATH, needs a capability.
        let from = descriptor::magic(&path);
        let follow = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, from, &directory.path, name, follow)?;
        self.entry_changed(link, parent, name);
        self.changed_by(file, false, Asker::KnowsAll(link));
        let attributes = self.find(link, &directory, name)?;
        Ok(Reply::Entry(Some(attributes)))
    }

    pub(super) fn remove(
        &mut self,
        link: LinkId,
        parent: FileId,
        name: &[u8],
        is_directory: bool,
    ) -> Result<Reply, Errno> {
        let directory = self.directory_to_change(link, parent, name)?;
        let child = self.child(&directory, name)?;
        let flags = if is_directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(&directory.path, name, flags)?;
        self.table.vacate(child, parent, name);
        self.note_gone(parent, name);
        self.entry_changed(link, parent, name);
        self.inode_changed(child, false, Asker::Nobody, None);
        Ok(Reply::Done)
    }

    pub(super) fn rename(
        &mut self,
        link: LinkId,
        (from_parent, from): (FileId, &[u8]),
        (to_parent, to): (FileId, &[u8]),
        flags: u32,
    ) -> Result<Reply, Errno> {
        let from_directory = self.directory_to_change(link, from_parent, from)?;
        let to_directory = self.directory_to_change(link, to_parent, to)?;
        let moved = self.child(&from_directory, from)?;
        let replaced = match self.child(&to_directory, to) {
            Ok(replaced) => Some(replaced),
            // A hidden one is there, and stays.
            Err(Errno::NOENT) if self.is_free(&to_directory, to) => None,
            Err(Errno::NOENT) => return Err(Errno::BUSY),
            Err(errno) => return Err(errno),
        };
        rustix::fs::renameat_with(
            &from_directory.path,
            from,
            &to_directory.path,
            to,
            RenameFlags::from_bits_retain(flags),
        )?;
        self.resettle(moved, (from_parent, from), (to_parent, to));
        self.note_renamed(
            (from_parent, from),
            (to_parent, to),
            replaced.is_some(),
            flags,
        );
        if let Some(replaced) = replaced.filter(|replaced| *replaced != moved) {
            if RenameFlags::from_bits_retain(flags).contains(RenameFlags::EXCHANGE) {
                self.resettle(replaced, (to_parent, to), (from_parent, from));
            } else {
                self.table.vacate(replaced, to_parent, to);
            }
        }
        self.entry_changed(link, from_parent, from);
        self.entry_changed(link, to_parent, to);
        for child in [Some(moved), replaced].into_iter().flatten() {
            self.inode_changed(child, false, Asker::Nobody, None);
        }
        Ok(Reply::Done)
    }

    /// What is about to lose this name. Those who know it still reach it afterwards.
    ///
    /// If the name means another file by the time that it is removed, whoever did that is in
    /// the watch's queue, and everybody hears of both files.
    fn child(&mut self, directory: &Directory, name: &[u8]) -> Result<Inode, Errno> {
        let stat = descriptor::status_in(directory.path.as_fd(), name)?;
        if self.hidden.hides(&stat, name) {
            return Err(Errno::NOENT);
        }
        let inode = Identity::of(&stat).inode;
        self.table.hold_all(inode);
        Ok(inode)
    }

    fn resettle(&mut self, inode: Inode, from: (FileId, &[u8]), to: (FileId, &[u8])) {
        let to = Place {
            directory: to.0,
            name: to.1.into(),
        };
        self.table.resettle(inode, from, Some(&to));
    }

    fn is_free(&self, directory: &Directory, name: &[u8]) -> bool {
        let found = descriptor::status_in(directory.path.as_fd(), name);
        matches!(found, Err(Errno::NOENT))
    }

    /// A link changed a name of a directory.
    pub(super) fn entry_changed(&mut self, link: LinkId, directory: FileId, name: &[u8]) {
        self.changed_by(directory, true, Asker::KnowsContent(link));
        self.name_changed(directory, name, Asker::KnowsContent(link));
    }
}
