//! The running kernel, and a small file system in memory behind it.
//!
//! No standard harness: the mount namespace must be private before there is a second thread.

mod memory;
mod served;
mod tests;

use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, mount_change};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};

/// Set for the run inside a user namespace.
const INSIDE: &str = "WIGLAF_FUSE_TEST_INSIDE";
/// A test that waits for the kernel for longer will do so for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// As a shell says of `timeout`.
const TIMED_OUT: i32 = 124;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(reason) = hindrance() {
        say(&format!("SKIPPED: {reason}"));
        return ExitCode::SUCCESS;
    }
    unshare(NamespaceFlags::NEWNS).expect("a mount namespace");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("private mounts");
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let (mut passed, mut failed) = (0, 0);
    let outside = if inside() { &[] } else { tests::OUTSIDE };
    for (name, test) in tests::ALL.iter().chain(outside) {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let good = std::panic::catch_unwind(|| within_patience(name, *test)).is_ok();
        failed += usize::from(!good);
        passed += usize::from(good);
        let verdict = if good { "ok" } else { "FAILED" };
        say(&format!("test {name} ... {verdict}"));
    }
    if filter.is_none() && !inside() {
        let good = in_a_user_namespace();
        failed += usize::from(!good);
        passed += usize::from(good);
        let verdict = if good { "ok" } else { "FAILED" };
        say(&format!("test all_in_a_user_namespace ... {verdict}"));
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
    let device = wiglaf_fuse::Device::open();
    device.err().map(|error| error.to_string())
}

/// Ends the process, and its mounts with it, if the kernel waits for an answer for ever.
fn within_patience(name: &'static str, test: fn()) {
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if is_over.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            say(&format!("test {name} ... FAILED: it hangs"));
            served::unmount_all();
            std::process::exit(TIMED_OUT);
        }
    });
    test();
    drop(over);
    watch.join().expect("the watch");
}

/// Everything again, by a root that is root only there.
fn in_a_user_namespace() -> bool {
    let own = std::env::current_exe().expect("a path");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]);
    let status = command.arg(own).env(INSIDE, "1").status();
    status.expect("unshare runs").success()
}

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

pub(crate) fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output");
}
