//! Directories as they are read.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use wiglaf_wire::view::{Entry, FileId, MAX_ENTRIES, Reply};

use super::table::{Directory, Found};
use super::{Export, LinkId, descriptor};

/// What one `getdents64` may fill.
const DIRECTORY_BUFFER_BYTES: usize = 32 << 10;
/// What the smallest one may fill: room for the longest name.
const MIN_BUFFER_BYTES: usize = 512;
/// An entry of `getdents64` has about so many bytes.
const USUAL_ENTRY_BYTES: usize = 32;
/// Most bytes of names in one answer, but for what one buffer adds.
const MAX_NAMES_BYTES: usize = 256 << 10;
/// Most directories that are being read at a time.
const MAX_LISTINGS: usize = 128;

/// Directories that are being read, each node's for itself: on some file systems only the
/// position of the descriptor itself survives the removal of entries, as by `rm -r`.
#[derive(Debug, Default)]
pub(super) struct Listings {
    open: HashMap<(LinkId, FileId), Listing>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Listing {
    directory: OwnedFd,
    /// The offset from which it would go on by itself, if that is known.
    position: Option<u64>,
    used: u64,
}

impl Listings {
    pub(super) fn drop(&mut self, link: LinkId, file: FileId) {
        self.open.remove(&(link, file));
    }

    pub(super) fn close(&mut self, link: LinkId) {
        self.open.retain(|(of, _), _| *of != link);
    }

    /// The open directory at `offset`. One that starts is a new opendir: rights are checked
    /// again.
    fn take(&mut self, link: LinkId, directory: &Directory, offset: u64) -> Result<Listing, Errno> {
        let known = self.open.remove(&(link, directory.file));
        let mut listing = match known.filter(|_| offset != 0) {
            Some(listing) => listing,
            None => Listing {
                directory: descriptor::reopen(&directory.path, OFlags::RDONLY | OFlags::DIRECTORY)?,
                position: Some(0),
                used: 0,
            },
        };
        if listing.position != Some(offset) {
            rustix::fs::seek(&listing.directory, SeekFrom::Start(offset))?;
            listing.position = Some(offset);
        }
        Ok(listing)
    }

    fn put(&mut self, link: LinkId, file: FileId, mut listing: Listing) {
        if self.open.len() >= MAX_LISTINGS {
            let oldest = self.open.iter().min_by_key(|(_, listing)| listing.used);
            if let Some(oldest) = oldest.map(|(&key, _)| key) {
                self.open.remove(&oldest);
            }
        }
        self.clock += 1;
        listing.used = self.clock;
        self.open.insert((link, file), listing);
    }
}

impl Export {
    pub(super) fn list(
        &mut self,
        link: LinkId,
        file: FileId,
        (offset, most): (u64, u32),
        attributes: bool,
    ) -> Result<Reply, Errno> {
        let directory = self.table.directory(link, file)?;
        let (mut entries, mut end) = (Vec::new(), true);
        if !directory.opaque {
            let mut listing = self.listings.take(link, &directory, offset)?;
            end = self.read_entries(&directory, &mut listing, most, &mut entries)?;
            if !end {
                self.listings.put(link, file, listing);
            }
        }
        if attributes {
            for entry in &mut entries {
                entry.attributes = self.listed(link, &directory, &entry.name);
            }
        }
        if let Some(belief) = self.belief(link, file) {
            belief.tell();
            belief.tell_listing(offset == 0);
        }
        Ok(Reply::Entries { entries, end })
    }

    /// Adds entries; whether there are no more.
    fn read_entries(
        &mut self,
        directory: &Directory,
        listing: &mut Listing,
        most: u32,
        entries: &mut Vec<Entry>,
    ) -> Result<bool, Errno> {
        let most = (most as usize).clamp(1, MAX_ENTRIES);
        let room = most.saturating_mul(USUAL_ENTRY_BYTES);
        let room = room.clamp(MIN_BUFFER_BYTES, DIRECTORY_BUFFER_BYTES);
        let mut buffer = vec![MaybeUninit::uninit(); room];
        let mut reader = RawDir::new(&listing.directory, &mut buffer);
        let mut names_bytes = 0;
        loop {
            // Where the kernel has stopped too, the descriptor's own position stays right.
            let enough = entries.len() > most / 2 || names_bytes > MAX_NAMES_BYTES;
            if enough && reader.is_buffer_empty() {
                return Ok(false);
            }
            if entries.len() >= most {
                listing.position = None;
                return Ok(false);
            }
            let Some(entry) = reader.next() else {
                return Ok(true);
            };
            let entry = entry?;
            listing.position = Some(entry.next_entry_cookie());
            if self.is_hidden(directory, entry.file_name().to_bytes(), entry.ino()) {
                continue;
            }
            let name = entry.file_name().to_bytes().to_vec();
            names_bytes += name.len();
            entries.push(Entry {
                name,
                ino: entry.ino(),
                kind: directory_kind(entry.file_type()),
                next: entry.next_entry_cookie(),
                attributes: None,
            });
        }
    }

    fn is_hidden(&mut self, directory: &Directory, name: &[u8], ino: u64) -> bool {
        if self.hidden.has(directory.device, ino) {
            return true;
        }
        // Its number is another file's if something is mounted there.
        self.hidden.may_hide(name)
            && descriptor::status_in(directory.path.as_fd(), name)
                .is_ok_and(|stat| self.hidden.hides(&stat, name))
    }

    /// Tells a listed file, if it can be had.
    fn listed(
        &mut self,
        link: LinkId,
        directory: &Directory,
        name: &[u8],
    ) -> Option<wiglaf_wire::view::Attributes> {
        if name == b"." || name == b".." {
            return None;
        }
        let path = descriptor::name_in(&directory.path, name).ok()?;
        let stat = descriptor::status(&path).ok()?;
        if self.hidden.hides(&stat, name) {
            return None;
        }
        let found = Found {
            directory,
            name: Some(name),
            is_used: false,
        };
        self.enter(link, path, &stat, &found).ok()
    }
}

/// `DT_*` is the file type of `st_mode`, shifted; 0 is unknown.
fn directory_kind(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        kind => u8::try_from(kind.as_raw_mode() >> 12).unwrap_or(0),
    }
}
