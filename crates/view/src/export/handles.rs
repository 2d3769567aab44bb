//! Open files.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use wiglaf_wire::view::{Attributes, Content, FileId, HandleId, MAX_SMALL_FILE_BYTES, Reply};

use super::maker::Owner;
use super::{Asker, Export, LinkId, data, descriptor};
use crate::watch::{FileKey, is_being_written};

/// Most open files of one node.
const MAX_HANDLES: usize = 1 << 16;
/// `O_DIRECTORY` of a message, which is not every architecture's.
const DIRECTORY: u32 = 0o200_000;

/// One file that a node has open.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) number: FileId,
    pub(super) file: Rc<OwnedFd>,
    pub(super) access: Access,
    /// It is one of those for which the file is guarded.
    guarded: Option<FileKey>,
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
        let kind = self.table.kind(link, file)?;
        let path = self.path(link, file)?;
        if flags & DIRECTORY != 0 {
            return self.open_directory(link, file, kind, flags, handle);
        }
        check_openable(kind)?;
        let flags = open_flags(flags);
        let access = Access::of(flags);
        let opened = self.open_regular(link, file, &path, flags)?;
        // Before anything of it is read, it is known whether that may be kept.
        self.learn_key(file, &opened);
        self.keep(link, handle, file, Rc::clone(&opened), access);
        let unkept = self.is_unkept(link, file);
        let told = self.begin_truncated(link, who, file, &opened, flags);
        let attributes = match told.and_then(|()| self.tell(link, file, &opened)) {
            Ok(attributes) => attributes,
            Err(errno) => {
                self.close_handle(link, handle);
                return Err(errno);
            }
        };
        let content = (wants_content && access.read)
            .then(|| small_content(&opened, &attributes))
            .flatten();
        Ok(Reply::Opened {
            attributes,
            content,
            unkept,
        })
    }

    /// Opens a regular file. For writing the table knows of it from then on.
    fn open_regular(
        &mut self,
        link: LinkId,
        file: FileId,
        path: &Rc<OwnedFd>,
        flags: OFlags,
    ) -> Result<Rc<OwnedFd>, Errno> {
        let writes = Access::of(flags).write;
        if writes {
            let watched = self.table.is_watched(file);
            self.table
                .begin_writing(file, Some(link), || watched && is_written(path.as_fd()));
        }
        let opened = descriptor::reopen(path, flags);
        if opened.is_err() && writes {
            self.end_writing(file, Some(link));
        }
        opened.map(Rc::new)
    }

    /// What else is due if opening a file has emptied it.
    fn begin_truncated(
        &mut self,
        link: LinkId,
        who: Owner,
        file: FileId,
        opened: &Rc<OwnedFd>,
        flags: OFlags,
    ) -> Result<(), Errno> {
        if !flags.contains(OFlags::TRUNC) {
            return Ok(());
        }
        self.changed_by(file, true, Asker::KnowsAll(link));
        if self.maker.must_drop(who) {
            let stat = descriptor::status(opened)?;
            self.maker.drop_privileges(opened, &stat)?;
        }
        Ok(())
    }

    /// A directory can be opened to be locked as a whole, and for nothing else.
    fn open_directory(
        &mut self,
        link: LinkId,
        file: FileId,
        kind: (FileType, bool),
        flags: u32,
        handle: HandleId,
    ) -> Result<Reply, Errno> {
        match kind {
            (FileType::Directory, false) => {}
            (FileType::Directory, true) => return Err(Errno::ACCESS),
            _ => return Err(Errno::NOTDIR),
        }
        if Access::of(open_flags(flags)).write {
            return Err(Errno::ISDIR);
        }
        let path = self.path(link, file)?;
        let opened = descriptor::reopen(&path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let attributes = self.tell(link, file, &opened)?;
        let nothing = Access {
            read: false,
            write: false,
            append: false,
        };
        self.keep(link, handle, file, Rc::new(opened), nothing);
        Ok(Reply::Opened {
            attributes,
            content: None,
            unkept: false,
        })
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
        let is_reader = access.read && !access.write;
        let guarded = is_reader.then(|| self.guard(number, &file)).flatten();
        if let Some(link) = self.links.get_mut(&link) {
            let opened = Handle {
                number,
                file,
                access,
                guarded,
                wholes: HashMap::new(),
            };
            link.handles.insert(handle, opened);
            if is_reader {
                link.readers.entry(number).or_insert(handle);
            }
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
        let closed = of_link.handles.remove(&handle);
        if let Some(closed) = &closed
            && of_link.readers.get(&closed.number) == Some(&handle)
        {
            of_link.readers.remove(&closed.number);
        }
        for file in of_link.locks.close(handle) {
            self.end_writing(file, None);
        }
        if let Some(closed) = closed {
            self.end_handle(link, closed);
            self.closed_given(link, handle);
        }
        self.released = true;
    }

    /// What an open file that is no more leaves behind.
    pub(super) fn end_handle(&mut self, link: LinkId, handle: Handle) {
        let (number, writes) = (handle.number, handle.access.write);
        if let Some(key) = &handle.guarded {
            self.unguard(key);
        }
        for whole in handle.wholes.values() {
            // Said, not left to the close: a child that is being started may have the description
            // until its exec. There is nobody to tell that it could not be unlocked.
            let _ = rustix::fs::flock(whole, rustix::fs::FlockOperation::Unlock);
        }
        drop(handle);
        if writes {
            self.end_writing(number, Some(link));
        }
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
