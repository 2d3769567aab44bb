//! Deputy ↔ keeper: which file systems of the head are watched. A deputy reads the events, but
//! only the keeper has the right to say of which file systems they come.
//!
//! One packet is one message.

use serde::{Deserialize, Serialize};

/// Most file systems that are watched; a change on another is not noticed but looked for.
pub const MAX_FILE_SYSTEMS: usize = 1024;
/// Longest packet.
pub const MAX_PACKET_BYTES: usize = 32 << 10;

/// Deputy → keeper: the mount table has changed since you looked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Comes back in the answer.
    pub number: u64,
    /// The [`superblock`](FileSystem::superblock)s that have been watched all the time. These are
    /// not marked again: should one have gone meanwhile and another have its number, the deputy
    /// must see that the mark is gone.
    pub watched: Vec<u64>,
}

/// Keeper → deputy: what is watched now besides. Everything that was mounted when [`Look`] was
/// sent has been looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    /// The question's.
    pub number: u64,
    /// Those that the deputy did not know to be watched.
    pub file_systems: Vec<FileSystem>,
}

/// A watched file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileSystem {
    /// `st_dev` of its files.
    pub device: u64,
    /// The number in mount tables and of marks: the same, but for btrfs.
    pub superblock: u64,
    /// What its events call it (`f_fsid`).
    pub fsid: [u8; 8],
}
