//! What is shown, and how it is named.

use super::*;

#[test]
fn names_are_single_components() {
    let mut rig = Rig::new();
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b"] {
        let found = rig.try_look_up(A, rig.here, name);
        assert_eq!(found, Err(Errno::INVAL), "{name:?}");
    }
    let here = rig.here;
    let long = [b'a'; 256];
    assert_eq!(rig.try_look_up(A, here, &long), Err(Errno::NAMETOOLONG));
    assert_eq!(rig.try_look_up(A, here, b"none"), Ok(None));
    let unknown = FileId(here.0 + 1000);
    assert_eq!(rig.try_look_up(A, unknown, b"x"), Err(Errno::STALE));
    let long = "a".repeat(256);
    let made = rig.try_make(A, &long, NewFile::Directory, 0o755);
    assert_eq!(made, Err(Errno::NAMETOOLONG));
    assert_eq!(rig.remove(A, "..", true), Err(Errno::INVAL));
}

#[test]
fn the_heads_kernel_is_not_shown() {
    let mut rig = Rig::new();
    let proc = rig.look_up_in(A, FileId::ROOT, b"proc").file;
    assert_eq!(rig.try_look_up(A, proc, b"self"), Ok(None));
    assert_eq!(rig.try_look_up(A, proc, b"version"), Ok(None));
    let listed = rig.list_from(A, proc, (0, 100), true);
    assert_eq!(listed, Ok((Vec::new(), true)));
    let parent = proc;
    let name = b"x".to_vec();
    let what = Ask::Remove {
        parent,
        name,
        directory: false,
    };
    assert_eq!(rig.done(A, what), Err(Errno::ROFS));
}

#[test]
fn hidden_directories_do_not_exist() {
    let mut rig = Rig::hiding(&["now", "later"]);
    for name in ["now", "later", "shown"] {
        std::fs::create_dir(rig.file(name)).expect("a directory");
    }
    for hidden in ["now", "later"] {
        let here = rig.here;
        assert_eq!(rig.try_look_up(A, here, hidden.as_bytes()), Ok(None));
        assert_eq!(rig.remove(A, hidden, true), Err(Errno::NOENT));
        assert_eq!(rig.rename(A, hidden, "x", 0), Err(Errno::NOENT));
        assert_eq!(rig.rename(A, "shown", hidden, 0), Err(Errno::BUSY));
        assert!(rig.file(hidden).exists());
    }
    rig.look_up(A, "shown");
    // Made anew, it is another file at the same path.
    let here = rig.here;
    std::fs::remove_dir(rig.file("now")).expect("no directory");
    std::fs::create_dir(rig.file("between")).expect("a directory");
    rig.write("now", "a file this time");
    assert_eq!(rig.try_look_up(A, here, b"now"), Ok(None));
    std::fs::remove_dir(rig.file("between")).expect("no directory");
    std::fs::hard_link(rig.file("now"), rig.file("alias")).expect("a second name");
    for attributes in [false, true] {
        let listed = rig.list(A, attributes);
        let names: Vec<_> = listed.iter().map(|entry| entry.name.as_slice()).collect();
        assert_eq!(names, [b"shown"]);
    }
}

#[test]
fn attributes_are_the_heads() {
    let mut rig = Rig::new();
    rig.write("file", "content");
    let told = rig.look_up(A, "file");
    let real = std::fs::metadata(rig.file("file")).expect("its status");
    assert_eq!(told.ino, real.ino());
    assert_eq!(told.device, real.dev());
    assert_eq!(told.mode, real.mode());
    assert_eq!((told.uid, told.gid), (real.uid(), real.gid()));
    assert_eq!((told.size, told.blocks), (real.size(), real.blocks()));
    assert_eq!(u64::from(told.links), real.nlink());
    let seconds = told.times.map(|time| time.0);
    assert_eq!(seconds, [real.atime(), real.mtime(), real.ctime()]);
    assert!(!told.watched);
    assert_eq!(rig.attributes(A, told.file), Ok(told));
}

#[test]
fn one_file_has_one_number_and_is_counted() {
    let mut rig = Rig::new();
    rig.write("one", "1");
    std::fs::hard_link(rig.file("one"), rig.file("two")).expect("a link");
    let file = rig.look_up(A, "one").file;
    assert_eq!(rig.look_up(A, "two").file, file);
    // The other link was not told.
    assert_eq!(rig.attributes(B, file), Err(Errno::STALE));
    assert_eq!(rig.look_up(B, "two").file, file);
    let size = rig.export.len();
    rig.tell(A, Ask::Forget { file, count: 1 });
    assert!(rig.attributes(A, file).is_ok());
    rig.tell(A, Ask::Forget { file, count: 1 });
    assert_eq!(rig.attributes(A, file), Err(Errno::STALE));
    assert!(rig.attributes(B, file).is_ok());
    assert_eq!(rig.export.len(), size);
    rig.tell(B, Ask::Forget { file, count: 9 });
    assert_eq!(rig.export.len(), size - 1);
    let root = FileId::ROOT;
    rig.tell(
        B,
        Ask::Forget {
            file: root,
            count: 9,
        },
    );
    assert!(rig.attributes(B, root).is_ok());
    // A number is never given again.
    assert_ne!(rig.look_up(A, "one").file, file);
}

#[test]
fn a_link_that_is_gone_leaves_nothing() {
    let mut rig = Rig::new();
    rig.write("file", "1");
    let file = rig.look_up(A, "file").file;
    let opened = rig.open(A, file, RDWR).expect("opened");
    rig.export.close(A);
    assert_eq!(rig.attributes(A, file), Err(Errno::STALE));
    let written = rig.write_to(A, opened.handle, 0, b"x");
    assert_eq!(written, Err(Errno::BADF));
    rig.export.close(B);
    assert_eq!(rig.export.len(), 1);
    assert!(rig.export.deadline().is_none());
}

#[test]
fn a_directory_is_listed_in_parts_and_whole() {
    const FILES: usize = 9000;
    let mut rig = Rig::new();
    for file in 0..FILES {
        rig.write(&format!("f{file}"), "");
    }
    for most in [1, 7, 1000, u32::MAX] {
        let (mut names, mut offset, mut parts) = (Vec::new(), 0, 0);
        loop {
            let listed = rig.list_from(A, rig.here, (offset, most), false);
            let (entries, end) = listed.expect("entries");
            assert!(entries.len() <= wiglaf_wire::view::MAX_ENTRIES.min(most as usize));
            names.extend(entries.iter().map(|entry| entry.name.clone()));
            offset = entries.last().map_or(offset, |entry| entry.next);
            parts += 1;
            if end {
                break;
            }
        }
        assert!(parts > 2);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), FILES + 2, "{most} at a time");
    }
    // Two that read by turns do not disturb each other, nor does it if entries go.
    let (first, _) = rig
        .list_from(A, rig.here, (0, 100), false)
        .expect("entries");
    rig.list_from(B, rig.here, (0, 10), false).expect("entries");
    for entry in &first {
        if !entry.name.starts_with(b".") {
            let name = String::from_utf8(entry.name.clone()).expect("a name");
            rig.remove(A, &name, false).expect("removed");
        }
    }
    let mut rest = 0;
    let mut offset = first.last().expect("some").next;
    loop {
        let listed = rig.list_from(A, rig.here, (offset, 100), false);
        let (entries, end) = listed.expect("entries");
        rest += entries.len();
        offset = entries.last().map_or(offset, |entry| entry.next);
        if end {
            break;
        }
    }
    assert_eq!(first.len() + rest, FILES + 2);
}

#[test]
fn what_is_listed_is_found_when_it_is_used() {
    let mut rig = Rig::new();
    for name in ["kept", "replaced", "removed", "moved"] {
        rig.write(name, name);
    }
    let before = rig.export.len();
    let listed = rig.list(A, true);
    assert_eq!(rig.export.len(), before + 4);
    let told = |name: &str| {
        let entry = listed.iter().find(|entry| entry.name == name.as_bytes());
        let attributes = entry.expect("listed").attributes.clone();
        attributes.expect("with attributes").file
    };
    // The head does as it likes, and the inodes are used again at once.
    elsewhere(
        &mut rig,
        "rm replaced; echo new >replaced; rm removed; mv moved gone; touch other",
    );
    let content = rig.read(A, told("kept"), None, 0, 100);
    assert_eq!(content, Ok(b"kept".to_vec()));
    for name in ["replaced", "removed", "moved"] {
        assert_eq!(rig.attributes(A, told(name)), Err(Errno::STALE), "{name}");
    }
    let new = rig.look_up(A, "replaced");
    assert_ne!(new.file, told("replaced"));
    let content = rig.read(A, new.file, None, 0, 100);
    assert_eq!(content, Ok(b"new\n".to_vec()));
    // Each was told once by the listing.
    for name in ["kept", "replaced", "removed", "moved"] {
        let file = told(name);
        rig.tell(A, Ask::Forget { file, count: 1 });
        assert_eq!(rig.attributes(A, file), Err(Errno::STALE));
    }
    assert_eq!(rig.export.len(), before + 1);
}

#[test]
fn listed_files_that_a_node_removes_or_moves_stay_usable() {
    let mut rig = Rig::new();
    for name in ["removed", "moved", "covered"] {
        rig.write(name, name);
    }
    let listed = rig.list(A, true);
    let file = |at: usize| listed[at].attributes.clone().expect("attributes").file;
    let (covered, moved, removed) = (file(0), file(1), file(2));
    rig.remove(B, "removed", false).expect("removed");
    rig.rename(B, "moved", "covered", 0).expect("renamed");
    for (file, content) in [(covered, "covered"), (moved, "moved"), (removed, "removed")] {
        let read = rig.read(A, file, None, 0, 100);
        assert_eq!(read, Ok(content.as_bytes().to_vec()));
    }
    assert_eq!(rig.attributes(A, covered).expect("known").links, 0);
    let opened = rig.open(A, removed, RDONLY).expect("opened");
    assert_eq!(opened.content.as_deref(), Some(&b"removed"[..]));
}

#[test]
fn there_may_be_more_files_than_descriptors() {
    const MOST: usize = 8;
    let mut rig = Rig::new();
    rig.export.table.held.set_most(MOST);
    std::fs::create_dir_all(rig.file("one/two/three")).expect("directories");
    let path = rig.file("one/two/three");
    let deep = rig.find(A, &path).file;
    let mut files = Vec::new();
    for number in 0..100 {
        let name = format!("f{number}");
        std::fs::write(path.join(&name), &name).expect("a file");
        let file = rig.look_up_in(A, deep, name.as_bytes()).file;
        files.push((file, name));
    }
    let held = |rig: &Rig| rig.export.table.held.count();
    assert!(held(&rig) <= MOST, "{}", held(&rig));
    let all_there = |rig: &mut Rig| {
        for (file, name) in &files {
            let content = rig.read(A, *file, None, 0, 100);
            assert_eq!(content, Ok(name.clone().into_bytes()));
            assert!(held(rig) <= MOST + 1);
        }
    };
    all_there(&mut rig);
    // The directories may be moved by a node, and forgotten.
    rig.rename(B, "one", "moved", 0).expect("renamed");
    all_there(&mut rig);
    let two = rig.file("moved/two");
    let two = rig.find(A, &two).file;
    rig.tell(
        A,
        Ask::Forget {
            file: two,
            count: 9,
        },
    );
    rig.tell(
        A,
        Ask::Forget {
            file: deep,
            count: 9,
        },
    );
    assert_eq!(rig.attributes(A, two), Err(Errno::STALE));
    all_there(&mut rig);
    // What is moved or replaced by the head is not taken for what it was.
    elsewhere(
        &mut rig,
        "cd moved/two/three; mv f1 g1; rm f2; echo >f2; mv f3 ../f3",
    );
    let mut gone = 0;
    for (file, name) in &files {
        match rig.read(A, *file, None, 0, 100) {
            Ok(content) => assert_eq!(content, name.as_bytes()),
            Err(errno) => {
                assert_eq!(errno, Errno::STALE);
                assert!(["f1", "f2", "f3"].contains(&name.as_str()));
                gone += 1;
            }
        }
    }
    assert!(gone >= 1);
    // One that a node removes keeps its descriptor, and goes when it is forgotten.
    let (file, name) = &files[50];
    let deep = rig.file("moved/two/three");
    let deep = rig.find(A, &deep).file;
    let what = Ask::Remove {
        parent: deep,
        name: name.clone().into_bytes(),
        directory: false,
    };
    rig.done(A, what).expect("removed");
    for (other, _) in &files[60..] {
        rig.read(A, *other, None, 0, 100).expect("read");
    }
    let content = rig.read(A, *file, None, 0, 100);
    assert_eq!(content, Ok(name.clone().into_bytes()));
    for link in [A, B] {
        rig.export.close(link);
    }
    assert_eq!((rig.export.len(), held(&rig)), (1, 1));
}

#[test]
fn very_deep_directories_are_forgotten() {
    const DEPTH: usize = 3000;
    let mut rig = Rig::new();
    rig.export.table.held.set_most(8);
    let mut parent = rig.here;
    for _ in 0..DEPTH {
        let what = Ask::Make {
            parent,
            name: b"d".to_vec(),
            what: NewFile::Directory,
            mode: 0o700,
            umask: 0,
        };
        let made = rig.entry(A, what).expect("made").expect("there");
        parent = made.file;
    }
    rig.export.close(A);
    rig.export.close(B);
    assert_eq!(rig.export.len(), 1);
    elsewhere(&mut rig, "rm -r d");
}
