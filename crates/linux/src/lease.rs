//! Whether somebody has a file open for writing.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;

use crate::arch::{checked, int};
use crate::signal::{self, Disposition};
use rustix::io::Errno;

const SIGIO: i32 = 29;

/// Whether any description of the file, in whatever process, is open for writing, or was and is
/// still mapped. `file` has to be open for reading. The process needs `CAP_LEASE` for the files
/// of others.
///
/// It asks for a read lease, which the kernel grants only without writers, and gives it back at
/// once. Who opens the file for writing just then waits for that moment, or gets `EWOULDBLOCK` if
/// it must not wait. The kernel announces that by `SIGIO`, which this process ignores from the
/// first call on, since it would end it.
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
