//! The numbers of files: what each stands for, and which node was told what of it.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use wiglaf_wire::view::FileId;

use super::belief::Belief;
use super::reach::{Held, Place, Reach};
use super::writers::Writers;
use super::{ExportError, LinkId, descriptor, pseudo};
use crate::watch::{FileKey, Watch};

/// Most files that a table names at a time.
pub const MAX_FILES_IN_TABLE: usize = 1 << 20;

/// All files that some node was told of.
pub(super) struct Table {
    pub(super) files: HashMap<FileId, File>,
    pub(super) held: Held,
    /// Under every mount that shows it a file has a number of its own.
    by_inode: HashMap<Inode, Vec<FileId>>,
    by_key: HashMap<FileKey, Vec<FileId>>,
    next: u64,
}

/// One file.
pub(super) struct File {
    pub(super) reach: Reach,
    pub(super) identity: Identity,
    pub(super) birth: Birth,
    pub(super) kind: FileType,
    /// Of a file system that shows this process or this kernel rather than stored files.
    opaque: bool,
    /// What the watch calls it, if it is watched.
    key: Option<FileKey>,
    /// Sorted by link.
    tellings: Vec<(LinkId, Telling)>,
    /// Open files of it.
    handles: u32,
    writers: Writers,
    /// Somebody on the head was seen to have it open for writing, and may store without an event.
    written: bool,
}

/// What one link was told of a file.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// How often, so that its forgetting can be told from a telling on its way.
    count: u64,
    pub(super) belief: Belief,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Inode {
    pub(super) device: u64,
    pub(super) ino: u64,
}

/// Device, inode and mount: a directory that is mounted at two places is two directories to
/// the kernel of a node, which would refuse one directory with two parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) inode: Inode,
    pub(super) mount: u64,
}

/// When a file was made, where its file system knows: a number of an inode comes again.
pub(super) type Birth = Option<(i64, u32)>;

/// A directory in use.
pub(super) struct Directory {
    pub(super) file: FileId,
    pub(super) path: Rc<OwnedFd>,
    pub(super) device: u64,
    pub(super) mount: u64,
    pub(super) opaque: bool,
}

impl Identity {
    pub(super) fn of(stat: &Statx) -> Identity {
        let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        Identity {
            inode: Inode {
                device: descriptor::device(stat),
                ino: stat.stx_ino,
            },
            mount: if told { stat.stx_mnt_id } else { 0 },
        }
    }
}

pub(super) fn birth(stat: &Statx) -> Birth {
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    told.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

impl Table {
    /// A table of the root alone.
    pub(super) fn new(watch: Option<&mut Watch>) -> Result<Table, ExportError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = rustix::fs::open("/", flags, Mode::empty()).map_err(ExportError::Root)?;
        let stat = descriptor::status(&path).map_err(ExportError::Root)?;
        let mut table = Table {
            files: HashMap::new(),
            held: Held::new(),
            by_inode: HashMap::new(),
            by_key: HashMap::new(),
            next: draw_first_number().map_err(ExportError::Numbers)?,
        };
        let key = watch.and_then(|watch| watch.key(path.as_fd()));
        table.insert(FileId::ROOT, File::new(&stat, key));
        table.give(FileId::ROOT, Rc::new(path));
        Ok(table)
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// The number of a file that was found in a directory, which is told to the link once more.
    pub(super) fn enter(
        &mut self,
        link: LinkId,
        path: OwnedFd,
        stat: &Statx,
        found: &Found<'_>,
        mut watch: Option<&mut Watch>,
    ) -> Result<FileId, Errno> {
        let number = match self.number_of(stat) {
            Some(number) if self.is_still(number, &path, stat, watch.as_deref_mut()) => number,
            Some(number) => {
                self.retire(number);
                self.add(&path, stat, found)?
            }
            None => self.add(&path, stat, found)?,
        };
        if let Some(watch) = watch {
            self.learn_key(number, path.as_fd(), watch);
        }
        let Some(file) = self.files.get_mut(&number) else {
            return Err(Errno::STALE);
        };
        file.telling(link).count += 1;
        if let Some(name) = found.name {
            let place = Place {
                directory: found.directory.file,
                name: name.into(),
            };
            self.put(number, Some(place));
        }
        if found.is_used && !self.files[&number].reach.is_held() {
            self.give(number, Rc::new(path));
        }
        Ok(number)
    }

    fn add(&mut self, path: &OwnedFd, stat: &Statx, found: &Found<'_>) -> Result<FileId, Errno> {
        if self.files.len() >= MAX_FILES_IN_TABLE {
            return Err(Errno::NFILE);
        }
        let crossed = found.directory.device != descriptor::device(stat);
        let mut file = File::new(stat, None);
        file.opaque = crossed && pseudo::is_pseudo(path.as_fd());
        let number = FileId(self.next);
        self.next += 1;
        self.insert(number, file);
        Ok(number)
    }

    /// The number that this inode has under this mount.
    pub(super) fn number_of(&self, stat: &Statx) -> Option<FileId> {
        let identity = Identity::of(stat);
        let of_mount = |number: &&FileId| {
            let file = self.files.get(number);
            file.is_some_and(|file| file.identity == identity)
        };
        let numbers = self.by_inode.get(&identity.inode)?;
        numbers.iter().find(of_mount).copied()
    }

    /// Whether what was found is the same file still: one that has no descriptor may have been
    /// removed, and its inode used again.
    fn is_still(
        &self,
        number: FileId,
        path: &OwnedFd,
        stat: &Statx,
        watch: Option<&mut Watch>,
    ) -> bool {
        let Some(file) = self.files.get(&number) else {
            return false;
        };
        if file.reach.is_held() {
            return true;
        }
        let now = watch.and_then(|watch| watch.key(path.as_fd()));
        match (&file.key, now) {
            (Some(then), Some(now)) => *then == now,
            _ => file.looks_like(stat),
        }
    }

    fn insert(&mut self, number: FileId, file: File) {
        self.by_inode
            .entry(file.identity.inode)
            .or_default()
            .push(number);
        if let Some(key) = &file.key {
            self.by_key.entry(key.clone()).or_default().push(number);
        }
        self.files.insert(number, file);
    }

    /// Sees to it that what the watch says of a file is heard, if it says anything; whether it
    /// does. One that did not may do so when the keeper has marked a new mount.
    pub(super) fn learn_key(
        &mut self,
        number: FileId,
        path: BorrowedFd<'_>,
        watch: &mut Watch,
    ) -> bool {
        let Some(file) = self.files.get_mut(&number) else {
            return false;
        };
        if file.key.is_none()
            && let Some(key) = watch.key(path)
        {
            file.key = Some(key.clone());
            self.by_key.entry(key).or_default().push(number);
        }
        file.key.is_some()
    }

    /// The file of this number is gone from the head, though nodes still name it.
    fn retire(&mut self, number: FileId) {
        let Some(file) = self.files.get_mut(&number) else {
            return;
        };
        let inode = file.identity.inode;
        let key = file.key.take();
        take_out(&mut self.by_inode, &inode, number);
        if let Some(key) = key {
            take_out(&mut self.by_key, &key, number);
        }
    }

    /// Takes a file out, and the directories that were there to reach it.
    pub(super) fn remove(&mut self, number: FileId) {
        let mut next = Some(number);
        while let Some(number) = next {
            self.retire(number);
            let removed = self.files.remove(&number);
            next = removed.and_then(|file| self.release(file.reach));
        }
    }

    /// A file that this link was told of; the root is told to all.
    fn known(&mut self, link: LinkId, number: FileId) -> Result<&mut File, Errno> {
        let file = self.files.get_mut(&number).ok_or(Errno::STALE)?;
        if number == FileId::ROOT {
            file.telling(link);
        } else if file.place(link).is_err() {
            return Err(Errno::STALE);
        }
        Ok(file)
    }

    /// The descriptor of a file that this link was told of.
    pub(super) fn path(&mut self, link: LinkId, number: FileId) -> Result<Rc<OwnedFd>, Errno> {
        self.known(link, number)?;
        self.hold(number)
    }

    /// As [`path`](Table::path), for a directory.
    pub(super) fn directory(&mut self, link: LinkId, file: FileId) -> Result<Directory, Errno> {
        let found = self.known(link, file)?;
        if found.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let (identity, opaque) = (found.identity, found.opaque);
        Ok(Directory {
            file,
            path: self.hold(file)?,
            device: identity.inode.device,
            mount: identity.mount,
            opaque,
        })
    }

    /// What type a file is, and whether it is of a file system that is not shown.
    pub(super) fn kind(&mut self, link: LinkId, file: FileId) -> Result<(FileType, bool), Errno> {
        let file = self.known(link, file)?;
        Ok((file.kind, file.opaque))
    }

    pub(super) fn inode(&self, number: FileId) -> Option<Inode> {
        self.files.get(&number).map(|file| file.identity.inode)
    }

    /// What the watch calls a file, if it is watched.
    pub(super) fn key(&self, number: FileId) -> Option<&FileKey> {
        self.files.get(&number)?.key.as_ref()
    }

    pub(super) fn is_watched(&self, number: FileId) -> bool {
        self.key(number).is_some()
    }

    /// Whether somebody on the head was seen to write to a file.
    pub(super) fn is_written(&self, number: FileId) -> bool {
        self.files.get(&number).is_some_and(|file| file.written)
    }

    pub(super) fn set_written(&mut self, number: FileId, written: bool) {
        if let Some(file) = self.files.get_mut(&number) {
            file.written = written;
        }
    }

    /// All numbers of a file.
    pub(super) fn of_inode(&self, inode: Inode) -> Vec<FileId> {
        self.by_inode.get(&inode).cloned().unwrap_or_default()
    }

    /// All numbers of what the watch calls so.
    pub(super) fn of_key(&self, key: &FileKey) -> Vec<FileId> {
        self.by_key.get(key).cloned().unwrap_or_default()
    }

    /// What all links were told of a file.
    pub(super) fn tellings(&mut self, number: FileId) -> &mut [(LinkId, Telling)] {
        self.files
            .get_mut(&number)
            .map_or(&mut [], |file| file.tellings.as_mut_slice())
    }

    /// What a link was told of a file.
    pub(super) fn belief(&mut self, link: LinkId, number: FileId) -> Option<&mut Belief> {
        let file = self.files.get_mut(&number)?;
        let place = file.place(link).ok()?;
        Some(&mut file.tellings[place].1.belief)
    }

    /// No link believes anything from now on, and whether a file is watched is to be found out
    /// again.
    pub(super) fn disbelieve_all(&mut self) {
        self.by_key.clear();
        for file in self.files.values_mut() {
            file.key = None;
            for (_, telling) in &mut file.tellings {
                telling.belief = Belief::default();
            }
        }
    }

    /// Nobody says any more when files of these devices change; which files that concerns.
    pub(super) fn unwatch(&mut self, devices: &[u64]) -> Vec<FileId> {
        if devices.is_empty() {
            return Vec::new();
        }
        let mut unwatched = Vec::new();
        for (&number, file) in &mut self.files {
            if devices.contains(&file.identity.inode.device) {
                unwatched.push(number);
                if let Some(key) = file.key.take() {
                    take_out(&mut self.by_key, &key, number);
                }
            }
        }
        unwatched
    }

    /// Takes back tellings; whether the link has none of the file any more.
    pub(super) fn forget(&mut self, link: LinkId, number: FileId, count: u64) -> bool {
        if number == FileId::ROOT {
            return false;
        }
        let Some(file) = self.files.get_mut(&number) else {
            return false;
        };
        let Ok(place) = file.place(link) else {
            return false;
        };
        let telling = &mut file.tellings[place].1;
        telling.count = telling.count.saturating_sub(count);
        if telling.count > 0 {
            return false;
        }
        file.tellings.remove(place);
        self.remove_if_unused(number);
        true
    }

    /// Forgets all that a link was told, and returns the files that nobody knows any more.
    pub(super) fn close(&mut self, link: LinkId) -> Vec<FileId> {
        let mut unused = Vec::new();
        for (&number, file) in &mut self.files {
            if let Ok(place) = file.place(link) {
                file.tellings.remove(place);
                if number != FileId::ROOT && file.is_unused() {
                    unused.push(number);
                }
            }
        }
        for &number in &unused {
            self.remove(number);
        }
        unused
    }

    /// One more open file of this number.
    pub(super) fn add_handle(&mut self, number: FileId) {
        if let Some(file) = self.files.get_mut(&number) {
            file.handles += 1;
        }
    }

    /// One open file less.
    pub(super) fn end_handle(&mut self, number: FileId) {
        if let Some(file) = self.files.get_mut(&number) {
            file.handles = file.handles.saturating_sub(1);
            self.remove_if_unused(number);
        }
    }

    /// Who has a file open for writing here.
    pub(super) fn writers(&mut self, number: FileId) -> Option<&mut Writers> {
        Some(&mut self.files.get_mut(&number)?.writers)
    }

    fn remove_if_unused(&mut self, number: FileId) {
        let unused = self.files.get(&number).is_some_and(File::is_unused);
        if unused && number != FileId::ROOT {
            self.remove(number);
        }
    }
}

/// How a file was come by.
pub(super) struct Found<'a> {
    pub(super) directory: &'a Directory,
    /// A file need not have a name.
    pub(super) name: Option<&'a [u8]>,
    /// It has a descriptor from now on. One that is only listed gets one when it is used.
    pub(super) is_used: bool,
}

impl File {
    fn new(stat: &Statx, key: Option<FileKey>) -> File {
        File {
            reach: Reach::new(),
            identity: Identity::of(stat),
            birth: birth(stat),
            kind: descriptor::kind(stat),
            opaque: false,
            key,
            tellings: Vec::new(),
            handles: 0,
            writers: Writers::default(),
            written: false,
        }
    }

    fn place(&self, link: LinkId) -> Result<usize, usize> {
        self.tellings.binary_search_by_key(&link, |(link, _)| *link)
    }

    fn telling(&mut self, link: LinkId) -> &mut Telling {
        let place = self.place(link).unwrap_or_else(|place| {
            // Most files are known to one node, and there are many of them.
            self.tellings.reserve_exact(1);
            self.tellings.insert(place, (link, Telling::default()));
            place
        });
        &mut self.tellings[place].1
    }

    pub(super) fn is_unused(&self) -> bool {
        self.tellings.is_empty() && !self.is_open() && !self.reach.is_way()
    }

    pub(super) fn is_open(&self) -> bool {
        self.handles > 0
    }

    pub(super) fn is_watched(&self) -> bool {
        self.key.is_some()
    }

    /// What links believe of it.
    pub(super) fn beliefs(&self) -> impl Iterator<Item = &Belief> {
        self.tellings.iter().map(|(_, telling)| &telling.belief)
    }
}

fn take_out<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Vec<FileId>>, key: &K, number: FileId) {
    if let Some(numbers) = index.get_mut(key) {
        numbers.retain(|other| *other != number);
        if numbers.is_empty() {
            index.remove(key);
        }
    }
}

/// Numbers of an earlier export must not mean another file here: a question may have been on its
/// way when the link to that was lost. There is room for more than can ever be given.
fn draw_first_number() -> Result<u64, Errno> {
    const SPARE_BITS: u32 = 1;
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok((u64::from_ne_bytes(bytes) >> SPARE_BITS).max(FileId::ROOT.0 + 1))
}
