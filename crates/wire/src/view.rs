//! Deputy ↔ agent: the view. A node asks for the head's files by numbers of the deputy's own
//! table, and the deputy says what has changed of what it told.
//!
//! The messages travel in [`Relay`](crate::stream::Relay), on the link that the standard streams
//! use, in their order. A deputy handles the questions of a link in that order, so an agent may
//! send a write and then a read of the same file without waiting; only locks that have to wait,
//! and what they wait for, are answered out of it.

use serde::{Deserialize, Serialize};

use crate::id::TaskId;

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

/// A question of the view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer.
    pub id: u64,
    /// User that the asking process acts as on the node. A deputy that is not root's acts with
    /// its own user's rights whatever is said here; root's makes new files this user's.
    pub uid: u32,
    /// Group likewise.
    pub gid: u32,
    /// What is asked.
    pub what: Ask,
}

/// What a node asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Nothing: the answer, `Done`, says that everything asked before on this link has been
    /// done, and that every change which was complete on the head when the question arrived has
    /// been told (V1).
    Barrier,
    /// Find a name in a directory → `Entry`.
    Lookup {
        /// Directory.
        parent: FileId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// → `Attributes`.
    Attributes {
        /// The file.
        file: FileId,
    },
    /// Changes attributes → `Attributes`.
    SetAttributes {
        /// The file.
        file: FileId,
        /// The open file that it is done through, as by `ftruncate`.
        handle: Option<HandleId>,
        /// What to change.
        set: SetAttributes,
    },
    /// A symbolic link's text → `Data`.
    ReadLink {
        /// The link.
        file: FileId,
    },
    /// Makes a directory, symbolic link or special file → `Entry`. A new directory counts as
    /// listed: the agent knows that it is empty.
    Make {
        /// Directory.
        parent: FileId,
        /// New name.
        name: Vec<u8>,
        /// What to make.
        what: NewFile,
        /// Permission bits, before the umask.
        mode: u32,
        /// The process's umask, which a default ACL replaces.
        umask: u32,
    },
    /// Opens a regular file, making it if need be → `Opened`. `O_EXCL` and `O_TRUNC` as in
    /// `open(2)`.
    Create {
        /// Directory.
        parent: FileId,
        /// Name.
        name: Vec<u8>,
        /// Permission bits, before the umask.
        mode: u32,
        /// The process's umask.
        umask: u32,
        /// `O_*` flags of Linux x86_64 (asm-generic).
        flags: u32,
        /// The number that it is to have.
        handle: HandleId,
    },
    /// Makes a file without a name (`O_TMPFILE`) → `Opened`.
    Temporary {
        /// Directory whose file system it is on.
        parent: FileId,
        /// Permission bits, before the umask.
        mode: u32,
        /// The process's umask.
        umask: u32,
        /// `O_*` flags.
        flags: u32,
        /// The number that it is to have.
        handle: HandleId,
    },
    /// Gives a file one more name → `Entry`.
    Link {
        /// The file.
        file: FileId,
        /// Directory of the new name.
        parent: FileId,
        /// New name.
        name: Vec<u8>,
    },
    /// Removes a name → `Done`.
    Remove {
        /// Directory.
        parent: FileId,
        /// Name.
        name: Vec<u8>,
        /// `rmdir` rather than `unlink`.
        directory: bool,
    },
    /// Renames → `Done`.
    Rename {
        /// Directory of the old name.
        from_parent: FileId,
        /// Old name.
        from: Vec<u8>,
        /// Directory of the new name.
        to_parent: FileId,
        /// New name.
        to: Vec<u8>,
        /// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`.
        flags: u32,
    },
    /// Opens a regular file → `Opened`.
    Open {
        /// The file.
        file: FileId,
        /// `O_*` flags; `O_CREAT` and `O_EXCL` mean nothing here.
        flags: u32,
        /// The number that it is to have.
        handle: HandleId,
        /// Whether a small file's content is wanted with the answer.
        content: bool,
    },
    /// Gives an open file back, with its locks. No answer.
    Close {
        /// The open file.
        handle: HandleId,
    },
    /// Bytes of a regular file → `Data`, shorter than asked only at its end. A file that is not
    /// open by a handle is read with the rights of now.
    Read {
        /// The file.
        file: FileId,
        /// The open file, if the node has one that is open for reading here.
        handle: Option<HandleId>,
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA_BYTES`].
        length: u32,
    },
    /// Writes all of `data` → `Attributes`. At the end of the file if it was opened with
    /// `O_APPEND`.
    Write {
        /// The open file.
        handle: HandleId,
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA_BYTES`].
        #[serde(with = "crate::stream::whole")]
        data: Vec<u8>,
        /// Clear the set-uid and set-gid bits, as a write by somebody without privilege does.
        drop_privileges: bool,
    },
    /// Has a file's data on the disk before → `Done`.
    Sync {
        /// The file or directory.
        file: FileId,
        /// The open file.
        handle: Option<HandleId>,
        /// As `fdatasync`.
        data_only: bool,
    },
    /// `fallocate(2)` → `Attributes`.
    Allocate {
        /// The open file.
        handle: HandleId,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// `lseek(2)` with `SEEK_DATA` (3) or `SEEK_HOLE` (4) → `Count`, the new offset.
    Seek {
        /// The open file.
        handle: HandleId,
        /// Where from.
        offset: u64,
        /// Which of the two.
        whence: u32,
    },
    /// `copy_file_range(2)` → `Count`, the bytes copied.
    Copy {
        /// Source.
        from: HandleId,
        /// First byte of it.
        from_offset: u64,
        /// Destination.
        to: HandleId,
        /// First byte of it.
        to_offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Names in a directory, from `offset` on → `Entries`.
    List {
        /// The directory.
        directory: FileId,
        /// 0, or some entry's `next`.
        offset: u64,
        /// Most entries wanted; never more than [`MAX_ENTRIES`].
        most: u32,
        /// Whether attributes are wanted too; each that comes is told as by a `Lookup`. None come
        /// for `.` and `..`.
        attributes: bool,
    },
    /// An extended attribute → `Data`.
    Xattr {
        /// The file.
        file: FileId,
        /// Its name.
        name: Vec<u8>,
    },
    /// Names of extended attributes, each ended by a 0 byte → `Data`.
    ListXattrs {
        /// The file.
        file: FileId,
    },
    /// Sets one → `Attributes`.
    SetXattr {
        /// The file.
        file: FileId,
        /// Its name.
        name: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        flags: u32,
        /// An ACL that takes the set-gid bit away, as the node's kernel found.
        drop_set_gid: bool,
    },
    /// Removes one → `Attributes`.
    RemoveXattr {
        /// The file.
        file: FileId,
        /// Its name.
        name: Vec<u8>,
    },
    /// → `Space`.
    Space {
        /// A file of the file system.
        file: FileId,
    },
    /// Takes or gives up an advisory lock → `Attributes` of the file as it is then (V5). One
    /// that has to wait is answered when it is granted, or `EINTR` after [`Ask::Interrupt`].
    Lock {
        /// The file.
        file: FileId,
        /// The open file.
        handle: HandleId,
        /// Who: the kernel's number for a process's or an open file's locks.
        owner: u64,
        /// Which kind of lock.
        style: LockStyle,
        /// What.
        lock: Lock,
        /// Whether to wait, rather than `EAGAIN`.
        wait: bool,
    },
    /// `F_GETLK` → `Locked`.
    TestLock {
        /// The file.
        file: FileId,
        /// The open file.
        handle: HandleId,
        /// Who asks.
        owner: u64,
        /// What it would take.
        lock: Lock,
    },
    /// Gives up a process's (not an open file's) locks on a file, as any close by it does. No
    /// answer.
    Unlock {
        /// The file.
        file: FileId,
        /// Whose.
        owner: u64,
    },
    /// The next question of this link is asked by a process of this task, of which all that it
    /// makes anew is to be removed if the cluster fails it. No answer.
    For {
        /// The task. It must be attached by this link.
        task: TaskId,
    },
    /// A question that waits for a lock need not be answered any more. No answer to this one.
    Interrupt {
        /// That question.
        id: u64,
    },
    /// The node forgets this number after `count` tellings of it. No answer.
    Forget {
        /// The file.
        file: FileId,
        /// How many tellings are given back.
        count: u64,
    },
    /// A program is about to run, so the deputy may give what it will need ([`Gift`]). No answer.
    Expect(Program),
    /// What a program was found to need, for the next time that a node runs it. No answer.
    Used {
        /// The program's file; `None` is what comes before a task's program.
        program: Option<FileId>,
        /// In their order, at most [`MAX_USES`].
        uses: Vec<Use>,
    },
    /// Gifts have arrived. No answer.
    Took {
        /// The sum of their [`Gift::weight`].
        weight: u64,
        /// Bytes of given pieces that are used or thrown away by now.
        settled: u64,
    },
}

impl Ask {
    /// Whether it is answered. What is not gives something back.
    pub fn has_answer(&self) -> bool {
        !matches!(
            self,
            Ask::Close { .. }
                | Ask::Unlock { .. }
                | Ask::Interrupt { .. }
                | Ask::For { .. }
                | Ask::Forget { .. }
                | Ask::Expect(_)
                | Ask::Used { .. }
                | Ask::Took { .. }
        )
    }
}

/// What [`Ask::Expect`] announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A task's: the first of these paths where there is something, at most
    /// [`MAX_EXPECTED_PATHS`]. They are absolute.
    Launched(Vec<Vec<u8>>),
    /// One that was executed just now.
    Executed(FileId),
}

/// One use of the head's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Use {
    /// A name was looked up, whatever it meant.
    Name {
        /// Its directory.
        parent: FileId,
        /// The name.
        name: Vec<u8>,
    },
    /// A file was opened to be read.
    Opened(FileId),
    /// A file was executed.
    Executed(FileId),
    /// A symbolic link was read.
    Link(FileId),
    /// A directory was listed.
    Listed(FileId),
    /// Something of this piece of [`PIECE_BYTES`] of a file that is not small was read.
    Piece(FileId, u32),
}

/// What [`Ask::Make`] makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewFile {
    /// A directory.
    Directory,
    /// A symbolic link with this text.
    Link(Vec<u8>),
    /// What `mknod` makes: the type is in the mode.
    Special {
        /// The device number, in the form of `makedev(3)`.
        device: u64,
    },
}

/// Attributes to change; `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub accessed: Option<SetTime>,
    /// Modification time.
    pub modified: Option<SetTime>,
    /// Clear the set-uid and set-gid bits (a truncation or change of owner without privilege).
    pub drop_privileges: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The head's clock, now.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

/// Kinds of advisory locks, which do not see each other on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockStyle {
    /// `fcntl(2)`: of a process or, with `F_OFD_*`, an open file; of a range.
    Record,
    /// `flock(2)`.
    Whole,
}

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// What.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` is the end of the file wherever that will be.
    pub end: u64,
    /// Of whom it is, where that is known: a PID on the head or in the cluster; 0 is nobody's.
    pub pid: u32,
}

/// What a lock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Keeps writers off.
    Read,
    /// Keeps everybody else off.
    Write,
    /// Is no lock.
    Unlock,
}

/// Answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's.
    pub id: u64,
    /// The answer, or an errno.
    pub result: Result<Reply, i32>,
}

/// What a node is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// A name's file. That there is none is an answer too, which holds until told otherwise.
    Entry(Option<Attributes>),
    /// A file's attributes.
    Attributes(Attributes),
    /// An open file.
    Opened {
        /// Its attributes, told as by a `Lookup` if it was asked for by name.
        attributes: Attributes,
        /// The whole content, where it was wanted and is small.
        content: Option<Content>,
        /// Somebody on the head may change the content without anyone being told (it is open for
        /// writing there), so none of it may be kept.
        unkept: bool,
    },
    /// Bytes.
    Data(Content),
    /// Names in a directory.
    Entries {
        /// In the directory's order.
        entries: Vec<Entry>,
        /// Whether the listing is over.
        end: bool,
    },
    /// A number.
    Count(u64),
    /// A file system's size.
    Space(Space),
    /// The lock that is in the way, if any.
    Locked(Option<Lock>),
    /// In place of `Data`: all of it went with the gifts before this answer. Whoever has not kept
    /// them asks again.
    Given,
}

/// Deputy → agent, unasked: what a question would be answered with now. It is believed, and taken
/// back, like any answer; an agent may throw it away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gift {
    /// As the answer to [`Ask::Lookup`].
    Name {
        /// Directory.
        parent: FileId,
        /// Name in it.
        name: Vec<u8>,
        /// What it means.
        found: Option<Attributes>,
    },
    /// As the answer to [`Ask::Open`] for reading.
    Opened {
        /// The number of the open file, which the agent closes.
        handle: HandleId,
        /// The file's attributes.
        attributes: Attributes,
        /// The content, if it is small.
        content: Option<Content>,
    },
    /// As the answer to [`Ask::ReadLink`].
    Link {
        /// The link.
        file: FileId,
        /// Its text.
        text: Content,
    },
    /// As the answer to [`Ask::List`] from the beginning, with attributes.
    Listing {
        /// The directory.
        directory: FileId,
        /// Its first entries.
        entries: Vec<Entry>,
        /// Whether these are all.
        end: bool,
    },
    /// As the answer to [`Ask::Read`] of one piece of a file that was given open.
    Piece {
        /// The file.
        file: FileId,
        /// Which one.
        piece: u32,
        /// Shorter than [`PIECE_BYTES`] only at the end of the file.
        data: Content,
    },
}

impl Gift {
    /// About how many bytes it has in a message. Both ends count by this.
    pub fn weight(&self) -> u64 {
        const ATTRIBUTES: usize = 128;
        let bytes = match self {
            Gift::Name { name, found, .. } => name.len() + found.as_ref().map_or(0, |_| ATTRIBUTES),
            Gift::Opened { content, .. } => content.as_ref().map_or(0, |content| content.0.len()),
            Gift::Link { text, .. } => text.0.len(),
            Gift::Listing { entries, .. } => entries
                .iter()
                .map(|entry| entry.name.len() + ATTRIBUTES)
                .sum(),
            Gift::Piece { data, .. } => data.0.len(),
        };
        (bytes + ATTRIBUTES) as u64
    }
}

/// Bytes that serde copies at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content(#[serde(with = "crate::stream::whole")] pub Vec<u8>);

/// A file's attributes on the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Number in the deputy's table.
    pub file: FileId,
    /// Inode number on the head.
    pub ino: u64,
    /// Which of the head's file systems it is on.
    pub device: u64,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of reads and writes, in bytes.
    pub block_size: u32,
    /// Device number, for device files.
    pub rdev: u64,
    /// Access, modification and change time: seconds and nanoseconds.
    pub times: [(i64, u32); 3],
    /// Whether the deputy will say when any of this, or the content, changes. If not, it is good
    /// for a moment only.
    pub watched: bool,
    /// Whether it has extended attributes, ACLs included, or may have some: if not, nobody need
    /// ask. (The kernel asks for ACLs at every new file that it checks rights of.)
    pub xattrs: bool,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// Inode number on the head.
    pub ino: u64,
    /// `DT_*` of `readdir(3)`.
    pub kind: u8,
    /// Where the listing goes on after this entry.
    pub next: u64,
    /// Its attributes, where they were asked for and could be had.
    pub attributes: Option<Attributes>,
}

/// A file system's size, as `statfs(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Block size in bytes.
    pub block_size: u32,
    /// Fragment size in bytes.
    pub fragment_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Those that this user may have.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub free_files: u64,
    /// Longest name.
    pub name_length: u32,
}

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
