//! Where a test of files takes place.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{
    Cluster, PATIENCE, User, as_user, is_root, may_have_views, output_of, skip, text, wiglaf,
};

/// Where the head and all nodes have the same files, whatever is done about /tmp.
const SHARED: &str = "/var/tmp";

/// When a change must be seen by who runs already. V3 says one round trip after it was noticed;
/// this leaves room for a loaded machine.
const SOON: Duration = Duration::from_secs(3);

/// The programs that tests run, by name.
const PROGRAMS: [(&str, &str); 8] = [
    ("place.py", include_str!("programs/place.py")),
    ("checks.py", include_str!("programs/checks.py")),
    ("contents.py", include_str!("programs/contents.py")),
    ("names.py", include_str!("programs/names.py")),
    ("between.py", include_str!("programs/between.py")),
    ("database.py", include_str!("programs/database.py")),
    ("library.c", include_str!("programs/library.c")),
    ("program.c", include_str!("programs/program.c")),
];

/// On which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum At {
    Head,
    /// n1, n2 …
    Node(u32),
}

/// A cluster whose nodes have the view, or nothing but this machine; and a directory.
pub(crate) struct Ground {
    cluster: Option<Cluster>,
    nodes: u32,
    dir: TestDirectory,
}

/// A directory of the head's for one test, with file systems that were mounted in it.
pub(crate) struct TestDirectory {
    path: PathBuf,
    mounted: Vec<PathBuf>,
}

impl TestDirectory {
    /// For a cluster; says why there can't be one.
    pub(crate) fn new(name: &str) -> Option<TestDirectory> {
        if !is_root() {
            skip("tests of files become several users, which only root can");
            return None;
        }
        let path = Path::new(SHARED).join(format!("wiglaf-{}-{name}", std::process::id()));
        let programs = path.join("programs");
        fs::create_dir_all(&programs).expect("root writes to /var/tmp");
        for (name, content) in PROGRAMS {
            fs::write(programs.join(name), content).expect("a fresh file");
        }
        for dir in [&path, &programs] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("ours");
        }
        Some(TestDirectory {
            path,
            mounted: Vec::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts something by mount(8)'s words; whether that is possible.
    pub(crate) fn mount(&mut self, name: &str, args: &[&str]) -> bool {
        let at = self.path.join(name);
        fs::create_dir_all(&at).expect("a fresh directory");
        let mut command = Command::new("mount");
        command.args(args).arg(&at);
        let is_there = output_of(command).status.success();
        if is_there {
            self.mounted.push(at);
        }
        is_there
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        for at in &self.mounted {
            let mut command = Command::new("umount");
            command.arg("-l").arg(at);
            let _ = command.output();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Ground {
    /// This machine, which plays the nodes too; or says why not.
    pub(crate) fn native(name: &str, nodes: u32) -> Option<Ground> {
        let dir = TestDirectory::new(&format!("native-{name}"))?;
        Some(Ground::native_in(dir, nodes))
    }

    pub(crate) fn native_in(dir: TestDirectory, nodes: u32) -> Ground {
        Ground {
            cluster: None,
            nodes,
            dir,
        }
    }

    /// A cluster of nodes that see the head's files through the view; or says why not.
    pub(crate) fn view(name: &str, nodes: u32) -> Option<Ground> {
        Ground::view_in(TestDirectory::new(name)?, nodes)
    }

    pub(crate) fn view_in(dir: TestDirectory, nodes: u32) -> Option<Ground> {
        if !may_have_views() {
            return None;
        }
        let cluster = Cluster::prepare(User::Root);
        cluster.ok(&["up", "-n", &nodes.to_string()]);
        Some(Ground {
            cluster: Some(cluster),
            nodes,
            dir,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file or directory of the test's, as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir().join(name).display().to_string()
    }

    /// One of the programs beside this file.
    pub(crate) fn program(&self, name: &str) -> String {
        self.path(&format!("programs/{name}"))
    }

    /// A directory that everybody may write to.
    pub(crate) fn open_directory(&self, name: &str) -> String {
        let path = self.dir().join(name);
        fs::create_dir_all(&path).expect("the test's directory can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
        path.display().to_string()
    }

    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = At> + use<> {
        (1..=self.nodes).map(At::Node)
    }

    pub(crate) fn everywhere(&self) -> impl Iterator<Item = At> + use<> {
        std::iter::once(At::Head).chain(self.nodes())
    }

    /// A command there, as somebody.
    pub(crate) fn command_as(&self, user: User, at: At, args: &[&str]) -> Command {
        let mut command = match (&self.cluster, at) {
            (Some(cluster), At::Node(number)) => {
                let node = format!("n{number}");
                let mut all = vec!["run", "-w", &node, "--"];
                all.extend(args);
                cluster.command_as(user, &all)
            }
            _ => {
                let mut command = as_user(user, Path::new(args[0]));
                command.args(&args[1..]);
                command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
                command
            }
        };
        command
            .env("HOME", self.dir())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(self.dir())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn command(&self, at: At, args: &[&str]) -> Command {
        self.command_as(User::Root, at, args)
    }

    pub(crate) fn run_as(&self, user: User, at: At, args: &[&str]) -> Output {
        output_of(self.command_as(user, at, args))
    }

    pub(crate) fn run(&self, at: At, args: &[&str]) -> Output {
        self.run_as(User::Root, at, args)
    }

    /// Standard output of what must succeed.
    pub(crate) fn ok(&self, at: At, args: &[&str]) -> String {
        let output = self.run(at, args);
        assert!(
            output.status.success(),
            "{args:?} at {at:?}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// A shell script's standard output; it must succeed.
    pub(crate) fn sh(&self, at: At, script: &str) -> String {
        self.ok(at, &["sh", "-ec", script])
    }

    /// A long-lived process there that does as it is told.
    pub(crate) fn place(&self, at: At) -> Place {
        self.place_as(User::Root, at)
    }

    pub(crate) fn place_as(&self, user: User, at: At) -> Place {
        let script = self.program("place.py");
        Place::start(at, self.command_as(user, at, &["python3", "-u", &script]))
    }

    pub(crate) fn down(mut self) {
        if let Some(cluster) = self.cluster.take() {
            cluster.down();
        }
    }
}

/// A process somewhere that evaluates Python, one line for each question and answer, so that
/// thousands of steps need no launch.
pub(crate) struct Place {
    at: At,
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<Value>,
}

/// What a place answers: a value, or an errno.
pub(crate) type Outcome = Result<Value, i64>;

impl Place {
    fn start(at: At, mut command: Command) -> Place {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the place starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| json!({"broken": format!("{error}: {line}")}));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let mut place = Place {
            at,
            stdin: child.stdin.take(),
            child,
            answers,
        };
        assert_eq!(place.ask("'ready'"), json!("ready"));
        place
    }

    pub(crate) fn at(&self) -> At {
        self.at
    }

    /// Sends a question; [`Place::answer`] gives what comes of it.
    pub(crate) fn send(&mut self, code: &str) {
        let line = serde_json::to_string(code).expect("a text");
        let stdin = self.stdin.as_mut().expect("not finished");
        writeln!(stdin, "{line}").unwrap_or_else(|error| panic!("{:?}: {error}", self.at));
    }

    pub(crate) fn answer(&mut self) -> Outcome {
        self.answer_within(PATIENCE)
            .unwrap_or_else(|| panic!("{:?} does not answer", self.at))
    }

    pub(crate) fn answer_within(&mut self, patience: Duration) -> Option<Outcome> {
        let answer = match self.answers.recv_timeout(patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{:?} has ended: {:?}", self.at, self.child.wait())
            }
        };
        if let Some(errno) = answer["errno"].as_i64() {
            return Some(Err(errno));
        }
        assert!(answer.get("value").is_some(), "{:?}: {answer}", self.at);
        Some(Ok(answer["value"].clone()))
    }

    /// The value, or the errno.
    pub(crate) fn attempt(&mut self, code: &str) -> Outcome {
        self.send(code);
        self.answer()
    }

    /// The value of what must succeed.
    pub(crate) fn ask(&mut self, code: &str) -> Value {
        self.attempt(code)
            .unwrap_or_else(|errno| panic!("{code} at {:?}: errno {errno}", self.at))
    }

    /// Asks until the answer is as expected, which it must be soon; how long that took.
    pub(crate) fn until(&mut self, question: &str, expected: &Value) -> Duration {
        let begun = Instant::now();
        loop {
            let asked = begun.elapsed();
            let seen = self.ask(question);
            if seen == *expected {
                return asked;
            }
            assert!(
                asked < SOON,
                "{:?} still sees after {asked:?}: {}",
                self.at,
                difference(&seen, expected)
            );
        }
    }

    /// Ends it, and gives its exit code.
    pub(crate) fn finish(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().expect("ours").code()
    }

    /// Ends it rudely.
    pub(crate) fn kill(mut self) {
        let pid = i32::try_from(self.child.id()).expect("a PID");
        wiglaf_linux::process::kill(pid, 9).expect("it is there");
        self.child.wait().expect("ours");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if std::thread::panicking() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Where `cargo xtask ci` puts the programs that it installs for tests.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    wiglaf()
        .ancestors()
        .map(|dir| dir.join("tools/bin").join(name))
        .find(|path| path.exists())
}

/// What only one of two lists has, cut short.
pub(crate) fn difference(seen: &Value, expected: &Value) -> String {
    if !seen.is_array() {
        return format!("{seen:.200} rather than {expected:.200}");
    }
    let empty = Vec::new();
    let (one, two) = (
        seen.as_array().unwrap_or(&empty),
        expected.as_array().unwrap_or(&empty),
    );
    let only = |of: &[Value], not: &[Value]| -> Vec<String> {
        of.iter()
            .filter(|each| !not.contains(each))
            .map(|each| each.to_string().chars().take(150).collect())
            .collect()
    };
    format!("{:#?} rather than {:#?}", only(one, two), only(two, one))
}
