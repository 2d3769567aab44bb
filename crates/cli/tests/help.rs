//! The help texts, as users read them. They are the reference, so a change shows here.

use std::process::Command;

fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_wiglaf"))
        .args(args)
        .arg("--help")
        .env("COLUMNS", "100")
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_first_page() {
    insta::assert_snapshot!("wiglaf", help(&[]));
}

#[test]
fn every_command() {
    for name in [
        "demo", "up", "down", "run", "make", "build", "ps", "kill", "jobs", "wait", "logs", "cp",
        "nodes", "node", "view", "doctor", "init", "head",
    ] {
        insta::assert_snapshot!(name, help(&[name]));
    }
}

#[test]
fn every_action_on_nodes() {
    for name in ["show", "set", "drain", "resume", "token", "agent"] {
        insta::assert_snapshot!(format!("node-{name}"), help(&["node", name]));
    }
}

#[test]
fn every_action_on_views() {
    for name in ["status", "check"] {
        insta::assert_snapshot!(format!("view-{name}"), help(&["view", name]));
    }
}
