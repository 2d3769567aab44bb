//! The mount table, as `/proc/PID/mountinfo` tells it.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Where it is. `poll(2)` tells each description of it once of each change (`POLLPRI`), and no
/// mount or unmount has returned before.
pub const MOUNTS: &str = "/proc/thread-self/mountinfo";
/// Longest table that is read; tens of thousands of mounts.
pub const MAX_MOUNTS_BYTES: u64 = 8 << 20;

/// A line of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount<'a> {
    /// Its number, which another mount may have as soon as nobody has a file of this one.
    pub id: u64,
    /// The mount that it is mounted on.
    pub parent: u64,
    /// Its file system: `st_dev` of its files, but for those of btrfs and some of overlays'.
    pub device: u64,
    /// Where it is mounted, seen from this process's root.
    pub path: PathBuf,
    /// The file system's type.
    pub kind: &'a str,
}

/// The table as it is, for [`parse`]. What comes after [`MAX_MOUNTS_BYTES`] is cut off.
///
/// # Errors
/// There is no `/proc`.
pub fn read() -> Result<Vec<u8>, io::Error> {
    let mut table = Vec::new();
    std::fs::File::open(MOUNTS)?
        .take(MAX_MOUNTS_BYTES)
        .read_to_end(&mut table)?;
    Ok(table)
}

/// Its lines; those that are none are left out.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mount<'_>> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mount/point options optional:… - type source options`.
fn parse_line(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok();
    let id = number()?.parse().ok()?;
    let parent = number()?.parse().ok()?;
    let (major, minor) = number()?.split_once(':')?;
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    let path = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = std::str::from_utf8(rest.next()?).ok()?;
    Some(Mount {
        id,
        parent,
        device,
        path,
        kind,
    })
}

/// Spaces and the like are octal: `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match (first, after.split_at_checked(3)) {
            (b'\\', Some((digits, later))) if let Some(byte) = octal(digits) => {
                bytes.push(byte);
                rest = later;
            }
            _ => bytes.push(*first),
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn lines_are_read_and_what_is_none_is_left_out() {
        let table =
            b"30 27 8:1 /sub /mnt/with\\040space\\134 rw shared:1 master:2 - xfs /dev/sda1 rw\n\
            cut off line\n41 27 8:6 / /unended rw - \n31 30 0:9 / / rw - tmpfs t rw";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!((mounts[0].id, mounts[0].parent), (30, 27));
        assert_eq!(mounts[0].device, rustix::fs::makedev(8, 1));
        assert_eq!(mounts[0].path, Path::new("/mnt/with space\\"));
        assert_eq!(mounts[0].kind, "xfs");
        assert_eq!(mounts[2].path, Path::new("/"));
    }

    #[test]
    fn this_process_has_a_root() {
        let table = read().unwrap();
        assert!(parse(&table).iter().any(|one| one.path == Path::new("/")));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_hurt(table in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse(&table);
        }
    }
}
