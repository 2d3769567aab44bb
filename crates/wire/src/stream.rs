//! Deputy ↔ agent: the stdio of tasks, over one TLS link per deputy and node.
//!
//! Data frames carry the bytes; these messages carry everything about them. Offsets count from
//! the stream's first byte, so both ends always agree on what has arrived.

use serde::{Deserialize, Serialize};

use crate::id::TaskId;
use crate::launch::WindowSize;

/// How far a sender may be ahead of what the receiver has passed on: the bound on what one
/// stream can hold in memory at either end.
pub const WINDOW_BYTES: u64 = 1 << 20;

/// A task's stream. A terminal's output goes by `Output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard input, deputy to agent.
    Input,
    /// Standard output, agent to deputy.
    Output,
    /// Standard error, agent to deputy.
    Error,
}

impl Stream {
    /// All of them, in the order of their descriptors.
    pub const ALL: [Stream; 3] = [Stream::Input, Stream::Output, Stream::Error];

    /// The descriptor's number.
    pub fn number(self) -> u8 {
        match self {
            Stream::Input => 0,
            Stream::Output => 1,
            Stream::Error => 2,
        }
    }

    /// The stream with this descriptor number.
    pub fn from_number(number: u8) -> Option<Stream> {
        Stream::ALL.get(usize::from(number)).copied()
    }

    /// The number as an index into arrays of three.
    pub fn index(self) -> usize {
        usize::from(self.number())
    }
}

/// Messages between deputy and agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relay {
    /// Agent → deputy: this task runs here and wants its streams.
    Attach {
        /// The task.
        task: TaskId,
    },
    /// Deputy → agent: the head never told this deputy of such a task on this node (S3).
    Refused {
        /// The task.
        task: TaskId,
    },
    /// Either way: no byte comes after `offset`.
    End {
        /// The task.
        task: TaskId,
        /// Its stream.
        stream: Stream,
        /// The stream's length.
        offset: u64,
    },
    /// Receiver → sender: everything before `offset` has left the receiver (written to the pipe,
    /// file or terminal). Opens the window, and tells the agent when output is on the head (P2).
    Passed {
        /// The task.
        task: TaskId,
        /// Its stream.
        stream: Stream,
        /// All bytes before it are passed on.
        offset: u64,
    },
    /// Receiver → sender: nobody reads this stream any more (the local pipe is closed), so the
    /// sender closes its end and the program gets its SIGPIPE.
    Broken {
        /// The task.
        task: TaskId,
        /// Its stream.
        stream: Stream,
        /// The error, as on a local pipe.
        errno: i32,
    },
    /// Deputy → agent: the user's terminal changed its size.
    Resize {
        /// The task.
        task: TaskId,
        /// New size.
        window: WindowSize,
    },
    /// Deputy → agent: the answer to a question of the view.
    View(crate::stream::ViewAnswer),
    /// Agent → deputy: a question of the view.
    Ask(crate::stream::ViewQuestion),
}

/// Longest read of the view in one message.
pub const MAX_VIEW_READ_BYTES: u32 = 1 << 20;
/// Most directory entries in one answer.
pub const MAX_VIEW_ENTRIES: usize = 4096;

/// A question of the view (read-only for now): by numbers of the deputy's own table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewQuestion {
    /// Comes back in the answer.
    pub id: u64,
    /// What is asked.
    pub what: ViewAsk,
}

/// What the view asks. `node` numbers are of the deputy's table; 1 is the head's `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewAsk {
    /// Find a name in a directory.
    Lookup {
        /// Directory.
        parent: u64,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Attributes.
    Attributes {
        /// The file.
        node: u64,
    },
    /// A symbolic link's text.
    ReadLink {
        /// The link.
        node: u64,
    },
    /// Names in a directory, from `offset` on.
    ReadDirectory {
        /// The directory.
        node: u64,
        /// 0, or the last answer's last `next`.
        offset: u64,
    },
    /// Bytes of a regular file.
    Read {
        /// The file.
        node: u64,
        /// First byte.
        offset: u64,
        /// At most [`MAX_VIEW_READ_BYTES`].
        length: u32,
    },
    /// The node forgets this number after `count` lookups of it.
    Forget {
        /// The file.
        node: u64,
        /// How many lookups are given back.
        count: u64,
    },
}

/// Answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewAnswer {
    /// The question's.
    pub id: u64,
    /// The answer, or an errno.
    pub result: Result<ViewReply, i32>,
}

/// What the view is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewReply {
    /// For `Lookup` and `Attributes`.
    Attributes(ViewAttributes),
    /// For `ReadLink`.
    Link(Vec<u8>),
    /// For `ReadDirectory`; empty at the end.
    Entries(Vec<ViewEntry>),
    /// For `Read`; shorter than asked only at the end of the file.
    Data(#[serde(with = "whole")] Vec<u8>),
}

/// A file's attributes on the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewAttributes {
    /// Number in the deputy's table.
    pub node: u64,
    /// Inode number on the head.
    pub ino: u64,
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
    /// Device number, for device files.
    pub rdev: u64,
    /// Access, modification and change time: seconds and nanoseconds.
    pub times: [(i64, u32); 3],
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewEntry {
    /// The name.
    pub name: Vec<u8>,
    /// Inode number on the head.
    pub ino: u64,
    /// `DT_*` of `readdir(3)`.
    pub kind: u8,
    /// Where the listing goes on after this entry.
    pub next: u64,
}

/// Bytes copied at once rather than one by one, which is what serde does to a vector. The
/// encoding is the same.
mod whole {
    use std::fmt;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        from.deserialize_byte_buf(Bytes)
    }

    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_are_encoded_as_any_vector_is() {
        let bytes: Vec<u8> = (0..=255).collect();
        let reply = ViewReply::Data(bytes.clone());
        let encoded = postcard::to_allocvec(&reply).unwrap();
        assert_eq!(encoded[1..], postcard::to_allocvec(&bytes).unwrap());
        assert_eq!(postcard::from_bytes::<ViewReply>(&encoded).unwrap(), reply);
        assert!(postcard::from_bytes::<ViewReply>(&encoded[..200]).is_err());
    }
}
