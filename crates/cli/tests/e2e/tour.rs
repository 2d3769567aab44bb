//! The guided tour, as a stranger takes it.

use std::process::Command;

use crate::cluster::{ALICE, User, as_user, is_root, output_of, processes, skip, text, wiglaf};

fn take(user: User) {
    let tmp = tempfile::tempdir_in("/tmp").unwrap();
    if let User::Id(id) = user {
        std::os::unix::fs::chown(tmp.path(), Some(id), Some(id)).unwrap();
    }
    let mut command = as_user(user, wiglaf());
    command
        .arg("demo")
        .env("TMPDIR", tmp.path())
        .current_dir("/tmp");
    let output = output_of(command);
    let (said, wrong) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    let lines: Vec<_> = said.lines().collect();
    for line in ["n1", "exit code 42", "exit code 143 (128 + SIGTERM)"] {
        assert!(lines.contains(&line), "no {line:?}: {said}{wrong}");
    }
    let has_compiler = Command::new("cc").arg("--version").output().is_ok();
    for node in ["n1", "n2", "n3", "n4"] {
        let line = format!("from-{node}:hello from {node}");
        assert_eq!(lines.contains(&line.as_str()), has_compiler, "{said}");
    }
    // Others may not be let open the device.
    if user == User::Root && wiglaf_view::check_device().is_ok() {
        assert!(said.contains("HIT%"), "{said}");
    }
    assert!(said.contains("Everything is taken down again"), "{said}");
    assert_eq!(tmp.path().read_dir().unwrap().count(), 0);
    let marker = format!("WIGLAF_DIR={}", tmp.path().display());
    let left = processes().into_iter().filter(|pid| {
        std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| text(&env).contains(&marker))
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn everybody_can_take_the_tour() {
    if !is_root() {
        skip("clusters of this test are made by root");
        return;
    }
    take(User::Root);
    take(ALICE);
}
