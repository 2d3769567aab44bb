use super::*;

fn ask(export: &mut Export, what: ViewAsk) -> Result<ViewReply, Errno> {
    let answer = export.answer(ViewQuestion { id: 7, what });
    assert_eq!(answer.id, 7);
    answer.result.map_err(Errno::from_raw_os_error)
}

fn look_up(export: &mut Export, parent: u64, name: &[u8]) -> Result<ViewAttributes, Errno> {
    let name = name.to_vec();
    match ask(export, ViewAsk::Lookup { parent, name })? {
        ViewReply::Attributes(attributes) => Ok(attributes),
        other => panic!("{other:?}"),
    }
}

/// Walks to a path of the head.
fn find(export: &mut Export, path: &std::path::Path) -> ViewAttributes {
    let names = path.components().skip(1);
    let mut found = None;
    for name in names {
        let parent = found
            .as_ref()
            .map_or(ROOT, |found: &ViewAttributes| found.node);
        found = Some(look_up(export, parent, name.as_os_str().as_encoded_bytes()).expect("found"));
    }
    found.expect("a path below /")
}

fn scene(hidden: &[&str]) -> (tempfile::TempDir, Export, u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().canonicalize().expect("its path");
    let hidden = hidden.iter().map(|name| path.join(name)).collect();
    let mut export = Export::new(hidden).expect("an export");
    let number = find(&mut export, &path).node;
    (directory, export, number)
}

fn read(export: &mut Export, node: u64, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
    let what = ViewAsk::Read {
        node,
        offset,
        length,
    };
    match ask(export, what)? {
        ViewReply::Data(data) => Ok(data),
        other => panic!("{other:?}"),
    }
}

fn list(export: &mut Export, node: u64, offset: u64) -> Result<Vec<ViewEntry>, Errno> {
    match ask(export, ViewAsk::ReadDirectory { node, offset })? {
        ViewReply::Entries(entries) => Ok(entries),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_are_single_components() {
    let (_directory, mut export, number) = scene(&[]);
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b"] {
        assert_eq!(
            look_up(&mut export, number, name),
            Err(Errno::INVAL),
            "{name:?}"
        );
    }
    let long = [b'a'; 256];
    assert_eq!(look_up(&mut export, number, &long), Err(Errno::NAMETOOLONG));
    assert_eq!(look_up(&mut export, number, b"none"), Err(Errno::NOENT));
    assert_eq!(look_up(&mut export, 1 << 50, b"x"), Err(Errno::STALE));
}

#[test]
fn files_are_read_within_bounds() {
    let (directory, mut export, number) = scene(&[]);
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|byte| byte.to_le_bytes()[1])
        .collect();
    std::fs::write(directory.path().join("file"), &bytes).expect("a file");
    let file = look_up(&mut export, number, b"file").expect("found").node;
    assert_eq!(read(&mut export, file, 5, 10).expect("data"), bytes[5..15]);
    let most = read(&mut export, file, 0, u32::MAX).expect("data");
    assert_eq!(most.len(), MAX_VIEW_READ_BYTES as usize);
    assert_eq!(
        read(&mut export, file, 2_999_990, 4096).expect("data"),
        bytes[2_999_990..]
    );
    assert_eq!(read(&mut export, file, 3_000_000, 4096).expect("data"), []);
    assert!(read(&mut export, file, u64::MAX, 4096).is_err());
    assert_eq!(look_up(&mut export, file, b"x"), Err(Errno::NOTDIR));
    assert_eq!(list(&mut export, file, 0), Err(Errno::NOTDIR));
    assert_eq!(read(&mut export, number, 0, 1), Err(Errno::ISDIR));
}

#[test]
fn nothing_but_regular_files_is_opened() {
    let (directory, mut export, number) = scene(&[]);
    let fifo = directory.path().join("fifo");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, 0o644.into(), 0).expect("a FIFO");
    std::os::unix::fs::symlink("a/b", directory.path().join("link")).expect("a link");
    let fifo = look_up(&mut export, number, b"fifo").expect("found").node;
    assert_eq!(read(&mut export, fifo, 0, 1), Err(Errno::NXIO));
    let link = look_up(&mut export, number, b"link").expect("found").node;
    assert_eq!(read(&mut export, link, 0, 1), Err(Errno::NXIO));
    let text = ask(&mut export, ViewAsk::ReadLink { node: link });
    assert_eq!(text, Ok(ViewReply::Link(b"a/b".to_vec())));
    assert_eq!(
        ask(&mut export, ViewAsk::ReadLink { node: fifo }),
        Err(Errno::INVAL)
    );
}

#[test]
fn the_heads_kernel_is_not_shown() {
    let (_directory, mut export, _) = scene(&[]);
    let proc = look_up(&mut export, ROOT, b"proc").expect("found").node;
    assert_eq!(look_up(&mut export, proc, b"self"), Err(Errno::NOENT));
    assert_eq!(look_up(&mut export, proc, b"version"), Err(Errno::NOENT));
    assert_eq!(list(&mut export, proc, 0), Ok(Vec::new()));
}

#[test]
fn hidden_directories_do_not_exist() {
    let (directory, mut export, number) = scene(&["now", "later"]);
    std::fs::create_dir(directory.path().join("now")).expect("a directory");
    std::fs::create_dir(directory.path().join("later")).expect("a directory");
    std::fs::create_dir(directory.path().join("shown")).expect("a directory");
    for hidden in [b"now" as &[u8], b"later"] {
        assert_eq!(look_up(&mut export, number, hidden), Err(Errno::NOENT));
    }
    assert!(look_up(&mut export, number, b"shown").is_ok());
    let listed = list(&mut export, number, 0).expect("entries");
    let mut names: Vec<_> = listed.iter().map(|entry| entry.name.as_slice()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"."[..], b"..", b"shown"]);
}

#[test]
fn a_directory_is_listed_in_parts_and_whole() {
    const FILES: usize = 2 * MAX_VIEW_ENTRIES + 100;
    let (directory, mut export, number) = scene(&[]);
    for file in 0..FILES {
        std::fs::write(directory.path().join(format!("f{file}")), "").expect("a file");
    }
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let entries = list(&mut export, number, offset).expect("entries");
        assert!(entries.len() <= MAX_VIEW_ENTRIES);
        let Some(last) = entries.last() else { break };
        offset = last.next;
        names.extend(entries.into_iter().map(|entry| entry.name));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), FILES + 2);
}

#[test]
fn a_number_stays_the_same_file_until_it_is_forgotten() {
    let (directory, mut export, number) = scene(&[]);
    let path = directory.path().join("file");
    std::fs::write(&path, "old").expect("a file");
    std::fs::hard_link(&path, directory.path().join("link")).expect("a link");
    let known = export.len();
    let file = look_up(&mut export, number, b"file").expect("found").node;
    assert_eq!(
        look_up(&mut export, number, b"link").expect("found").node,
        file
    );
    std::fs::remove_file(directory.path().join("link")).expect("removed");
    std::fs::write(directory.path().join("new"), "new").expect("a file");
    std::fs::rename(directory.path().join("new"), &path).expect("a rename");
    assert_eq!(read(&mut export, file, 0, 9).expect("data"), b"old");
    let new = look_up(&mut export, number, b"file").expect("found").node;
    assert_ne!(new, file);
    assert_eq!(read(&mut export, new, 0, 9).expect("data"), b"new");
    let mut forget = |node, count| {
        let told = ask(&mut export, ViewAsk::Forget { node, count });
        assert_eq!(told, Ok(ViewReply::Data(Vec::new())));
        export.len()
    };
    assert_eq!(forget(file, 1), known + 2);
    assert_eq!(forget(file, 1), known + 1);
    assert_eq!(forget(new, u64::MAX), known);
    assert_eq!(forget(ROOT, u64::MAX), known);
    assert_eq!(read(&mut export, file, 0, 9), Err(Errno::STALE));
}

#[test]
fn a_full_table_says_so() {
    let (directory, mut export, number) = scene(&[]);
    for name in ["a", "b"] {
        std::fs::write(directory.path().join(name), "").expect("a file");
    }
    export.most = export.len() + 1;
    let first = look_up(&mut export, number, b"a").expect("room for one");
    assert_eq!(look_up(&mut export, number, b"b"), Err(Errno::NFILE));
    let again = look_up(&mut export, number, b"a").expect("known");
    assert_eq!(again.node, first.node);
}
