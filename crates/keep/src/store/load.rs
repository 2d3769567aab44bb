//! What an opened directory holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Current, Segment, Store, draw};
use crate::KeepError;
use crate::directory::{self, MAX_NUMBER};
use crate::segment::{Content, HEADER_BYTES, Key, Life, MAX_BYTES};

/// Read at once of a segment's end: the index of one with long pieces.
const LAST_BYTES: usize = 32 << 10;
/// Numbers beyond are somebody's joke: all begins anew.
const LAST_NUMBER: u32 = MAX_NUMBER / 2;

struct Found {
    file: File,
    key: Key,
    content: Content,
    bytes: u64,
}

impl Store {
    pub(super) fn load(&mut self) -> Result<(), KeepError> {
        let mut numbers = self.directory.numbers()?;
        numbers.sort_unstable();
        if numbers.last().is_some_and(|last| *last > LAST_NUMBER) {
            for number in numbers.drain(..) {
                self.directory.remove(number)?;
            }
        }
        let life = Life(draw().map_err(KeepError::Random)?);
        let last = numbers.last().copied();
        self.next_number = last.map_or(0, |last| last + 1);
        for number in numbers {
            let file = self.directory.segment(number);
            let file = file.map_err(|error| self.directory.error(number, error))?;
            // A disk that can't read it any more needn't hold it either.
            let found = file.and_then(|file| find(file, &self.key).ok().flatten());
            match found {
                Some(found) if !found.content.rows.is_empty() => {
                    self.take(number, found, life, last == Some(number));
                }
                // What can't be removed is in nobody's way.
                _ => drop(self.directory.remove(number)),
            }
        }
        Ok(())
    }

    /// The newest is written to again, if it has room.
    fn take(&mut self, number: u32, found: Found, life: Life, is_newest: bool) {
        let Found {
            file,
            key,
            content,
            bytes,
        } = found;
        for placed in &content.rows {
            self.pieces.add(number, placed);
        }
        self.segments.insert(number, Segment { key, bytes: 0 });
        self.set_bytes_of(number, bytes);
        self.current = Some(Current {
            number,
            file,
            life,
            rows: content.rows,
            end: content.end,
            is_indexed: content.is_indexed,
        });
        if !is_newest || u64::from(content.end) >= self.shape.segment_bytes {
            self.complete();
        }
    }
}

/// `None` if this is none of ours.
fn find(file: File, key: &[u8; 32]) -> io::Result<Option<Found>> {
    let length = file.metadata()?.len();
    let Ok(length) = usize::try_from(length) else {
        return Ok(None);
    };
    if !(HEADER_BYTES..=MAX_BYTES).contains(&length) {
        return Ok(None);
    }
    let Some(key) = Key::of(&directory::read(&file, 0, HEADER_BYTES)?, key) else {
        return Ok(None);
    };
    let content = match indexed(&file, length, &key)? {
        Some(content) => content,
        None => {
            let mut all = vec![0; length];
            file.read_exact_at(&mut all, 0)?;
            let content = key.scan(&all);
            // What is torn would be in an index's place.
            let _ = file.set_len(u64::from(content.end));
            content
        }
    };
    let bytes = match content.is_indexed {
        true => length as u64,
        false => u64::from(content.end),
    };
    Ok(Some(Found {
        file,
        key,
        content,
        bytes,
    }))
}

fn indexed(file: &File, length: usize, key: &Key) -> io::Result<Option<Content>> {
    let read = |offset: usize, bytes| directory::read(file, offset as u64, bytes);
    let start = length.saturating_sub(LAST_BYTES);
    let last = read(start, length - start)?;
    let Some((life, range)) = key.index_range(length, &last) else {
        return Ok(None);
    };
    let index = match range.start.checked_sub(start) {
        Some(at) => last[at..at + range.len()].to_vec(),
        None => read(range.start, range.len())?,
    };
    Ok(key.indexed(life, range.start, &index))
}
