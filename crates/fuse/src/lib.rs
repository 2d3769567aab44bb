#![forbid(unsafe_code)]
//! The kernel's FUSE protocol, as far as a view needs it: requests are parsed, replies and
//! notifications encoded, and a device carries them. Nothing here decides what a file is.
//!
//! The codec is pure and never panics on what the kernel sends. Why not a crate: replies that
//! say nothing for a while must not hold a thread, inode numbers differ from node numbers, and
//! `O_TMPFILE`, expiry and unknown operations are wanted.
//!
//! What the kernel expects of one who serves a mount:
//! - every request gets one reply, except [`Operation::Forget`], [`Operation::BatchForget`] and
//!   [`Operation::Interrupt`], which get none ([`Operation::takes_reply`]);
//! - every [`Entry`] with a node number in a reply is one telling of that number, which a forget
//!   gives back; entries named `.` and `..` of a listing are none, and must not carry one;
//! - a notification that waits in the kernel may wait for a reply: see [`Notifier`].

#[cfg(target_endian = "big")]
compile_error!("a copy's count is encoded for little-endian machines");

mod abi;
mod device;
mod directory;
mod init;
mod notification;
mod notifier;
mod outbox;
mod reply;
mod request;

pub use device::{
    BUFFER_BYTES, Device, DeviceError, FILE_SYSTEM_TYPE, MountError, Options, unmount,
};
pub use directory::DirectoryBuffer;
pub use init::{InitReply, InitRequest, Unsupported};
pub use notification::Notification;
pub use notifier::Notifier;
pub use reply::{Attributes, Entry, LockReply, Opened, Reply, StatFs, Statx, Valid};
pub use request::{LockRequest, Operation, ParseError, Request, SetAttributes, SetTime};

pub use rustix::io::Errno;

/// The kernel's number of a mount's root.
pub const ROOT_NODE: u64 = 1;
/// Longest piece of a file in one read or write.
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;
