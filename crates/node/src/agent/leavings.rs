//! What a task leaves in its private directories is brought to the head when the task has ended,
//! as if it had been made there: by its user, with modes, times, links and removals.
//!
//! Others may have been at work there meanwhile. What they have changed since the task began is
//! not removed; a new file is put in the place of an older one.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use wiglaf_linux::acting::acting_as;
use wiglaf_linux::descriptor::close;
use wiglaf_wire::launch::Credential;

use crate::root::PrivateRoot;

/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 256 << 10;
/// File systems stamp files by a clock that ticks this seldom at most.
const TICK_NS: i128 = 10_000_000;
/// Clocks that differ by less are taken for one: the difference is measured with an error.
const SAME_CLOCK_NS: i128 = 20_000_000;
/// Deepest directory that is brought.
const MAX_DEPTH: usize = 1024;
/// Longest extended attribute, and longest list of their names (`XATTR_SIZE_MAX`).
const MAX_XATTR_BYTES: usize = 64 << 10;
/// Attributes with which an overlay marks files of its own (kernel, `overlayfs.rst`): as root, and
/// with `userxattr`.
const MARKS: [&str; 2] = ["trusted.overlay.", "user.overlay."];
const SECOND_NS: i128 = 1_000_000_000;

/// Something could not be brought.
#[derive(Debug, thiserror::Error)]
#[error("{path}, which the command had left in the node's memory, could not be written: {errno}")]
pub(super) struct LeavingsError {
    path: String,
    errno: Errno,
}

/// Brings everything. The thread is one of its own for this: its umask and its user change.
pub(super) fn bring(
    private: &PrivateRoot,
    credential: &Credential,
    rootless: bool,
) -> Result<(), LeavingsError> {
    let all = || {
        private.layers.iter().try_for_each(|layer| {
            let path = Path::new("/").join(layer.place);
            let failed = failed(&path);
            let head = private.view().join(layer.place);
            let head =
                open_directory(rustix::fs::CWD, head.as_os_str().as_bytes()).map_err(&failed)?;
            // The descriptor that tells whether there is anything is at its end.
            let upper = open_directory(layer.upper.as_fd(), b".").map_err(&failed)?;
            let mut carrier = Carrier {
                clocks: Clocks::measure(head.as_fd(), private),
                rootless,
                links: HashMap::new(),
                buffer: vec![0; PIECE_BYTES],
            };
            carrier.fill(&upper, &Rc::new(head), &path, 0)
        })
    };
    if rootless {
        return all();
    }
    acting_as(credential.uid, credential.gid, all).unwrap_or_else(|_| {
        Err(LeavingsError {
            path: "what it made".into(),
            errno: Errno::PERM,
        })
    })
}

/// The node's clock and the head's.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    /// When the task began, by either.
    began: i128,
    began_on_head: i128,
    /// What the head's is ahead.
    ahead: i128,
}

impl Clocks {
    fn measure(head: BorrowedFd<'_>, private: &PrivateRoot) -> Clocks {
        let (instant, time) = private.lent;
        let began = nanoseconds(time);
        let now = nanoseconds(SystemTime::now());
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let probe = rustix::fs::openat(head, c".", flags, Mode::RUSR);
        let on_head = probe.and_then(rustix::fs::fstat).map(|stat| changed(&stat));
        let since = i128::try_from(instant.elapsed().as_nanos()).unwrap_or(0);
        let on_head = on_head.unwrap_or(now);
        let ahead = on_head - now;
        Clocks {
            began,
            began_on_head: on_head - since + TICK_NS,
            ahead: if ahead.abs() < SAME_CLOCK_NS {
                0
            } else {
                ahead
            },
        }
    }

    /// A time of a file here, as the head would have set it. One of before the task was set on
    /// purpose.
    fn shift(self, (seconds, nanoseconds): (i64, u64)) -> Timespec {
        let time = i128::from(seconds) * SECOND_NS + i128::from(nanoseconds);
        let shifted = if time >= self.began {
            time + self.ahead
        } else {
            time
        };
        Timespec {
            tv_sec: i64::try_from(shifted.div_euclid(SECOND_NS)).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(shifted.rem_euclid(SECOND_NS)).unwrap_or(0),
        }
    }

    /// Whether a file of the head's is as the task may have found it.
    fn is_old(self, stat: &Stat) -> bool {
        changed(stat) < self.began_on_head
    }
}

fn changed(stat: &Stat) -> i128 {
    i128::from(stat.st_ctime) * SECOND_NS + i128::from(stat.st_ctime_nsec)
}

fn nanoseconds(time: SystemTime) -> i128 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

struct Carrier {
    clocks: Clocks,
    rootless: bool,
    /// Where files with several names were put.
    links: HashMap<u64, (Rc<OwnedFd>, Vec<u8>)>,
    buffer: Vec<u8>,
}

impl Carrier {
    /// Brings what is in a directory.
    fn fill(
        &mut self,
        from: &OwnedFd,
        to: &Rc<OwnedFd>,
        path: &Path,
        depth: usize,
    ) -> Result<(), LeavingsError> {
        if depth > MAX_DEPTH {
            return Err(failed(path)(Errno::NAMETOOLONG));
        }
        let entries = Dir::read_from(from).map_err(failed(path))?;
        for entry in entries {
            let entry = entry.map_err(failed(path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            let stat =
                rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(&path))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.bring_directory(from, to, name, &path, depth)?,
                FileType::CharacterDevice if stat.st_rdev == 0 => {
                    self.remove_old(to.as_fd(), name, true)
                        .map_err(failed(&path))?;
                }
                kind => self
                    .bring_file(from, to, name, kind, &stat)
                    .map_err(failed(&path))?,
            }
        }
        Ok(())
    }

    fn bring_directory(
        &mut self,
        from: &OwnedFd,
        to: &Rc<OwnedFd>,
        name: &CStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), LeavingsError> {
        let failed = failed(path);
        let upper = open_directory(from.as_fd(), name.to_bytes()).map_err(&failed)?;
        let stat = rustix::fs::fstat(&upper).map_err(&failed)?;
        let is_opaque = is_marked(&upper, "opaque");
        let is_there = self.make_room_for_directory(to.as_fd(), name, is_opaque);
        let is_new = !is_there.map_err(&failed)?;
        if is_new {
            // Until it is full nobody else has to get in.
            rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(&failed)?;
        }
        let head = open_directory(to.as_fd(), name.to_bytes()).map_err(&failed)?;
        let head = Rc::new(head);
        self.fill(&upper, &head, path, depth + 1)?;
        let there = rustix::fs::fstat(&head).map_err(&failed)?;
        if is_new || there.st_mode != stat.st_mode {
            self.give_owner(&head, &stat, &there).map_err(&failed)?;
            rustix::fs::fchmod(&*head, permissions(&stat)).map_err(&failed)?;
        }
        if is_new {
            copy_xattrs(&upper, &head).map_err(&failed)?;
            rustix::fs::futimens(&*head, &self.times(&stat)).map_err(&failed)?;
        }
        Ok(())
    }

    /// Returns whether the directory is there already. One that the task has removed and made
    /// anew begins empty.
    fn make_room_for_directory(
        &self,
        to: BorrowedFd<'_>,
        name: &CStr,
        is_opaque: bool,
    ) -> Result<bool, Errno> {
        let there = match rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            there => there?,
        };
        let is_directory = FileType::from_raw_mode(there.st_mode).is_dir();
        if is_directory && !(is_opaque && self.clocks.is_old(&there)) {
            return Ok(true);
        }
        self.remove_old(to, name, false)?;
        Ok(false)
    }

    fn bring_file(
        &mut self,
        from: &OwnedFd,
        to: &Rc<OwnedFd>,
        name: &CStr,
        kind: FileType,
        stat: &Stat,
    ) -> Result<(), Errno> {
        if let Some((directory, first)) = self.links.get(&stat.st_ino) {
            let link = || {
                let flags = AtFlags::empty();
                rustix::fs::linkat(directory, first.as_slice(), to, name, flags)
            };
            return self.replace(to.as_fd(), name, link);
        }
        let times = self.times(stat);
        match kind {
            FileType::RegularFile => self.bring_content(from, to, name, stat)?,
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(from, name, Vec::new())?;
                self.replace(to.as_fd(), name, || rustix::fs::symlinkat(&*text, to, name))?;
                rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {
                let mode = permissions(stat);
                self.replace(to.as_fd(), name, || {
                    rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)
                })?;
                rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        if stat.st_nlink > 1 {
            let place = (Rc::clone(to), name.to_bytes().to_vec());
            self.links.insert(stat.st_ino, place);
        }
        Ok(())
    }

    fn bring_content(
        &mut self,
        from: &OwnedFd,
        to: &Rc<OwnedFd>,
        name: &CStr,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
        // One that the task only changed stays the same file, with its owner and other names.
        if is_marked(&file, "origin") {
            let truncated = flags | OFlags::WRONLY | OFlags::TRUNC;
            match rustix::fs::openat(to, name, truncated, Mode::empty()) {
                Ok(head) => return self.copy(&file, head, stat),
                Err(Errno::NOENT | Errno::LOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
        let new = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mode = permissions(stat) - (Mode::SUID | Mode::SGID);
        let head = self.replace(to.as_fd(), name, || rustix::fs::openat(to, name, new, mode))?;
        let copied = self.copy(&file, head, stat);
        if copied.is_err() {
            // Better none than half of it.
            let _ = rustix::fs::unlinkat(to, name, AtFlags::empty());
        }
        copied
    }

    fn copy(&mut self, from: &OwnedFd, to: OwnedFd, stat: &Stat) -> Result<(), Errno> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut at = 0;
        let mut written = 0;
        while at < size {
            at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // The rest is a hole.
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(at))?;
            while at < end {
                let length = usize::try_from(end - at).unwrap_or(usize::MAX);
                let room = length.min(self.buffer.len());
                let read = rustix::io::pread(from, &mut self.buffer[..room], at)?;
                if read == 0 {
                    return Err(Errno::IO);
                }
                let mut done = 0;
                while done < read {
                    done += rustix::io::pwrite(&to, &self.buffer[done..read], at + done as u64)?;
                }
                at += read as u64;
            }
            written = at;
        }
        if written < size {
            rustix::fs::ftruncate(&to, size)?;
        }
        let there = rustix::fs::fstat(&to)?;
        self.give_owner(&to, stat, &there)?;
        let mode = permissions(stat);
        if there.st_mode & 0o7777 != mode.bits() {
            rustix::fs::fchmod(&to, mode)?;
        }
        copy_xattrs(from, &to)?;
        rustix::fs::futimens(&to, &self.times(stat))?;
        // Only this says whether all of it has arrived.
        close(to)
    }

    /// Makes something, in place of an older thing if there is one.
    fn replace<T>(
        &self,
        to: BorrowedFd<'_>,
        name: &CStr,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(there.st_mode).is_dir() {
                    self.remove_old(to, name, false)?;
                } else {
                    rustix::fs::unlinkat(to, name, AtFlags::empty())?;
                }
                make()
            }
            made => made,
        }
    }

    /// Removes what the task has removed, so far as it is what the task has seen. With `may_stay`
    /// it is no error if it is not.
    fn remove_old(&self, to: BorrowedFd<'_>, name: &CStr, may_stay: bool) -> Result<(), Errno> {
        let there = match rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            there => there?,
        };
        let is_directory = FileType::from_raw_mode(there.st_mode).is_dir();
        if !is_directory && may_stay && !self.clocks.is_old(&there) {
            return Ok(());
        }
        if !is_directory {
            return rustix::fs::unlinkat(to, name, AtFlags::empty());
        }
        let directory = open_directory(to, name.to_bytes())?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                self.remove_old(directory.as_fd(), entry.file_name(), true)?;
            }
        }
        match rustix::fs::unlinkat(to, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) if may_stay => Ok(()),
            removed => removed,
        }
    }

    fn give_owner(&self, to: &OwnedFd, wanted: &Stat, there: &Stat) -> Result<(), Errno> {
        let is_right = there.st_uid == wanted.st_uid && there.st_gid == wanted.st_gid;
        if self.rootless || is_right {
            return Ok(());
        }
        let uid = (there.st_uid != wanted.st_uid).then(|| Uid::from_raw(wanted.st_uid));
        let gid = (there.st_gid != wanted.st_gid).then(|| Gid::from_raw(wanted.st_gid));
        match rustix::fs::fchown(to, uid, gid) {
            // Made by a set-uid program: through the view, too, it would be the user's.
            Err(Errno::PERM) => Ok(()),
            result => result,
        }
    }

    fn times(&self, stat: &Stat) -> Timestamps {
        Timestamps {
            last_access: self.clocks.shift((stat.st_atime, stat.st_atime_nsec)),
            last_modification: self.clocks.shift((stat.st_mtime, stat.st_mtime_nsec)),
        }
    }
}

fn open_directory(at: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn permissions(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

/// Whether the overlay has marked a file so.
fn is_marked(file: &OwnedFd, mark: &str) -> bool {
    MARKS.iter().any(|prefix| {
        let name = format!("{prefix}{mark}");
        rustix::fs::fgetxattr_query(file, name).is_ok()
    })
}

/// Copies what users may set: attributes of their own, and ACLs.
fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    if rustix::fs::flistxattr_query(from) == Ok(0) {
        return Ok(());
    }
    let mut list = vec![0; MAX_XATTR_BYTES];
    let length = match rustix::fs::flistxattr(from, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let text = name.to_string_lossy();
        let is_mark = MARKS.iter().any(|prefix| text.starts_with(prefix));
        if is_mark || !(text.starts_with("user.") || text.starts_with("system.posix_acl")) {
            continue;
        }
        let mut value = vec![MaybeUninit::uninit(); MAX_XATTR_BYTES];
        let (value, _) = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, value, XattrFlags::empty())?;
    }
    Ok(())
}

fn failed(path: &Path) -> impl Fn(Errno) -> LeavingsError {
    let path: PathBuf = path.to_owned();
    move |errno| LeavingsError {
        path: path.display().to_string(),
        errno,
    }
}
