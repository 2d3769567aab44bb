//! What the kernel is told without having asked.

use crate::abi;
use crate::reply::{Fields, finish_header};

/// Something that the kernel has cached is not so any more, or something for it to cache.
///
/// Only `Attributes` and `Epoch` never wait in the kernel. The others wait for pages that are
/// being read, or for whoever works on the directory, which is somebody who waits for a reply of
/// ours: they are for a thread that is free to wait, such as the [`Notifier`](crate::Notifier)'s.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notification {
    /// A file's attributes and ACLs.
    Attributes {
        /// The file.
        node: u64,
    },
    /// A file's attributes, ACLs and all of its pages; of a directory, its listing; of a symbolic
    /// link, its text.
    Content {
        /// The file.
        node: u64,
    },
    /// A name, also one that does not exist. What is mounted on it, or below it, is detached.
    Entry {
        /// The directory.
        parent: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// A name, which is only to be looked up again before it is used.
    Expire {
        /// The directory.
        parent: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// A name was removed. Unlike `Entry`, watchers on the node are told, and a directory in use
    /// is known to be gone.
    Deleted {
        /// The directory.
        parent: u64,
        /// The file that it was.
        node: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// Content, which the kernel keeps as if it had read it. A file that is shorter for the kernel
    /// becomes as long.
    Store {
        /// The file.
        node: u64,
        /// First byte; pages that it does not fill are read from the file as usual.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Every name of the mount, to be looked up again before it is used. Linux 6.16 and later.
    Epoch,
}

impl Notification {
    /// The message in two parts: `header` is replaced, and what is returned follows it.
    pub fn parts<'a>(&'a self, header: &mut Vec<u8>) -> &'a [u8] {
        const ATTRIBUTES_ONLY: i64 = -1;
        const TO_THE_END: i64 = 0;
        const NOTHING_ASKED: u64 = 0;
        let mut body = Fields::after_header(header);
        let mut data: &[u8] = &[];
        let code = match self {
            Notification::Attributes { node } => {
                body.u64(*node).i64(ATTRIBUTES_ONLY).i64(TO_THE_END);
                abi::FUSE_NOTIFY_INVAL_INODE
            }
            Notification::Content { node } => {
                body.u64(*node).i64(0).i64(TO_THE_END);
                abi::FUSE_NOTIFY_INVAL_INODE
            }
            Notification::Entry { parent, name } => {
                body.u64(*parent).u32(length(name)).u32(0).name(name);
                abi::FUSE_NOTIFY_INVAL_ENTRY
            }
            Notification::Expire { parent, name } => {
                body.u64(*parent).u32(length(name));
                body.u32(abi::FUSE_EXPIRE_ONLY).name(name);
                abi::FUSE_NOTIFY_INVAL_ENTRY
            }
            Notification::Deleted { parent, node, name } => {
                body.u64(*parent).u64(*node);
                body.u32(length(name)).u32(0).name(name);
                abi::FUSE_NOTIFY_DELETE
            }
            Notification::Store {
                node,
                offset,
                data: bytes,
            } => {
                body.u64(*node).u64(*offset).u32(length(bytes)).u32(0);
                data = bytes;
                abi::FUSE_NOTIFY_STORE
            }
            Notification::Epoch => abi::FUSE_NOTIFY_INC_EPOCH,
        };
        finish_header(header, data.len(), code, NOTHING_ASKED);
        data
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
