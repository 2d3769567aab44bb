//! Received bytes that are not yet whole frames.

use serde::de::DeserializeOwned;
use wiglaf_wire::frame::{self, DataHeader, Frame, FrameError};

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
}

impl Inbox {
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.make_room();
        self.bytes.extend_from_slice(bytes);
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
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
