//! One file on its way to one client.

use std::rc::Rc;

use super::packet::{self, Packet, Request};

/// Bytes of a block when nothing else is agreed.
const DEFAULT_BLOCK_BYTES: u32 = 512;
const MIN_BLOCK_BYTES: u32 = 8;
/// So that a block is one Ethernet frame: ROMs are bad at putting fragments together.
const MAX_BLOCK_BYTES: u32 = 1468;
/// Most blocks under way. ROMs have small buffers, and a lost block has all after it sent again.
const MAX_WINDOW: u32 = 32;
/// What is sent first is sent again after this, then after twice as long, and so on.
const FIRST_TIMEOUT_MS: u64 = 500;
const MAX_TIMEOUT_MS: u64 = 8_000;
/// The client's own wish is followed up to this.
const MAX_WISHED_TIMEOUT_S: u32 = 255;
/// Times that something is sent again before the client is given up.
const MAX_REPEATS: u32 = 6;
/// A transfer with all its blocks acknowledged at this pace would be a client that plays.
const MAX_TRANSFER_MS: u64 = 10 * 60 * 1000;

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client has the whole file.
    Done,
    /// It sent an error: it only wanted the size, or has no room.
    Refused,
    /// It does not answer any more.
    Silent,
}

/// The state of a transfer. Blocks are counted from 1 without end, and only their last 16 bits
/// travel: so files of any size pass (RFC 1350 is silent on that, clients wrap to 0).
#[derive(Debug)]
pub struct Transfer {
    file: Rc<[u8]>,
    block_bytes: usize,
    window: u64,
    /// What the client agreed on; sent again until it acknowledges block 0.
    options: Option<Vec<u8>>,
    /// All up to this block have arrived.
    arrived: u64,
    /// All up to this block were sent.
    sent: u64,
    /// The client said again what it has, and was sent the rest again for that. Once, as else each
    /// duplicate would beget another for the rest of the file (the Sorcerer's Apprentice,
    /// RFC 1123, section 4.2.3.1).
    has_repeated: bool,
    timeout_ms: u64,
    is_timeout_wished: bool,
    repeats: u32,
    due_ms: u64,
    ends_ms: u64,
    outcome: Option<Outcome>,
}

impl Transfer {
    /// Starts one; the packets are to be sent.
    pub fn new(now_ms: u64, request: &Request, file: Rc<[u8]>) -> (Transfer, Vec<Vec<u8>>) {
        let mut options = Vec::new();
        let mut block_bytes = DEFAULT_BLOCK_BYTES;
        if let Some(wished) = request
            .block_bytes
            .filter(|wished| *wished >= MIN_BLOCK_BYTES)
        {
            block_bytes = wished.min(MAX_BLOCK_BYTES);
            options.push(("blksize", u64::from(block_bytes)));
        }
        let mut timeout_ms = FIRST_TIMEOUT_MS;
        let wished = request
            .timeout_s
            .filter(|wished| (1..=MAX_WISHED_TIMEOUT_S).contains(wished));
        if let Some(wished) = wished {
            timeout_ms = u64::from(wished) * 1000;
            options.push(("timeout", u64::from(wished)));
        }
        if request.wants_size {
            options.push(("tsize", file.len() as u64));
        }
        let mut window = 1;
        if let Some(wished) = request.window.filter(|wished| *wished >= 1) {
            window = u64::from(wished.min(MAX_WINDOW));
            options.push(("windowsize", window));
        }
        let mut transfer = Transfer {
            file,
            block_bytes: block_bytes as usize,
            window,
            options: (!options.is_empty()).then(|| packet::options(&options)),
            arrived: 0,
            sent: 0,
            has_repeated: false,
            timeout_ms,
            is_timeout_wished: wished.is_some(),
            repeats: 0,
            due_ms: now_ms + timeout_ms,
            ends_ms: now_ms + MAX_TRANSFER_MS,
            outcome: None,
        };
        let packets = match &transfer.options {
            Some(options) => vec![options.clone()],
            None => transfer.send_window(),
        };
        (transfer, packets)
    }

    /// Something came from the client.
    pub fn packet(&mut self, now_ms: u64, bytes: &[u8]) -> Vec<Vec<u8>> {
        if self.outcome.is_some() {
            return Vec::new();
        }
        match packet::parse(bytes) {
            Ok(Packet::Acknowledge(block)) => self.acknowledged(now_ms, block),
            Ok(Packet::Error) => {
                self.outcome = Some(Outcome::Refused);
                Vec::new()
            }
            Ok(Packet::Read(_) | Packet::Write) | Err(_) => Vec::new(),
        }
    }

    /// Time has passed; something may have to be sent again.
    pub fn wake(&mut self, now_ms: u64) -> Vec<Vec<u8>> {
        if self.outcome.is_some() || now_ms < self.due_ms {
            return Vec::new();
        }
        if self.repeats == MAX_REPEATS || now_ms >= self.ends_ms {
            self.outcome = Some(Outcome::Silent);
            return Vec::new();
        }
        self.repeats += 1;
        if !self.is_timeout_wished {
            self.timeout_ms = (self.timeout_ms * 2).min(MAX_TIMEOUT_MS);
        }
        self.due_ms = now_ms + self.timeout_ms;
        match &self.options {
            Some(options) => vec![options.clone()],
            None => {
                self.sent = self.arrived;
                self.send_window()
            }
        }
    }

    /// When [`Transfer::wake`] wants to be called.
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// Whether the client has answered yet: until then its request may be a repeated one.
    pub fn is_new(&self) -> bool {
        self.arrived == 0 && (self.options.is_some() || self.sent > 0)
    }

    fn acknowledged(&mut self, now_ms: u64, block: u16) -> Vec<Vec<u8>> {
        if self.options.is_some() {
            if block != 0 {
                return Vec::new();
            }
            self.options = None;
            self.progressed(now_ms);
            return self.send_window();
        }
        let [.., high, low] = self.arrived.to_be_bytes();
        let step = u64::from(block.wrapping_sub(u16::from_be_bytes([high, low])));
        if step > self.sent - self.arrived {
            return Vec::new();
        }
        if step == 0 {
            // With windows a client asks so for what it misses (RFC 7440, section 4); without,
            // this is a duplicate.
            if self.window == 1 || self.has_repeated {
                return Vec::new();
            }
            self.has_repeated = true;
            self.sent = self.arrived;
            return self.send_window();
        }
        self.arrived += step;
        if self.arrived == self.last_block() {
            self.outcome = Some(Outcome::Done);
            return Vec::new();
        }
        self.progressed(now_ms);
        // What it acknowledges in the middle of a window is the last before a gap.
        self.sent = self.arrived;
        self.send_window()
    }

    fn progressed(&mut self, now_ms: u64) {
        self.repeats = 0;
        self.has_repeated = false;
        if !self.is_timeout_wished {
            self.timeout_ms = FIRST_TIMEOUT_MS;
        }
        self.due_ms = now_ms + self.timeout_ms;
    }

    /// The last block is the first that is not full; so it may be empty.
    fn last_block(&self) -> u64 {
        (self.file.len() / self.block_bytes) as u64 + 1
    }

    fn send_window(&mut self) -> Vec<Vec<u8>> {
        let end = (self.arrived + self.window).min(self.last_block());
        let packets = (self.sent + 1..=end).map(|block| self.block(block));
        let packets = packets.collect();
        self.sent = end;
        packets
    }

    fn block(&self, block: u64) -> Vec<u8> {
        let start = usize::try_from(block - 1)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.block_bytes)
            .min(self.file.len());
        let end = (start + self.block_bytes).min(self.file.len());
        let [.., high, low] = block.to_be_bytes();
        packet::data(u16::from_be_bytes([high, low]), &self.file[start..end])
    }
}

#[cfg(test)]
mod tests;
