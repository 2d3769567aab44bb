//! Deputy ↔ agent: the view. A node asks for the head's files by numbers of the deputy's own
//! table, and the deputy says what has changed of what it told.
//!
//! The messages travel in [`Relay`](crate::stream::Relay), on the link that the standard streams
//! use, in their order. A deputy handles the questions of a link in that order, so an agent may
//! send a write and then a read of the same file without waiting; only locks that have to wait,
//! and what they wait for, are answered out of it.

mod answer;
mod ask;
mod gift;
mod kept;
mod lock;

pub use answer::{Answer, Attributes, Content, Entry, Reply, Space};
pub use ask::{Ask, NewFile, Question, SetAttributes, SetTime};
pub use gift::{Gift, Program, Use};
pub use kept::{
    Cut, Filter, MAX_ADDED, MAX_CUTS, MAX_FILTER_BYTES, MAX_LOST, MIN_KEPT_BYTES, PieceDigest,
    Short, pieces_in,
};
pub use lock::{Lock, LockKind, LockStyle};

use serde::{Deserialize, Serialize};

/// Longest piece of a file in one message, either way.
pub const MAX_DATA_BYTES: u32 = 1 << 20;
/// Most directory entries in one answer.
pub const MAX_ENTRIES: usize = 4096;
/// Longest value of an extended attribute, as the kernel's `XATTR_SIZE_MAX`.
pub const MAX_XATTR_BYTES: usize = 64 << 10;
/// Files up to this size come whole with the answer to [`Ask::Open`] that wants it.
pub const MAX_SMALL_FILE_BYTES: u64 = 64 << 10;
/// Most changes in one message.
pub const MAX_CHANGES: usize = 1024;
/// Files that are not small are given, and their use is told, in pieces of this size.
pub const PIECE_BYTES: u32 = 64 << 10;
/// Most bytes of given pieces that a node need keep before they are used.
pub const MAX_UNSETTLED_BYTES: u64 = 8 << 20;
/// Handles from this number on are the deputy's choice, for files that it gives open.
pub const FIRST_GIVEN_HANDLE: u64 = 1 << 63;
/// Most uses in one message.
pub const MAX_USES: usize = 1024;
/// Most paths that a launch may find its program at.
pub const MAX_EXPECTED_PATHS: usize = 64;

/// A file's number in a deputy's table, and its number for the node's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl FileId {
    /// The head's `/`.
    pub const ROOT: FileId = FileId(1);
}

/// An open file. The agent chooses the number, so that it can use it without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HandleId(pub u64);

/// Deputy → agent, unasked: something that was told is not so any more. It is told once; whoever
/// needs it again asks again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A file's attributes, and with `content` what it holds.
    File {
        /// The file.
        file: FileId,
        /// Whether the content may have changed.
        content: bool,
    },
    /// A name of a directory.
    Name {
        /// The directory.
        directory: FileId,
        /// The name.
        name: Vec<u8>,
    },
    /// A file and all its names may be others than they were told to be: its file system has gone,
    /// or its place.
    Doubtful {
        /// The file.
        file: FileId,
    },
    /// Anything: events were lost.
    Everything,
}

/// What a node says of one of its views.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewState {
    /// Whose files it shows.
    pub uid: u32,
    /// Tasks in it.
    pub tasks: u32,
    /// Requests of the node's kernel since it was mounted.
    pub requests: u64,
    /// Questions that went to the head.
    pub questions: u64,
    /// Changes that the head told.
    pub changes: u64,
    /// Bytes of files that came from the head.
    pub bytes_read: u64,
    /// Bytes of files that the head had only to name: the node had kept them on a disk.
    pub bytes_kept: u64,
    /// Bytes of files that went to the head.
    pub bytes_written: u64,
    /// Files whose attributes are known.
    pub files: u64,
    /// Bytes of small files that the agent holds.
    pub content_bytes: u64,
    /// Open files.
    pub handles: u64,
}

/// What a node found when it compared one of its views with the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewCheck {
    /// Whose files it shows.
    pub uid: u32,
    /// Attributes and names that were compared.
    pub compared: u64,
    /// What differed, in words; of very many, some.
    pub differences: Vec<String>,
}
