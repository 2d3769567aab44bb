//! Who is told what unasked.

use super::*;

#[test]
fn a_change_is_told_once_to_who_was_told_before() {
    let mut rig = Rig::new();
    rig.write("file", "1");
    let file = rig.look_up(A, "file").file;
    let opened = rig.open(A, file, RDWR).expect("opened");
    rig.write_to(A, opened.handle, 0, b"2").expect("written");
    assert_eq!(rig.news(B), []);
    rig.look_up(B, "file");
    rig.write_to(A, opened.handle, 0, b"3").expect("written");
    rig.write_to(A, opened.handle, 0, b"4").expect("written");
    assert_eq!(rig.news(B), [changed(file, true)]);
    assert_eq!(rig.news(A), []);
    rig.attributes(B, file).expect("told");
    rig.write_to(A, opened.handle, 0, b"5").expect("written");
    assert_eq!(rig.news(B), [changed(file, true)]);
    // After new attributes alone, what it holds is still believed.
    rig.read(B, file, None, 0, 1).expect("read");
    let mode = SetAttributes {
        mode: Some(0o600),
        ..SetAttributes::default()
    };
    rig.set(A, file, mode.clone()).expect("set");
    rig.set(A, file, mode).expect("set");
    assert_eq!(rig.news(B), [changed(file, false)]);
    rig.write_to(A, opened.handle, 0, b"6").expect("written");
    assert_eq!(rig.news(B), [changed(file, true)]);
    assert_eq!(rig.news(A), []);
}

#[test]
fn names_are_told_to_who_asked_for_them() {
    let mut rig = Rig::new();
    let here = rig.here;
    for name in [&b"one"[..], b"two"] {
        assert_eq!(rig.try_look_up(B, here, name), Ok(None));
    }
    rig.ignore_news();
    rig.make(A, "three", NewFile::Directory, 0o755);
    assert_eq!(rig.news(B), [changed(here, true)]);
    rig.make(A, "one", NewFile::Directory, 0o755);
    assert_eq!(rig.news(B), [renamed(here, "one")]);
    rig.remove(A, "one", true).expect("removed");
    assert_eq!(rig.news(B), []);
    // Who changed them knows that they are gone, and is told of what comes.
    rig.ignore_news();
    rig.make(B, "one", NewFile::Directory, 0o755);
    assert!(rig.news(A).contains(&renamed(here, "one")));
    // Whoever has the listing is told of every name, and of each once.
    rig.list(B, false);
    rig.ignore_news();
    rig.write("new", "");
    rig.rename(A, "new", "newer", 0).expect("renamed");
    let told = rig.news(B);
    assert_eq!(
        told,
        [
            changed(here, true),
            renamed(here, "new"),
            renamed(here, "newer")
        ]
    );
    rig.remove(A, "newer", false).expect("removed");
    assert_eq!(rig.news(B), []);
    rig.remove(A, "three", true).expect("removed");
    assert_eq!(rig.news(B), [renamed(here, "three")]);
    assert_eq!(rig.try_look_up(B, here, b"newer"), Ok(None));
    rig.make(A, "newer", NewFile::Directory, 0o755);
    assert_eq!(rig.news(B), [renamed(here, "newer")]);
}

#[test]
fn very_many_names_are_all_of_them() {
    let mut rig = Rig::new();
    let here = rig.here;
    for name in 0..2000 {
        let name = format!("absent{name}");
        assert_eq!(rig.try_look_up(B, here, name.as_bytes()), Ok(None));
    }
    rig.ignore_news();
    for name in ["absent0", "absent1999", "other"] {
        rig.make(A, name, NewFile::Directory, 0o755);
        assert!(rig.news(B).contains(&renamed(here, name)));
    }
}

#[test]
fn side_effects_are_told_to_who_caused_them() {
    let mut rig = Rig::new();
    let here = rig.here;
    rig.write("file", "1");
    rig.write("over", "1");
    let file = rig.look_up(A, "file").file;
    let over = rig.look_up(A, "over").file;
    rig.look_up(B, "file");
    rig.attributes(A, here).expect("told");
    rig.attributes(B, here).expect("told");
    let link = Ask::Link {
        file,
        parent: here,
        name: b"name".to_vec(),
    };
    rig.entry(A, link).expect("linked");
    // Its answer has the file's new attributes, but not the directory's.
    assert_eq!(rig.news(A), [changed(here, false)]);
    assert_eq!(rig.news(B), [changed(here, true), changed(file, false)]);
    rig.remove(A, "name", false).expect("removed");
    assert_eq!(rig.news(A), [changed(file, false)]);
    rig.attributes(A, file).expect("told");
    rig.rename(A, "file", "over", 0).expect("renamed");
    assert_eq!(rig.news(A), [changed(file, false), changed(over, false)]);
    assert_eq!(rig.news(B), [renamed(here, "file")]);
}

#[test]
fn changes_go_before_the_answer() {
    let mut rig = Rig::new();
    rig.write("file", "1");
    let file = rig.look_up(A, "file").file;
    rig.ids += 1;
    let question = Question {
        id: rig.ids,
        uid: 0,
        gid: 0,
        what: Ask::Remove {
            parent: rig.here,
            name: b"file".to_vec(),
            directory: false,
        },
    };
    let mut out = Vec::new();
    rig.export.question(A, question, &mut out);
    out.retain(|(link, _)| *link == A);
    let done = Answer {
        id: rig.ids,
        result: Ok(Reply::Done),
    };
    assert_eq!(
        out,
        [
            (
                A,
                Told::Changes(vec![changed(rig.here, false), changed(file, false)])
            ),
            (A, Told::Answer(done))
        ]
    );
}

#[test]
fn what_the_deputy_writes_itself_is_told() {
    let mut rig = Rig::new();
    rig.write("log", "");
    let file = rig.look_up(A, "log").file;
    let log = std::fs::File::open(rig.file("log")).expect("the log");
    rig.write("log", "line");
    rig.export.wrote(std::os::fd::AsFd::as_fd(&log));
    assert_eq!(rig.news(A), [changed(file, true)]);
    assert_eq!(rig.news(B), []);
}

#[test]
fn a_bind_mount_is_told_too() {
    if !is_root() {
        return;
    }
    let mut rig = Rig::new();
    let seen = rig.file("seen");
    std::fs::create_dir(&seen).expect("a directory");
    std::fs::create_dir(rig.file("real")).expect("a directory");
    rig.write("real/file", "1");
    rustix::mount::mount_bind(rig.file("real"), &seen).expect("mounted");
    let one = rig.find(A, &rig.file("real/file")).file;
    let other = rig.find(A, &rig.file("seen/file")).file;
    assert_ne!(one, other);
    let opened = rig.open(A, one, RDWR).expect("opened");
    rig.write_to(A, opened.handle, 0, b"2").expect("written");
    assert_eq!(rig.news(A), [changed(other, true)]);
    rig.export.close(A);
    rig.export.close(B);
    let detach = rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(&seen, detach).expect("unmounted");
}
