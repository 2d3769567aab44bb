//! What changes on the head by other hands than ours: a `fanotify(7)` group that the keeper made
//! with root's rights, read by a deputy with its user's.
//!
//! Reading until there is nothing left is exact: a change that was complete before is among the
//! events. What this process does itself is not told, since who does it knows.

mod mounts;

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use wiglaf_linux::fanotify::{self, Group, MalformedEvent, Record, RecordKind};
use wiglaf_linux::handle::{self, FileHandle};
use wiglaf_linux::lease;
use wiglaf_linux::mountinfo::MOUNTS;
use wiglaf_wire::marks::{FileSystem, Look, MAX_PACKET_BYTES, Marked};

pub use self::mounts::Mounts;
pub(crate) use self::mounts::Points;

/// Room for the events of one read.
const READ_BYTES: usize = 64 << 10;
/// A read that leaves as much room as this has left no event behind: none is as long.
const EVENT_ROOM: usize = 4 << 10;
/// Most reads without a pause; then everything may have changed, and has, nearly.
const MAX_READS: usize = 4096;

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What the keeper gives a deputy to watch with.
#[derive(Debug)]
pub struct Marks {
    /// The group, with a mark on each file system that can be watched.
    pub group: OwnedFd,
    /// The mount table, opened before the marks were made. A change of it wakes `poll(2)`.
    pub mounts: OwnedFd,
    /// To the keeper, which is asked to look at the mount table again; a packet socket.
    pub keeper: OwnedFd,
    /// What is marked.
    pub file_systems: Vec<FileSystem>,
}

/// Sees changes of the head's files.
#[derive(Debug)]
pub struct Watch {
    group: Group,
    mounts: OwnedFd,
    keeper: OwnedFd,
    /// Ready when one of the others is.
    readiness: OwnedFd,
    /// The mount table once more, for `readiness`: each description tells of a change once.
    _mounts_again: OwnedFd,
    /// By `st_dev`: each has had its mark since it is here.
    file_systems: HashMap<u64, FileSystem>,
    /// The number of the last [`Look`], and of the last one that was answered.
    asked: u64,
    answered: u64,
    has_to_ask: bool,
    /// The mount table has changed, and nobody was told yet.
    is_remounted: bool,
    own_pid: i32,
    buffer: Vec<u8>,
}

/// A file, as events name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(Box<[u8]>);

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A file's attributes, and with `content` what it holds: bytes, or a directory's names.
    File {
        /// The file.
        key: FileKey,
        /// Whether the content may have changed.
        content: bool,
    },
    /// Somebody has opened a file, to read or to write it.
    Opened {
        /// The file.
        key: FileKey,
    },
    /// What a name of a directory is.
    Name {
        /// The directory.
        directory: FileKey,
        /// The name.
        name: Vec<u8>,
    },
    /// Something was mounted, moved or unmounted: names may lead elsewhere, and some file systems
    /// may have gone.
    Remounted(Mounts),
    /// Anything may have changed: events were lost.
    Lost,
}

impl Watch {
    /// Reads a group.
    ///
    /// # Errors
    /// Out of descriptors; no `/proc`.
    pub fn new(marks: Marks) -> Result<Watch, Errno> {
        let Marks {
            group,
            mounts,
            keeper,
            file_systems,
        } = marks;
        let again = rustix::fs::open(MOUNTS, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let readiness = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, flags| {
            epoll::add(&readiness, fd, epoll::EventData::new_u64(0), flags)
        };
        add(group.as_fd(), epoll::EventFlags::IN)?;
        add(keeper.as_fd(), epoll::EventFlags::IN)?;
        add(again.as_fd(), epoll::EventFlags::PRI)?;
        Ok(Watch {
            group: group.into(),
            mounts,
            keeper,
            readiness,
            _mounts_again: again,
            file_systems: by_device(&file_systems),
            asked: 0,
            answered: 0,
            has_to_ask: false,
            is_remounted: false,
            own_pid: rustix::process::getpid().as_raw_nonzero().get(),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Readable when [`Watch::drain`] has something to tell.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }

    /// Tells from now on when somebody else opens this file.
    pub(crate) fn hear_opens(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.group.mark_opens(file)
    }

    /// Does so no more.
    pub(crate) fn ignore_opens(&self, file: BorrowedFd<'_>) {
        // A mark that stays says what nobody asks for.
        let _ = self.group.unmark_opens(file);
    }

    /// Tells everything that was complete before the call and has not been told.
    ///
    /// Mostly there is nothing. One `poll(2)` says so of the events and of the mount table, as
    /// exactly as reading would: the kernel queues an event before the call that made it returns,
    /// and poll looks at the queue itself.
    pub fn drain(&mut self, each: &mut dyn FnMut(Event)) {
        let has_events = self.look();
        let remounted = std::mem::take(&mut self.is_remounted).then(|| self.look_at_mounts());
        self.hear_keeper();
        let mut lost = has_events && self.drain_group(each);
        match remounted {
            Some(Ok(mounts)) => each(Event::Remounted(mounts)),
            Some(Err(_)) => lost = true,
            None => {}
        }
        if lost {
            each(Event::Lost);
        }
    }

    /// As [`Watch::drain`], for the events alone and without asking whether there are any: when
    /// this process has just made some itself. Nothing may be answered on the strength of it, since
    /// the mount table is not looked at.
    pub fn take_events(&mut self, each: &mut dyn FnMut(Event)) {
        if self.drain_group(each) {
            each(Event::Lost);
        }
    }

    /// What events will call an open file, which may be open with `O_PATH` only. `None`: nobody
    /// will say when it changes.
    pub fn key(&mut self, file: BorrowedFd<'_>) -> Option<FileKey> {
        let device = rustix::fs::fstat(file).ok()?.st_dev;
        let fsid = self.file_systems.get(&device)?.fsid;
        let handle = handle::handle_of(file).ok()?;
        self.is_sure().then(|| FileKey::of_handle(fsid, &handle))
    }

    /// What events will call the file that a name in a directory is; a symbolic link itself.
    pub fn key_at(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Option<FileKey> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let device = rustix::fs::statat(directory, name, flags).ok()?.st_dev;
        let fsid = self.file_systems.get(&device)?.fsid;
        let handle = handle::handle_at(directory, name).ok()?;
        self.is_sure().then(|| FileKey::of_handle(fsid, &handle))
    }

    /// Whether devices are those that had their marks when it was looked last: another one can
    /// have the number of one that is gone only when it has been mounted. Asked after a file was
    /// looked at, so that what was seen of it is good.
    fn is_sure(&mut self) -> bool {
        self.notice_mounts();
        !self.is_remounted
    }

    /// Notices mounts, and returns whether there may be events.
    fn look(&mut self) -> bool {
        let mut fds = [
            PollFd::new(&self.mounts, PollFlags::PRI),
            PollFd::from_borrowed_fd(self.group.as_fd(), PollFlags::IN),
        ];
        let looked = poll(&mut fds, Some(&AT_ONCE));
        let is_quiet = |at: usize| looked.is_ok() && fds[at].revents().is_empty();
        self.is_remounted |= !is_quiet(0);
        !is_quiet(1)
    }

    fn notice_mounts(&mut self) {
        let mut fds = [PollFd::new(&self.mounts, PollFlags::PRI)];
        self.is_remounted |= !matches!(poll(&mut fds, Some(&AT_ONCE)), Ok(0));
    }

    /// What is mounted now. A file system that has kept its mark has been watched all the time:
    /// the keeper makes none for a number that is known here, and a mark goes with its file
    /// system.
    fn look_at_mounts(&mut self) -> std::io::Result<Mounts> {
        self.asked += 1;
        let marked = self.group.marked_file_systems().unwrap_or_default();
        let marked: BTreeSet<u64> = marked.into_iter().collect();
        let mut gone = Vec::new();
        self.file_systems.retain(|device, one| {
            let stays = marked.contains(&one.superblock);
            if !stays {
                gone.push(*device);
            }
            stays
        });
        self.ask_keeper();
        let mut mounts = Mounts::read(self.superblocks().collect())?;
        mounts.set_gone(gone);
        Ok(mounts)
    }

    fn superblocks(&self) -> impl Iterator<Item = u64> {
        self.file_systems.values().map(|one| one.superblock)
    }

    fn ask_keeper(&mut self) {
        let look = Look {
            number: self.asked,
            watched: self.superblocks().collect(),
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = postcard::to_allocvec(&look)
            .is_ok_and(|bytes| rustix::net::send(&self.keeper, &bytes, flags).is_ok());
        // A keeper that is busy is asked again. Without one nothing new is watched any more, and
        // the deputy will hear of that.
        self.has_to_ask = !sent;
    }

    fn hear_keeper(&mut self) {
        if self.asked == self.answered {
            return;
        }
        if self.has_to_ask {
            self.ask_keeper();
        }
        let mut packet = vec![0; MAX_PACKET_BYTES];
        while let Ok((length @ 1.., _)) =
            rustix::net::recv(&self.keeper, &mut packet[..], RecvFlags::DONTWAIT)
        {
            if let Ok(marked) = postcard::from_bytes::<Marked>(&packet[..length])
                && marked.number == self.asked
            {
                self.file_systems.extend(by_device(&marked.file_systems));
                self.answered = self.asked;
            }
        }
    }

    /// Returns whether events were lost.
    fn drain_group(&mut self, each: &mut dyn FnMut(Event)) -> bool {
        let mut lost = false;
        for _ in 0..MAX_READS {
            let bytes = match self.group.read(&mut self.buffer) {
                Ok([]) | Err(Errno::AGAIN) => return lost,
                Ok(bytes) => bytes,
                Err(Errno::INTR) => continue,
                Err(_) => return true,
            };
            // The kernel stops before its queue is empty only where the next does not fit.
            let is_all = bytes.len() + EVENT_ROOM <= READ_BYTES;
            for event in fanotify::events(bytes) {
                lost |= match event {
                    Ok(event) if event.mask & fanotify::OVERFLOW != 0 => true,
                    Ok(event) if event.pid == self.own_pid => false,
                    Ok(event) => tell(&event, each).is_err(),
                    Err(MalformedEvent) => true,
                };
            }
            if is_all {
                return lost;
            }
        }
        true
    }
}

impl FileKey {
    fn of_handle(fsid: [u8; 8], handle: &FileHandle) -> FileKey {
        FileKey::new(fsid, handle.kind(), handle.bytes())
    }

    fn new(fsid: [u8; 8], kind: i32, handle: &[u8]) -> FileKey {
        let mut bytes = Vec::with_capacity(12 + handle.len());
        bytes.extend_from_slice(&fsid);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(handle);
        FileKey(bytes.into_boxed_slice())
    }
}

impl From<Record<'_>> for FileKey {
    fn from(record: Record<'_>) -> FileKey {
        FileKey::new(record.fsid, record.handle_kind, record.handle)
    }
}

fn by_device(file_systems: &[FileSystem]) -> HashMap<u64, FileSystem> {
    let pairs = file_systems.iter().map(|one| (one.device, *one));
    pairs.collect()
}

const CONTENT: u64 = fanotify::MODIFY | fanotify::CLOSE_WRITE;
const REMOVAL: u64 = fanotify::DELETE | fanotify::MOVED_FROM | fanotify::MOVED_TO;
const NAMES: u64 = fanotify::CREATE | REMOVAL;

/// Says in our words what happened. What names no file can't be said.
fn tell(event: &fanotify::Event<'_>, each: &mut dyn FnMut(Event)) -> Result<(), MalformedEvent> {
    let (mut file, mut directory) = (None, None);
    for record in event.records() {
        let record = record?;
        match record.kind {
            RecordKind::File => file = Some(record),
            RecordKind::Directory => directory = Some(record),
        }
    }
    // What happens to a directory itself comes with the name `.` or none.
    let itself = directory.filter(|record| matches!(record.name, None | Some(b".")));
    if event.mask & NAMES != 0 {
        let directory = directory.ok_or(MalformedEvent)?;
        let name = directory.name.ok_or(MalformedEvent)?.to_vec();
        let key = FileKey::from(directory);
        each(Event::File {
            key: key.clone(),
            content: true,
        });
        each(Event::Name {
            directory: key,
            name,
        });
    }
    if event.mask & fanotify::OPEN != 0 {
        let key = FileKey::from(file.ok_or(MalformedEvent)?);
        each(Event::Opened { key });
    }
    let content = event.mask & CONTENT != 0;
    if content || event.mask & (fanotify::ATTRIB | REMOVAL) != 0 {
        let key = FileKey::from(file.or(itself).ok_or(MalformedEvent)?);
        each(Event::File { key, content });
    }
    Ok(())
}

/// Whether anybody, this process too, has a file open for writing, or still mapped after that:
/// then it may change without an event. `file` is open for reading. Yes, if it can't be told.
#[must_use]
pub fn is_being_written(file: BorrowedFd<'_>) -> bool {
    lease::is_open_for_writing(file).unwrap_or(true)
}
