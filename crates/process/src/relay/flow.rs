//! What the two ends of one stream agree on: which bytes have been sent, have arrived and have
//! been passed on. Pure; the descriptors are elsewhere.
//!
//! On each new link a stream begins with the receiver's `Passed`: the sender goes on from there,
//! so that a broken link loses and repeats nothing. Until then the sender keeps every byte that
//! is not known to be passed on, at most [`WINDOW_BYTES`].

use std::collections::VecDeque;

use wiglaf_wire::frame::MAX_DATA_BYTES;
use wiglaf_wire::stream::WINDOW_BYTES;

use super::buffers::{Buffers, PIECE_BYTES};

/// A receiver reports progress at the latest after this many bytes.
const REPORT_BYTES: u64 = WINDOW_BYTES / 8;

/// The peer broke the agreement on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// Bytes are missing or come twice.
    #[error("bytes came from offset {came} when {expected} was next")]
    Offset {
        /// What the frame said.
        came: u64,
        /// What was due.
        expected: u64,
    },
    /// More bytes than the window allows.
    #[error("the other side sent more than the window allows")]
    Window,
    /// A report of progress that can't be true.
    #[error("the other side says that it passed on {came} bytes when it was sent {sent}")]
    Report {
        /// What it said.
        came: u64,
        /// What had been sent.
        sent: u64,
    },
    /// Bytes after the end, or two ends.
    #[error("the stream goes on after its end")]
    AfterEnd,
}

/// The sending end of one stream.
#[derive(Debug, Default)]
pub struct Sender {
    /// Read and not known to be passed on, each with the offset of its first byte.
    kept: VecDeque<(u64, Vec<u8>)>,
    passed: u64,
    sent: u64,
    read: u64,
    ended: bool,
    end_told: bool,
    linked: bool,
    broken: bool,
}

impl Sender {
    /// How many bytes may be read from the source now.
    pub fn room(&self) -> usize {
        if self.ended || self.broken || !self.linked {
            return 0;
        }
        usize::try_from(WINDOW_BYTES - (self.read - self.passed)).unwrap_or(0)
    }

    /// Takes what was read from the source, at most [`Sender::room`] bytes. Short pieces are
    /// copied, long ones kept as they are, and `bytes` is left empty.
    pub fn push(&mut self, bytes: &mut Vec<u8>) {
        debug_assert!(
            bytes.len() <= self.room(),
            "the source was asked for no more"
        );
        let length = bytes.len();
        match self.kept.back_mut() {
            // Many short pieces would cost more memory than their bytes.
            Some((_, last))
                if length < PIECE_BYTES / 4
                    && last.len() + length <= last.capacity().max(PIECE_BYTES / 8) =>
            {
                last.extend_from_slice(bytes);
                bytes.clear();
            }
            _ if length < PIECE_BYTES / 4 => {
                self.kept.push_back((self.read, bytes.as_slice().to_vec()));
                bytes.clear();
            }
            _ => self.kept.push_back((self.read, std::mem::take(bytes))),
        }
        self.read += length as u64;
    }

    /// The source has ended.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next bytes to be sent and their offset. They count as sent.
    pub fn next_piece(&mut self) -> Option<(u64, &[u8])> {
        if !self.linked || self.sent == self.read {
            return None;
        }
        let sent = self.sent;
        let index = self
            .kept
            .partition_point(|(start, piece)| start + piece.len() as u64 <= sent);
        let (start, piece) = self.kept.get(index)?;
        let from = usize::try_from(sent - start).ok()?;
        let piece = &piece[from..];
        let piece = &piece[..piece.len().min(MAX_DATA_BYTES)];
        self.sent += piece.len() as u64;
        Some((sent, piece))
    }

    /// The stream's length, once per link, when all of it has been sent.
    pub fn next_end(&mut self) -> Option<u64> {
        let due = self.ended && self.linked && !self.end_told && self.sent == self.read;
        if !due || self.broken {
            return None;
        }
        self.end_told = true;
        Some(self.read)
    }

    /// The receiver has passed on everything before `offset`. On a new link, the stream goes on
    /// from there.
    ///
    /// # Errors
    /// It can't have.
    pub fn passed_on(&mut self, offset: u64, buffers: &mut Buffers) -> Result<(), FlowError> {
        if self.broken {
            return Ok(());
        }
        let most = if self.linked { self.sent } else { self.read };
        if offset < self.passed || offset > most {
            return Err(FlowError::Report {
                came: offset,
                sent: most,
            });
        }
        if !self.linked {
            self.linked = true;
            self.sent = offset;
        }
        self.passed = offset;
        while let Some((start, piece)) = self.kept.front() {
            if start + piece.len() as u64 > offset {
                break;
            }
            if let Some((_, piece)) = self.kept.pop_front() {
                buffers.give_back(piece);
            }
        }
        Ok(())
    }

    /// The link is gone.
    pub fn unlink(&mut self) {
        self.linked = false;
        self.end_told = false;
    }

    /// Nobody wants the rest.
    pub fn break_off(&mut self) {
        self.broken = true;
        self.kept.clear();
        self.sent = self.read;
        self.passed = self.read;
    }

    /// Whether every byte of the source has been passed on, or nobody wants them.
    pub fn is_done(&self) -> bool {
        self.broken || (self.ended && self.passed == self.read)
    }

    /// Whether the source has ended, or its bytes are not wanted any more.
    pub fn is_closed(&self) -> bool {
        self.broken || self.ended
    }
}

/// The receiving end of one stream.
#[derive(Debug, Default)]
pub struct Receiver {
    /// Arrived and not passed on.
    pending: VecDeque<u8>,
    passed: u64,
    received: u64,
    /// What is due on this link: below `received` while a new link repeats bytes.
    due: u64,
    told: u64,
    end: Option<u64>,
    broken: bool,
}

impl Receiver {
    /// Takes bytes off the link, and gives back those that are new. Each of them has to be told
    /// to [`Receiver::wrote`] or given to [`Receiver::keep`].
    ///
    /// # Errors
    /// The peer sent bytes that were not due.
    pub fn accept<'a>(&mut self, offset: u64, bytes: &'a [u8]) -> Result<&'a [u8], FlowError> {
        if self.broken {
            return Ok(&[]);
        }
        if offset != self.due {
            return Err(FlowError::Offset {
                came: offset,
                expected: self.due,
            });
        }
        let end = offset.saturating_add(bytes.len() as u64);
        if self.end.is_some_and(|known| end > known) {
            return Err(FlowError::AfterEnd);
        }
        if end.saturating_sub(self.passed) > WINDOW_BYTES {
            return Err(FlowError::Window);
        }
        let old = usize::try_from(self.received.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.due = end;
        self.received = self.received.max(end);
        Ok(bytes.get(old..).unwrap_or_default())
    }

    /// `count` of the bytes that [`Receiver::accept`] has just given left at once.
    pub fn wrote(&mut self, count: usize) {
        self.passed += count as u64;
    }

    /// What could not leave at once.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// What waits to leave, or the first part of it.
    pub fn pending(&self) -> &[u8] {
        self.pending.as_slices().0
    }

    /// `count` bytes of [`Receiver::pending`] have left.
    pub fn wrote_pending(&mut self, count: usize) {
        self.passed += count as u64;
        self.pending.drain(..count);
    }

    /// The sender says where the stream ends.
    ///
    /// # Errors
    /// It has sent another number of bytes.
    pub fn end_at(&mut self, offset: u64) -> Result<(), FlowError> {
        if self.broken {
            return Ok(());
        }
        if offset != self.due || self.end.is_some_and(|known| known != offset) {
            return Err(FlowError::Offset {
                came: offset,
                expected: self.due,
            });
        }
        self.end = Some(offset);
        Ok(())
    }

    /// What to tell the sender, if there is enough of it: the offset of [`Receiver::wrote`].
    pub fn next_report(&mut self) -> Option<u64> {
        // What left while a new link still repeats bytes is told when the sender has come so far.
        let passed = self.passed.min(self.due);
        let news = passed - self.told;
        if self.broken || news == 0 || (news < REPORT_BYTES && !self.pending().is_empty()) {
            return None;
        }
        self.told = passed;
        if self.pending.is_empty() && news < REPORT_BYTES {
            // Nothing flows fast: the memory is better given back.
            self.pending = VecDeque::new();
        }
        Some(self.told)
    }

    /// A new link: the offset that the sender shall go on from.
    pub fn relink(&mut self) -> u64 {
        self.due = self.passed;
        self.told = self.passed;
        self.passed
    }

    /// Nobody takes the bytes any more.
    pub fn break_off(&mut self) {
        self.broken = true;
        self.pending = VecDeque::new();
    }

    /// How many bytes have arrived.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many bytes have left.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Whether [`Receiver::break_off`] was called.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the whole stream has been passed on.
    pub fn is_done(&self) -> bool {
        self.broken || self.end == Some(self.passed)
    }
}

#[cfg(test)]
mod tests;
