//! A level-triggered epoll set.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// Most events that one wait returns.
const EVENTS_PER_WAIT: usize = 256;

/// What a descriptor is known by in its loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What is waited for. Hang-up and errors always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Only hang-up and errors.
    None,
    /// Bytes to read.
    Read,
    /// Room to write.
    Write,
    /// Both.
    Both,
}

impl Interest {
    /// Reading, and writing while something is queued.
    pub fn read_and(write: bool) -> Interest {
        if write {
            Interest::Both
        } else {
            Interest::Read
        }
    }

    /// From two wishes.
    pub fn of(read: bool, write: bool) -> Interest {
        match (read, write) {
            (false, false) => Interest::None,
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (true, true) => Interest::Both,
        }
    }

    fn flags(self) -> EventFlags {
        match self {
            Interest::None => EventFlags::empty(),
            Interest::Read => EventFlags::IN,
            Interest::Write => EventFlags::OUT,
            Interest::Both => EventFlags::IN | EventFlags::OUT,
        }
    }
}

/// One descriptor that is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Whose.
    pub token: Token,
    /// There is something to read, or the end, or an error to be read.
    pub readable: bool,
    /// There is room to write, or an error to be found by writing.
    pub writable: bool,
    /// The other end is gone (hang-up or error).
    pub hung_up: bool,
}

/// An epoll set.
#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new() -> Result<Poll, Errno> {
        Ok(Poll {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    /// Adds a descriptor.
    ///
    /// # Errors
    /// `EPERM` for a regular file (always ready; not to be waited for), `EEXIST`, `ENOSPC`.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            interest.flags(),
        )
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// `ENOENT`: it is not in the set.
    pub fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::modify(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            interest.flags(),
        )
    }

    /// Takes a descriptor out. Needed when another process holds the same description.
    ///
    /// # Errors
    /// `ENOENT`: it is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> Result<(), Errno> {
        epoll::delete(&self.epoll, fd)
    }

    /// Waits until something is ready or the time is over (`None`: without end), and puts it into
    /// `ready`, which it empties first.
    ///
    /// # Errors
    /// Only for a broken set; an interrupting signal is an empty result.
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout: Option<Duration>) -> Result<(), Errno> {
        ready.clear();
        let timeout = timeout.map(|time| rustix::event::Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let mut room = [const { MaybeUninit::uninit() }; EVENTS_PER_WAIT];
        let events = match epoll::wait(&self.epoll, &mut room[..], timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        ready.extend(events.iter().map(|event| {
            let flags = event.flags;
            let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            Ready {
                token: Token(event.data.u64()),
                readable: gone || flags.contains(EventFlags::IN),
                writable: gone || flags.contains(EventFlags::OUT),
                hung_up: gone,
            }
        }));
        Ok(())
    }
}
