//! What a node asks of the head's files, and what the question carries.

use serde::{Deserialize, Serialize};

use super::{FileId, Filter, HandleId, Lock, LockStyle, PieceDigest, Program, Use};
use crate::id::TaskId;

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
        /// At most [`MAX_DATA_BYTES`](super::MAX_DATA_BYTES).
        length: u32,
    },
    /// Writes all of `data` → `Attributes`. At the end of the file if it was opened with
    /// `O_APPEND`.
    Write {
        /// The open file.
        handle: HandleId,
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA_BYTES`](super::MAX_DATA_BYTES).
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
        /// Most entries wanted; never more than [`MAX_ENTRIES`](super::MAX_ENTRIES).
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
    /// A program is about to run, so the deputy may give what it will need
    /// ([`Gift`](super::Gift)). No answer.
    Expect(Program),
    /// What a program was found to need, for the next time that a node runs it. No answer.
    Used {
        /// The program's file; `None` is what comes before a task's program.
        program: Option<FileId>,
        /// In their order, at most [`MAX_USES`](super::MAX_USES).
        uses: Vec<Use>,
    },
    /// Gifts have arrived. No answer.
    Took {
        /// The sum of their [`Gift::weight`](super::Gift::weight).
        weight: u64,
        /// Bytes of given pieces that are used or thrown away by now.
        settled: u64,
    },
    /// The node has kept pieces on a disk, about these: the deputy may name them in place of
    /// sending them ([`Short`](super::Short)). No answer.
    Keeps(Filter),
    /// It does not have these any more, at most [`MAX_LOST`](super::MAX_LOST). No answer.
    Lost(Vec<PieceDigest>),
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
                | Ask::Keeps(_)
                | Ask::Lost(_)
        )
    }
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
