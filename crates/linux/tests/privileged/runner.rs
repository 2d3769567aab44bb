//! Forks for each test, bounds its time and prints as the standard harness does.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork, NamespaceFlags};

/// One test.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(),
}

/// What a test wants of its surroundings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Root,
    /// To be process 1 of a PID namespace with a `/proc` of its own.
    PidNamespace,
}

/// No test takes a tenth of this.
const TEST_TIMEOUT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};
/// What a test's process exits with when it panics.
const PANICKED: i32 = 101;

pub(crate) fn run(groups: &[&[Test]]) -> ExitCode {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let (mut passed, mut failed) = (0, 0);
    for test in groups.iter().copied().flatten() {
        if filter
            .as_ref()
            .is_some_and(|filter| !test.name.contains(filter))
        {
            continue;
        }
        if test.needs != Needs::Nothing && !rustix::process::geteuid().is_root() {
            say(&format!("SKIPPED: {} needs root", test.name));
            passed += 1;
            continue;
        }
        let outcome = run_one(test);
        failed += usize::from(outcome != "ok");
        passed += usize::from(outcome == "ok");
        say(&format!("test {} ... {outcome}", test.name));
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured"
    ));
    ExitCode::from(u8::from(failed != 0))
}

fn run_one(test: &Test) -> String {
    let forked = match test.needs {
        Needs::PidNamespace => process::clone_into(NamespaceFlags::NEWPID | NamespaceFlags::NEWNS),
        Needs::Nothing | Needs::Root => process::fork(),
    };
    let (pid, pidfd) = match forked.expect("a process for the test") {
        Fork::Parent { pid, pidfd } => (pid, pidfd),
        Fork::Child => {
            let result = std::panic::catch_unwind(|| {
                if test.needs == Needs::PidNamespace {
                    mount_own_proc();
                }
                (test.run)();
            });
            std::process::exit(if result.is_ok() { 0 } else { PANICKED });
        }
    };
    let mut ready = [PollFd::new(&pidfd, PollFlags::IN)];
    if poll(&mut ready, Some(&TEST_TIMEOUT)).expect("poll") == 0 {
        process::pidfd_send_signal(pidfd.as_fd(), 9).expect("kill");
        process::wait(pid, false).expect("wait");
        return "FAILED: timed out".to_owned();
    }
    let change = process::wait(pid, false).expect("wait").expect("it ended");
    match change.state {
        ChildState::Ended(ExitStatus::Exited(0)) => "ok".to_owned(),
        state => format!("FAILED: {state:?}"),
    }
}

fn mount_own_proc() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("private mounts");
    mount("proc", "/proc", "proc", MountFlags::empty(), None).expect("a /proc of our own");
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output");
}
