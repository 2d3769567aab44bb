//! Pieces of files in a directory on a node's own disk, so that what a node has read of the head's
//! files outlives its reboot. Encrypted, bounded, and never right by itself: bytes are asked for by
//! their SHA-256, and are those or none.

#![forbid(unsafe_code)]

mod directory;
mod pieces;
pub mod segment;
mod store;

use std::io;
use std::path::PathBuf;

use ring::digest;

pub use store::Store;

/// The longest piece.
pub const MAX_PIECE_BYTES: usize = 64 << 10;

/// A piece's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(data: &[u8]) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
        Digest(bytes)
    }
}

/// How much of a disk a store may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Of the store on the disk.
    pub bytes: u64,
    /// Free bytes of the file system that are left to others.
    pub spare: u64,
}

/// What there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statistics {
    /// Different ones; several users' same bytes are one.
    pub pieces: u64,
    /// On the disk, with all that belongs to them.
    pub bytes: u64,
    /// As many may be.
    pub bound: u64,
}

/// A store can't be opened, or a piece not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Others might write there, or read.
    #[error("{path} can't hold kept files: {why}")]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// Another process has it.
    #[error("{path} is used by another process")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The disk's word.
    #[error("{path}: {source}")]
    Disk {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no room for it, even with nothing else kept.
    #[error("{path} has no room for {bytes} bytes more")]
    Full {
        /// The directory.
        path: PathBuf,
        /// Of the piece, with what belongs to it.
        bytes: u64,
    },
    /// Pieces are shorter.
    #[error("a piece has {bytes} bytes, and at most {MAX_PIECE_BYTES} are kept")]
    TooLong {
        /// Of the piece.
        bytes: usize,
    },
    /// The kernel has no random numbers.
    #[error("no random numbers: {0}")]
    Random(io::Error),
}
