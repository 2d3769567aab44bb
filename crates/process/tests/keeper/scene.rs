//! A keeper, and a test that plays its head; a terminal with a shell, and a test that plays the
//! user.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use wiglaf_link::Channel;
use wiglaf_wire::id::{JobId, Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostMode, ToKeeper};

/// What must happen has to happen within this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What must not happen is given this long to.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);

pub(crate) type Head = Channel<FromKeeper, ToKeeper>;

/// A process that asked for a ghost.
pub(crate) struct Launch {
    pub(crate) pid: Pid,
    pub(crate) uid: u32,
    pub(crate) start_time: u64,
    pub(crate) control: Option<OwnedFd>,
    channel: Channel<(i32, u32, u64), String>,
}

impl Launch {
    /// Lets it become the ghost.
    pub(crate) fn go(&mut self) {
        self.channel.send(&"go".to_owned(), vec![]).unwrap();
    }
}

pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) keeper: Child,
    pub(crate) head: Head,
    user: Option<u32>,
    launches: UnixListener,
    next_task: u32,
}

impl Scene {
    /// Keeper and users are `user`, or as the test is.
    pub(crate) fn new(user: Option<u32>) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open.clone()).unwrap();
        let launches = UnixListener::bind(dir.path().join("launch.sock")).unwrap();
        std::fs::set_permissions(dir.path().join("launch.sock"), open).unwrap();
        launches.set_nonblocking(true).unwrap();
        let mut command = Command::new(launcher());
        command.arg("keeper").arg(dir.path().join("keeper.sock"));
        if is_root() && user.is_none() {
            command.arg(SERVICE_UID.to_string());
        }
        as_user(&mut command, user);
        let keeper = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let head = connect(dir.path().join("keeper.sock"));
        let mut scene = Scene {
            dir,
            keeper,
            head,
            user,
            launches,
            next_task: 0,
        };
        let first = scene.next();
        assert_eq!(
            first,
            FromKeeper::Inventory {
                ghosts: vec![],
                deputies: vec![],
                last: true,
            }
        );
        scene
    }

    pub(crate) fn keeper_pid(&self) -> i32 {
        i32::try_from(self.keeper.id()).unwrap()
    }

    /// The head daemon is restarted.
    pub(crate) fn reconnect(&mut self) {
        self.head = connect(self.dir.path().join("keeper.sock"));
    }

    /// The head daemon dies; a connection that nobody reads stands for it.
    pub(crate) fn disconnect(&mut self) {
        let (dead, _) = UnixStream::pair().unwrap();
        self.head = Channel::new(dead.into()).unwrap();
        // The keeper has to see it before what comes next is held.
        std::thread::sleep(A_WHILE);
    }

    pub(crate) fn send(&mut self, message: &ToKeeper) {
        self.head.send(message, vec![]).unwrap();
    }

    /// The head's word that the remote process has stopped; so does the ghost.
    pub(crate) fn stop(&mut self, task: TaskId, signal: u8) {
        self.send(&ToKeeper::Stop { task, signal });
        self.expect(&FromKeeper::Stopped { task, signal });
    }

    pub(crate) fn finish(&mut self, task: TaskId, end: GhostEnd) {
        self.send(&ToKeeper::Finish {
            task,
            end,
            text: None,
        });
    }

    /// The keeper's next message.
    pub(crate) fn next(&mut self) -> FromKeeper {
        next_of(&mut self.head, PATIENCE).expect("the keeper says nothing")
    }

    pub(crate) fn expect(&mut self, wanted: &FromKeeper) {
        assert_eq!(&self.next(), wanted);
    }

    pub(crate) fn expect_silence(&mut self) {
        let said = next_of(&mut self.head, A_WHILE);
        assert!(said.is_none(), "not expected: {said:?}");
    }

    /// The next process that asks for a ghost.
    pub(crate) fn launch(&mut self) -> Launch {
        assert!(
            readable(&self.launches, PATIENCE),
            "nobody asks for a ghost"
        );
        let (socket, _) = self.launches.accept().unwrap();
        let mut channel: Channel<(i32, u32, u64), String> = Channel::new(socket.into()).unwrap();
        let (pid, uid, start_time) = next_of(&mut channel, PATIENCE).unwrap();
        let control = Some(channel.descriptors().take().unwrap());
        Launch {
            pid: Pid(pid),
            uid,
            start_time,
            control,
            channel,
        }
    }

    pub(crate) fn new_task(&mut self) -> TaskId {
        self.next_task += 1;
        TaskId {
            job: JobId(1),
            index: self.next_task,
        }
    }

    pub(crate) fn seize(&mut self, launch: &mut Launch) -> TaskId {
        let task = self.new_task();
        let seize = ToKeeper::Seize {
            task,
            pid: launch.pid,
            uid: launch.uid,
            start_time: launch.start_time,
            mode: GhostMode::default(),
            record: vec![7, u8::try_from(self.next_task).unwrap()],
        };
        self.head
            .send(&seize, vec![launch.control.take().unwrap()])
            .unwrap();
        task
    }

    /// All of a launch: asked for, seized, a ghost.
    pub(crate) fn ghost(&mut self) -> (TaskId, Pid) {
        let mut launch = self.launch();
        let task = self.seize(&mut launch);
        self.expect(&FromKeeper::Seized { task });
        launch.go();
        let deadline = Instant::now() + PATIENCE;
        let exe = format!("/proc/{}/exe", launch.pid);
        while std::fs::read_link(&exe)
            .unwrap()
            .ends_with("ghost_launcher")
        {
            assert!(Instant::now() < deadline, "it does not become a ghost");
            std::thread::sleep(Duration::from_millis(5));
        }
        (task, launch.pid)
    }

    pub(crate) fn signal(task: TaskId, signal: u8, from_kernel: bool) -> FromKeeper {
        FromKeeper::Signal {
            task,
            signal,
            from_kernel,
            leads_group: true,
        }
    }

    /// A command without a terminal that becomes a ghost, in a process group of its own.
    pub(crate) fn start(&self, verb: &str) -> Child {
        let mut command = Command::new(launcher());
        command
            .arg(verb)
            .arg(self.dir.path().join("launch.sock"))
            .args(["sleep", "1000"]);
        as_user(&mut command, self.user);
        command
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .process_group(0);
        command.spawn().unwrap()
    }

    /// An interactive shell on a terminal; `$G` is the launcher (no function, whose job would
    /// be a subshell).
    pub(crate) fn shell(&self) -> Shell {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, vec![]).unwrap();
        let slave = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path.to_str().unwrap());
        let slave = slave.unwrap();
        if let Some(user) = self.user {
            std::os::unix::fs::fchown(&slave, Some(user), Some(user)).unwrap();
        }
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"]);
        as_user(&mut command, self.user);
        command
            .current_dir(self.dir.path())
            .env("HISTFILE", "")
            .env("TERM", "dumb");
        command
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave);
        let child = command.spawn().unwrap();
        let mut shell = Shell {
            master,
            child,
            text: String::new(),
        };
        shell.say("PS1='ready> '; ulimit -c unlimited; stty -echo");
        shell.say(&format!(
            "G='{} launch {}/launch.sock'; echo set''up",
            launcher().display(),
            self.dir.path().display()
        ));
        shell.expect("setup");
        shell.expect("ready> ");
        shell
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// bash, as a user has it.
pub(crate) struct Shell {
    master: OwnedFd,
    child: Child,
    text: String,
}

impl Shell {
    pub(crate) fn say(&mut self, line: &str) {
        self.press(&format!("{line}\n"));
    }

    pub(crate) fn press(&mut self, keys: &str) {
        rustix::io::write(&self.master, keys.as_bytes()).unwrap();
    }

    /// Reads on until `wanted` has come, and forgets everything up to there.
    pub(crate) fn expect(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.saw(wanted) {
            let rest = deadline.saturating_duration_since(Instant::now());
            assert!(!rest.is_zero(), "no {wanted:?} in {:?}", self.text);
            self.read(rest);
        }
    }

    /// Asserts that `unwanted` does not come for a while.
    pub(crate) fn expect_no(&mut self, unwanted: &str) {
        self.read(A_WHILE);
        assert!(
            !self.text.contains(unwanted),
            "{unwanted:?} in {:?}",
            self.text
        );
    }

    fn saw(&mut self, wanted: &str) -> bool {
        let found = self.text.find(wanted).map(|at| at + wanted.len());
        found.map(|end| self.text.drain(..end)).is_some()
    }

    fn read(&mut self, patience: Duration) {
        if readable(&self.master, patience) {
            let mut bytes = [0; 4096];
            let read = rustix::io::read(&self.master, &mut bytes).unwrap();
            self.text += &String::from_utf8_lossy(&bytes[..read]);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Hangs up first, by the order of fields that matters nothing here: setsid and bash end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SERVICE_UID: u32 = 4242;
/// Nobody in particular.
pub(crate) const ORDINARY_UID: u32 = 54321;

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Cargo builds examples together with tests.
pub(crate) fn launcher() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap()
        .join("examples/ghost_launcher");
    assert!(
        built.exists(),
        "run `cargo test -p wiglaf-process`, which builds the example"
    );
    built
}

fn as_user(command: &mut Command, user: Option<u32>) {
    if let Some(uid) = user {
        command.uid(uid).gid(uid);
    }
}

fn connect(path: PathBuf) -> Head {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(&path) {
            Ok(socket) => return Channel::new(socket.into()).unwrap(),
            Err(error) => assert!(Instant::now() < deadline, "no keeper: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn readable(fd: impl std::os::fd::AsFd, patience: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap(),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

/// `None` when nothing comes.
pub(crate) fn next_of<In, Out>(channel: &mut Channel<In, Out>, patience: Duration) -> Option<In>
where
    In: serde::de::DeserializeOwned,
    Out: serde::Serialize,
{
    loop {
        if let Some(message) = channel.next_message().unwrap() {
            return Some(message);
        }
        if !readable(&*channel, patience) {
            return None;
        }
        channel.receive().unwrap();
    }
}
