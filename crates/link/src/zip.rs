//! Compression of single frames: whether it is worth it, and zstd at both ends. Why this
//! compressor, and each frame by itself: `docs/adr/0009-compressed-frames.md`.

use std::time::{Duration, Instant};

use wiglaf_linux::tcp;
use wiglaf_wire::frame::{Compression, FrameError, MAX_EXPANSION};
use zstd::bulk::{Compressor, Decompressor};

/// Shorter frames go as they are: there is little to be gained.
pub(crate) const MIN_BYTES: usize = 4 << 10;
/// A frame that keeps more than this share of its length is sent as it was.
const WORTH_SHARE: f64 = 0.9;
/// What has to be gained of the time that a frame takes on the wire.
const WORTH_TIME: f64 = 0.1;
/// Of what did not get shorter last time, a piece of the middle is tried first.
const PROBE_BYTES: usize = 4 << 10;
/// Frames up to this length are tried whole.
const PROBE_FROM_BYTES: usize = 16 << 10;
/// After as many frames in a row that did not get shorter, 2 to the power of it, less one, are
/// not tried.
const MAX_DENSE: u32 = 5;
/// What is taken for so until something is measured (docs/adr/0009-compressed-frames.md).
const USUAL_SHARE: f64 = 0.42;
const USUAL_BYTES_PER_S: f64 = 400e6;
/// How fast the other end opens a frame.
const OPEN_BYTES_PER_S: f64 = 1e9;
/// A wire of which nothing is known: 100 Mb/s.
const UNKNOWN_WIRE_BYTES_PER_S: f64 = 12.5e6;
/// What one frame teaches, and what is forgotten with one that is not compressed as the wire is
/// too fast: what was learnt may be about other data, or a busier processor.
const LEARN: f64 = 1.0 / 8.0;
const FORGET: f64 = 1.0 / 64.0;
/// Over so much time in which something was under way the wire's speed is taken: the kernel counts
/// that time in ticks of up to 10 ms.
const GAUGE_US: u64 = 40_000;
/// Many small frames take round trips rather than the wire's time: it is no slower, compared with
/// what the kernel saw at best, than one part of so many.
const MAX_SLOWER: u64 = 3;
/// Frames in a row that were not compressed, after which the compressor's memory is given back.
const IDLE_USES: u8 = 64;
/// Magic number of a skippable frame (RFC 8878, 3.1.2).
const SKIPPABLE: u32 = 0x184D_2A50;
const SKIPPABLE_HEADER_BYTES: usize = 8;

/// A level of zstd, compared with level 1 by what it was measured at.
struct Level {
    number: i32,
    speed: f64,
    share: f64,
}

const LEVELS: [Level; 3] = [
    Level {
        number: 1,
        speed: 1.0,
        share: 1.0,
    },
    Level {
        number: 3,
        speed: 0.7,
        share: 0.94,
    },
    Level {
        number: 6,
        speed: 0.21,
        share: 0.88,
    },
];

/// The way that a frame has before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// 0 if it is not known.
    pub(crate) bytes_per_s: u64,
    /// What goes before it.
    pub(crate) waiting_bytes: u64,
}

/// How fast a wire is. What the kernel has measured lately may be a burst, which some wires let
/// pass at more than their speed.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    arrived_bytes: u64,
    busy_us: u64,
    bytes_per_s: Option<u64>,
}

impl Gauge {
    pub(crate) fn read(&mut self, way: tcp::Way) -> u64 {
        let busy_us = way.busy_us.saturating_sub(self.busy_us);
        if busy_us >= GAUGE_US {
            let bytes = way.arrived_bytes.saturating_sub(self.arrived_bytes);
            self.bytes_per_s = Some(bytes.saturating_mul(1_000_000) / busy_us);
            (self.arrived_bytes, self.busy_us) = (way.arrived_bytes, way.busy_us);
        }
        let lately = way.bytes_per_s;
        let lasting = self.bytes_per_s.unwrap_or(lately);
        lasting.clamp(lately / MAX_SLOWER, lately)
    }
}

/// What a frame holds: what is learnt of one kind is not held against the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Message,
    Data,
}

/// Decides, and does not compress.
#[derive(Debug)]
struct Judge {
    /// Of their length that frames have kept lately at level 1.
    share: f64,
    /// Of level 1.
    bytes_per_s: f64,
    density: [Density; 2],
}

#[derive(Debug, Default)]
struct Density {
    /// Frames in a row that did not get shorter.
    dense: u32,
    /// Frames that are not tried.
    skip: u32,
}

impl Default for Judge {
    fn default() -> Judge {
        Judge {
            share: USUAL_SHARE,
            bytes_per_s: USUAL_BYTES_PER_S,
            density: Default::default(),
        }
    }
}

impl Judge {
    /// The level at which `length` bytes arrive soonest, if not as they are.
    fn choose(&mut self, length: usize, way: Way) -> Option<&'static Level> {
        let rate = match way.bytes_per_s {
            0 => UNKNOWN_WIRE_BYTES_PER_S,
            rate => rate as f64,
        };
        let bytes = length as f64;
        // The frame is made while the wire is busy with what goes before it.
        let wait_s = way.waiting_bytes as f64 / rate;
        let plain_s = wait_s + bytes / rate;
        let arrives = |level: &Level| {
            let made_s = bytes / (self.bytes_per_s * level.speed);
            let sent_s = bytes * self.share * level.share / rate;
            wait_s.max(made_s) + sent_s + bytes / OPEN_BYTES_PER_S
        };
        let times = LEVELS.iter().map(|level| (arrives(level), level));
        let (soonest_s, level) = times.min_by(|one, other| one.0.total_cmp(&other.0))?;
        if plain_s - soonest_s < WORTH_TIME * bytes / rate {
            self.share += (USUAL_SHARE - self.share) * FORGET;
            self.bytes_per_s += (USUAL_BYTES_PER_S - self.bytes_per_s) * FORGET;
            return None;
        }
        Some(level)
    }

    fn learn(&mut self, level: &Level, length: usize, zipped: usize, took: Duration) {
        if length < PROBE_FROM_BYTES {
            return;
        }
        let share = zipped as f64 / length as f64 / level.share;
        let rate = length as f64 / took.as_secs_f64().max(1e-9) / level.speed;
        self.share += (share - self.share) * LEARN;
        self.bytes_per_s += (rate - self.bytes_per_s) * LEARN;
    }

    fn density(&mut self, kind: Kind) -> &mut Density {
        &mut self.density[usize::from(kind == Kind::Data)]
    }
}

impl Density {
    fn is_skipped(&mut self) -> bool {
        let skip = self.skip > 0;
        self.skip = self.skip.saturating_sub(1);
        skip
    }

    fn note(&mut self, is_dense: bool) {
        self.dense = if is_dense {
            (self.dense + 1).min(MAX_DENSE)
        } else {
            0
        };
        self.skip = (1 << self.dense) - 1;
    }
}

/// The sending end.
#[derive(Default)]
pub(crate) struct Zipper {
    judge: Judge,
    compressor: Option<Compressor<'static>>,
    zipped: Vec<u8>,
    uses_without: u8,
}

impl Zipper {
    /// Compresses `content` if that is worth it; the outcome is [`Zipper::zipped`], shorter than
    /// it was by more than any frame's header.
    pub(crate) fn zip(
        &mut self,
        (compression, kind): (Compression, Kind),
        content: &[u8],
        way: impl FnOnce() -> Way,
    ) -> bool {
        let is_zipped = content.len() >= MIN_BYTES
            && match compression {
                Compression::Never => false,
                Compression::Adaptive => self.zip_if_soon(kind, content, way),
                Compression::Always => self.compress(&LEVELS[0], content).is_some(),
            };
        if is_zipped {
            self.uses_without = 0;
        } else if self.compressor.is_some() {
            self.uses_without += 1;
            if self.uses_without >= IDLE_USES {
                (self.compressor, self.zipped) = (None, Vec::new());
                self.uses_without = 0;
            }
        }
        is_zipped
    }

    pub(crate) fn zipped(&self) -> &[u8] {
        &self.zipped
    }

    fn zip_if_soon(&mut self, kind: Kind, content: &[u8], way: impl FnOnce() -> Way) -> bool {
        if self.judge.density(kind).is_skipped() {
            return false;
        }
        let Some(level) = self.judge.choose(content.len(), way()) else {
            return false;
        };
        if self.judge.density(kind).dense > 0 && content.len() > PROBE_FROM_BYTES {
            let middle = (content.len() - PROBE_BYTES) / 2;
            let piece = &content[middle..middle + PROBE_BYTES];
            if self.compress(&LEVELS[0], piece).is_none() {
                self.judge.density(kind).note(true);
                return false;
            }
        }
        let began = Instant::now();
        let zipped = self.compress(level, content);
        if let Some(zipped) = zipped {
            self.judge
                .learn(level, content.len(), zipped, began.elapsed());
        }
        self.judge.density(kind).note(zipped.is_none());
        zipped.is_some()
    }

    /// `None`: it does not get shorter, or there is no memory.
    fn compress(&mut self, level: &Level, content: &[u8]) -> Option<usize> {
        let mut compressor = match self.compressor.take() {
            Some(compressor) => compressor,
            None => Compressor::new(level.number).ok()?,
        };
        compressor.set_compression_level(level.number).ok()?;
        self.zipped.clear();
        self.zipped
            .reserve(zstd::zstd_safe::compress_bound(content.len()));
        let zipped = compressor.compress_to_buffer(content, &mut self.zipped);
        // One that has failed is of no more use, and is not put back.
        let zipped = zipped.ok()?;
        self.compressor = Some(compressor);
        if zipped as f64 > WORTH_SHARE * content.len() as f64 {
            return None;
        }
        pad(&mut self.zipped, content.len().div_ceil(MAX_EXPANSION));
        Some(zipped)
    }
}

/// Lengthens what is compressed to at least `length` bytes, with what the other end skips.
fn pad(zipped: &mut Vec<u8>, length: usize) {
    if zipped.len() >= length {
        return;
    }
    let nothing = (length - zipped.len()).saturating_sub(SKIPPABLE_HEADER_BYTES);
    zipped.extend_from_slice(&SKIPPABLE.to_le_bytes());
    // A frame's length fits into 32 bits by far.
    let field = u32::try_from(nothing).unwrap_or(u32::MAX);
    zipped.extend_from_slice(&field.to_le_bytes());
    zipped.resize(zipped.len() + nothing, 0);
}

/// The receiving end.
#[derive(Default)]
pub(crate) struct Unzipper {
    decompressor: Option<Decompressor<'static>>,
    content: Vec<u8>,
    uses_without: u8,
}

impl std::fmt::Debug for Unzipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unzipper").finish_non_exhaustive()
    }
}

impl Unzipper {
    /// Opens a frame that declares `length` bytes, which the caller has found in bounds: no more
    /// memory is used, whatever it holds.
    pub(crate) fn open(&mut self, zipped: &[u8], length: usize) -> Result<(), FrameError> {
        self.uses_without = 0;
        if self.decompressor.is_none() {
            self.decompressor = Decompressor::new().ok();
        }
        let decompressor = self.decompressor.as_mut().ok_or(FrameError::NotZipped)?;
        self.content.resize(length, 0);
        match decompressor.decompress_to_buffer(zipped, &mut self.content[..]) {
            Ok(opened) if opened == length => Ok(()),
            _ => Err(FrameError::NotZipped),
        }
    }

    /// Of the frame that was opened last.
    pub(crate) fn content(&self) -> &[u8] {
        &self.content
    }

    /// A frame came that was not compressed.
    pub(crate) fn rest(&mut self) {
        if self.decompressor.is_some() {
            self.uses_without += 1;
            if self.uses_without >= IDLE_USES {
                *self = Unzipper::default();
            }
        }
    }
}

#[cfg(test)]
#[path = "zip/tests.rs"]
mod tests;
