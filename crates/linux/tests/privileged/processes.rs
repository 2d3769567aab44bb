//! Processes, their titles, signals, namespaces and mounts.

use crate::runner::{Needs, Test};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use wiglaf_linux::mount::{MountAttributes, mount_setattr, pivot_into};
use wiglaf_linux::namespace::{ForeignNamespace, Surrounding, Surroundings, setns, unshare};
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork, NamespaceFlags};
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "process::title",
        needs: Needs::Nothing,
        run: title,
    },
    Test {
        name: "process::waiting_and_signals",
        needs: Needs::Nothing,
        run: waiting_and_signals,
    },
    Test {
        name: "namespace::strangers_are_known",
        needs: Needs::Root,
        run: strangers_are_known,
    },
    Test {
        name: "mount::another_root",
        needs: Needs::PidNamespace,
        run: another_root,
    },
];

fn title() {
    let arguments = || fs::read("/proc/self/cmdline").expect("our arguments");
    let shown = || {
        let mut bytes = arguments();
        bytes.truncate(
            bytes
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |last| last + 1),
        );
        bytes
    };
    let comm = || fs::read_to_string("/proc/self/comm").expect("our name");
    // The last byte is not for use.
    let room = arguments().len() - 1;
    assert!(room > 3, "a path is longer than this");

    process::set_process_title("wig").expect("a title");
    assert_eq!(shown(), b"wig");
    assert_eq!(comm(), "wig\n");
    process::set_process_title("wiglaf deputy: ann").expect("a title");
    assert_eq!(comm(), "wiglaf deputy\n");
    // Longer than there is room for: it is cut, and the environment stays.
    let path = std::env::var_os("PATH");
    let long = "long ".repeat(1000);
    process::set_process_title(&long).expect("a title");
    assert_eq!(shown(), &long.as_bytes()[..room]);
    assert_eq!(std::env::var_os("PATH"), path);
}

fn waiting_and_signals() {
    let set = SignalSet::of(&[libc::SIGCHLD, libc::SIGUSR1]);
    block_signals(set);
    let signals = SignalFd::new(set).expect("a signalfd");
    assert_eq!(signals.read(), Ok(None));
    let Fork::Parent { pid, pidfd } = process::fork().expect("fork") else {
        process::kill(std::process::id().cast_signed(), libc::SIGSTOP).expect("stop");
        std::process::exit(7);
    };
    let change = process::wait_any_child(false)
        .expect("wait")
        .expect("a change");
    assert_eq!(
        (change.pid, change.state),
        (pid, ChildState::Stopped(libc::SIGSTOP))
    );
    process::pidfd_send_signal(&pidfd, libc::SIGCONT).expect("continue");
    let change = process::wait(pid, false).expect("wait").expect("its end");
    assert_eq!(change.state, ChildState::Ended(ExitStatus::Exited(7)));
    assert!(change.usage.max_rss_kb > 0);
    let received = signals.read().expect("read").expect("a SIGCHLD");
    assert_eq!((received.signo, received.pid), (libc::SIGCHLD, pid));
    while signals.read().expect("read").is_some() {}

    let me = std::process::id().cast_signed();
    process::kill(me, libc::SIGUSR1).expect("send");
    let received = signals.read().expect("read").expect("a SIGUSR1");
    assert_eq!(
        (received.signo, received.code),
        (libc::SIGUSR1, libc::SI_USER)
    );
    assert_eq!(received.pid, me);
}

fn strangers_are_known() {
    let stranger = |change: fn()| {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        let Fork::Parent { pid, .. } = process::fork().expect("fork") else {
            change();
            process::set_pdeathsig(libc::SIGKILL).expect("no orphan of a failed test");
            rustix::io::write(&write, b"x").expect("tell");
            loop {
                std::thread::park();
            }
        };
        drop(write);
        File::from(read).read_exact(&mut [0]).expect("it is ready");
        let verdict = Surroundings::own().unwrap().include(pid);
        process::kill(pid, libc::SIGKILL).expect("kill");
        process::wait(pid, false).expect("wait");
        match verdict {
            Ok(()) => None,
            Err(ForeignNamespace::Differs { which, .. }) => Some(which),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(stranger(|| {}), None);
    let mounts = || unshare(NamespaceFlags::NEWNS).expect("unshare");
    assert_eq!(stranger(mounts), Some(Surrounding::Mount));
    let root = || rustix::process::chroot("/usr").expect("chroot");
    assert_eq!(stranger(root), Some(Surrounding::Root));
    let back = || {
        let ours = File::open("/proc/self/ns/mnt").expect("our namespace");
        unshare(NamespaceFlags::NEWNS).expect("unshare");
        setns(ours.as_fd(), NamespaceFlags::NEWNS).expect("and back");
    };
    assert_eq!(stranger(back), None);
}

fn another_root() {
    use rustix::mount::{MountFlags, OpenTreeFlags, mount, open_tree};
    mount("root", "/mnt", "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
    fs::write("/mnt/here", "x").expect("a file");
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, "/mnt", flags).expect("the mount");
    let read_only = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttributes::default()
    };
    let itself: &CStr = c"";
    mount_setattr(tree.as_fd(), itself, false, &read_only).expect("read-only");
    assert!(fs::write("/mnt/other", "x").is_err());
    pivot_into(tree.as_fd()).expect("the new root");
    let names: Vec<_> = fs::read_dir("/")
        .expect("the root")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["here"]);
}
