//! How files are reached: by a descriptor, while there are not too many, or else from a directory
//! by the name that they were found under, if that still leads to the same file.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::Statx;
use rustix::io::Errno;
use rustix::process::Resource;
use wiglaf_wire::view::FileId;

use super::descriptor;
use super::table::{File, Identity, Inode, Table, birth};

/// Most files that have a descriptor without being open; each keeps an inode in memory.
const MAX_HELD: usize = 1 << 16;
/// Most descriptors that the process asks for.
const MAX_DESCRIPTORS: u64 = 1 << 18;
/// Of those that it gets, this part is for files that are not open.
const HELD_PART: u64 = 2;
/// How many files are looked at to find one that can do without its descriptor.
const MAX_LOOKS: usize = 64;
/// Longest way from a directory with a descriptor to a file without.
const MAX_DEPTH: usize = 1024;

/// How one file is reached.
pub(super) struct Reach {
    descriptor: Option<Rc<OwnedFd>>,
    /// Where it was when it was found last.
    place: Option<Place>,
    /// Files whose place is in this directory.
    inside: u32,
    /// Since it was looked at last for its descriptor.
    used: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) directory: FileId,
    pub(super) name: Box<[u8]>,
}

/// The files that have a descriptor without being open.
pub(super) struct Held {
    /// In the order in which they are looked at; some of them may be gone.
    queue: VecDeque<FileId>,
    count: usize,
    most: usize,
}

impl Reach {
    pub(super) fn new() -> Reach {
        Reach {
            descriptor: None,
            place: None,
            inside: 0,
            used: false,
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.descriptor.is_some()
    }

    /// Whether others are reached by way of this one.
    pub(super) fn is_way(&self) -> bool {
        self.inside > 0
    }
}

impl Held {
    /// Lets the process have as many descriptors as it may, up to what a table can use.
    pub(super) fn new() -> Held {
        let mut limit = rustix::process::getrlimit(Resource::Nofile);
        let allowed = limit.maximum.unwrap_or(u64::MAX).min(MAX_DESCRIPTORS);
        if limit.current.is_some_and(|current| current < allowed) {
            limit.current = Some(allowed);
            // Without it there is only less room.
            let _ = rustix::process::setrlimit(Resource::Nofile, limit);
        }
        let now = rustix::process::getrlimit(Resource::Nofile).current;
        let part = now.unwrap_or(MAX_DESCRIPTORS) / HELD_PART;
        Held {
            queue: VecDeque::new(),
            count: 0,
            most: usize::try_from(part).unwrap_or(MAX_HELD).clamp(1, MAX_HELD),
        }
    }

    pub(super) fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl Table {
    /// The descriptor of a file, made now if it has none.
    pub(super) fn hold(&mut self, number: FileId) -> Result<Rc<OwnedFd>, Errno> {
        let file = self.files.get_mut(&number).ok_or(Errno::STALE)?;
        file.reach.used = true;
        if let Some(descriptor) = &file.reach.descriptor {
            return Ok(Rc::clone(descriptor));
        }
        let descriptor = self.walk_to(number)?;
        self.give(number, Rc::clone(&descriptor));
        Ok(descriptor)
    }

    /// Files that are about to lose a name have a descriptor from now on, by which those who
    /// know them still reach them.
    pub(super) fn hold_all(&mut self, inode: Inode) {
        for number in self.of_inode(inode) {
            // One that is not there any more is not lost by this.
            let _ = self.hold(number);
        }
    }

    /// A file has a descriptor from now on.
    pub(super) fn give(&mut self, number: FileId, descriptor: Rc<OwnedFd>) {
        self.make_room();
        let Some(file) = self.files.get_mut(&number) else {
            return;
        };
        file.reach.used = true;
        if file.reach.descriptor.replace(descriptor).is_none() {
            self.held.count += 1;
            self.held.queue.push_back(number);
        }
        if self.held.queue.len() > 2 * self.held.count + MAX_LOOKS {
            let files = &self.files;
            let is_held = |number: &FileId| {
                let file = files.get(number);
                file.is_some_and(|file| file.reach.is_held())
            };
            self.held.queue.retain(is_held);
        }
    }

    /// The file was found here.
    pub(super) fn put(&mut self, number: FileId, place: Option<Place>) {
        let Some(file) = self.files.get_mut(&number) else {
            return;
        };
        if file.reach.place == place {
            return;
        }
        let directory = place.as_ref().map(|place| place.directory);
        let left = std::mem::replace(&mut file.reach.place, place);
        if let Some(directory) = directory.and_then(|number| self.files.get_mut(&number)) {
            directory.reach.inside += 1;
        }
        if let Some(unused) = self.leave(left) {
            self.remove(unused);
        }
    }

    /// A name of a directory is gone: whatever has it as its place has none.
    pub(super) fn vacate(&mut self, inode: Inode, directory: FileId, name: &[u8]) {
        self.resettle(inode, (directory, name), None);
    }

    /// A file has another name now.
    pub(super) fn resettle(
        &mut self,
        inode: Inode,
        (directory, name): (FileId, &[u8]),
        to: Option<&Place>,
    ) {
        for number in self.of_inode(inode) {
            let place = self
                .files
                .get(&number)
                .and_then(|file| file.reach.place.as_ref());
            if place.is_some_and(|place| place.directory == directory && *place.name == *name) {
                self.put(number, to.cloned());
            }
        }
    }

    /// A directory stays in the table, for somebody who may need it again.
    pub(super) fn stay(&mut self, directory: FileId) {
        if let Some(file) = self.files.get_mut(&directory) {
            file.reach.inside += 1;
        }
    }

    /// Takes one [`stay`](Table::stay) back.
    pub(super) fn leave_alone(&mut self, directory: FileId) {
        let place = Place {
            directory,
            name: Box::default(),
        };
        if let Some(unused) = self.leave(Some(place)) {
            self.remove(unused);
        }
    }

    /// What a file that is no more leaves behind; returns its directory if that was there for its
    /// sake alone.
    pub(super) fn release(&mut self, reach: Reach) -> Option<FileId> {
        if reach.descriptor.is_some() {
            self.held.count -= 1;
        }
        self.leave(reach.place)
    }

    fn leave(&mut self, place: Option<Place>) -> Option<FileId> {
        let directory = place?.directory;
        let file = self.files.get_mut(&directory)?;
        file.reach.inside = file.reach.inside.saturating_sub(1);
        (directory != FileId::ROOT && file.is_unused()).then_some(directory)
    }

    /// Opens a file without a descriptor by its place, and the directories on the way to it.
    pub(super) fn walk_to(&self, number: FileId) -> Result<Rc<OwnedFd>, Errno> {
        let mut steps = Vec::new();
        let mut at = number;
        let mut path = loop {
            let file = self.files.get(&at).ok_or(Errno::STALE)?;
            if let Some(descriptor) = &file.reach.descriptor {
                break Rc::clone(descriptor);
            }
            let place = file.reach.place.as_ref().ok_or(Errno::STALE)?;
            // Places were seen at different times, and need not be a tree.
            if steps.len() >= MAX_DEPTH {
                return Err(Errno::STALE);
            }
            steps.push((file, &place.name));
            at = place.directory;
        };
        for (file, name) in steps.into_iter().rev() {
            let next = match descriptor::name_in(&path, name) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
                next => next?,
            };
            if !file.looks_like(&descriptor::status(&next)?) {
                return Err(Errno::STALE);
            }
            path = Rc::new(next);
        }
        Ok(path)
    }

    /// Takes the descriptors of files that have not been used for a while and can be reached
    /// without, if there are too many.
    fn make_room(&mut self) {
        // The first round may find nothing but what was used since the last.
        for _ in 0..MAX_LOOKS.min(2 * self.held.queue.len()) {
            if self.held.count < self.held.most {
                return;
            }
            let Some(number) = self.held.queue.pop_front() else {
                return;
            };
            let Some(file) = self.files.get_mut(&number) else {
                continue;
            };
            if !file.reach.is_held() {
                continue;
            }
            let used = std::mem::take(&mut file.reach.used);
            if used || number == FileId::ROOT || file.is_open() || !self.is_in_place(number) {
                self.held.queue.push_back(number);
                continue;
            }
            if let Some(file) = self.files.get_mut(&number) {
                file.reach.descriptor = None;
                self.held.count -= 1;
            }
        }
    }

    /// The path at which a file was found last; that of the root is empty.
    pub(super) fn path_of(&self, number: FileId) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = number;
        while at != FileId::ROOT {
            let place = self.files.get(&at)?.reach.place.as_ref()?;
            if names.len() >= MAX_DEPTH {
                return None;
            }
            names.push(&place.name);
            at = place.directory;
        }
        let mut path = Vec::new();
        for name in names.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Some(path)
    }

    /// Whether a file would be found by its place.
    fn is_in_place(&self, number: FileId) -> bool {
        let find = || {
            let file = self.files.get(&number)?;
            let place = file.reach.place.as_ref()?;
            let directory = self.walk_to(place.directory).ok()?;
            let stat = descriptor::status_in(directory.as_fd(), &place.name).ok()?;
            Some(file.looks_like(&stat))
        };
        find().unwrap_or(false)
    }
}

impl File {
    /// Whether this is what the file was when it was entered.
    pub(super) fn looks_like(&self, stat: &Statx) -> bool {
        Identity::of(stat) == self.identity
            && self.birth == birth(stat)
            && self.kind == descriptor::kind(stat)
    }
}
