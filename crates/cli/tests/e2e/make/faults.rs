//! Lines that fail, keys, signals, and processes of the cluster that die in mid-build.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use wiglaf_linux::process::kill;

use super::{Tree, succeeded};
use crate::cluster::{Cluster, User, command_line, processes, text, wait_for};
use crate::terminal::Shell;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

const FAILING: &str = "\
all: bad good signal
good:
\t@gcc --version >/dev/null; sleep 0.2; echo good
bad:
\tgcc -c -o bad.o bad.c
signal: x.o
\tgcc -c -o y.o x.c; kill -9 $$$$
x.o: x.c
\tgcc -c -o $@ $<
";

/// A line for a node that says when it has begun and waits to be let go.
const SLOW: &str = "\
all: first second
first: x.c
\t@gcc -c -o first.o x.c && echo begun && touch begun && while ! [ -e go ]; do sleep 0.05; done; \
readlink /proc/self/ns/pid > first.where; echo ended
second: first
\t@gcc -c -o second.o x.c && echo second
";

fn tree(cluster: &Cluster, makefile: &str) -> Tree {
    let tree = Tree::new(cluster, User::Root);
    tree.write(&[
        ("Makefile", makefile),
        ("x.c", "int x;\n"),
        ("bad.c", "int bad(\n"),
    ]);
    tree
}

impl Tree {
    fn start(&self, cluster: &Cluster, script: &str) -> Child {
        let child = self
            .command(cluster, &format!("exec 2>&1; exec {script}"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash starts");
        self.await_begun();
        child
    }

    fn await_begun(&self) {
        let begun = self.directory.join("begun");
        wait_for("the line to begin", || begun.exists(), String::new);
    }

    fn let_go(&self) {
        fs::write(self.directory.join("go"), "").expect("written");
    }
}

#[test]
fn a_line_that_fails_fails_as_with_make() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    for options in ["", "-k", "-i"] {
        let tree = tree(&cluster, FAILING);
        let plain = tree.run(&cluster, &format!("make {options}"));
        let files = tree.files();
        let tree = self::tree(&cluster, FAILING);
        let script = format!("wiglaf make --require-cluster {options}");
        assert_eq!(tree.run(&cluster, &script), plain, "{options}");
        assert_eq!(tree.files(), files, "{options}");
    }
    cluster.down();
}

#[test]
fn a_node_that_dies_in_mid_build_costs_its_line_a_second_beginning() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = tree(&cluster, SLOW);
    let build = tree.start(&cluster, "wiglaf make --require-cluster --nodes n[1-2]");
    let line = cluster.json(&["ps", "--json"]);
    let node = line[0]["node"].as_str().expect("a name").to_owned();
    kill(cluster.agent(&node), SIGKILL).expect("it lives");
    let begun = tree.directory.join("begun");
    fs::remove_file(&begun).expect("it was there");
    tree.await_begun();
    tree.let_go();
    let output = build.wait_with_output().expect("it ends");
    succeeded(&output);
    assert_eq!(text(&output.stdout), "begun\nbegun\nended\nsecond\n");
    tree.assert_some_lines_ran_on_nodes();
    cluster.down();
}

#[test]
fn a_head_that_is_replaced_in_mid_build_is_not_noticed() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = tree(&cluster, SLOW);
    let build = tree.start(&cluster, "wiglaf make --require-cluster");
    let head = cluster.daemon("wiglaf: head")[0];
    kill(head, SIGKILL).expect("it lives");
    wait_for(
        "another head",
        || cluster.has_another_head(head),
        String::new,
    );
    tree.let_go();
    let output = build.wait_with_output().expect("it ends");
    succeeded(&output);
    assert_eq!(text(&output.stdout), "begun\nended\nsecond\n");
    tree.assert_some_lines_ran_on_nodes();
    cluster.down();
}

#[test]
fn a_lines_own_125_is_its_own_though_the_head_was_replaced() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = tree(
        &cluster,
        &SLOW.replace("echo ended", "echo ended; exit 125"),
    );
    let build = tree.start(&cluster, "wiglaf make --require-cluster --verbose");
    let head = cluster.daemon("wiglaf: head")[0];
    kill(head, SIGKILL).expect("it lives");
    let another = || cluster.has_another_head(head);
    wait_for("another head", another, String::new);
    tree.let_go();
    let output = build.wait_with_output().expect("it ends");
    let words = text(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{words}");
    let (told, makes): (Vec<_>, Vec<_>) =
        words.lines().partition(|row| row.starts_with("wiglaf: "));
    assert!(
        told.len() == 1 && told[0].ends_with("[exit 125])"),
        "{words}"
    );
    let error = "make: *** [Makefile:3: first] Error 125";
    assert_eq!(makes, ["begun", "ended", error]);
    cluster.down();
}

/// Clock ticks of processor time, fields 14 and 15 of `stat`.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let fields = rest.split_ascii_whitespace().skip(11).take(2);
    fields
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum()
}

fn limit_descriptors(pid: u32, soft: u32) {
    let output = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")])
        .output();
    succeeded(&output.expect("util-linux has it"));
}

#[test]
fn a_broker_without_descriptors_waits_for_some_in_peace() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let tree = tree(&cluster, SLOW);
    let build = tree.start(&cluster, "wiglaf make --require-cluster");
    limit_descriptors(build.id(), 5);
    tree.let_go();
    let ended = tree.directory.join("first.where");
    wait_for("the first line to end", || ended.exists(), String::new);
    std::thread::sleep(Duration::from_millis(200));
    let before = ticks(build.id());
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks(build.id()) - before;
    assert!(spent < 10, "{spent} ticks for nothing");
    assert!(!tree.directory.join("second.o").exists());
    limit_descriptors(build.id(), 1024);
    let output = build.wait_with_output().expect("it ends");
    succeeded(&output);
    assert_eq!(text(&output.stdout), "begun\nended\nsecond\n");
    cluster.down();
}

#[test]
fn a_head_that_is_gone_for_good_leaves_the_build_to_itself() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = tree(&cluster, SLOW);
    let build = tree.start(&cluster, "wiglaf make --require-cluster");
    tree.let_go();
    succeeded(&cluster.wiglaf(&["down"]));
    let output = build.wait_with_output().expect("it ends");
    succeeded(&output);
    let words = text(&output.stdout);
    assert!(words.contains("second\n"), "{words}");
    assert!(
        words.contains("\nwiglaf: "),
        "what fell back is told: {words}"
    );
    let _ = fs::remove_dir_all(&cluster.dir);
    std::mem::forget(cluster);
}

#[test]
fn a_broker_that_is_killed_leaves_the_build_to_itself() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = tree(&cluster, SLOW);
    let mut build = tree.start(&cluster, "wiglaf make --require-cluster");
    kill(build.id().cast_signed(), SIGKILL).expect("it lives");
    let begun = tree.directory.join("begun");
    fs::remove_file(&begun).expect("it was there");
    tree.await_begun();
    wait_for(
        "nothing to be left on nodes",
        || cluster.remote_commands().is_empty(),
        || format!("{:?}", cluster.remote_commands()),
    );
    tree.let_go();
    let second = tree.directory.join("second.o");
    wait_for("the build to go on", || second.exists(), String::new);
    build.wait().expect("it ended");
    cluster.down();
}

#[test]
fn a_build_that_is_asked_to_end_ends_everywhere() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = tree(&cluster, SLOW);
    let build = tree.start(&cluster, "wiglaf make --require-cluster");
    kill(build.id().cast_signed(), SIGTERM).expect("it lives");
    let output = build.wait_with_output().expect("it ends");
    assert_eq!(output.status.signal(), Some(SIGTERM));
    assert_eq!(
        text(&output.stdout),
        "begun\nmake: *** [Makefile:3: first] Terminated\n"
    );
    assert!(cluster.remote_commands().is_empty());
    cluster.down();
}

#[test]
fn keys_reach_the_whole_build() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let tree = tree(&cluster, SLOW);
    let mut shell = Shell::start(&cluster);
    shell.say(&format!("cd {}", tree.directory.display()));
    shell.expect("ready> ");
    shell.say("wiglaf make --require-cluster");
    tree.await_begun();
    shell.press("\x03");
    shell.expect("Interrupt");
    shell.expect("ready> ");
    shell.say("echo rc=$?");
    shell.expect("rc=130");
    assert!(cluster.remote_commands().is_empty());
    fs::remove_file(tree.directory.join("begun")).expect("it was there");
    shell.say("wiglaf make --require-cluster");
    tree.await_begun();
    shell.press("\x1a");
    shell.expect("Stopped");
    tree.let_go();
    shell.say("fg");
    shell.expect("second");
    let remains = || {
        let ours = processes().into_iter().filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == tree.directory)
        });
        ours.filter(|pid| command_line(*pid).starts_with("make"))
            .count()
    };
    wait_for("make to end", || remains() == 0, String::new);
    cluster.down();
}
