//! Record locks that belong to an open file description (`F_OFD_SETLK`), which exclude those of
//! processes as well and do not vanish when another description of the file is closed.

use crate::arch::{checked, int};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// What a record lock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Keeps writers off.
    Read,
    /// Keeps everybody else off.
    Write,
    /// Is no lock.
    Unlock,
}

/// A record lock; a length of 0 reaches to the end of the file wherever that will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it does.
    pub kind: RecordKind,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// Takes or gives up a lock at once, or fails with `EAGAIN` where it would have to wait.
pub fn set_record(file: impl AsFd, record: Record) -> Result<(), Errno> {
    let mut lock = flock_of(record)?;
    control(file, libc::F_OFD_SETLK, &mut lock)
}

/// The lock that is in the way of `record`, and the PID of the process that has it: 0 if it
/// belongs to an open file description.
pub fn test_record(file: impl AsFd, record: Record) -> Result<Option<(Record, u32)>, Errno> {
    let mut lock = flock_of(record)?;
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    let kind = match i32::from(lock.l_type) {
        libc::F_RDLCK => RecordKind::Read,
        libc::F_WRLCK => RecordKind::Write,
        _ => return Ok(None),
    };
    let found = Record {
        kind,
        start: lock.l_start.try_into().unwrap_or(0),
        length: lock.l_len.try_into().unwrap_or(0),
    };
    Ok(Some((found, lock.l_pid.try_into().unwrap_or(0))))
}

fn flock_of(record: Record) -> Result<libc::flock, Errno> {
    // SAFETY: a struct of integers, for which zeros are values.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = match record.kind {
        RecordKind::Read => libc::F_RDLCK,
        RecordKind::Write => libc::F_WRLCK,
        RecordKind::Unlock => libc::F_UNLCK,
    };
    lock.l_type = kind.try_into().map_err(|_| Errno::INVAL)?;
    lock.l_whence = libc::SEEK_SET.try_into().map_err(|_| Errno::INVAL)?;
    lock.l_start = record.start.try_into().map_err(|_| Errno::INVAL)?;
    lock.l_len = record.length.try_into().map_err(|_| Errno::INVAL)?;
    Ok(lock)
}

fn control(file: impl AsFd, command: i32, lock: &mut libc::flock) -> Result<(), Errno> {
    let descriptor = int(file.as_fd().as_raw_fd());
    let lock = std::ptr::from_mut(lock).expose_provenance();
    // SAFETY: the kernel reads and writes one `struct flock`, which outlives the call.
    unsafe { checked(libc::SYS_fcntl, [descriptor, int(command), lock]) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn two_descriptions_exclude_each_other() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::options().read(true).write(true).open(file.path());
        let (one, two) = (open().expect("open"), open().expect("open"));
        let write = |start, length| Record {
            kind: RecordKind::Write,
            start,
            length,
        };
        set_record(&one, write(0, 10)).expect("free");
        assert_eq!(set_record(&two, write(5, 0)), Err(Errno::AGAIN));
        set_record(&two, write(10, 0)).expect("free");
        let found = test_record(&two, write(3, 1));
        assert_eq!(found, Ok(Some((write(0, 10), 0))));
        assert_eq!(test_record(&one, write(3, 1)), Ok(None));
        let all = Record {
            kind: RecordKind::Unlock,
            start: 0,
            length: 0,
        };
        set_record(&one, all).expect("given up");
        set_record(&two, write(0, 0)).expect("free now");
        assert_eq!(set_record(&two, write(u64::MAX, 0)), Err(Errno::INVAL));
    }
}
