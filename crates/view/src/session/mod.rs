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
mod listing;
mod locks;
mod names;
mod pins;
mod reading;
mod requests;
mod statistics;
mod uses;

use std::collections::{HashMap, HashSet};
use std::mem;

use wiglaf_fuse::{Notification, Reply};
use wiglaf_wire::id::TaskId;
use wiglaf_wire::view::{
    Answer, Ask, Change, FileId, HandleId, LockStyle, Question, Reply as Told,
};

use files::File;
use handles::Handle;
use listing::Reader;
use pins::Pin;
pub use statistics::Statistics;
use uses::Uses;

/// How long what can't be watched is believed, in milliseconds.
pub const UNWATCHED_MS: u64 = 1000;
/// Bytes of writes that the deputy has not acknowledged; a writer waits beyond.
pub const MAX_UNACKNOWLEDGED_BYTES: u64 = 8 << 20;
/// Numbers of the node's own directories, far from any that a deputy gives.
const OWN_FIRST: u64 = 1 << 63;
/// The attribute that holds a file's SELinux label.
const SELINUX_LABEL: &[u8] = b"security.selinux";
/// In place of a question's number: the request waits for a listing that was asked for already.
/// Questions' numbers begin at 1.
const PARKED: u64 = 0;
/// A question's owner when it is the view's own.
const NOBODY: (u32, u32) = (0, 0);

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
    /// The file system of the head's `/`.
    root_device: Option<u64>,
    lockers: HashSet<(u64, u64)>,
    /// Open files that read through a descriptor which the deputy holds for a file.
    readers: HashMap<HandleId, u32>,
    checks: check::Checks,
    uses: Uses,
    stock: given::Stock,
    statistics: Statistics,
    effects: Vec<Effect>,
    lost: bool,
}

/// What an answer is for. A request's number of 0 means that nobody waits for it any more.
#[derive(Debug)]
enum Waiting {
    Lookup {
        unique: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Listing {
        directory: u64,
        from: u64,
        version: u64,
        reader: Option<Reader>,
    },
    Attributes {
        unique: u64,
        file: u64,
    },
    SetAttributes {
        unique: u64,
        file: u64,
    },
    ReadLink {
        unique: u64,
        file: u64,
    },
    /// `Make` and `Link`.
    Made {
        unique: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Created {
        unique: u64,
        parent: u64,
        name: Option<Vec<u8>>,
        handle: u64,
    },
    Removed {
        unique: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Renamed {
        unique: u64,
        from: (u64, Vec<u8>),
        to: (u64, Vec<u8>),
        exchange: bool,
    },
    Opened {
        unique: u64,
        handle: u64,
    },
    Read {
        unique: u64,
        wanted: reading::Range,
        /// Where what was asked for begins: what is before it has been given.
        from: u64,
    },
    Written {
        unique: u64,
        handle: u64,
        file: u64,
        size: u32,
    },
    Synced {
        unique: u64,
        handle: Option<u64>,
    },
    /// An answer whose attributes replace what was known.
    Changed {
        unique: u64,
        file: u64,
    },
    Count {
        unique: u64,
        changed: Option<u64>,
        as_offset: bool,
    },
    Value {
        unique: u64,
        size: u32,
    },
    Space {
        unique: u64,
    },
    Lock {
        unique: u64,
        file: u64,
    },
    TestLock {
        unique: u64,
    },
    /// What comes of it is seen elsewhere.
    Anything,
    Barrier {
        token: u64,
    },
    CheckFile {
        token: u64,
        file: u64,
    },
    CheckName {
        token: u64,
        parent: u64,
        name: Vec<u8>,
    },
}

impl Waiting {
    fn unique(&mut self) -> Option<&mut u64> {
        match self {
            Waiting::Lookup { unique, .. }
            | Waiting::Attributes { unique, .. }
            | Waiting::SetAttributes { unique, .. }
            | Waiting::ReadLink { unique, .. }
            | Waiting::Made { unique, .. }
            | Waiting::Created { unique, .. }
            | Waiting::Removed { unique, .. }
            | Waiting::Renamed { unique, .. }
            | Waiting::Opened { unique, .. }
            | Waiting::Read { unique, .. }
            | Waiting::Written { unique, .. }
            | Waiting::Synced { unique, .. }
            | Waiting::Changed { unique, .. }
            | Waiting::Count { unique, .. }
            | Waiting::Value { unique, .. }
            | Waiting::Space { unique }
            | Waiting::Lock { unique, .. }
            | Waiting::TestLock { unique } => Some(unique),
            Waiting::Listing { reader, .. } => reader.as_mut().map(|reader| &mut reader.unique),
            Waiting::Anything
            | Waiting::Barrier { .. }
            | Waiting::CheckFile { .. }
            | Waiting::CheckName { .. } => None,
        }
    }
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
            root_device: None,
            lockers: HashSet::new(),
            readers: HashMap::new(),
            checks: check::Checks::default(),
            uses: Uses::default(),
            stock: given::Stock::default(),
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

    /// The deputy answers.
    pub fn answer(&mut self, now: u64, answer: Answer) {
        self.now = now;
        // An answer that nobody asked for is the deputy's mistake, and of no use.
        let Some(mut waiting) = self.waiting.remove(&answer.id) else {
            return;
        };
        if let Some(unique) = waiting.unique() {
            self.by_request.remove(unique);
        }
        self.conclude(waiting, answer.result);
    }

    fn conclude(&mut self, waiting: Waiting, result: Result<Told, i32>) {
        match waiting {
            Waiting::Lookup {
                unique,
                parent,
                name,
            } => self.looked_up(unique, parent, name, result),
            Waiting::Listing {
                directory,
                from,
                version,
                reader,
            } => self.listed(directory, (from, version), reader, result),
            Waiting::Attributes { unique, file } => self.told_attributes(unique, file, result),
            Waiting::SetAttributes { unique, file } => self.told_attributes(unique, file, result),
            Waiting::Changed { unique, file } => self.changed_by_us(unique, file, result),
            Waiting::ReadLink { unique, file } => self.told_link(unique, file, result),
            Waiting::Made {
                unique,
                parent,
                name,
            } => self.made(unique, parent, name, result),
            Waiting::Created {
                unique,
                parent,
                name,
                handle,
            } => self.created(unique, (parent, name), handle, result),
            Waiting::Removed {
                unique,
                parent,
                name,
            } => self.removed(unique, parent, name, result),
            Waiting::Renamed {
                unique,
                from,
                to,
                exchange,
            } => self.renamed(unique, from, to, exchange, result),
            Waiting::Opened { unique, handle } => self.opened(unique, handle, result),
            Waiting::Read {
                unique,
                wanted,
                from,
            } => self.told_data(unique, wanted, from, result),
            Waiting::Written {
                unique,
                handle,
                file,
                size,
            } => self.written(unique, handle, file, size, result),
            Waiting::Synced { unique, handle } => self.synced(unique, handle, result),
            Waiting::Count {
                unique,
                changed,
                as_offset,
            } => self.counted(unique, changed, as_offset, result),
            Waiting::Value { unique, size } => match result {
                Ok(Told::Data(data)) => self.reply_value(unique, size, data.0),
                other => self.fail(unique, unexpected(other)),
            },
            Waiting::Space { unique } => match result {
                Ok(Told::Space(space)) => {
                    self.reply(unique, Reply::Space(convert::space(&space)));
                }
                other => self.fail(unique, unexpected(other)),
            },
            Waiting::Lock { unique, file } => self.locked(unique, file, result),
            Waiting::TestLock { unique } => self.tested_lock(unique, result),
            Waiting::Anything => {}
            Waiting::Barrier { token } => self.effects.push(Effect::Passed { token }),
            Waiting::CheckFile { token, file } => self.checked_file(token, file, result),
            Waiting::CheckName {
                token,
                parent,
                name,
            } => self.checked_name(token, parent, &name, result),
        }
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

    /// Asks for a barrier: [`Effect::Passed`] with this number follows when everything asked
    /// before is done and every change that was complete by then is with the kernel (V1, V2).
    pub fn barrier(&mut self, now: u64, token: u64) {
        self.now = now;
        self.drop_unwatched();
        self.drop_old_pieces();
        self.ask(NOBODY, Ask::Barrier, Waiting::Barrier { token });
    }

    fn ask(&mut self, (uid, gid): (u32, u32), what: Ask, mut waiting: Waiting) {
        if self.lost {
            return self.conclude(waiting, Err(errno::NOTCONN));
        }
        let id = self.next_question;
        self.next_question += 1;
        if let Some(&mut unique) = waiting.unique()
            && unique != 0
        {
            self.by_request.insert(unique, (id, self.asker));
        }
        // What a check asks, no program has asked.
        if !matches!(
            waiting,
            Waiting::CheckFile { .. } | Waiting::CheckName { .. }
        ) {
            self.statistics.questions += 1;
        }
        self.waiting.insert(id, waiting);
        self.effects
            .push(Effect::Ask(Question { id, uid, gid, what }));
    }

    /// The kernel's requests are those of this task, whose making is to be undone if the cluster
    /// fails it, until the next call.
    pub fn set_maker(&mut self, task: Option<TaskId>) {
        self.maker = task;
    }

    /// Says before a question that makes something of whom it is.
    fn say_maker(&mut self) {
        if let Some(task) = self.maker {
            self.say(Ask::For { task });
        }
    }

    /// A question that nothing answers.
    fn say(&mut self, what: Ask) {
        if self.lost {
            return;
        }
        let id = self.next_question;
        self.next_question += 1;
        let (uid, gid) = NOBODY;
        self.effects
            .push(Effect::Ask(Question { id, uid, gid, what }));
    }

    fn reply(&mut self, unique: u64, reply: Reply) {
        if unique != 0 {
            self.effects.push(Effect::Reply { unique, reply });
        }
    }

    fn fail(&mut self, unique: u64, errno: i32) {
        self.reply(unique, Reply::Error(errno));
    }

    fn get_xattr(&mut self, unique: u64, who: (u32, u32), node: u64, name: &[u8], size: u32) {
        // A node does not act on the head's labels. Said so, tools that would ask for that of each
        // file stop after the first.
        if name == SELINUX_LABEL {
            return self.fail(unique, errno::OPNOTSUPP);
        }
        match self.valid_attributes(node) {
            Some(attributes) if !attributes.xattrs => self.fail(unique, errno::NODATA),
            _ => {
                let (file, name) = (FileId(node), name.to_vec());
                let waiting = Waiting::Value { unique, size };
                self.ask(who, Ask::Xattr { file, name }, waiting);
            }
        }
    }

    fn list_xattrs(&mut self, unique: u64, who: (u32, u32), node: u64, size: u32) {
        match self.valid_attributes(node) {
            Some(attributes) if !attributes.xattrs => self.reply_value(unique, size, Vec::new()),
            _ => {
                let file = FileId(node);
                let waiting = Waiting::Value { unique, size };
                self.ask(who, Ask::ListXattrs { file }, waiting);
            }
        }
    }

    fn reply_value(&mut self, unique: u64, size: u32, value: Vec<u8>) {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        if size == 0 {
            self.reply(unique, Reply::Size(length));
        } else if length > size {
            self.fail(unique, errno::RANGE);
        } else {
            self.reply(unique, Reply::Data(value));
        }
    }
}

/// What an answer that is not of the kind asked for amounts to.
fn unexpected(result: Result<Told, i32>) -> i32 {
    match result {
        Err(errno) if errno > 0 => errno,
        _ => errno::IO,
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

#[cfg(test)]
mod tests;
