//! Leases on files (`F_SETLEASE`), from which it can be told whether somebody has a file open for
//! writing.
//!
//! A read lease is granted only while nobody has the file open for writing, or mapped after that.
//! The process needs `CAP_LEASE` for the files of others.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;

use crate::arch::{checked, int};
use crate::signal::{self, Disposition};
use rustix::io::Errno;

const SIGIO: i32 = 29;

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
        Ok(()) => set_lease(file, libc::F_UNLCK).map(|()| false),
        Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

fn set_lease(file: BorrowedFd<'_>, kind: i32) -> Result<(), Errno> {
    let args = [int(file.as_raw_fd()), int(libc::F_SETLEASE), int(kind)];
    // SAFETY: no pointer is passed.
    unsafe { checked(libc::SYS_fcntl, args) }.map(|_| ())
}
