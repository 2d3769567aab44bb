//! The node's end of the view of one deputy: what the node's kernel asks is answered from what
//! the deputy has told, or asked for.
//!
//! Pure: no socket, no thread, no clock. Whoever drives it hands in the kernel's requests, the
//! deputy's answers and changes, and the time, and carries out the [`Effect`]s in their order.
//!
//! What has been told is believed until the deputy takes it back ([`Change`]); so is what the
//! kernel is told. The kernel learns of a change by a notice. Files on file systems that can't
//! be watched are believed for [`UNWATCHED_MS`] and never past the launch of a task.

mod changes;
mod check;
mod convert;
mod files;
mod given;
mod handles;
mod links;
mod listing;
mod locks;
mod names;
mod pins;
mod questions;
mod reading;
mod requests;
mod statistics;
#[cfg(test)]
mod tests;
mod uses;
mod xattrs;

pub use given::Missing;
pub use statistics::Statistics;

use std::collections::{HashMap, HashSet};
use std::mem;

use wiglaf_fuse::{Notification, Reply};
use wiglaf_wire::id::TaskId;
use wiglaf_wire::view::{Change, FileId, HandleId, Question};

use files::File;
use handles::Handle;
use pins::Pin;
use questions::Waiting;
use uses::Uses;

/// How long what can't be watched is believed, in milliseconds.
pub const UNWATCHED_MS: u64 = 1000;
/// Bytes of writes that the deputy has not acknowledged; a writer waits beyond.
pub const MAX_UNACKNOWLEDGED_BYTES: u64 = 8 << 20;
/// Numbers of the node's own directories, far from any that a deputy gives.
const OWN_FIRST: u64 = 1 << 63;
/// In place of a question's number: the request waits for a listing that was asked for already.
/// Questions' numbers begin at 1.
const PARKED: u64 = 0;

/// What the driver has to do, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Answer the kernel.
    Reply {
        /// The request's number.
        unique: u64,
        /// The answer.
        reply: Reply,
    },
    /// As `Reply`, when the kernel has taken every notice before it (V5).
    ReplyAfterNotices {
        /// The request's number.
        unique: u64,
        /// The answer.
        reply: Reply,
    },
    /// Send this to the deputy.
    Ask(Question),
    /// Tell the kernel that a file's attributes are not what they were. This never blocks.
    Refresh {
        /// The file.
        node: u64,
    },
    /// Tell the kernel something that may block until requests before it are answered.
    Notice(Notification),
    /// The barrier with this number is passed once the kernel has taken every notice before it.
    Passed {
        /// The caller's number.
        token: u64,
    },
    /// Data that a program had written did not reach the head, and only the answer to its close
    /// says so.
    CloseFailed {
        /// The closing process, in the node's numbers.
        pid: u32,
        /// The file's path on the head.
        path: Vec<u8>,
        /// Why.
        errno: i32,
    },
    /// A check that was asked for is over.
    Checked {
        /// The caller's number.
        token: u64,
        /// How many files and names were compared.
        compared: u64,
        /// What differed, in words.
        differences: Vec<String>,
    },
}

/// The view of one deputy.
#[derive(Debug)]
pub struct Session {
    now: u64,
    files: HashMap<u64, File>,
    /// Files that the kernel has forgotten, oldest first, perhaps again in use since.
    idle: std::collections::VecDeque<(u64, u64)>,
    idle_stamp: u64,
    content_bytes: u64,
    max_files: usize,
    max_content_bytes: u64,
    handles: HashMap<u64, Handle>,
    waiting: HashMap<u64, Waiting>,
    /// Questions by the request that waits for them, with the asking process.
    by_request: HashMap<u64, (u64, u32)>,
    asker: u32,
    /// Of whom the kernel asks, if what that one makes may have to be undone.
    maker: Option<TaskId>,
    next_question: u64,
    next_handle: u64,
    unacknowledged: u64,
    own: Vec<(Vec<u8>, u64)>,
    pins: Vec<Pin>,
    links: Vec<links::OwnLink>,
    next_link: u64,
    /// The file system of the head's `/`.
    root_device: Option<u64>,
    lockers: HashSet<(u64, u64)>,
    /// Open files that read through a descriptor which the deputy holds for a file.
    readers: HashMap<HandleId, u32>,
    checks: check::Checks,
    uses: Uses,
    stock: given::Stock,
    /// The node keeps pieces on a disk, so whole ones are asked for.
    is_keeping: bool,
    statistics: Statistics,
    effects: Vec<Effect>,
    lost: bool,
}

/// How much a session may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Files that it knows without the kernel needing them.
    pub files: usize,
    /// Bytes of small files and listings.
    pub content_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            files: 100_000,
            content_bytes: 64 << 20,
        }
    }
}

impl Session {
    /// A view in which the names `own` of `/` are empty directories of the node's own, for it to
    /// mount on, whatever the head has there.
    pub fn new(own: &[impl AsRef<str>], bounds: Bounds) -> Session {
        let mut files = HashMap::new();
        files.insert(FileId::ROOT.0, File::root());
        Session {
            now: 0,
            files,
            idle: std::collections::VecDeque::new(),
            idle_stamp: 0,
            content_bytes: 0,
            max_files: bounds.files,
            max_content_bytes: bounds.content_bytes,
            handles: HashMap::new(),
            waiting: HashMap::new(),
            by_request: HashMap::new(),
            asker: 0,
            maker: None,
            next_question: 1,
            next_handle: 1,
            unacknowledged: 0,
            own: (own.iter().zip(OWN_FIRST..))
                .map(|(name, node)| (name.as_ref().as_bytes().to_vec(), node))
                .collect(),
            pins: Vec::new(),
            links: Vec::new(),
            next_link: 0,
            root_device: None,
            lockers: HashSet::new(),
            readers: HashMap::new(),
            checks: check::Checks::default(),
            uses: Uses::default(),
            stock: given::Stock::default(),
            is_keeping: false,
            statistics: Statistics::default(),
            effects: Vec::new(),
            lost: false,
        }
    }

    /// What is to be done, since it was last asked for.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        mem::take(&mut self.effects)
    }

    /// What it has done so far, and what it knows.
    pub fn statistics(&self) -> Statistics {
        let known = |file: &&File| file.attributes.is_some();
        Statistics {
            files: self.files.values().filter(known).count() as u64,
            content_bytes: self.content_bytes,
            handles: self.handles.len() as u64,
            waiting: self.waiting.len() as u64,
            unacknowledged_bytes: self.unacknowledged,
            ..self.statistics
        }
    }

    /// Whether the deputy has yet to say that something is done.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The process that waits for this request, if it does.
    pub fn asker(&self, unique: u64) -> Option<u32> {
        self.by_request.get(&unique).map(|(_, pid)| *pid)
    }

    /// The deputy says what is not so any more.
    pub fn changed(&mut self, now: u64, changes: Vec<Change>) {
        self.now = now;
        for change in changes {
            self.statistics.changes += 1;
            match change {
                Change::File { file, content } => self.file_changed(file.0, content),
                Change::Name { directory, name } => self.name_changed(directory.0, name),
                Change::Doubtful { file } => self.doubt(file.0),
                Change::Everything => self.everything_changed(),
            }
        }
    }

    fn reply(&mut self, unique: u64, reply: Reply) {
        if unique != 0 {
            self.effects.push(Effect::Reply { unique, reply });
        }
    }

    fn fail(&mut self, unique: u64, errno: i32) {
        self.reply(unique, Reply::Error(errno));
    }
}

/// The error numbers that a view has of its own; the same on every architecture that Linux
/// nodes have.
mod errno {
    pub(super) const NOENT: i32 = 2;
    pub(super) const INTR: i32 = 4;
    pub(super) const IO: i32 = 5;
    pub(super) const BADF: i32 = 9;
    pub(super) const NOTTY: i32 = 25;
    pub(super) const NAMETOOLONG: i32 = 36;
    pub(super) const ROFS: i32 = 30;
    pub(super) const RANGE: i32 = 34;
    pub(super) const NOSYS: i32 = 38;
    pub(super) const NODATA: i32 = 61;
    pub(super) const OPNOTSUPP: i32 = 95;
    pub(super) const NOTCONN: i32 = 107;
    pub(super) const STALE: i32 = 116;
}
