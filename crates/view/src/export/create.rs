//! New regular files, open from the start.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use wiglaf_wire::id::TaskId;
use wiglaf_wire::view::{Attributes, Content, FileId, HandleId, Reply};

use super::handles::{Access, open_flags};
use super::maker::Owner;
use super::table::{Directory, Found};
use super::{Export, LinkId, descriptor};

/// How often a name may appear and vanish again while it is being created.
const MAX_TRIES: u32 = 8;

impl Export {
    pub(super) fn create(
        &mut self,
        link: LinkId,
        (who, task): (Owner, Option<TaskId>),
        (parent, name): (FileId, &[u8]),
        (mode, umask): (u32, u32),
        flags: u32,
        handle: HandleId,
    ) -> Result<Reply, Errno> {
        self.check_new(link, handle)?;
        let directory = self.directory_to_change(link, parent, name)?;
        let exclusive = OFlags::from_bits_retain(flags).contains(OFlags::EXCL);
        for _ in 0..MAX_TRIES {
            // What is there already is never opened by its name: it need not be a regular file.
            let made = self.maker.make(who, umask, || {
                let flags = open_flags(flags) | OFlags::CREATE | OFlags::EXCL | always();
                rustix::fs::openat(&directory.path, name, flags, descriptor::mode(mode))
                    .map_err(descriptor::without_room)
            });
            match made {
                Ok(made) => {
                    self.entry_changed(link, parent, name);
                    self.note_made(task, parent, name);
                    return self.made(link, &directory, Some(name), made, flags, handle);
                }
                Err(Errno::EXIST) if !exclusive => {}
                Err(errno) => return Err(errno),
            }
            match self.find(link, &directory, name) {
                Ok(found) => {
                    return self.open_found(link, who, &directory, name, &found, flags, handle);
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::STALE)
    }

    pub(super) fn temporary(
        &mut self,
        link: LinkId,
        who: Owner,
        parent: FileId,
        (mode, umask): (u32, u32),
        flags: u32,
        handle: HandleId,
    ) -> Result<Reply, Errno> {
        self.check_new(link, handle)?;
        let directory = self.table.directory(link, parent)?;
        if directory.opaque {
            return Err(Errno::OPNOTSUPP);
        }
        let kept = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let made = self.maker.make(who, umask, || {
            let flags = (open_flags(flags) - OFlags::TRUNC) | OFlags::TMPFILE | kept | always();
            rustix::fs::openat(&directory.path, c".", flags, descriptor::mode(mode))
                .map_err(descriptor::without_room)
        })?;
        self.made(link, &directory, None, made, flags, handle)
    }

    /// Tells a file that nobody else can have open yet.
    fn made(
        &mut self,
        link: LinkId,
        directory: &Directory,
        name: Option<&[u8]>,
        made: OwnedFd,
        flags: u32,
        handle: HandleId,
    ) -> Result<Reply, Errno> {
        let path = descriptor::reopen(&made, OFlags::PATH)?;
        let stat = descriptor::status(&made)?;
        let found = Found {
            directory,
            name,
            is_used: true,
        };
        let attributes = self.enter(link, path, &stat, &found)?;
        let access = Access::of(open_flags(flags));
        if access.write {
            self.table
                .begin_writing(attributes.file, Some(link), || false);
        }
        self.keep(link, handle, attributes.file, Rc::new(made), access);
        Ok(Reply::Opened {
            unkept: self.is_unkept(link, attributes.file),
            attributes,
            content: Some(Content(Vec::new())),
        })
    }

    /// Opens what was found in the place of a new file, and which is told once more by that.
    #[expect(clippy::too_many_arguments, reason = "the question's own")]
    fn open_found(
        &mut self,
        link: LinkId,
        who: Owner,
        directory: &Directory,
        name: &[u8],
        found: &Attributes,
        flags: u32,
        handle: HandleId,
    ) -> Result<Reply, Errno> {
        if let Some(belief) = self.belief(link, directory.file) {
            belief.tell_name(name);
        }
        let opened = self.open(link, who, found.file, flags, handle, true);
        if opened.is_err() {
            self.forget(link, found.file, 1);
        }
        match opened {
            // The node looks again, and opens what it finds there by itself.
            Err(Errno::LOOP | Errno::NXIO) => Err(Errno::STALE),
            opened => opened,
        }
    }
}

fn always() -> OFlags {
    OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK
}
