//! Frames: how messages and bulk data share one byte stream.
//!
//! `length: u32 LE` (of what follows), `kind: u8`, payload. A message is postcard; a data frame
//! is a fixed header and raw bytes, so that bulk data is not copied through serde.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::id::{JobId, TaskId};
use crate::stream::Stream;

/// Longest frame that is accepted or made. Holds the largest launch with room to spare.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Longest payload of one data frame.
pub const MAX_DATA_BYTES: usize = 256 << 10;

const LENGTH_BYTES: usize = 4;
const KIND_MESSAGE: u8 = 0;
const KIND_DATA: u8 = 1;
/// job u64, index u32, stream u8, offset u64.
const DATA_HEADER_BYTES: usize = 8 + 4 + 1 + 8;

/// Why bytes are not a frame. The peer is at fault; its connection is closed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond the bound.
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME_BYTES} that are allowed")]
    TooLong(usize),
    /// A kind that this version does not know.
    #[error("frame kind {0} is unknown")]
    UnknownKind(u8),
    /// A message that does not decode.
    #[error("a message does not decode: {0}")]
    Malformed(#[from] postcard::Error),
    /// A frame that is cut short, or a data header that names no stream.
    #[error("a data frame has a bad header")]
    BadDataHeader,
}

/// Where a piece of bulk data belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The task whose stream it is.
    pub task: TaskId,
    /// Which of its streams.
    pub stream: Stream,
    /// Offset of the first byte in the stream.
    pub offset: u64,
}

/// One decoded frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a, M> {
    /// A message of the conversation.
    Message(M),
    /// Bulk data.
    Data(DataHeader, &'a [u8]),
}

/// Appends `message` as one frame to `out`.
///
/// # Errors
/// [`FrameError::TooLong`]: the message is beyond the bound; `out` is left as it was.
pub fn put_message<M: Serialize>(out: &mut Vec<u8>, message: &M) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.push(KIND_MESSAGE);
    let filled = postcard::to_extend(message, std::mem::take(out))?;
    *out = filled;
    let length = out.len() - start - LENGTH_BYTES;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME_BYTES => {
            out[start..start + LENGTH_BYTES].copy_from_slice(&prefix.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(FrameError::TooLong(length))
        }
    }
}

/// The bytes that stand before `length` bytes of data in a data frame.
///
/// # Panics
/// When `length` is beyond [`MAX_DATA_BYTES`]: our own code cut the data wrongly.
pub fn data_prefix(
    header: DataHeader,
    length: usize,
) -> [u8; LENGTH_BYTES + 1 + DATA_HEADER_BYTES] {
    assert!(
        length <= MAX_DATA_BYTES,
        "data frames are cut to MAX_DATA_BYTES"
    );
    let mut prefix = [0; LENGTH_BYTES + 1 + DATA_HEADER_BYTES];
    let frame = u32::try_from(1 + DATA_HEADER_BYTES + length).expect("bounded just above");
    prefix[..4].copy_from_slice(&frame.to_le_bytes());
    prefix[4] = KIND_DATA;
    prefix[5..13].copy_from_slice(&header.task.job.0.to_le_bytes());
    prefix[13..17].copy_from_slice(&header.task.index.to_le_bytes());
    prefix[17] = header.stream.number();
    prefix[18..26].copy_from_slice(&header.offset.to_le_bytes());
    prefix
}

/// Takes the first whole frame off `bytes`: the frame and how many bytes it took, or `None` when
/// more bytes are needed.
///
/// # Errors
/// The peer sent what is no frame of this conversation.
pub fn take<M: DeserializeOwned>(
    bytes: &[u8],
) -> Result<Option<(Frame<'_, M>, usize)>, FrameError> {
    let Some(prefix) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let Some(body) = bytes.get(LENGTH_BYTES..LENGTH_BYTES + length) else {
        return Ok(None);
    };
    let frame = match body.split_first() {
        Some((&KIND_MESSAGE, payload)) => Frame::Message(postcard::from_bytes(payload)?),
        Some((&KIND_DATA, payload)) => {
            let (header, data) = take_data_header(payload).ok_or(FrameError::BadDataHeader)?;
            Frame::Data(header, data)
        }
        Some((&kind, _)) => return Err(FrameError::UnknownKind(kind)),
        None => return Err(FrameError::BadDataHeader),
    };
    Ok(Some((frame, LENGTH_BYTES + length)))
}

/// The start of a data frame, so that its bytes can be passed on before all have arrived: its
/// header, how many bytes the prefix took, and how many bytes of data follow. `None`: this is no
/// data frame, or its prefix has not arrived whole.
///
/// # Errors
/// The peer sent what is no frame of this conversation.
pub fn take_data_prefix(bytes: &[u8]) -> Result<Option<(DataHeader, usize, usize)>, FrameError> {
    const PREFIX_BYTES: usize = LENGTH_BYTES + 1 + DATA_HEADER_BYTES;
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let (length, body) = prefix.split_at(LENGTH_BYTES);
    if body[0] != KIND_DATA {
        return Ok(None);
    }
    let length = length
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let (header, _) = take_data_header(&body[1..]).ok_or(FrameError::BadDataHeader)?;
    let data = length
        .checked_sub(1 + DATA_HEADER_BYTES)
        .ok_or(FrameError::BadDataHeader)?;
    Ok(Some((header, PREFIX_BYTES, data)))
}

fn take_data_header(payload: &[u8]) -> Option<(DataHeader, &[u8])> {
    let (job, rest) = payload.split_first_chunk::<8>()?;
    let (index, rest) = rest.split_first_chunk::<4>()?;
    let (stream, rest) = rest.split_first()?;
    let (offset, data) = rest.split_first_chunk::<8>()?;
    let task = TaskId {
        job: JobId(u64::from_le_bytes(*job)),
        index: u32::from_le_bytes(*index),
    };
    let stream = Stream::from_number(*stream)?;
    Some((
        DataHeader {
            task,
            stream,
            offset: u64::from_le_bytes(*offset),
        },
        data,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: DataHeader = DataHeader {
        task: TaskId {
            job: JobId(7),
            index: 3,
        },
        stream: Stream::Output,
        offset: 1 << 40,
    };

    #[test]
    fn messages_and_data_share_a_stream() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, &String::from("hello")).unwrap();
        bytes.extend_from_slice(&data_prefix(HEADER, 3));
        bytes.extend_from_slice(b"abc");
        let (first, used) = take::<String>(&bytes).unwrap().unwrap();
        assert_eq!(first, Frame::Message(String::from("hello")));
        let (second, rest) = take::<String>(&bytes[used..]).unwrap().unwrap();
        assert_eq!(second, Frame::Data(HEADER, b"abc"));
        assert_eq!(used + rest, bytes.len());
    }

    #[test]
    fn a_length_is_bounded_before_it_is_trusted() {
        let bytes = u32::MAX.to_le_bytes();
        assert!(matches!(
            take::<String>(&bytes),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn a_message_beyond_the_bound_leaves_nothing_behind() {
        let mut bytes = vec![1, 2, 3];
        let long = vec![0u64; MAX_FRAME_BYTES];
        assert!(put_message(&mut bytes, &long).is_err());
        assert_eq!(bytes, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = take::<crate::agent::FromAgent>(&bytes);
            let _ = take::<crate::agent::ToAgent>(&bytes);
            let _ = take::<crate::client::Request>(&bytes);
            let _ = take::<crate::stream::Relay>(&bytes);
        }
    }
}
