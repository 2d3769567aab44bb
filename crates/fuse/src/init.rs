//! What the kernel and we agree on when a mount begins.

use crate::MAX_TRANSFER_BYTES;
use crate::abi::{FUSE_KERNEL_MINOR_VERSION, FUSE_KERNEL_VERSION, OLDEST_MINOR_VERSION, init};
use crate::reply::Fields;

/// Without these a request would be read wrongly, or the file system would not be coherent.
const NEEDED: u64 = init::POSIX_LOCKS
    | init::FLOCK_LOCKS
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::MAX_PAGES
    | init::EXPLICIT_INVAL_DATA
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT;

/// What is only faster, or better, with it.
const WELCOME: u64 = init::ASYNC_READ
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::INIT_EXT
    | init::HAS_EXPIRE_ONLY;

/// Reads ahead, and other requests that nobody waits for, which the kernel may have under way.
const MAX_BACKGROUND: u16 = 64;
/// Number of them at which the kernel takes the file system for busy.
const CONGESTED_BACKGROUND: u16 = 48;
/// Pages of one request.
const MAX_PAGES: u16 = 256;
/// Bytes that are read ahead, if the kernel is told to by
/// [`Device::mount`](crate::Device::mount). It offers only what it had before that; the smaller
/// of its own and this holds.
pub(crate) const READAHEAD_BYTES: u32 = 256 << 10;
/// Times are good to the nanosecond.
const TIME_GRANULARITY_NS: u32 = 1;

/// The kernel's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitRequest {
    /// Its protocol.
    pub major: u32,
    /// Its protocol's version.
    pub minor: u32,
    /// Bytes that it would read ahead.
    pub max_readahead: u32,
    /// `FUSE_*` that it can do, from both fields.
    pub flags: u64,
}

/// What is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitReply {
    /// The older of the kernel's version and ours.
    pub minor: u32,
    /// Most bytes to read ahead.
    pub max_readahead: u32,
    /// `FUSE_*`, all of them from the offer.
    pub flags: u64,
}

/// The kernel can't serve us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// It is older than Linux 6.1, or from a distant future.
    #[error(
        "the kernel speaks FUSE {major}.{minor}; 7.{OLDEST_MINOR_VERSION} (Linux 6.1) is needed"
    )]
    Version {
        /// Its protocol.
        major: u32,
        /// Its protocol's version.
        minor: u32,
    },
    /// It lacks something.
    #[error("the kernel's FUSE lacks features that the view needs (flags {missing:#x})")]
    Features {
        /// `FUSE_*` that are missing.
        missing: u64,
    },
}

impl InitReply {
    /// Takes what we can use of an offer.
    pub fn answering(offer: &InitRequest) -> Result<InitReply, Unsupported> {
        let &InitRequest { major, minor, .. } = offer;
        if major != FUSE_KERNEL_VERSION || minor < OLDEST_MINOR_VERSION {
            return Err(Unsupported::Version { major, minor });
        }
        let missing = NEEDED & !offer.flags;
        if missing != 0 {
            return Err(Unsupported::Features { missing });
        }
        Ok(InitReply {
            minor: minor.min(FUSE_KERNEL_MINOR_VERSION),
            max_readahead: READAHEAD_BYTES,
            flags: offer.flags & (NEEDED | WELCOME),
        })
    }

    /// Whether the kernel knows [`Notification::Expire`](crate::Notification::Expire).
    pub fn can_expire(&self) -> bool {
        self.flags & init::HAS_EXPIRE_ONLY != 0
    }

    /// Whether the kernel knows [`Notification::Epoch`](crate::Notification::Epoch).
    pub fn has_epochs(&self) -> bool {
        const FIRST_MINOR_VERSION: u32 = 44;
        self.minor >= FIRST_MINOR_VERSION
    }

    pub(crate) fn encode(&self, body: &mut Fields<'_>) {
        const UNUSED: [u32; 7] = [0; 7];
        let halves = self.flags.to_ne_bytes();
        let (lower, upper) = halves.split_at(4);
        body.u32(FUSE_KERNEL_VERSION).u32(self.minor);
        body.u32(self.max_readahead);
        body.0.extend_from_slice(lower);
        body.u16(MAX_BACKGROUND).u16(CONGESTED_BACKGROUND);
        body.u32(MAX_TRANSFER_BYTES).u32(TIME_GRANULARITY_NS);
        let map_alignment = 0;
        body.u16(MAX_PAGES).u16(map_alignment);
        body.0.extend_from_slice(upper);
        body.u32s(&UNUSED);
    }
}
