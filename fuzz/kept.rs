//! Bytes of a disk through what reads a store's segments. For libFuzzer, and for the test in
//! `crates/keep/tests/corpus.rs`.

use wiglaf_keep::Digest;
use wiglaf_keep::segment::{self, Content, HEADER_BYTES, Key, Kind, Life, MAX_BYTES, Placed, Row};

/// The segments in the corpus were made with it.
pub(crate) const KEY: [u8; 32] = [7; 32];
/// A change is a place, and what is changed there; 0 cuts the segment off.
const CHANGE_BYTES: usize = 3;

/// A segment, an index that is opened, a row, and changes of a segment that we make.
pub(crate) fn kept(bytes: &[u8]) {
    if let Some(content) = segment::parse(bytes, &KEY) {
        check(&content, bytes.len());
    }
    if let Some(rows) = segment::rows(bytes, MAX_BYTES) {
        let content = Content {
            end: rows.last().map_or(0, Placed::end),
            rows,
            is_indexed: true,
        };
        check(&content, MAX_BYTES);
    }
    if let Some(row) = Row::parse(bytes) {
        assert_eq!(row.emit(), *bytes, "written otherwise than read");
    }
    changes(bytes);
}

fn check(content: &Content, file_bytes: usize) {
    let mut free = HEADER_BYTES;
    for placed in &content.rows {
        let start = placed.offset as usize;
        assert!(start >= free, "two records in one place");
        assert!(start + placed.row.exact_bytes() <= file_bytes);
        free = start + placed.row.record_bytes();
    }
    assert!(free == HEADER_BYTES || content.end as usize >= free);
}

fn changes(bytes: &[u8]) {
    let data: [&[u8]; 3] = [b"first", &[2; 700], b""];
    let is_complete = bytes.first().is_some_and(|first| first & 1 == 1);
    let (key, mut file, rows) = written(&data, is_complete);
    assert_eq!(
        segment::parse(&file, &KEY).map(|content| content.rows),
        Some(rows.clone())
    );
    let original = file.clone();
    for change in bytes.chunks_exact(CHANGE_BYTES) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % original.len();
        match change[2] {
            0 => file.truncate(at),
            _ if at < file.len() => file[at] ^= change[2],
            other => file.resize(at + 1, other),
        }
    }
    let Some(content) = segment::parse(&file, &KEY) else {
        return;
    };
    check(&content, file.len());
    for placed in &content.rows {
        assert!(rows.contains(placed), "nobody has written that");
        let start = placed.offset as usize;
        let record = file[start..start + placed.row.exact_bytes()].to_vec();
        if let Some(read) = key.read(placed, record) {
            assert_eq!(Digest::of(&read), placed.row.digest);
        }
    }
}

/// A segment of these pieces, each of a user of its own and of user 1000.
fn written(data: &[&[u8]], is_complete: bool) -> (Key, Vec<u8>, Vec<Placed>) {
    let (key, header) = Key::new(&KEY, &[9; 32]).expect("a key");
    let (life, mut file, mut rows) = (Life([3; 8]), header.to_vec(), Vec::new());
    for (user, data) in (0..).zip(data) {
        let piece = Row {
            kind: Kind::Piece,
            length: u32::try_from(data.len()).expect("short"),
            user,
            digest: Digest::of(data),
        };
        let other = Row {
            kind: Kind::User,
            length: 0,
            user: 1000,
            ..piece
        };
        for row in [piece, other] {
            let offset = u32::try_from(file.len()).expect("short");
            let data = if row.kind == Kind::Piece {
                data
            } else {
                &b""[..]
            };
            key.write(&mut file, life, offset, &row, data)
                .expect("sealed");
            rows.push(Placed { offset, row });
        }
    }
    if is_complete {
        let end = u32::try_from(file.len()).expect("short");
        file.extend(key.index(life, end, &rows).expect("sealed"));
    }
    (key, file, rows)
}
