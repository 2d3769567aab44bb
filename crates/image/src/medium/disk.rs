//! A stick or a disk that is overwritten: what it is, what it holds, and that all of it arrived.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags, fadvise, major, minor};

const BLOCKS: &str = "/sys/dev/block";
const MOUNTS: &str = "/proc/self/mountinfo";
const SWAPS: &str = "/proc/swaps";
/// Where partition tables and file systems have their signatures: some at the end.
const LOOKED_AT_BYTES: u64 = 2 << 20;
const CHUNK_BYTES: usize = 1 << 20;
/// What makes it start a machine is written last.
const FIRST_BYTES: u64 = CHUNK_BYTES as u64;
/// The unit of `/sys/block/*/size`, whatever the disk's own is.
const SECTOR_BYTES: u64 = 512;

/// A disk can't be written to.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The kernel's word.
    #[error("{path}: {source}")]
    Io {
        /// Which disk, or which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else.
    #[error("{0} is not a disk")]
    NotADisk(PathBuf),
    /// A part of one.
    #[error("{path} is a part of the disk {whole}: a machine starts from whole disks")]
    Partition {
        /// What was named.
        path: PathBuf,
        /// Whose part it is.
        whole: PathBuf,
    },
    /// Somebody works with it.
    #[error("{path} ({what}) is in use: {how}")]
    InUse {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
        /// By whom.
        how: String,
    },
    /// Its tables would count in other units than the medium's.
    #[error("{path} ({what}) has sectors of {bytes} bytes, and media are made for 512")]
    Sectors {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
        /// Of its sectors.
        bytes: u64,
    },
    /// It is protected.
    #[error("{path} ({what}) can't be written to: it is read-only")]
    ReadOnly {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// It has something on it.
    #[error("{path} ({what}) holds data: {data}")]
    Holds {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What is on it.
        data: String,
    },
    /// There is no room.
    #[error("{path} ({what}) is too small: {needed} bytes are needed")]
    Small {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
        /// How many.
        needed: u64,
    },
    /// It does not keep what it is told.
    #[error("{path} ({what}) does not hold what was written, from byte {at} on")]
    Differs {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
        /// Where.
        at: u64,
    },
}

impl DiskError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            DiskError::Partition { whole, .. } => format!("name {}", whole.display()),
            DiskError::NotADisk(_) => {
                "`lsblk` shows the disks; `--iso FILE` writes a file that any program can put on \
                 a stick"
                    .into()
            }
            DiskError::InUse { .. } => {
                "umount it first, if it is what you mean: `lsblk` shows it".into()
            }
            DiskError::ReadOnly { .. } => "some sticks have a switch for that".into(),
            DiskError::Sectors { .. } => "no firmware would start from it: take another".into(),
            DiskError::Holds { .. } => {
                "all of that is lost by writing; if it may be, say so: --overwrite".into()
            }
            DiskError::Differs { .. } => {
                "it is broken, or smaller than it says: take another".into()
            }
            DiskError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "disks belong to root: use sudo".into()
            }
            DiskError::Io { .. } | DiskError::Small { .. } => return None,
        })
    }
}

/// A whole disk that nobody else uses as long as this lives.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: File,
    size: u64,
    /// Its maker's words for it, if there are any.
    model: Option<String>,
}

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes are written, of so many.
    Written(u64, u64),
    /// So many are read back and were right, of so many.
    Compared(u64, u64),
}

impl Device {
    /// Takes a disk for us alone.
    ///
    /// # Errors
    /// It is none, a part of one, or in use.
    pub fn take(path: &Path) -> Result<Device, DiskError> {
        Device::take_by(path, Path::new(BLOCKS))
    }

    fn take_by(path: &Path, blocks: &Path) -> Result<Device, DiskError> {
        let io = |source| DiskError::Io {
            path: path.to_owned(),
            source,
        };
        let data = fs::metadata(path).map_err(io)?;
        if !data.file_type().is_block_device() {
            return Err(DiskError::NotADisk(path.to_owned()));
        }
        let number = Number::of(data.rdev());
        let about = fs::canonicalize(blocks.join(number.text())).map_err(io)?;
        if about.join("partition").exists() {
            let whole = about.parent().and_then(Path::file_name).unwrap_or_default();
            return Err(DiskError::Partition {
                path: path.to_owned(),
                whole: Path::new("/dev").join(whole),
            });
        }
        let size = word(&about.join("size")).and_then(|size| size.parse::<u64>().ok());
        let size = size.unwrap_or(0) * SECTOR_BYTES;
        let what = describe(model(&about).as_deref(), size);
        if size == 0 {
            return Err(DiskError::NotADisk(path.to_owned()));
        }
        if word(&about.join("ro")).as_deref() == Some("1") {
            return Err(DiskError::ReadOnly {
                path: path.to_owned(),
                what,
            });
        }
        let sector = word(&about.join("queue/logical_block_size"));
        let sector = sector.and_then(|bytes| bytes.parse::<u64>().ok());
        if let Some(bytes) = sector.filter(|bytes| *bytes != SECTOR_BYTES) {
            return Err(DiskError::Sectors {
                path: path.to_owned(),
                what,
                bytes,
            });
        }
        let in_use = |how: String| DiskError::InUse {
            path: path.to_owned(),
            what: what.clone(),
            how,
        };
        if let Some(how) = user_of(&about) {
            return Err(in_use(how));
        }
        // The kernel lets one have it so, and nobody mount it meanwhile.
        let flags = OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(in_use("the kernel has given it to somebody".into()));
            }
            Err(error) => return Err(io(error)),
        };
        // What was named may have become another disk.
        if file.metadata().map_err(io)?.rdev() != data.rdev() {
            return Err(in_use("it has just been exchanged".into()));
        }
        Ok(Device {
            path: path.to_owned(),
            file,
            size,
            model: model(&about),
        })
    }

    /// What it is, for people.
    pub fn describe(&self) -> String {
        describe(self.model.as_deref(), self.size)
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// That nothing is on it.
    ///
    /// # Errors
    /// There is something; the error says what.
    pub fn must_be_empty(&self) -> Result<(), DiskError> {
        let read = |at: u64, length: u64| -> Result<Vec<u8>, DiskError> {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let mut bytes = vec![0; length];
            self.file
                .read_exact_at(&mut bytes, at)
                .map_err(|source| self.io(source))?;
            Ok(bytes)
        };
        let length = LOOKED_AT_BYTES.min(self.size);
        let first = read(0, length)?;
        let last = read(self.size - length, length)?;
        let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0 || *byte == 0xff);
        if is_blank(&first) && is_blank(&last) {
            return Ok(());
        }
        Err(DiskError::Holds {
            path: self.path.clone(),
            what: self.describe(),
            data: kind_of(&first).into(),
        })
    }

    /// Writes a file to its beginning, and reads it back.
    ///
    /// # Errors
    /// There is no room, it can't be written, or it does not hold what was written.
    pub fn write(&mut self, from: &Path, tell: &mut dyn FnMut(Progress)) -> Result<u64, DiskError> {
        let from_failed = |source| DiskError::Io {
            path: from.to_owned(),
            source,
        };
        let mut source = File::open(from).map_err(from_failed)?;
        let size = source.metadata().map_err(from_failed)?.len();
        if size > self.size {
            return Err(DiskError::Small {
                path: self.path.clone(),
                what: self.describe(),
                needed: size,
            });
        }
        // Neither the old content nor half of the new one starts a machine.
        self.clear(0, FIRST_BYTES.min(self.size))?;
        if self.size >= size + FIRST_BYTES {
            // The other copy of an old partition table.
            self.clear(self.size - FIRST_BYTES, FIRST_BYTES)?;
        }
        self.sync()?;
        let mut first = vec![0; usize::try_from(FIRST_BYTES.min(size)).unwrap_or(0)];
        source.read_exact(&mut first).map_err(from_failed)?;
        let mut at = first.len() as u64;
        let mut chunk = vec![0; CHUNK_BYTES];
        self.seek(at)?;
        while at < size {
            let count = source.read(&mut chunk).map_err(from_failed)?;
            if count == 0 {
                break;
            }
            self.put(&chunk[..count])?;
            at += count as u64;
            // So that what is told has arrived.
            self.sync()?;
            tell(Progress::Written(at - first.len() as u64, size));
        }
        self.seek(0)?;
        self.put(&first)?;
        self.sync()?;
        tell(Progress::Written(size, size));
        self.compare(&mut source, size, from, tell)?;
        Ok(size)
    }

    fn compare(
        &mut self,
        source: &mut File,
        size: u64,
        from: &Path,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), DiskError> {
        // What the kernel remembers would say nothing of the disk.
        fadvise(&self.file, 0, None, Advice::DontNeed).map_err(|errno| self.io(errno.into()))?;
        let from_failed = |source| DiskError::Io {
            path: from.to_owned(),
            source,
        };
        source.seek(SeekFrom::Start(0)).map_err(from_failed)?;
        let (mut wanted, mut found) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut at = 0;
        while at < size {
            let count = source.read(&mut wanted).map_err(from_failed)?;
            if count == 0 {
                break;
            }
            let found = &mut found[..count];
            self.file
                .read_exact_at(found, at)
                .map_err(|source| self.io(source))?;
            let other = found
                .iter()
                .zip(&wanted)
                .position(|(one, other)| one != other);
            if let Some(other) = other {
                return Err(DiskError::Differs {
                    path: self.path.clone(),
                    what: self.describe(),
                    at: at + other as u64,
                });
            }
            at += count as u64;
            tell(Progress::Compared(at, size));
        }
        Ok(())
    }

    fn clear(&mut self, at: u64, length: u64) -> Result<(), DiskError> {
        self.seek(at)?;
        let zeros = vec![0; usize::try_from(length).unwrap_or(0)];
        self.put(&zeros)
    }

    fn seek(&mut self, at: u64) -> Result<(), DiskError> {
        let sought = self.file.seek(SeekFrom::Start(at));
        sought.map(|_| ()).map_err(|source| self.io(source))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let put = self.file.write_all(bytes);
        put.map_err(|source| self.io(source))
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|source| self.io(source))
    }

    fn io(&self, source: io::Error) -> DiskError {
        DiskError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// A block device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Number(u32, u32);

impl Number {
    fn of(device: u64) -> Number {
        Number(major(device), minor(device))
    }

    fn parse(text: &str) -> Option<Number> {
        let (major, minor) = text.split_once(':')?;
        Some(Number(major.parse().ok()?, minor.parse().ok()?))
    }

    fn text(self) -> String {
        format!("{}:{}", self.0, self.1)
    }
}

/// Who uses a disk or a part of it, as far as that can be told.
fn user_of(about: &Path) -> Option<String> {
    let mut numbers = BTreeSet::new();
    let parts = fs::read_dir(about).into_iter().flatten().flatten();
    let parts = parts.map(|entry| entry.path());
    let parts = parts.filter(|path| path.join("partition").exists());
    for place in std::iter::once(about.to_owned()).chain(parts) {
        numbers.extend(word(&place.join("dev")).and_then(|text| Number::parse(&text)));
        let holder = fs::read_dir(place.join("holders"))
            .into_iter()
            .flatten()
            .flatten()
            .next();
        if let Some(holder) = holder {
            return Some(format!(
                "{} is on it",
                Path::new("/dev").join(holder.file_name()).display()
            ));
        }
    }
    let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
    let swaps = fs::read_to_string(SWAPS).unwrap_or_default();
    user_among(&numbers, &mounts, &swaps, &|path| {
        let data = fs::metadata(path).ok()?;
        let is_block = data.file_type().is_block_device();
        is_block.then(|| Number::of(data.rdev()))
    })
}

fn user_among(
    numbers: &BTreeSet<Number>,
    mounts: &str,
    swaps: &str,
    number_of: &dyn Fn(&str) -> Option<Number>,
) -> Option<String> {
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let Some(number) = words.nth(2).and_then(Number::parse) else {
            continue;
        };
        let place = words.nth(1).unwrap_or_default();
        // Some file systems have a number of their own, but name their disk.
        let source = line.split_once(" - ");
        let source = source.and_then(|(_, rest)| rest.split(' ').nth(1));
        let named = source.and_then(number_of);
        if numbers.contains(&number) || named.is_some_and(|named| numbers.contains(&named)) {
            return Some(format!("it is mounted at {place}"));
        }
    }
    let swaps = swaps.lines().skip(1);
    let mut swaps = swaps.filter_map(|line| line.split_whitespace().next());
    swaps
        .find(|path| number_of(path).is_some_and(|number| numbers.contains(&number)))
        .map(|path| format!("{path} is swap space"))
}

fn model(about: &Path) -> Option<String> {
    let words: Vec<_> = ["device/vendor", "device/model", "loop/backing_file"]
        .iter()
        .filter_map(|name| word(&about.join(name)))
        // A number, on some buses.
        .filter(|word| !word.starts_with("0x"))
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn describe(model: Option<&str>, size: u64) -> String {
    let model = model.unwrap_or("a disk");
    const UNITS: [(u64, &str); 3] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
    ];
    let unit = UNITS.into_iter().find(|(bytes, _)| size >= *bytes);
    let (bytes, name) = unit.unwrap_or((1_000, "kB"));
    let tenths = size / (bytes / 10).max(1);
    format!("{model}, {}.{} {name}", tenths / 10, tenths % 10)
}

/// What the beginning of a disk is of, in words that follow "holds data:".
fn kind_of(first: &[u8]) -> &'static str {
    let has = |at: usize, text: &[u8]| first.get(at..at + text.len()) == Some(text);
    let sectors = [512, 4096];
    if has(0x8001, b"CD001") {
        return if has(0x8028, b"WIGLAF ") {
            "a medium of Wiglaf's"
        } else {
            "a CD's file system"
        };
    }
    if sectors.iter().any(|at| has(*at, b"EFI PART")) {
        return "partitions (GPT)";
    }
    if has(0x438, &[0x53, 0xef]) {
        return "an ext file system";
    }
    if has(0, b"LUKS\xba\xbe") {
        return "an encrypted file system (LUKS)";
    }
    if has(0, b"XFSB") {
        return "an XFS file system";
    }
    if has(0x10040, b"_BHRfS_M") {
        return "a Btrfs file system";
    }
    if sectors.iter().any(|at| has(*at, b"LABELONE")) {
        return "a volume of LVM";
    }
    if has(3, b"NTFS") {
        return "an NTFS file system";
    }
    if has(3, b"EXFAT") || has(54, b"FAT") || has(82, b"FAT") {
        return "a FAT file system";
    }
    if has(510, &[0x55, 0xaa]) {
        return "partitions, or something that machines start";
    }
    "something that is not known"
}

fn word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text: Vec<_> = text.split_whitespace().collect();
    (!text.is_empty()).then(|| text.join(" "))
}

#[cfg(test)]
mod tests;
