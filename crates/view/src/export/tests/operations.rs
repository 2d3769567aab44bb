//! Each operation, and its errors.

use super::*;

const S_IFIFO: u32 = 0o010_000;
const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

#[test]
fn files_are_read_within_bounds() {
    let mut rig = Rig::new();
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|byte| byte.to_le_bytes()[1])
        .collect();
    rig.write("file", &bytes);
    let file = rig.look_up(A, "file").file;
    let opened = rig.open(A, file, RDONLY).expect("opened");
    assert_eq!(opened.content, None);
    let here = rig.here;
    for handle in [None, Some(opened.handle)] {
        let read = rig.read(A, file, handle, 5, 10);
        assert_eq!(read, Ok(bytes[5..15].to_vec()));
        let most = rig.read(A, file, handle, 0, u32::MAX).expect("data");
        assert_eq!(most.len(), wiglaf_wire::view::MAX_DATA_BYTES as usize);
        let end = rig.read(A, file, handle, 2_999_990, 4096);
        assert_eq!(end, Ok(bytes[2_999_990..].to_vec()));
        assert_eq!(rig.read(A, file, handle, 3_000_000, 4096), Ok(vec![]));
        assert!(rig.read(A, file, handle, u64::MAX, 4096).is_err());
    }
    assert_eq!(rig.try_look_up(A, file, b"x"), Err(Errno::NOTDIR));
    assert_eq!(rig.list_from(A, file, (0, 10), false), Err(Errno::NOTDIR));
    assert_eq!(rig.read(A, here, None, 0, 1), Err(Errno::ISDIR));
    // A handle belongs to its link, and to its file.
    let foreign = rig.write_to(B, opened.handle, 0, b"x");
    assert_eq!(foreign, Err(Errno::BADF));
    let other = rig.read(A, here, Some(opened.handle), 0, 1);
    assert_eq!(other, Err(Errno::BADF));
    assert_eq!(
        rig.write_to(A, opened.handle, 0, b"x"),
        Err(Errno::BADF),
        "it is open for reading"
    );
    let handle = opened.handle;
    rig.tell(A, Ask::Close { handle });
    let closed = rig.read(A, file, Some(handle), 0, 1);
    assert_eq!(closed, Err(Errno::BADF));
}

#[test]
fn small_files_come_with_the_opening() {
    let mut rig = Rig::new();
    let most = usize::try_from(wiglaf_wire::view::MAX_SMALL_FILE_BYTES).expect("small");
    for (size, comes) in [(0, true), (1, true), (most, true), (most + 1, false)] {
        rig.write("file", vec![b'x'; size]);
        let file = rig.look_up(A, "file").file;
        let opened = rig.open(A, file, RDONLY).expect("opened");
        let content = opened.content.map(|content| content.len());
        assert_eq!(content, comes.then_some(size));
        assert_eq!(opened.attributes.size, size as u64);
        // What can't be read does not come.
        let opened = rig.open(A, file, WRONLY).expect("opened");
        assert_eq!(opened.content, None);
    }
}

#[test]
fn nothing_but_regular_files_is_opened() {
    let mut rig = Rig::new();
    let special = NewFile::Special { device: 0 };
    let fifo = rig.make(A, "fifo", special, S_IFIFO | 0o644).file;
    let text = NewFile::Link(b"a/b".to_vec());
    let link = rig.make(A, "link", text, 0o777).file;
    let here = rig.here;
    for (file, errno) in [
        (fifo, Errno::NXIO),
        (link, Errno::LOOP),
        (here, Errno::ISDIR),
    ] {
        assert_eq!(rig.open(A, file, RDONLY).err(), Some(errno));
        assert_eq!(rig.read(A, file, None, 0, 1), Err(errno));
    }
    let text = rig.data(A, Ask::ReadLink { file: link });
    assert_eq!(text, Ok(b"a/b".to_vec()));
    let none = rig.data(A, Ask::ReadLink { file: fifo });
    assert_eq!(none, Err(Errno::INVAL));
    // Nor in the place of a new file: the node looks again.
    for name in ["fifo", "link"] {
        let created = rig.create(A, name, RDWR);
        assert_eq!(created.err(), Some(Errno::STALE));
    }
    let truncated = SetAttributes {
        size: Some(0),
        ..SetAttributes::default()
    };
    assert_eq!(rig.set(A, fifo, truncated.clone()), Err(Errno::INVAL));
    assert_eq!(rig.set(A, here, truncated), Err(Errno::ISDIR));
}

#[test]
fn new_files_have_the_questions_mode() {
    let mut rig = Rig::new();
    let directory = rig.make(A, "directory", NewFile::Directory, 0o777);
    assert_eq!(directory.mode, 0o040_755);
    let special = NewFile::Special { device: 0 };
    let fifo = rig.make(A, "fifo", special, S_IFIFO | 0o666);
    assert_eq!(fifo.mode, S_IFIFO | 0o644);
    let opened = rig.create(A, "file", RDWR).expect("created");
    assert_eq!(opened.attributes.mode, 0o100_644);
    assert_eq!(opened.content, Some(Vec::new()));
    let again = rig.create(A, "file", RDWR | EXCL);
    assert_eq!(again.err(), Some(Errno::EXIST));
    let made = rig.try_make(A, "file", NewFile::Directory, 0o755);
    assert_eq!(made, Err(Errno::EXIST));
    assert_eq!(rig.create(A, "directory", RDWR).err(), Some(Errno::ISDIR));
}

#[test]
fn a_file_is_created_opened_and_emptied() {
    let mut rig = Rig::new();
    let opened = rig.create(A, "file", RDWR | EXCL).expect("created");
    let written = rig.write_to(A, opened.handle, 2, b"abc").expect("written");
    assert_eq!(written.size, 5);
    assert_eq!(std::fs::read(rig.file("file")).expect("data"), b"\0\0abc");
    let again = rig.create(B, "file", RDONLY).expect("opened");
    assert_eq!(again.file, opened.file);
    assert_eq!(again.content.as_deref(), Some(&b"\0\0abc"[..]));
    let handle = HandleId(1);
    let reused = Ask::Open {
        file: opened.file,
        flags: RDONLY,
        handle,
        content: false,
    };
    assert_eq!(rig.ask(A, reused), Err(Errno::INVAL), "the number is taken");
    let emptied = rig.create(A, "file", RDWR | TRUNC).expect("opened");
    assert_eq!(emptied.attributes.size, 0);
    // Each answer to a `Create` told the file once.
    let file = opened.file;
    rig.tell(A, Ask::Forget { file, count: 1 });
    assert!(rig.attributes(A, file).is_ok());
    rig.tell(A, Ask::Forget { file, count: 1 });
    assert_eq!(rig.attributes(A, file), Err(Errno::STALE));
    // What is open stays so.
    assert_eq!(rig.write_to(A, opened.handle, 0, b"x").map(|_| ()), Ok(()));
}

#[test]
fn appending_links_do_not_overwrite_each_other() {
    let mut rig = Rig::new();
    let one = rig.create(A, "log", WRONLY | APPEND).expect("created");
    let two = rig.create(B, "log", WRONLY | APPEND).expect("opened");
    for _ in 0..10 {
        rig.write_to(A, one.handle, 0, b"aa").expect("written");
        rig.write_to(B, two.handle, 0, b"b").expect("written");
    }
    let content = std::fs::read(rig.file("log")).expect("data");
    assert_eq!(content, b"aab".repeat(10));
}

#[test]
fn attributes_are_set() {
    let mut rig = Rig::new();
    rig.write("file", "content");
    let file = rig.look_up(A, "file").file;
    let set = SetAttributes {
        mode: Some(0o640),
        size: Some(3),
        accessed: Some(SetTime::At(10, 20)),
        modified: Some(SetTime::At(-5, 999_999_999)),
        ..SetAttributes::default()
    };
    let told = rig.set(A, file, set).expect("set");
    assert_eq!((told.mode, told.size), (0o100_640, 3));
    assert_eq!(told.times[..2], [(10, 20), (-5, 999_999_999)]);
    let now = SetAttributes {
        modified: Some(SetTime::Now),
        ..SetAttributes::default()
    };
    let told = rig.set(A, file, now).expect("set");
    assert_eq!(told.times[0], (10, 20));
    assert!(told.times[1].0 > 1_000_000_000);
    // A symbolic link's own times.
    let text = NewFile::Link(b"file".to_vec());
    let link = rig.make(A, "link", text, 0o777).file;
    let old = SetAttributes {
        modified: Some(SetTime::At(7, 8)),
        ..SetAttributes::default()
    };
    assert_eq!(rig.set(A, link, old).expect("set").times[1], (7, 8));
    assert_ne!(rig.attributes(A, file).expect("told").times[1], (7, 8));
    let mode = SetAttributes {
        mode: Some(0o600),
        ..SetAttributes::default()
    };
    assert_eq!(rig.set(A, link, mode), Err(Errno::OPNOTSUPP));
    // Through the open file, whatever the rights are now.
    let opened = rig.open(A, file, RDWR).expect("opened");
    let set = SetAttributes {
        size: Some(1000),
        ..SetAttributes::default()
    };
    let what = Ask::SetAttributes {
        file,
        handle: Some(opened.handle),
        set,
    };
    assert_eq!(rig.attributes_of(A, what).expect("set").size, 1000);
}

#[test]
fn names_are_removed_and_moved() {
    let mut rig = Rig::new();
    let directory = rig.make(A, "directory", NewFile::Directory, 0o755).file;
    rig.write("directory/inner", "inner");
    rig.write("file", "file");
    assert_eq!(rig.remove(A, "directory", true), Err(Errno::NOTEMPTY));
    assert_eq!(rig.remove(A, "directory", false), Err(Errno::ISDIR));
    assert_eq!(rig.remove(A, "file", true), Err(Errno::NOTDIR));
    assert_eq!(rig.remove(A, "none", false), Err(Errno::NOENT));
    let over = rig.rename(A, "file", "directory", 0);
    assert_eq!(over, Err(Errno::ISDIR));
    rig.write("other", "other");
    let kept = rig.rename(A, "file", "other", NOREPLACE);
    assert_eq!(kept, Err(Errno::EXIST));
    rig.rename(A, "file", "other", EXCHANGE).expect("exchanged");
    assert_eq!(std::fs::read(rig.file("file")).expect("data"), b"other");
    let what = Ask::Rename {
        from_parent: rig.here,
        from: b"other".to_vec(),
        to_parent: directory,
        to: b"moved".to_vec(),
        flags: 0,
    };
    rig.done(A, what).expect("moved");
    let moved = std::fs::read(rig.file("directory/moved"));
    assert_eq!(moved.expect("data"), b"file");
    rig.remove(A, "file", false).expect("removed");
    assert!(!rig.file("file").exists());
}

#[test]
fn files_get_more_names() {
    let mut rig = Rig::new();
    rig.write("file", "content");
    let file = rig.look_up(A, "file").file;
    let name = b"other".to_vec();
    let parent = rig.here;
    let what = Ask::Link { file, parent, name };
    let linked = rig.entry(A, what.clone()).expect("linked").expect("there");
    assert_eq!((linked.file, linked.links), (file, 2));
    assert_eq!(rig.entry(A, what), Err(Errno::EXIST));
    // A symbolic link itself, not what it names.
    let text = NewFile::Link(b"file".to_vec());
    let link = rig.make(A, "link", text, 0o777);
    let what = Ask::Link {
        file: link.file,
        parent,
        name: b"link2".to_vec(),
    };
    let linked = rig.entry(A, what).expect("linked").expect("there");
    assert_eq!(linked.file, link.file);
}

#[test]
fn a_file_without_a_name_gets_one() {
    let mut rig = Rig::new();
    rig.handles += 1;
    let handle = HandleId(rig.handles);
    let what = Ask::Temporary {
        parent: rig.here,
        mode: 0o666,
        umask: 0o077,
        flags: RDWR,
        handle,
    };
    let opened = rig.opened(A, handle, what).expect("opened");
    assert_eq!(opened.attributes.mode, 0o100_600);
    assert_eq!(opened.attributes.links, 0);
    rig.write_to(A, handle, 0, b"content").expect("written");
    let what = Ask::Link {
        file: opened.file,
        parent: rig.here,
        name: b"named".to_vec(),
    };
    let linked = rig.entry(A, what).expect("linked").expect("there");
    assert_eq!((linked.file, linked.links), (opened.file, 1));
    assert_eq!(std::fs::read(rig.file("named")).expect("data"), b"content");
}

#[test]
fn space_is_allocated_punched_and_found() {
    let mut rig = Rig::new();
    let opened = rig.create(A, "file", RDWR).expect("created");
    let handle = opened.handle;
    let allocate = |offset, length, mode| Ask::Allocate {
        handle,
        offset,
        length,
        mode,
    };
    let told = rig.attributes_of(A, allocate(0, 1 << 20, 0));
    assert_eq!(told.expect("allocated").size, 1 << 20);
    rig.write_to(A, handle, 0, &[1; 1 << 16]).expect("written");
    // FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE.
    let told = rig.attributes_of(A, allocate(0, 4096, 3));
    assert_eq!(told.expect("punched").size, 1 << 20);
    let seek = |offset, whence| Ask::Seek {
        handle,
        offset,
        whence,
    };
    assert_eq!(rig.ask(A, seek(0, 3)), Ok(Reply::Count(4096)));
    assert_eq!(rig.ask(A, seek(0, 4)), Ok(Reply::Count(0)));
    assert_eq!(rig.ask(A, seek(1 << 20, 3)), Err(Errno::NXIO));
    assert_eq!(rig.ask(A, seek(0, 0)), Err(Errno::INVAL));
    for data_only in [false, true] {
        for handle in [None, Some(handle)] {
            let file = opened.file;
            let what = Ask::Sync {
                file,
                handle,
                data_only,
            };
            rig.done(A, what).expect("synced");
        }
    }
    let what = Ask::Sync {
        file: rig.here,
        handle: None,
        data_only: false,
    };
    rig.done(A, what).expect("synced");
}

#[test]
fn ranges_are_copied_on_the_head() {
    let mut rig = Rig::new();
    rig.write("from", "0123456789");
    let from = rig.look_up(A, "from").file;
    let from = rig.open(A, from, RDONLY).expect("opened").handle;
    let to = rig.create(A, "to", RDWR).expect("created");
    rig.ignore_news();
    let what = Ask::Copy {
        from,
        from_offset: 2,
        to: to.handle,
        to_offset: 1,
        length: 4,
    };
    assert_eq!(rig.ask(A, what), Ok(Reply::Count(4)));
    assert_eq!(std::fs::read(rig.file("to")).expect("data"), b"\x002345");
    assert_eq!(rig.news(A), [changed(to.file, true)]);
}

#[test]
fn extended_attributes_are_kept() {
    let mut rig = Rig::new();
    rig.write("file", "");
    let told = rig.look_up(A, "file");
    let file = told.file;
    let name = b"user.colour".to_vec();
    let read = Ask::Xattr {
        file,
        name: name.clone(),
    };
    assert_eq!(rig.data(A, read.clone()), Err(Errno::NODATA));
    for value in [b"red".to_vec(), vec![b'x'; 2000], Vec::new()] {
        let what = Ask::SetXattr {
            file,
            name: name.clone(),
            value: value.clone(),
            flags: 0,
            drop_set_gid: false,
        };
        assert!(rig.attributes_of(A, what).expect("set").xattrs);
        assert_eq!(rig.data(A, read.clone()), Ok(value));
    }
    let create = Ask::SetXattr {
        file,
        name: name.clone(),
        value: Vec::new(),
        flags: 1,
        drop_set_gid: false,
    };
    assert_eq!(rig.ask(A, create), Err(Errno::EXIST));
    let names = rig.data(A, Ask::ListXattrs { file }).expect("names");
    let mut names = names.split_inclusive(|byte| *byte == 0);
    assert!(names.any(|one| one == b"user.colour\0"));
    let remove = Ask::RemoveXattr { file, name };
    let after = rig.attributes_of(A, remove.clone()).expect("removed");
    assert_eq!(after.xattrs, told.xattrs);
    assert_eq!(rig.ask(A, remove), Err(Errno::NODATA));
    let long = Ask::Xattr {
        file,
        name: vec![b'x'; 256],
    };
    assert_eq!(rig.data(A, long), Err(Errno::RANGE));
}

#[test]
fn acls_are_extended_attributes() {
    let mut rig = Rig::new();
    rig.write("file", "");
    let file = rig.look_up(A, "file").file;
    // Version 2: owner rw, user 1234 r, group r, mask r, others none.
    let acl: Vec<u8> = [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, 1234),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ]
    .iter()
    .fold(2_u32.to_le_bytes().to_vec(), |mut acl, (tag, bits, id)| {
        acl.extend(tag.to_le_bytes());
        acl.extend(bits.to_le_bytes());
        acl.extend(id.to_le_bytes());
        acl
    });
    let name = b"system.posix_acl_access".to_vec();
    let what = Ask::SetXattr {
        file,
        name: name.clone(),
        value: acl.clone(),
        flags: 0,
        drop_set_gid: false,
    };
    match rig.attributes_of(A, what) {
        Err(Errno::OPNOTSUPP) => println!("SKIPPED: no ACLs on this file system"),
        told => {
            let told = told.expect("set");
            assert_eq!(told.mode & 0o777, 0o640);
            assert!(told.xattrs);
            assert_eq!(rig.data(A, Ask::Xattr { file, name }), Ok(acl));
        }
    }
}

#[test]
fn space_is_the_file_systems() {
    let mut rig = Rig::new();
    let file = rig.here;
    let Ok(Reply::Space(space)) = rig.ask(A, Ask::Space { file }) else {
        panic!("no space");
    };
    let real = rustix::fs::statvfs(&rig.path).expect("its space");
    assert_eq!(space.blocks, real.f_blocks);
    assert_eq!(space.name_length, 255);
    assert_eq!(u64::from(space.block_size), real.f_bsize);
}

#[test]
fn a_full_file_system_is_an_error_for_the_writer() {
    if !is_root() {
        return;
    }
    let small = tempfile::tempdir().expect("a directory");
    let flags = rustix::mount::MountFlags::empty();
    let options = Some(c"size=64k");
    rustix::mount::mount("tmpfs", small.path(), "tmpfs", flags, options).expect("mounted");
    let path = small.path().canonicalize().expect("its path");
    {
        let mut rig = Rig::new();
        let parent = rig.find(A, &path).file;
        let handle = HandleId(77);
        let what = Ask::Create {
            parent,
            name: b"file".to_vec(),
            mode: 0o600,
            umask: 0,
            flags: RDWR,
            handle,
        };
        let file = rig.opened(A, handle, what).expect("created").file;
        let written = rig.write_to(A, handle, 0, &[1; 1 << 17]);
        assert_eq!(written, Err(Errno::NOSPC));
        // A part was written, and the node does not know which.
        assert_eq!(
            rig.news(A)[..2],
            [changed(parent, false), changed(file, true)]
        );
        // Nor is a file moved or linked there.
        rig.write("here", "x");
        let here = rig.look_up(A, "here").file;
        let name = b"there".to_vec();
        let linked = rig.entry(
            A,
            Ask::Link {
                file: here,
                parent,
                name: name.clone(),
            },
        );
        assert_eq!(linked, Err(Errno::XDEV));
        let what = Ask::Rename {
            from_parent: rig.here,
            from: b"here".to_vec(),
            to_parent: parent,
            to: name,
            flags: 0,
        };
        assert_eq!(rig.done(A, what), Err(Errno::XDEV));
    }
    let detach = rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(small.path(), detach).expect("unmounted");
}
