//! A second machine: a network namespace with a cable to this one, and an agent beside another
//! system in it.

mod care;
mod kept;
mod starting;

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use wiglaf_linux::process::kill;

use crate::cluster::{
    ALICE, Cluster, User, command_line, is_root, may_have_views, output_of, processes, skip,
};
use crate::cluster::{text, wait_for, wiglaf};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;
const PORT: u16 = 7494;
/// For measurements between machines (RFC 2544): nobody routes it.
const NETWORK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const SUBNETS: u32 = 1 << 14;

static MACHINES: AtomicU32 = AtomicU32::new(0);

/// The other machine, and the cable's ends.
pub(crate) struct Machine {
    space: String,
    cable: String,
    head: Ipv4Addr,
}

impl Machine {
    fn new() -> Option<Machine> {
        if !is_root() {
            skip("only root makes network namespaces");
            return None;
        }
        if !may_have_views() {
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            skip("there is no iproute2");
            return None;
        }
        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let subnet = (pid.wrapping_mul(16) + number) % SUBNETS;
        let at = |host| Ipv4Addr::from(u32::from(NETWORK) + subnet * 4 + host);
        let machine = Machine {
            space: format!("wgtest{pid}-{number}"),
            cable: format!("wt{pid}.{number}"),
            head: at(1),
        };
        let (space, cable) = (&machine.space, &machine.cable);
        ip(&format!("netns add {space}"));
        ip(&format!(
            "link add {cable} type veth peer name far0 netns {space}"
        ));
        ip(&format!("address add {}/30 dev {cable}", at(1)));
        ip(&format!("link set {cable} up"));
        ip(&format!("-n {space} address add {}/30 dev far0", at(2)));
        ip(&format!("-n {space} link set far0 up"));
        ip(&format!("-n {space} link set lo up"));
        Some(machine)
    }

    pub(crate) fn pull_cable(&self) {
        ip(&format!("link set {} down", self.cable));
    }

    pub(crate) fn plug_cable(&self) {
        ip(&format!("link set {} up", self.cable));
    }

    /// Has the cable swallow everything, of which, unlike of a pulled one, no kernel hears: what is
    /// sent is for a machine that there is not.
    pub(crate) fn swallow(&self) {
        self.each_end("replace", "lladdr 02:00:00:00:00:01 nud permanent ");
    }

    pub(crate) fn swallow_no_more(&self) {
        self.each_end("delete", "");
    }

    /// Changes what each end takes for the address of the other.
    fn each_end(&self, verb: &str, what: &str) {
        let there = Ipv4Addr::from(u32::from(self.head) + 1);
        let (space, cable, head) = (&self.space, &self.cable, self.head);
        ip(&format!("neighbour {verb} {there} {what}dev {cable}"));
        ip(&format!(
            "-n {space} neighbour {verb} {head} {what}dev far0"
        ));
    }

    /// Runs our binary there.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.space])
            .arg(wiglaf())
            .args(args);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn agent_command(&self, token_file: &str) -> Command {
        let head = self.head.to_string();
        self.command(&[
            "node",
            "agent",
            "--head",
            &head,
            "--token-file",
            token_file,
            "--name",
            "far",
        ])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "delete", &self.cable])
            .output();
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.space])
            .output();
    }
}

fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split(' '))
        .output()
        .expect("iproute2");
    assert!(
        output.status.success(),
        "ip {words}: {}",
        text(&output.stderr)
    );
}

/// A cluster whose head listens for a second machine, which has an agent. The order of the fields
/// is that in which they end.
pub(crate) struct Pair {
    pub(crate) cluster: Cluster,
    pub(crate) machine: Machine,
    agent: Child,
    head: HeadProcess,
}

impl Pair {
    pub(crate) fn start(config: &str) -> Option<Pair> {
        let machine = Machine::new()?;
        let (head, cluster) = start_head(&machine, config);
        let token = token_file(&cluster, "token", &cluster.ok(&["node", "token"]));
        let log = fs::File::create(cluster.dir.join("agent.log")).unwrap();
        let agent = machine.agent_command(&token).stderr(log).spawn().unwrap();
        let pair = Pair {
            cluster,
            machine,
            agent,
            head,
        };
        pair.cluster.ok(&["nodes", "--wait", "1"]);
        Some(pair)
    }

    fn state(&self) -> String {
        let nodes = self.cluster.json(&["nodes", "--json"]);
        nodes[0]["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn wait_for_state(&self, state: &str) {
        wait_for(state, || self.state() == state, || self.state());
    }

    pub(crate) fn alice(&self, script: &str) -> Child {
        self.cluster
            .command_as(ALICE, &["run", "-w", "far", "sh", "-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits until it runs there.
    fn wait_for_task(&self, marker: &str) {
        let runs = || {
            self.cluster
                .remote_commands()
                .iter()
                .any(|line| line.contains(marker))
        };
        wait_for("the task", runs, String::new);
    }

    fn end_agent(&mut self) {
        let _ = kill(self.agent.id().cast_signed(), SIGTERM);
        self.agent.wait().unwrap();
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.cluster.dir.join("agent.log"));
            println!("--- agent.log\n{}", log.unwrap_or_default());
        }
        let _ = kill(self.agent.id().cast_signed(), SIGKILL);
        let _ = self.agent.wait();
    }
}

/// A head that the cluster's end ends.
struct HeadProcess(Child);

impl Drop for HeadProcess {
    fn drop(&mut self) {
        let _ = self.0.wait();
    }
}

/// A head in the foreground, as a service manager starts it.
fn start_head(machine: &Machine, config: &str) -> (HeadProcess, Cluster) {
    let cluster = Cluster::prepare(User::Root);
    cluster.ok(&["init"]);
    let listen = format!("listen = \"{}:{PORT}\"\n{config}", machine.head);
    fs::write(cluster.dir.join("state/wiglaf.toml"), listen).unwrap();
    let log = fs::File::create(cluster.dir.join("state/head.log")).unwrap();
    let head = cluster.command(&["head"]).stderr(log).spawn().unwrap();
    let is_listening = || cluster.wiglaf(&["nodes"]).status.success();
    wait_for("the head", is_listening, String::new);
    (HeadProcess(head), cluster)
}

fn token_file(cluster: &Cluster, name: &str, token: &str) -> String {
    let path = cluster.dir.join(name);
    fs::write(&path, token).unwrap();
    path.display().to_string()
}

fn lives(marker: &str) -> bool {
    processes()
        .into_iter()
        .any(|pid| command_line(pid) == marker)
}

fn refused(output: &Output, why: &str) {
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains(why),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_second_machine_runs_tasks_and_leaves_in_order() {
    let Some(mut pair) = Pair::start("") else {
        return;
    };
    let output = pair
        .alice("id -u; ls /sys/class/net; ls /usr/bin | wc -l")
        .wait_with_output();
    let output = output.unwrap();
    let count = fs::read_dir("/usr/bin").unwrap().count();
    assert_eq!(
        text(&output.stdout),
        format!("54321\nfar0\nlo\n{count}\n"),
        "{}",
        text(&output.stderr)
    );
    let python = pair
        .alice("python3 -c 'import json; print(json.dumps([1]))'")
        .wait_with_output();
    assert_eq!(text(&python.unwrap().stdout), "[1]\n");
    let code = pair.alice("exit 7").wait().unwrap().code();
    assert_eq!(code, Some(7));
    // Root there could do on the head what it likes.
    let root = pair.cluster.wiglaf(&["run", "-w", "far", "true"]);
    refused(&root, "root's processes may not run on far");
    assert!(
        text(&root.stderr).contains("root_on_nodes"),
        "{}",
        text(&root.stderr)
    );

    let task = pair.alice("exec sleep 98701");
    pair.wait_for_task("sleep 98701");
    let asked = Instant::now();
    pair.end_agent();
    let output = task.wait_with_output().unwrap();
    refused(&output, "far was asked to leave the cluster");
    pair.wait_for_state("down");
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "the head waited for the fence"
    );
    assert!(!lives("sleep 98701"));
}

#[test]
fn p4_a_machine_that_is_cut_off_ends_its_tasks_before_the_head_says_so() {
    let Some(pair) = Pair::start("lease_ms = 2000\n") else {
        return;
    };
    let task = pair.alice("exec sleep 98702");
    pair.wait_for_task("sleep 98702");
    pair.machine.pull_cable();
    pair.wait_for_state("suspect");
    let output = task.wait_with_output().unwrap();
    assert!(!lives("sleep 98702"), "two incarnations could live");
    refused(&output, "far fell silent while the command ran there");
    assert_eq!(pair.state(), "down");
    // It comes back by itself.
    pair.machine.plug_cable();
    pair.wait_for_state("up");
    let again = pair.alice("echo back").wait_with_output().unwrap();
    assert_eq!(text(&again.stdout), "back\n", "{}", text(&again.stderr));
}

#[test]
fn p4_a_machine_that_comes_back_in_time_keeps_its_tasks() {
    const LEASE_MS: u64 = 16_000;
    let Some(pair) = Pair::start(&format!("lease_ms = {LEASE_MS}\n")) else {
        return;
    };
    let script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done; ls -d /usr";
    let task = pair.alice(script);
    pair.wait_for_task("sleep");
    pair.machine.pull_cable();
    pair.wait_for_state("suspect");
    sleep(Duration::from_millis(500));
    pair.machine.plug_cable();
    let output = task.wait_with_output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "1\n2\n3\n4\n5\n6\n/usr\n",
        "{}",
        text(&output.stderr)
    );
    assert!(output.status.success(), "{}", output.status);
    pair.wait_for_state("up");
}

#[test]
fn a_supervisor_that_is_killed_takes_the_machine_along() {
    // Not so short that a busy machine ends it before it is killed.
    let Some(mut pair) = Pair::start("lease_ms = 6000\n") else {
        return;
    };
    let task = pair.alice("exec sleep 98703");
    pair.wait_for_task("sleep 98703");
    kill(pair.agent.id().cast_signed(), SIGKILL).unwrap();
    pair.agent.wait().unwrap();
    wait_for(
        "the task's end there",
        || !lives("sleep 98703"),
        String::new,
    );
    let output = task.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
}

#[test]
fn tokens_that_are_not_this_heads_are_refused_with_the_reason() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let (_head, cluster) = start_head(&machine, "");
    let token = cluster.ok(&["node", "token"]);
    let (authority, _) = token.rsplit_once('-').unwrap();
    let guessed = token_file(
        &cluster,
        "guessed",
        &format!("{authority}-{}", "ab".repeat(16)),
    );
    let output = output_of(machine.agent_command(&guessed));
    assert_ne!(output.status.code(), Some(0));
    assert!(
        text(&output.stderr).contains("does not know this token"),
        "{}",
        text(&output.stderr)
    );

    let other = Cluster::start_as(User::Root, 1);
    let foreign = token_file(&cluster, "foreign", &other.ok(&["node", "token"]));
    other.down();
    let output = output_of(machine.agent_command(&foreign));
    assert_ne!(output.status.code(), Some(0));
    let why = "not of the cluster that the token is for";
    assert!(
        text(&output.stderr).contains(why),
        "{}",
        text(&output.stderr)
    );

    let nonsense = token_file(&cluster, "nonsense", "hello\n");
    let output = output_of(machine.agent_command(&nonsense));
    assert_ne!(output.status.code(), Some(0));
    assert!(
        cluster
            .json(&["nodes", "--json"])
            .as_array()
            .unwrap()
            .is_empty()
    );
    cluster.down();
}
