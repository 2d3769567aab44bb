//! Shims in a private space, and a broker that says what the test wants.

use crate::runner::{Needs, Test};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{Gid, Uid};
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use wiglaf_linux::process::{self, ChildState, ExitStatus};
use wiglaf_linux::shim::{self, FromShim, ShimCall, Verdict, answer, open_real};
use wiglaf_linux::shimmed::{LeftAlone, PrivateSpace, SpaceCommand, SpaceError, SpaceStep};
use wiglaf_linux::signal::{SignalSet, block_signals};
use wiglaf_linux::spawn::Spawned;
use wiglaf_linux::status::read_status;

/// Each as whoever runs the tests, and as an ordinary user, for whom only root can run them.
macro_rules! tests {
    ($($run:ident)*) => {
        pub(crate) const TESTS: &[Test] = &[
            $(
                Test {
                    name: concat!("shim::", stringify!($run)),
                    needs: Needs::Nothing,
                    run: $run,
                },
                Test {
                    name: concat!("shim::", stringify!($run), "_as_a_user"),
                    needs: Needs::Root,
                    run: || {
                        become_nobody();
                        $run();
                    },
                },
            )*
            Test {
                name: "shim::who_gives_root_up_is_run_here",
                needs: Needs::Root,
                run: who_gives_root_up_is_run_here,
            },
            Test {
                name: "shim::a_chroot_is_refused",
                needs: Needs::Root,
                run: a_chroot_is_refused,
            },
        ];
    };
}

tests! {
    nothing_differs_here
    a_compiler_finds_its_files
    a_build_outlives_its_broker
    waits_and_exits
    waits_and_dies
    signals_are_passed_on
    keys_are_told_from_senders
    a_killed_shim_is_gone
    closed_descriptors_stay_closed
    the_space_is_private
}

const LIMIT: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65_534;
/// The shell that is covered; the scripts of the tests run in another one.
const COVERED: &str = "/bin/sh";
const OUTER: &str = "/bin/bash";

fn become_nobody() {
    rustix::thread::set_thread_groups(&[]).expect("no groups");
    let gid = Gid::from_raw(NOBODY);
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("its group");
    let uid = Uid::from_raw(NOBODY);
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("its user");
    // A process that was started by an ordinary user can look at itself.
    set_dumpable_behavior(DumpableBehavior::Dumpable).expect("dumpable");
}

struct Build {
    directory: tempfile::TempDir,
    /// Where scripts work.
    work: tempfile::TempDir,
    listener: Option<OwnedFd>,
    space: PrivateSpace,
}

impl Build {
    fn new(programs: &[&str]) -> Build {
        let directory = tempfile::tempdir().expect("a directory");
        let work = tempfile::tempdir().expect("a directory");
        fs::set_permissions(work.path(), Permissions::from_mode(0o777)).expect("chmod");
        let listener = Some(shim::listen(directory.path()).expect("a socket"));
        let programs: Vec<_> = programs.iter().map(PathBuf::from).collect();
        let space = PrivateSpace::new(directory.path(), &programs).expect("a plan");
        assert_eq!(space.covered().count(), programs.len());
        Build {
            directory,
            work,
            listener,
            space,
        }
    }

    fn start(&self, script: &str) -> Spawned {
        self.try_start(OUTER, script).expect("a space")
    }

    fn try_start(&self, program: &str, script: &str) -> Result<Spawned, SpaceError> {
        let string = |text: &str| CString::new(text).expect("no NUL");
        let work = self.work.path().to_str().expect("UTF-8");
        let own = read_status(std::process::id().cast_signed()).expect("our status");
        self.space.spawn(&SpaceCommand {
            program: &string(program),
            argv: &["bash", "-c", script, "bash", work].map(string),
            env: &[string("PATH=/usr/bin:/bin"), string("ODD=\u{e4}=\n ")],
            // The runtime ignores SIGPIPE; others were ignored by who started the tests.
            ignored_signals: own.ignored.without(13),
            blocked_signals: SignalSet::EMPTY,
        })
    }

    /// The next command: its process, what it says, and the connection.
    fn called(&self) -> (i32, ShimCall, OwnedFd) {
        let listener = self.listener.as_ref().expect("a broker");
        wait_for(listener.as_fd());
        let socket = rustix::net::accept(listener).expect("a shim");
        let pid = rustix::net::sockopt::socket_peercred(&socket).expect("its process");
        let Ok(Some(FromShim::Call(call))) = shim::receive(&socket) else {
            panic!("a call");
        };
        (pid.pid.as_raw_nonzero().get(), call, socket)
    }

    /// Has all commands run here until the script ends.
    fn serve(&self, script: &Spawned, by_descriptor: bool) -> (ExitStatus, usize) {
        let listener = self.listener.as_ref().expect("a broker");
        let mut calls = 0;
        loop {
            let mut ready = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(&script.pidfd, PollFlags::IN),
            ];
            let limit = Timespec::try_from(LIMIT).expect("in range");
            assert!(
                poll(&mut ready, Some(&limit)).expect("poll") > 0,
                "too late"
            );
            if ready[0].revents().is_empty() {
                return (ended(script), calls);
            }
            let (pid, _, socket) = self.called();
            let real = by_descriptor.then(|| real_of(pid));
            let real = real.as_ref().map(|real| real.as_fd());
            answer(&socket, Verdict::Here(real)).expect("it listens");
            calls += 1;
        }
    }

    fn file(&self, name: &str) -> String {
        let bytes = fs::read(self.work.path().join(name)).expect("the script wrote it");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn real_of(pid: i32) -> OwnedFd {
    let path = fs::read_link(format!("/proc/{pid}/exe")).expect("its program");
    open_real(&path).expect("the real program")
}

fn wait_for(fd: BorrowedFd<'_>) {
    let mut ready = [PollFd::new(&fd, PollFlags::IN)];
    let limit = Timespec::try_from(LIMIT).expect("in range");
    assert_eq!(poll(&mut ready, Some(&limit)), Ok(1), "too late");
}

fn ended(script: &Spawned) -> ExitStatus {
    wait_for(script.pidfd.as_fd());
    let change = process::wait(script.pid, false).expect("wait");
    match change.expect("it ended").state {
        ChildState::Ended(status) => status,
        state => panic!("{state:?}"),
    }
}

fn signal(pid: i32, number: i32) {
    let status = Command::new("/bin/kill")
        .args([format!("-{number}"), pid.to_string()])
        .status();
    assert!(status.expect("kill").success());
}

/// A signal that comes earlier kills a shim, as it would a shell.
fn until_it_blocks(pid: i32) {
    let signals = SignalSet::of(&[1, 2, 3, 10, 12, 15]);
    while read_status(pid).expect("its status").blocked != signals {
        std::thread::yield_now();
    }
}

/// What a command can see of itself, each script with the number of shells that it starts.
const SAME: &[(&str, usize)] = &[
    (
        "sh -c 'tr \"\\0\" \"\\n\" </proc/$$/cmdline; tr \"\\0\" \"\\n\" </proc/$$/environ'",
        1,
    ),
    (
        "(exec -a -odd sh -c 'echo $0; tr \"\\0\" \"\\n\" </proc/$$/cmdline')",
        1,
    ),
    ("sh -c 'readlink /proc/$$/exe; exit 7'; echo $?", 1),
    (
        "trap '' HUP USR1; sh -c 'grep -E \"Sig(Blk|Ign|Cgt)\" /proc/self/status; umask'",
        1,
    ),
    (
        "umask 027; ulimit -n 77; ulimit -c 0; sh -c 'umask; ulimit -a'",
        1,
    ),
    (
        "exec 3>\"$1/three\" 200</dev/null; sh -c 'echo x >&3; ls /proc/$$/fd'; cat \"$1/three\"",
        1,
    ),
    (
        "sh -c 'ls /proc/$$/fd; cat' <&-; sh -c 'ls /proc/$$/fd' 2>&-; sh -c : >&-; echo $?",
        3,
    ),
    (
        "printf '#!/bin/sh\\necho \"$0 $# $1\"; exit 5\\n' >\"$1/s\"; chmod +x \"$1/s\"; \"$1/s\" 'a b' ''; echo $?",
        1,
    ),
    (
        "a=$(head -c 100000 /dev/zero | tr '\\0' x); sh -c 'printf %s \"$*\" | sha1sum' $a $a $a $a $a $a $a $a $a $a $a",
        1,
    ),
    (
        "exec 2>/dev/null; echo in | sh -c 'read x; echo got $x; kill -SEGV $$'; echo ${PIPESTATUS[1]}",
        1,
    ),
    (
        "sh -c 'kill -STOP $$; echo on' & while ! grep -q 'State:.T' /proc/$!/status; do :; done; kill -CONT $!; wait",
        1,
    ),
    (
        "stat -Lc '%n %s %a %Y' /bin/sh /usr/bin/dash; test -x /bin/sh && echo x",
        0,
    ),
    (
        "sh -c 'sh -c \"sh -c pwd; cd /; sh -c pwd\"' | tail -n 1",
        4,
    ),
];

fn nothing_differs_here() {
    for by_descriptor in [true, false] {
        let build = Build::new(&[COVERED]);
        for (script, shells) in SAME {
            // By its path a program lies in the build's directory.
            if !by_descriptor && script.contains("exe") {
                continue;
            }
            let script = format!("cd \"$1\"; {{ {script}; }} >out 2>&1");
            let plain = Command::new(OUTER)
                .args(["-c", &script, "bash"])
                .arg(build.work.path())
                .env_clear()
                .envs([("PATH", "/usr/bin:/bin"), ("ODD", "\u{e4}=\n ")])
                .arg0("bash")
                .status()
                .expect("bash");
            let expected = build.file("out");
            let started = build.start(&script);
            let (status, calls) = build.serve(&started, by_descriptor);
            assert_eq!(build.file("out"), expected, "{script}");
            assert_eq!(Some(status), plain.code().map(ExitStatus::Exited));
            assert_eq!(calls, *shells, "{script}");
        }
    }
}

fn a_compiler_finds_its_files() {
    let build = Build::new(&[COVERED, "/usr/bin/readlink"]);
    let script = "readlink /proc/self/exe >\"$1/out\"";
    let real = fs::canonicalize("/usr/bin/readlink").expect("readlink");
    let mut expected = format!("{}\n", real.display());
    build.serve(&build.start(script), true);
    assert_eq!(build.file("out"), expected);
    expected.insert_str(0, "/space/real");
    expected.insert_str(0, build.directory.path().to_str().expect("UTF-8"));
    build.serve(&build.start(script), false);
    assert_eq!(build.file("out"), expected);
}

fn a_build_outlives_its_broker() {
    let mut build = Build::new(&[COVERED]);
    let script = "sh -c 'echo one; exit 3' >\"$1/out\"; test $? = 3 && sh -c 'exit 4'";
    let started = build.start(script);
    // It goes while a shim waits, before another one comes.
    let (_, _, socket) = build.called();
    answer(&socket, Verdict::Wait).expect("it listens");
    build.listener = None;
    drop(socket);
    assert_eq!(ended(&started), ExitStatus::Exited(4));
    assert_eq!(build.file("out"), "one\n");
    fs::remove_file(shim::socket_in(build.directory.path())).expect("the socket");
    assert_eq!(ended(&build.start(script)), ExitStatus::Exited(4));
}

fn waits_and_exits() {
    let build = Build::new(&[COVERED]);
    let started = build.start("sh -c 'true' a b >\"$1/out\"; exit $((1 + $?))");
    let (pid, call, socket) = build.called();
    answer(&socket, Verdict::Wait).expect("it listens");
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).expect("its command");
    assert_eq!(cmdline, b"sh\0-c\0true\0a\0b\0");
    let [Some(_), Some(out), Some(_)] = call.stdio else {
        panic!("all three");
    };
    fs::File::from(out)
        .write_all(b"from a node\n")
        .expect("written");
    assert!(fs::read_link(format!("/proc/{pid}/fd/{}", call.socket)).is_ok());
    answer(&socket, Verdict::Exit(41)).expect("it listens");
    assert_eq!(ended(&started), ExitStatus::Exited(42));
    assert_eq!(build.file("out"), "from a node\n");
}

fn waits_and_dies() {
    for (number, kills) in [(15, true), (9, true), (11, true), (17, false)] {
        let build = Build::new(&[COVERED]);
        let started = build.start("ulimit -c unlimited; exec sh");
        let (_, _, socket) = build.called();
        answer(&socket, Verdict::Wait).expect("it listens");
        answer(&socket, Verdict::Signal(number)).expect("it listens");
        let number = i32::from(number);
        match ended(&started) {
            ExitStatus::Signaled { signal, core } => assert!(kills && signal == number && !core),
            status => assert!(!kills && status == ExitStatus::Exited(128 + number)),
        }
    }
}

fn signals_are_passed_on() {
    let build = Build::new(&[COVERED]);
    // One that was ignored is passed on too: it may not be ignored there.
    let script = "trap '' USR1; cd \"$1\"; exec sh -c 'grep SigBlk /proc/self/status' >out";
    let started = build.start(script);
    let (pid, _, socket) = build.called();
    answer(&socket, Verdict::Wait).expect("it listens");
    until_it_blocks(pid);
    for number in [1, 2, 3, 10, 12, 15] {
        signal(pid, number);
        wait_for(socket.as_fd());
        let said = shim::receive(&socket).expect("a packet");
        let Some(FromShim::Signal { signal, by_kernel }) = said else {
            panic!("{said:?}");
        };
        assert_eq!((i32::from(signal), by_kernel), (number, false));
    }
    answer(&socket, Verdict::Here(Some(real_of(pid).as_fd()))).expect("it listens");
    assert_eq!(ended(&started), ExitStatus::Exited(0));
    assert_eq!(build.file("out"), "SigBlk:\t0000000000000000\n");
}

fn keys_are_told_from_senders() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("granted");
    unlockpt(&terminal).expect("unlocked");
    let name = ptsname(&terminal, Vec::new()).expect("its name");
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).expect("the terminal");
    rustix::process::setsid().expect("a session");
    rustix::process::ioctl_tiocsctty(&slave).expect("our terminal");
    // Of the key, and of the terminal's end.
    block_signals(SignalSet::of(&[1, 2]));

    let build = Build::new(&[COVERED]);
    let started = build.start("trap 'exit 9' INT; sh -c :");
    let (pid, _, socket) = build.called();
    answer(&socket, Verdict::Wait).expect("it listens");
    until_it_blocks(pid);
    rustix::io::write(&terminal, b"\x03").expect("a key");
    wait_for(socket.as_fd());
    let said = shim::receive(&socket).expect("a packet");
    let Some(FromShim::Signal { signal, by_kernel }) = said else {
        panic!("{said:?}");
    };
    assert_eq!((signal, by_kernel), (2, true));
    answer(&socket, Verdict::Signal(2)).expect("it listens");
    assert_eq!(ended(&started), ExitStatus::Exited(9));
}

fn a_killed_shim_is_gone() {
    let build = Build::new(&[COVERED]);
    let started = build.start("exec 2>/dev/null; sh -c : & wait $!; exit $(($? - 100))");
    let (pid, _, socket) = build.called();
    answer(&socket, Verdict::Wait).expect("it listens");
    signal(pid, 9);
    wait_for(socket.as_fd());
    assert!(matches!(shim::receive(&socket), Ok(None)));
    assert_eq!(ended(&started), ExitStatus::Exited(37));
}

fn closed_descriptors_stay_closed() {
    let build = Build::new(&[COVERED]);
    for (redirections, open) in [
        ("<&-", [false, true, true]),
        (">&-", [true, false, true]),
        ("<&- 2>&-", [false, true, false]),
        ("<&- >&- 2>&-", [false; 3]),
    ] {
        let started = build.start(&format!("sh -c : {redirections}"));
        let (_, call, socket) = build.called();
        assert_eq!(call.stdio.map(|fd| fd.is_some()), open, "{redirections}");
        answer(&socket, Verdict::Exit(0)).expect("it listens");
        assert_eq!(ended(&started), ExitStatus::Exited(0));
    }
}

fn the_space_is_private() {
    let mounts = || fs::read("/proc/self/mountinfo").expect("our mounts");
    let before = mounts();
    let build = Build::new(&[COVERED]);
    let started = build.start("cd \"$1\"; grep Cap /proc/self/status >out; sh; exit 1");
    let (pid, _, socket) = build.called();
    assert_eq!(mounts(), before);
    answer(&socket, Verdict::Exit(0)).expect("it listens");
    assert_eq!(ended(&started), ExitStatus::Exited(1), "{pid}");
    let uid = rustix::process::geteuid();
    assert_eq!(
        fs::metadata(build.work.path().join("out"))
            .expect("out")
            .uid(),
        uid.as_raw()
    );
    if !uid.is_root() {
        let capabilities = build.file("out");
        assert!(capabilities.contains("CapEff:\t0000000000000000"));
        assert!(capabilities.contains("CapPrm:\t0000000000000000"));
    }
    let real = build.directory.path().join("space/real");
    assert!(!real.exists(), "only inside");

    let failed = build.try_start("/no/such/program", "");
    let Err(SpaceError::Step {
        step, path, errno, ..
    }) = failed
    else {
        panic!("{failed:?}");
    };
    assert_eq!((step, errno), (SpaceStep::Exec, Errno::NOENT));
    assert_eq!(path.as_deref(), Some(Path::new("/no/such/program")));

    let script = build.work.path().join("script");
    fs::write(&script, "#!/bin/sh\n").expect("a script");
    let none = build.work.path().join("none");
    let programs = [
        script.clone(),
        none.clone(),
        "/bin/su".into(),
        "/bin/dash".into(),
    ];
    let other = tempfile::tempdir().expect("a directory");
    let space = PrivateSpace::new(other.path(), &programs).expect("a plan");
    let expected = [
        (script, LeftAlone::Script),
        (none, LeftAlone::Unreadable),
        ("/bin/su".into(), LeftAlone::SetsUser),
    ];
    assert_eq!(space.left_alone(), expected);
}

fn who_gives_root_up_is_run_here() {
    let build = Build::new(&[COVERED]);
    let script = "cd \"$1\"; setpriv --reuid 65534 --clear-groups sh -c 'id -u' >out";
    let started = build.start(script);
    assert_eq!(build.serve(&started, true), (ExitStatus::Exited(0), 0));
    assert_eq!(build.file("out"), "65534\n");
}

fn a_chroot_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let place = root.path().join("build");
    fs::create_dir(&place).expect("a directory");
    rustix::process::chroot(root.path()).expect("chroot");
    rustix::process::chdir("/").expect("chdir");
    let try_it = || {
        let space = PrivateSpace::new(Path::new("/build"), &[]).expect("a plan");
        let failed = space.spawn(&SpaceCommand {
            program: c"/bin/true",
            argv: &[],
            env: &[],
            ignored_signals: SignalSet::EMPTY,
            blocked_signals: SignalSet::EMPTY,
        });
        let Err(error) = failed else {
            panic!("{failed:?}");
        };
        let text = format!("{error}: {}", error.remedy().expect("a remedy"));
        let SpaceError::Step { step, errno, .. } = error else {
            panic!("{error:?}");
        };
        (step, errno, text)
    };
    let (step, errno, text) = try_it();
    assert_eq!((step, errno), (SpaceStep::Propagation, Errno::INVAL));
    assert!(text.contains("chroot"), "{text}");
    rustix::fs::chown("/build", Some(Uid::from_raw(NOBODY)), None).expect("chown");
    become_nobody();
    let (step, errno, text) = try_it();
    assert_eq!((step, errno), (SpaceStep::UserNamespace, Errno::PERM));
    assert!(
        text.contains("user namespaces are not allowed here"),
        "{text}"
    );
}
