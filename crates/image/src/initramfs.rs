//! The initramfs as it is written: a base that every machine needs, then a part for each further
//! module, each compressed by itself. The kernel unpacks one after the other, so the file as a
//! whole is an initramfs for any machine, and the base with some of the parts is one for a machine
//! whose network card is known. The index says which those are; the boot service reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File as Disk};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::thread;

use ring::digest::{Context, SHA256, digest};

use crate::compress::{Code, Compression, Encoder};
use crate::cpio::{Archive, ArchiveError, Content};
use crate::hashed::{COPY_BYTES, Hashed, hex};
use crate::modules::{CardId, Selection};
use crate::store::{ByCard, File, INITRAMFS};

/// Names of those that are for certain cards end in as much of their digest as an image's name of
/// its own.
pub(crate) const ID_DIGITS: usize = 12;

/// What is to be in it.
#[derive(Debug)]
pub(crate) struct Initramfs {
    base: Archive,
    parts: BTreeMap<String, Archive>,
    cards: BTreeMap<CardId, BTreeSet<String>>,
}

/// What was written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) file: File,
    pub(crate) by_card: Option<ByCard>,
}

/// How it is compressed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) compression: Compression,
    pub(crate) code: Code,
}

impl Initramfs {
    /// With the modules, their firmware, and the two lists that /init reads. These are of all
    /// modules: by them /init knows what is not there.
    pub(crate) fn new(
        mut base: Archive,
        version: &str,
        selection: Selection,
        firmware: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Initramfs, ArchiveError> {
        let place = |name: &str| format!("/lib/modules/{version}/{name}.ko");
        let always = selection.always.iter();
        let order: String = always.map(|name| format!("{}\n", place(name))).collect();
        let aliases = selection.aliases.iter();
        let aliases: String = aliases
            .map(|(pattern, name)| format!("{pattern} {}\n", place(name)))
            .collect();
        base.file(Path::new("/etc/wiglaf/modules"), 0o644, order)?;
        base.file(Path::new("/etc/wiglaf/modules.alias"), 0o644, aliases)?;
        let mut parts: BTreeMap<String, Archive> = BTreeMap::new();
        for (name, bytes) in selection.files {
            let path = place(&name);
            let archive = if selection.base.contains(&name) {
                &mut base
            } else {
                parts.entry(name).or_insert_with(Archive::empty)
            };
            archive.content(Path::new(&path), 0o644, Content::Bytes(bytes), None)?;
        }
        for (module, name) in &selection.firmware {
            if let Some(bytes) = firmware.get(name) {
                let archive = parts.get_mut(module).unwrap_or(&mut base);
                let path = Path::new("/lib/firmware").join(name);
                archive.file(&path, 0o644, bytes.clone())?;
            }
        }
        Ok(Initramfs {
            base,
            parts,
            cards: selection.cards,
        })
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        self.base.size() + self.parts.values().map(Archive::size).sum::<u64>()
    }

    /// Writes it, and the index if it has parts.
    pub(crate) fn write(
        self,
        way: Way,
        kernel: &File,
        path: &Path,
        index: &Path,
    ) -> Result<Written, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let out = Hashed::new(Disk::create(path).map_err(failed)?);
        let Initramfs { base, parts, cards } = self;
        // The base is half of the work.
        let (base, parts) = thread::scope(|scope| {
            let parts = scope.spawn(|| pack_parts(parts, way));
            let base = pack(base, way, out);
            let parts = parts.join();
            (base, parts)
        });
        let mut out = base.map_err(|error| format!("{}: {error}", path.display()))?;
        let parts = parts
            .map_err(|_| "a thread has failed".to_owned())?
            .map_err(|error| error.to_string())?;
        let base = Base {
            size: out.size(),
            hash: out.hash().clone(),
        };
        let mut places = BTreeMap::new();
        for (name, bytes) in &parts {
            let start = out.size();
            out.write_all(bytes).map_err(failed)?;
            places.insert(name.as_str(), start..out.size());
        }
        let file = out.done();
        if parts.is_empty() {
            return Ok(Written {
                file,
                by_card: None,
            });
        }
        let by_card = base.index(kernel, &cards, &parts, &places);
        let (text, mut by_card) = by_card;
        fs::write(index, &text).map_err(|error| format!("{}: {error}", index.display()))?;
        by_card.index = File {
            size: text.len() as u64,
            sha256: hex(digest(&SHA256, text.as_bytes()).as_ref()),
        };
        Ok(Written {
            file,
            by_card: Some(by_card),
        })
    }
}

/// The beginning of the file.
struct Base {
    size: u64,
    hash: Context,
}

impl Base {
    /// A line for each way to put a file together, `file NAME START-END…`, then a line for each
    /// card, `card VENDOR-DEVICE NAME`.
    fn index(
        &self,
        kernel: &File,
        cards: &BTreeMap<CardId, BTreeSet<String>>,
        parts: &BTreeMap<String, Vec<u8>>,
        places: &BTreeMap<&str, Range<u64>>,
    ) -> (String, ByCard) {
        let mut by_card = ByCard {
            index: File {
                size: 0,
                sha256: String::new(),
            },
            cards: cards.len(),
            smallest: self.size,
            largest: 0,
        };
        let mut sizes = Vec::new();
        let mut names: BTreeMap<&BTreeSet<String>, String> = BTreeMap::new();
        let mut files = String::new();
        let mut lines = String::new();
        for (card, modules) in cards {
            let name = names.entry(modules).or_insert_with(|| {
                let mut hash = self.hash.clone();
                let mut ranges: Vec<Range<u64>> = Vec::new();
                ranges.push(0..self.size);
                for module in modules {
                    if let (Some(bytes), Some(place)) = (parts.get(module), places.get(&**module)) {
                        hash.update(bytes);
                        match ranges.last_mut() {
                            Some(last) if last.end == place.start => last.end = place.end,
                            _ => ranges.push(place.clone()),
                        }
                    }
                }
                // As an image's name: what fetches both files knows by it that they are whole.
                let both = format!("{}{}", kernel.sha256, hex(hash.finish().as_ref()));
                let digits = hex(digest(&SHA256, both.as_bytes()).as_ref());
                let name = format!("{INITRAMFS}-{}", &digits[..ID_DIGITS]);
                let _ = write!(files, "file {name}");
                for range in &ranges {
                    let _ = write!(files, " {}-{}", range.start, range.end);
                }
                files.push('\n');
                sizes.push(ranges.iter().map(|range| range.end - range.start).sum());
                name
            });
            let _ = writeln!(lines, "card {card} {name}");
        }
        by_card.smallest = sizes.iter().copied().min().unwrap_or(self.size);
        by_card.largest = sizes.iter().copied().max().unwrap_or(self.size);
        (files + &lines, by_card)
    }
}

fn pack_parts(
    parts: BTreeMap<String, Archive>,
    way: Way,
) -> Result<BTreeMap<String, Vec<u8>>, ArchiveError> {
    let packed = parts
        .into_iter()
        .map(|(name, archive)| Ok((name, pack(archive, way, Vec::new())?)));
    packed.collect()
}

fn pack<W: Write>(archive: Archive, way: Way, out: W) -> Result<W, ArchiveError> {
    let size = archive.size();
    let encoder = Encoder::new(way.compression, way.code, size, out)?;
    let mut buffered = BufWriter::with_capacity(COPY_BYTES, encoder);
    archive.write(&mut buffered)?;
    let encoder = buffered
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    Ok(encoder.finish()?)
}
