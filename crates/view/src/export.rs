//! The head's end of the view, inside a deputy: questions in, answers out, with exactly the
//! rights that the calling process has for files.
//!
//! Files are named by numbers of a table of `O_PATH` descriptors, never by paths, so that a
//! file which is renamed or removed on the head stays the same file for whoever uses it.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::process::Resource;
use wiglaf_wire::stream::{
    MAX_VIEW_ENTRIES, MAX_VIEW_READ_BYTES, ViewAnswer, ViewAsk, ViewAttributes, ViewEntry,
    ViewQuestion, ViewReply,
};

mod opened;
mod pseudo;

use opened::Opened;

/// Most files that a table names at a time; each costs a descriptor.
pub const MAX_NODES_IN_TABLE: usize = 1 << 18;
/// Descriptors left to the rest of the process when its limit is below the table's.
const DESCRIPTORS_FOR_OTHERS: u64 = 256;
/// Longest name that a question may have; Linux file systems have none longer.
const MAX_NAME_BYTES: usize = 255;
/// Most bytes of names in one answer.
const MAX_NAMES_BYTES: usize = 256 << 10;
/// What one `getdents64` may fill.
const DIRECTORY_BUFFER_BYTES: usize = 32 << 10;
/// The number of the head's `/`.
const ROOT: u64 = 1;

/// Why an export can't start.
#[derive(thiserror::Error, Debug)]
pub enum ExportError {
    /// The root can't be opened.
    #[error("can't open / for the view: {0}")]
    Root(Errno),
    /// There is no randomness.
    #[error("can't draw numbers for the view: {0}")]
    Numbers(Errno),
}

/// The table of one deputy.
#[derive(Debug)]
pub struct Export {
    files: HashMap<u64, File>,
    numbers: HashMap<Identity, u64>,
    next: u64,
    most: usize,
    opened: Opened,
    hidden: Hidden,
}

#[derive(Debug)]
struct File {
    path: OwnedFd,
    identity: Identity,
    kind: rustix::fs::FileType,
    /// Of a file system that shows this process or this kernel rather than stored files.
    opaque: bool,
    lookups: u64,
}

/// Device, inode and mount: a directory that is mounted at two places is two directories to
/// the kernel of a node, which would refuse one directory with two parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    ino: u64,
    mount: u64,
}

impl Export {
    /// An export of the whole tree except the directories `hidden`, which seem not to exist.
    pub fn new(hidden: Vec<PathBuf>) -> Result<Export, ExportError> {
        let path = rustix::fs::open("/", path_flags(), Mode::empty()).map_err(ExportError::Root)?;
        let stat = status(path.as_fd()).map_err(ExportError::Root)?;
        let root = File {
            identity: identity(&stat),
            kind: kind(&stat),
            opaque: false,
            lookups: 1,
            path,
        };
        Ok(Export {
            numbers: HashMap::from([(root.identity, ROOT)]),
            files: HashMap::from([(ROOT, root)]),
            next: draw_first_number().map_err(ExportError::Numbers)?,
            most: raise_descriptor_limit(),
            opened: Opened::default(),
            hidden: Hidden::new(hidden),
        })
    }

    /// Answers one question. A `Forget` is answered by empty data.
    pub fn answer(&mut self, question: ViewQuestion) -> ViewAnswer {
        let result = match question.what {
            ViewAsk::Lookup { parent, name } => self.lookup(parent, &name),
            ViewAsk::Attributes { node } => self.attributes(node),
            ViewAsk::ReadLink { node } => self.read_link(node),
            ViewAsk::ReadDirectory { node, offset } => self.read_directory(node, offset),
            ViewAsk::Read {
                node,
                offset,
                length,
            } => self.read(node, offset, length),
            ViewAsk::Forget { node, count } => {
                self.forget(node, count);
                Ok(ViewReply::Data(Vec::new()))
            }
        };
        ViewAnswer {
            id: question.id,
            result: result.map_err(Errno::raw_os_error),
        }
    }

    /// How many files the table names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Never: the root stays.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn file(&self, node: u64) -> Result<&File, Errno> {
        self.files.get(&node).ok_or(Errno::STALE)
    }

    fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<ViewReply, Errno> {
        check_name(name)?;
        let directory = self.files.get(&parent).ok_or(Errno::STALE)?;
        if directory.kind != rustix::fs::FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if directory.opaque {
            return Err(Errno::NOENT);
        }
        let path = rustix::fs::openat(&directory.path, name, path_flags(), Mode::empty())?;
        let stat = status(path.as_fd())?;
        if self.hidden.hides(&stat, name) {
            return Err(Errno::NOENT);
        }
        let identity = identity(&stat);
        let crossed = identity.device != directory.identity.device;
        let number = if let Some(&number) = self.numbers.get(&identity) {
            number
        } else {
            if self.files.len() >= self.most {
                return Err(Errno::NFILE);
            }
            let file = File {
                identity,
                kind: kind(&stat),
                opaque: crossed && pseudo::is_pseudo(path.as_fd()),
                lookups: 0,
                path,
            };
            let number = self.next;
            self.next += 1;
            self.files.insert(number, file);
            self.numbers.insert(identity, number);
            number
        };
        if let Some(file) = self.files.get_mut(&number) {
            file.lookups = file.lookups.saturating_add(1);
        }
        Ok(ViewReply::Attributes(attributes(number, &stat)))
    }

    fn attributes(&self, node: u64) -> Result<ViewReply, Errno> {
        let stat = status(self.file(node)?.path.as_fd())?;
        Ok(ViewReply::Attributes(attributes(node, &stat)))
    }

    fn read_link(&self, node: u64) -> Result<ViewReply, Errno> {
        let file = self.file(node)?;
        if file.kind != rustix::fs::FileType::Symlink {
            return Err(Errno::INVAL);
        }
        if file.opaque {
            return Err(Errno::ACCESS);
        }
        let text = rustix::fs::readlinkat(&file.path, "", Vec::new())?;
        Ok(ViewReply::Link(text.into_bytes()))
    }

    fn read_directory(&mut self, node: u64, offset: u64) -> Result<ViewReply, Errno> {
        let file = self.files.get(&node).ok_or(Errno::STALE)?;
        if file.kind != rustix::fs::FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if file.opaque {
            return Ok(ViewReply::Entries(Vec::new()));
        }
        let device = file.identity.device;
        // A listing that starts is a new opendir: rights are checked again.
        if offset == 0 {
            self.opened.drop(node);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.opened.get(node, || reopen(&file.path, flags))?;
        rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); DIRECTORY_BUFFER_BYTES];
        let mut listing = RawDir::new(directory, &mut buffer);
        let mut entries = Vec::new();
        let mut names_bytes = 0;
        while entries.len() < MAX_VIEW_ENTRIES && names_bytes < MAX_NAMES_BYTES {
            let Some(entry) = listing.next() else { break };
            let entry = entry?;
            if self.hidden.lists(device, entry.ino()) {
                continue;
            }
            let name = entry.file_name().to_bytes().to_vec();
            names_bytes += name.len();
            entries.push(ViewEntry {
                name,
                ino: entry.ino(),
                kind: directory_kind(entry.file_type()),
                next: entry.next_entry_cookie(),
            });
        }
        Ok(ViewReply::Entries(entries))
    }

    /// `length` 0 is the question of an `open`: it checks the rights anew.
    fn read(&mut self, node: u64, offset: u64, length: u32) -> Result<ViewReply, Errno> {
        let file = self.files.get(&node).ok_or(Errno::STALE)?;
        match file.kind {
            rustix::fs::FileType::RegularFile => {}
            rustix::fs::FileType::Directory => return Err(Errno::ISDIR),
            // Opening a device or a FIFO could wait, or act.
            _ => return Err(Errno::NXIO),
        }
        if file.opaque {
            return Err(Errno::ACCESS);
        }
        if length == 0 {
            self.opened.drop(node);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = self.opened.get(node, || reopen(&file.path, flags))?;
        let length = length.min(MAX_VIEW_READ_BYTES) as usize;
        let mut data = Vec::with_capacity(length);
        while data.len() < length {
            let from = offset.checked_add(data.len() as u64).ok_or(Errno::INVAL)?;
            let rest = length - data.len();
            let mut part = vec![0; rest];
            let read = match rustix::io::pread(opened, &mut part[..], from) {
                Ok(0) => break,
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            part.truncate(read);
            if data.is_empty() {
                data = part;
            } else {
                data.append(&mut part);
            }
        }
        Ok(ViewReply::Data(data))
    }

    fn forget(&mut self, node: u64, count: u64) {
        if node == ROOT {
            return;
        }
        let Some(file) = self.files.get_mut(&node) else {
            return;
        };
        file.lookups = file.lookups.saturating_sub(count);
        if file.lookups == 0 {
            let identity = file.identity;
            self.files.remove(&node);
            self.numbers.remove(&identity);
            self.opened.drop(node);
        }
    }
}

/// Directories that are never shown.
#[derive(Debug)]
struct Hidden {
    found: Vec<(u64, u64)>,
    /// Paths that did not exist, or that this user could not reach, when last tried.
    missing: Vec<PathBuf>,
}

impl Hidden {
    fn new(paths: Vec<PathBuf>) -> Hidden {
        let mut hidden = Hidden {
            found: Vec::new(),
            missing: paths,
        };
        hidden.find();
        hidden
    }

    fn find(&mut self) {
        let found = &mut self.found;
        self.missing.retain(|path| {
            let stat = rustix::fs::statx(
                rustix::fs::CWD,
                path,
                AtFlags::empty(),
                StatxFlags::BASIC_STATS,
            );
            if let Ok(stat) = &stat {
                found.push((device(stat), stat.stx_ino));
            }
            stat.is_err()
        });
    }

    /// Whether this file, found under `name`, is one of them.
    fn hides(&mut self, stat: &Statx, name: &[u8]) -> bool {
        let ends_so = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|last| last.as_encoded_bytes() == name)
        };
        if self.missing.iter().any(ends_so) {
            self.find();
        }
        self.found.contains(&(device(stat), stat.stx_ino))
    }

    /// Whether a directory on `device` must not list the inode.
    fn lists(&self, device: u64, ino: u64) -> bool {
        self.found.contains(&(device, ino))
    }
}

/// Numbers of an earlier export must not mean another file here: a question may have been on its
/// way when the link to that was lost. There is room for more than can ever be given.
fn draw_first_number() -> Result<u64, Errno> {
    const SPARE_BITS: u32 = 1;
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok((u64::from_ne_bytes(bytes) >> SPARE_BITS).max(ROOT + 1))
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    let several = name.contains(&b'/') || name.contains(&0);
    if name.is_empty() || several || name == b"." || name == b".." {
        return Err(Errno::INVAL);
    }
    Ok(())
}

fn path_flags() -> OFlags {
    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Opens the very file that a path descriptor names, with the rights of now.
fn reopen(path: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let name = format!("/proc/self/fd/{}", path.as_raw_fd());
    rustix::fs::open(name, flags | OFlags::CLOEXEC, Mode::empty())
}

fn status(path: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(path, "", AtFlags::EMPTY_PATH, mask)
}

fn identity(stat: &Statx) -> Identity {
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    Identity {
        device: device(stat),
        ino: stat.stx_ino,
        mount: if told { stat.stx_mnt_id } else { 0 },
    }
}

fn device(stat: &Statx) -> u64 {
    rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

fn kind(stat: &Statx) -> rustix::fs::FileType {
    rustix::fs::FileType::from_raw_mode(u32::from(stat.stx_mode))
}

fn attributes(node: u64, stat: &Statx) -> ViewAttributes {
    let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
    ViewAttributes {
        node,
        ino: stat.stx_ino,
        mode: u32::from(stat.stx_mode),
        links: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        times: times.map(|time| (time.tv_sec, time.tv_nsec)),
    }
}

/// `DT_*` is the file type of `st_mode`, shifted; 0 is unknown.
fn directory_kind(kind: rustix::fs::FileType) -> u8 {
    match kind {
        rustix::fs::FileType::Unknown => 0,
        kind => u8::try_from(kind.as_raw_mode() >> 12).unwrap_or(0),
    }
}

/// Lets the table have as many descriptors as the process may ask for, and returns how many
/// files it can hold.
fn raise_descriptor_limit() -> usize {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    let most = MAX_NODES_IN_TABLE as u64;
    let wanted = most + DESCRIPTORS_FOR_OTHERS;
    let allowed = limit.maximum.unwrap_or(u64::MAX).min(wanted);
    if limit.current.is_some_and(|current| current < allowed) {
        limit.current = Some(allowed);
        // Without it the table is only smaller.
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    }
    let now = rustix::process::getrlimit(Resource::Nofile).current;
    let left = now
        .unwrap_or(u64::MAX)
        .saturating_sub(DESCRIPTORS_FOR_OTHERS);
    usize::try_from(left.clamp(1, most)).unwrap_or(MAX_NODES_IN_TABLE)
}

#[cfg(test)]
mod tests;
