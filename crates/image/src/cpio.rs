//! What the kernel unpacks as its first file system: an archive in cpio's "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// The kernel refuses longer names.
const PATH_MAX: usize = 4096;

/// Directories that distributions have merged into /usr. Here they always are, so that a file has
/// one place whichever way it was found, and none lies beyond a link that is not unpacked yet.
const MERGED: [&str; 6] = ["bin", "lib", "lib32", "lib64", "libx32", "sbin"];

/// Something can't be put into the archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} changed while it was read; build the image again")]
    Changed(PathBuf),
    #[error("{0} is too large or its name too long for an initramfs")]
    TooLarge(PathBuf),
    #[error("{0} is wanted as two different things, for example a file and a directory")]
    Conflict(PathBuf),
    #[error("the initramfs can't be written: {0}")]
    Write(#[from] io::Error),
}

/// Where a regular file's bytes are.
#[derive(Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// Read when the archive is written, so that it need not fit into memory.
    From {
        path: PathBuf,
        size: u64,
    },
}

/// Device and inode number where it came from: the names of one file are one file again.
pub(crate) type Identity = (u64, u64);

#[derive(Debug)]
enum Kind {
    Directory,
    Symlink(Vec<u8>),
    File(Content, Option<Identity>),
    Device(u32, u32),
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    kind: Kind,
}

/// Files by their names, in order. Times, owners and inode numbers are not kept.
#[derive(Debug)]
pub(crate) struct Archive {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Archive {
    /// With what any system has: the merged directories' links, where file systems are mounted,
    /// and a console.
    pub(crate) fn new() -> Archive {
        let mut entries = BTreeMap::new();
        let directory = |mode| Entry {
            mode,
            kind: Kind::Directory,
        };
        for name in ["dev", "etc", "proc", "run", "sys", "usr", "usr/lib"] {
            entries.insert(name.into(), directory(0o755));
        }
        entries.insert("root".into(), directory(0o700));
        entries.insert("tmp".into(), directory(0o1777));
        for name in MERGED {
            let kind = Kind::Symlink(format!("usr/{name}").into());
            entries.insert(name.into(), Entry { mode: 0o777, kind });
            entries.insert(format!("usr/{name}").into(), directory(0o755));
        }
        for (name, minor, mode) in [("dev/console", 1, 0o600), ("dev/null", 3, 0o666)] {
            let major = if minor == 1 { 5 } else { 1 };
            let kind = Kind::Device(major, minor);
            entries.insert(name.into(), Entry { mode, kind });
        }
        Archive { entries }
    }

    /// Of what is unpacked over another.
    pub(crate) fn empty() -> Archive {
        Archive {
            entries: BTreeMap::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.entries.contains_key(&place(path))
    }

    pub(crate) fn directory(&mut self, path: &Path, mode: u32) -> Result<(), ArchiveError> {
        self.insert(path, mode, Kind::Directory)
    }

    pub(crate) fn symlink(&mut self, path: &Path, target: &Path) -> Result<(), ArchiveError> {
        if is_merged(&place_unmerged(path)) {
            return Ok(());
        }
        let target = target.as_os_str().as_bytes().to_vec();
        self.insert(path, 0o777, Kind::Symlink(target))
    }

    pub(crate) fn file(
        &mut self,
        path: &Path,
        mode: u32,
        bytes: impl Into<Vec<u8>>,
    ) -> Result<(), ArchiveError> {
        self.insert(path, mode, Kind::File(Content::Bytes(bytes.into()), None))
    }

    pub(crate) fn content(
        &mut self,
        path: &Path,
        mode: u32,
        content: Content,
        identity: Option<Identity>,
    ) -> Result<(), ArchiveError> {
        self.insert(path, mode, Kind::File(content, identity))
    }

    /// What was there before stays, if it is of the same kind: closures overlap.
    fn insert(&mut self, path: &Path, mode: u32, kind: Kind) -> Result<(), ArchiveError> {
        let name = place(path);
        if name.is_empty() {
            return Ok(());
        }
        if name.len() >= PATH_MAX {
            return Err(ArchiveError::TooLarge(path.to_owned()));
        }
        let parents = name.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (end, _) in parents {
            let parent = self.entries.entry(name[..end].to_vec());
            let parent = parent.or_insert(Entry {
                mode: 0o755,
                kind: Kind::Directory,
            });
            if !matches!(parent.kind, Kind::Directory) {
                return Err(ArchiveError::Conflict(path.to_owned()));
            }
        }
        if let Some(there) = self.entries.get(&name) {
            let is_same = std::mem::discriminant(&there.kind) == std::mem::discriminant(&kind);
            let is_same = is_same
                && match (&there.kind, &kind) {
                    (Kind::Symlink(one), Kind::Symlink(other)) => one == other,
                    _ => true,
                };
            return if is_same {
                Ok(())
            } else {
                Err(ArchiveError::Conflict(path.to_owned()))
            };
        }
        self.entries.insert(name, Entry { mode, kind });
        Ok(())
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        let sizes = self.entries.values().map(|entry| match &entry.kind {
            Kind::File(Content::Bytes(bytes), _) => bytes.len() as u64,
            Kind::File(Content::From { size, .. }, _) => *size,
            _ => 0,
        });
        sizes.sum()
    }

    /// Writes it. Of a file with several names the last one brings the data, as cpio does it.
    pub(crate) fn write(self, out: &mut impl Write) -> Result<(), ArchiveError> {
        let mut links: BTreeMap<Identity, Links> = BTreeMap::new();
        for entry in self.entries.values() {
            if let Kind::File(_, Some(identity)) = entry.kind {
                links.entry(identity).or_default().left += 1;
            }
        }
        for group in links.values_mut() {
            group.names = group.left;
        }
        let mut next_inode = 0u32;
        for (name, entry) in self.entries {
            let mut number = || {
                next_inode += 1;
                next_inode
            };
            let mut header = Header {
                inode: 0,
                mode: entry.mode,
                names: 1,
                size: 0,
                device: (0, 0),
            };
            let mut data = Content::Bytes(Vec::new());
            match entry.kind {
                Kind::Directory => header.mode |= S_IFDIR,
                Kind::Symlink(target) => {
                    header.mode |= S_IFLNK;
                    data = Content::Bytes(target);
                }
                Kind::Device(major, minor) => {
                    header.mode |= S_IFCHR;
                    header.device = (major, minor);
                }
                Kind::File(content, identity) => {
                    header.mode |= S_IFREG;
                    let group = identity.and_then(|identity| links.get_mut(&identity));
                    match group {
                        None => data = content,
                        Some(group) => {
                            header.names = group.names;
                            if group.inode == 0 {
                                group.inode = number();
                            }
                            header.inode = group.inode;
                            group.left -= 1;
                            if group.left == 0 {
                                data = content;
                            }
                        }
                    }
                }
            }
            if header.inode == 0 {
                header.inode = number();
            }
            header.size = data.size();
            header.write(out, &name)?;
            data.write(out)?;
        }
        let end = Header {
            inode: 0,
            mode: 0,
            names: 1,
            size: 0,
            device: (0, 0),
        };
        end.write(out, b"TRAILER!!!")
    }
}

#[derive(Default)]
struct Links {
    inode: u32,
    names: u32,
    left: u32,
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::From { size, .. } => *size,
        }
    }

    fn write(self, out: &mut impl Write) -> Result<(), ArchiveError> {
        let size = self.size();
        match self {
            Content::Bytes(bytes) => out.write_all(&bytes)?,
            Content::From { path, size } => {
                let read = |source| ArchiveError::Read {
                    path: path.clone(),
                    source,
                };
                let mut file = File::open(&path).map_err(read)?;
                let copied = io::copy(&mut (&mut file).take(size), out)?;
                let has_grown = file.read(&mut [0]).map_err(read)? != 0;
                if copied != size || has_grown {
                    return Err(ArchiveError::Changed(path));
                }
            }
        }
        pad(out, size)?;
        Ok(())
    }
}

struct Header {
    inode: u32,
    mode: u32,
    names: u32,
    size: u64,
    device: (u32, u32),
}

impl Header {
    fn write(&self, out: &mut impl Write, name: &[u8]) -> Result<(), ArchiveError> {
        let too_large = || ArchiveError::TooLarge(Path::new(OsStr::from_bytes(name)).to_owned());
        let size = u32::try_from(self.size).map_err(|_| too_large())?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| too_large())?;
        let (major, minor) = self.device;
        let fields = [
            self.inode, self.mode, 0, 0, self.names, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        let mut text = String::from("070701");
        for field in fields {
            text.push_str(&format!("{field:08x}"));
        }
        out.write_all(text.as_bytes())?;
        out.write_all(name)?;
        out.write_all(&[0])?;
        pad(out, (text.len() + name.len() + 1) as u64)?;
        Ok(())
    }
}

/// Headers and data begin at multiples of four bytes.
fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let rest = [0usize, 3, 2, 1][usize::try_from(size % 4).unwrap_or(0)];
    out.write_all(&[0; 3][..rest])
}

/// The name in the archive: without the root's slash, below /usr if the directory is merged.
fn place(path: &Path) -> Vec<u8> {
    let plain = place_unmerged(path);
    let top = plain.split(|byte| *byte == b'/').next().unwrap_or_default();
    if is_merged(top) && plain.len() > top.len() {
        return [b"usr/", &plain[..]].concat();
    }
    plain
}

fn place_unmerged(path: &Path) -> Vec<u8> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    });
    names.collect::<Vec<_>>().join(&b'/')
}

fn is_merged(name: &[u8]) -> bool {
    MERGED.iter().any(|merged| merged.as_bytes() == name)
}

#[cfg(test)]
#[path = "cpio/tests.rs"]
pub(crate) mod tests;
