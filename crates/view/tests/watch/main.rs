#![forbid(unsafe_code)]
//! The watch with real events: of the root file system, a tmpfs, and an overlay if there can be
//! one.
//!
//! No standard harness: the mount namespace must be private before there is a second thread, and
//! programs that change files are forked.

mod deputies;
mod scene;
mod tests;

use std::io::Write as _;
use std::process::ExitCode;

use rustix::mount::{MountPropagationFlags, mount_change};
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(errno) = Group::new(Queue::Unlimited) {
        say(&format!("SKIPPED: no fanotify group can be made: {errno}"));
        return ExitCode::SUCCESS;
    }
    unshare(NamespaceFlags::NEWNS).expect("a mount namespace");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("private mounts");
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests::ALL.iter().chain(deputies::ALL) {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let good = std::panic::catch_unwind(test).is_ok();
        failed += usize::from(!good);
        passed += usize::from(good);
        say(&format!(
            "test {name} ... {}",
            if good { "ok" } else { "FAILED" }
        ));
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured"
    ));
    ExitCode::from(u8::from(failed != 0))
}

pub(crate) fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output");
}
