//! Two folders compared to the byte.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Difference;

const READ_BYTES: usize = 256 << 10;
const PERMISSIONS: u32 = 0o7777;

/// What two folders do not agree on, each with the path from their top.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) what: String,
}

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Names, kinds, permissions, link targets and contents; not times, owners or inode numbers.
pub(crate) fn compare(one: &Path, other: &Path) -> Result<(Vec<Finding>, Amount)> {
    let ones = list(one)?;
    let others = list(other)?;
    let mut findings = Vec::new();
    let mut amount = Amount::default();
    for (path, metadata) in &ones {
        let what = match others.get(path) {
            None => Some("is missing in the second".to_owned()),
            Some(second) => {
                if metadata.is_file() {
                    amount.files += 1;
                    amount.bytes += metadata.len();
                }
                differ((&one.join(path), metadata), (&other.join(path), second))?
            }
        };
        if let Some(what) = what {
            findings.push(finding(path, what));
        }
    }
    for path in others.keys().filter(|path| !ones.contains_key(*path)) {
        findings.push(finding(path, "is missing in the first".to_owned()));
    }
    Ok((findings, amount))
}

fn finding(path: &Path, what: String) -> Finding {
    Finding {
        path: path.to_string_lossy().into_owned(),
        what,
    }
}

/// The findings that are not among the known differences.
pub(crate) fn unknown<'a>(findings: &'a [Finding], known: &[Difference]) -> Vec<&'a Finding> {
    findings
        .iter()
        .filter(|finding| !known.iter().any(|each| fits(each.files, &finding.path)))
        .collect()
}

/// Whether a path is of the pattern, in which a `*` stands for anything.
fn fits(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, rest)) => path.strip_prefix(start).is_some_and(|left| {
            left.char_indices()
                .map(|(at, _)| at)
                .chain([left.len()])
                .any(|at| fits(rest, &left[at..]))
        }),
    }
}

fn list(top: &Path) -> Result<BTreeMap<PathBuf, Metadata>> {
    let mut found = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let path = top.join(&folder);
        let failed = || format!("can't read {}", path.display());
        for entry in fs::read_dir(&path).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let name = folder.join(entry.file_name());
            let metadata = entry.metadata().with_context(failed)?;
            if metadata.is_dir() {
                open.push(name.clone());
            }
            found.insert(name, metadata);
        }
    }
    Ok(found)
}

fn differ(one: (&Path, &Metadata), other: (&Path, &Metadata)) -> Result<Option<String>> {
    let kinds = (kind(one.1), kind(other.1));
    if kinds.0 != kinds.1 {
        return Ok(Some(format!("is a {} and a {}", kinds.0, kinds.1)));
    }
    if one.1.is_symlink() {
        let targets = (fs::read_link(one.0)?, fs::read_link(other.0)?);
        let same = targets.0.as_os_str().as_bytes() == targets.1.as_os_str().as_bytes();
        return Ok((!same).then(|| {
            format!(
                "links to {} and {}",
                targets.0.display(),
                targets.1.display()
            )
        }));
    }
    let modes = (one.1.mode() & PERMISSIONS, other.1.mode() & PERMISSIONS);
    if modes.0 != modes.1 {
        return Ok(Some(format!("has mode {:o} and {:o}", modes.0, modes.1)));
    }
    if !one.1.is_file() {
        return Ok(None);
    }
    if one.1.len() != other.1.len() {
        let (first, second) = (one.1.len(), other.1.len());
        return Ok(Some(format!("has {first} and {second} bytes")));
    }
    let at = first_difference(one.0, other.0)?;
    Ok(at.map(|at| format!("differs at byte {at}")))
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "folder",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symbolic link",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "device",
    }
}

fn first_difference(one: &Path, other: &Path) -> Result<Option<usize>> {
    let open = |path: &Path| {
        File::open(path)
            .map(BufReader::new)
            .with_context(|| format!("can't open {}", path.display()))
    };
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut first, mut second) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let mut before = 0;
    loop {
        let count = fill(&mut one, &mut first)?;
        let other_count = fill(&mut other, &mut second)?;
        let (here, there) = (&first[..count], &second[..other_count]);
        if here != there {
            let at = here.iter().zip(there).position(|(a, b)| a != b);
            return Ok(Some(before + at.unwrap_or(count.min(other_count))));
        }
        if count == 0 {
            return Ok(None);
        }
        before += count;
    }
}

fn fill(file: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read(&mut buffer[count..])? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_star_stands_for_anything() {
        assert!(fits("a/*.o", "a/b/c.o"));
        assert!(fits("*", ""));
        assert!(fits("x*y*z", "xyyz"));
        assert!(!fits("a/*.o", "a/b.c"));
        assert!(!fits("config.log", "a/config.log"));
    }

    #[test]
    fn every_kind_of_difference_is_found_and_no_other() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("wiglaf-tree-{}", std::process::id()));
        let (one, other) = (dir.join("one"), dir.join("other"));
        for (top, letter, mode) in [(&one, "a", 0o644), (&other, "b", 0o755)] {
            fs::create_dir_all(top.join("folder"))?;
            fs::write(top.join("folder/same"), "same")?;
            fs::write(top.join("contents"), format!("x{letter}"))?;
            fs::write(top.join("length"), letter.repeat(mode as usize))?;
            fs::write(top.join("mode"), "")?;
            fs::set_permissions(top.join("mode"), fs::Permissions::from_mode(mode))?;
            fs::write(top.join(format!("only-{letter}")), "")?;
            symlink(letter, top.join("link"))?;
        }
        fs::write(one.join("kind"), "")?;
        fs::create_dir(other.join("kind"))?;
        let (findings, amount) = compare(&one, &other)?;
        fs::remove_dir_all(&dir)?;
        let found: Vec<String> = findings
            .iter()
            .map(|each| format!("{} {}", each.path, each.what))
            .collect();
        assert_eq!(
            found,
            [
                "contents differs at byte 1",
                "kind is a file and a folder",
                "length has 420 and 493 bytes",
                "link links to a and b",
                "mode has mode 644 and 755",
                "only-a is missing in the second",
                "only-b is missing in the first",
            ]
        );
        assert_eq!(amount.files, 5);
        let known = [Difference {
            files: "only-*",
            reason: "",
        }];
        assert_eq!(unknown(&findings, &known).len(), 5);
        Ok(())
    }
}
