//! A listing, in the room that the kernel has for it.

use crate::reply::{ENTRY_BYTES, Entry, Fields};

/// Each entry starts at a multiple of this.
const ALIGNMENT: usize = 8;
/// Bytes of a `fuse_dirent` before its name.
const ENTRY_HEADER_BYTES: usize = 24;

/// Entries of a directory. One is filled by [`add`](Self::add) alone or by
/// [`add_plus`](Self::add_plus) alone, as the request wanted; an empty one is the listing's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryBuffer {
    bytes: Vec<u8>,
    limit: usize,
}

impl DirectoryBuffer {
    /// Has room for `limit` bytes: the request's `size`.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
        }
    }

    /// Adds an entry, or says that it does not fit. `next` is the offset at which the listing
    /// goes on after it, and `kind` is `DT_*`.
    #[must_use = "an entry that does not fit belongs into the next answer"]
    pub fn add(&mut self, ino: u64, next: u64, kind: u8, name: &[u8]) -> bool {
        if !self.fits(ENTRY_HEADER_BYTES + name.len()) {
            return false;
        }
        self.put(ino, next, kind, name);
        true
    }

    /// Adds an entry as a lookup would tell of it, which counts as one telling of its node.
    /// Without one (`.`, `..`, or when nothing is known) the kernel looks it up when it needs it.
    #[must_use = "an entry that does not fit belongs into the next answer"]
    pub fn add_plus(
        &mut self,
        ino: u64,
        next: u64,
        kind: u8,
        name: &[u8],
        entry: Option<&Entry>,
    ) -> bool {
        if !self.fits(ENTRY_BYTES + ENTRY_HEADER_BYTES + name.len()) {
            return false;
        }
        match entry {
            Some(entry) => entry.encode(&mut Fields(&mut self.bytes)),
            None => self.bytes.resize(self.bytes.len() + ENTRY_BYTES, 0),
        }
        self.put(ino, next, kind, name);
        true
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn fits(&self, unpadded: usize) -> bool {
        self.bytes.len() + unpadded.next_multiple_of(ALIGNMENT) <= self.limit
    }

    fn put(&mut self, ino: u64, next: u64, kind: u8, name: &[u8]) {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let mut fields = Fields(&mut self.bytes);
        fields.u64(ino).u64(next).u32(length).u32(u32::from(kind));
        self.bytes.extend_from_slice(name);
        let padded = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(padded, 0);
    }
}
