//! The leases on disk, so that no address is given twice after a crash.
//!
//! Two files that were opened as root, of which one is in use: the process could not make a third.
//! What is true is written anew to the other, made durable, and only then is the first emptied; so
//! at any moment all of it stands in one of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::dhcp::Lease;

/// The files' names, beside the images' directory.
const NAMES: [&str; 2] = ["boot-leases.0", "boot-leases.1"];
/// A journal is written anew when it is this long, and longer than twice what is true.
const COMPACT_BYTES: u64 = 256 << 10;
/// Longer ones are not ours (S1).
const MAX_BYTES: u64 = 64 << 20;
/// About what a line takes.
const LINE_BYTES: u64 = 48;

/// The journal.
#[derive(Debug)]
pub(super) struct Journal {
    files: [File; 2],
    current: usize,
    bytes: u64,
    is_torn: bool,
    leases: BTreeMap<Ipv4Addr, Lease>,
}

impl Journal {
    /// Opens or makes it, in this directory.
    pub(super) fn open(directory: &File, now_s: i64) -> std::io::Result<Journal> {
        let open = |name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::openat(directory, name, flags, mode).map(File::from)
        };
        let mut files = [open(NAMES[0])?, open(NAMES[1])?];
        let mut leases = BTreeMap::new();
        let mut lengths = [0; 2];
        for (file, length) in files.iter_mut().zip(&mut lengths) {
            let mut bytes = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut bytes)?;
            *length = bytes.len();
            // If both are there, a crash came between: the second written repeats the first.
            for lease in bytes.split(|byte| *byte == b'\n').filter_map(read_line) {
                leases.insert(lease.address, lease);
            }
        }
        leases.retain(|_, lease| lease.until_s > now_s);
        let current = usize::from(lengths[1] > 0);
        let mut journal = Journal {
            files,
            current,
            bytes: 0,
            is_torn: false,
            leases,
        };
        // Also rids it of a line that a crash cut short.
        journal.rewrite(now_s)?;
        Ok(journal)
    }

    /// What is true.
    pub(super) fn leases(&self) -> Vec<Lease> {
        self.leases.values().copied().collect()
    }

    /// Adds some. They are durable when this returns.
    pub(super) fn keep(&mut self, now_s: i64, leases: &[Lease]) -> std::io::Result<()> {
        // After a failure the last line may be cut.
        let mut text = String::from(if self.is_torn { "\n" } else { "" });
        for lease in leases {
            self.leases.insert(lease.address, *lease);
            text += &line(lease);
        }
        let file = &mut self.files[self.current];
        self.is_torn = true;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        self.is_torn = false;
        self.bytes += text.len() as u64;
        let needed = self.leases.len() as u64 * LINE_BYTES;
        if self.bytes > COMPACT_BYTES.max(2 * needed) {
            self.leases.retain(|_, lease| lease.until_s > now_s);
            self.rewrite(now_s)?;
        }
        Ok(())
    }

    fn rewrite(&mut self, now_s: i64) -> std::io::Result<()> {
        let text: String = self
            .leases
            .values()
            .filter(|lease| lease.until_s > now_s)
            .map(line)
            .collect();
        let other = 1 - self.current;
        let fresh = &mut self.files[other];
        fresh.set_len(0)?;
        fresh.seek(SeekFrom::Start(0))?;
        fresh.write_all(text.as_bytes())?;
        fresh.sync_all()?;
        let old = &mut self.files[self.current];
        old.set_len(0)?;
        old.seek(SeekFrom::Start(0))?;
        old.sync_all()?;
        self.current = other;
        self.bytes = text.len() as u64;
        Ok(())
    }
}

/// The directory that the images' own is in.
pub(super) fn directory_of(images: &std::path::Path) -> Result<File, Errno> {
    let parent = images.parent().unwrap_or(images);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(parent, flags, Mode::empty()).map(File::from)
}

fn line(lease: &Lease) -> String {
    let text = format!("{} {} {}", lease.mac, lease.address, lease.until_s);
    format!("{text} {:08x}\n", check(&text))
}

fn read_line(line: &[u8]) -> Option<Lease> {
    let (text, sum) = std::str::from_utf8(line).ok()?.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16) != Ok(check(text)) {
        return None;
    }
    let mut words = text.split(' ');
    let lease = Lease {
        mac: words.next()?.parse().ok()?,
        address: words.next()?.parse().ok()?,
        until_s: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(lease)
}

/// FNV-1a: against lines that were cut or mixed up, not against anybody.
fn check(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum: u32, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wiglaf_wire::boot::Mac;

    fn lease(number: u8, until_s: i64) -> Lease {
        Lease {
            mac: Mac([2, 0, 0, 0, 0, number]),
            address: Ipv4Addr::new(10, 9, 0, number),
            until_s,
        }
    }

    fn open(directory: &tempfile::TempDir, now_s: i64) -> Journal {
        Journal::open(&File::open(directory.path()).unwrap(), now_s).unwrap()
    }

    #[test]
    fn leases_survive_and_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = open(&directory, 0);
        journal.keep(0, &[lease(1, 100), lease(2, 200)]).unwrap();
        journal.keep(0, &[lease(1, 300), lease(3, 50)]).unwrap();
        drop(journal);
        let mut journal = open(&directory, 60);
        assert_eq!(journal.leases(), [lease(1, 300), lease(2, 200)]);
        // Given back.
        journal.keep(60, &[lease(1, 0)]).unwrap();
        drop(journal);
        assert_eq!(open(&directory, 61).leases(), [lease(2, 200)]);
    }

    #[test]
    fn a_crash_at_any_byte_loses_only_what_was_not_answered() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = open(&directory, 0);
        journal.keep(0, &[lease(1, 100)]).unwrap();
        let name = NAMES[journal.current];
        let whole = std::fs::read(directory.path().join(name)).unwrap();
        journal.keep(0, &[lease(2, 100)]).unwrap();
        drop(journal);
        let longer = std::fs::read(directory.path().join(name)).unwrap();
        for end in whole.len()..longer.len() {
            let torn = tempfile::tempdir().unwrap();
            // In the middle of writing anew: the other file has a part of the same.
            for (name, bytes) in [(NAMES[0], &longer[..end]), (NAMES[1], &longer[..end / 3])] {
                std::fs::write(torn.path().join(name), bytes).unwrap();
            }
            let mut journal = open(&torn, 0);
            let found = journal.leases();
            assert_eq!(found[0], lease(1, 100), "{end}");
            assert!(found.len() == 1 || end == longer.len() - 1);
            // What is added now does not stick to a line that was cut.
            journal.keep(0, &[lease(3, 100)]).unwrap();
            drop(journal);
            assert!(open(&torn, 0).leases().contains(&lease(3, 100)));
        }
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = open(&directory, 0);
        let batch: Vec<_> = (0..100).map(|number| lease(number, 100)).collect();
        for _ in 0..200 {
            journal.keep(0, &batch).unwrap();
        }
        let length = |name| {
            std::fs::metadata(directory.path().join(name))
                .unwrap()
                .len()
        };
        assert!(NAMES.map(length).iter().sum::<u64>() <= COMPACT_BYTES + 10_000);
        drop(journal);
        assert_eq!(open(&directory, 0).leases().len(), 100);
    }
}
