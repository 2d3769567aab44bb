//! The directory: reached by name once, and only by its descriptor from then on.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::KeepError;

/// A segment's name is `kept-`, its number and `.seg`.
const PREFIX: &str = "kept-";
const SUFFIX: &str = ".seg";
const DIGITS: usize = 8;
/// As many as have a name.
pub(crate) const MAX_NUMBER: u32 = 99_999_999;

/// A file that can't be opened for these may be all right.
const NOT_OF_THE_FILE: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ROFS];

/// What others have no right to.
const OF_OTHERS: u32 = 0o077;

pub(crate) struct Directory {
    path: PathBuf,
    /// Locked.
    opened: OwnedFd,
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Directory, KeepError> {
        let not_ours = |why| KeepError::NotOurs {
            path: path.to_owned(),
            why,
        };
        let failed = |errno: Errno| failed(path, errno);
        let name = path.file_name().ok_or_else(|| not_ours("it has no name"))?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(failed)?;
        match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(not_ours("it is not a directory, but a link or a file"));
            }
            Err(errno) => return Err(failed(errno)),
        };
        let stat = rustix::fs::fstat(&opened).map_err(failed)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(not_ours("it belongs to another user"));
        }
        if stat.st_mode & OF_OTHERS != 0 {
            return Err(not_ours("others have rights to it; it needs mode 0700"));
        }
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let path = path.to_owned();
                return Err(KeepError::Busy { path });
            }
            Err(errno) => return Err(failed(errno)),
        }
        Ok(Directory {
            path: path.to_owned(),
            opened,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of all segments, in no order.
    pub(crate) fn numbers(&self) -> Result<Vec<u32>, KeepError> {
        let failed = |errno| failed(&self.path, errno);
        let mut numbers = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.opened).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            numbers.extend(entry.file_name().to_str().ok().and_then(number_of));
        }
        Ok(numbers)
    }

    /// `None` if there is none by that name, or something else, or another's, or it can't be read.
    pub(crate) fn segment(&self, number: u32) -> io::Result<Option<File>> {
        // What isn't a file mustn't make us wait.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = name_of(number);
        let opened = match rustix::fs::openat(&self.opened, &name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(errno) if NOT_OF_THE_FILE.contains(&errno) => return Err(errno.into()),
            Err(_) => return Ok(None),
        };
        let stat = rustix::fs::fstat(&opened)?;
        let is_ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == rustix::process::geteuid().as_raw()
            && stat.st_mode & OF_OTHERS == 0;
        Ok(is_ours.then(|| File::from(opened)))
    }

    pub(crate) fn create(&self, number: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let opened = rustix::fs::openat(&self.opened, name_of(number), flags, mode)?;
        Ok(File::from(opened))
    }

    /// If it is gone already, or a directory by now, nothing of ours is there.
    pub(crate) fn remove(&self, number: u32) -> Result<(), KeepError> {
        match rustix::fs::unlinkat(&self.opened, name_of(number), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            Err(errno) => Err(failed(&self.path.join(name_of(number)), errno)),
        }
    }

    /// What a user without root's rights may still use of the file system.
    pub(crate) fn free_bytes(&self) -> Result<u64, KeepError> {
        let stat = rustix::fs::fstatvfs(&self.opened).map_err(|errno| failed(&self.path, errno))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    pub(crate) fn error(&self, number: u32, source: io::Error) -> KeepError {
        let path = self.path.join(name_of(number));
        KeepError::Disk { path, source }
    }
}

/// Whether the disk has nothing to do with it.
pub(crate) fn is_not_of_the_file(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| NOT_OF_THE_FILE.contains(&errno))
}

/// All of these bytes, or an error.
pub(crate) fn read(file: &File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}

fn failed(path: &Path, errno: Errno) -> KeepError {
    KeepError::Disk {
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn name_of(number: u32) -> String {
    format!("{PREFIX}{number:0DIGITS$}{SUFFIX}")
}

fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let is_number = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_eight_digits() {
        assert_eq!(name_of(17), "kept-00000017.seg");
        for number in [0, 17, MAX_NUMBER] {
            assert_eq!(number_of(&name_of(number)), Some(number));
        }
        for name in [
            "kept-17.seg",
            "kept-000000017.seg",
            "kept-+0000017.seg",
            "x",
        ] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }
}
