//! Starting processes.

use crate::runner::{Needs, Test};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use wiglaf_linux::process::{self, ChildState, ExitStatus};
use wiglaf_linux::signal::SignalSet;
use wiglaf_linux::spawn::{Limit, SpawnError, SpawnRequest, Stage, spawn};
use wiglaf_linux::status::read_status;

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "spawn::chosen_pid",
        needs: Needs::PidNamespace,
        run: chosen_pid,
    },
    Test {
        name: "spawn::failures_name_their_stage",
        needs: Needs::Root,
        run: failures_name_their_stage,
    },
    Test {
        name: "spawn::two_hundred_times",
        needs: Needs::PidNamespace,
        run: two_hundred_times,
    },
    Test {
        name: "spawn::the_user_s_rights",
        needs: Needs::Root,
        run: the_users_rights,
    },
    Test {
        name: "spawn::surroundings",
        needs: Needs::Root,
        run: surroundings,
    },
    Test {
        name: "spawn::a_script_without_an_interpreter_line",
        needs: Needs::Nothing,
        run: a_script_without_an_interpreter_line,
    },
    Test {
        name: "spawn::other_mounts",
        needs: Needs::Root,
        run: other_mounts,
    },
    Test {
        name: "spawn::from_many_threads",
        needs: Needs::Root,
        run: from_many_threads,
    },
];

const USER: u32 = 12_345;
const GROUP: u32 = 23_456;

/// Owns what a request borrows.
pub(crate) struct Sample {
    argv: Vec<CString>,
    env: Vec<CString>,
    null: File,
}

impl Sample {
    pub(crate) fn new(argv: &[&str]) -> Sample {
        let strings = |list: &[&str]| {
            list.iter()
                .map(|&text| CString::new(text).expect("no NUL"))
                .collect()
        };
        Sample {
            argv: strings(argv),
            env: strings(&["PATH=/usr/bin:/bin"]),
            null: File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .expect("/dev/null"),
        }
    }

    pub(crate) fn request(&self) -> SpawnRequest<'_> {
        SpawnRequest {
            program: &self.argv[0],
            argv: &self.argv,
            env: &self.env,
            cwd: c"/",
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: None,
            umask: 0o22,
            limits: &[],
            stdio: [self.null.as_fd(); 3],
            mount_ns: None,
            root: None,
            cgroup: None,
            new_uts: false,
            hostname: None,
            pid: None,
            controlling_tty: false,
            ignored_signals: SignalSet::EMPTY,
            blocked_signals: SignalSet::EMPTY,
        }
    }
}

fn ended(pid: i32) -> ExitStatus {
    let change = process::wait(pid, false).expect("wait").expect("no nohang");
    match change.state {
        ChildState::Ended(status) => status,
        other => panic!("{other:?}"),
    }
}

/// Runs it with standard output into a pipe; returns what it wrote.
fn output(request: SpawnRequest<'_>) -> String {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let error = std::io::stderr();
    let stdio = [request.stdio[0], write.as_fd(), error.as_fd()];
    let spawned = spawn(&SpawnRequest { stdio, ..request }).expect("a process");
    drop(write);
    let mut text = String::new();
    File::from(read)
        .read_to_string(&mut text)
        .expect("its output");
    assert_eq!(ended(spawned.pid), ExitStatus::Exited(0), "{text}");
    text
}

fn chosen_pid() {
    let sample = Sample::new(&["/bin/sleep", "1000"]);
    let mut request = sample.request();
    request.pid = Some(4242);
    let first = spawn(&request).expect("PID 4242 is free here");
    assert_eq!(first.pid, 4242);
    assert_eq!(read_status(4242).expect("its status").ppid, 1);
    assert_eq!(
        spawn(&request).map(|_| ()),
        Err(SpawnError::PidTaken { pid: 4242 })
    );
    process::pidfd_send_signal(&first.pidfd, libc::SIGTERM).expect("its pidfd");
    let killed = ExitStatus::Signaled {
        signal: libc::SIGTERM,
        core: false,
    };
    assert_eq!(ended(4242), killed);
    assert_eq!(spawn(&request).expect("free again").pid, 4242);

    request.pid = Some(i32::MAX);
    assert_eq!(
        spawn(&request).map(|_| ()),
        Err(SpawnError::Clone {
            errno: Errno::INVAL
        })
    );
}

fn failures_name_their_stage() {
    let directory = tempfile::tempdir().expect("a directory");
    let plain = directory.path().join("plain");
    fs::write(&plain, "not a program").expect("a file");
    let plain = plain.to_str().expect("UTF-8");

    let fails = |argv: &[&str], change: fn(&mut SpawnRequest<'_>)| {
        let sample = Sample::new(argv);
        let mut request = sample.request();
        change(&mut request);
        match spawn(&request) {
            Err(SpawnError::Child { stage, errno }) => (stage, errno),
            other => panic!("{other:?}"),
        }
    };
    let as_asked = |_: &mut SpawnRequest<'_>| {};
    assert_eq!(fails(&["/no/such"], as_asked), (Stage::Exec, Errno::NOENT));
    assert_eq!(
        fails(&["no-such-program"], as_asked),
        (Stage::Exec, Errno::NOENT)
    );
    assert_eq!(fails(&[plain], as_asked), (Stage::Exec, Errno::ACCESS));
    assert_eq!(
        fails(&["/bin/true"], |it| it.cwd = c"/no/such"),
        (Stage::Cwd, Errno::NOENT)
    );
    // Root may enter any directory; the user may not enter root's.
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("chmod");
    let closed = CString::new(directory.path().to_str().expect("UTF-8")).expect("no NUL");
    let sample = Sample::new(&["/bin/true"]);
    let mut request = sample.request();
    (request.cwd, request.uid, request.gid) = (&closed, USER, GROUP);
    request.groups = Some(&[]);
    assert_eq!(
        spawn(&request).map(|_| ()),
        Err(SpawnError::Child {
            stage: Stage::Cwd,
            errno: Errno::ACCESS
        })
    );
    assert_eq!(
        fails(&["/bin/true"], |it| it.controlling_tty = true),
        (Stage::Terminal, Errno::NOTTY)
    );
    // Every failed child was reaped.
    assert_eq!(process::wait_any_child(true), Err(Errno::CHILD));
    // The failed setresuid of a shared memory has not made us undumpable.
    assert_eq!(dumpable(), 1);
}

fn dumpable() -> i32 {
    use rustix::process::{DumpableBehavior, dumpable_behavior};
    match dumpable_behavior().expect("prctl") {
        DumpableBehavior::Dumpable => 1,
        DumpableBehavior::NotDumpable => 0,
        _ => 2,
    }
}

fn two_hundred_times() {
    const TIMES: u32 = 200;
    let sample = Sample::new(&["/bin/true"]);
    let mut request = sample.request();
    request.pid = Some(5000);
    let start = Instant::now();
    for _ in 0..TIMES {
        let spawned = spawn(&request).expect("a process");
        assert_eq!(spawned.pid, 5000);
        assert_eq!(ended(5000), ExitStatus::Exited(0));
    }
    let each = start.elapsed() / TIMES;
    assert!(each < Duration::from_millis(50), "{each:?} each");
}

fn the_users_rights() {
    const GROUPS: &[u32] = &[4, 777];
    let as_user = |argv: &[&str]| {
        let sample = Sample::new(argv);
        output(SpawnRequest {
            uid: USER,
            gid: GROUP,
            groups: Some(GROUPS),
            ..sample.request()
        })
    };
    let text = as_user(&["cat", "/proc/self/status"]);
    let line = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|rest| rest.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
            .unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    assert_eq!(line("Uid:"), "12345 12345 12345 12345");
    assert_eq!(line("Gid:"), "23456 23456 23456 23456");
    assert_eq!(line("Groups:"), "4 777");
    assert_eq!(line("CapEff:"), "0000000000000000");
    assert_eq!(line("CapPrm:"), "0000000000000000");
    assert_eq!(dumpable(), 1);
    let text = as_user(&["id"]);
    assert!(
        text.starts_with("uid=12345 gid=23456 groups=23456"),
        "{text}"
    );
}

fn surroundings() {
    // The descriptors in reverse places, others open: three remain, and `ls`'s own.
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    rustix::stdio::dup2_stdin(&write).expect("dup2");
    drop(write);
    let sample = Sample::new(&[
        "/bin/sh",
        "-c",
        "echo $(umask) $(ulimit -n) $(pwd) /proc/self/fd/* >&2",
    ]);
    let mut request = sample.request();
    let null = sample.null.as_fd();
    request.stdio = [null, null, rustix::stdio::stdin()];
    request.umask = 0o137;
    request.cwd = c"/usr";
    request.limits = &[Limit {
        resource: libc::RLIMIT_NOFILE,
        soft: 99,
        hard: u64::MAX,
    }];
    let spawned = spawn(&request).expect("a process");
    rustix::stdio::dup2_stdin(null).expect("dup2");
    let mut text = String::new();
    File::from(read)
        .read_to_string(&mut text)
        .expect("its output");
    assert_eq!(ended(spawned.pid), ExitStatus::Exited(0));
    assert!(
        text.starts_with("0137 99 /usr /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2"),
        "{text}"
    );
    assert!(!text.contains("/fd/4"), "{text}");

    let ignored = SignalSet::of(&[libc::SIGHUP, libc::SIGINT]);
    let blocked = SignalSet::of(&[libc::SIGUSR1, 40]);
    wiglaf_linux::signal::block_signals(SignalSet::of(&[libc::SIGUSR2]));
    let before = read_status(std::process::id().cast_signed())
        .expect("ours")
        .blocked;
    let sample = Sample::new(&["cat", "/proc/self/status"]);
    let text = output(SpawnRequest {
        ignored_signals: ignored,
        blocked_signals: blocked,
        ..sample.request()
    });
    assert!(
        text.contains(&format!("SigIgn:\t{:016x}", ignored.bits())),
        "{text}"
    );
    assert!(
        text.contains(&format!("SigBlk:\t{:016x}", blocked.bits())),
        "{text}"
    );
    let after = read_status(std::process::id().cast_signed())
        .expect("ours")
        .blocked;
    assert_eq!(before, after, "our own mask is as before");

    let sample = Sample::new(&["uname", "-n"]);
    let text = output(SpawnRequest {
        new_uts: true,
        hostname: Some(b"n17"),
        ..sample.request()
    });
    assert_eq!(text, "n17\n");
    assert_ne!(rustix::system::uname().nodename(), c"n17");
}

fn a_script_without_an_interpreter_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("script");
    fs::write(&script, "echo \"$0:$*\"\n").expect("a file");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("chmod");
    let script = script.to_str().expect("UTF-8");
    let text = output(Sample::new(&[script, "a", "b c"]).request());
    assert_eq!(text, format!("{script}:a b c\n"));
}

fn other_mounts() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use wiglaf_linux::process::{Fork, NamespaceFlags, clone_into};
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let Fork::Parent { pid, .. } = clone_into(NamespaceFlags::NEWNS).expect("a namespace") else {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).expect("private mounts");
        mount("other", "/mnt", "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
        fs::write("/mnt/here", "the other namespace's file\n").expect("a file");
        process::set_pdeathsig(libc::SIGKILL).expect("no orphan of a failed test");
        rustix::io::write(&write, b"x").expect("the pipe");
        loop {
            std::thread::park();
        }
    };
    File::from(read)
        .read_exact(&mut [0])
        .expect("the namespace is ready");
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).expect("the namespace");
    let sample = Sample::new(&["cat", "/mnt/here"]);
    let text = output(SpawnRequest {
        mount_ns: Some(namespace.as_fd()),
        ..sample.request()
    });
    assert_eq!(text, "the other namespace's file\n");
    process::kill(pid, libc::SIGKILL).expect("kill");
    ended(pid);
}

fn from_many_threads() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let sample = Sample::new(&["/bin/true"]);
                let mut request = sample.request();
                (request.uid, request.gid) = (USER, GROUP);
                request.groups = Some(&[]);
                for _ in 0..25 {
                    let spawned = spawn(&request).expect("a process");
                    assert_eq!(ended(spawned.pid), ExitStatus::Exited(0));
                }
            });
        }
    });
    assert_eq!(dumpable(), 1);
}
