//! Advisory locks (V5): each owner on a node has an open file description of its own here, so
//! that the head's kernel keeps all of them apart, and from its own processes'.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, FlockOperation, OFlags};
use rustix::io::Errno;
use wiglaf_linux::lock::{self, RecordKind};
use wiglaf_wire::view::{FileId, HandleId, Lock, LockKind, LockStyle, Reply};

use super::handles::{check_openable, is_written};
use super::{Export, LinkId, Outcome, descriptor};

/// Most descriptions of one node for record locks.
const MAX_RECORD_OWNERS: usize = 1 << 14;
/// The last byte of a lock that reaches to the end of the file.
const END: u64 = i64::MAX.cast_unsigned();

/// Record locks of one node.
#[derive(Debug, Default)]
pub(super) struct Locks {
    records: HashMap<(FileId, u64), Records>,
}

/// One owner's record locks of one file.
#[derive(Debug)]
struct Records {
    file: Rc<OwnedFd>,
    /// It is open for writing, and the table knows.
    counted: bool,
    /// By which the last lock was asked for. A process has given its locks up before its open
    /// file is closed; what is left then is the open file's own.
    handle: HandleId,
}

/// A lock that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) file: FileId,
    pub(super) handle: HandleId,
    pub(super) owner: u64,
    pub(super) style: LockStyle,
    pub(super) lock: Lock,
}

impl Locks {
    /// Gives up the locks that belong to an open file; returns the files that were open for
    /// writing for them.
    pub(super) fn close(&mut self, handle: HandleId) -> Vec<FileId> {
        let mut written = Vec::new();
        self.records.retain(|(file, _), records| {
            if records.handle == handle && records.counted {
                written.push(*file);
            }
            records.handle != handle
        });
        written
    }

    /// The files that are open for writing for locks.
    pub(super) fn files_written(self) -> Vec<FileId> {
        let counted = self.records.iter().filter(|(_, records)| records.counted);
        counted.map(|((file, _), _)| *file).collect()
    }
}

impl Export {
    pub(super) fn lock_or_wait(
        &mut self,
        link: LinkId,
        id: u64,
        wanted: Wanted,
        wait: bool,
    ) -> Result<Outcome, Errno> {
        let kind = self.table.kind(link, wanted.file)?;
        // A directory can be open only to be locked so.
        if (wanted.style, kind) != (LockStyle::Whole, (FileType::Directory, false)) {
            check_openable(kind)?;
        }
        match self.try_lock(link, &wanted) {
            Ok(()) => Ok(Outcome::Reply(self.locked(link, &wanted)?)),
            Err(Errno::AGAIN) if wait => {
                self.waiting.add(link, id, wanted)?;
                Ok(Outcome::Later)
            }
            Err(errno) => Err(errno),
        }
    }

    /// What is answered when a lock has been granted: the file as those who had it before have
    /// left it.
    pub(super) fn locked(&mut self, link: LinkId, wanted: &Wanted) -> Result<Reply, Errno> {
        self.drain();
        let path = self.path(link, wanted.file)?;
        Ok(Reply::Attributes(self.tell(link, wanted.file, &path)?))
    }

    /// Takes or gives up a lock at once, or fails with `EAGAIN`.
    pub(super) fn try_lock(&mut self, link: LinkId, wanted: &Wanted) -> Result<(), Errno> {
        match wanted.style {
            LockStyle::Record => self.try_record(link, wanted),
            LockStyle::Whole => self.try_whole(link, wanted),
        }
    }

    fn try_record(&mut self, link: LinkId, wanted: &Wanted) -> Result<(), Errno> {
        let record = record_of(wanted.lock)?;
        let key = (wanted.file, wanted.owner);
        if record.kind == RecordKind::Unlock {
            let Some(of_link) = self.links.get_mut(&link) else {
                return Ok(());
            };
            if let Some(records) = of_link.locks.records.get(&key) {
                lock::set_record(&records.file, record)?;
                self.released = true;
            }
            if (wanted.lock.start, wanted.lock.end) == (0, END) {
                self.unlock(link, wanted.file, wanted.owner);
            }
            return Ok(());
        }
        let file = self.records(link, wanted)?;
        lock::set_record(&file, record)?;
        // It may have been a write lock.
        self.released |= record.kind == RecordKind::Read;
        Ok(())
    }

    /// The description that has this owner's record locks of a file.
    fn records(&mut self, link: LinkId, wanted: &Wanted) -> Result<Rc<OwnedFd>, Errno> {
        let key = (wanted.file, wanted.owner);
        let of_link = self.links.get_mut(&link).ok_or(Errno::STALE)?;
        if let Some(records) = of_link.locks.records.get_mut(&key) {
            records.handle = wanted.handle;
            return Ok(Rc::clone(&records.file));
        }
        if of_link.locks.records.len() >= MAX_RECORD_OWNERS {
            return Err(Errno::NOLCK);
        }
        let path = self.path(link, wanted.file)?;
        let watched = self.table.is_watched(wanted.file);
        self.table
            .begin_writing(wanted.file, None, || watched && is_written(path.as_fd()));
        let opened = descriptor::reopen(&path, OFlags::RDWR);
        let counted = opened.is_ok();
        if !counted {
            self.end_writing(wanted.file, None);
        }
        let file = match opened {
            Ok(file) => Rc::new(file),
            Err(_) => self.other_description(link, wanted, &path)?,
        };
        let records = Records {
            file: Rc::clone(&file),
            counted,
            handle: wanted.handle,
        };
        if let Some(of_link) = self.links.get_mut(&link) {
            of_link.locks.records.insert(key, records);
        }
        Ok(file)
    }

    /// For a file that may not be opened for writing now: the node's own open file if that
    /// writes (it was allowed to then), or one that takes read locks only.
    fn other_description(
        &self,
        link: LinkId,
        wanted: &Wanted,
        path: &Rc<OwnedFd>,
    ) -> Result<Rc<OwnedFd>, Errno> {
        let own = self.handle(link, wanted.handle).ok();
        let own = own.filter(|own| own.number == wanted.file);
        if let Some(own) = own.filter(|own| own.access.write) {
            return Ok(Rc::clone(&own.file));
        }
        match (descriptor::reopen(path, OFlags::RDONLY), own) {
            (Ok(file), _) => Ok(Rc::new(file)),
            (Err(_), Some(own)) => Ok(Rc::clone(&own.file)),
            (Err(errno), None) => Err(errno),
        }
    }

    fn try_whole(&mut self, link: LinkId, wanted: &Wanted) -> Result<(), Errno> {
        let path = self.path(link, wanted.file)?;
        let of_link = self.links.get_mut(&link).ok_or(Errno::BADF)?;
        let handle = of_link.handles.get_mut(&wanted.handle);
        let handle = handle.filter(|handle| handle.number == wanted.file);
        let handle = handle.ok_or(Errno::BADF)?;
        let operation = match wanted.lock.kind {
            LockKind::Read => FlockOperation::NonBlockingLockShared,
            LockKind::Write => FlockOperation::NonBlockingLockExclusive,
            LockKind::Unlock => {
                if let Some(file) = handle.wholes.remove(&wanted.owner) {
                    rustix::fs::flock(&file, FlockOperation::Unlock)?;
                }
                self.released = true;
                return Ok(());
            }
        };
        let file = match handle.wholes.get(&wanted.owner) {
            Some(file) => Rc::clone(file),
            None => {
                let own = Rc::clone(&handle.file);
                let file = descriptor::reopen(&path, OFlags::RDONLY)
                    .or_else(|_| descriptor::reopen(&path, OFlags::WRONLY))
                    .map_or(own, Rc::new);
                if let Some(of_link) = self.links.get_mut(&link)
                    && let Some(handle) = of_link.handles.get_mut(&wanted.handle)
                {
                    handle.wholes.insert(wanted.owner, Rc::clone(&file));
                }
                file
            }
        };
        // To turn one kind into the other is to give it up first, even if the other can't be had.
        self.released = true;
        rustix::fs::flock(&file, operation)
    }

    pub(super) fn test_lock(
        &mut self,
        link: LinkId,
        file: FileId,
        handle: HandleId,
        owner: u64,
        lock: Lock,
    ) -> Result<Reply, Errno> {
        check_openable(self.table.kind(link, file)?)?;
        let record = record_of(lock)?;
        if record.kind == RecordKind::Unlock {
            return Err(Errno::INVAL);
        }
        let of_link = self.links.get(&link).ok_or(Errno::STALE)?;
        let description = match of_link.locks.records.get(&(file, owner)) {
            Some(records) => Rc::clone(&records.file),
            None => match self.handle(link, handle) {
                Ok(own) if own.number == file => Rc::clone(&own.file),
                _ => {
                    let path = self.path(link, file)?;
                    Rc::new(descriptor::reopen(&path, OFlags::RDONLY)?)
                }
            },
        };
        let found = lock::test_record(&description, record)?;
        Ok(Reply::Locked(found.map(|(found, pid)| Lock {
            kind: match found.kind {
                RecordKind::Read => LockKind::Read,
                RecordKind::Write => LockKind::Write,
                RecordKind::Unlock => LockKind::Unlock,
            },
            start: found.start,
            end: match found.length {
                0 => END,
                length => found.start + (length - 1),
            },
            pid,
        })))
    }

    /// Gives up all record locks that an owner has of a file.
    pub(super) fn unlock(&mut self, link: LinkId, file: FileId, owner: u64) {
        let Some(of_link) = self.links.get_mut(&link) else {
            return;
        };
        let Some(records) = of_link.locks.records.remove(&(file, owner)) else {
            return;
        };
        if records.counted {
            drop(records);
            self.end_writing(file, None);
        } else {
            // The description may be an open file's, which goes on.
            let all = lock::Record {
                kind: RecordKind::Unlock,
                start: 0,
                length: 0,
            };
            let _ = lock::set_record(&records.file, all);
        }
        self.released = true;
    }
}

fn record_of(lock: Lock) -> Result<lock::Record, Errno> {
    let length = match lock.end {
        END.. => 0,
        end => end.checked_sub(lock.start).ok_or(Errno::INVAL)? + 1,
    };
    Ok(lock::Record {
        kind: match lock.kind {
            LockKind::Read => RecordKind::Read,
            LockKind::Write => RecordKind::Write,
            LockKind::Unlock => RecordKind::Unlock,
        },
        start: lock.start,
        length,
    })
}
