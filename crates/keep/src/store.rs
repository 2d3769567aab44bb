//! The segments of a directory, and which goes when there is no room.

mod load;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::directory::{self, Directory, MAX_NUMBER};
use crate::pieces::Pieces;
use crate::segment::{self, HEADER_BYTES, Key, Kind, Life, Placed, Row};
use crate::{Bounds, Digest, KeepError, MAX_PIECE_BYTES, Statistics};

/// Pieces, and users of pieces besides the first: what the table in memory has room for until it
/// grows beyond 2^20 places, which are 55 MB.
const MAX_RECORDS: usize = (1 << 20) / 8 * 7;
/// A segment is an eighth of its store, within these.
const SEGMENT_BYTES: (u64, u64) = (256 << 10, 16 << 20);
const SEGMENTS_OF_A_STORE: u64 = 8;
/// How much is written until we look again what is free on the file system. Some tell only later
/// what they have freed.
const LOOK_BYTES: u64 = 1 << 20;
/// A file may take so much more than its bytes.
const BLOCK_BYTES: u64 = 4 << 10;
/// What is used of a segment that goes moves to the newest, unless it is more than this part of it.
const MOVED_PART: u64 = 2;

/// The pieces in one directory. All calls but `has`, `digests` and `statistics` read or write the
/// disk, and may wait for it.
pub struct Store {
    directory: Directory,
    key: [u8; 32],
    bounds: Bounds,
    shape: Shape,
    pieces: Pieces,
    /// By number; the first is the oldest.
    segments: BTreeMap<u32, Segment>,
    /// Which is written to.
    current: Option<Current>,
    next_number: u32,
    /// Of all segments.
    bytes: u64,
    /// Since we looked what is free.
    written: u64,
    buffer: Vec<u8>,
}

/// What only tests choose.
#[derive(Clone, Copy)]
struct Shape {
    segment_bytes: u64,
    records: usize,
}

struct Segment {
    key: Key,
    bytes: u64,
}

struct Current {
    number: u32,
    file: File,
    /// Drawn anew whenever what stands in the file from `end` on isn't known.
    life: Life,
    rows: Vec<Placed>,
    end: u32,
    /// There is an index behind `end`; it is cut off before anything is written.
    is_indexed: bool,
}

impl Store {
    /// Opens what is in `directory`, which is made if need be (its parent isn't). What was written
    /// with another key is removed.
    pub fn open(directory: &Path, key: &[u8; 32], bounds: Bounds) -> Result<Store, KeepError> {
        let (least, most) = SEGMENT_BYTES;
        let segment_bytes = (bounds.bytes / SEGMENTS_OF_A_STORE).clamp(least, most);
        let shape = Shape {
            segment_bytes,
            records: MAX_RECORDS,
        };
        Store::open_with(directory, key, bounds, shape)
    }

    fn open_with(
        directory: &Path,
        key: &[u8; 32],
        bounds: Bounds,
        shape: Shape,
    ) -> Result<Store, KeepError> {
        let mut store = Store {
            directory: Directory::open(directory)?,
            key: *key,
            bounds,
            shape,
            pieces: Pieces::default(),
            segments: BTreeMap::new(),
            current: None,
            next_number: 0,
            bytes: 0,
            written: LOOK_BYTES,
            buffer: Vec::new(),
        };
        store.load()?;
        while store.bytes > bounds.bytes || store.pieces.records() > shape.records {
            store.evict()?;
        }
        match store.leave_spare(0) {
            Ok(()) | Err(KeepError::Full { .. }) => Ok(store),
            Err(error) => Err(error),
        }
    }

    /// The bytes, if this user has put them and they are whole. What isn't is forgotten.
    pub fn get(&mut self, user: u32, digest: &Digest) -> Option<Vec<u8>> {
        let piece = self.pieces.of(user, digest)?;
        let data = self.read(piece.segment, &piece.placed(*digest))?;
        self.pieces.used(digest);
        Some(data)
    }

    /// Keeps bytes for a user. Others' same bytes are kept once. May take as long as reading and
    /// writing half a segment.
    pub fn put(&mut self, user: u32, data: &[u8]) -> Result<(), KeepError> {
        if data.len() > MAX_PIECE_BYTES {
            let bytes = data.len();
            return Err(KeepError::TooLong { bytes });
        }
        let digest = Digest::of(data);
        loop {
            if self.pieces.of(user, &digest).is_some() {
                self.pieces.used(&digest);
                return Ok(());
            }
            // Asked each time: what made room may have taken the piece.
            let (row, data) = if self.pieces.holds(&digest) {
                (row_of_user(user, digest), &[][..])
            } else {
                (row_of_piece(user, digest, data), data)
            };
            let bytes = row.record_bytes() as u64;
            if alone(bytes) > self.bounds.bytes {
                return Err(self.full(bytes));
            }
            self.leave_spare(bytes)?;
            if self.pieces.holds(&digest) != (row.kind == Kind::User) {
                continue;
            }
            if self.append(&row, data)? {
                return Ok(());
            }
            if !self.evict()? {
                return Err(self.full(bytes));
            }
        }
    }

    /// Whether `get` would look for it on the disk.
    pub fn has(&self, user: u32, digest: &Digest) -> bool {
        self.pieces.of(user, digest).is_some()
    }

    /// All that this user has put, in no order.
    pub fn digests(&self, user: u32) -> impl Iterator<Item = Digest> + '_ {
        self.pieces.digests(user)
    }

    /// What there is, and may be.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            pieces: self.pieces.len() as u64,
            bytes: self.bytes,
            bound: self.bounds.bytes,
        }
    }

    fn full(&self, bytes: u64) -> KeepError {
        let path = self.directory.path().to_owned();
        KeepError::Full { path, bytes }
    }

    fn read(&mut self, number: u32, placed: &Placed) -> Option<Vec<u8>> {
        let (offset, bytes) = (u64::from(placed.offset), placed.row.exact_bytes());
        let read = match &self.current {
            Some(current) if current.number == number => {
                directory::read(&current.file, offset, bytes)
            }
            _ => match self.directory.segment(number) {
                Ok(Some(file)) => directory::read(&file, offset, bytes),
                Ok(None) => {
                    // Somebody has taken the file away, or the disk is failing.
                    let _ = self.directory.remove(number);
                    self.forget_segment(number);
                    return None;
                }
                Err(error) => Err(error),
            },
        };
        let read = match read {
            Err(error) if directory::is_not_of_the_file(&error) => return None,
            read => read.ok(),
        };
        let segment = self.segments.get(&number)?;
        let data = read.and_then(|record| segment.key.read(placed, record));
        if data.is_none() {
            self.pieces.forget(&placed.row.digest);
        }
        data
    }

    /// `false` if there is no room.
    fn append(&mut self, row: &Row, data: &[u8]) -> Result<bool, KeepError> {
        if self.pieces.records() >= self.shape.records || !self.has_room(row.record_bytes() as u64)
        {
            return Ok(false);
        }
        if self.is_next(row.record_bytes() as u64) {
            self.complete();
            if !self.begin()? {
                return Ok(false);
            }
        }
        let Some(mut current) = self.current.take() else {
            return Ok(false);
        };
        match self.write(&mut current, row, data) {
            Ok(()) => {
                self.current = Some(current);
                Ok(true)
            }
            Err(error) => {
                let number = current.number;
                if current.rows.is_empty() {
                    // Else it would be given up for its own successor, for ever.
                    self.directory.remove(number)?;
                    self.forget_segment(number);
                } else {
                    let _ = current.file.set_len(u64::from(current.end));
                    current.life = Life(draw().map_err(KeepError::Random)?);
                    self.current = Some(current).filter(|_| is_of_room(&error));
                }
                match is_of_room(&error) {
                    true => Ok(false),
                    false => Err(self.directory.error(number, error)),
                }
            }
        }
    }

    /// Whether the bound has room for such a record, and for what will complete the segment.
    fn has_room(&self, bytes: u64) -> bool {
        let alone = alone(bytes);
        let closed = match &self.current {
            None => self.bytes + alone,
            Some(current) => {
                let before = self.bytes - self.bytes_of(current.number);
                let completed = |more| {
                    u64::from(current.end) + segment::index_bytes(current.rows.len() + more) as u64
                };
                if self.is_next(bytes) {
                    before + completed(0) + alone
                } else {
                    before + completed(1) + bytes
                }
            }
        };
        closed <= self.bounds.bytes
    }

    /// Whether such a record begins a new segment.
    fn is_next(&self, bytes: u64) -> bool {
        self.current.as_ref().is_none_or(|current| {
            let index = segment::index_bytes(current.rows.len() + 1) as u64;
            u64::from(current.end) + bytes + index > self.shape.segment_bytes
                && !current.rows.is_empty()
        })
    }

    fn bytes_of(&self, number: u32) -> u64 {
        self.segments
            .get(&number)
            .map_or(0, |segment| segment.bytes)
    }

    fn set_bytes_of(&mut self, number: u32, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            self.bytes = self.bytes - segment.bytes + bytes;
            self.written += bytes.saturating_sub(segment.bytes);
            segment.bytes = bytes;
        }
    }

    fn write(&mut self, current: &mut Current, row: &Row, data: &[u8]) -> io::Result<()> {
        let (number, offset) = (current.number, current.end);
        if current.is_indexed {
            current.file.set_len(u64::from(offset))?;
            current.is_indexed = false;
            self.set_bytes_of(number, u64::from(offset));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let segment = self.segments.get(&number);
        let sealed = segment.and_then(|segment| {
            segment
                .key
                .write(&mut buffer, current.life, offset, row, data)
        });
        let written = match sealed {
            Some(()) => current.file.write_all_at(&buffer, u64::from(offset)),
            None => Err(io::ErrorKind::FileTooLarge.into()),
        };
        self.buffer = buffer;
        written?;
        let placed = Placed { offset, row: *row };
        self.pieces.add(number, &placed);
        current.rows.push(placed);
        current.end = placed.end();
        self.set_bytes_of(number, u64::from(current.end));
        Ok(())
    }

    /// A new segment. `false` if the disk has no room for it.
    fn begin(&mut self) -> Result<bool, KeepError> {
        let number = self.next_number;
        let salt = [draw(), draw(), draw(), draw()];
        let mut bytes = [0; 32];
        for (to, from) in bytes.chunks_exact_mut(8).zip(salt) {
            to.copy_from_slice(&from.map_err(KeepError::Random)?);
        }
        let life = Life(draw().map_err(KeepError::Random)?);
        let made = Key::new(&self.key, &bytes).filter(|_| number <= MAX_NUMBER);
        let Some((key, header)) = made else {
            return Err(self.full(HEADER_BYTES as u64));
        };
        let begun = self.directory.create(number).and_then(|file| {
            file.write_all_at(&header, 0)?;
            Ok(file)
        });
        let file = match begun {
            Ok(file) => file,
            Err(error) => {
                let _ = self.directory.remove(number);
                return match is_of_room(&error) {
                    true => Ok(false),
                    false => Err(self.directory.error(number, error)),
                };
            }
        };
        self.next_number += 1;
        self.written += BLOCK_BYTES;
        self.segments.insert(number, Segment { key, bytes: 0 });
        self.set_bytes_of(number, HEADER_BYTES as u64);
        self.current = Some(Current {
            number,
            file,
            life,
            rows: Vec::new(),
            end: segment::HEADER_END,
            is_indexed: false,
        });
        Ok(true)
    }

    /// Nothing is written to the current segment any more. If there is no room for its index, the
    /// next opening reads the segment instead.
    fn complete(&mut self) {
        let Some(current) = self.current.take() else {
            return;
        };
        let Some(segment) = self.segments.get(&current.number) else {
            return;
        };
        if current.is_indexed {
            return;
        }
        let (end, life) = (u64::from(current.end), current.life);
        let room = self.bounds.bytes.saturating_sub(self.bytes);
        let has_room = segment::index_bytes(current.rows.len()) as u64 <= room;
        let index = || segment.key.index(life, current.end, &current.rows);
        let bytes = match has_room.then(index).flatten() {
            Some(index) if current.file.write_all_at(&index, end).is_ok() => {
                end + index.len() as u64
            }
            _ => {
                let _ = current.file.set_len(end);
                end
            }
        };
        self.set_bytes_of(current.number, bytes);
    }

    /// Others have what they are to have of the file system, if this much is written.
    fn leave_spare(&mut self, bytes: u64) -> Result<(), KeepError> {
        if self.bounds.spare == 0 || self.written + bytes <= LOOK_BYTES {
            return Ok(());
        }
        let free = self.directory.free_bytes()?;
        let mut short = (self.bounds.spare.saturating_add(LOOK_BYTES)).saturating_sub(free);
        while short > 0 {
            let before = self.bytes;
            if !self.evict()? {
                return Err(self.full(bytes));
            }
            short = short.saturating_sub(before.saturating_sub(self.bytes));
        }
        self.written = 0;
        Ok(())
    }

    /// The oldest segment goes; some of what is used of it stays. `false` if there is none.
    fn evict(&mut self) -> Result<bool, KeepError> {
        let Some((&oldest, segment)) = self.segments.first_key_value() else {
            return Ok(false);
        };
        let mut room = segment.bytes / MOVED_PART;
        let mut moving = Vec::new();
        for placed in self.pieces.used_in(oldest) {
            let digest = placed.row.digest;
            let others: Vec<_> = self.pieces.others(&digest).to_vec();
            let others: Vec<_> = others
                .iter()
                .map(|user| row_of_user(*user, digest))
                .collect();
            let rows = || std::iter::once(&placed.row).chain(&others);
            let records: usize = rows().map(Row::record_bytes).sum();
            let bytes = records + segment::index_bytes(1 + others.len());
            let Some(less) = room.checked_sub(bytes as u64) else {
                break;
            };
            let Some(data) = self.read(oldest, &placed) else {
                continue;
            };
            room = less;
            moving.push((placed.row, others, data));
        }
        self.directory.remove(oldest)?;
        self.forget_segment(oldest);
        // What finds no room now is gone.
        for (row, others, data) in moving {
            if !matches!(self.append(&row, &data), Ok(true)) {
                break;
            }
            for other in others {
                let _ = self.append(&other, &[]);
            }
        }
        Ok(true)
    }

    fn forget_segment(&mut self, number: u32) {
        if self
            .current
            .as_ref()
            .is_some_and(|current| current.number == number)
        {
            self.current = None;
        }
        if let Some(segment) = self.segments.remove(&number) {
            self.bytes -= segment.bytes;
        }
        self.pieces.forget_segment(number);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.complete();
    }
}

fn row_of_piece(user: u32, digest: Digest, data: &[u8]) -> Row {
    Row {
        kind: Kind::Piece,
        length: u32::try_from(data.len()).unwrap_or(u32::MAX),
        user,
        digest,
    }
}

fn row_of_user(user: u32, digest: Digest) -> Row {
    Row {
        kind: Kind::User,
        length: 0,
        user,
        digest,
    }
}

/// Of a segment with this record only.
fn alone(bytes: u64) -> u64 {
    bytes + (HEADER_BYTES + segment::index_bytes(1)) as u64
}

fn draw() -> io::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

fn is_of_room(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    kinds.contains(&error.kind())
}
