//! Changing attributes.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;
use wiglaf_wire::view::{FileId, HandleId, Reply, SetAttributes, SetTime};

use super::{Asker, Export, LinkId, descriptor};

impl Export {
    pub(super) fn set_attributes(
        &mut self,
        link: LinkId,
        file: FileId,
        handle: Option<HandleId>,
        set: &SetAttributes,
    ) -> Result<Reply, Errno> {
        let path = self.path(link, file)?;
        let (kind, opaque) = self.table.kind(link, file)?;
        if opaque {
            return Err(Errno::ROFS);
        }
        if let Err(errno) = self.set_each(link, &path, kind, handle, set) {
            // Some of it may have been done.
            self.changed_by(file, set.size.is_some(), Asker::Nobody);
            return Err(errno);
        }
        self.changed_by(file, set.size.is_some(), Asker::KnowsAll(link));
        Ok(Reply::Attributes(self.tell(link, file, &path)?))
    }

    fn set_each(
        &mut self,
        link: LinkId,
        path: &Rc<OwnedFd>,
        kind: FileType,
        handle: Option<HandleId>,
        set: &SetAttributes,
    ) -> Result<(), Errno> {
        if let Some(size) = set.size {
            self.truncate(link, path, kind, handle, size)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            let owner = set.uid.map(Uid::from_raw);
            let group = set.gid.map(Gid::from_raw);
            rustix::fs::chownat(path, c"", owner, group, AtFlags::EMPTY_PATH)?;
        }
        if set.drop_privileges {
            let stat = descriptor::status(path)?;
            self.maker.drop_privileges(path, &stat)?;
        }
        if let Some(mode) = set.mode {
            if kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            rustix::fs::chmod(descriptor::magic(path), descriptor::mode(mode))?;
        }
        if set.accessed.is_some() || set.modified.is_some() {
            let times = Timestamps {
                last_access: timespec(set.accessed),
                last_modification: timespec(set.modified),
            };
            rustix::fs::utimensat(path, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    fn truncate(
        &self,
        link: LinkId,
        path: &Rc<OwnedFd>,
        kind: FileType,
        handle: Option<HandleId>,
        size: u64,
    ) -> Result<(), Errno> {
        match kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let opened = handle.and_then(|handle| self.handle(link, handle).ok());
        match opened {
            Some(opened) if opened.access.write => rustix::fs::ftruncate(&opened.file, size),
            _ => rustix::fs::ftruncate(descriptor::reopen(path, OFlags::WRONLY)?, size),
        }
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match time {
        None => special(UTIME_OMIT),
        Some(SetTime::Now) => special(UTIME_NOW),
        // The kernel refuses more than it may be; those two are more.
        Some(SetTime::At(tv_sec, nanoseconds)) => Timespec {
            tv_sec,
            tv_nsec: nanoseconds.min(MAX_NANOSECONDS).into(),
        },
    }
}

const MAX_NANOSECONDS: u32 = 999_999_999;
