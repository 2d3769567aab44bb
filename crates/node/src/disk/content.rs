//! What is on a disk or a partition, by the signatures that libblkid knows them by.

/// What a disk or a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Its first and its last MiB are zero.
    Empty,
    /// A signature.
    Known(&'static str),
    /// None that we know; that does not mean that nobody wants it.
    Unknown,
}

pub(crate) const SWAP: &str = "swap";
pub(crate) const EXT4: &str = "ext4";

impl Content {
    /// As people read it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Content::Empty => "empty",
            Content::Known(name) => name,
            Content::Unknown => "unknown data",
        }
    }

    /// By the first and the last MiB of so many bytes.
    pub(crate) fn identify(head: &[u8], tail: &[u8], bytes: u64) -> Content {
        let bytes = Bytes { head, tail, bytes };
        let found = raid(&bytes)
            .or_else(|| container(&bytes))
            .or_else(|| file_system(&bytes))
            .or_else(|| swap(&bytes))
            .or_else(|| partitions(&bytes));
        match found {
            Some(name) => Content::Known(name),
            None if head.iter().chain(tail).all(|byte| *byte == 0) => Content::Empty,
            None => Content::Unknown,
        }
    }
}

struct Bytes<'a> {
    head: &'a [u8],
    tail: &'a [u8],
    bytes: u64,
}

impl Bytes<'_> {
    fn has(&self, at: usize, wanted: &[u8]) -> bool {
        let end = at.saturating_add(wanted.len());
        self.head.get(at..end).is_some_and(|found| found == wanted)
    }

    /// The same at a place that is counted from the disk's start, in its last MiB.
    fn ends_with(&self, at: Option<u64>, wanted: &[u8]) -> bool {
        let first = self.bytes.checked_sub(self.tail.len() as u64);
        let place = at.zip(first).and_then(|(at, first)| at.checked_sub(first));
        let place = place.and_then(|place| usize::try_from(place).ok());
        place.is_some_and(|place| {
            let end = place.saturating_add(wanted.len());
            self.tail
                .get(place..end)
                .is_some_and(|found| found == wanted)
        })
    }

    fn u32(&self, at: usize) -> u32 {
        let bytes = self.head.get(at..at.saturating_add(4));
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    }
}

/// Disks that are parts of others. They may hold what looks like a file system of their own.
fn raid(bytes: &Bytes<'_>) -> Option<&'static str> {
    const MD: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
    let sectors = bytes.bytes / 512;
    let before = |end: u64, rounding: u64| {
        let at = sectors
            .checked_sub(end)
            .map(|sector| sector / rounding * rounding);
        at.map(|sector| sector * 512)
    };
    // Versions 1.1, 1.2, 1.0 and 0.90 (md(4)).
    let old = (sectors / 128 * 128)
        .checked_sub(128)
        .map(|sector| sector * 512);
    if bytes.has(0, &MD)
        || bytes.has(4096, &MD)
        || bytes.ends_with(before(16, 8), &MD)
        || bytes.ends_with(old, &MD)
        || bytes.ends_with(old, &0xa92b_4efc_u32.to_be_bytes())
    {
        return Some("a part of a RAID (md)");
    }
    if bytes.ends_with(before(2, 1), b"Intel Raid ISM Cfg") {
        return Some("a part of a RAID (Intel)");
    }
    if bytes.ends_with(before(1, 1), &0xde11_de11_u32.to_be_bytes()) {
        return Some("a part of a RAID (DDF)");
    }
    None
}

fn container(bytes: &Bytes<'_>) -> Option<&'static str> {
    if bytes.has(0, b"LUKS\xba\xbe") || bytes.has(0x4000, b"SKUL\xba\xbe") {
        return Some("LUKS");
    }
    if bytes.has(3, b"-FVE-FS-") {
        return Some("BitLocker");
    }
    if (0..4).any(|sector| bytes.has(sector * 512, b"LABELONE")) {
        return Some("LVM");
    }
    let bcache = [
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d,
        0x81,
    ];
    if bytes.has(4096 + 24, &bcache) {
        return Some("bcache");
    }
    is_zfs(bytes).then_some("zfs")
}

/// Four labels, two of them at the end, each with a ring of uberblocks.
fn is_zfs(bytes: &Bytes<'_>) -> bool {
    const LABEL: usize = 256 << 10;
    const RING: usize = 128 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let is_there = |place: &[u8]| {
        place.starts_with(&MAGIC.to_le_bytes()) || place.starts_with(&MAGIC.to_be_bytes())
    };
    let has_ring = |label: &[u8]| {
        let ring = label.get(RING..).unwrap_or_default();
        ring.chunks(1024).any(is_there)
    };
    let aligned = usize::try_from(bytes.bytes % LABEL as u64).unwrap_or(0);
    let tail = bytes.tail.len().saturating_sub(aligned);
    let labels = bytes.tail[..tail].rchunks(LABEL).take(2);
    bytes.head.chunks(LABEL).take(2).chain(labels).any(has_ring)
}

fn file_system(bytes: &Bytes<'_>) -> Option<&'static str> {
    const SUPER: usize = 1024;
    if bytes.has(SUPER + 56, &[0x53, 0xef]) {
        // Extents, 64 bits and flexible groups are ext4's.
        let (compatible, incompatible) = (bytes.u32(SUPER + 92), bytes.u32(SUPER + 96));
        return Some(match (incompatible & 0x2c0, compatible & 0x4) {
            (0, 0) => "ext2",
            (0, _) => "ext3",
            _ => EXT4,
        });
    }
    let known: [(usize, &[u8], &'static str); 18] = [
        (0, b"XFSB", "xfs"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (SUPER, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
        (SUPER, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
        (0, b"hsqs", "squashfs"),
        (0x1_0034, b"ReIsEr", "reiserfs"),
        (0x8000, b"JFS1", "jfs"),
        (0x8001, b"CD001", "iso9660"),
        (0x8001, b"BEA01", "udf"),
        (3, b"NTFS    ", "NTFS"),
        (3, b"EXFAT   ", "exfat"),
        (82, b"FAT32   ", "vfat"),
        (54, b"FAT16   ", "vfat"),
        (54, b"FAT12   ", "vfat"),
        (SUPER, b"H+", "hfsplus"),
        (SUPER, b"HX", "hfsplus"),
        (0x1_0000, &[0x01, 0x16, 0x19, 0x70], "gfs2"),
        (32, b"NXSB", "apfs"),
    ];
    let found = known
        .into_iter()
        .find(|(at, magic, _)| bytes.has(*at, magic));
    found.map(|(_, _, name)| name)
}

fn swap(bytes: &Bytes<'_>) -> Option<&'static str> {
    let ends = [4096, 8192, 16_384, 32_768, 65_536].map(|page| page - 10);
    let has = |magic: &[u8]| ends.iter().any(|at| bytes.has(*at, magic));
    if has(b"SWAPSPACE2") || has(b"SWAP-SPACE") {
        return Some(SWAP);
    }
    let suspended = [&b"S1SUSPEND"[..], b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
    suspended
        .iter()
        .any(|magic| has(magic))
        .then_some("a system that sleeps")
}

fn partitions(bytes: &Bytes<'_>) -> Option<&'static str> {
    let end = |sector: u64| bytes.ends_with(bytes.bytes.checked_sub(sector), b"EFI PART");
    if [512, 4096].iter().any(|at| bytes.has(*at, b"EFI PART")) || end(512) || end(4096) {
        return Some("GPT");
    }
    // A boot loader's first block ends in the same way.
    let is_entry = |entry: usize| {
        let at = 446 + entry * 16;
        let flags = bytes.head.get(at).copied().unwrap_or(1);
        let kind = bytes.head.get(at + 4).copied().unwrap_or(0);
        (flags & 0x7f == 0, kind != 0)
    };
    let entries = [0, 1, 2, 3].map(is_entry);
    let is_table = entries.iter().all(|(plain, _)| *plain) && entries.iter().any(|(_, used)| *used);
    (bytes.has(510, &[0x55, 0xaa]) && is_table).then_some("MBR")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn of(bytes: &[u8]) -> Content {
        let head = &bytes[..bytes.len().min(MIB)];
        let tail = &bytes[bytes.len() - head.len()..];
        Content::identify(head, tail, bytes.len() as u64)
    }

    #[test]
    fn only_zeros_are_empty() {
        let mut disk = vec![0; 3 * MIB];
        assert_eq!(of(&disk), Content::Empty);
        disk[3 * MIB - 1] = 1;
        assert_eq!(of(&disk), Content::Unknown);
        disk[3 * MIB - 1] = 0;
        disk[MIB - 1] = 1;
        assert_eq!(of(&disk), Content::Unknown);
        assert_eq!(of(&[]), Content::Empty);
    }

    #[test]
    fn signatures_are_known() {
        let sector = 3 * MIB / 512;
        let md = 0xa92b_4efc_u32.to_le_bytes();
        for (at, magic, name) in [
            (4096, &md[..], "a part of a RAID (md)"),
            ((sector - 16) / 8 * 8 * 512, &md, "a part of a RAID (md)"),
            (
                (sector / 128 * 128 - 128) * 512,
                &md,
                "a part of a RAID (md)",
            ),
            (
                3 * MIB - 1024,
                b"Intel Raid ISM Cfg Sig. ",
                "a part of a RAID (Intel)",
            ),
            (0, b"LUKS\xba\xbe", "LUKS"),
            (512, b"LABELONE", "LVM"),
            (
                (128 << 10) + 1024 * 3,
                &0x00ba_b10c_u64.to_le_bytes(),
                "zfs",
            ),
            (3 * MIB - (128 << 10), &0x00ba_b10c_u64.to_be_bytes(), "zfs"),
            (0x1_0040, b"_BHRfS_M", "btrfs"),
            (0x8001, b"CD001", "iso9660"),
            (3, b"NTFS    ", "NTFS"),
            (65_526, b"SWAPSPACE2", "swap"),
            (3 * MIB - 512, b"EFI PART", "GPT"),
        ] {
            let mut disk = vec![0; 3 * MIB];
            disk[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(of(&disk), Content::Known(name), "at {at}");
        }
        let mut disk = vec![0; 3 * MIB];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(of(&disk), Content::Unknown, "a boot loader's");
        disk[446 + 4] = 0x83;
        assert_eq!(of(&disk), Content::Known("MBR"));
    }

    /// What the programs of other systems make is known.
    #[test]
    fn real_file_systems_are_known() {
        const BYTES: u64 = 310 << 20;
        let dir = tempfile::tempdir().unwrap();
        let makers: [(&str, &[&str], &str); 9] = [
            ("mkfs.ext4", &["-q", "-F"], "ext4"),
            ("mkfs.ext3", &["-q", "-F"], "ext3"),
            ("mkfs.ext2", &["-q", "-F"], "ext2"),
            ("mkfs.xfs", &["-q", "-f"], "xfs"),
            ("mkfs.btrfs", &["-q", "-f"], "btrfs"),
            ("mkfs.vfat", &[], "vfat"),
            ("mkswap", &[], "swap"),
            ("sgdisk", &["--clear", "--new=0:0:0"], "GPT"),
            ("mkfs.ntfs", &["-q", "-F", "-f"], "NTFS"),
        ];
        let mut count = 0;
        for (program, arguments, name) in makers {
            let path = ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(program));
            let Some(path) = path.iter().find(|path| path.exists()) else {
                println!("SKIPPED: there is no {program}");
                continue;
            };
            let file = dir.path().join(program);
            fs::File::create(&file).unwrap().set_len(BYTES).unwrap();
            let output = Command::new(path)
                .args(arguments)
                .arg(&file)
                .output()
                .unwrap();
            assert!(output.status.success(), "{program}: {output:?}");
            let opened = fs::File::open(&file).unwrap();
            let (mut head, mut tail) = (vec![0; MIB], vec![0; MIB]);
            opened.read_exact_at(&mut head, 0).unwrap();
            opened.read_exact_at(&mut tail, BYTES - MIB as u64).unwrap();
            let found = Content::identify(&head, &tail, BYTES);
            assert_eq!(found, Content::Known(name), "{program}");
            fs::remove_file(&file).unwrap();
            count += 1;
        }
        println!("{count} of them are here");
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_panic(
            head in prop::collection::vec(any::<u8>(), 0..5000),
            tail in prop::collection::vec(any::<u8>(), 0..5000),
            bytes in any::<u64>(),
        ) {
            let found = Content::identify(&head, &tail, bytes);
            let is_zero = head.iter().chain(&tail).all(|byte| *byte == 0);
            prop_assert_eq!(found == Content::Empty, is_zero);
        }
    }
}
