//! Leases on files (`F_SETLEASE`): whether somebody has a file open for writing, and word before
//! somebody does.
//!
//! A read lease is granted only while nobody has the file open for writing, or mapped after that.
//! Whoever then opens it for writing, or truncates it by its name, waits until the lease is given
//! up, for `/proc/sys/fs/lease-break-time` at most, or fails with `EWOULDBLOCK` if it must not
//! wait. The process needs `CAP_LEASE` for the files of others.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Once;

use crate::arch::{checked, int};
use crate::signal::{self, Disposition, SignalFd, SignalSet};
use rustix::io::Errno;

const SIGIO: i32 = 29;
/// Announces broken leases. The first real-time signals belong to libraries.
const BROKEN: i32 = 50;

const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;

/// Whether any description of the file, in whatever process, is open for writing, or was and is
/// still mapped. `file` has to be open for reading.
///
/// It asks for a read lease and gives it back at once. If that holds somebody up just then, the
/// kernel says so by `SIGIO`, which this process ignores from the first call on, since it would
/// end it.
///
/// # Errors
/// `EACCES`: the file is somebody else's, and the capability is missing. `EINVAL`: its file
/// system has no leases.
pub fn is_open_for_writing(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    static SIGIO_IGNORED: Once = Once::new();
    SIGIO_IGNORED.call_once(|| {
        // Only an invalid number fails.
        let _ = signal::set_disposition(SIGIO, Disposition::Ignore);
    });
    match set_lease(file, libc::F_RDLCK) {
        Ok(()) => give_up(file).map(|()| false),
        Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Takes read leases and hears when they break, in the thread that made it.
#[derive(Debug)]
pub struct Leases {
    signals: SignalFd,
    thread: i32,
    /// Signals for a thread are read by that thread.
    _in_one_thread: PhantomData<*const ()>,
}

/// What is heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// Somebody waits for the lease that was taken by this descriptor. It may have been given up
    /// since, and the number be another file's.
    Of(RawFd),
    /// Some leases may be broken: more than the kernel could queue.
    Some,
}

impl Leases {
    /// Blocks the signals concerned in the calling thread.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> Result<Leases, Errno> {
        // The kernel says SIGIO when no more real-time signals can be queued.
        let set = SignalSet::of(&[BROKEN, SIGIO]);
        signal::block_signals(set);
        Ok(Leases {
            signals: SignalFd::new(set)?,
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            _in_one_thread: PhantomData,
        })
    }

    /// Takes a read lease, or has it still, until it is given up or the file is closed. `file` is
    /// open for reading only.
    ///
    /// # Errors
    /// As [`is_open_for_writing`]. `EAGAIN`: somebody has the file open for writing, or is about
    /// to.
    pub fn take(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        #[repr(C)]
        struct Owner {
            kind: i32,
            id: i32,
        }
        let owner = Owner {
            kind: F_OWNER_TID,
            id: self.thread,
        };
        let args = [int(file.as_raw_fd()), int(F_SETSIG), int(BROKEN)];
        // SAFETY: no pointer is passed.
        unsafe { checked(libc::SYS_fcntl, args) }?;
        let owner = (&raw const owner).expose_provenance();
        let args = [int(file.as_raw_fd()), int(F_SETOWN_EX), owner];
        // SAFETY: the kernel reads a struct of its own layout, which lives until after the call.
        unsafe { checked(libc::SYS_fcntl, args) }?;
        set_lease(file, libc::F_RDLCK)
    }

    /// What has been heard and not been told; `None` when that is all.
    pub fn next_broken(&self) -> Option<Broken> {
        let signal = self.signals.read().ok()??;
        Some(match signal.signo {
            BROKEN => Broken::Of(signal.fd),
            _ => Broken::Some,
        })
    }
}

/// Readable when something has been heard.
impl AsFd for Leases {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// Whether this open file has a lease that nobody waits for.
#[must_use]
pub fn is_held(file: BorrowedFd<'_>) -> bool {
    let args = [int(file.as_raw_fd()), int(libc::F_GETLEASE), 0];
    // SAFETY: no pointer is passed.
    let kind = unsafe { checked(libc::SYS_fcntl, args) };
    kind == Ok(int(libc::F_RDLCK))
}

/// Gives up the lease that this open file has. Who waits for it goes on.
///
/// # Errors
/// `EAGAIN`: it has none.
pub fn give_up(file: BorrowedFd<'_>) -> Result<(), Errno> {
    set_lease(file, libc::F_UNLCK)
}

fn set_lease(file: BorrowedFd<'_>, kind: i32) -> Result<(), Errno> {
    let args = [int(file.as_raw_fd()), int(libc::F_SETLEASE), int(kind)];
    // SAFETY: no pointer is passed.
    unsafe { checked(libc::SYS_fcntl, args) }.map(|_| ())
}
