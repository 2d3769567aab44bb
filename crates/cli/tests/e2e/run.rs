//! `wiglaf run`: the command runs there as if it ran here.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::cluster::{ALICE, Cluster, User, text};

#[test]
fn a_command_inherits_everything_from_its_caller() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let script = |run: &str| {
        format!(
            "cd /usr/share; umask 027; ulimit -n 333; export A='b c'; \
             {run} sh -c 'id -u; id -g; id -G; pwd; umask; ulimit -n; echo \"$A\"'"
        )
    };
    for user in [User::Root, ALICE] {
        let here = cluster.script_as(user, &script(""));
        let there = cluster.script_as(user, &script("wiglaf run -w n1"));
        assert_eq!(text(&there.stderr), "");
        assert_eq!(text(&there.stdout), text(&here.stdout));
    }
    let hostname = cluster.ok(&["run", "-w", "n1", "hostname"]);
    assert_eq!(hostname, "n1\n");
    let chdir = cluster.ok(&[
        "run",
        "--chdir",
        "/usr",
        "--env",
        "X=1",
        "--env",
        "HOME",
        "--",
        "sh",
        "-c",
        "pwd; echo $X$HOME",
    ]);
    assert_eq!(chdir, "/usr\n1\n");
}

#[test]
fn exit_codes_are_the_commands_own_and_failures_are_sentences() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    for code in [0, 1, 42, 255] {
        let output = cluster.wiglaf(&["run", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(text(&output.stderr), "");
    }
    let killed = cluster.wiglaf(&["run", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.status.signal(), Some(9));
    let terminated = cluster.wiglaf(&["run", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(terminated.status.signal(), Some(15));
    let dumped = cluster.wiglaf(&["run", "sh", "-c", "kill -SEGV $$"]);
    assert_eq!(dumped.status.signal(), Some(11));

    let missing = cluster.wiglaf(&["run", "-w", "n1", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(
        text(&missing.stderr).contains("no-such-program"),
        "{}",
        text(&missing.stderr)
    );
    let directory = cluster.wiglaf(&["run", "-w", "n1", "/usr"]);
    assert_eq!(directory.status.code(), Some(126));
    assert!(
        text(&directory.stderr).contains("/usr"),
        "{}",
        text(&directory.stderr)
    );
    let nowhere = cluster.wiglaf(&["run", "-w", "n9", "true"]);
    assert_eq!(nowhere.status.code(), Some(125));
    assert!(
        text(&nowhere.stderr).contains("there is no node n9"),
        "{}",
        text(&nowhere.stderr)
    );
    let nonsense = cluster.wiglaf(&["run", "-w", "n[1-", "true"]);
    assert_eq!(nonsense.status.code(), Some(125));
    let late = cluster.wiglaf(&["run", "--timeout", "300ms", "sleep", "100"]);
    assert_eq!(late.status.code(), Some(124));
    assert!(
        text(&late.stderr).contains("--timeout"),
        "{}",
        text(&late.stderr)
    );
}

#[test]
fn output_and_error_are_kept_apart_and_input_ends() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let output = cluster.wiglaf(&["run", "sh", "-c", "echo out; echo err >&2; echo out2"]);
    assert_eq!(text(&output.stdout), "out\nout2\n");
    assert_eq!(text(&output.stderr), "err\n");
    let counted = cluster.script("printf abc | wiglaf run wc -c");
    assert_eq!(text(&counted.stdout).trim(), "3");
    let from_file = cluster.script("wiglaf run wc -l < /etc/passwd; wc -l < /etc/passwd");
    let numbers: Vec<_> = text(&from_file.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(numbers[0], numbers[1]);
    let to_file = cluster.script(
        "cd $WIGLAF_DIR; echo first > log; wiglaf run echo second >> log; cat log; \
         wiglaf run sh -c 'echo a; echo b >&2' > both 2>&1; cat both",
    );
    assert_eq!(text(&to_file.stdout), "first\nsecond\na\nb\n");
}

#[test]
fn large_data_arrives_whole_in_both_directions() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    const BYTES: usize = 64 << 20;
    let mut child = cluster
        .command(&["run", "-w", "n1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let byte = |index: usize| u8::try_from(((index * 2_654_435_761) >> 7) % 251).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let all: Vec<u8> = (0..BYTES).map(byte).collect();
        stdin.write_all(&all).unwrap();
    });
    let mut read = Vec::with_capacity(BYTES);
    child.stdout.take().unwrap().read_to_end(&mut read).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(read.len(), BYTES);
    assert!(
        read.iter()
            .enumerate()
            .all(|(index, found)| *found == byte(index))
    );
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let output = cluster.script("wiglaf run yes | head -2; echo ${PIPESTATUS[0]}");
    assert_eq!(text(&output.stdout), "y\ny\n141\n");
}

#[test]
fn pipelines_join_nodes() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let output = cluster
        .script("wiglaf run -w n1 seq 1000 | wiglaf run -w n2 grep 7 | wiglaf run -w n3 wc -l");
    assert_eq!(text(&output.stdout).trim(), "271");
}

#[test]
fn several_tasks_are_labelled_gathered_and_counted() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let output = cluster.ok(&["run", "-a", "-l", "hostname"]);
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["n1: n1", "n2: n2", "n3: n3"]);
    let output = cluster.ok(&["run", "-a", "-b", "echo", "same"]);
    assert_eq!(output, "---- n[1-3] ----\nsame\n");
    let output = cluster.ok(&["run", "-w", "n[1-3]", "-x", "n2", "-b", "echo", "x"]);
    assert_eq!(output, "---- n[1,3] ----\nx\n");
    let output = cluster.ok(&[
        "run",
        "-n",
        "5",
        "-l",
        "sh",
        "-c",
        "echo $WIGLAF_RANK/$WIGLAF_SIZE",
    ]);
    let mut ranks: Vec<_> = output
        .lines()
        .filter_map(|l| l.split(": ").nth(1))
        .collect();
    ranks.sort_unstable();
    assert_eq!(ranks, ["0/5", "1/5", "2/5", "3/5", "4/5"]);
    let worst = cluster.wiglaf(&["run", "-a", "sh", "-c", "exit $WIGLAF_RANK"]);
    assert_eq!(worst.status.code(), Some(2));
    let ended = cluster.wiglaf(&[
        "run",
        "-a",
        "--json",
        "sh",
        "-c",
        "echo $WIGLAF_NODE; exit 3",
    ]);
    assert_eq!(ended.status.code(), Some(3));
    let rows: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(rows[1]["stdout"], "n2\n");
    assert_eq!(rows[2]["exit_code"], 3);
}

#[test]
fn input_goes_to_one_task_or_to_all() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let output = cluster.script("echo in | wiglaf run -a -l cat");
    assert_eq!(text(&output.stdout), "n1: in\n");
    let output = cluster.script("echo in | wiglaf run -a -l --stdin all cat | sort");
    assert_eq!(text(&output.stdout), "n1: in\nn2: in\n");
    let output = cluster.script("echo in | wiglaf run -a -l --stdin none cat");
    assert_eq!(text(&output.stdout), "");
    let output = cluster
        .script("cd $WIGLAF_DIR; wiglaf run -a -O out.%n.%t hostname; cat out.n1.0 out.n2.1");
    assert_eq!(text(&output.stdout), "n1\nn2\n");
}

#[test]
fn what_the_command_leaves_running_is_ended_unless_kept() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    cluster.ok(&[
        "run",
        "sh",
        "-c",
        "setsid sleep 7654 >/dev/null 2>&1 & exit 0",
    ]);
    assert!(
        !cluster
            .remote_commands()
            .iter()
            .any(|command| command.contains("7654"))
    );
    // Nor does one stay that has hidden behind namespaces of its own.
    let hide = "unshare -Ur --uts setsid sleep 7656 >/dev/null 2>&1 & sleep 0.3";
    cluster.ok(&["run", "sh", "-c", hide]);
    let all = crate::cluster::processes().into_iter();
    let lines = all.map(crate::cluster::command_line);
    assert_eq!(lines.filter(|line| line == "sleep 7656").count(), 0);
    cluster.ok(&[
        "run",
        "--leave",
        "sh",
        "-c",
        "setsid sleep 7655 >/dev/null 2>&1 & exit 0",
    ]);
    let left = || {
        let list = cluster.json(&["ps", "--json"]);
        let mut rows = list.as_array().unwrap().iter();
        rows.find(|row| row["command"] == "sleep 7655")
            .map(|row| row["pid"].as_i64().unwrap())
    };
    crate::cluster::wait_for("what was kept", || left().is_some(), String::new);
    let left = left().unwrap();
    cluster.ok(&["kill", "-s", "KILL", &left.to_string()]);
}

#[test]
fn slots_are_waited_for_or_not() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    cluster.ok(&["node", "set", "n1", "--slots", "1"]);
    let mut holder = cluster.spawn(&["run", "sleep", "1000"]);
    crate::cluster::wait_for(
        "the slot to be taken",
        || cluster.remote_commands().iter().any(|c| c == "sleep 1000"),
        String::new,
    );
    let refused = cluster.wiglaf(&["run", "--now", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        text(&refused.stderr).contains("slots are taken"),
        "{}",
        text(&refused.stderr)
    );
    let waiting = cluster.spawn(&["run", "echo", "mine"]);
    let named = cluster.ok(&["run", "-w", "n1", "echo", "named"]);
    assert_eq!(named, "named\n");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "mine\n");
    assert!(
        text(&output.stderr).contains("waiting"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_node_can_be_had_for_oneself() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let runs = |what: &str| {
        cluster
            .remote_commands()
            .iter()
            .any(|command| command == what)
    };
    let mut shared = cluster.spawn(&["run", "-w", "n1", "sleep", "2221"]);
    let mut alone = cluster.spawn(&["run", "--exclusive", "-w", "n2", "sleep", "2222"]);
    let both = || runs("sleep 2221") && runs("sleep 2222");
    crate::cluster::wait_for("the tasks", both, String::new);
    for (options, node) in [(&["--exclusive", "--now"][..], "n1"), (&["--now"], "n2")] {
        let args = [&["run", "-w", node], options, &["true"]].concat();
        let refused = cluster.wiglaf(&args);
        assert_eq!(refused.status.code(), Some(125));
        let said = text(&refused.stderr);
        assert!(said.contains(&format!("{node} is taken")), "{said}");
    }
    // Two nodes of those that are left, as far as there are so many.
    let spread = cluster.wiglaf(&["run", "-N", "2", "-l", "hostname"]);
    let said = text(&spread.stdout);
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["n1: n1", "n3: n3"]);
    let too_many = cluster.wiglaf(&["run", "-N", "4", "true"]);
    assert_eq!(too_many.status.code(), Some(125));
    for child in [&mut shared, &mut alone] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(
        cluster.ok(&["run", "--now", "-w", "n2", "hostname"]),
        "n2\n"
    );
}

#[test]
fn streams_go_to_files() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let output = cluster.script(
        "cd $WIGLAF_DIR; echo in > i; \
         wiglaf run -I i -O o -E e sh -c 'cat; echo err >&2'; cat o e",
    );
    assert_eq!(text(&output.stdout), "in\nerr\n");
}
