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
        "nodes", "node", "boot", "image", "disk", "net", "view", "doctor", "init", "head",
    ] {
        insta::assert_snapshot!(name, help(&[name]));
    }
}

#[test]
fn every_action() {
    let actions: &[(&str, &[&str])] = &[
        (
            "node",
            &[
                "show", "set", "drain", "resume", "token", "agent", "adopt", "approve", "forget",
                "why", "log", "reboot", "halt", "poweroff", "wake", "remove",
            ],
        ),
        ("boot", &["enable", "disable", "status"]),
        (
            "image",
            &["build", "list", "show", "use", "write", "remove"],
        ),
        ("disk", &["show", "plan", "apply"]),
        ("view", &["status", "check"]),
    ];
    for (command, actions) in actions {
        for action in *actions {
            insta::assert_snapshot!(format!("{command}-{action}"), help(&[command, action]));
        }
    }
}

#[test]
fn the_gateway() {
    insta::assert_snapshot!("net-gateway", help(&["net", "gateway"]));
}
