//! What a task has made is removed if the cluster fails it.

use wiglaf_wire::id::{JobId, TaskId};

use super::*;

const TASK: TaskId = TaskId {
    job: JobId(7),
    index: 0,
};

fn make(rig: &mut Rig, name: &str, what: NewFile) -> FileId {
    rig.tell(A, Ask::For { task: TASK });
    rig.make(A, name, what, 0o755).file
}

fn undo(rig: &mut Rig) -> Vec<(LinkId, Told)> {
    let mut out = Vec::new();
    rig.export.undo(TASK, &mut out);
    out
}

#[test]
fn only_what_a_task_made_and_is_still_there_goes() {
    let mut rig = Rig::new();
    make(&mut rig, "dir", NewFile::Directory);
    make(&mut rig, "link", NewFile::Link(b"x".to_vec()));
    rig.make(A, "not", NewFile::Directory, 0o755);
    make(&mut rig, "replaced", NewFile::Directory);
    assert!(
        rig.run(&["-c", "rmdir replaced; echo x >replaced"])
            .success()
    );
    // The other node believes it, and hears of its end; the first one's link may be gone.
    rig.look_up(B, "dir");
    rig.export.close(A);
    let told = undo(&mut rig);
    let names = told.iter().flat_map(|(link, told)| match told {
        Told::Changes(changes) if *link == B => changes.clone(),
        _ => Vec::new(),
    });
    let mut names =
        names.filter(|change| matches!(change, Change::Name { name, .. } if name == b"dir"));
    assert!(names.next().is_some());
    assert!(!rig.file("dir").exists() && rig.file("link").symlink_metadata().is_err());
    assert!(rig.file("not").exists() && rig.file("replaced").exists());
    assert!(undo(&mut rig).is_empty());
}

#[test]
fn what_is_kept_is_kept() {
    let mut rig = Rig::new();
    make(&mut rig, "dir", NewFile::Directory);
    rig.export.keep_made(TASK);
    undo(&mut rig);
    assert!(rig.file("dir").exists());
}

#[test]
fn names_are_followed() {
    let mut rig = Rig::new();
    rig.write("old", "old");
    let here = rig.here;
    for (name, to) in [("a", "b"), ("c", "old")] {
        make(&mut rig, name, NewFile::Link(b"x".to_vec()));
        let what = Ask::Rename {
            from_parent: here,
            from: name.into(),
            to_parent: here,
            to: to.into(),
            flags: 0,
        };
        rig.done(A, what).expect("renamed");
    }
    undo(&mut rig);
    assert!(rig.file("b").symlink_metadata().is_err());
    assert!(
        rig.file("old").symlink_metadata().is_ok(),
        "else there were neither"
    );
}
