//! kill -9 of each process under load: P4 says what is lost, and nothing stays behind.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use wiglaf_linux::process::kill;

use crate::cluster::{ALICE, Cluster, text, wait_for};

const SIGKILL: i32 = 9;

/// A stream through a node that is checked to the byte at its end.
struct Load {
    child: Child,
    writer: std::thread::JoinHandle<()>,
    reader: std::thread::JoinHandle<Vec<u8>>,
}

const LINES: u32 = 200_000;

fn load(cluster: &Cluster) -> Load {
    let mut child = cluster
        .command_as(ALICE, &["run", "-w", "n1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let writer = std::thread::spawn(move || {
        for number in 0..LINES {
            if writeln!(stdin, "{number}").is_err() {
                return;
            }
            if number % 2000 == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = stdout.read_to_end(&mut all);
        all
    });
    Load {
        child,
        writer,
        reader,
    }
}

impl Load {
    fn finish(mut self) -> (std::process::ExitStatus, Vec<u8>) {
        self.writer.join().unwrap();
        let all = self.reader.join().unwrap();
        (self.child.wait().unwrap(), all)
    }
}

fn expected() -> Vec<u8> {
    let mut all = Vec::new();
    for number in 0..LINES {
        writeln!(all, "{number}").unwrap();
    }
    all
}

fn daemon(cluster: &Cluster, title: &str) -> i32 {
    *cluster
        .daemon(title)
        .first()
        .unwrap_or_else(|| panic!("no {title}"))
}

#[test]
fn p4_killing_the_head_loses_nothing_to_the_byte() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let load = load(&cluster);
    let mut sleeper = cluster.spawn(&["run", "-w", "n2", "sh", "-c", "sleep 3; exit 33"]);
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..2 {
        let head = daemon(&cluster, "wiglaf: head");
        kill(head, SIGKILL).unwrap();
        wait_for(
            "another head",
            || {
                cluster.has_another_head(head)
                    && cluster.wiglaf(&["nodes", "--wait", "2"]).status.success()
            },
            String::new,
        );
    }
    // The restarted head knows the old tasks and takes new ones.
    assert!(
        cluster
            .remote_commands()
            .iter()
            .any(|command| command == "cat")
    );
    assert_eq!(cluster.ok(&["run", "-w", "n1", "echo", "new"]), "new\n");
    let (status, all) = load.finish();
    assert!(status.success(), "{status}");
    assert!(
        all == expected(),
        "{} bytes of {}",
        all.len(),
        expected().len()
    );
    assert_eq!(sleeper.wait().unwrap().code(), Some(33));
    cluster.down();
}

#[test]
fn p4_a_head_killed_while_commands_are_launched_loses_none() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let script =
        "for i in $(seq 60); do wiglaf run sh -c \"echo $i; exit 0\" || echo failed $i $?; done";
    let runner = {
        let mut command = std::process::Command::new("/bin/bash");
        command
            .args(["-c", script])
            .env("WIGLAF_DIR", &cluster.dir)
            .env(
                "PATH",
                format!(
                    "{}:/usr/bin:/bin",
                    crate::cluster::wiglaf().parent().unwrap().display()
                ),
            )
            .stdin(Stdio::null());
        std::thread::spawn(move || crate::cluster::output_of(command))
    };
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        if let Some(head) = cluster.daemon("wiglaf: head").first() {
            let _ = kill(*head, SIGKILL);
        }
    }
    let output = runner.join().unwrap();
    let expected: String = (1..=60).map(|number| format!("{number}\n")).collect();
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    cluster.down();
}

#[test]
fn p4_killing_the_keeper_ends_tasks_with_125_and_the_reason() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let child = cluster.spawn(&["run", "sleep", "9991"]);
    wait_for(
        "the task",
        || !cluster.remote_commands().is_empty(),
        String::new,
    );
    kill(daemon(&cluster, "wiglaf: keeper"), SIGKILL).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("keeper has died"),
        "{}",
        text(&output.stderr)
    );
    wait_for(
        "the remote's end",
        || cluster.remote_commands().is_empty(),
        String::new,
    );
    assert_eq!(cluster.ok(&["run", "echo", "new"]), "new\n");
    cluster.down();
}

#[test]
fn p4_killing_a_deputy_ends_its_tasks_with_125_and_no_others() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut others = cluster.spawn(&["run", "sh", "-c", "sleep 2; exit 44"]);
    let mut alices = cluster
        .command_as(ALICE, &["run", "sleep", "9992"])
        .spawn()
        .unwrap();
    wait_for(
        "the task",
        || cluster.remote_commands().iter().any(|c| c == "sleep 9992"),
        String::new,
    );
    kill(daemon(&cluster, "wiglaf: deputy 54321"), SIGKILL).unwrap();
    assert_eq!(alices.wait().unwrap().code(), Some(125));
    assert_eq!(others.wait().unwrap().code(), Some(44));
    assert!(
        !cluster
            .remote_commands()
            .iter()
            .any(|command| command == "sleep 9992")
    );
    cluster.down();
}

#[test]
fn p4_killing_an_agent_ends_its_nodes_tasks_with_125_and_a_sentence() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let dying = cluster.spawn(&["run", "-w", "n1", "sleep", "9993"]);
    let mut living = cluster.spawn(&["run", "-w", "n2", "sh", "-c", "sleep 2; exit 45"]);
    wait_for(
        "the tasks",
        || cluster.remote_commands().len() >= 2,
        String::new,
    );
    kill(cluster.agent("n1"), SIGKILL).unwrap();
    let output = dying.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("n1 died"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(living.wait().unwrap().code(), Some(45));
    let refused = cluster.wiglaf(&["run", "-w", "n1", "true"]);
    assert!(
        text(&refused.stderr).contains("n1 is down"),
        "{}",
        text(&refused.stderr)
    );
    cluster.down();
}

#[test]
fn killing_the_rack_takes_its_nodes_down_and_down_cleans_up() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let child = cluster.spawn(&["run", "-w", "n2", "sleep", "9994"]);
    wait_for(
        "the task",
        || !cluster.remote_commands().is_empty(),
        String::new,
    );
    kill(daemon(&cluster, "wiglaf: rack"), SIGKILL).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(125));
    cluster.down();
}

#[test]
fn killing_the_parent_of_several_ghosts_ends_them_all() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let mut child = cluster.spawn(&["run", "-a", "-l", "sleep", "9995"]);
    wait_for(
        "the tasks",
        || cluster.remote_commands().len() == 2,
        String::new,
    );
    kill(i32::try_from(child.id()).unwrap(), SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
    wait_for(
        "the tasks' end",
        || cluster.remote_commands().is_empty(),
        || format!("{:?}", cluster.remote_commands()),
    );
    cluster.down();
}

#[test]
fn down_works_when_everything_was_killed() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let mut child = cluster.spawn(&["run", "sleep", "9996"]);
    wait_for(
        "the task",
        || !cluster.remote_commands().is_empty(),
        String::new,
    );
    for title in ["wiglaf: rack", "wiglaf: head", "wiglaf: keeper"] {
        for pid in cluster.daemon(title) {
            let _ = kill(pid, SIGKILL);
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(125));
    // The nodes are still dying: that is waited for, and the bridge is removed.
    let down = cluster.wiglaf(&["down"]);
    println!("{}", text(&down.stderr));
    let again = cluster.wiglaf(&["up", "-n", "1"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    cluster.down();
}
