//! Received bytes that are not yet whole frames.

use serde::de::DeserializeOwned;
use wiglaf_wire::frame::{self, Compression, DataHeader, Frame, FrameError, Special};

use crate::zip::Unzipper;

/// Room made for one read.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// A buffer that grew beyond this is given back when it is hardly used.
const KEEP_BYTES: usize = 32 << 10;
/// Uses in a row of less than an eighth of a buffer, after which it is given back. Bulk data and
/// small messages take turns on a busy link, which shall not allocate for that.
const SMALL_USES: u8 = 8;

/// Whether a buffer is worth its memory: an idle daemon is thin.
#[derive(Debug, Default)]
pub(crate) struct Wear {
    small_uses: u8,
}

impl Wear {
    /// To be asked each time that a buffer of `size` bytes, of which at most `used` were used, is
    /// empty again.
    pub(crate) fn is_too_large(&mut self, size: usize, used: usize) -> bool {
        if size <= KEEP_BYTES || used >= size / 8 {
            self.small_uses = 0;
            return false;
        }
        self.small_uses += 1;
        if self.small_uses < SMALL_USES {
            return false;
        }
        self.small_uses = 0;
        true
    }
}

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    /// What is still to come of a data frame: bulk data is handed out as it arrives.
    open: Option<(DataHeader, usize)>,
    wear: Wear,
    /// The other side may say whether frames are compressed.
    heeds_offer: bool,
    compression: Compression,
    unzipper: Unzipper,
    /// What has come in, as if nothing had been compressed.
    content_bytes: u64,
}

impl Inbox {
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.make_room();
        self.bytes.extend_from_slice(bytes);
        self.content_bytes += bytes.len() as u64;
    }

    /// Lets the other side say whether frames are compressed.
    pub(crate) fn heed_offer(&mut self) {
        self.heeds_offer = true;
    }

    /// What this side has said.
    pub(crate) fn set_compression(&mut self, compression: Compression) {
        self.compression = compression;
    }

    /// What is agreed.
    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    pub(crate) fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    fn make_room(&mut self) {
        if self.start == self.bytes.len() {
            if self.start > 0 && self.wear.is_too_large(self.bytes.capacity(), self.start) {
                self.bytes = Vec::new();
            }
            self.bytes.clear();
            self.start = 0;
        } else if self.start > READ_BYTES {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Takes the next frame. A data frame that has not arrived whole comes in pieces, each with
    /// its own offset.
    pub(crate) fn next<M: DeserializeOwned>(&mut self) -> Result<Option<Frame<'_, M>>, FrameError> {
        while self.open.is_none()
            && (self.heeds_offer || self.compression != Compression::Never)
            && let Some((special, used)) = frame::take_special(&self.bytes[self.start..])?
        {
            match special {
                Special::Compression(compression) if self.heeds_offer => {
                    self.compression = compression;
                    self.start += used;
                }
                Special::Zipped(zipped) if self.compression != Compression::Never => {
                    self.unzipper.open(zipped.zipped, zipped.content)?;
                    let saved = zipped.content.saturating_sub(zipped.zipped.len());
                    self.content_bytes += saved as u64;
                    let header = zipped.data;
                    self.start += used;
                    let content = self.unzipper.content();
                    return Ok(Some(match header {
                        Some(header) => Frame::Data(header, content),
                        None => Frame::Message(frame::message(content)?),
                    }));
                }
                // Nobody agreed to that: it is refused below as any unknown kind is.
                Special::Compression(_) | Special::Zipped(_) => break,
            }
        }
        let rest = &self.bytes[self.start..];
        if self.open.is_none()
            && let Some((header, prefix, length)) = frame::take_data_prefix(rest)?
        {
            self.start += prefix;
            self.open = Some((header, length));
        }
        if let Some((header, length)) = self.open {
            let rest = &self.bytes[self.start..];
            let piece = &rest[..length.min(rest.len())];
            if piece.is_empty() && length > 0 {
                return Ok(None);
            }
            self.start += piece.len();
            let offset = header.offset.saturating_add(piece.len() as u64);
            self.open = (piece.len() < length)
                .then(|| (DataHeader { offset, ..header }, length - piece.len()));
            return Ok(Some(Frame::Data(header, piece)));
        }
        match frame::take(&self.bytes[self.start..])? {
            Some((frame, used)) => {
                self.start += used;
                self.unzipper.rest();
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wiglaf_wire::id::{JobId, TaskId};
    use wiglaf_wire::stream::Stream;

    #[test]
    fn data_is_handed_out_as_it_arrives() {
        let task = TaskId {
            job: JobId(1),
            index: 2,
        };
        let header = DataHeader {
            task,
            stream: Stream::Output,
            offset: 100,
        };
        let mut wire = Vec::new();
        frame::put_message(&mut wire, &"before".to_owned()).unwrap();
        wire.extend_from_slice(&frame::data_prefix(header, 1000));
        wire.extend_from_slice(&[7; 1000]);
        frame::put_message(&mut wire, &"after".to_owned()).unwrap();
        for step in [1, 5, 26, 300, 5000] {
            let mut inbox = Inbox::default();
            let (mut data, mut messages) = (0, Vec::new());
            for bytes in wire.chunks(step) {
                inbox.extend(bytes);
                while let Some(frame) = inbox.next::<String>().unwrap() {
                    match frame {
                        Frame::Data(at, piece) => {
                            assert_eq!(at.offset, 100 + data);
                            data += piece.len() as u64;
                        }
                        Frame::Message(text) => messages.push((data, text)),
                    }
                }
            }
            assert_eq!(data, 1000);
            assert_eq!(
                messages,
                [(0, "before".to_owned()), (1000, "after".to_owned())]
            );
        }
    }
    fn agreed() -> Inbox {
        let mut inbox = Inbox::default();
        inbox.heed_offer();
        inbox.extend(&frame::compression_frame(Compression::Always));
        inbox
    }

    fn zipped(content: usize, zipped: &[u8]) -> Vec<u8> {
        let long = content.max(zipped.len() + 1);
        let mut frame = frame::zipped_message_prefix(long, zipped.len()).to_vec();
        let declared = u32::try_from(content).unwrap().to_le_bytes();
        frame[frame::ZIPPED_MESSAGE_PREFIX_BYTES - 4..].copy_from_slice(&declared);
        frame.extend_from_slice(zipped);
        frame
    }

    #[test]
    fn compressed_frames_arrive_in_any_pieces() {
        let text = "all work and no play ".repeat(500);
        let mut plain = Vec::new();
        frame::put_message(&mut plain, &text).unwrap();
        let content = &plain[frame::MESSAGE_PREFIX_BYTES..];
        let mut wire = frame::compression_frame(Compression::Adaptive).to_vec();
        let compressed = zstd::bulk::compress(content, 1).unwrap();
        // As it expands more than is allowed, it is padded with zstd's skippable frame.
        let nothing = content.len() / 16 + 1 - compressed.len();
        let mut padded = compressed;
        padded.extend_from_slice(&0x184D_2A50_u32.to_le_bytes());
        padded.extend_from_slice(&u32::try_from(nothing).unwrap().to_le_bytes());
        padded.resize(padded.len() + nothing, 0);
        wire.extend_from_slice(&zipped(content.len(), &padded));
        wire.extend_from_slice(&plain);
        for step in [1, 7, 100, 100_000] {
            let mut inbox = Inbox::default();
            inbox.heed_offer();
            let mut texts = Vec::new();
            for bytes in wire.chunks(step) {
                inbox.extend(bytes);
                while let Some(frame) = inbox.next::<String>().unwrap() {
                    assert_eq!(frame, Frame::Message(text.clone()));
                    texts.push(());
                }
            }
            assert_eq!(texts.len(), 2);
            assert_eq!(inbox.compression(), Compression::Adaptive);
            assert!(inbox.content_bytes() > 2 * text.len() as u64);
        }
    }

    #[test]
    fn garbage_bombs_and_what_nobody_agreed_to_break_the_link() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        for (declared, bytes) in [(1000, &[7; 200][..]), (1000, &bomb), (0, &bomb), (1, &[])] {
            let mut inbox = agreed();
            inbox.extend(&zipped(declared, bytes));
            let refused = inbox.next::<String>().unwrap_err();
            assert!(
                matches!(refused, FrameError::NotZipped | FrameError::Expands { .. }),
                "{refused}"
            );
        }
        let mut nobody = Inbox::default();
        nobody.extend(&zipped(1000, &[7; 200]));
        assert_eq!(nobody.next::<String>(), Err(FrameError::UnknownKind(2)));
        let mut nobody = Inbox::default();
        nobody.extend(&frame::compression_frame(Compression::Always));
        assert_eq!(nobody.next::<String>(), Err(FrameError::UnknownKind(4)));
        let mut unasked = Inbox::default();
        unasked.heed_offer();
        unasked.extend(&zipped(1000, &[7; 200]));
        assert_eq!(unasked.next::<String>(), Err(FrameError::UnknownKind(2)));
    }

    proptest! {
        #[test]
        fn damaged_frames_never_panic(
            text in "[a-c]{200,3000}",
            at in any::<prop::sample::Index>(),
            bits in 1u8..,
            kind in 2u8..4,
        ) {
            let compressed = zstd::bulk::compress(text.as_bytes(), 3).unwrap();
            let mut wire = zipped(text.len(), &compressed);
            wire[4] = kind;
            let at = at.index(wire.len());
            wire[at] ^= bits;
            let mut inbox = agreed();
            inbox.extend(&wire);
            let _ = inbox.next::<String>();
        }

        #[test]
        fn arbitrary_frames_never_panic(
            declared in 0usize..2000,
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut inbox = agreed();
            inbox.extend(&zipped(declared, &bytes));
            let _ = inbox.next::<String>();
        }
    }
}
