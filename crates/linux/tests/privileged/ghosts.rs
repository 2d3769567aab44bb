//! Ghosts, with and without a tracer.

use crate::runner::{Needs, Test};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use wiglaf_linux::ghost::{GhostRequest, Order, exec_ghost, spawn_ghost};
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork};
use wiglaf_linux::signal::{Disposition, SignalSet, set_disposition};
use wiglaf_linux::status::read_status;

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "ghost::looks_like_the_remote_process",
        needs: Needs::Nothing,
        run: looks_like_the_remote_process,
    },
    Test {
        name: "ghost::exits_and_dies_as_told",
        needs: Needs::Nothing,
        run: exits_and_dies_as_told,
    },
    Test {
        name: "ghost::ends_with_its_keeper",
        needs: Needs::Nothing,
        run: ends_with_its_keeper,
    },
    Test {
        name: "ghost::survives_signals_untraced",
        needs: Needs::Nothing,
        run: survives_signals_untraced,
    },
    Test {
        name: "ghost::pumps_a_pipe",
        needs: Needs::Nothing,
        run: pumps_a_pipe,
    },
    Test {
        name: "ghost::pumps_a_terminal_and_restores_it",
        needs: Needs::Nothing,
        run: pumps_a_terminal_and_restores_it,
    },
    Test {
        name: "ghost::by_exec",
        needs: Needs::Nothing,
        run: by_exec,
    },
];

const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// A ghost and its keeper's end.
pub(crate) struct Haunted {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    control: OwnedFd,
}

fn control() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair")
}

fn strings(list: &[&str]) -> Vec<CString> {
    list.iter()
        .map(|&text| CString::new(text).expect("no NUL"))
        .collect()
}

impl Haunted {
    pub(crate) fn new(argv: &[&str]) -> Haunted {
        Haunted::with(argv, None, None, None)
    }

    fn with(
        argv: &[&str],
        stdin: Option<BorrowedFd<'_>>,
        stdin_pipe: Option<BorrowedFd<'_>>,
        stderr: Option<BorrowedFd<'_>>,
    ) -> Haunted {
        let (ours, theirs) = control();
        let ghost = spawn_ghost(&GhostRequest {
            argv: &strings(argv),
            env: &[],
            control: theirs.as_fd(),
            stdin,
            stdin_pipe,
            stderr,
            group: None,
            dies_with_parent: false,
        })
        .expect("a ghost");
        let haunted = Haunted {
            pid: ghost.pid,
            pidfd: ghost.pidfd,
            control: ours,
        };
        // Its handlers are in place when the last one is.
        until("its handlers", || {
            let status = read_status(haunted.pid).expect("its status");
            status.caught.contains(64) && status.blocked == SignalSet::EMPTY
        });
        haunted
    }

    pub(crate) fn order(&self, order: Order<'_>) {
        send(&self.control, &order.encode(), SendFlags::NOSIGNAL).expect("the ghost listens");
    }

    fn ended(&self) -> ExitStatus {
        let mut ready = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let limit = Timespec::try_from(LIMIT).expect("in range");
        assert_eq!(poll(&mut ready, Some(&limit)), Ok(1), "the ghost ends");
        let change = process::wait(self.pid, false)
            .expect("wait")
            .expect("ended");
        match change.state {
            ChildState::Ended(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("its stat");
        let rest = stat.rsplit_once(") ").expect("a state").1;
        rest.chars().next().expect("a state")
    }
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "waiting for {what}");
        std::thread::sleep(PAUSE);
    }
}

fn looks_like_the_remote_process() {
    let leak = File::open("/dev/zero").expect("/dev/zero");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("not close-on-exec");
    let (_read, write) = rustix::pipe::pipe().expect("a pipe");
    let ghost = Haunted::with(
        &["/usr/bin/sleep", "1 000", ""],
        None,
        Some(write.as_fd()),
        None,
    );
    let proc = format!("/proc/{}", ghost.pid);
    let cmdline = fs::read(format!("{proc}/cmdline")).expect("its arguments");
    assert_eq!(cmdline, b"/usr/bin/sleep\x001 000\x00\x00");
    let comm = fs::read_to_string(format!("{proc}/comm")).expect("its name");
    assert_eq!(comm, "sleep\n");
    let mut fds: Vec<String> = fs::read_dir(format!("{proc}/fd"))
        .expect("its descriptors")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a number")
        })
        .collect();
    fds.sort();
    assert_eq!(fds, ["0", "2", "3", "4"], "nothing else is kept open");
    assert_eq!(
        fs::read_link(format!("{proc}/fd/0"))
            .expect("a link")
            .to_str(),
        Some("/dev/null")
    );
    let rollup = fs::read_to_string(format!("{proc}/smaps_rollup")).expect("its memory");
    let rss_kb: u32 = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB"))
        .and_then(|number| number.trim().parse().ok())
        .expect("an RSS");
    assert!(rss_kb <= 24, "{rollup}");
    ghost.order(Order::Mode {
        pump: false,
        raw: false,
    });
    until("the pipe to be closed", || {
        !fs::exists(format!("{proc}/fd/4")).expect("an answer")
    });
    ghost.order(Order::Exit(0));
    assert_eq!(ghost.ended(), ExitStatus::Exited(0));
}

fn exits_and_dies_as_told() {
    // No test leaves core files behind.
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).expect("no cores");
    for code in [0, 1, 125, 255] {
        let ghost = Haunted::new(&["x"]);
        ghost.order(Order::Exit(code));
        assert_eq!(ghost.ended(), ExitStatus::Exited(code.into()));
    }
    for signal in [
        libc::SIGTERM,
        libc::SIGKILL,
        libc::SIGSEGV,
        libc::SIGHUP,
        40,
    ] {
        let ghost = Haunted::new(&["x"]);
        ghost.order(Order::Die(u8::try_from(signal).expect("small")));
        let died = ghost.ended();
        assert!(
            matches!(died, ExitStatus::Signaled { signal: s, core: false } if s == signal),
            "{died:?}"
        );
    }
    // One that does not kill.
    let ghost = Haunted::new(&["x"]);
    ghost.order(Order::Die(17));
    assert_eq!(ghost.ended(), ExitStatus::Exited(128 + libc::SIGCHLD));
}

fn ends_with_its_keeper() {
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let mut ghost = Haunted::with(&["x"], None, None, Some(write.as_fd()));
    drop(write);
    ghost.order(Order::Complain("wiglaf: n3 is slow\n"));
    ghost.control = control().0;
    assert_eq!(ghost.ended(), ExitStatus::Exited(125));
    let mut text = String::new();
    File::from(read)
        .read_to_string(&mut text)
        .expect("its complaints");
    assert_eq!(text, "wiglaf: n3 is slow\n");
}

fn survives_signals_untraced() {
    let ghost = Haunted::new(&["x"]);
    for signal in (1..=64).filter(|&signal| signal != libc::SIGKILL && signal != libc::SIGSTOP) {
        process::pidfd_send_signal(&ghost.pidfd, signal).expect("send");
    }
    ghost.order(Order::Exit(9));
    assert_eq!(ghost.ended(), ExitStatus::Exited(9));
}

fn pumps_a_pipe() {
    // Far more than the two pipes hold.
    const BYTES: usize = 1 << 20;
    let (input_read, input) = rustix::pipe::pipe().expect("a pipe");
    let (output, output_write) = rustix::pipe::pipe().expect("a pipe");
    let ghost = Haunted::with(
        &["cat"],
        Some(input_read.as_fd()),
        Some(output_write.as_fd()),
        None,
    );
    drop((input_read, output_write));
    ghost.order(Order::Mode {
        pump: true,
        raw: false,
    });
    let data: Vec<u8> = (0..BYTES).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let feed = data.clone();
    let feeder = std::thread::spawn(move || File::from(input).write_all(&feed).expect("feed"));
    // With both pipes full it sleeps, and still listens.
    until("it to sleep", || ghost.state() == 'S');
    let mut output = File::from(output);
    let mut carried = vec![0; 10_000];
    output.read_exact(&mut carried).expect("some output");
    let mut rest = Vec::new();
    output
        .read_to_end(&mut rest)
        .expect("all output, to its end");
    feeder.join().expect("all was taken");
    carried.extend(rest);
    assert!(carried == data, "{} bytes came", carried.len());

    ghost.order(Order::Exit(3));
    assert_eq!(ghost.ended(), ExitStatus::Exited(3));

    // A reader that goes away ends the pump, and the rest of the input stays where it is.
    let (input_read, input) = rustix::pipe::pipe().expect("a pipe");
    let (output, output_write) = rustix::pipe::pipe().expect("a pipe");
    let ghost = Haunted::with(
        &["true"],
        Some(input_read.as_fd()),
        Some(output_write.as_fd()),
        None,
    );
    drop(output_write);
    ghost.order(Order::Mode {
        pump: true,
        raw: false,
    });
    drop(output);
    let four = format!("/proc/{}/fd/4", ghost.pid);
    until("the pump to end", || !fs::exists(&four).expect("an answer"));
    File::from(input).write_all(b"unread").expect("write");
    let mut left = String::new();
    File::from(input_read)
        .read_to_string(&mut left)
        .expect("read");
    assert_eq!(left, "unread");
    ghost.order(Order::Exit(0));
    assert_eq!(ghost.ended(), ExitStatus::Exited(0));
}

fn pumps_a_terminal_and_restores_it() {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pty");
    grantpt(&master).expect("grantpt");
    unlockpt(&master).expect("unlockpt");
    let name = ptsname(&master, Vec::new()).expect("ptsname");
    rustix::process::setsid().expect("a session");
    let terminal = rustix::fs::open(&name, rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
        .expect("the terminal, now ours");
    // We change the terminal from its background, and lead its session when it hangs up.
    for signal in [libc::SIGTTOU, libc::SIGHUP] {
        set_disposition(signal, Disposition::Ignore).expect("ignored");
    }

    let (output, output_write) = rustix::pipe::pipe().expect("a pipe");
    let (ours, theirs) = control();
    let ghost = spawn_ghost(&GhostRequest {
        argv: &strings(&["vi"]),
        env: &[],
        control: theirs.as_fd(),
        stdin: Some(terminal.as_fd()),
        stdin_pipe: Some(output_write.as_fd()),
        stderr: None,
        group: Some(0),
        dies_with_parent: false,
    })
    .expect("a ghost");
    drop((output_write, theirs));
    let ghost = Haunted {
        pid: ghost.pid,
        pidfd: ghost.pidfd,
        control: ours,
    };
    let group = rustix::process::Pid::from_raw(ghost.pid);
    assert_eq!(rustix::process::getpgid(group).ok(), group);
    let is_raw = || {
        let modes = tcgetattr(&terminal).expect("its settings").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    };
    let mut output = File::from(output);
    let mut master = File::from(master);
    let before = tcgetattr(&terminal).expect("its settings").local_modes;

    // In the background it touches nothing.
    ghost.order(Order::Mode {
        pump: true,
        raw: true,
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!is_raw());
    let to_front = |pid: Option<rustix::process::Pid>| {
        rustix::termios::tcsetpgrp(&terminal, pid.expect("a pid")).expect("tcsetpgrp");
    };
    to_front(group);
    until("raw mode", is_raw);
    master.write_all(b"\x03x").expect("type");
    let mut typed = [0; 2];
    output.read_exact(&mut typed).expect("what was typed");
    assert_eq!(&typed, b"\x03x", "^C is a character in raw mode");

    // Stopped, it leaves the terminal as it was; continued, it is raw again.
    ghost.order(Order::Stop(20));
    until("the stop", || ghost.state() == 'T');
    assert_eq!(
        tcgetattr(&terminal).expect("its settings").local_modes,
        before
    );
    process::pidfd_send_signal(&ghost.pidfd, libc::SIGCONT).expect("continue");
    until("raw mode", is_raw);

    // Somebody else changed it.
    let mut cooked = tcgetattr(&terminal).expect("its settings");
    cooked.local_modes = before;
    rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &cooked)
        .expect("tcsetattr");
    ghost.order(Order::RawAgain);
    until("raw mode", is_raw);
    ghost.order(Order::Exit(0));
    assert_eq!(ghost.ended(), ExitStatus::Exited(0));
    assert_eq!(
        tcgetattr(&terminal).expect("its settings").local_modes,
        before
    );
}

fn by_exec() {
    let (ours, theirs) = control();
    let Fork::Parent { pid, pidfd } = process::fork().expect("fork") else {
        let errno = exec_ghost(&GhostRequest {
            argv: &strings(&["-bash"]),
            env: &strings(&["A=B"]),
            control: theirs.as_fd(),
            stdin: None,
            stdin_pipe: None,
            stderr: None,
            group: None,
            dies_with_parent: false,
        });
        panic!("{errno}");
    };
    drop(theirs);
    let ghost = Haunted {
        pid,
        pidfd,
        control: ours,
    };
    let file = |name| fs::read(format!("/proc/{pid}/{name}")).expect("it is ours");
    until("the exec", || file("comm") == b"-bash\n");
    assert_eq!(file("cmdline"), b"-bash\0");
    assert_eq!(file("environ"), b"A=B\0");
    ghost.order(Order::Exit(0));
    assert_eq!(ghost.ended(), ExitStatus::Exited(0));
}
