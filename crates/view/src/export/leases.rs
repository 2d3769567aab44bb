//! Leases on the files that nodes have open for reading. Stores to memory make no event; but who
//! stores has to open the file for writing before, and that waits for the lease to be given up.
//! So a store that was complete before a launch is known before that launch's barrier (V1).
//!
//! From then on, until a lease can be had again, the file's content is kept nowhere and its
//! attributes are believed for a moment only. What a lease can't show: stores to a file that no
//! node has open, whose attributes may be known all the same; and, while a node itself has the
//! file open for writing or locks records of it, stores by those who came later. Both are seen
//! when the memory is unmapped. A file on which no lease can be had for another reason (its file
//! system has none, `/proc/sys/fs/leases-enable` is 0, or this process lacks `CAP_LEASE` for
//! somebody else's file) is never kept.
//!
//! To the head's processes a lease is a short wait in opening or truncating a file, which only
//! those notice who ask not to wait (`O_NONBLOCK`, as `truncate(1)` does): they get
//! `EWOULDBLOCK`, once.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use wiglaf_linux::lease::{self, Broken};
use wiglaf_wire::view::FileId;

use super::handles::is_written;
use super::writers::Writing;
use super::{Asker, Export, LinkId, descriptor};
use crate::watch::Watch;

/// Longest wait until somebody else gives a lease up. The kernel takes it from whoever does not,
/// after `/proc/sys/fs/lease-break-time`, which is 45 s unless somebody has changed it.
const MAX_LEASE_WAIT: Duration = Duration::from_mins(1);
/// How soon it is looked for; the pause doubles up to the last one.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LAST_PAUSE: Duration = Duration::from_millis(5);

/// The files that are open for reading only, and which of them are leased.
#[derive(Default)]
pub(super) struct Leases {
    /// `None` without a watch: nothing is told of changes then, and nothing kept for long.
    kernel: Option<lease::Leases>,
    files: HashMap<FileId, Readers>,
    /// Those that are leased.
    by_descriptor: HashMap<RawFd, FileId>,
}

/// One file.
struct Readers {
    /// That of the first handle, which stays open as long as there is one.
    file: Rc<OwnedFd>,
    handles: u32,
    leased: bool,
}

impl Leases {
    pub(super) fn new(watch: Option<&Watch>) -> Result<Leases, Errno> {
        let Some(watch) = watch else {
            return Ok(Leases::default());
        };
        let kernel = lease::Leases::new()?;
        watch.wake_for(kernel.as_fd())?;
        Ok(Leases {
            kernel: Some(kernel),
            ..Leases::default()
        })
    }

    /// One more handle that reads a file.
    pub(super) fn add_reader(&mut self, number: FileId, file: &Rc<OwnedFd>) {
        let readers = self.files.entry(number).or_insert_with(|| Readers {
            file: Rc::clone(file),
            handles: 0,
            leased: false,
        });
        readers.handles += 1;
    }

    /// One less; the lease goes with the last.
    pub(super) fn end_reader(&mut self, number: FileId) {
        let Some(readers) = self.files.get_mut(&number) else {
            return;
        };
        readers.handles -= 1;
        if readers.handles == 0 {
            self.give_up(number);
            self.files.remove(&number);
        }
    }

    /// Leases a file that has readers, if it is not.
    fn take(&mut self, number: FileId) -> Result<(), Errno> {
        let readers = self.files.get_mut(&number).ok_or(Errno::BADF)?;
        if !readers.leased {
            let kernel = self.kernel.as_ref().ok_or(Errno::OPNOTSUPP)?;
            kernel.take(readers.file.as_fd())?;
            readers.leased = true;
            self.by_descriptor.insert(readers.file.as_raw_fd(), number);
        }
        Ok(())
    }

    /// Whether there was a lease.
    fn give_up(&mut self, number: FileId) -> bool {
        let Some(readers) = self.files.get_mut(&number) else {
            return false;
        };
        if !std::mem::take(&mut readers.leased) {
            return false;
        }
        self.by_descriptor.remove(&readers.file.as_raw_fd());
        // The kernel may have taken it away.
        let _ = lease::give_up(readers.file.as_fd());
        true
    }

    #[cfg(test)]
    pub(super) fn has(&self, number: FileId) -> bool {
        self.by_descriptor.values().any(|leased| *leased == number)
    }

    /// Whether a file has readers and no lease.
    fn is_without(&self, number: FileId) -> bool {
        let readers = self.files.get(&number);
        readers.is_some_and(|readers| !readers.leased)
    }

    /// Gives up the leases for which somebody waits, and returns whose they were.
    fn give_up_broken(&mut self) -> Vec<FileId> {
        let Some(kernel) = &self.kernel else {
            return Vec::new();
        };
        let mut numbers = Vec::new();
        let mut any = false;
        while let Some(broken) = kernel.next_broken() {
            match broken {
                Broken::Of(descriptor) => numbers.extend(self.by_descriptor.get(&descriptor)),
                Broken::Some => any = true,
            }
        }
        if any {
            numbers = self.by_descriptor.values().copied().collect();
        }
        numbers.retain(|number| !lease::is_held(self.files[number].file.as_fd()));
        for &number in &numbers {
            self.give_up(number);
        }
        numbers
    }

    /// Waits, though not when a lease of ours is in somebody's way.
    pub(super) fn pause(&self, pause: Duration) {
        let Some(kernel) = &self.kernel else {
            return std::thread::sleep(pause);
        };
        let mut fds = [PollFd::new(kernel, PollFlags::IN)];
        // A wait that ends early does no harm, and no other error can be.
        let _ = poll(&mut fds, Timespec::try_from(pause).ok().as_ref());
    }
}

impl Export {
    /// Lets those go on who wait to write to a leased file, and tells the nodes.
    pub(super) fn hear_breaks(&mut self) {
        for number in self.leases.give_up_broken() {
            self.set_written(number, true);
            self.changed_by(number, true, Asker::Nobody);
        }
    }

    /// Whether the content of a file that was just opened may change without anyone being told.
    pub(super) fn is_unkept(&mut self, link: LinkId, number: FileId) -> bool {
        match self.table.writing(link, number) {
            // Nobody is told anyway, and so the node keeps it for a moment only.
            _ if !self.table.is_watched(number) => false,
            Writing::Others => true,
            Writing::Own => false,
            Writing::Unknown => self.lease(number).is_err(),
        }
    }

    fn lease(&mut self, number: FileId) -> Result<(), Errno> {
        let taken = self.leases.take(number);
        match taken {
            Ok(()) => self.set_written(number, false),
            Err(Errno::AGAIN) => self.set_written(number, true),
            Err(_) => {}
        }
        taken
    }

    /// Whether somebody on the head who was seen to write to a file can do so still.
    pub(super) fn is_still_written(&mut self, link: LinkId, number: FileId) -> bool {
        if !self.table.is_written(number) {
            return false;
        }
        let path = self.path(link, number);
        let written = path.map_or(true, |path| is_written(path.as_fd()));
        self.set_written(number, written);
        written
    }

    /// Gives up the leases that would be in this process's own way; whether there was one. Either
    /// the nodes are told then, or [`lease_again`](Export::lease_again) is called afterwards.
    pub(super) fn make_way(&mut self, number: FileId) -> bool {
        let mut had = false;
        for number in self.numbers_of(number) {
            had |= self.leases.give_up(number);
        }
        had
    }

    /// After this process has written to a file: its readers go on, and the nodes keep what they
    /// read if nobody else has come to write.
    pub(super) fn lease_again(&mut self, number: FileId) {
        for number in self.numbers_of(number) {
            if self.leases.is_without(number)
                && self.table.is_watched(number)
                && !self.table.is_written_here(number)
                && self.lease(number).is_err()
            {
                self.changed_by(number, true, Asker::Nobody);
            }
        }
    }

    fn set_written(&mut self, number: FileId, written: bool) {
        if self.table.is_written(number) != written {
            for number in self.numbers_of(number) {
                self.table.set_written(number, written);
            }
        }
    }

    /// A file under all mounts that show it.
    fn numbers_of(&self, number: FileId) -> Vec<FileId> {
        match self.table.inode(number) {
            Some(inode) => self.table.of_inode(inode),
            None => Vec::new(),
        }
    }

    /// Opens a file for writing, for which no lease of this process is in the way any more.
    ///
    /// Leases of others are waited for here rather than in the kernel, and heard meanwhile:
    /// another deputy may be waiting for one of ours. The questions of all links wait too, which
    /// keeps their order; another deputy gives a lease up in a turn of its loop.
    pub(super) fn open_to_write(
        &mut self,
        path: &Rc<OwnedFd>,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let until = Instant::now() + MAX_LEASE_WAIT;
        let mut pause = FIRST_PAUSE;
        loop {
            match descriptor::reopen_at_once(path, flags) {
                Err(Errno::AGAIN) if Instant::now() < until => self.leases.pause(pause),
                result => return result,
            }
            self.hear_breaks();
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// A link, or a lock, has a file open for writing no more.
    pub(super) fn end_writing(&mut self, number: FileId, link: Option<LinkId>) {
        self.table.end_writing(number, link);
        self.lease_again(number);
    }
}
