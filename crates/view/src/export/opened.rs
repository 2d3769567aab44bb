//! The few files that are open for reading at a time.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Most files that are kept open between reads.
const MAX_OPENED: usize = 128;

/// Open files by their number in the table; the one unused for longest makes room.
#[derive(Debug, Default)]
pub(super) struct Opened {
    files: HashMap<u64, (OwnedFd, u64)>,
    /// Counts uses.
    clock: u64,
}

impl Opened {
    /// The open file of this number, opened now if it is not.
    pub(super) fn get(
        &mut self,
        number: u64,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<BorrowedFd<'_>, Errno> {
        self.clock += 1;
        let clock = self.clock;
        if !self.files.contains_key(&number) {
            let opened = open()?;
            self.make_room();
            self.files.insert(number, (opened, clock));
        }
        let opened = self.files.get_mut(&number).ok_or(Errno::STALE)?;
        opened.1 = clock;
        Ok(opened.0.as_fd())
    }

    /// Closes the file of this number.
    pub(super) fn drop(&mut self, number: u64) {
        self.files.remove(&number);
    }

    fn make_room(&mut self) {
        if self.files.len() < MAX_OPENED {
            return;
        }
        let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used);
        if let Some(number) = oldest.map(|(&number, _)| number) {
            self.files.remove(&number);
        }
    }
}
