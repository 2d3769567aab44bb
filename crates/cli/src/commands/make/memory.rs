//! What earlier builds of a tree have taught, in a file of its own.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wiglaf_build::Learned;

/// More than this is no file of ours.
const MAX_BYTES: u64 = 64 << 20;

pub(super) struct Memory {
    /// `None` where there is no place for it: then each build is the first.
    file: Option<PathBuf>,
}

impl Memory {
    /// Of a tree, in `$XDG_CACHE_HOME/wiglaf/build`.
    pub(super) fn of(tree: &Path) -> Memory {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
            .filter(|cache| cache.is_absolute() && is_ours(cache));
        let name = format!("{:016x}", fingerprint(tree.as_os_str().as_bytes()));
        Memory {
            file: cache.map(|cache| cache.join("wiglaf/build").join(name)),
        }
    }

    /// What is known. A file that can't be understood is none.
    pub(super) fn load(&self) -> Learned {
        let is_usable = |path: &&PathBuf| {
            let own = rustix::process::geteuid().as_raw();
            fs::metadata(path)
                .is_ok_and(|of| of.is_file() && of.uid() == own && of.len() < MAX_BYTES)
        };
        self.file
            .as_ref()
            .filter(is_usable)
            .and_then(|path| fs::read(path).ok())
            .and_then(|bytes| Learned::from_bytes(&bytes))
            .unwrap_or_default()
    }

    /// Keeps it for the next build. That works as well without.
    pub(super) fn store(&mut self, learned: &Learned) {
        if let Some(path) = &self.file
            && write(path, &learned.to_bytes()).is_err()
        {
            self.file = None;
        }
    }
}

/// Whether a directory, or what it is to be made in, is this user's: under `sudo` the environment
/// may name another's, who would then have files there that are not theirs.
fn is_ours(directory: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let found = directory
        .ancestors()
        .find_map(|path| fs::metadata(path).ok());
    found.is_some_and(|of| of.uid() == own)
}

/// Written beside it and renamed: two builds may end at once.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let new = path.with_extension(std::process::id().to_string());
    // Of a process that was killed and had our number.
    let _ = fs::remove_file(&new);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// FNV-1a, which stays the same from version to version.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a/b/tree");
        write(&path, b"one").expect("written");
        write(&path, b"two").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"two");
        let count = fs::read_dir(path.parent().expect("a directory")).expect("there");
        assert_eq!(count.count(), 1);
    }

    #[test]
    fn nothing_is_written_where_others_are_at_home() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(is_ours(&directory.path().join("not/there")));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(directory.path(), Some(54_321), None).expect("given away");
            assert!(!is_ours(&directory.path().join("not/there")));
        }
        let path = directory.path().join("tree");
        let trap = path.with_extension(std::process::id().to_string());
        let victim = directory.path().join("victim");
        fs::write(&victim, b"precious").expect("written");
        std::os::unix::fs::symlink(&victim, trap).expect("linked");
        write(&path, b"one").expect("written");
        assert_eq!(fs::read(&victim).expect("there"), b"precious");
    }

    #[test]
    fn fingerprints_are_fnv() {
        assert_eq!(fingerprint(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
