//! The head can't be reached while a program on another machine waits for its files.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use wiglaf_linux::process::kill;
use wiglaf_linux::tcp::set_longest_retry;

use crate::cluster::{command_line, output_of, processes, text, wait_for};
use crate::machines::Pair;

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
/// How long a killed program may take to end.
const SOON: Duration = Duration::from_secs(2);
/// Enough to see that something does not go on.
const WHILE: Duration = Duration::from_millis(700);

/// Asks for a file, having been loaded itself.
const READER: &str = "
import hashlib, sys, time
print('ready', flush=True)
time.sleep(1)
print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())
";

/// The same, and takes SIGINT for nothing.
const STUBBORN: &str = "
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: None)
print('ready', flush=True)
time.sleep(1)
open(sys.argv[1], 'rb').read()
";

/// Has a file open for writing, and more in it than the head has heard of; nobody is told when
/// it is closed.
const WRITER: &str = "
import sys, time
file = open(sys.argv[1], 'wb', buffering=0)
file.write(b'first')
print('ready', flush=True)
time.sleep(1)
for _ in range(20):
    file.write(b'x' * 65536)
";

/// Reads what it has not read, and writes, all the time: as many blocks as the big file has.
const WORKER: &str = "
import hashlib, os, sys, time
source, target = os.open(sys.argv[1], os.O_RDONLY), open(sys.argv[1] + '.copy', 'wb', buffering=0)
names = [sys.argv[1] + '.%d' % n for n in range(3)]
print('ready', flush=True)
sum = hashlib.sha256()
block, at = 65536, 0
while piece := os.pread(source, block, at):
    sum.update(piece)
    target.write(piece)
    at += len(piece)
    if at % (32 * block) == 0:
        os.fsync(target.fileno())
    name = names[at // block % 3]
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.rename(name, name + '.moved')
    os.unlink(name + '.moved')
    time.sleep(0.03)
target.close()
print(sum.hexdigest())
";

/// Longer than silence once was borne; the lease is longer still.
const LONG_CUT: Duration = Duration::from_secs(24);
/// Until a link goes on whose cable is good again: a retry, and what was waited for.
const GOES_ON: Duration = Duration::from_secs(15);

/// Two machines, and a directory that both see.
struct Scene {
    pair: Pair,
    dir: PathBuf,
}

impl Scene {
    fn set(name: &str, lease_ms: u64) -> Option<Scene> {
        let pair = Pair::start(&format!("lease_ms = {lease_ms}\n"))?;
        let dir = PathBuf::from(format!("/var/tmp/wiglaf-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let scene = Scene { pair, dir };
        for (name, program) in [
            ("reader.py", READER),
            ("stubborn.py", STUBBORN),
            ("writer.py", WRITER),
            ("worker.py", WORKER),
        ] {
            fs::write(scene.dir.join(name), program).unwrap();
        }
        let big: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(scene.dir.join("big"), big).unwrap();
        Some(scene)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The command line of one of the programs.
    fn python(&self, program: &str, file: &str) -> String {
        format!("python3 {} {}", self.path(program), self.path(file))
    }

    /// A task of a shell, from when it says that it is ready.
    fn task(&self, script: &str) -> Task {
        let mut child = self.pair.alice(script);
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{script}");
        Task { child, output }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Task {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Task {
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        rest
    }
}

fn find(command: &str) -> Option<i32> {
    processes()
        .into_iter()
        .find(|&pid| command_line(pid) == command)
}

/// Whether it waits for an answer rather than being about to do something else.
fn waits(pid: i32) -> bool {
    let stack = fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
    let wait_channel = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let all = stack + &wait_channel;
    ["request_wait_answer", "folio_wait", "fuse_", "wait_on_page"]
        .iter()
        .any(|name| all.contains(name))
}

fn wait_for_waiting(command: &str) -> i32 {
    let mut found = None;
    wait_for(
        "a program that waits for a file",
        || {
            found = find(command).filter(|&pid| waits(pid));
            found.is_some()
        },
        || format!("{:?}", find(command)),
    );
    found.expect("found")
}

#[test]
fn a_program_that_waits_goes_on_when_the_head_is_back() {
    let Some(scene) = Scene::set("back", 30_000) else {
        return;
    };
    let reader = scene.python("reader.py", "big");
    let writer = scene.python("writer.py", "new");
    let mut reading = scene.task(&format!("{reader}; echo code $?"));
    let mut writing = scene.task(&format!("{writer}; echo code $?"));
    scene.pair.machine.pull_cable();
    let pid = wait_for_waiting(&reader);
    sleep(Duration::from_secs(3));
    assert_eq!(find(&reader), Some(pid), "it can't have read the file");
    assert_eq!(fs::read(scene.path("new")).unwrap(), b"first");
    let plugged = Instant::now();
    scene.pair.machine.plug_cable();
    let local = output_of({
        let mut command = Command::new("sha256sum");
        command.arg(scene.path("big"));
        command
    });
    let (sum, local) = (reading.rest(), text(&local.stdout));
    println!("went on after {:?}", plugged.elapsed());
    assert_eq!(
        sum.split_once('\n'),
        local.split_once(' ').map(|(sum, _)| (sum, "code 0\n"))
    );
    assert_eq!(writing.rest(), "code 0\n");
    assert!(reading.child.wait().unwrap().success());
    assert!(writing.child.wait().unwrap().success());
    let written = fs::read(scene.path("new")).unwrap();
    assert_eq!(written.len(), 5 + 20 * 65536);
    assert!(
        written
            .strip_prefix(b"first")
            .is_some_and(|rest| rest.iter().all(|byte| *byte == b'x'))
    );
}

/// Waits, mostly, beside the other tests.
#[test]
fn a_cut_shorter_than_the_lease_loses_nothing() {
    let Some(scene) = Scene::set("cut", 60_000) else {
        return;
    };
    let worker = scene.python("worker.py", "big");
    let mut working = scene.task(&format!("{worker}; echo code $?"));
    sleep(WHILE);
    scene.pair.machine.swallow();
    let pid = wait_for_waiting(&worker);
    let copy = scene.path("big.copy");
    let written = fs::metadata(&copy).unwrap().len();
    assert!(written < 8_000_000, "the cable was cut too late: {written}");
    sleep(LONG_CUT);
    assert_eq!(find(&worker), Some(pid));
    assert!(waits(pid));
    scene.pair.machine.swallow_no_more();
    let good = Instant::now();
    let said = working.rest();
    let went_on = good.elapsed();
    let output = working.child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    let mut sum = Command::new("sha256sum");
    let local = output_of({
        sum.arg(scene.path("big"));
        sum
    });
    let local = text(&local.stdout);
    let sum = local.split_once(' ').unwrap().0;
    assert_eq!(said, format!("{sum}\ncode 0\n"));
    let big = fs::read(scene.path("big")).unwrap();
    assert!(fs::read(&copy).unwrap() == big, "the copy is another");
    println!("it was done after {went_on:?}");
    // Older kernels double their pauses.
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let can_be_bounded = set_longest_retry(&socket, GOES_ON).is_ok();
    assert!(went_on < GOES_ON || !can_be_bounded, "{went_on:?}");
}

#[test]
fn a_program_that_waits_can_be_killed() {
    let Some(scene) = Scene::set("killed", 40_000) else {
        return;
    };
    let commands = [
        scene.python("reader.py", "big"),
        scene.python("stubborn.py", "big"),
    ];
    let tasks: Vec<Task> = (commands.iter())
        .map(|command| scene.task(&format!("{command}; echo code $?")))
        .collect();
    scene.pair.machine.pull_cable();
    for (command, is_stubborn) in commands.iter().zip([false, true]) {
        let pid = wait_for_waiting(command);
        if is_stubborn {
            // The kernel tells the agent of this signal, and not of the next one.
            kill(pid, SIGINT).unwrap();
            sleep(WHILE);
            assert_eq!(find(command), Some(pid), "nothing has come for it");
        }
        let killed = Instant::now();
        kill(pid, SIGKILL).unwrap();
        wait_for("its end", || find(command).is_none(), || command.clone());
        assert!(killed.elapsed() < SOON, "{command}: {:?}", killed.elapsed());
    }
    scene.pair.machine.plug_cable();
    for mut task in tasks {
        assert_eq!(task.rest(), "code 137\n");
        assert!(task.child.wait().unwrap().success());
    }
}

#[test]
fn p4_programs_that_wait_are_ended_with_their_lease() {
    let Some(scene) = Scene::set("lease", 3_000) else {
        return;
    };
    let commands = [
        scene.python("reader.py", "big"),
        scene.python("stubborn.py", "big"),
        scene.python("writer.py", "new"),
    ];
    let tasks: Vec<Task> = (commands.iter())
        .map(|command| scene.task(&format!("{command}; echo code $?")))
        .collect();
    scene.pair.machine.swallow();
    let stubborn = wait_for_waiting(&commands[1]);
    kill(stubborn, SIGINT).unwrap();
    for (mut task, command) in tasks.into_iter().zip(&commands) {
        let said = task.rest();
        let output = task.child.wait_with_output().unwrap();
        let left = find(command);
        assert_eq!(left, None, "two incarnations could live: {command}");
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}{errors}");
        assert!(errors.contains("far fell silent"), "{errors}");
    }
    scene.pair.machine.swallow_no_more();
    scene.pair.wait_for_state("up");
    // The user has a task there again, so the node may write for this user. What the dead one
    // wrote does not come now, over what a successor may have written.
    let big = scene.path("big");
    let again = scene
        .pair
        .alice(&format!("wc -c <{big}; sleep 6"))
        .wait_with_output();
    assert_eq!(text(&again.unwrap().stdout), "8000000\n");
    assert_eq!(fs::read(scene.path("new")).unwrap(), b"first");
}
