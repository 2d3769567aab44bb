//! Reading and writing descriptors without ever waiting, whoever else holds them.
//!
//! The descriptors of a user's pipes and terminals are shared with the user's other processes,
//! so `O_NONBLOCK` must never be set on them: each kind has another way around that.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{RecvFlags, SendFlags};

/// As `O_NONBLOCK` and its kin would: most bytes that a pipe or terminal that only says "ready"
/// is asked for at once (`PIPE_BUF`).
const CAREFUL_BYTES: usize = 4096;
/// Most bytes given to the thread of a terminal that can't be asked not to block.
const THREAD_BYTES: usize = 64 << 10;
/// For `preadv2` and `pwritev2`: at the description's own offset.
const OWN_OFFSET: u64 = u64::MAX;

/// One end of a stream.
#[derive(Debug)]
pub(crate) enum Port {
    /// A description of our own, non-blocking.
    Own(OwnedFd),
    /// A socket: each call says that it must not wait.
    Socket(OwnedFd),
    /// A shared pipe: likewise, by `RWF_NOWAIT`.
    Shared(OwnedFd),
    /// Only read after `poll` has said that it is ready, a little at a time.
    Careful(OwnedFd),
    /// A file, or a device that knows no waiting.
    File(OwnedFd),
    /// Written by a thread of its own, which may block.
    Thread(BlockingWriter),
}

impl Port {
    /// For a description that is ours and non-blocking already.
    pub(crate) fn own(fd: OwnedFd) -> Port {
        Port::Own(fd)
    }

    /// For reading from a descriptor that others share.
    pub(crate) fn for_reading(fd: OwnedFd) -> Port {
        Port::shared(fd, OFlags::RDONLY).unwrap_or_else(Port::Careful)
    }

    /// For writing to a descriptor that others share.
    pub(crate) fn for_writing(fd: OwnedFd) -> Port {
        Port::shared(fd, OFlags::WRONLY).unwrap_or_else(Port::threaded)
    }

    fn shared(fd: OwnedFd, access: OFlags) -> Result<Port, OwnedFd> {
        let Ok(stat) = rustix::fs::fstat(&fd) else {
            return Ok(Port::File(fd));
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let terminal = kind == FileType::CharacterDevice && rustix::termios::isatty(&fd);
        match kind {
            FileType::Socket => Ok(Port::Socket(fd)),
            FileType::Fifo => Ok(reopen(&fd, access).map_or_else(|_| Port::Shared(fd), Port::Own)),
            FileType::CharacterDevice if terminal => {
                reopen(&fd, access).map(Port::Own).map_err(|_| fd)
            }
            // What can't be waited for (a null device) is always ready.
            FileType::CharacterDevice if can_be_polled(&fd) => Ok(Port::Shared(fd)),
            _ => Ok(Port::File(fd)),
        }
    }

    fn threaded(fd: OwnedFd) -> Port {
        match BlockingWriter::start(&fd) {
            Ok(writer) => Port::Thread(writer),
            Err(_) => Port::Careful(fd),
        }
    }

    /// The descriptor to wait for; `None`: always ready.
    pub(crate) fn waitable(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Port::Own(fd) | Port::Socket(fd) | Port::Shared(fd) | Port::Careful(fd) => {
                Some(fd.as_fd())
            }
            Port::File(_) => None,
            Port::Thread(writer) => Some(writer.done_event.as_fd()),
        }
    }

    /// Whether [`Port::waitable`] becomes readable, though the port is for writing.
    pub(crate) fn waits_by_reading(&self) -> bool {
        matches!(self, Port::Thread(_))
    }

    /// Whether a write is under way in a thread: it has to be finished with the same bytes.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Port::Thread(writer) if writer.busy)
    }

    /// The user's or node's terminal, pipe or file itself.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Port::Own(fd)
            | Port::Socket(fd)
            | Port::Shared(fd)
            | Port::Careful(fd)
            | Port::File(fd) => fd.as_fd(),
            Port::Thread(writer) => writer.fd.as_fd(),
        }
    }

    /// Reads at most `most` bytes onto the end of `buffer`; 0 is the end of the stream.
    pub(crate) fn read(&mut self, buffer: &mut Vec<u8>, most: usize) -> Result<usize, Errno> {
        buffer.reserve(most.min(buffer.capacity().max(CAREFUL_BYTES)));
        let before = buffer.len();
        let room = most.min(buffer.capacity() - before);
        loop {
            let result = match self {
                Port::Own(fd) | Port::File(fd) if room == buffer.capacity() - before => {
                    rustix::io::read(&*fd, spare_capacity(buffer))
                }
                Port::Own(fd) | Port::File(fd) => {
                    buffer.resize(before + room, 0);
                    let read = rustix::io::read(&*fd, &mut buffer[before..]);
                    buffer.truncate(before + read.unwrap_or(0));
                    read
                }
                Port::Socket(fd) => {
                    buffer.resize(before + room, 0);
                    let read = rustix::net::recv(&*fd, &mut buffer[before..], RecvFlags::DONTWAIT)
                        .map(|(read, _)| read);
                    buffer.truncate(before + read.unwrap_or(0));
                    read
                }
                Port::Shared(fd) => {
                    buffer.resize(before + room, 0);
                    let mut into = [IoSliceMut::new(&mut buffer[before..])];
                    let flags = ReadWriteFlags::NOWAIT;
                    let read = rustix::io::preadv2(&*fd, &mut into, OWN_OFFSET, flags);
                    buffer.truncate(before + read.unwrap_or(0));
                    read
                }
                Port::Careful(fd) => {
                    if !is_ready(fd, PollFlags::IN) {
                        return Err(Errno::AGAIN);
                    }
                    buffer.resize(before + room.min(CAREFUL_BYTES), 0);
                    let read = rustix::io::read(&*fd, &mut buffer[before..]);
                    buffer.truncate(before + read.unwrap_or(0));
                    read
                }
                Port::Thread(_) => return Err(Errno::BADF),
            };
            match result {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) if matches!(self, Port::Shared(_)) => {
                    self.replace_shared(Port::Careful);
                }
                result => return result,
            }
        }
    }

    /// Writes what can be written now. A write that said `AGAIN` is tried again with the same
    /// bytes, or more behind them.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            let result = match self {
                Port::Own(fd) | Port::File(fd) => rustix::io::write(&*fd, bytes),
                Port::Socket(fd) => {
                    rustix::net::send(&*fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                }
                Port::Shared(fd) => rustix::io::pwritev2(
                    &*fd,
                    &[IoSlice::new(bytes)],
                    OWN_OFFSET,
                    ReadWriteFlags::NOWAIT,
                ),
                Port::Careful(fd) if !is_ready(fd, PollFlags::OUT) => Err(Errno::AGAIN),
                Port::Careful(fd) => {
                    rustix::io::write(&*fd, &bytes[..bytes.len().min(CAREFUL_BYTES)])
                }
                Port::Thread(writer) => writer.write(bytes),
            };
            match result {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) if matches!(self, Port::Shared(_)) => {
                    self.replace_shared(Port::threaded);
                }
                result => return result,
            }
        }
    }

    /// The file behind it does not know `RWF_NOWAIT`.
    fn replace_shared(&mut self, with: impl FnOnce(OwnedFd) -> Port) {
        if let Port::Shared(fd) = self
            && let Ok(copy) = rustix::io::fcntl_dupfd_cloexec(&*fd, 0)
        {
            *self = with(copy);
        }
    }
}

/// Opens the same pipe or terminal again: a description of our own. The rights of the user are
/// asked anew, so it may be refused.
fn reopen(fd: &OwnedFd, access: OFlags) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn can_be_polled(fd: &OwnedFd) -> bool {
    use rustix::event::epoll;
    let Ok(set) = epoll::create(epoll::CreateFlags::CLOEXEC) else {
        return false;
    };
    epoll::add(
        &set,
        fd,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::empty(),
    )
    .is_ok()
}

fn is_ready(fd: &OwnedFd, flags: PollFlags) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut [PollFd::new(fd, flags)], Some(&now)), Ok(ready) if ready > 0)
}

/// A thread that writes to a descriptor which can only be written by blocking: a terminal that
/// belongs to another user (after `su`). A stopped terminal then holds up nobody else.
#[derive(Debug)]
pub(crate) struct BlockingWriter {
    fd: OwnedFd,
    work: SyncSender<Vec<u8>>,
    results: Receiver<Result<usize, Errno>>,
    done_event: OwnedFd,
    busy: bool,
}

impl BlockingWriter {
    fn start(fd: &OwnedFd) -> Result<BlockingWriter, Errno> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        let target = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        let done_event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let signal = rustix::io::fcntl_dupfd_cloexec(&done_event, 0)?;
        let (work, jobs) = sync_channel::<Vec<u8>>(1);
        let (answers, results) = sync_channel(1);
        thread::Builder::new()
            .name("tty writer".into())
            .spawn(move || {
                for bytes in jobs {
                    let result = loop {
                        match rustix::io::write(&target, &bytes) {
                            Err(Errno::INTR) => {}
                            result => break result,
                        }
                    };
                    if answers.send(result).is_err() {
                        return;
                    }
                    // Fails only when nobody listens any more.
                    let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
                }
            })
            .map_err(|_| Errno::AGAIN)?;
        Ok(BlockingWriter {
            fd: copy,
            work,
            results,
            done_event,
            busy: false,
        })
    }

    /// Starts a write of the first bytes, or gives the result of the one before, which was
    /// started with the same bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.busy {
            let result = match self.results.try_recv() {
                Ok(result) => result,
                Err(TryRecvError::Empty) => return Err(Errno::AGAIN),
                Err(TryRecvError::Disconnected) => return Err(Errno::IO),
            };
            self.busy = false;
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.done_event, &mut count);
            return result;
        }
        let piece = bytes[..bytes.len().min(THREAD_BYTES)].to_vec();
        self.work.try_send(piece).map_err(|_| Errno::IO)?;
        self.busy = true;
        Err(Errno::AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;

    fn flags(fd: &OwnedFd) -> OFlags {
        rustix::fs::fcntl_getfl(fd).unwrap()
    }

    #[test]
    fn a_shared_pipe_is_never_waited_for_and_keeps_its_flags() {
        for shared in [false, true] {
            let (read, write) = pipe().unwrap();
            let (keep_read, keep_write) = (read.try_clone().unwrap(), write.try_clone().unwrap());
            let make = |fd, reading| match (shared, reading) {
                (true, _) => Port::Shared(fd),
                (false, true) => Port::for_reading(fd),
                (false, false) => Port::for_writing(fd),
            };
            let (mut source, mut sink) = (make(read, true), make(write, false));
            assert_eq!(matches!(sink, Port::Own(_)), !shared);
            let mut buffer = Vec::with_capacity(100_000);
            assert_eq!(source.read(&mut buffer, 10), Err(Errno::AGAIN));
            let full = vec![1; 300_000];
            let taken = sink.write(&full).unwrap();
            assert!(taken < full.len());
            assert_eq!(sink.write(&full), Err(Errno::AGAIN));
            assert_eq!(source.read(&mut buffer, 10), Ok(10));
            assert!(!flags(&keep_read).contains(OFlags::NONBLOCK));
            assert!(!flags(&keep_write).contains(OFlags::NONBLOCK));
            drop((keep_read, source));
            assert_eq!(sink.write(b"x"), Err(Errno::PIPE));
        }
    }

    #[test]
    fn files_and_null_devices_are_always_ready() {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap();
        let mut port = Port::for_writing(null);
        assert!(port.waitable().is_none());
        assert_eq!(port.write(b"abc"), Ok(3));
        let file = tempfile::tempfile().unwrap();
        assert!(Port::for_reading(file.into()).waitable().is_none());
    }

    #[test]
    fn a_blocking_writer_reports_what_it_wrote() {
        let (read, write) = pipe().unwrap();
        let mut port = Port::threaded(write);
        let full = vec![7; 200_000];
        let mut written = 0;
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(read), &mut bytes).unwrap();
            bytes
        });
        while written < full.len() {
            match port.write(&full[written..]) {
                Ok(count) => written += count,
                Err(Errno::AGAIN) => {
                    let event = port.waitable().unwrap();
                    poll(&mut [PollFd::from_borrowed_fd(event, PollFlags::IN)], None).unwrap();
                }
                Err(errno) => panic!("{errno}"),
            }
        }
        drop(port);
        assert_eq!(reader.join().unwrap(), full);
    }
}
