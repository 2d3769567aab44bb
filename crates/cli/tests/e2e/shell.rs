//! Ghosts in a user's shell: PIDs, signals and job control.

use std::time::Duration;

use crate::cluster::{Cluster, command_line, state, text, wait_for};
use crate::terminal::Shell;

fn number(text: &str) -> i32 {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("a number, not {text:?}"))
}

#[test]
fn p1_the_ghost_is_the_remote_process_in_the_local_table() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let output = cluster.script(
        "wiglaf run -w n2 sh -c 'echo $$; exec sleep 4321' > $WIGLAF_DIR/pid & sleep 0.5; \
         echo $!; cat $WIGLAF_DIR/pid; tr '\\0' ' ' < /proc/$!/cmdline; echo; \
         cat /proc/$!/comm; kill $!; wait $!; echo $?",
    );
    let out = text(&output.stdout);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], lines[1], "the PID here is the PID there");
    assert!(
        lines[2].starts_with("sh -c echo $$; exec sleep 4321"),
        "{out}"
    );
    assert_eq!(lines[3], "sh");
    assert_eq!(lines[4], "143");
}

#[test]
fn all_catchable_signals_arrive_with_their_numbers() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let heard = cluster.dir.join("heard");
    let script = "for s in $(seq 1 31) 34 50 64; do
            case $s in 9|17|18|19) ;; *) trap \"echo got $s\" $s ;; esac
        done
        echo ready; while :; do read -t 0.05 <> <(:); done";
    let mut child = cluster
        .command(&["run", "-w", "n1", "bash", "-c", script])
        .stdout(std::fs::File::create(&heard).unwrap())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let got = |line: &str| {
        std::fs::read_to_string(&heard)
            .unwrap()
            .lines()
            .any(|l| l == line)
    };
    wait_for("the traps", || got("ready"), String::new);
    // Stops are tested by themselves; a change of the window's size goes to the terminal.
    let apart = [9, 17, 18, 19, 20, 21, 22, 28];
    for signal in (1..=31)
        .chain([34, 50, 64])
        .filter(|signal| !apart.contains(signal))
    {
        wiglaf_linux::process::kill(pid, signal).unwrap();
        wait_for(
            "the signal",
            || got(&format!("got {signal}")),
            || signal.to_string(),
        );
    }
    child.kill().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn stops_and_continues_go_both_ways() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut child = cluster.spawn(&["run", "-w", "n1", "sleep", "1234"]);
    let pid = i32::try_from(child.id()).unwrap();
    let remote = || {
        let list = cluster.json(&["ps", "--json"]);
        let rows = list.as_array().unwrap().clone();
        rows.iter()
            .find(|row| row["pid"] == pid)
            .map(|row| row["state"].as_str().unwrap().to_owned())
    };
    wait_for("the task", || remote().as_deref() == Some("S"), String::new);
    wiglaf_linux::process::kill(pid, 19).unwrap();
    wait_for(
        "the remote to stop",
        || remote().as_deref() == Some("T"),
        || format!("{:?}", remote()),
    );
    assert!("Tt".contains(state(pid)));
    wiglaf_linux::process::kill(pid, 18).unwrap();
    wait_for(
        "the remote to go on",
        || remote().as_deref() == Some("S"),
        || format!("{:?}", remote()),
    );
    // From the other side: the node's process is stopped there.
    cluster.ok(&["kill", "-s", "STOP", &pid.to_string()]);
    wait_for(
        "the ghost to stop",
        || "Tt".contains(state(pid)),
        || state(pid).to_string(),
    );
    cluster.ok(&["kill", "-s", "CONT", &pid.to_string()]);
    wait_for(
        "the remote to go on",
        || remote().as_deref() == Some("S"),
        || format!("{:?}", remote()),
    );
    cluster.ok(&["kill", &pid.to_string()]);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

#[test]
fn a_killed_ghost_takes_the_whole_remote_tree_with_it() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut child = cluster.spawn(&[
        "run",
        "sh",
        "-c",
        "sleep 5551 & setsid sleep 5552 & sleep 5553",
    ]);
    let ours = || {
        cluster
            .remote_commands()
            .into_iter()
            .filter(|c| c.contains("555"))
            .collect::<Vec<_>>()
    };
    wait_for("the tree", || ours().len() >= 4, || format!("{:?}", ours()));
    child.kill().unwrap();
    child.wait().unwrap();
    // The parent's wait ended after the node had confirmed the end: nothing is left now.
    assert_eq!(ours(), Vec::<String>::new());
}

#[test]
fn a_closed_terminal_ends_what_ran_on_it() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.say("wiglaf run -w n1 sleep 7771");
    let runs = || {
        cluster
            .remote_commands()
            .iter()
            .any(|command| command == "sleep 7771")
    };
    wait_for("the task", runs, String::new);
    drop(shell);
    wait_for("its end", || !runs(), String::new);
}

#[test]
fn ctrl_c_reaches_the_whole_remote_group() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.say("wiglaf run sh -c 'sleep 8881'");
    wait_for(
        "the task",
        || {
            cluster
                .remote_commands()
                .iter()
                .any(|command| command == "sleep 8881")
        },
        String::new,
    );
    shell.press("\x03");
    shell.expect("ready> ");
    shell.say("echo code $?");
    shell.expect("code 130");
    wait_for(
        "its end",
        || cluster.remote_commands().is_empty(),
        String::new,
    );
}

#[test]
fn job_control_is_the_shells_own() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    let runs = |what: &str| {
        let list = cluster.json(&["ps", "--json"]);
        list.as_array()
            .unwrap()
            .iter()
            .find(|row| row["command"] == what)
            .map(|row| {
                (
                    row["pid"].as_i64().unwrap(),
                    row["state"].as_str().unwrap().to_owned(),
                )
            })
    };
    shell.say("wiglaf run -w n1 sleep 6661");
    wait_for("the task", || runs("sleep 6661").is_some(), String::new);
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.expect("ready> ");
    wait_for(
        "the remote to stop",
        || runs("sleep 6661").is_some_and(|r| r.1 == "T"),
        String::new,
    );
    shell.say("jobs");
    shell.expect("Stopped");
    shell.say("bg");
    shell.expect("ready> ");
    wait_for(
        "the remote to go on",
        || runs("sleep 6661").is_some_and(|r| r.1 == "S"),
        String::new,
    );
    shell.say("jobs");
    shell.expect("Running");
    shell.say("fg");
    shell.settle(Duration::from_millis(200));
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.say("kill %1; fg; echo code $?");
    shell.expect("code 143");
    shell.expect("ready> ");

    shell.say("wiglaf run -w n1 sleep 6662 &");
    shell.expect("ready> ");
    wait_for("the task", || runs("sleep 6662").is_some(), String::new);
    shell.say("echo pid=$!=");
    shell.expect("pid=");
    let shown = shell.settle(Duration::from_millis(300)).to_owned();
    let pid = number(shown.split('=').next().unwrap());
    assert_eq!(
        runs("sleep 6662").map(|found| found.0),
        Some(i64::from(pid))
    );
    assert_eq!(command_line(pid), "sleep 6662");
    shell.say("kill -STOP $!; sleep 0.3; jobs");
    shell.expect("Stopped");
    shell.say("kill -CONT $!; sleep 0.3; jobs");
    shell.expect("Running");
    shell.say("kill -9 $!; wait $!; echo code $?");
    shell.expect("code 137");

    // A pipeline of two tasks is one job.
    shell.say("wiglaf run yes | wiglaf run sleep 6663");
    wait_for("the task", || runs("sleep 6663").is_some(), String::new);
    shell.press("\x03");
    shell.expect("ready> ");
    wait_for(
        "its end",
        || cluster.remote_commands().is_empty(),
        || format!("{:?}", cluster.remote_commands()),
    );
}

#[test]
fn input_from_the_terminal_reaches_the_task_and_its_end_too() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.say("wiglaf run -w n1 wc -c");
    shell.settle(Duration::from_millis(500));
    shell.say("12345");
    shell.press("\x04");
    shell.expect("6");
    shell.expect("ready> ");
    // In the background it does not take the shell's input.
    shell.say("wiglaf run -w n1 sleep 1 & echo still''here");
    shell.expect("stillhere");
    shell.say("wait; echo all''done");
    shell.expect("alldone");
}
