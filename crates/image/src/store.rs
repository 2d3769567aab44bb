//! The images of a cluster: a directory for each, named by what is in it.

use std::fs::{self, File as Disk, Permissions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::compress::Compression;

/// The names of an image's files; the boot service serves them.
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRAMFS: &str = "initramfs";
/// Only images with a full system have it. Nodes fetch it by this name.
pub(crate) const SYSTEM: &str = "system";
/// Which parts of the initramfs which network card needs. The boot service reads it.
pub(crate) const CARDS: &str = "cards";
const MANIFEST: &str = "manifest.json";

/// Directories that are not images yet begin so, and end with the process's number.
const UNFINISHED: &str = ".new-";

/// So do those of media that a node fetches. The boot service knows them by this and the number.
const MEDIUM: &str = ".medium-";

const REMOVED: &str = ".old-";

/// Of two files, at a time.
const COMPARED_BYTES: usize = 256 << 10;
/// A manifest is some kilobytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// An image can't be kept, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk's word.
    #[error("{path}: {source}")]
    Disk {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is none.
    #[error("there is no image {wanted}{}", list_of(.known))]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Its description is damaged.
    #[error("{path} is damaged: {reason}; remove its directory and build the image again")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

fn list_of(ids: &[String]) -> String {
    if ids.is_empty() {
        ": `wiglaf image build` makes one".into()
    } else {
        format!("; there are: {}", ids.join(", "))
    }
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Bytes.
    pub size: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

/// A kernel module of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Loaded on every node, rather than for a device that is there.
    pub always: bool,
}

/// What machines get of the initramfs whose network card is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByCard {
    /// The list of them.
    pub index: File,
    /// Network cards that are known.
    pub cards: usize,
    /// Bytes that a machine fetches at least.
    pub smallest: u64,
    /// Bytes that it fetches at most.
    pub largest: u64,
}

/// A full system that nodes have beside our own programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Its root, as a squashfs.
    #[serde(flatten)]
    pub file: File,
    /// Where it came from.
    pub rootfs: String,
    /// What has the machine; nothing if it is there for tasks only.
    pub init: Option<String>,
    /// Tasks see its files and not the head's.
    pub has_tasks: bool,
}

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name and the beginning of the hash of its contents.
    pub id: String,
    /// What somebody called it.
    pub name: String,
    /// When it was built, in seconds since 1970. Not part of what the hash is of.
    pub made_s: i64,
    /// The version of the program that nodes run.
    pub wiglaf: String,
    /// The kernel's version.
    pub kernel_version: String,
    /// The machines that it is for, as uname(1) calls them.
    pub arch: String,
    /// SHA-256 of the certificate that the nodes trust.
    pub authority: String,
    /// The kernel.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: File,
    /// What of it is for which network card. Images of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_card: Option<ByCard>,
    /// How that is compressed.
    pub compression: Compression,
    /// Bytes that it takes in a node's memory.
    pub unpacked: u64,
    /// Modules in it.
    pub modules: Vec<Module>,
    /// Firmware in it.
    pub firmware: Vec<String>,
    /// Firmware that its modules ask for and that was not found.
    pub missing_firmware: Vec<String>,
    /// Programs and directories that were included.
    pub included: Vec<String>,
    /// A full system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<System>,
}

impl Manifest {
    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        let system = self.system.as_ref().map_or(0, |system| system.file.size);
        self.kernel.size + self.initramfs.size + system
    }

    /// Bytes that a machine fetches at most whose network card is known.
    pub fn fetched(&self) -> u64 {
        let initramfs = self.initramfs.size;
        let by_card = self.by_card.as_ref();
        self.size() - initramfs + by_card.map_or(initramfs, |cards| cards.largest)
    }
}

/// The directory of all images.
#[derive(Clone, Debug)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// Those below a cluster's state directory.
    pub fn of(state: &Path) -> Images {
        Images {
            dir: state.join("images"),
        }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All of them, the newest first. What is not an image, or not whole, is passed over.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list(&self) -> Result<Vec<Manifest>, StoreError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(disk(&self.dir)(source)),
        };
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let images = names
            .filter(|name| !name.starts_with('.'))
            .filter_map(|name| self.read(&name).ok());
        let mut images: Vec<_> = images.collect();
        images.sort_by(|one, other| {
            let newest_first = other.made_s.cmp(&one.made_s);
            newest_first.then_with(|| one.id.cmp(&other.id))
        });
        Ok(images)
    }

    /// One, by its ID, or by a name: then the newest of that name.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn get(&self, wanted: &str) -> Result<Manifest, StoreError> {
        let images = self.list()?;
        let by_id = images.iter().find(|image| image.id == wanted);
        let found = by_id.or_else(|| images.iter().find(|image| image.name == wanted));
        match found {
            Some(image) => Ok(image.clone()),
            // Perhaps it is there, but damaged.
            None if is_plain(wanted) && self.dir.join(wanted).join(MANIFEST).exists() => {
                self.read(wanted)
            }
            None => Err(StoreError::Unknown {
                wanted: wanted.to_owned(),
                known: images.into_iter().map(|image| image.id).collect(),
            }),
        }
    }

    /// Removes one. That nobody boots it is for the caller to know.
    ///
    /// # Errors
    /// It is not there, or can't be removed.
    pub fn remove(&self, id: &str) -> Result<(), StoreError> {
        let path = self.dir.join(id);
        if !is_plain(id) || !path.is_dir() {
            let known = self.list()?.into_iter().map(|image| image.id).collect();
            return Err(StoreError::Unknown {
                wanted: id.to_owned(),
                known,
            });
        }
        // First out of sight, so that half of it is never served.
        let hidden = self.dir.join(format!("{REMOVED}{}", std::process::id()));
        fs::rename(&path, &hidden).map_err(disk(&path))?;
        fs::remove_dir_all(&hidden).map_err(disk(&hidden))
    }

    /// A directory for the files of a new image.
    pub(crate) fn begin(&self) -> Result<Unfinished, StoreError> {
        self.begin_as(UNFINISHED)
    }

    /// A directory for a medium that a node is to fetch, as long as this process has it.
    pub(crate) fn begin_medium(&self) -> Result<Unfinished, StoreError> {
        self.begin_as(MEDIUM)
    }

    fn begin_as(&self, kind: &str) -> Result<Unfinished, StoreError> {
        fs::create_dir_all(&self.dir).map_err(disk(&self.dir))?;
        let everybody = Permissions::from_mode(0o755);
        fs::set_permissions(&self.dir, everybody.clone()).map_err(disk(&self.dir))?;
        self.sweep();
        let path = self.dir.join(format!("{kind}{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(disk(&path))?;
        fs::set_permissions(&path, everybody).map_err(disk(&path))?;
        Ok(Unfinished { path })
    }

    /// Puts a finished one in its place. Says whether it is new.
    pub(crate) fn keep(&self, new: &Unfinished, manifest: &Manifest) -> Result<bool, StoreError> {
        let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::from);
        let path = new.path.join(MANIFEST);
        let mut text = text.map_err(disk(&path))?;
        text.push(b'\n');
        fs::write(&path, text).map_err(disk(&path))?;
        let system = manifest.system.as_ref().map(|_| SYSTEM);
        let cards = manifest.by_card.as_ref().map(|_| CARDS);
        let names = [KERNEL, INITRAMFS, MANIFEST].into_iter();
        for name in names.chain(system).chain(cards) {
            let path = new.path.join(name);
            let file = Disk::open(&path).map_err(disk(&path))?;
            let everybody = Permissions::from_mode(0o644);
            file.set_permissions(everybody).map_err(disk(&path))?;
            file.sync_all().map_err(disk(&path))?;
        }
        let place = self.dir.join(&manifest.id);
        // The same bytes have the same name, unless a disk has changed them since.
        let mut names = [KERNEL, INITRAMFS].into_iter().chain(system).chain(cards);
        let is_whole = self.read(&manifest.id).is_ok()
            && names.all(|name| is_same(&place.join(name), &new.path.join(name)).unwrap_or(false));
        if is_whole {
            return Ok(false);
        }
        if place.exists() {
            // A damaged one; nobody could boot it.
            self.remove(&manifest.id)?;
        }
        fs::rename(&new.path, &place).map_err(disk(&place))?;
        let dir = Disk::open(&self.dir).map_err(disk(&self.dir))?;
        dir.sync_all().map_err(disk(&self.dir))?;
        Ok(true)
    }

    fn read(&self, id: &str) -> Result<Manifest, StoreError> {
        let path = self.dir.join(id).join(MANIFEST);
        let size = fs::metadata(&path).map_err(disk(&path))?.len();
        let damaged = |reason: String| StoreError::Damaged {
            path: path.clone(),
            reason,
        };
        if size > MAX_MANIFEST {
            return Err(damaged("it is too large".into()));
        }
        let text = fs::read(&path).map_err(disk(&path))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let files = [(KERNEL, &manifest.kernel), (INITRAMFS, &manifest.initramfs)];
        let system = manifest.system.as_ref();
        let system = system.map(|system| (SYSTEM, &system.file));
        let cards = manifest.by_card.as_ref();
        let cards = cards.map(|cards| (CARDS, &cards.index));
        for (name, file) in files.into_iter().chain(system).chain(cards) {
            let size = fs::metadata(self.dir.join(id).join(name)).map(|data| data.len());
            if size.ok() != Some(file.size) {
                return Err(damaged(format!("{name} is not of its size")));
            }
        }
        if manifest.id != id {
            return Err(damaged(format!("it is of {}", manifest.id)));
        }
        Ok(manifest)
    }

    /// What was left by those that were killed.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| {
                let kinds = [UNFINISHED, MEDIUM, REMOVED].iter();
                kinds.filter_map(|kind| name.strip_prefix(kind)).next()
            });
            let is_dead = pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
            if is_dead {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// An image's files before they have their place; gone if they don't get one.
#[derive(Debug)]
pub(crate) struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Mostly it has been renamed.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Whether it may be a directory's name, and an image's in a URL.
pub(crate) fn is_plain(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 64 && name.chars().all(is_good) && !name.starts_with('.')
}

/// Whether two files hold the same.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let open = |path| io::Result::Ok(BufReader::with_capacity(COMPARED_BYTES, Disk::open(path)?));
    let (mut one, mut other) = (open(one)?, open(other)?);
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        if left.is_empty() || right.is_empty() {
            return Ok(left.is_empty() && right.is_empty());
        }
        let length = left.len().min(right.len());
        if left[..length] != right[..length] {
            return Ok(false);
        }
        one.consume(length);
        other.consume(length);
    }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    |source| StoreError::Disk {
        path: path.to_owned(),
        source,
    }
}
