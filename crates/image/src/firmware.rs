//! Files that modules ask the kernel for, and it /lib/firmware.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::compress;

/// Where distributions put it.
const PLACES: [&str; 2] = ["/lib/firmware/updates", "/lib/firmware"];

/// Debian's packages by the directory of what they hold.
const PACKAGES: [(&str, &str); 7] = [
    ("bnx2", "firmware-bnx2"),
    ("bnx2x", "firmware-bnx2x"),
    ("e100", "firmware-misc-nonfree"),
    ("intel", "firmware-misc-nonfree"),
    ("rtl_nic", "firmware-realtek"),
    ("sun", "firmware-linux-free"),
    ("tigon", "firmware-misc-nonfree"),
];

/// A file can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct FirmwareError {
    path: PathBuf,
    source: io::Error,
}

/// What was found, and which modules go without.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// By the names that modules ask for.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// By module.
    pub(crate) missing: BTreeMap<String, Vec<String>>,
}

/// Collects what is there; somebody's own directories first.
pub(crate) fn collect(
    wanted: &[(String, String)],
    own: &[PathBuf],
) -> Result<Found, FirmwareError> {
    let standard = PLACES.iter().map(PathBuf::from);
    let places: Vec<_> = own.iter().cloned().chain(standard).collect();
    let mut found = Found::default();
    for (module, name) in wanted {
        // A name is a module's own words; it may not lead out.
        let is_plain = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let bytes = if is_plain {
            search(&places, name)?
        } else {
            None
        };
        match bytes {
            Some(bytes) => {
                found.files.insert(name.clone(), bytes);
            }
            None => {
                let missing = found.missing.entry(module.clone()).or_default();
                missing.push(name.clone());
            }
        }
    }
    Ok(found)
}

fn search(places: &[PathBuf], name: &str) -> Result<Option<Vec<u8>>, FirmwareError> {
    for place in places {
        for ending in compress::ENDINGS {
            let path = place.join(format!("{name}{ending}"));
            if path.is_file() {
                let bytes = compress::read(&path);
                return bytes
                    .map(Some)
                    .map_err(|source| FirmwareError { path, source });
            }
        }
    }
    Ok(None)
}

/// A line for each module that goes without, and where its files may come from.
pub(crate) fn warnings(found: &Found) -> Vec<String> {
    let lines = found.missing.iter().map(|(module, files)| {
        let first = &files[0];
        let more = match files.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let top = Path::new(first).iter().next().unwrap_or_default();
        let package = PACKAGES.iter().find(|(dir, _)| top == *dir);
        let package = package.map(|(_, name)| format!(", which Debian has in {name}"));
        format!(
            "firmware for {module} is not on this machine: {first}{more}{}",
            package.unwrap_or_default()
        )
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_taken_and_the_rest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("fw");
        std::fs::create_dir_all(own.join("rtl_nic")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::fs::write(own.join("plain.bin"), "plain").unwrap();
        let packed = zstd::stream::encode_all(&b"packed"[..], 3).unwrap();
        std::fs::write(own.join("rtl_nic/a.fw.zst"), packed).unwrap();
        let wanted = [
            ("m", "plain.bin"),
            ("r8169", "rtl_nic/a.fw"),
            ("r8169", "rtl_nic/no-such-1.fw"),
            ("r8169", "rtl_nic/no-such-2.fw"),
            ("m", "../secret"),
        ]
        .map(|(module, file)| (module.to_owned(), file.to_owned()));
        let found = collect(&wanted, &[own]).unwrap();
        assert_eq!(found.files["plain.bin"], b"plain");
        assert_eq!(found.files["rtl_nic/a.fw"], b"packed");
        assert_eq!(found.files.len(), 2);
        assert_eq!(
            warnings(&found),
            [
                "firmware for m is not on this machine: ../secret",
                "firmware for r8169 is not on this machine: rtl_nic/no-such-1.fw and 1 more, \
                 which Debian has in firmware-realtek",
            ]
        );
    }
}
