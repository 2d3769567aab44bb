use super::*;
use proptest::prelude::*;

/// A reader of its own, as strict as the kernel's: names, modes, inodes and data.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    name: Vec<u8>,
    inode: u32,
    mode: u32,
    names: u32,
    data: Vec<u8>,
}

fn parse(mut bytes: &[u8]) -> Vec<Found> {
    let mut all = Vec::new();
    loop {
        let (header, rest) = bytes.split_at(110);
        assert_eq!(&header[..6], b"070701");
        let field = |index: usize| {
            let digits = &header[6 + index * 8..14 + index * 8];
            u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        assert_eq!([field(2), field(3), field(5)], [0, 0, 0], "uid, gid, time");
        let name_end = usize::try_from(field(11)).unwrap();
        let name = rest[..name_end - 1].to_vec();
        assert_eq!(rest[name_end - 1], 0);
        let data_start = (110 + name_end).next_multiple_of(4) - 110;
        let size = usize::try_from(field(6)).unwrap();
        let data = rest[data_start..data_start + size].to_vec();
        bytes = &rest[data_start + size.next_multiple_of(4)..];
        if name == b"TRAILER!!!" {
            assert!(bytes.is_empty());
            return all;
        }
        all.push(Found {
            name,
            inode: field(0),
            mode: field(1),
            names: field(4),
            data,
        });
    }
}

/// Unpacks one as the kernel would, but for its devices.
pub(crate) fn unpack(archive: Archive, root: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let mut names: BTreeMap<u32, PathBuf> = BTreeMap::new();
    for found in parse(&written(archive)) {
        let path = root.join(OsStr::from_bytes(&found.name));
        match found.mode & 0o170_000 {
            S_IFDIR => std::fs::create_dir(&path).unwrap(),
            S_IFLNK => symlink(OsStr::from_bytes(&found.data), &path).unwrap(),
            S_IFREG => {
                if let Some(first) = names.get(&found.inode) {
                    std::fs::hard_link(first, &path).unwrap();
                }
                names.insert(found.inode, path.clone());
                std::fs::write(&path, &found.data).unwrap();
                let mode = PermissionsExt::from_mode(found.mode & 0o7777);
                std::fs::set_permissions(&path, mode).unwrap();
            }
            _ => {}
        }
    }
}

fn written(archive: Archive) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.write(&mut bytes).unwrap();
    bytes
}

fn find<'a>(all: &'a [Found], name: &str) -> &'a Found {
    let found = all.iter().find(|found| found.name == name.as_bytes());
    found.unwrap_or_else(|| panic!("{name} is missing"))
}

#[test]
fn directories_come_before_what_is_in_them() {
    let mut archive = Archive::new();
    archive.file(Path::new("/a/b/c"), 0o644, "x").unwrap();
    archive.file(Path::new("/a.d"), 0o600, "y").unwrap();
    let all = parse(&written(archive));
    for (index, found) in all.iter().enumerate() {
        if let Some(end) = found.name.iter().rposition(|byte| *byte == b'/') {
            let parent = &found.name[..end];
            assert!(all[..index].iter().any(|earlier| earlier.name == parent));
        }
    }
    assert_eq!(find(&all, "a/b").mode, 0o040_755);
    assert_eq!(find(&all, "a/b/c").data, b"x");
    assert_eq!(find(&all, "tmp").mode, 0o041_777);
}

#[test]
fn names_of_one_file_are_one_file() {
    let mut archive = Archive::new();
    // Numbers that do not fit into the header's eight digits.
    let identity = Some((7, u64::MAX - 3));
    for name in ["/z", "/b", "/k"] {
        let content = Content::Bytes(b"same".to_vec());
        archive
            .content(Path::new(name), 0o644, content, identity)
            .unwrap();
    }
    let content = Content::Bytes(b"other".to_vec());
    let other = Some((7, 0x1_0000_0000 + u64::MAX / 2));
    archive
        .content(Path::new("/c"), 0o644, content, other)
        .unwrap();
    let all = parse(&written(archive));
    let three = ["b", "k", "z"].map(|name| find(&all, name));
    assert!(three.iter().all(|found| found.inode == three[0].inode));
    assert!(three.iter().all(|found| found.names == 3));
    assert_eq!(three.map(|found| found.data.len()), [0, 0, 4]);
    let single = find(&all, "c");
    assert_eq!((single.names, single.data.len()), (1, 5));
    assert_ne!(single.inode, three[0].inode);
}

#[test]
fn merged_directories_are_one() {
    let mut archive = Archive::new();
    let lib = Path::new("/lib");
    archive.symlink(lib, Path::new("usr/lib")).unwrap();
    archive.file(&lib.join("x.so"), 0o755, "x").unwrap();
    archive
        .file(Path::new("/usr/lib/x.so"), 0o755, "x")
        .unwrap();
    assert!(archive.contains(Path::new("/lib/x.so")));
    let all = parse(&written(archive));
    assert_eq!(find(&all, "lib").data, b"usr/lib");
    assert_eq!(find(&all, "usr/lib/x.so").data, b"x");
    assert!(!all.iter().any(|found| found.name == b"lib/x.so"));
}

#[test]
fn two_things_of_one_name_are_refused() {
    let mut archive = Archive::new();
    archive.file(Path::new("/a"), 0o644, "x").unwrap();
    for result in [
        archive.directory(Path::new("/a"), 0o755),
        archive.file(Path::new("/a/b"), 0o644, "x"),
        archive.symlink(Path::new("/a"), Path::new("b")),
    ] {
        assert!(matches!(result, Err(ArchiveError::Conflict(_))));
    }
}

#[test]
fn a_file_that_changes_meanwhile_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, "12345").unwrap();
    for size in [4, 6] {
        let mut archive = Archive::new();
        let path = path.clone();
        let content = Content::From { path, size };
        archive
            .content(Path::new("/f"), 0o644, content, None)
            .unwrap();
        let result = archive.write(&mut Vec::new());
        assert!(matches!(result, Err(ArchiveError::Changed(_))), "{size}");
    }
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(
        files in proptest::collection::btree_map("[a-z]{1,9}(/[a-zé ]{1,12}){0,4}", proptest::collection::vec(any::<u8>(), 0..50), 0..20)
    ) {
        let mut archive = Archive::new();
        let mut kept = Vec::new();
        for (name, data) in &files {
            let path = Path::new("/").join(name);
            if archive.contains(&path) || archive.file(&path, 0o644, data.clone()).is_err() {
                continue;
            }
            kept.push((place(&path), data));
        }
        let bytes = written(archive);
        prop_assert_eq!(bytes.len() % 4, 0);
        let all = parse(&bytes);
        for (name, data) in kept {
            let found = all.iter().find(|found| found.name == name).unwrap();
            prop_assert_eq!(&found.data, data);
        }
        let inodes: std::collections::BTreeSet<_> = all.iter().map(|found| found.inode).collect();
        prop_assert_eq!(inodes.len(), all.len());
    }
}
