//! Deputy ↔ agent: the stdio of tasks, over one TLS link per deputy and node, and beside it the
//! conversation of the [view](crate::view).
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
    /// Agent → deputy: a question of the view.
    Ask(crate::view::Question),
    /// Deputy → agent: the answer to a question of the view.
    Answer(crate::view::Answer),
    /// Deputy → agent: what was told of the view and is not so any more, at most
    /// [`MAX_CHANGES`](crate::view::MAX_CHANGES).
    Changed(Vec<crate::view::Change>),
    /// Deputy → agent: what the view will probably be asked for.
    Given(Vec<crate::view::Gift>),
    /// Deputy → agent: one of these, without pieces that the node has kept.
    Short(crate::view::Short, Vec<crate::view::Cut>),
}

/// Bytes copied at once rather than one by one, which is what serde does to a vector. The
/// encoding is the same.
pub(crate) mod whole {
    use std::fmt;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
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
    use crate::frame::{MAX_FRAME_BYTES, put_message};
    use crate::view::{Ask, Content, HandleId, MAX_DATA_BYTES, Question};

    #[test]
    fn bytes_are_encoded_as_any_vector_is() {
        let bytes: Vec<u8> = (0..=255).collect();
        let content = Content(bytes.clone());
        let encoded = postcard::to_allocvec(&content).unwrap();
        assert_eq!(encoded, postcard::to_allocvec(&bytes).unwrap());
        assert_eq!(postcard::from_bytes::<Content>(&encoded).unwrap(), content);
        assert!(postcard::from_bytes::<Content>(&encoded[..200]).is_err());
    }

    #[test]
    fn the_longest_write_fits_into_a_frame() {
        let data = vec![0; usize::try_from(MAX_DATA_BYTES).unwrap()];
        let question = Question {
            id: u64::MAX,
            uid: 0,
            gid: 0,
            what: Ask::Write {
                handle: HandleId(u64::MAX),
                offset: u64::MAX,
                data,
                drop_privileges: true,
            },
        };
        let mut frame = Vec::new();
        put_message(&mut frame, &Relay::Ask(question)).unwrap();
        assert!(frame.len() <= MAX_FRAME_BYTES);
    }
}
