//! `fanotify(7)` groups that watch whole file systems and name files by their handles.
//!
//! The part that reads events is a parser of bytes, without `unsafe`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::arch::{checked, int};
use rustix::io::Errno;

/// What [`Group::mark_file_system`] asks for: everything that changes what a file is or holds.
/// A store into a shared mapping shows only as [`CLOSE_WRITE`], when the last mapping is gone.
const WATCHED: u64 =
    MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | libc::FAN_ONDIR;

/// The content changed, or the modification time alone.
pub const MODIFY: u64 = libc::FAN_MODIFY;
/// Attributes changed.
pub const ATTRIB: u64 = libc::FAN_ATTRIB;
/// What was open for writing was closed.
pub const CLOSE_WRITE: u64 = libc::FAN_CLOSE_WRITE;
/// A name went away by a rename.
pub const MOVED_FROM: u64 = libc::FAN_MOVED_FROM;
/// A name came by a rename.
pub const MOVED_TO: u64 = libc::FAN_MOVED_TO;
/// A name was made.
pub const CREATE: u64 = libc::FAN_CREATE;
/// A name was removed.
pub const DELETE: u64 = libc::FAN_DELETE;
/// It was opened, in whatever way.
pub const OPEN: u64 = libc::FAN_OPEN;
/// Events were lost.
pub const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;

/// How many unread events the kernel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// As many as there are.
    Unlimited,
    /// As `/proc/sys/fs/fanotify/max_queued_events` says; then [`OVERFLOW`].
    Bounded,
}

/// A group of marks with its queue of events. Reading never waits.
#[derive(Debug)]
pub struct Group(OwnedFd);

impl Group {
    /// A group without marks.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` in the first user namespace, `ENOSYS`, `EMFILE`.
    pub fn new(queue: Queue) -> Result<Group, Errno> {
        let mut flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_MARKS
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DIR_FID
            | libc::FAN_REPORT_NAME
            | libc::FAN_REPORT_TARGET_FID;
        if queue == Queue::Unlimited {
            flags |= libc::FAN_UNLIMITED_QUEUE;
        }
        // SAFETY: no pointer is passed.
        let fd = unsafe { checked(libc::SYS_fanotify_init, [flags as usize, 0]) }?;
        let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
        // SAFETY: the kernel has just made it, for nobody else.
        Ok(Group(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches all of the file system that `file`, which may be open with `O_PATH` only, is on.
    /// Doing so again changes nothing.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `ENODEV`, `EXDEV`: its files have no handles, or it has no number of its own
    /// (as a btrfs subvolume). `EPERM` without the capability.
    pub fn mark_file_system(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        self.mark(file, flags, WATCHED)
    }

    /// Watches one file for being opened, too ([`OPEN`]). An open that has returned has made its
    /// event. A process without capabilities can do so for what it may read.
    ///
    /// # Errors
    /// As for the file system; `EACCES`.
    pub fn mark_opens(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.mark(file, libc::FAN_MARK_ADD, OPEN)
    }

    /// No longer.
    ///
    /// # Errors
    /// `ENOENT`: it was not watched so. `EACCES`: this process may not read it any more; then the
    /// mark stays.
    pub fn unmark_opens(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.mark(file, libc::FAN_MARK_REMOVE, OPEN)
    }

    /// The numbers (`st_dev`, but for btrfs) of the file systems that are watched. A mark goes
    /// with its file system, before another one can have the number.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn marked_file_systems(&self) -> Result<Vec<u64>, std::io::Error> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        Ok(text.lines().filter_map(marked_file_system).collect())
    }

    fn mark(&self, file: BorrowedFd<'_>, flags: u32, mask: u64) -> Result<(), Errno> {
        // A descriptor of `O_PATH` itself is not taken.
        let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
        let args = [
            int(self.0.as_raw_fd()),
            flags as usize,
            usize::try_from(mask).map_err(|_| Errno::INVAL)?,
            int(libc::AT_FDCWD),
            path.as_ptr().expose_provenance(),
        ];
        // SAFETY: a C string that the kernel reads.
        unsafe { checked(libc::SYS_fanotify_mark, args) }.map(|_| ())
    }

    /// Whole events, as many as there are and as fit, for [`events`].
    ///
    /// # Errors
    /// `EAGAIN`: there are none. `EINVAL`: the buffer is too small for one; 4096 bytes never are.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let length = rustix::io::read(&self.0, &mut *buffer)?;
        Ok(&buffer[..length])
    }
}

/// `fanotify sdev:fe00001 mflags:0 mask:…`: the number is the kernel's own form. Marks of files
/// and mounts begin otherwise.
fn marked_file_system(line: &str) -> Option<u64> {
    const MINOR_BITS: u32 = 20;
    let device = line.strip_prefix("fanotify sdev:")?.split(' ').next()?;
    let device = u32::from_str_radix(device, 16).ok()?;
    let (major, minor) = (device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1));
    Some(rustix::fs::makedev(major, minor))
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Group {
    /// A group that another process made by [`Group::new`].
    fn from(fd: OwnedFd) -> Group {
        Group(fd)
    }
}

impl From<Group> for OwnedFd {
    fn from(group: Group) -> OwnedFd {
        group.0
    }
}

/// Bytes that are no events of a group as [`Group::new`] makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's events are not understood")]
pub struct MalformedEvent;

/// The events in what was read. After an error there are no more.
#[must_use]
pub fn events(bytes: &[u8]) -> Events<'_> {
    Events { rest: bytes }
}

/// See [`events`].
#[derive(Clone, Debug)]
pub struct Events<'a> {
    rest: &'a [u8],
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What happened: [`MODIFY`] and the others. Several things may stand in one event.
    pub mask: u64,
    /// Which process did it, by its number in the reader's PID namespace; 0 is one outside.
    pub pid: i32,
    records: &'a [u8],
}

/// What a [`Record`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The file that something happened to.
    File,
    /// The directory that it is in, or that its name was in.
    Directory,
}

/// A file that an event names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Which of the event's.
    pub kind: RecordKind,
    /// `f_fsid` of its file system.
    pub fsid: [u8; 8],
    /// [`FileHandle::kind`](crate::handle::FileHandle::kind).
    pub handle_kind: i32,
    /// [`FileHandle::bytes`](crate::handle::FileHandle::bytes).
    pub handle: &'a [u8],
    /// A name in it, for a directory; `.` is itself.
    pub name: Option<&'a [u8]>,
}

const METADATA_BYTES: usize = 24;
const VERSION: u8 = 3;
/// Type, a zero and the length.
const RECORD_HEADER_BYTES: usize = 4;
const FSID_BYTES: usize = 8;
/// Length and type of a handle.
const HANDLE_HEADER_BYTES: usize = 8;
const TYPE_FID: u8 = 1;
const TYPE_DFID_NAME: u8 = 2;
const TYPE_DFID: u8 = 3;
/// `FILEID_INVALID`: the file system could not say.
const HANDLE_INVALID: i32 = 0xff;

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, MalformedEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let event = take_event(&mut self.rest);
        if event.is_err() {
            self.rest = &[];
        }
        Some(event)
    }
}

fn take_event<'a>(rest: &mut &'a [u8]) -> Result<Event<'a>, MalformedEvent> {
    let length = usize::try_from(u32_at(rest, 0)?).map_err(|_| MalformedEvent)?;
    let version = *rest.get(4).ok_or(MalformedEvent)?;
    let metadata = usize::from(u16::from_ne_bytes(array_at(rest, 6)?));
    if version != VERSION || metadata < METADATA_BYTES || length < metadata {
        return Err(MalformedEvent);
    }
    let (event, after) = rest.split_at_checked(length).ok_or(MalformedEvent)?;
    *rest = after;
    Ok(Event {
        mask: u64::from_ne_bytes(array_at(event, 8)?),
        pid: i32::from_ne_bytes(array_at(event, 20)?),
        records: &event[metadata..],
    })
}

impl<'a> Event<'a> {
    /// The files that it names. After an error there are no more.
    #[must_use]
    pub fn records(&self) -> Records<'a> {
        Records { rest: self.records }
    }
}

/// See [`Event::records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, MalformedEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            match take_record(&mut self.rest) {
                Ok(Some(record)) => return Some(Ok(record)),
                // Of a kind that was not asked for.
                Ok(None) => {}
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

fn take_record<'a>(rest: &mut &'a [u8]) -> Result<Option<Record<'a>>, MalformedEvent> {
    let kind = *rest.first().ok_or(MalformedEvent)?;
    let length = usize::from(u16::from_ne_bytes(array_at(rest, 2)?));
    if length < RECORD_HEADER_BYTES {
        return Err(MalformedEvent);
    }
    let (record, after) = rest.split_at_checked(length).ok_or(MalformedEvent)?;
    *rest = after;
    let (kind, named) = match kind {
        TYPE_FID => (RecordKind::File, false),
        TYPE_DFID_NAME => (RecordKind::Directory, true),
        TYPE_DFID => (RecordKind::Directory, false),
        _ => return Ok(None),
    };
    let body = &record[RECORD_HEADER_BYTES..];
    let fsid = array_at(body, 0)?;
    let bytes = usize::try_from(u32_at(body, FSID_BYTES)?).map_err(|_| MalformedEvent)?;
    let handle_kind = i32::from_ne_bytes(array_at(body, FSID_BYTES + 4)?);
    let (handle, tail) = body[FSID_BYTES + HANDLE_HEADER_BYTES..]
        .split_at_checked(bytes)
        .ok_or(MalformedEvent)?;
    if handle_kind == HANDLE_INVALID || handle.is_empty() {
        return Err(MalformedEvent);
    }
    let name = if named {
        let end = tail.iter().position(|byte| *byte == 0);
        Some(&tail[..end.ok_or(MalformedEvent)?])
    } else {
        None
    };
    Ok(Some(Record {
        kind,
        fsid,
        handle_kind,
        handle,
        name,
    }))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, MalformedEvent> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], MalformedEvent> {
    let slice = bytes.get(at..at + N).ok_or(MalformedEvent)?;
    slice.try_into().map_err(|_| MalformedEvent)
}

#[cfg(test)]
mod tests;
