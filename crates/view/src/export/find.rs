//! Files by their names.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;
use wiglaf_wire::view::{Attributes, Content, FileId, Reply, Space};

use super::table::{Directory, Found, Identity};
use super::{Export, LinkId, descriptor};

impl Export {
    pub(super) fn look_up(
        &mut self,
        link: LinkId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Reply, Errno> {
        let directory = self.directory(link, parent, name)?;
        let found = self.find(link, &directory, name);
        if matches!(found, Ok(_) | Err(Errno::NOENT))
            && let Some(belief) = self.belief(link, parent)
        {
            belief.tell_name(name);
        }
        match found {
            Ok(attributes) => Ok(Reply::Entry(Some(attributes))),
            Err(Errno::NOENT) => Ok(Reply::Entry(None)),
            Err(errno) => Err(errno),
        }
    }

    /// The directory of a name that a question has.
    pub(super) fn directory(
        &mut self,
        link: LinkId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Directory, Errno> {
        descriptor::check_name(name)?;
        self.table.directory(link, parent)
    }

    /// The same, where something is to be changed.
    pub(super) fn directory_to_change(
        &mut self,
        link: LinkId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Directory, Errno> {
        let directory = self.directory(link, parent, name)?;
        if directory.opaque {
            return Err(Errno::ROFS);
        }
        Ok(directory)
    }

    /// Finds what a name stands for and tells it.
    pub(super) fn find(
        &mut self,
        link: LinkId,
        directory: &Directory,
        name: &[u8],
    ) -> Result<Attributes, Errno> {
        if directory.opaque {
            return Err(Errno::NOENT);
        }
        let path = descriptor::name_in(&directory.path, name)?;
        let stat = descriptor::status(&path)?;
        if self.hidden.hides(&stat, name) {
            return Err(Errno::NOENT);
        }
        let found = Found {
            directory,
            name: Some(name),
            is_used: true,
        };
        self.enter(link, path, &stat, &found)
    }

    /// Tells a file that was found.
    pub(super) fn enter(
        &mut self,
        link: LinkId,
        path: OwnedFd,
        stat: &Statx,
        found: &Found<'_>,
    ) -> Result<Attributes, Errno> {
        let xattrs = descriptor::has_xattrs(&path);
        let watch = self.watch.as_mut();
        let file = self.table.enter(link, path, stat, found, watch)?;
        if let Some(name) = found.name {
            let to = (file, Identity::of(stat).mount);
            self.crossings.learn(&self.table, found.directory, name, to);
        }
        if let Some(belief) = self.belief(link, file) {
            belief.tell();
        }
        let watched = self.table.is_watched(file) && !self.is_still_written(link, file);
        Ok(descriptor::attributes(file, stat, xattrs, watched))
    }

    /// Tells the attributes of a known file.
    pub(super) fn tell(
        &mut self,
        link: LinkId,
        file: FileId,
        path: &impl AsFd,
    ) -> Result<Attributes, Errno> {
        let stat = descriptor::status(path)?;
        Ok(self.tell_status(link, file, path, &stat))
    }

    /// The same for attributes that were read just now.
    pub(super) fn tell_status(
        &mut self,
        link: LinkId,
        file: FileId,
        path: &impl AsFd,
        stat: &Statx,
    ) -> Attributes {
        let watched = self.learn_key(file, path) && !self.is_still_written(link, file);
        if let Some(belief) = self.belief(link, file) {
            belief.tell();
        }
        let xattrs = descriptor::has_xattrs(path);
        descriptor::attributes(file, stat, xattrs, watched)
    }

    /// Sees to it that changes of a file are heard; whether they are.
    pub(super) fn learn_key(&mut self, file: FileId, path: &impl AsFd) -> bool {
        let watch = self.watch.as_mut();
        watch.is_some_and(|watch| self.table.learn_key(file, path.as_fd(), watch))
    }

    pub(super) fn attributes(&mut self, link: LinkId, file: FileId) -> Result<Reply, Errno> {
        let path = self.path(link, file)?;
        Ok(Reply::Attributes(self.tell(link, file, &path)?))
    }

    pub(super) fn read_link(&mut self, link: LinkId, file: FileId) -> Result<Reply, Errno> {
        match self.table.kind(link, file)? {
            (FileType::Symlink, false) => {}
            (FileType::Symlink, true) => return Err(Errno::ACCESS),
            _ => return Err(Errno::INVAL),
        }
        let path = self.path(link, file)?;
        let text = rustix::fs::readlinkat(&path, c"", Vec::new())?;
        if let Some(belief) = self.belief(link, file) {
            belief.tell();
        }
        Ok(Reply::Data(Content(text.into_bytes())))
    }

    pub(super) fn space(&mut self, link: LinkId, file: FileId) -> Result<Reply, Errno> {
        let path = self.path(link, file)?;
        let system = rustix::fs::fstatfs(&path)?;
        let small = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Reply::Space(Space {
            block_size: small(system.f_bsize),
            fragment_size: small(system.f_frsize),
            blocks: system.f_blocks,
            free: system.f_bfree,
            available: system.f_bavail,
            files: system.f_files,
            free_files: system.f_ffree,
            name_length: small(system.f_namelen),
        }))
    }
}
