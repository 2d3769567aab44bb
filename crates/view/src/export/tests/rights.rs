//! What root's deputy does for other users on a node.

use super::*;

#[test]
fn roots_deputy_makes_files_that_are_the_askers() {
    if !is_root() {
        return;
    }
    let mut rig = Rig::new();
    rig.owner = (1234, 5678);
    let owner = |told: &Attributes| (told.uid, told.gid);
    let made = rig.make(A, "directory", NewFile::Directory, 0o755);
    assert_eq!(owner(&made), (1234, 5678));
    let opened = rig.create(A, "file", RDWR).expect("created");
    assert_eq!(owner(&opened.attributes), (1234, 5678));
    let text = NewFile::Link(b"file".to_vec());
    assert_eq!(owner(&rig.make(A, "link", text, 0o777)), (1234, 5678));
    rig.owner = (0, 0);
    let made = rig.make(A, "roots", NewFile::Directory, 0o755);
    assert_eq!(owner(&made), (0, 0));
}

#[test]
fn set_id_bits_go_when_the_node_says_so() {
    if !is_root() {
        return;
    }
    let mut rig = Rig::new();
    let opened = rig.create(A, "file", RDWR).expect("created");
    let file = opened.file;
    let set = |mode| SetAttributes {
        mode: Some(mode),
        ..SetAttributes::default()
    };
    let write = |drop_privileges| Ask::Write {
        handle: opened.handle,
        offset: 0,
        data: b"x".to_vec(),
        drop_privileges,
    };
    rig.set(A, file, set(0o6755)).expect("set");
    let kept = rig.attributes_of(A, write(false)).expect("written");
    assert_eq!(kept.mode & 0o7777, 0o6755);
    let dropped = rig.attributes_of(A, write(true)).expect("written");
    assert_eq!(dropped.mode & 0o7777, 0o755);
    // Without the right to execute, the set-gid bit means something else.
    rig.set(A, file, set(0o6744)).expect("set");
    let dropped = rig.attributes_of(A, write(true)).expect("written");
    assert_eq!(dropped.mode & 0o7777, 0o2744);
    rig.set(A, file, set(0o6755)).expect("set");
    let truncated = SetAttributes {
        size: Some(0),
        drop_privileges: true,
        ..SetAttributes::default()
    };
    let dropped = rig.set(A, file, truncated).expect("set");
    assert_eq!(dropped.mode & 0o7777, 0o755);
    // As an ordinary user who opens it to empty it.
    rig.set(A, file, set(0o6755)).expect("set");
    rig.owner = (1234, 1234);
    let emptied = rig.open(A, file, RDWR | TRUNC).expect("opened");
    assert_eq!(emptied.attributes.mode & 0o7777, 0o755);
}
