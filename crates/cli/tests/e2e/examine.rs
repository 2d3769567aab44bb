//! What nodes know of the head's files and whether it is so; and what is wrong with a machine.

use std::fs;
use std::process::Output;

use serde_json::Value;
use wiglaf_linux::process::kill;

use crate::cluster::{ALICE, BOB, Cluster, User, is_root, may_have_views, output_of, skip, text};

const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
/// What a task looks at, so that its view has something to know.
const LOOK: &str = "ls -lR /etc/apt /usr/include/linux >/dev/null; cat /etc/passwd >/dev/null";

fn start() -> Option<Cluster> {
    if !is_root() {
        skip("clusters of this test are made by root");
        return None;
    }
    if !may_have_views() {
        return None;
    }
    Cluster::start(2)
}

fn as_json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

/// Node and user of each row.
fn whose(rows: &Value) -> Vec<(String, u64)> {
    let rows = rows.as_array().expect("a list").iter();
    rows.map(|row| {
        let node = row["node"].as_str().expect("a name").to_owned();
        (node, row["uid"].as_u64().expect("a number"))
    })
    .collect()
}

fn on(node: &str, user: User) -> (String, u64) {
    match user {
        User::Root => (node.to_owned(), 0),
        User::Id(uid) => (node.to_owned(), uid.into()),
    }
}

#[test]
fn a_second_node_is_given_what_the_first_had_to_ask_for() {
    const WORK: &str = "cat /usr/include/linux/[a-i]*.h | sort | sed -n 1p >/dev/null";
    let Some(cluster) = start() else { return };
    let mut asked = Vec::new();
    for node in ["n1", "n2"] {
        let output = cluster.wiglaf(&["run", "-w", node, "sh", "-c", WORK]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let rows = cluster.json(&["view", "status", "--json"]);
        let mut rows = rows.as_array().expect("a list").iter();
        let row = rows.find(|row| row["node"] == node).expect("its view");
        asked.push(row["asked"].as_u64().expect("a number"));
    }
    assert!(asked[1] < asked[0] / 3, "{asked:?}");
}

#[test]
fn the_status_of_views_says_what_they_saved() {
    let Some(cluster) = start() else { return };
    let empty = cluster.wiglaf(&["view", "status"]);
    assert!(empty.status.success() && empty.stdout.is_empty());
    assert!(text(&empty.stderr).contains("no views yet"));

    let look = |user| {
        let output = output_of(cluster.command_as(user, &["run", "-w", "n1", "sh", "-c", LOOK]));
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    look(User::Root);
    let cold = &cluster.json(&["view", "status", "--json"])[0];
    let number = |row: &Value, name: &str| row[name].as_u64().expect("a number");
    for name in ["files", "requests", "asked", "bytes_read"] {
        assert!(number(cold, name) > 0, "{name}: {cold}");
    }
    look(User::Root);
    let warm = &cluster.json(&["view", "status", "--json"])[0];
    let more = |name| number(warm, name) - number(cold, name);
    assert!(more("requests") > 0);
    assert!(more("asked") < number(cold, "asked") / 2, "{cold} {warm}");
    assert!(warm["hit_rate"].as_f64().expect("a number") > cold["hit_rate"].as_f64().unwrap());

    // Everybody sees their own.
    look(ALICE);
    let status_as = |user| {
        as_json(&output_of(
            cluster.command_as(user, &["view", "status", "--json"]),
        ))
    };
    assert_eq!(whose(&status_as(ALICE)), [on("n1", ALICE)]);
    assert_eq!(whose(&status_as(BOB)), []);
    let all = cluster.json(&["view", "status", "-w", "n[1-2]", "--json"]);
    assert_eq!(whose(&all), [on("n1", User::Root), on("n1", ALICE)]);
    assert_eq!(
        whose(&cluster.json(&["view", "status", "-w", "n2", "--json"])),
        []
    );

    let table = cluster.ok(&["view", "status"]);
    let head = "NODE  USER   TASKS  FILES  REQUESTS  ASKED  HIT%";
    let words = |line: &str| {
        line.split_whitespace()
            .take(7)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(table.lines().next().unwrap()), words(head), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    cluster.down();
}

#[test]
fn a_check_compares_what_idle_and_busy_views_know() {
    let Some(cluster) = start() else { return };
    let idle = cluster.json(&["view", "check", "--json"]);
    assert_eq!(idle.as_array().unwrap().len(), 2);
    assert_eq!(idle[0]["views"].as_array().unwrap().len(), 0);

    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().display().to_string();
    for name in 0..200 {
        fs::write(directory.path().join(name.to_string()), "old").unwrap();
    }
    for user in [User::Root, ALICE] {
        let look = format!("{LOOK}; ls -lR {path} >/dev/null; cat {path}/* >/dev/null; true");
        let output = output_of(cluster.command_as(user, &["run", "-w", "n1", "sh", "-c", &look]));
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let compared = |row: &Value| -> Vec<(u64, u64)> {
        let views = row["views"].as_array().unwrap().iter();
        views
            .map(|view| {
                assert_eq!(view["differences"], serde_json::json!([]), "{row}");
                (
                    view["uid"].as_u64().unwrap(),
                    view["compared"].as_u64().unwrap(),
                )
            })
            .collect()
    };
    let check_as = |user| {
        let output = output_of(cluster.command_as(user, &["view", "check", "--json"]));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
        as_json(&output)
    };
    // No task is there any more.
    let all = check_as(User::Root);
    let on_first = compared(&all[0]);
    let uids: Vec<_> = on_first.iter().map(|(uid, _)| *uid).collect();
    assert_eq!(uids, [0, on("n1", ALICE).1], "{all}");
    assert!(on_first[0].1 > 200, "{all}");
    let own = check_as(ALICE);
    let uids: Vec<_> = compared(&own[0]).iter().map(|(uid, _)| *uid).collect();
    assert_eq!(uids, [on("n1", ALICE).1]);

    // While a task runs and files change.
    let mut sleeper = cluster.spawn(&["run", "-w", "n1", "sleep", "3332"]);
    for round in 0..5 {
        for name in 0..200 {
            let file = directory.path().join(name.to_string());
            match (name + round) % 3 {
                0 => fs::write(file, format!("new {round}")).unwrap(),
                1 => drop(fs::remove_file(file)),
                _ => {
                    fs::rename(&file, directory.path().join(format!("moved {name}"))).unwrap_or(())
                }
            }
        }
        check_as(User::Root);
    }
    kill(i32::try_from(sleeper.id()).unwrap(), SIGKILL).unwrap();
    sleeper.wait().unwrap();
    cluster.down();
}

#[test]
fn a_node_that_does_not_answer_is_named() {
    let Some(cluster) = start() else { return };
    let agent = cluster.agent("n2");
    kill(agent, SIGSTOP).unwrap();
    let output = cluster.wiglaf(&["view", "status"]);
    kill(agent, SIGCONT).unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("no answer from n2\n"), "{said}");
    let unknown = cluster.wiglaf(&["view", "check", "-w", "n9"]);
    assert!(text(&unknown.stderr).contains("no node n9"));
    cluster.down();
}

#[test]
fn nodes_without_views_have_nothing_to_compare() {
    if !is_root() {
        return skip("clusters of this test are made by root");
    }
    let cluster = Cluster::prepare(User::Root);
    cluster.ok(&["up", "--files", "disk", "-n", "1"]);
    cluster.ok(&["run", "true"]);
    assert_eq!(cluster.ok(&["view", "status"]), "");
    let said = cluster.ok(&["view", "check"]);
    assert_eq!(said, "n1: no views, nothing to compare\n");
    cluster.down();
}

/// What was found, by its subject.
fn finding<'f>(findings: &'f Value, subject: &str) -> &'f Value {
    let all = findings.as_array().expect("a list");
    let found = all.iter().find(|one| one["subject"] == subject);
    found.unwrap_or_else(|| panic!("nothing of {subject}: {findings}"))
}

/// Runs it, and checks that its exit code follows from what it says.
fn doctor(output: &Output) -> Value {
    let findings = as_json(output);
    let mut all = findings.as_array().expect("a list").iter();
    let is_bad = all.any(|one| one["grade"] == "problem");
    assert_eq!(output.status.code(), Some(i32::from(is_bad)), "{findings}");
    findings
}

#[test]
fn the_doctor_looks_at_the_machine_and_the_cluster() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let found = doctor(&cluster.wiglaf(&["doctor", "--json"]));
    for subject in [
        "kernel",
        "tracing",
        "process numbers",
        "configuration",
        "head",
        "nodes",
    ] {
        assert_eq!(finding(&found, subject)["grade"], "ok", "{found}");
    }
    assert_eq!(finding(&found, "nodes")["text"], "up n1, n2");
    let said = cluster.wiglaf(&["doctor"]);
    assert!(
        text(&said.stdout)
            .lines()
            .any(|line| line.ends_with("up n1, n2"))
    );

    let agent = cluster.agent("n2");
    kill(agent, SIGKILL).unwrap();
    cluster.wiglaf(&["nodes", "--wait", "1"]);
    let config = cluster.dir.join("state/wiglaf.toml");
    fs::write(&config, "leese_ms = 3\n").unwrap();
    let found = doctor(&cluster.wiglaf(&["doctor", "--json"]));
    let configuration = finding(&found, "configuration");
    assert_eq!(configuration["grade"], "problem", "{found}");
    assert!(configuration["text"].as_str().unwrap().contains("leese_ms"));
    fs::remove_file(config).unwrap();
    cluster.down();
}

#[test]
fn the_doctor_needs_no_cluster_and_no_rights() {
    if !is_root() {
        return skip("it becomes several users, which only root can");
    }
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    for user in [User::Root, ALICE] {
        let mut command = crate::cluster::as_user(user, crate::cluster::wiglaf());
        command
            .args(["doctor", "--json"])
            .env("WIGLAF_DIR", dir.path());
        let found = doctor(&output_of(command));
        assert_eq!(finding(&found, "head")["grade"], "ok", "{found}");
        let watching = finding(&found, "watching files");
        if user == ALICE {
            assert_eq!(watching["grade"], "warning", "{found}");
            assert!(watching["text"].as_str().unwrap().contains("up to 1 s"));
        }
    }
}

#[test]
fn the_doctor_names_file_systems_that_can_not_be_watched() {
    if !is_root() {
        return skip("only root mounts");
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = dir.path().display().to_string();
    let mut command = std::process::Command::new("unshare");
    let script = format!("mount -t ramfs none {place} && exec \"$0\" doctor --json");
    command
        .args(["--mount", "sh", "-c", &script])
        .arg(crate::cluster::wiglaf());
    command.env("WIGLAF_DIR", "/tmp/no-such-directory");
    let found = doctor(&output_of(command));
    let watching = finding(&found, "watching files");
    assert_eq!(watching["grade"], "warning", "{found}");
    let said = watching["text"].as_str().unwrap();
    assert!(said.contains(&format!("{place} (ramfs)")), "{said}");
    assert!(!said.contains(" / ("), "{said}");
}
