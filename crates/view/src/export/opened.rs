//! The few files that are open for reading without a node having a handle for them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;
use wiglaf_wire::view::FileId;

/// Most files that are kept open between reads.
const MAX_OPENED: usize = 128;

/// Open files by their number; the one unused for longest makes room.
#[derive(Debug, Default)]
pub(super) struct Opened {
    files: HashMap<FileId, (Rc<OwnedFd>, u64)>,
    /// Counts uses.
    clock: u64,
}

impl Opened {
    /// The open file of this number, opened now if it is not.
    pub(super) fn get(
        &mut self,
        number: FileId,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<Rc<OwnedFd>, Errno> {
        self.clock += 1;
        if let Some((file, used)) = self.files.get_mut(&number) {
            *used = self.clock;
            return Ok(Rc::clone(file));
        }
        let opened = Rc::new(open()?);
        self.make_room();
        self.files.insert(number, (Rc::clone(&opened), self.clock));
        Ok(opened)
    }

    /// Closes the file of this number.
    pub(super) fn drop(&mut self, number: FileId) {
        self.files.remove(&number);
    }

    /// Closes all.
    pub(super) fn clear(&mut self) {
        self.files.clear();
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
