//! A cluster for a test: made, used, and shown to leave nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test fails rather than hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// Who a cluster or a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    /// An ordinary user: uid and gid.
    Id(u32),
}

/// Nobody in particular; two of them.
pub(crate) const ALICE: User = User::Id(54_321);
pub(crate) const BOB: User = User::Id(54_322);
/// Whose processes are all killed, so no other test may be run as this user.
pub(crate) const DOOMED: User = User::Id(54_323);
/// Has a cluster.
pub(crate) const OWNER: User = User::Id(54_324);

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) owner: User,
    down: bool,
    /// Of its nodes, as `/proc/PID/ns` names them.
    namespaces: Vec<String>,
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says aloud that a test is skipped; xtask counts these lines.
pub(crate) fn skip(reason: &str) {
    println!("SKIPPED: {reason}");
}

/// Whether nodes can show files here; says why not.
pub(crate) fn may_have_views() -> bool {
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(error) = &device {
        skip(&format!("/dev/fuse can't be opened: {error}"));
    }
    device.is_ok()
}

impl Cluster {
    /// As root, or says why not.
    pub(crate) fn start(nodes: u32) -> Option<Cluster> {
        if !is_root() {
            skip("clusters of this test are made by root");
            return None;
        }
        Some(Cluster::start_as(User::Root, nodes))
    }

    pub(crate) fn start_as(owner: User, nodes: u32) -> Cluster {
        let mut cluster = Cluster::prepare(owner);
        let up = cluster.wiglaf(&["up", "-n", &nodes.to_string()]);
        assert!(up.status.success(), "up failed: {}", text(&up.stderr));
        cluster.namespaces = cluster.node_namespaces();
        cluster
    }

    /// A cluster's directories, before `up`.
    pub(crate) fn prepare(owner: User) -> Cluster {
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        // Short, for the sake of socket paths, and reachable by ordinary users.
        let dir = PathBuf::from(format!("/tmp/wg{}-{number}", std::process::id()));
        fs::create_dir(&dir).expect("a fresh directory below /tmp");
        if let User::Id(id) = owner {
            std::os::unix::fs::chown(&dir, Some(id), Some(id)).expect("root gives it away");
        }
        Cluster {
            dir,
            owner,
            down: false,
            namespaces: Vec::new(),
        }
    }

    /// The command, as the cluster's owner.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_as(self.owner, args)
    }

    /// The command, as somebody.
    pub(crate) fn command_as(&self, user: User, args: &[&str]) -> Command {
        let mut command = as_user(user, wiglaf());
        command.args(args);
        self.equip(&mut command);
        command
    }

    /// A shell script in which `wiglaf` is ours.
    pub(crate) fn script(&self, script: &str) -> Output {
        self.script_as(self.owner, script)
    }

    pub(crate) fn script_as(&self, user: User, script: &str) -> Output {
        let mut command = as_user(user, Path::new("/bin/bash"));
        command.args(["-c", script]);
        self.equip(&mut command);
        output_of(command)
    }

    fn equip(&self, command: &mut Command) {
        let bin = wiglaf()
            .parent()
            .expect("the binary is in a directory")
            .display()
            .to_string();
        command
            .env("WIGLAF_DIR", &self.dir)
            .env("PATH", format!("{bin}:/usr/bin:/bin:/usr/sbin:/sbin"))
            .current_dir("/tmp")
            .stdin(Stdio::null());
    }

    pub(crate) fn wiglaf(&self, args: &[&str]) -> Output {
        output_of(self.command(args))
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.wiglaf(args);
        assert!(
            output.status.success(),
            "wiglaf {args:?}: {} {}",
            output.status,
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).expect("valid JSON")
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts")
    }

    /// PIDs of the processes whose command line begins so, in the head's table, that belong to
    /// this cluster's daemons.
    pub(crate) fn daemon(&self, title: &str) -> Vec<i32> {
        let marker = self.dir.display().to_string();
        processes()
            .into_iter()
            .filter(|pid| {
                command_line(*pid).starts_with(title)
                    && fs::read(format!("/proc/{pid}/environ"))
                        .is_ok_and(|env| text(&env).contains(&marker))
            })
            .collect()
    }

    /// Whether a head runs that is not this process.
    pub(crate) fn has_another_head(&self, than: i32) -> bool {
        self.daemon("wiglaf: head").iter().any(|pid| *pid != than)
    }

    /// The agents' processes in the head's table: children of this cluster's rack.
    pub(crate) fn agent(&self, name: &str) -> i32 {
        let rack = fs::read_to_string(self.dir.join("run/rack.pid")).expect("a rack runs");
        let rack: i32 = rack
            .split(' ')
            .next()
            .expect("a PID")
            .parse()
            .expect("a number");
        children(rack)
            .into_iter()
            .find(|pid| command_line(*pid).contains(&format!("agent {name}")))
            .unwrap_or_else(|| panic!("no agent {name} below {rack}"))
    }

    /// Processes on the nodes, by the cluster's own word.
    pub(crate) fn remote_commands(&self) -> Vec<String> {
        let list = self.json(&["ps", "--json"]);
        let list = list.as_array().expect("a list");
        list.iter()
            .map(|row| row["command"].as_str().expect("a text").to_owned())
            .collect()
    }

    /// Ends the cluster and shows that nothing of it remains.
    pub(crate) fn down(mut self) {
        self.take_down();
    }

    fn take_down(&mut self) {
        if std::mem::replace(&mut self.down, true) {
            return;
        }
        let output = self.wiglaf(&["down"]);
        assert!(
            output.status.success(),
            "down failed: {}",
            text(&output.stderr)
        );
        self.assert_nothing_left();
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Those of the agents, but for what they share with this process.
    fn node_namespaces(&self) -> Vec<String> {
        let own = namespaces("self");
        let agents = self.daemon("wiglaf: agent").into_iter();
        let all = agents.flat_map(|pid| namespaces(&pid.to_string()));
        let theirs: Vec<_> = all.filter(|name| !own.contains(name)).collect();
        assert!(!theirs.is_empty(), "nodes have namespaces of their own");
        theirs
    }

    fn assert_nothing_left(&self) {
        let marker = self.dir.display().to_string();
        let remains = || -> Vec<String> {
            let mut found: Vec<String> = processes()
                .into_iter()
                .filter(|pid| {
                    let line = command_line(*pid);
                    line.starts_with("wiglaf:")
                        && fs::read(format!("/proc/{pid}/environ"))
                            .is_ok_and(|env| text(&env).contains(&marker))
                })
                .map(|pid| format!("process {pid}: {}", command_line(pid)))
                .collect();
            let sockets = fs::read_to_string("/proc/net/unix").expect("readable");
            found.extend(
                sockets
                    .lines()
                    .filter(|l| l.contains(&marker))
                    .map(str::to_owned),
            );
            let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
            for pid in processes() {
                for name in namespaces(&pid.to_string()) {
                    if self.namespaces.contains(&name) {
                        found.push(format!("{name} of process {pid}"));
                    }
                }
            }
            found.extend(
                mounts
                    .lines()
                    .filter(|line| self.namespaces.iter().any(|name| line.contains(name)))
                    .map(str::to_owned),
            );
            found.extend(
                mounts
                    .lines()
                    .filter(|l| l.contains(&marker))
                    .map(str::to_owned),
            );
            for file in fs::read_dir(self.dir.join("run"))
                .into_iter()
                .flatten()
                .flatten()
            {
                found.push(format!("file {}", file.path().display()));
            }
            found
        };
        wait_for(
            "nothing of the cluster to be left",
            || remains().is_empty(),
            || format!("{:#?}", remains()),
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if !self.down {
                let _ = self.command(&["down"]).output();
                for log in ["head", "keeper", "rack"] {
                    let path = self.dir.join(format!("state/{log}.log"));
                    println!(
                        "--- {log}.log\n{}",
                        fs::read_to_string(path).unwrap_or_default()
                    );
                }
            }
            let _ = fs::remove_dir_all(&self.dir);
        } else {
            self.take_down();
        }
    }
}

pub(crate) fn wiglaf() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wiglaf"))
}

/// A command that runs as somebody.
pub(crate) fn as_user(user: User, program: &Path) -> Command {
    match user {
        User::Root => Command::new(program),
        User::Id(id) => {
            let mut command = Command::new("setpriv");
            let (uid, gid) = (format!("--reuid={id}"), format!("--regid={id}"));
            command
                .args([&uid, &gid, "--clear-groups", "--"])
                .arg(program);
            command
        }
    }
}

/// Runs a command to its end, which comes in time.
pub(crate) fn output_of(mut command: Command) -> Output {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = i32::try_from(child.id()).expect("a PID");
    let (done, watched) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if watched
            .recv_timeout(PATIENCE)
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            let _ = wiglaf_linux::process::kill(pid, 9);
            return true;
        }
        false
    });
    let output = child.wait_with_output().expect("it can be waited for");
    drop(done);
    let late = watchdog.join().expect("the watchdog does not panic");
    assert!(
        !late,
        "{command:?} did not end: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until something is so.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for {what}: {}", state());
        std::thread::sleep(POLL);
    }
}

/// A process's namespaces, as `net:[4026531833]`.
fn namespaces(pid: &str) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/ns"))
        .into_iter()
        .flatten();
    links
        .flatten()
        .filter(|link| {
            !link
                .file_name()
                .to_string_lossy()
                .ends_with("_for_children")
        })
        .filter_map(|link| fs::read_link(link.path()).ok())
        .map(|name| name.display().to_string())
        .collect()
}

pub(crate) fn processes() -> Vec<i32> {
    fs::read_dir("/proc")
        .expect("/proc is there")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

pub(crate) fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text(&bytes).trim_end_matches('\0').replace('\0', " ")
}

/// State letter of proc_pid_stat(5); `-` for no process.
pub(crate) fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next())
        .unwrap_or('-')
}

pub(crate) fn children(pid: i32) -> Vec<i32> {
    processes()
        .into_iter()
        .filter(|child| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
                == Some(pid)
        })
        .collect()
}
