//! What disks there are, by sysfs and by what is on them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use wiglaf_wire::disk::MAX_DISKS;

use crate::disk::MIB;
use crate::disk::content::Content;
use crate::disk::plan::{Disk, Part, Use};
use crate::disk::table::{Found, Geometry, Table};

const BLOCKS: &str = "/sys/block";
/// In sysfs, sizes and places are in these, whatever the disk's own sectors are.
const SECTOR: u64 = 512;
/// Devices that are no disks of this machine: memory, what is made of others, what has no sectors
/// of its own.
const NOT_DISKS: [&str; 9] = [
    "loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtdblock",
];
/// Parts of a disk that only its own firmware writes.
const NOT_WHOLE: [&str; 3] = ["boot0", "boot1", "rpmb"];
/// `vpd_pg80` begins with a header (SPC-4, 7.8.15).
const PAGE_HEADER: usize = 4;

/// A disk, and what its planning needs not know.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) disk: Disk,
    pub(super) model: String,
    pub(super) sector_bytes: u32,
    /// The kernel's number of it, which no other disk ever has.
    pub(super) sequence: Option<u64>,
}

/// A partition that says by its name whose it is.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) device: String,
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// Partitions that have names, of disks that stay where they are. This reads no disk.
pub(super) fn named_partitions() -> Vec<Named> {
    let mut found = Vec::new();
    let names = disk_names();
    let doubles = doubles(&names);
    for disk in names {
        let dir = Path::new(BLOCKS).join(&disk);
        if number(&dir.join("removable")) == Some(1) || doubles.contains(&disk) {
            continue;
        }
        for part in part_names(&dir, &disk) {
            let event = fs::read_to_string(dir.join(&part).join("uevent")).unwrap_or_default();
            let name = event
                .lines()
                .find_map(|line| line.strip_prefix("PARTNAME="));
            if let Some(name) = name {
                let sectors = number(&dir.join(&part).join("size")).unwrap_or(0);
                found.push(Named {
                    device: device_of(&part),
                    name: name.to_owned(),
                    bytes: sectors.saturating_mul(SECTOR),
                });
            }
        }
    }
    found
}

/// All disks with what is on them. `ours` are devices that this agent uses.
pub(super) fn disks(ours: &HashMap<String, String>) -> Vec<Seen> {
    let names = disk_names();
    let doubles = doubles(&names);
    let mut seen: Vec<Seen> = Vec::new();
    for name in &names {
        let Some(mut one) = disk(name, ours) else {
            continue;
        };
        if doubles.contains(name) {
            one.disk.use_ = Use::Others;
        }
        seen.push(one);
    }
    // What several disks have, such as the serial number of a controller, names none of them.
    let all: Vec<_> = seen
        .iter()
        .flat_map(|one| one.disk.identities.clone())
        .collect();
    let is_single = |name: &String| all.iter().filter(|other| *other == name).count() == 1;
    for one in &mut seen {
        one.disk.identities.retain(is_single);
    }
    seen
}

/// Disks that the machine reaches by two ways, each of which has a name: to use both would be to
/// use one of them twice.
fn doubles(names: &[String]) -> Vec<String> {
    const WORLD_WIDE: [&str; 4] = ["naa.", "eui.", "uuid.", "nvme."];
    let name_of = |disk: &String| {
        let dir = Path::new(BLOCKS).join(disk);
        let names = ["wwid", "device/wwid"].map(|place| line(&dir.join(place)));
        names
            .into_iter()
            .find(|name| WORLD_WIDE.iter().any(|kind| name.starts_with(kind)))
    };
    let named: Vec<_> = names
        .iter()
        .filter_map(|disk| Some((disk, name_of(disk)?)))
        .collect();
    let is_double = |name: &String| named.iter().filter(|(_, other)| other == name).count() > 1;
    let doubles = named.iter().filter(|(_, name)| is_double(name));
    doubles.map(|(disk, _)| (*disk).clone()).collect()
}

/// Whether an open device is still the disk that was seen, and as large: another one may have come
/// in its place, and has its name.
pub(super) fn is_same(file: &File, seen: &Seen) -> bool {
    let Ok(status) = rustix::fs::fstat(file) else {
        return false;
    };
    if !FileType::from_raw_mode(status.st_mode).is_block_device() {
        // The kernel numbers disks only.
        return seen.sequence.is_none();
    }
    let (major, minor) = (
        rustix::fs::major(status.st_rdev),
        rustix::fs::minor(status.st_rdev),
    );
    let dir = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let bytes = number(&dir.join("size")).map(|sectors| sectors.saturating_mul(SECTOR));
    bytes == Some(seen.disk.bytes) && number(&dir.join("diskseq")) == seen.sequence
}

fn disk(name: &str, ours: &HashMap<String, String>) -> Option<Seen> {
    let dir = Path::new(BLOCKS).join(name);
    let bytes = number(&dir.join("size"))?.saturating_mul(SECTOR);
    if bytes == 0 {
        // A reader of cards without one.
        return None;
    }
    let sector = number(&dir.join("queue/logical_block_size")).and_then(|n| u32::try_from(n).ok());
    let sector_bytes = sector.unwrap_or(512);
    let device = device_of(name);
    let mut parts: Vec<_> = part_names(&dir, name)
        .into_iter()
        .filter_map(|part| partition(&dir, &part))
        .collect();
    parts.sort_by_key(|part| part.number);
    let read = ends_of(Path::new(&device), bytes);
    let mut usage = usage(&device, &parts, ours);
    let (content, table) = match &read {
        Ok((head, tail)) => {
            let geometry = Geometry {
                sector_bytes,
                disk_bytes: bytes,
            };
            let content = Content::identify(head, tail, bytes);
            (content, Table::read(head, geometry))
        }
        Err(_) => {
            usage = Use::Broken;
            (Content::Unknown, Found::None)
        }
    };
    let disk = Disk {
        device,
        identities: identities(&dir),
        bytes,
        is_removable: number(&dir.join("removable")) == Some(1),
        is_external: usb_device(&dir).is_some(),
        is_read_only: number(&dir.join("ro")) == Some(1),
        content,
        table,
        parts,
        use_: usage,
    };
    Some(Seen {
        disk,
        model: words(&dir, &["device/vendor", "device/model"]),
        sector_bytes,
        sequence: number(&dir.join("diskseq")),
    })
}

/// What it is on USB, if it hangs on that.
fn usb_device(dir: &Path) -> Option<PathBuf> {
    let device = fs::canonicalize(dir.join("device")).ok()?;
    let mut way = device.ancestors();
    way.find(|above| above.join("idVendor").exists())
        .map(Path::to_owned)
}

/// The first and the last MiB of what is so long.
pub(super) fn ends_of(path: &Path, bytes: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    ends(&open(path, OFlags::empty())?, bytes)
}

/// The same of an open one.
pub(super) fn ends(file: &File, bytes: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let length = usize::try_from(bytes.min(MIB)).unwrap_or(0);
    let (mut head, mut tail) = (vec![0; length], vec![0; length]);
    file.read_exact_at(&mut head, 0)?;
    file.read_exact_at(&mut tail, bytes - length as u64)?;
    Ok((head, tail))
}

/// Opens a device to read it, and for more with these flags.
pub(super) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC;
    let is_written = flags.contains(OFlags::RDWR);
    let rest = flags - OFlags::RDWR;
    fs::OpenOptions::new()
        .read(true)
        .write(is_written)
        .custom_flags(i32::try_from(rest.bits()).unwrap_or(0))
        .open(path)
}

fn partition(dir: &Path, name: &str) -> Option<Part> {
    let own = dir.join(name);
    let device = device_of(name);
    let length = number(&own.join("size"))?.saturating_mul(SECTOR);
    let content = match ends_of(Path::new(&device), length) {
        Ok((head, tail)) => Content::identify(&head, &tail, length),
        Err(_) => Content::Unknown,
    };
    Some(Part {
        number: u32::try_from(number(&own.join("partition"))?).ok()?,
        start: number(&own.join("start"))?.saturating_mul(SECTOR),
        length,
        content,
        device,
    })
}

/// The kernel lets nobody have a device for himself that is mounted, swapped to, or a part of
/// another; it asks no mount namespace about that.
fn usage(device: &str, parts: &[Part], ours: &HashMap<String, String>) -> Use {
    let is_held = |path: &str| {
        let opened = open(Path::new(path), OFlags::EXCL);
        let busy = Some(Errno::BUSY.raw_os_error());
        opened.is_err_and(|error| error.raw_os_error() == busy)
    };
    if !is_held(device) {
        return Use::Nobody;
    }
    let mut held = parts.iter().filter(|part| is_held(&part.device)).peekable();
    let is_by_us = held.peek().is_some() && held.all(|part| ours.contains_key(&part.device));
    if is_by_us { Use::Us } else { Use::Others }
}

/// In the order in which a person would count them.
fn disk_names() -> Vec<String> {
    let entries = fs::read_dir(BLOCKS).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !NOT_DISKS.iter().any(|kind| name.starts_with(kind)))
        .filter(|name| !NOT_WHOLE.iter().any(|kind| name.ends_with(kind)))
        // A second way to a disk that has another name, too.
        .filter(|name| Path::new(&device_of(name)).exists())
        .collect();
    names.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    names.truncate(MAX_DISKS);
    names
}

/// Names in sysfs are of one part.
fn device_of(name: &str) -> String {
    format!("/dev/{}", name.replace('!', "/"))
}

fn part_names(dir: &Path, disk: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with(disk) && dir.join(name).join("partition").exists())
        .collect()
}

/// Serial numbers and world-wide names, the shorter before.
fn identities(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut add = |text: String| {
        if !text.is_empty() && !found.contains(&text) {
            found.push(text);
        }
    };
    for place in ["serial", "device/serial", "wwid", "device/wwid"] {
        add(line(&dir.join(place)));
    }
    // What translates USB to SCSI seldom passes it on.
    if let Some(device) = usb_device(dir) {
        add(line(&device.join("serial")));
    }
    if let Ok(page) = fs::read(dir.join("device/vpd_pg80")) {
        let serial = page.get(PAGE_HEADER..).unwrap_or_default();
        add(plain(&String::from_utf8_lossy(serial)));
    }
    found.sort_by_key(String::len);
    found
}

fn words(dir: &Path, places: &[&str]) -> String {
    let lines = places.iter().map(|place| line(&dir.join(place)));
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    // What libata and virtio say in the place of a maker, or a number that says nothing.
    let is_said = |word: &&String| *word != "ATA" && !word.starts_with("0x");
    let lines: Vec<_> = lines.iter().filter(is_said).map(String::as_str).collect();
    lines.join(" ")
}

fn line(path: &Path) -> String {
    plain(&fs::read_to_string(path).unwrap_or_default())
}

fn plain(text: &str) -> String {
    let visible = |c: &char| !c.is_control();
    let text: String = text.chars().filter(visible).collect();
    text.trim().to_owned()
}

fn number(path: &PathBuf) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
