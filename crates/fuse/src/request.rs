//! What the kernel asks.

mod parse;

use crate::init::InitRequest;

/// A request of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The reply's address.
    pub unique: u64,
    /// The file that it is about, by the number that an [`Entry`](crate::Entry) gave; 0 where it
    /// is about none.
    pub node: u64,
    /// Effective file system user of the asking process.
    pub uid: u32,
    /// Group likewise.
    pub gid: u32,
    /// The asking thread (not its process), in the PID namespace that mounted; 0 if it is not seen
    /// there, or if the kernel asks by itself.
    pub pid: u32,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// A request that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not even the header.
    #[error("a FUSE request of {length} bytes has no header, or another length in it")]
    Header {
        /// Bytes there are.
        length: usize,
    },
    /// The header is good, so the request can be refused.
    #[error("FUSE request {unique} (operation {opcode}) is cut off or ill-formed")]
    Body {
        /// The reply's address.
        unique: u64,
        /// The operation, by the kernel's number.
        opcode: u32,
    },
}

/// What is asked of a file. Names hold no `/` and no NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// The mount is new → [`Reply::Init`](crate::Reply::Init).
    Init(InitRequest),
    /// The mount is gone; only where it was made on a block device.
    Destroy,
    /// A name in the directory → `Entry` or `NoEntry`.
    Lookup {
        /// The name.
        name: &'a [u8],
    },
    /// The kernel gives back tellings of this node. No reply.
    Forget {
        /// How many.
        count: u64,
    },
    /// The same for many: pairs of node and count. No reply.
    BatchForget(Vec<(u64, u64)>),
    /// → `Attributes`.
    GetAttributes {
        /// The open file that is asked through.
        handle: Option<u64>,
    },
    /// → `Attributes`.
    SetAttributes(SetAttributes),
    /// A symbolic link's text → `Data`.
    ReadLink,
    /// Makes a symbolic link → `Entry`.
    Symlink {
        /// New name.
        name: &'a [u8],
        /// The text.
        target: &'a [u8],
    },
    /// `mknod(2)`, and the making of regular files where `Create` was refused → `Entry`.
    MakeNode {
        /// New name.
        name: &'a [u8],
        /// Type and permissions before the umask.
        mode: u32,
        /// Device number as the kernel packs it (`new_encode_dev`).
        rdev: u32,
        /// The process's umask.
        umask: u32,
    },
    /// → `Entry`.
    MakeDirectory {
        /// New name.
        name: &'a [u8],
        /// Permissions before the umask.
        mode: u32,
        /// The process's umask.
        umask: u32,
    },
    /// → `Empty`.
    Unlink {
        /// The name.
        name: &'a [u8],
    },
    /// → `Empty`.
    RemoveDirectory {
        /// The name.
        name: &'a [u8],
    },
    /// → `Empty`.
    Rename {
        /// Old name, in the request's node.
        name: &'a [u8],
        /// Directory of the new name.
        new_parent: u64,
        /// New name.
        new_name: &'a [u8],
        /// `RENAME_*`.
        flags: u32,
    },
    /// One more name, in the request's node → `Entry`.
    Link {
        /// The file.
        file: u64,
        /// The new name.
        name: &'a [u8],
    },
    /// → `Opened`.
    Open {
        /// `O_*` without `O_CREAT`, `O_EXCL` and `O_NOCTTY`.
        flags: u32,
        /// Clear the set-uid and set-gid bits (with `O_TRUNC`).
        kill_privileges: bool,
    },
    /// → `Opened`, or `ENOSYS` once and for ever: the kernel then asks no more, and listings come
    /// with handle 0.
    OpenDirectory {
        /// `O_*`.
        flags: u32,
    },
    /// Makes, if need be, and opens → `Created`.
    Create {
        /// The name.
        name: &'a [u8],
        /// Type and permissions before the umask.
        mode: u32,
        /// The process's umask.
        umask: u32,
        /// `O_*`.
        flags: u32,
        /// Clear the set-uid and set-gid bits (with `O_TRUNC`).
        kill_privileges: bool,
    },
    /// `O_TMPFILE` on the file system of the request's node, a directory → `Created`.
    TemporaryFile {
        /// Type and permissions before the umask.
        mode: u32,
        /// The process's umask.
        umask: u32,
        /// `O_*`.
        flags: u32,
    },
    /// → `Data`, short only at the end of the file.
    Read {
        /// The open file.
        handle: u64,
        /// First byte.
        offset: u64,
        /// Most bytes.
        size: u32,
        /// Whose locks matter.
        lock_owner: Option<u64>,
        /// `O_*` of the open file.
        flags: u32,
    },
    /// → `Written`.
    Write {
        /// The open file.
        handle: u64,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
        /// From a page that was written through a mapping: the handle is any that can write, and
        /// the request's user is the kernel's guess.
        from_cache: bool,
        /// Clear the set-uid and set-gid bits.
        kill_privileges: bool,
        /// Whose locks matter.
        lock_owner: Option<u64>,
        /// `O_*` of the open file.
        flags: u32,
    },
    /// → `Space`.
    StatFs,
    /// `statx(2)` that wants what `GetAttributes` has not → `Statx`; `ENOSYS` once and for ever
    /// makes the kernel ask for attributes instead.
    Statx {
        /// The open file that is asked through.
        handle: Option<u64>,
        /// `AT_STATX_*`.
        flags: u32,
        /// `STATX_*`.
        mask: u32,
    },
    /// `syncfs(2)` → `Empty`. Sent only by mounts that we do not make (virtiofs).
    SyncFs,
    /// The last descriptor of an open file is gone → `Empty`. Nobody waits for it.
    Release {
        /// The open file.
        handle: u64,
        /// `O_*`.
        flags: u32,
        /// Give up this owner's `flock(2)`.
        flock_owner: Option<u64>,
        /// The same number; 0 without a `flock`.
        lock_owner: u64,
    },
    /// → `Empty`.
    ReleaseDirectory {
        /// The open directory.
        handle: u64,
    },
    /// A descriptor is closed: `close(2)` returns this reply's error, and `owner`'s record locks
    /// on the file are given up → `Empty`.
    Flush {
        /// The open file.
        handle: u64,
        /// Whose.
        lock_owner: u64,
    },
    /// → `Empty`.
    Fsync {
        /// The open file.
        handle: u64,
        /// As `fdatasync(2)`.
        data_only: bool,
    },
    /// → `Empty`.
    FsyncDirectory {
        /// As `fdatasync(2)`.
        data_only: bool,
    },
    /// → `Empty`.
    SetXattr {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// `XATTR_*`.
        flags: u32,
        /// Clear the set-gid bit along with this access ACL.
        drop_set_gid: bool,
    },
    /// → `Data`, or `Size` if `size` is 0; `ERANGE` if it does not fit.
    GetXattr {
        /// Its name.
        name: &'a [u8],
        /// Room there is.
        size: u32,
    },
    /// Names, each with a NUL → as for `GetXattr`.
    ListXattr {
        /// Room there is.
        size: u32,
    },
    /// → `Empty`.
    RemoveXattr {
        /// Its name.
        name: &'a [u8],
    },
    /// → `Directory`.
    ReadDirectory {
        /// The open directory; 0 where opening was answered with `ENOSYS`.
        handle: u64,
        /// Some entry's `next`, or 0.
        offset: u64,
        /// Room there is.
        size: u32,
        /// Whether entries are wanted as by `Lookup`.
        plus: bool,
    },
    /// `F_GETLK` → `Lock`.
    GetLock(LockRequest),
    /// → `Empty`, `EAGAIN` if it can't be had at once, `EINTR` if an [`Operation::Interrupt`]
    /// ended the wait.
    SetLock {
        /// What.
        lock: LockRequest,
        /// Whether to wait.
        wait: bool,
    },
    /// `access(2)` where the kernel does not decide itself → `Empty`.
    Access {
        /// `R_OK` and so on.
        mask: u32,
    },
    /// The asker of a request got a signal: answer that with `EINTR` if it waits. No reply. It
    /// may come before or after its request, or when that is answered.
    Interrupt {
        /// The request.
        unique: u64,
    },
    /// `fallocate(2)` → `Empty`.
    Allocate {
        /// The open file.
        handle: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// `lseek(2)` for data and holes → `Offset`.
    Seek {
        /// The open file.
        handle: u64,
        /// Where from.
        offset: u64,
        /// `SEEK_DATA` or `SEEK_HOLE`.
        whence: u32,
    },
    /// `copy_file_range(2)` from the request's node → `Copied`.
    Copy {
        /// Source.
        from_handle: u64,
        /// First byte of it.
        from_offset: u64,
        /// Destination.
        to_node: u64,
        /// Open file of it.
        to_handle: u64,
        /// First byte of it.
        to_offset: u64,
        /// Most bytes. Below 4 GiB where the kernel could not understand more.
        length: u64,
        /// None are defined.
        flags: u64,
    },
    /// → an error: `ENOTTY`.
    Ioctl {
        /// The open file.
        handle: u64,
        /// Which.
        command: u32,
    },
    /// → an error: `ENOSYS`, upon which the kernel takes the file as always ready.
    Poll,
    /// What we do not know → an error: `ENOSYS`.
    Other {
        /// The kernel's number of it.
        opcode: u32,
    },
}

/// Attributes to change; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// The open file that it is done through.
    pub handle: Option<u64>,
    /// Permission bits, with the type.
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
    /// Clear the set-uid and set-gid bits.
    pub kill_privileges: bool,
    /// Whose locks matter to a truncation.
    pub lock_owner: Option<u64>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The file system's clock, now.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

/// A lock that is wanted, tested or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// The open file.
    pub handle: u64,
    /// Whose it is.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` is the end of the file wherever that will be.
    pub end: u64,
    /// `F_RDLCK` (0), `F_WRLCK` (1) or `F_UNLCK` (2).
    pub kind: u32,
    /// The process, in the PID namespace that mounted; 0 when a lock is given up.
    pub pid: u32,
    /// By `flock(2)` rather than `fcntl(2)`.
    pub flock: bool,
}

impl Operation<'_> {
    /// Whether the kernel expects a reply.
    pub fn takes_reply(&self) -> bool {
        !matches!(
            self,
            Operation::Forget { .. } | Operation::BatchForget(_) | Operation::Interrupt { .. }
        )
    }
}
