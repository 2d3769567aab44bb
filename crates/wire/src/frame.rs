//! Frames: how messages and bulk data share one byte stream.
//!
//! `length: u32 LE` (of what follows), `kind: u8`, payload. A message is postcard; a data frame
//! is a fixed header and raw bytes, so that bulk data is not copied through serde.
//!
//! Either may travel compressed where both ends have agreed on it (`docs/adr/0009-compressed-frames.md`): a frame of a
//! kind of its own, which declares the length of what it holds. How it is opened is not known here.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::id::{JobId, TaskId};
use crate::stream::Stream;

/// Longest frame that is accepted or made. Holds the largest launch with room to spare.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Longest payload of one data frame.
pub const MAX_DATA_BYTES: usize = 256 << 10;

/// A compressed frame holds at most so many times its own bytes; who compresses better pads. So
/// what one read from a socket can make of itself in memory is bounded (S1).
pub const MAX_EXPANSION: usize = 16;

const LENGTH_BYTES: usize = 4;
const KIND_MESSAGE: u8 = 0;
const KIND_DATA: u8 = 1;
const KIND_ZIPPED_MESSAGE: u8 = 2;
const KIND_ZIPPED_DATA: u8 = 3;
const KIND_COMPRESSION: u8 = 4;
/// A compressed frame declares the length of its content.
const CONTENT_BYTES: usize = 4;
/// What stands before a message.
pub const MESSAGE_PREFIX_BYTES: usize = LENGTH_BYTES + 1;
/// What stands before a compressed message.
pub const ZIPPED_MESSAGE_PREFIX_BYTES: usize = LENGTH_BYTES + 1 + CONTENT_BYTES;
/// What stands before compressed data.
pub const ZIPPED_DATA_PREFIX_BYTES: usize = LENGTH_BYTES + 1 + DATA_HEADER_BYTES + CONTENT_BYTES;
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
    /// A compressed frame that is cut short.
    #[error("a compressed frame has a bad header")]
    BadZippedHeader,
    /// A compressed frame declares more than it may hold.
    #[error(
        "a compressed frame of {zipped} bytes declares {content}, which is more than is allowed"
    )]
    Expands {
        /// Its own bytes.
        zipped: usize,
        /// What it declares.
        content: usize,
    },
    /// A compressed frame that does not hold what it declares.
    #[error("a compressed frame can't be opened, or does not hold what it declares")]
    NotZipped,
}

/// When a link's ends compress what they send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Never.
    #[default]
    Never,
    /// When it arrives sooner for it.
    Adaptive,
    /// Whenever it gets shorter.
    Always,
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

/// A compressed frame, not opened yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Zipped<'a> {
    /// Where its content belongs; a message if there is none.
    pub data: Option<DataHeader>,
    /// Length of its content, in bounds.
    pub content: usize,
    /// The content, compressed.
    pub zipped: &'a [u8],
}

/// Something that only links with compression have.
#[derive(Debug, PartialEq, Eq)]
pub enum Special<'a> {
    /// A compressed frame.
    Zipped(Zipped<'a>),
    /// The side that dialled says when both ends shall compress.
    Compression(Compression),
}

/// Takes the first frame off `bytes` if it is a special one: the frame and how many bytes it took.
/// `None`: it is another one, or has not arrived whole.
///
/// # Errors
/// The peer sent what is no frame of this conversation.
pub fn take_special(bytes: &[u8]) -> Result<Option<(Special<'_>, usize)>, FrameError> {
    let Some(prefix) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let kind = bytes.get(LENGTH_BYTES).copied().unwrap_or(KIND_MESSAGE);
    if !matches!(
        kind,
        KIND_ZIPPED_MESSAGE | KIND_ZIPPED_DATA | KIND_COMPRESSION
    ) {
        return Ok(None);
    }
    let Some(body) = bytes.get(LENGTH_BYTES..LENGTH_BYTES + length) else {
        return Ok(None);
    };
    let payload = body.get(1..).ok_or(FrameError::BadZippedHeader)?;
    let special = match kind {
        KIND_COMPRESSION => Special::Compression(match payload {
            [0] => Compression::Never,
            [1] => Compression::Adaptive,
            [2] => Compression::Always,
            _ => return Err(FrameError::BadZippedHeader),
        }),
        KIND_ZIPPED_DATA => {
            let (header, rest) = take_data_header(payload).ok_or(FrameError::BadDataHeader)?;
            Special::Zipped(take_zipped(Some(header), rest, MAX_DATA_BYTES)?)
        }
        _ => Special::Zipped(take_zipped(None, payload, MAX_FRAME_BYTES - 1)?),
    };
    Ok(Some((special, LENGTH_BYTES + length)))
}

fn take_zipped(
    data: Option<DataHeader>,
    rest: &[u8],
    limit: usize,
) -> Result<Zipped<'_>, FrameError> {
    let (content, zipped) = rest
        .split_first_chunk::<CONTENT_BYTES>()
        .ok_or(FrameError::BadZippedHeader)?;
    let content = usize::try_from(u32::from_le_bytes(*content)).unwrap_or(usize::MAX);
    if content > limit || content > zipped.len().saturating_mul(MAX_EXPANSION) {
        return Err(FrameError::Expands {
            zipped: zipped.len(),
            content,
        });
    }
    Ok(Zipped {
        data,
        content,
        zipped,
    })
}

/// Decodes a message that has been taken out of a compressed frame.
///
/// # Errors
/// It does not decode.
pub fn message<M: DeserializeOwned>(content: &[u8]) -> Result<M, FrameError> {
    Ok(postcard::from_bytes(content)?)
}

/// The bytes that stand before a message of `content` bytes that are now `zipped`.
///
/// # Panics
/// When it is not shorter than the frame that it was, which was in bounds.
pub fn zipped_message_prefix(content: usize, zipped: usize) -> [u8; ZIPPED_MESSAGE_PREFIX_BYTES] {
    assert!(zipped < content && content < MAX_FRAME_BYTES);
    let mut prefix = [0; ZIPPED_MESSAGE_PREFIX_BYTES];
    put_u32(&mut prefix[..4], 1 + CONTENT_BYTES + zipped);
    prefix[4] = KIND_ZIPPED_MESSAGE;
    put_u32(&mut prefix[5..], content);
    prefix
}

/// The bytes that stand before `content` bytes of data that are now `zipped`.
///
/// # Panics
/// When they are not fewer, or were beyond [`MAX_DATA_BYTES`].
pub fn zipped_data_prefix(
    header: DataHeader,
    content: usize,
    zipped: usize,
) -> [u8; ZIPPED_DATA_PREFIX_BYTES] {
    assert!(zipped < content);
    let plain = data_prefix(header, content);
    let mut prefix = [0; ZIPPED_DATA_PREFIX_BYTES];
    let (first, last) = prefix.split_at_mut(plain.len());
    first.copy_from_slice(&plain);
    put_u32(
        &mut first[..4],
        1 + DATA_HEADER_BYTES + CONTENT_BYTES + zipped,
    );
    first[4] = KIND_ZIPPED_DATA;
    put_u32(last, content);
    prefix
}

/// The frame by which the side that dialled says when both ends shall compress.
pub fn compression_frame(compression: Compression) -> [u8; LENGTH_BYTES + 2] {
    let number = match compression {
        Compression::Never => 0,
        Compression::Adaptive => 1,
        Compression::Always => 2,
    };
    [2, 0, 0, 0, KIND_COMPRESSION, number]
}

fn put_u32(to: &mut [u8], value: usize) {
    let value = u32::try_from(value).expect("frames are bounded far below");
    to.copy_from_slice(&value.to_le_bytes());
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

    fn zipped(content: usize, bytes: usize) -> Vec<u8> {
        let mut frame = zipped_message_prefix(bytes + 1, bytes).to_vec();
        put_u32(&mut frame[5..], content);
        frame.resize(frame.len() + bytes, 9);
        frame
    }

    #[test]
    fn compressed_frames_are_told_from_others_and_carry_their_header() {
        let mut bytes = compression_frame(Compression::Always).to_vec();
        let prefix = zipped_data_prefix(HEADER, 1000, 100);
        bytes.extend_from_slice(&prefix);
        bytes.extend_from_slice(&[5; 100]);
        put_message(&mut bytes, &String::from("after")).unwrap();
        let (first, used) = take_special(&bytes).unwrap().unwrap();
        assert_eq!(first, Special::Compression(Compression::Always));
        assert_eq!(take_special(&bytes[used..][..50]), Ok(None));
        let (second, more) = take_special(&bytes[used..]).unwrap().unwrap();
        let expected = Zipped {
            data: Some(HEADER),
            content: 1000,
            zipped: &[5; 100],
        };
        assert_eq!(second, Special::Zipped(expected));
        assert_eq!(take_special(&bytes[used + more..]), Ok(None));
        let refused = take::<String>(&bytes[used..]);
        assert_eq!(refused, Err(FrameError::UnknownKind(KIND_ZIPPED_DATA)));
    }

    #[test]
    fn what_a_compressed_frame_declares_is_bounded_before_it_is_trusted() {
        assert!(take_special(&zipped(1600, 100)).unwrap().is_some());
        let refused = |content, zipped| Err(FrameError::Expands { zipped, content });
        assert_eq!(take_special(&zipped(1601, 100)), refused(1601, 100));
        let many = MAX_FRAME_BYTES / 2;
        let huge = u32::MAX as usize;
        assert_eq!(take_special(&zipped(huge, many)), refused(huge, many));
        let mut data = zipped_data_prefix(HEADER, MAX_DATA_BYTES, 100_000).to_vec();
        data.resize(data.len() + 100_000, 9);
        assert!(take_special(&data).unwrap().is_some());
        put_u32(&mut data[26..30], MAX_DATA_BYTES + 1);
        assert_eq!(take_special(&data), refused(MAX_DATA_BYTES + 1, 100_000));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = take::<crate::agent::FromAgent>(&bytes);
            let _ = take::<crate::agent::ToAgent>(&bytes);
            let _ = take::<crate::client::Request>(&bytes);
            let _ = take::<crate::stream::Relay>(&bytes);
        }

        #[test]
        fn arbitrary_special_frames_never_panic(
            kind in 0u8..6,
            length in 0u8..80,
            mut bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            bytes.splice(0..0, [length, 0, 0, 0, kind]);
            if let Ok(Some((special, used))) = take_special(&bytes) {
                prop_assert!(used <= bytes.len());
                if let Special::Zipped(frame) = special {
                    prop_assert!(frame.content <= frame.zipped.len() * MAX_EXPANSION);
                }
            }
        }
    }
}
