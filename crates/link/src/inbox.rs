//! Received bytes that are not yet whole frames.

use serde::de::DeserializeOwned;
use wiglaf_wire::frame::{self, Frame, FrameError};

/// Room made for one read.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// A buffer that grew beyond this is given back when it is empty, so that an idle daemon is thin.
const KEEP_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
}

impl Inbox {
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.make_room();
        self.bytes.extend_from_slice(bytes);
    }

    fn make_room(&mut self) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            if self.bytes.capacity() > KEEP_BYTES {
                self.bytes = Vec::new();
            }
        } else if self.start > READ_BYTES {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Takes the next whole frame.
    pub(crate) fn next<M: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<Frame<'_, M>>, FrameError> {
        match frame::take(&self.bytes[self.start..])? {
            Some((frame, used)) => {
                self.start += used;
                Ok(Some(frame))
            }
            None => Ok(None),
        }
    }
}
