//! Tables of partitions: GPT (UEFI 2.10, chapter 5).

use wiglaf_wire::disk::Purpose;

use super::Cluster;
use super::layout::Extent;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_BYTES: usize = 92;
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
const TABLE_BYTES: usize = ENTRIES * ENTRY_BYTES;
/// More entries of a disk are not looked at: then it is nobody's.
const MAX_ENTRIES: usize = 1024;
const NAME_AT: usize = 56;
const NAME_UNITS: usize = 36;
/// "Linux swap" and "Linux filesystem data" (Discoverable Partitions Specification).
const LINUX_SWAP: Guid = Guid::new(
    0x0657_fd6d,
    0xa4ab,
    0x43c4,
    *b"\x84\xe5\x09\x33\xc8\x4b\x4f\x4f",
);
const LINUX_FILES: Guid = Guid::new(
    0x0fc6_3daf,
    0x8483,
    0x4772,
    *b"\x8e\x79\x3d\x69\xd8\x47\x7d\xe4",
);
/// What our partitions' names begin with.
const PREFIX: &str = "wiglaf-";

/// A GUID as it stands on disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guid(pub(crate) [u8; 16]);

impl Guid {
    const fn new(a: u32, b: u16, c: u16, rest: [u8; 8]) -> Guid {
        let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), rest);
        Guid([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ])
    }

    /// From random bytes (RFC 9562, version 4).
    pub(crate) fn random(mut bytes: [u8; 16]) -> Guid {
        // The first three fields are little-endian here.
        bytes[7] = bytes[7] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Guid(bytes)
    }
}

/// How a disk counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Of a logical block.
    pub(crate) sector_bytes: u32,
    pub(crate) disk_bytes: u64,
}

impl Geometry {
    fn sector(self) -> usize {
        usize::try_from(self.sector_bytes.clamp(512, 65_536)).unwrap_or(512)
    }

    fn sectors(self) -> u64 {
        self.disk_bytes / u64::from(self.sector_bytes.clamp(512, 65_536))
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Guid,
    pub(crate) own: Guid,
    /// In bytes.
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) name: String,
}

/// A table that is whole. An entry's place in it is its partition's number less one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) disk: Guid,
    pub(crate) entries: Vec<Option<Entry>>,
}

/// What of a disk's start and end is a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    None,
    /// There was one, and it can't be trusted.
    Damaged,
    Table(Table),
}

/// The bytes of a table.
#[derive(Debug)]
pub(crate) struct Written {
    /// At the disk's start.
    pub(crate) head: Vec<u8>,
    /// The disk's last bytes.
    pub(crate) tail: Vec<u8>,
}

impl Table {
    /// One with this cluster's partitions. `guids` gives new ones.
    pub(crate) fn new(
        extents: &[Extent],
        cluster: &Cluster,
        guids: &mut dyn FnMut() -> Guid,
    ) -> Table {
        let disk = guids();
        let entries = extents.iter().map(|extent| {
            Some(Entry {
                kind: kind_of(extent.purpose),
                own: guids(),
                start: extent.start,
                length: extent.length,
                name: name_of(extent.purpose, cluster),
            })
        });
        Table {
            disk,
            entries: entries.collect(),
        }
    }

    /// The table at the start of a disk, of which `head` is the first MiB.
    pub(crate) fn read(head: &[u8], geometry: Geometry) -> Found {
        let sector = geometry.sector();
        let Some(header) = head.get(sector..sector + HEADER_BYTES) else {
            return Found::None;
        };
        if header[..8] != *SIGNATURE {
            return Found::None;
        }
        match Table::parse(head, header, geometry) {
            Some(table) => Found::Table(table),
            None => Found::Damaged,
        }
    }

    fn parse(head: &[u8], header: &[u8], geometry: Geometry) -> Option<Table> {
        let mut zeroed = header.to_vec();
        zeroed[16..20].fill(0);
        let is_whole = u32_at(header, 12)? == u32::try_from(HEADER_BYTES).ok()?
            && u32_at(header, 16)? == crc32(&zeroed)
            && u64_at(header, 24)? == 1;
        let count = usize::try_from(u32_at(header, 80)?).ok()?;
        let bytes = usize::try_from(u32_at(header, 84)?).ok()?;
        if !is_whole || count > MAX_ENTRIES || !(ENTRY_BYTES..=4096).contains(&bytes) {
            return None;
        }
        let sector = u64::from(geometry.sector_bytes);
        let at = usize::try_from(u64_at(header, 72)?.checked_mul(sector)?).ok()?;
        let entries = head.get(at..at.checked_add(count * bytes)?)?;
        if crc32(entries) != u32_at(header, 88)? {
            return None;
        }
        let mut found = Vec::new();
        for entry in entries.chunks_exact(bytes) {
            found.push(if entry[..16].iter().all(|byte| *byte == 0) {
                None
            } else {
                Some(Entry::parse(entry, sector)?)
            });
        }
        while found.last() == Some(&None) {
            found.pop();
        }
        Some(Table {
            disk: guid_at(header, 56)?,
            entries: found,
        })
    }

    /// As it is written to a disk. `None`: there are too many, or the disk is too small.
    pub(crate) fn write(&self, geometry: Geometry) -> Option<Written> {
        let sector = geometry.sector();
        let sectors = geometry.sectors();
        let table_sectors = u64::try_from(TABLE_BYTES.div_ceil(sector)).ok()?;
        let first_usable = 2 + table_sectors;
        let last_usable = sectors.checked_sub(table_sectors + 2)?;
        let mut table = vec![0; TABLE_BYTES];
        if self.entries.len() > ENTRIES {
            return None;
        }
        let places = table.chunks_exact_mut(ENTRY_BYTES);
        for (place, entry) in places.zip(&self.entries) {
            let Some(entry) = entry else { continue };
            let (first, last) = entry.sectors(u64::try_from(sector).ok()?)?;
            if first < first_usable || last > last_usable {
                return None;
            }
            entry.write(first, last, place)?;
        }
        let header = |own: u64, other: u64, entries_at: u64| {
            let mut header = Vec::with_capacity(HEADER_BYTES);
            header.extend(SIGNATURE);
            header.extend(REVISION.to_le_bytes());
            header.extend(u32::try_from(HEADER_BYTES).ok()?.to_le_bytes());
            header.extend([0; 8]);
            for number in [own, other, first_usable, last_usable] {
                header.extend(number.to_le_bytes());
            }
            header.extend(self.disk.0);
            header.extend(entries_at.to_le_bytes());
            header.extend(u32::try_from(ENTRIES).ok()?.to_le_bytes());
            header.extend(u32::try_from(ENTRY_BYTES).ok()?.to_le_bytes());
            header.extend(crc32(&table).to_le_bytes());
            let sum = crc32(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            header.resize(sector, 0);
            Some(header)
        };
        let last = sectors - 1;
        let mut head = protective(sector, sectors);
        head.extend(header(1, last, 2)?);
        head.extend(&table);
        let mut tail = table.clone();
        // As many whole sectors as at the start.
        tail.resize(usize::try_from(table_sectors).ok()? * sector, 0);
        tail.extend(header(last, 1, last - table_sectors)?);
        Some(Written { head, tail })
    }
}

impl Entry {
    fn parse(entry: &[u8], sector: u64) -> Option<Entry> {
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        let count = last.checked_sub(first)?.checked_add(1)?;
        let units: Vec<u16> = entry[NAME_AT..NAME_AT + 2 * NAME_UNITS]
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
            .take_while(|unit| *unit != 0)
            .collect();
        Some(Entry {
            kind: guid_at(entry, 0)?,
            own: guid_at(entry, 16)?,
            start: first.checked_mul(sector)?,
            length: count.checked_mul(sector)?,
            name: String::from_utf16_lossy(&units),
        })
    }

    fn sectors(&self, sector: u64) -> Option<(u64, u64)> {
        if self.length == 0
            || !self.start.is_multiple_of(sector)
            || !self.length.is_multiple_of(sector)
        {
            return None;
        }
        let end = self.start.checked_add(self.length)?;
        Some((self.start / sector, end / sector - 1))
    }

    fn write(&self, first: u64, last: u64, place: &mut [u8]) -> Option<()> {
        let units: Vec<u8> = self
            .name
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        if units.len() > 2 * NAME_UNITS {
            return None;
        }
        let mut put = |at: usize, value: &[u8]| place[at..at + value.len()].copy_from_slice(value);
        put(0, &self.kind.0);
        put(16, &self.own.0);
        put(32, &first.to_le_bytes());
        put(40, &last.to_le_bytes());
        put(NAME_AT, &units);
        Some(())
    }

    /// What it is for, and the mark of whose it is, if it is of Wiglaf's at all.
    pub(crate) fn owner(&self) -> Option<(Purpose, &str)> {
        let (purpose, mark) = owner(&self.name)?;
        (self.kind == kind_of(purpose)).then_some((purpose, mark))
    }
}

/// The same of a name alone.
pub(crate) fn owner(name: &str) -> Option<(Purpose, &str)> {
    let (purpose, mark) = name.strip_prefix(PREFIX)?.split_once(' ')?;
    let purpose = Purpose::ALL
        .into_iter()
        .find(|known| known.name() == purpose)?;
    Some((purpose, mark))
}

/// What a partition is called.
pub(crate) fn name_of(purpose: Purpose, cluster: &Cluster) -> String {
    format!("{PREFIX}{purpose} {}", cluster.mark())
}

fn kind_of(purpose: Purpose) -> Guid {
    match purpose {
        Purpose::Swap => LINUX_SWAP,
        Purpose::Scratch | Purpose::Data => LINUX_FILES,
    }
}

/// For programs that know no GPT, the whole disk is a partition of another kind (5.2.3).
fn protective(sector: usize, sectors: u64) -> Vec<u8> {
    let mut block = vec![0; sector];
    block[446..462].copy_from_slice(&[
        0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0,
    ]);
    let count = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    block[458..462].copy_from_slice(&count.to_le_bytes());
    block[510..512].copy_from_slice(&[0x55, 0xaa]);
    block
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

fn guid_at(bytes: &[u8], at: usize) -> Option<Guid> {
    bytes.get(at..at + 16)?.try_into().ok().map(Guid)
}

/// ISO 3309's, as Ethernet and zip have it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            let is_odd = sum & 1 == 1;
            sum >>= 1;
            if is_odd {
                sum ^= 0xedb8_8320;
            }
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use proptest::prelude::*;
    use wiglaf_wire::disk::Amount;

    use super::super::layout::lay_out;
    use super::*;

    const DISK: u64 = 300 << 20;

    fn table() -> Table {
        let wish = [
            (Purpose::Swap, Amount::Mib(64)),
            (Purpose::Scratch, Amount::Percent(30)),
            (Purpose::Data, Amount::Rest),
        ];
        let extents = lay_out(&wish, DISK).unwrap();
        let mut next = 0;
        Table::new(&extents, &Cluster::new(&[0xab; 32]), &mut || {
            next += 1;
            Guid::random([next; 16])
        })
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_was_written_is_read() {
        for sector_bytes in [512, 4096] {
            let geometry = Geometry {
                sector_bytes,
                disk_bytes: DISK,
            };
            let written = table().write(geometry).unwrap();
            let mut head = written.head.clone();
            head.resize(1 << 20, 0);
            assert_eq!(Table::read(&head, geometry), Found::Table(table()));
            let owners: Vec<_> = table().entries.into_iter().flatten().collect();
            let owners: Vec<_> = owners.iter().filter_map(Entry::owner).collect();
            assert_eq!(owners[0], (Purpose::Swap, "abababab"));
            assert_eq!(owners.len(), 3);
            // Each byte of the header and of what is used of the entries counts.
            for at in [sector_bytes as usize + 20, 2 * sector_bytes as usize + 60] {
                let mut broken = head.clone();
                broken[at] ^= 1;
                assert_eq!(Table::read(&broken, geometry), Found::Damaged, "{at}");
            }
        }
        assert_eq!(owner("wiglaf-scratch"), None);
        assert_eq!(owner("wiglaf-other 00"), None);
        let small = Geometry {
            sector_bytes: 512,
            disk_bytes: 64 << 20,
        };
        assert!(table().write(small).is_none());
    }

    /// sgdisk finds no fault with it, and sfdisk reads the same from it.
    #[test]
    fn other_programs_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        let geometry = Geometry {
            sector_bytes: 512,
            disk_bytes: DISK,
        };
        let written = table().write(geometry).unwrap();
        let mut bytes = written.head;
        bytes.resize(usize::try_from(DISK).unwrap() - written.tail.len(), 0);
        bytes.extend(written.tail);
        fs::write(&file, bytes).unwrap();
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).arg(&file).output();
            output.ok().map(|output| {
                let text = [output.stdout, output.stderr].concat();
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(output.status.success(), "{program}: {text}");
                text
            })
        };
        match said("/usr/sbin/sgdisk", &["--verify"]) {
            Some(text) => assert!(text.contains("No problems found"), "{text}"),
            None => println!("SKIPPED: there is no sgdisk"),
        }
        match said("/usr/sbin/sfdisk", &["--dump"]) {
            Some(text) => {
                assert!(
                    text.contains("start=        2048, size=      131072"),
                    "{text}"
                );
                assert!(
                    text.contains("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"),
                    "{text}"
                );
                assert!(text.contains("name=\"wiglaf-scratch abababab\""), "{text}");
            }
            None => println!("SKIPPED: there is no sfdisk"),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..2048),
            sector in prop_oneof![Just(512_u32), Just(4096), any::<u32>()],
            is_fixed in any::<bool>(),
        ) {
            let geometry = Geometry { sector_bytes: sector, disk_bytes: DISK };
            if bytes.len() >= 1024 {
                bytes[512..520].copy_from_slice(SIGNATURE);
                if is_fixed {
                    bytes[524..528].copy_from_slice(&92_u32.to_le_bytes());
                    bytes[536..544].copy_from_slice(&1_u64.to_le_bytes());
                    bytes[528..532].fill(0);
                    let sum = crc32(&bytes[512..512 + HEADER_BYTES]);
                    bytes[528..532].copy_from_slice(&sum.to_le_bytes());
                }
            }
            let _ = Table::read(&bytes, geometry);
        }
    }
}
