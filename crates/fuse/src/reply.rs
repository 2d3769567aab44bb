//! What the kernel is answered.

use std::time::Duration;

use crate::abi::{self, OUT_HEADER_BYTES, fopen};
use crate::directory::DirectoryBuffer;
use crate::init::InitReply;

/// Seconds that the kernel takes for ever; more would be cut to less on some of them.
const ALWAYS_SECONDS: u64 = u32::MAX as u64;
/// The kernel refuses other numbers, and the request would never be answered.
const LARGEST_ERRNO: i32 = 511;

/// Bytes of a `fuse_entry_out`.
pub(crate) const ENTRY_BYTES: usize = 128;

/// An answer to a request. Which operation takes which is said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It failed, with this (positive) errno.
    Error(i32),
    /// It is done.
    Empty,
    /// The mount's settings.
    Init(InitReply),
    /// A name's file.
    Entry(Entry),
    /// There is no such name; unlike `ENOENT`, the kernel may remember it.
    NoEntry {
        /// For how long.
        valid: Valid,
    },
    /// A file's attributes.
    Attributes {
        /// What they are.
        attributes: Attributes,
        /// How long they are good.
        valid: Valid,
    },
    /// An open file.
    Opened(Opened),
    /// A file that was made, or was there, and is open.
    Created {
        /// The name's file.
        entry: Entry,
        /// The open file.
        opened: Opened,
    },
    /// Bytes: of a file, of a symbolic link, or of an extended attribute.
    Data(Vec<u8>),
    /// Bytes that were written.
    Written {
        /// How many.
        size: u32,
    },
    /// Bytes that were copied.
    Copied {
        /// How many.
        size: u64,
    },
    /// A file system's size.
    Space(StatFs),
    /// Names in a directory.
    Directory(DirectoryBuffer),
    /// The lock that is in the way, or none.
    Lock(LockReply),
    /// Length of an extended attribute, or of the list of them.
    Size(u32),
    /// The offset that `lseek` found.
    Offset(u64),
    /// A file's attributes and birth.
    Statx(Statx),
}

/// A name's file, told to the kernel, which gives this telling back by a forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, by which the kernel asks for it. Never 0.
    pub node: u64,
    /// Which of those that had this number.
    pub generation: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// How long the name stands for this file.
    pub entry_valid: Valid,
    /// How long the attributes are good.
    pub attributes_valid: Valid,
}

/// A file's attributes. `ino` is what programs see, and no business of the protocol's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `st_ino`.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Access time: seconds and nanoseconds.
    pub accessed: (i64, u32),
    /// Modification time.
    pub modified: (i64, u32),
    /// Change time.
    pub changed: (i64, u32),
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number as the kernel packs it (`new_encode_dev`).
    pub rdev: u32,
    /// Preferred size of reads and writes; a power of two.
    pub block_size: u32,
}

/// How long the kernel may believe something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Valid {
    /// It asks again at once.
    No,
    /// It asks again after this time.
    For(Duration),
    /// Until it is notified.
    Always,
}

/// An open file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Its number, by which the kernel asks for it.
    pub handle: u64,
    /// What is cached of the content is still right.
    pub keep_cache: bool,
    /// Reads and writes go past the page cache.
    pub direct_io: bool,
    /// A close need not be told of (`Flush`) — unless locks are to be given up by it.
    pub no_flush: bool,
    /// The kernel may keep the listing, for a directory.
    pub cache_directory: bool,
    /// With `direct_io`: several writes at a time.
    pub parallel_direct_writes: bool,
}

/// A file system's size, as `statfs(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks, of `fragment_size`.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Those that a user without privilege may have.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub free_files: u64,
    /// Preferred size of reads and writes, in bytes.
    pub block_size: u32,
    /// Longest name.
    pub name_length: u32,
    /// Bytes of a block.
    pub fragment_size: u32,
}

/// The lock that is in the way of one that was tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockReply {
    /// First byte.
    pub start: u64,
    /// Last byte, at most `i64::MAX`.
    pub end: u64,
    /// `F_RDLCK` (0), `F_WRLCK` (1), or `F_UNLCK` (2) if none is in the way.
    pub kind: u32,
    /// Its holder in the PID namespace that mounted. A number that is nobody's there reads as 0.
    pub pid: u32,
}

impl LockReply {
    /// Nothing is in the way.
    pub const FREE: LockReply = LockReply {
        start: 0,
        end: 0,
        kind: 2,
        pid: 0,
    };
}

/// Attributes as `statx(2)` wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statx {
    /// The usual ones.
    pub attributes: Attributes,
    /// When it was made: seconds and nanoseconds.
    pub born: Option<(i64, u32)>,
    /// How long the usual ones are good.
    pub valid: Valid,
}

impl Reply {
    /// Replaces what is in `out` by the whole answer to the request `unique`.
    pub fn encode(&self, unique: u64, out: &mut Vec<u8>) {
        let data = self.parts(unique, out);
        out.extend_from_slice(data);
    }

    /// The same in two parts, to be written at once by `writev`: `header` is replaced, and what
    /// is returned follows it. File content is not copied.
    pub fn parts<'a>(&'a self, unique: u64, header: &mut Vec<u8>) -> &'a [u8] {
        let mut body = Fields::after_header(header);
        let mut data: &[u8] = &[];
        let mut error = 0;
        match self {
            Reply::Error(errno) => {
                error = match *errno {
                    errno @ 1..=LARGEST_ERRNO => -errno,
                    _ => -rustix::io::Errno::IO.raw_os_error(),
                };
            }
            Reply::Empty => {}
            Reply::Init(init) => init.encode(&mut body),
            Reply::Entry(entry) => entry.encode(&mut body),
            Reply::NoEntry { valid } => {
                Entry {
                    node: 0,
                    generation: 0,
                    attributes: Attributes::default(),
                    entry_valid: *valid,
                    attributes_valid: Valid::No,
                }
                .encode(&mut body);
            }
            Reply::Attributes { attributes, valid } => {
                let (seconds, nanoseconds) = valid.split();
                body.u64(seconds).u32(nanoseconds).u32(0);
                attributes.encode(&mut body);
            }
            Reply::Opened(opened) => opened.encode(&mut body),
            Reply::Created { entry, opened } => {
                entry.encode(&mut body);
                opened.encode(&mut body);
            }
            Reply::Data(bytes) => data = bytes,
            Reply::Directory(buffer) => data = buffer.bytes(),
            Reply::Written { size } | Reply::Size(size) => {
                body.u32(*size).u32(0);
            }
            // Kernels before 7.45 want 32 bits and padding, which on a little-endian machine are
            // the same bytes.
            Reply::Copied { size } | Reply::Offset(size) => {
                body.u64(*size);
            }
            Reply::Space(space) => space.encode(&mut body),
            Reply::Lock(lock) => {
                let LockReply {
                    start,
                    end,
                    kind,
                    pid,
                } = *lock;
                body.u64(start).u64(end).u32(kind).u32(pid);
            }
            Reply::Statx(statx) => statx.encode(&mut body),
        }
        finish_header(header, data.len(), error, unique);
        data
    }
}

/// Fills in the header at the start of a message, whose other fields are there; `data` bytes
/// follow it.
pub(crate) fn finish_header(message: &mut [u8], data: usize, error: i32, unique: u64) {
    let length = u32::try_from(message.len() + data).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..8].copy_from_slice(&error.to_ne_bytes());
    message[8..16].copy_from_slice(&unique.to_ne_bytes());
}

impl Entry {
    pub(crate) fn encode(&self, body: &mut Fields<'_>) {
        let (entry_seconds, entry_nanoseconds) = self.entry_valid.split();
        let (seconds, nanoseconds) = self.attributes_valid.split();
        body.u64(self.node).u64(self.generation);
        body.u64(entry_seconds).u64(seconds);
        body.u32(entry_nanoseconds).u32(nanoseconds);
        self.attributes.encode(body);
    }
}

impl Attributes {
    fn encode(&self, body: &mut Fields<'_>) {
        body.u64(self.ino).u64(self.size).u64(self.blocks);
        let times = [self.accessed, self.modified, self.changed];
        for (seconds, _) in times {
            body.i64(seconds);
        }
        for (_, nanoseconds) in times {
            body.u32(nanoseconds);
        }
        body.u32(self.mode).u32(self.links);
        body.u32(self.uid).u32(self.gid);
        let flags = 0;
        body.u32(self.rdev).u32(self.block_size).u32(flags);
    }
}

impl Valid {
    fn split(self) -> (u64, u32) {
        match self {
            Valid::No => (0, 0),
            Valid::For(time) => (time.as_secs().min(ALWAYS_SECONDS), time.subsec_nanos()),
            Valid::Always => (ALWAYS_SECONDS, 0),
        }
    }
}

impl Opened {
    fn encode(&self, body: &mut Fields<'_>) {
        let flags = [
            (self.keep_cache, fopen::KEEP_CACHE),
            (self.direct_io, fopen::DIRECT_IO),
            (self.no_flush, fopen::NOFLUSH),
            (self.cache_directory, fopen::CACHE_DIR),
            (self.parallel_direct_writes, fopen::PARALLEL_DIRECT_WRITES),
        ];
        let set = flags.iter().filter(|(is, _)| *is);
        body.u64(self.handle)
            .u32(set.map(|(_, flag)| flag).sum())
            .u32(0);
    }
}

impl StatFs {
    fn encode(&self, body: &mut Fields<'_>) {
        const SPARE: [u32; 7] = [0; 7];
        body.u64(self.blocks).u64(self.free).u64(self.available);
        body.u64(self.files).u64(self.free_files);
        body.u32(self.block_size).u32(self.name_length);
        body.u32(self.fragment_size);
        body.u32s(&SPARE);
    }
}

impl Statx {
    fn encode(&self, body: &mut Fields<'_>) {
        const SPARE: [u32; 28] = [0; 28];
        let told = &self.attributes;
        let (seconds, nanoseconds) = self.valid.split();
        body.u64(seconds).u32(nanoseconds);
        let (flags, none) = (0, 0);
        body.u32(flags).u64(none).u64(none);

        let birth = self.born.map_or(0, |_| abi::STATX_BTIME);
        body.u32(abi::STATX_BASIC_STATS | birth);
        body.u32(told.block_size).u64(none);
        body.u32(told.links).u32(told.uid).u32(told.gid);
        // A mode has 16 bits, and these are the two fields that it and its padding take.
        body.u32(told.mode & 0xffff);
        body.u64(told.ino).u64(told.size).u64(told.blocks).u64(none);
        let born = self.born.unwrap_or_default();
        for (seconds, nanoseconds) in [told.accessed, born, told.changed, told.modified] {
            body.i64(seconds).u32(nanoseconds).u32(0);
        }
        let (major, minor) = (
            (told.rdev >> 8) & 0xfff,
            (told.rdev & 0xff) | ((told.rdev >> 12) & 0xfff00),
        );
        body.u32(major).u32(minor);
        // The mount's own device number is the kernel's to say.
        body.u32(0).u32(0);
        body.u32s(&SPARE);
    }
}

/// A message that is being written.
pub(crate) struct Fields<'a>(pub(crate) &'a mut Vec<u8>);

impl<'a> Fields<'a> {
    /// Replaces what is there by an empty header.
    pub(crate) fn after_header(message: &'a mut Vec<u8>) -> Self {
        message.clear();
        message.resize(OUT_HEADER_BYTES, 0);
        Self(message)
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn u32s(&mut self, values: &[u32]) -> &mut Self {
        for value in values {
            self.u32(*value);
        }
        self
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn i64(&mut self, value: i64) -> &mut Self {
        self.u64(value.cast_unsigned())
    }

    pub(crate) fn name(&mut self, name: &[u8]) -> &mut Self {
        self.0.extend_from_slice(name);
        self.0.push(0);
        self
    }
}
