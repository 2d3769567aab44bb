//! Which programs the shim lies over: the shells and the compiler drivers that the build's PATH
//! leads to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The shell that make and system(3) use whatever PATH says.
const SYSTEM_SHELLS: [&str; 2] = ["/bin/sh", "/bin/bash"];
const SHELLS: [&str; 7] = ["sh", "dash", "bash", "ksh", "mksh", "zsh", "ash"];
/// Compiler drivers by their names, without the target before and the version behind.
const DRIVERS: [&str; 16] = [
    "cc", "c++", "gcc", "g++", "c89", "c99", "clang", "clang++", "gfortran", "gnat", "gdc", "ldc2",
    "rustc", "ghc", "ocamlopt", "javac",
];

/// Their real files, each once.
pub(super) fn to_cover(path: &OsStr) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    let mut has_rustup = false;
    for shell in SYSTEM_SHELLS {
        found.extend(fs::canonicalize(shell));
    }
    for directory in std::env::split_paths(path).filter(|dir| dir.is_absolute()) {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if !is_covered(entry.file_name().as_bytes()) {
                continue;
            }
            let Ok(real) = fs::canonicalize(entry.path()) else {
                continue;
            };
            // rustup is cargo and rustc at once; what it starts is covered instead.
            if is_rustup(&real, &directory) {
                has_rustup = true;
            } else {
                found.insert(real);
            }
        }
    }
    if has_rustup {
        found.extend(rustups_compiler());
    }
    found.into_iter().collect()
}

fn is_covered(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else {
        return false;
    };
    if SHELLS.contains(&name) {
        return true;
    }
    // gcc-12, clang-14, clang++-14; but not gcc-ar, and not gcc-ar-12.
    let bare = match name.rsplit_once('-') {
        Some((bare, version)) if is_version(version) => bare,
        _ => name,
    };
    // x86_64-linux-gnu-gcc
    let driver = bare.rsplit_once('-').map_or(bare, |(_, driver)| driver);
    DRIVERS.contains(&driver)
}

fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// By name, or as a hard link of the same file.
fn is_rustup(real: &Path, directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| fs::metadata(path).map(|of| (of.dev(), of.ino())).ok();
    real.file_name() == Some(OsStr::new("rustup"))
        || identity(&directory.join("rustup")).is_some_and(|rustup| Some(rustup) == identity(real))
}

/// The compiler that rustup would run in this directory.
fn rustups_compiler() -> Option<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let root = OsStr::from_bytes(output.stdout.trim_ascii_end());
    fs::canonicalize(Path::new(root).join("bin/rustc")).ok()
}

/// The file that a command's name leads to, as execvp(3) seeks it.
pub(super) fn find(name: &OsStr, path: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(name.into());
    }
    let is_program = |path: &PathBuf| {
        use rustix::fs::{Access, AtFlags, CWD, accessat};
        path.is_file() && accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    };
    std::env::split_paths(path)
        .map(|directory| directory.join(name))
        .find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_known_with_target_and_version() {
        for name in [
            "sh",
            "bash",
            "gcc",
            "cc",
            "c++",
            "gcc-12",
            "g++-12",
            "clang++-14",
            "rustc",
            "x86_64-linux-gnu-gcc",
            "x86_64-linux-gnu-gcc-12",
            "aarch64-linux-gnu-g++-12.2",
        ] {
            assert!(is_covered(name.as_bytes()), "{name}");
        }
        for name in [
            "gcc-ar",
            "gcc-ar-12",
            "x86_64-linux-gnu-gcc-nm",
            "x86_64-linux-gnu-gcc-ranlib-12",
            "make",
            "shred",
            "ccache",
            "rustdoc",
            "ld",
            "as",
            "csh-x",
            "gcc-",
        ] {
            assert!(!is_covered(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_name_leads_to_a_file() {
        let path = OsStr::new("/nowhere:/usr/bin:/bin");
        assert!(find(OsStr::new("env"), path).is_some_and(|found| found.ends_with("bin/env")));
        assert_eq!(find(OsStr::new("./x"), path), Some("./x".into()));
        assert_eq!(find(OsStr::new("no-such-program-at-all"), path), None);
    }
}
