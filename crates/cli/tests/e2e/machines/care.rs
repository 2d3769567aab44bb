//! What an administrator does with a machine: forget it, group it, switch it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::time::{Duration, Instant};

use wiglaf_linux::process::kill;

use super::{HeadProcess, Pair, SIGCONT, SIGKILL, SIGSTOP, lives, refused, token_file};
use crate::cluster::{children, command_line, text, wait_for};

fn number(pair: &Pair) -> u64 {
    let nodes = pair.cluster.json(&["nodes", "--json"]);
    nodes[0]["id"].as_u64().unwrap()
}

fn names(pair: &Pair) -> Vec<String> {
    let nodes = pair.cluster.json(&["nodes", "--json"]);
    let nodes = nodes.as_array().unwrap();
    nodes
        .iter()
        .map(|node| node["name"].as_str().unwrap().to_owned())
        .collect()
}

fn another_agent(pair: &Pair) -> Child {
    let token = token_file(&pair.cluster, "again", &pair.cluster.ok(&["node", "token"]));
    let log = fs::File::create(pair.cluster.dir.join("again.log")).unwrap();
    pair.machine
        .agent_command(&token)
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
fn a_removed_node_is_forgotten_and_does_not_come_back_as_another() {
    let Some(pair) = Pair::start("lease_ms = 2000\n") else {
        return;
    };
    let first = number(&pair);
    refused(
        &pair.cluster.wiglaf(&["node", "remove", "far"]),
        "far is connected",
    );
    pair.machine.pull_cable();
    pair.wait_for_state("suspect");
    refused(
        &pair.cluster.wiglaf(&["node", "remove", "far"]),
        "may still be alive until its lease is over",
    );
    pair.wait_for_state("down");
    pair.cluster.ok(&["node", "remove", "far"]);
    assert!(names(&pair).is_empty());
    // Its agent is alive, has its certificate, and comes back with it.
    pair.machine.plug_cable();
    let log = || fs::read_to_string(pair.cluster.dir.join("agent.log")).unwrap_or_default();
    wait_for(
        "its refusal",
        || log().contains("does not know this node any more"),
        log,
    );
    assert!(names(&pair).is_empty());
    // Its name is free.
    let mut again = another_agent(&pair);
    pair.cluster.ok(&["nodes", "--wait", "1"]);
    assert_eq!(names(&pair), ["far"]);
    assert_ne!(number(&pair), first);
    let output = pair.alice("echo $$").wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let _ = kill(again.id().cast_signed(), SIGKILL);
    again.wait().unwrap();
}

#[test]
fn a_group_is_kept_and_named_in_node_sets() {
    let Some(mut pair) = Pair::start("") else {
        return;
    };
    let on = |pair: &Pair, set: &str| {
        let run = ["run", "-w", set, "echo", "there"];
        let command = pair.cluster.command_as(super::ALICE, &run);
        super::output_of(command)
    };
    refused(&on(&pair, "@gpu"), "no group is called `gpu`");
    pair.cluster.ok(&["node", "set", "far", "--into", "gpu"]);
    assert_eq!(text(&on(&pair, "@gpu").stdout), "there\n");
    // The next head knows it, too.
    pair.restart_head();
    pair.wait_for_state("up");
    assert_eq!(text(&on(&pair, "@gpu").stdout), "there\n");
    pair.cluster.ok(&["node", "set", "far", "--out-of", "gpu"]);
    refused(&on(&pair, "@gpu"), "no group is called `gpu`");
}

impl Pair {
    /// Without any chance to tidy up.
    fn restart_head(&mut self) {
        let HeadProcess(head) = &mut self.head;
        kill(head.id().cast_signed(), SIGKILL).unwrap();
        head.wait().unwrap();
        let log = fs::File::create(self.cluster.dir.join("state/head2.log")).unwrap();
        let command = &mut self.cluster.command(&["head"]);
        *head = command.stderr(log).spawn().unwrap();
        let is_listening = || self.cluster.wiglaf(&["nodes"]).status.success();
        wait_for("the head", is_listening, String::new);
    }
}

/// A program, and the configuration that has it switch machines.
fn config(script: &str, more: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("switch");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!("[power]\noff = [\"{}\", \"%n\"]\n{more}", program.display());
    (directory, config)
}

#[test]
fn p4_a_machine_that_is_certainly_off_is_not_waited_for() {
    let (directory, config) = config(
        "cd \"$(dirname \"$0\")\" && kill -9 $(cat \"$1.pid\") && sleep 1",
        "off_is_certain = true\n",
    );
    let Some(pair) = Pair::start(&config) else {
        return;
    };
    let task = pair.alice("exec sleep 98711");
    pair.wait_for_task("sleep 98711");
    let pid = directory.path().join("far.pid");
    fs::write(pid, pair.agent.id().to_string()).unwrap();
    let began = Instant::now();
    pair.cluster.ok(&["node", "poweroff", "far", "--force"]);
    let output = task.wait_with_output().unwrap();
    refused(&output, "far died while the command ran there");
    // The lease is a minute.
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(!lives("sleep 98711"));
    assert_eq!(pair.state(), "down");
}

#[test]
fn a_switch_that_fails_says_why_and_changes_nothing() {
    let (_directory, config) = config(
        "echo \"no route to $1-bmc\" >&2; exit 4",
        "off_is_certain = true\n",
    );
    let Some(pair) = Pair::start(&config) else {
        return;
    };
    let output = pair.cluster.wiglaf(&["node", "poweroff", "far", "--force"]);
    refused(&output, "far: exit code 4: no route to far-bmc");
    let output = pair.cluster.wiglaf(&["node", "reboot", "far", "--force"]);
    refused(
        &output,
        "nothing is configured that switches machines off and on",
    );
    assert_eq!(pair.state(), "up");
    assert_eq!(
        pair.alice("exit 3").wait().unwrap().code(),
        Some(3),
        "it goes on"
    );
}

/// What a hook was told, word by word, if it was started.
fn noted(directory: &tempfile::TempDir) -> Option<String> {
    fs::read_to_string(directory.path().join("noted")).ok()
}

fn configure(pair: &Pair, more: &str) {
    let path = pair.cluster.dir.join("state/wiglaf.toml");
    let listen = fs::read_to_string(&path).unwrap();
    let listen = listen.lines().next().unwrap().to_owned();
    fs::write(path, format!("{listen}\n{more}")).unwrap();
}

#[test]
fn of_a_switch_that_writes_without_end_beginning_and_end_are_told() {
    let (_directory, config) = config(
        "echo the beginning; seq 500000; echo the end >&2; exit 4",
        "",
    );
    let Some(pair) = Pair::start(&config) else {
        return;
    };
    let output = pair.cluster.wiglaf(&["node", "poweroff", "far", "--force"]);
    refused(&output, "far: exit code 4: the beginning");
    let said = text(&output.stderr);
    assert!(said.contains("bytes are left out here]"), "{said}");
    assert!(said.contains("\n500000\nthe end\n"), "{said}");
    assert!(said.len() < 3_000, "{}", said.len());
    let log = fs::read_to_string(pair.cluster.dir.join("state/head.log")).unwrap();
    assert!(log.contains("the end") && log.len() < 20_000, "{log}");
    assert_eq!(pair.state(), "up");
}

#[test]
fn a_switch_that_does_not_end_is_ended_with_all_that_it_has_started() {
    let (_directory, config) = config(
        "sleep 98721 & echo asking; exec sleep 98722",
        "wait_s = 2\noff_is_certain = true\n",
    );
    let Some(pair) = Pair::start(&config) else {
        return;
    };
    let began = Instant::now();
    let output = pair.cluster.wiglaf(&["node", "poweroff", "far", "--force"]);
    refused(&output, "far: it took more than 2 s, and was ended: asking");
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(began.elapsed() < Duration::from_secs(20));
    for left in ["sleep 98721", "sleep 98722"] {
        wait_for("its end", || !lives(left), String::new);
    }
    assert_eq!(pair.state(), "up", "it proves nothing");
}

#[test]
fn a_switch_that_takes_its_time_is_waited_for_but_not_for_what_it_leaves_behind() {
    let (directory, config) = config(
        "sleep 1; cd \"$(dirname \"$0\")\"; echo \"$1\" > noted; sleep 3 & exit 0",
        "wait_s = 30\n",
    );
    let Some(pair) = Pair::start(&config) else {
        return;
    };
    let began = Instant::now();
    pair.cluster.ok(&["node", "poweroff", "far", "--force"]);
    assert_eq!(noted(&directory).as_deref(), Some("far\n"));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_switch_is_told_the_address_and_not_run_without_one() {
    let (directory, config) = config("cd \"$(dirname \"$0\")\"; echo \"$@\" >> noted", "");
    let config = config.replace("\"%n\"", "\"%n at %a\", \"%%a\"");
    let Some(mut pair) = Pair::start(&config) else {
        return;
    };
    pair.cluster.ok(&["node", "poweroff", "far", "--force"]);
    let there = Ipv4Addr::from(u32::from(pair.machine.head) + 1);
    let told = format!("far at {there} %a\n");
    assert_eq!(noted(&directory), Some(told.clone()));
    // A head that has never heard of it since it was started.
    pair.end_agent();
    pair.restart_head();
    let output = pair.cluster.wiglaf(&["node", "poweroff", "far", "--force"]);
    refused(&output, "far has no address that is known");
    assert_eq!(noted(&directory), Some(told), "nothing was run");
}

#[test]
fn what_switches_machines_is_what_the_configuration_says_now() {
    let (directory, config) = config("cd \"$(dirname \"$0\")\"; echo \"$1\" >> noted", "");
    let Some(pair) = Pair::start("") else {
        return;
    };
    let switch = || pair.cluster.wiglaf(&["node", "poweroff", "far", "--force"]);
    refused(
        &switch(),
        "nothing is configured that switches machines off",
    );
    configure(&pair, &config);
    assert!(switch().status.success());
    assert_eq!(noted(&directory).as_deref(), Some("far\n"));
    configure(&pair, "[power]\noff = 3\n");
    refused(&switch(), "wiglaf.toml");
    assert_eq!(noted(&directory).as_deref(), Some("far\n"));
    assert_eq!(pair.state(), "up", "and nothing else is the matter");
}

#[test]
fn p4_an_agent_of_before_does_not_take_the_place_of_the_one_that_came_after_it() {
    let Some(pair) = Pair::start("lease_ms = 2000\n") else {
        return;
    };
    let first = number(&pair);
    let supervisor = pair.agent.id().cast_signed();
    let mut below = children(supervisor).into_iter();
    let before = below
        .find(|pid| command_line(*pid).starts_with("wiglaf: agent"))
        .unwrap();
    kill(before, SIGSTOP).unwrap();
    pair.wait_for_state("down");
    let mut again = another_agent(&pair);
    pair.cluster.ok(&["nodes", "--wait", "1"]);
    assert_eq!(number(&pair), first, "the same node");
    let task = pair.alice("exec sleep 98731");
    wait_for("the task", || lives("sleep 98731"), String::new);
    kill(before, SIGCONT).unwrap();
    let log = || fs::read_to_string(pair.cluster.dir.join("agent.log")).unwrap_or_default();
    wait_for(
        "its refusal",
        || log().contains("another machine is this node now"),
        log,
    );
    assert!(lives("sleep 98731"), "the one that came after goes on");
    assert_eq!(pair.state(), "up");
    let _ = kill(again.id().cast_signed(), SIGKILL);
    again.wait().unwrap();
    task.wait_with_output().unwrap();
}

#[test]
fn whoever_comes_is_adopted_under_the_next_head_too() {
    let Some(mut pair) = Pair::start("") else {
        return;
    };
    let until =
        |pair: &Pair| pair.cluster.json(&["boot", "status", "--json"])["adopting_until"].clone();
    assert!(until(&pair).is_null());
    let all = ["node", "adopt", "--all", "10", "--as", "gpu%d", "--ordered"];
    pair.cluster.ok(&all);
    let first = until(&pair).as_i64().unwrap();
    pair.restart_head();
    let second = until(&pair).as_i64().unwrap();
    assert!((first - second).abs() <= 1, "{first} {second}");
    pair.cluster.ok(&["node", "adopt", "--all", "0"]);
    pair.restart_head();
    assert!(until(&pair).is_null());
}
