//! Open files.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use wiglaf_wire::view::{Attributes, Content, FileId, HandleId, MAX_SMALL_FILE_BYTES, Reply};

use super::maker::Owner;
use super::writers::Writing;
use super::{Asker, Export, LinkId, data, descriptor};
use crate::watch::is_being_written;

/// Most open files of one node.
const MAX_HANDLES: usize = 1 << 16;

/// One file that a node has open.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) number: FileId,
    pub(super) file: Rc<OwnedFd>,
    pub(super) access: Access,
    /// Descriptions with locks of the whole file, by their owner.
    pub(super) wholes: HashMap<u64, Rc<OwnedFd>>,
}

/// What an open file may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) append: bool,
}

impl Access {
    pub(super) fn of(flags: OFlags) -> Access {
        let mode = flags & OFlags::RWMODE;
        Access {
            read: mode == OFlags::RDONLY || mode == OFlags::RDWR,
            write: mode == OFlags::WRONLY || mode == OFlags::RDWR,
            append: flags.contains(OFlags::APPEND),
        }
    }
}

/// Those flags of a message that mean something on the head. Direct I/O is the node's own.
pub(super) fn open_flags(flags: u32) -> OFlags {
    let meant = OFlags::RWMODE
        | OFlags::APPEND
        | OFlags::TRUNC
        | OFlags::DSYNC
        | OFlags::SYNC
        | OFlags::NOATIME;
    OFlags::from_bits_retain(flags) & meant
}

/// Only regular files are opened: a device or a FIFO is the node's kernel's own matter, and
/// opening one here could wait, or act.
pub(super) fn check_openable((kind, opaque): (FileType, bool)) -> Result<(), Errno> {
    match kind {
        FileType::RegularFile if opaque => Err(Errno::ACCESS),
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NXIO),
    }
}

impl Export {
    pub(super) fn open(
        &mut self,
        link: LinkId,
        who: Owner,
        file: FileId,
        flags: u32,
        handle: HandleId,
        wants_content: bool,
    ) -> Result<Reply, Errno> {
        self.check_new(link, handle)?;
        check_openable(self.table.kind(link, file)?)?;
        let path = self.path(link, file)?;
        let flags = open_flags(flags);
        let access = Access::of(flags);
        if access.write {
            let watched = self.table.is_watched(file);
            self.table
                .begin_writing(file, Some(link), || watched && is_written(path.as_fd()));
        }
        let opened = match descriptor::reopen(&path, flags) {
            Ok(opened) => Rc::new(opened),
            Err(errno) => {
                if access.write {
                    self.table.end_writing(file, Some(link));
                }
                return Err(errno);
            }
        };
        if flags.contains(OFlags::TRUNC) {
            if self.maker.must_drop(who) {
                let stat = descriptor::status(&opened)?;
                self.maker.drop_privileges(&opened, &stat)?;
            }
            self.changed_by(file, true, Asker::KnowsAll(link));
        }
        let attributes = match self.tell(link, file, &opened) {
            Ok(attributes) => attributes,
            Err(errno) => {
                if access.write {
                    self.table.end_writing(file, Some(link));
                }
                return Err(errno);
            }
        };
        self.keep(link, handle, file, Rc::clone(&opened), access);
        let content = (wants_content && access.read)
            .then(|| small_content(&opened, &attributes))
            .flatten();
        Ok(Reply::Opened {
            unkept: self.is_unkept(link, &attributes, &opened),
            content,
            attributes,
        })
    }

    /// Whether somebody may change the content without anyone being told.
    pub(super) fn is_unkept(
        &mut self,
        link: LinkId,
        attributes: &Attributes,
        opened: &Rc<OwnedFd>,
    ) -> bool {
        match self.table.writing(link, attributes.file) {
            // Nobody is told anyway, and so the node keeps it for a moment only.
            _ if !attributes.watched => false,
            Writing::Others => true,
            Writing::Own => false,
            Writing::Unknown => is_being_written(opened.as_fd()),
        }
    }

    pub(super) fn check_new(&self, link: LinkId, handle: HandleId) -> Result<(), Errno> {
        let handles = self.links.get(&link).map(|link| &link.handles);
        let handles = handles.ok_or(Errno::BADF)?;
        if handles.contains_key(&handle) {
            return Err(Errno::INVAL);
        }
        if handles.len() >= MAX_HANDLES {
            return Err(Errno::NFILE);
        }
        Ok(())
    }

    /// The file is this handle's from now on. For one that writes, the table knows already.
    pub(super) fn keep(
        &mut self,
        link: LinkId,
        handle: HandleId,
        number: FileId,
        file: Rc<OwnedFd>,
        access: Access,
    ) {
        let opened = Handle {
            number,
            file,
            access,
            wholes: HashMap::new(),
        };
        if let Some(link) = self.links.get_mut(&link) {
            link.handles.insert(handle, opened);
            self.table.add_handle(number);
        }
    }

    pub(super) fn handle(&self, link: LinkId, handle: HandleId) -> Result<&Handle, Errno> {
        let link = self.links.get(&link).ok_or(Errno::BADF)?;
        link.handles.get(&handle).ok_or(Errno::BADF)
    }

    pub(super) fn close_handle(&mut self, link: LinkId, handle: HandleId) {
        let Some(of_link) = self.links.get_mut(&link) else {
            return;
        };
        for file in of_link.locks.close(handle) {
            self.table.end_writing(file, None);
        }
        if let Some(closed) = of_link.handles.remove(&handle) {
            self.end_handle(link, closed);
        }
        self.released = true;
    }

    /// What an open file that is no more leaves behind.
    pub(super) fn end_handle(&mut self, link: LinkId, handle: Handle) {
        if handle.access.write {
            self.table.end_writing(handle.number, Some(link));
        }
        let number = handle.number;
        drop(handle);
        self.table.end_handle(number);
    }
}

/// Whether somebody has a file open for writing that this process does not have so; yes, if it
/// can't be read and so not be told.
pub(super) fn is_written(path: BorrowedFd<'_>) -> bool {
    descriptor::reopen(path, OFlags::RDONLY).map_or(true, |file| is_being_written(file.as_fd()))
}

/// A small file's content, if it is what the attributes say.
fn small_content(file: &OwnedFd, attributes: &Attributes) -> Option<Content> {
    if attributes.size > MAX_SMALL_FILE_BYTES {
        return None;
    }
    let size = usize::try_from(attributes.size).ok()?;
    let content = data::read_at(file, 0, size + 1).ok()?;
    (content.len() == size).then_some(Content(content))
}
