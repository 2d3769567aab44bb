//! The whole view on one machine: deputies in processes of their own with users' rights, the
//! mount in a private namespace, and ordinary programs in it.
//!
//! No standard harness: the mount namespace must be private before there is a second thread.

mod deputies;
mod tests;

use std::io::Write;
use std::process::ExitCode;

use rustix::mount::{MountPropagationFlags, mount_change};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|first| first == deputies::DEPUTY)
    {
        deputies::serve(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = hindrance() {
        say(&format!("SKIPPED: {reason}"));
        return ExitCode::SUCCESS;
    }
    unshare(NamespaceFlags::NEWNS).expect("a mount namespace");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("private mounts");
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests::ALL {
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

fn hindrance() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    device.err().map(|error| format!("/dev/fuse: {error}"))
}

pub(crate) fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output");
}
