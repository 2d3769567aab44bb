//! The form of a segment, without a disk: a header, records, and, in one that is complete, an index
//! of them at the end.
//!
//! ```text
//! header   magic, version, salt; a tag that tells whether the key is ours
//! record   life | sealed row | sealed bytes, if it is a piece | zeros up to a multiple of 64
//! index    sealed rows, each after its offset
//! end      life | sealed offset and number of the rows
//! ```
//!
//! ChaCha20-Poly1305 rather than AES-256-GCM: it is fast on every processor, where the other takes
//! instructions that most Raspberry Pis and old PCs don't have. Each segment has a key of its own, made
//! of the store's and the salt. A nonce is the place of what it seals, after a random number that
//! each opening of the store draws anew, and each write that fails: what stands at a place after a
//! power cut is written over with another nonce. All that isn't random is sealed, digests and
//! lengths, too. So whoever can write on the disk can put back what was there, and nothing else.

use std::ops::Range;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;

use crate::{Digest, MAX_PIECE_BYTES};

/// Of the file, magic included.
pub const HEADER_BYTES: usize = 64;
/// A file that is longer is none of ours.
pub const MAX_BYTES: usize = 17 << 20;
/// What closes a complete segment.
pub const END_BYTES: usize = LIFE_BYTES + END_PLAIN_BYTES + TAG_BYTES;
/// A row in the index.
pub const INDEXED_BYTES: usize = 4 + ROW_BYTES;

const MAGIC: &[u8; 8] = b"wigkeep\n";
const VERSION: u32 = 1;
const SALT_BYTES: usize = 32;
const CHECKED_BYTES: usize = MAGIC.len() + 4 + SALT_BYTES;
const TAG_BYTES: usize = 16;
const LIFE_BYTES: usize = 8;
const ROW_BYTES: usize = 44;
const END_PLAIN_BYTES: usize = 8;
/// Where the bytes begin in a piece's record.
const BYTES_AT: usize = LIFE_BYTES + ROW_BYTES + TAG_BYTES;
/// Records begin at multiples of it, so that they are found again behind one that is damaged.
const ALIGNMENT: usize = 64;

/// A random number of which nonces are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life(pub [u8; LIFE_BYTES]);

/// What a nonce is used for. The tag covers it, so that nothing passes for anything else.
#[derive(Clone, Copy)]
enum Use {
    Check = 1,
    Row,
    Bytes,
    Index,
    End,
}

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Bytes that a user has put.
    Piece,
    /// Another user has put the same ones.
    User,
}

/// What is said of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// What it is.
    pub kind: Kind,
    /// Of the piece; 0 for a user.
    pub length: u32,
    /// Who put it.
    pub user: u32,
    /// Of the piece.
    pub digest: Digest,
}

/// A record's place, and what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// In the file.
    pub offset: u32,
    /// What is there.
    pub row: Row,
}

/// What a segment holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// By their places.
    pub rows: Vec<Placed>,
    /// Where the next record would begin.
    pub end: u32,
    /// It has an index, which begins there.
    pub is_indexed: bool,
}

/// A segment's own key.
pub struct Key(LessSafeKey);

impl Key {
    /// Of the segment with this header, if it was made with this key, by this version.
    pub fn of(header: &[u8], key: &[u8; 32]) -> Option<Key> {
        let (checked, rest) = header.split_at_checked(CHECKED_BYTES)?;
        let tag = rest.first_chunk::<TAG_BYTES>()?;
        let key = Key::derive(key, checked.last_chunk::<SALT_BYTES>()?)?;
        if !checked.starts_with(&preamble()) {
            return None;
        }
        let nonce = nonce(Life([0; LIFE_BYTES]), CHECKED_BYTES)?;
        let mut tag = *tag;
        let what = said(Use::Check, checked);
        key.0.open_in_place(nonce, Aad::from(what), &mut tag).ok()?;
        Some(key)
    }

    /// Of a new segment, and its header.
    pub fn new(key: &[u8; 32], salt: &[u8; SALT_BYTES]) -> Option<(Key, [u8; HEADER_BYTES])> {
        let mut checked = preamble();
        checked.extend_from_slice(salt);
        let key = Key::derive(key, salt)?;
        let nonce = nonce(Life([0; LIFE_BYTES]), CHECKED_BYTES)?;
        let what = said(Use::Check, &checked);
        let tag = key
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(what), &mut []);
        let tag = tag.ok()?;
        let mut header = [0; HEADER_BYTES];
        header[..CHECKED_BYTES].copy_from_slice(&checked);
        header[CHECKED_BYTES..][..TAG_BYTES].copy_from_slice(tag.as_ref());
        Some((key, header))
    }

    fn derive(key: &[u8; 32], salt: &[u8; SALT_BYTES]) -> Option<Key> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(key);
        let derived = secret.expand(&[b"wiglaf kept segment"], &CHACHA20_POLY1305);
        Some(Key(LessSafeKey::new(UnboundKey::from(derived.ok()?))))
    }

    /// Appends a record that will stand at `offset`; `data` are the piece's bytes.
    pub fn write(
        &self,
        to: &mut Vec<u8>,
        life: Life,
        offset: u32,
        row: &Row,
        data: &[u8],
    ) -> Option<()> {
        let (start, place) = (to.len(), usize::try_from(offset).ok()?);
        to.extend_from_slice(&life.0);
        let plain = row.emit();
        let sealed = (life, place + LIFE_BYTES, Use::Row);
        self.seal(to, sealed, &[], &plain)?;
        if row.kind == Kind::Piece {
            let sealed = (life, place + BYTES_AT, Use::Bytes);
            self.seal(to, sealed, &plain, data)?;
        }
        to.resize(start + row.record_bytes(), 0);
        Some(())
    }

    /// The bytes in a piece's record, which is overwritten.
    pub fn read(&self, placed: &Placed, mut record: Vec<u8>) -> Option<Vec<u8>> {
        let life = Life(*record.first_chunk()?);
        let row = &placed.row;
        if row.kind != Kind::Piece || record.len() != row.exact_bytes() {
            return None;
        }
        let place = usize::try_from(placed.offset).ok()? + BYTES_AT;
        let what = Aad::from(said(Use::Bytes, &row.emit()));
        let nonce = nonce(life, place)?;
        let opened = self.0.open_within(nonce, what, &mut record, BYTES_AT..);
        let length = opened.ok()?.len();
        record.truncate(length);
        Some(record)
    }

    /// What completes a segment, if its records end at `end`.
    pub fn index(&self, life: Life, end: u32, rows: &[Placed]) -> Option<Vec<u8>> {
        let place = usize::try_from(end).ok()?;
        let mut plain = Vec::with_capacity(rows.len() * INDEXED_BYTES);
        for placed in rows {
            plain.extend_from_slice(&placed.offset.to_le_bytes());
            plain.extend_from_slice(&placed.row.emit());
        }
        let mut bytes = Vec::with_capacity(index_bytes(rows.len()));
        self.seal(&mut bytes, (life, place, Use::Index), &[], &plain)?;
        let mut last = [0; END_PLAIN_BYTES];
        last[..4].copy_from_slice(&end.to_le_bytes());
        last[4..].copy_from_slice(&u32::try_from(rows.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(&life.0);
        let sealed = (life, place + bytes.len(), Use::End);
        self.seal(&mut bytes, sealed, &[], &last)?;
        Some(bytes)
    }

    /// Where a complete segment's index is, by the last bytes of a file of this length.
    pub fn index_range(&self, file_bytes: usize, last: &[u8]) -> Option<(Life, Range<usize>)> {
        let last = last.last_chunk::<END_BYTES>()?;
        let life = Life(*last.first_chunk()?);
        let index_end = file_bytes.checked_sub(END_BYTES)?;
        let sealed = (life, index_end + LIFE_BYTES, Use::End);
        let plain = self.open(sealed, &last[LIFE_BYTES..])?;
        let start = usize::try_from(number(&plain, 0)?).ok()?;
        let count = usize::try_from(number(&plain, 4)?).ok()?;
        let bytes = count.checked_mul(INDEXED_BYTES)?.checked_add(TAG_BYTES)?;
        (start.checked_add(bytes)? == index_end).then_some((life, start..index_end))
    }

    /// What an index says, which begins at `start`.
    pub fn indexed(&self, life: Life, start: usize, index: &[u8]) -> Option<Content> {
        let plain = self.open((life, start, Use::Index), index)?;
        Some(Content {
            rows: rows(&plain, start)?,
            end: u32::try_from(start).ok()?,
            is_indexed: true,
        })
    }

    /// What a segment holds by its records. Behind damage it goes on.
    pub fn scan(&self, file: &[u8]) -> Content {
        let mut content = Content {
            rows: Vec::new(),
            end: HEADER_END,
            is_indexed: false,
        };
        let mut at = HEADER_BYTES;
        while at + BYTES_AT <= file.len().min(MAX_BYTES) {
            let Some(placed) = self.record_at(file, at) else {
                at += ALIGNMENT;
                continue;
            };
            at += placed.row.record_bytes();
            content.end = placed.end();
            content.rows.push(placed);
        }
        content
    }

    fn record_at(&self, file: &[u8], at: usize) -> Option<Placed> {
        let life = Life(*file.get(at..)?.first_chunk()?);
        let sealed = file.get(at + LIFE_BYTES..at + BYTES_AT)?;
        let plain = self.open((life, at + LIFE_BYTES, Use::Row), sealed)?;
        let row = Row::parse(&plain)?;
        let is_whole = at + row.exact_bytes() <= file.len();
        let offset = u32::try_from(at).ok()?;
        is_whole.then_some(Placed { offset, row })
    }

    fn seal(
        &self,
        to: &mut Vec<u8>,
        (life, place, what): (Life, usize, Use),
        besides: &[u8],
        plain: &[u8],
    ) -> Option<()> {
        let start = to.len();
        to.extend_from_slice(plain);
        let (nonce, what) = (nonce(life, place)?, Aad::from(said(what, besides)));
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce, what, &mut to[start..]);
        to.extend_from_slice(sealed.ok()?.as_ref());
        Some(())
    }

    fn open(&self, (life, place, what): (Life, usize, Use), sealed: &[u8]) -> Option<Vec<u8>> {
        let mut plain = sealed.to_vec();
        let (nonce, what) = (nonce(life, place)?, Aad::from(said(what, &[])));
        let length = self.0.open_in_place(nonce, what, &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "64")]
pub(crate) const HEADER_END: u32 = HEADER_BYTES as u32;

/// What a segment with these bytes holds; `None` if it was made with another key, or isn't one.
pub fn parse(file: &[u8], key: &[u8; 32]) -> Option<Content> {
    let key = Key::of(file, key)?;
    let indexed = || {
        let (life, range) = key.index_range(file.len(), file)?;
        key.indexed(life, range.start, file.get(range)?)
    };
    Some(indexed().unwrap_or_else(|| key.scan(file)))
}

/// The rows of an index that is opened; its own place bounds theirs.
pub fn rows(plain: &[u8], index_start: usize) -> Option<Vec<Placed>> {
    let mut rows = Vec::with_capacity(plain.len() / INDEXED_BYTES);
    let mut free = HEADER_BYTES;
    if !plain.len().is_multiple_of(INDEXED_BYTES) || index_start > MAX_BYTES {
        return None;
    }
    for plain in plain.chunks_exact(INDEXED_BYTES) {
        let (offset, row) = (number(plain, 0)?, Row::parse(&plain[4..])?);
        let start = usize::try_from(offset).ok()?;
        if start < free || !start.is_multiple_of(ALIGNMENT) {
            return None;
        }
        free = start + row.record_bytes();
        if free > index_start {
            return None;
        }
        rows.push(Placed { offset, row });
    }
    Some(rows)
}

/// What completes a segment of so many records.
pub fn index_bytes(rows: usize) -> usize {
    rows * INDEXED_BYTES + TAG_BYTES + END_BYTES
}

impl Row {
    /// Strict: what we don't write is none.
    pub fn parse(plain: &[u8]) -> Option<Row> {
        let plain: &[u8; ROW_BYTES] = plain.try_into().ok()?;
        let kind = match plain[..4] {
            [1, 0, 0, 0] => Kind::Piece,
            [2, 0, 0, 0] => Kind::User,
            _ => return None,
        };
        let length = number(plain, 4)?;
        let longest = match kind {
            Kind::Piece => MAX_PIECE_BYTES,
            Kind::User => 0,
        };
        (usize::try_from(length).ok()? <= longest).then_some(Row {
            kind,
            length,
            user: number(plain, 8)?,
            digest: Digest(*plain.last_chunk()?),
        })
    }

    /// As it is sealed.
    pub fn emit(&self) -> [u8; ROW_BYTES] {
        let mut plain = [0; ROW_BYTES];
        plain[0] = match self.kind {
            Kind::Piece => 1,
            Kind::User => 2,
        };
        plain[4..8].copy_from_slice(&self.length.to_le_bytes());
        plain[8..12].copy_from_slice(&self.user.to_le_bytes());
        plain[12..].copy_from_slice(&self.digest.0);
        plain
    }

    /// Of its record, without the zeros behind it.
    pub fn exact_bytes(&self) -> usize {
        match self.kind {
            Kind::Piece => BYTES_AT + self.length as usize + TAG_BYTES,
            Kind::User => BYTES_AT,
        }
    }

    /// Of its record.
    pub fn record_bytes(&self) -> usize {
        self.exact_bytes().next_multiple_of(ALIGNMENT)
    }
}

impl Placed {
    /// Where the next record begins.
    pub fn end(&self) -> u32 {
        // A row's length is checked or our own: a record has some 64 kB.
        self.offset + u32::try_from(self.row.record_bytes()).unwrap_or(0)
    }
}

fn preamble() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// The place has room in four bytes: segments are shorter.
fn nonce(life: Life, place: usize) -> Option<Nonce> {
    let mut bytes = [0; NONCE_LEN];
    bytes[..LIFE_BYTES].copy_from_slice(&life.0);
    bytes[LIFE_BYTES..].copy_from_slice(&u32::try_from(place).ok()?.to_le_bytes());
    Some(Nonce::assume_unique_for_key(bytes))
}

fn said(what: Use, besides: &[u8]) -> [u8; 1 + ROW_BYTES] {
    let mut said = [0; 1 + ROW_BYTES];
    said[0] = what as u8;
    said[1..=besides.len()].copy_from_slice(besides);
    said
}

fn number(plain: &[u8], at: usize) -> Option<u32> {
    plain
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}
