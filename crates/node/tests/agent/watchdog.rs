//! An agent that is killed while one of its threads waits in the kernel for its own answer.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use wiglaf_linux::process::{pidfd_send_signal, wait};
use wiglaf_wire::id::Pid;
use wiglaf_wire::status::Status;
use wiglaf_wire::stream::Stream;
use wiglaf_wire::view::Change;

use crate::head::{Head, LONG_LEASE_MS, SIGKILL};
use crate::shell;

/// How long an agent may take to be gone.
const SOON: Duration = Duration::from_secs(1);
/// Enough to see that it is not.
const WHILE: Duration = Duration::from_millis(500);
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const LAST_SIGNAL: i32 = 64;
const NO_DEVICE: &str = "SKIPPED: /dev/fuse can't be opened";

pub(crate) fn an_agent_that_dies_while_the_kernel_waits_is_gone_soon() {
    let Some(mut scene) = Scene::set() else {
        return println!("{NO_DEVICE}");
    };
    let killed = Instant::now();
    scene.kill();
    assert!(scene.is_gone_within(SOON), "it stays");
    scene.expect_freed(killed);
}

/// What the other test proves something about.
pub(crate) fn without_a_watchdog_it_would_stay() {
    let Some(mut scene) = Scene::set() else {
        return println!("{NO_DEVICE}");
    };
    let watchdog = Stopped::stop(watchdog_of(scene.agent).expect("a watchdog"));
    scene.kill();
    assert!(!scene.is_gone_within(WHILE), "nothing holds it");
    assert_eq!(state(scene.agent, scene.agent), Some('Z'));
    assert_eq!(scene.notifier_state(), Some('D'));
    let task = state(scene.task, scene.task);
    assert!(!matches!(task, None | Some('Z')), "it lives on: {task:?}");
    assert!(!scene.asker.as_ref().is_some_and(JoinHandle::is_finished));
    let continued = Instant::now();
    drop(watchdog);
    assert!(scene.is_gone_within(SOON), "it stays");
    scene.expect_freed(continued);
}

pub(crate) fn a_watchdog_is_no_task_and_replaced() {
    if !has_device() {
        return println!("{NO_DEVICE}");
    }
    let mut head = Head::with_viewing_agent(LONG_LEASE_MS);
    let agent = head.agents[0].0;
    let first = watchdog_of(agent).expect("a watchdog");
    assert!(fs::read_dir(format!("/proc/{first}/fd")).unwrap().count() <= 1);
    let task = head.launch(shell(
        "echo up; setsid sleep 1000 & cat /etc/hostname; exit 3",
    ));
    assert_eq!(head.wait_end(task).0, Status::Exited(3));
    assert!(head.text(task, Stream::Output).starts_with("up\n"));
    assert!(head.list().is_empty(), "it is not the task's");
    assert_eq!(
        head.signal_process(inside(first).unwrap(), 9, None),
        Errno::SRCH.raw_os_error()
    );

    // Others' signals mean nothing.
    for number in [1, 2, SIGTERM, LAST_SIGNAL] {
        signal(first, number);
    }
    head.pump_for(Duration::from_millis(100));
    assert_eq!(watchdog_of(agent), Some(first));
    let task = head.launch(shell("ls /usr >/dev/null && exit 4"));
    assert_eq!(head.wait_end(task).0, Status::Exited(4));

    signal(first, SIGKILL);
    let is_new = |watchdog: Option<i32>| watchdog.is_some_and(|pid| pid != first);
    head.wait_until("another watchdog", |_| is_new(watchdog_of(agent)));
    let second = watchdog_of(agent).expect("a watchdog");
    assert!(fs::read_dir(format!("/proc/{second}/fd")).unwrap().count() <= 1);
    let task = head.launch(shell("setsid sleep 1000 & exit 5"));
    assert_eq!(head.wait_end(task), (Status::Exited(5), 1));
    assert!(head.list().is_empty());

    // That one does its work too.
    let mut scene = Scene::of(head);
    let killed = Instant::now();
    scene.kill();
    assert!(scene.is_gone_within(SOON), "it stays");
    scene.expect_freed(killed);
}

/// An agent whose notifier waits in the kernel for a directory that a process is looking into,
/// and whose answer to that process will not come.
struct Scene {
    head: Head,
    agent: i32,
    task: i32,
    asker: Option<JoinHandle<io::Error>>,
    directory: PathBuf,
}

impl Scene {
    fn set() -> Option<Scene> {
        has_device().then(|| Scene::of(Head::with_viewing_agent(LONG_LEASE_MS)))
    }

    fn of(mut head: Head) -> Scene {
        let agent = head.agents[0].0;
        let directory = PathBuf::from(format!("/var/tmp/wiglaf-watchdog-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let task = head.launch(shell("echo up; sleep 1000"));
        head.wait_until("the task", |head| head.text(task, Stream::Output) == "up\n");
        let number = Pid(head.pid(task));
        let main = children(agent).find(|&pid| inside(pid) == Some(number));
        let main = main.expect("the task");
        let mounts = fs::read_to_string(format!("/proc/{agent}/mountinfo")).unwrap();
        let view = mounts
            .lines()
            .find(|line| line.contains(" - fuse.wiglaf "))
            .and_then(|line| line.split(' ').nth(4))
            .expect("a view");
        let path = format!("/proc/{agent}/root{view}{}/slow", directory.display());
        head.hold = Some(b"slow");
        let asker = std::thread::spawn(move || fs::metadata(path).expect_err("it never was"));
        head.wait_until("the question", |head| !head.held.is_empty());
        let name = b"other".to_vec();
        let change = Change::Name {
            directory: head.held[0],
            name,
        };
        head.tell_change(&change);
        let mut scene = Scene {
            head,
            agent,
            task: main,
            asker: Some(asker),
            directory,
        };
        let is_waiting = |_: &mut Head| notifier_state(agent) == Some('D');
        scene.head.wait_until("the notifier to wait", is_waiting);
        scene
    }

    fn notifier_state(&self) -> Option<char> {
        notifier_state(self.agent)
    }

    fn pidfd(&self) -> &OwnedFd {
        &self.head.agents[0].1
    }

    fn kill(&mut self) {
        pidfd_send_signal(self.pidfd(), SIGKILL).unwrap();
    }

    fn is_gone_within(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).unwrap();
        poll(&mut [PollFd::new(self.pidfd(), PollFlags::IN)], Some(&time)) == Ok(1)
    }

    fn expect_freed(&mut self, since: Instant) {
        let error = self.asker.take().expect("once").join().expect("the asker");
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
        let errno = error.raw_os_error();
        let expected = [Errno::NOTCONN, Errno::CONNABORTED].map(Errno::raw_os_error);
        assert!(
            errno.is_some_and(|errno| expected.contains(&errno)),
            "{error}"
        );
        let (pid, _) = self.head.agents.remove(0);
        wait(pid, false).unwrap();
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn has_device() -> bool {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).open("/dev/fuse").is_ok()
}

/// A process that goes on when this is dropped: without its watchdog an agent would never end.
struct Stopped(i32);

impl Stopped {
    fn stop(pid: i32) -> Stopped {
        signal(pid, SIGSTOP);
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, SIGCONT);
    }
}

fn watchdog_of(agent: i32) -> Option<i32> {
    children(agent).find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).trim_end_matches('\0') == "wiglaf: watchdog"
    })
}

fn children(parent: i32) -> impl Iterator<Item = i32> {
    let parent = parent.to_string();
    let pids = fs::read_dir("/proc").unwrap();
    pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(move |&pid| status(pid, "PPid:").as_ref() == Some(&parent))
}

/// The PID that a process has in the innermost namespace.
fn inside(pid: i32) -> Option<Pid> {
    let all = status(pid, "NSpid:")?;
    all.rsplit('\t').next()?.parse().ok().map(Pid)
}

fn status(pid: i32, what: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(what))?;
    Some(value.trim().to_owned())
}

fn notifier_state(agent: i32) -> Option<char> {
    let threads = fs::read_dir(format!("/proc/{agent}/task")).ok()?;
    let mut threads = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    threads.find_map(|thread: i32| {
        let name = fs::read_to_string(format!("/proc/{agent}/task/{thread}/comm")).ok()?;
        name.starts_with("wiglaf: notify")
            .then(|| state(agent, thread))?
    })
}

fn state(pid: i32, thread: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn signal(pid: i32, number: i32) {
    wiglaf_linux::process::kill(pid, number).unwrap();
}
