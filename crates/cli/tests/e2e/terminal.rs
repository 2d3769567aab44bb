//! `wiglaf run --tty` on a terminal to type at.

mod shell;

pub(crate) use shell::Shell;

use std::time::Duration;

use crate::cluster::{ALICE, Cluster, children, command_line, processes, skip, state, wait_for};

#[test]
fn a_task_has_a_real_terminal_with_its_size() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.resize(31, 101);
    shell.say(
        "wiglaf run --tty -w n1 sh -c 'tty; stty size; test -t 0 && test -t 1 && echo is''atty'",
    );
    shell.expect("/dev/pts/");
    shell.expect("31 101");
    shell.expect("isatty");
    shell.expect("ready> ");
    shell.go_far();
    shell.resize(44, 132);
    // The size goes another way than the keys and may come after them.
    shell.say("until stty size | grep '44 132'; do sleep 0.05; done");
    shell.expect("\r\n44 132\r\n");
    shell.expect("far> ");
    // Ctrl-C is for what runs in the remote shell, and Ctrl-Z too.
    shell.say("sleep 1000");
    shell.settle(Duration::from_millis(300));
    shell.press("\x03");
    shell.expect("far> ");
    shell.say("sleep 2000");
    shell.settle(Duration::from_millis(300));
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.expect("far> ");
    shell.say("kill %1; hostname");
    shell.expect("n1");
    shell.expect("far> ");
    shell.say("exit 5");
    shell.expect("ready> ");
    shell.say("echo code $?; stty -a | grep -o '[-]*icanon'");
    shell.expect("code 5");
    shell.expect("icanon");
}

#[test]
fn ctrl_z_of_a_program_with_a_terminal_returns_to_the_local_shell_and_fg_goes_back() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.say("wiglaf run --tty -w n1 cat");
    shell.settle(Duration::from_millis(500));
    shell.say("hello");
    shell.expect("hello\r\nhello");
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.say("stty -a | grep -o '[-]*isig'; jobs");
    shell.expect("isig");
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.say("fg");
    shell.settle(Duration::from_millis(300));
    shell.say("again");
    shell.expect("again\r\nagain");
    shell.press("\x04");
    shell.expect("ready> ");
    shell.say("echo code $?");
    shell.expect("code 0");
}

#[test]
fn an_editor_works_in_the_terminal() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    if !std::path::Path::new("/usr/bin/vim.tiny").exists() {
        return skip("vim.tiny is not installed");
    }
    let file = cluster.dir.join("note");
    let mut shell = Shell::start(&cluster);
    shell.resize(24, 80);
    shell.say(&format!(
        "wiglaf run --tty -w n1 vim.tiny -u NONE {}",
        file.display()
    ));
    shell.settle(Duration::from_millis(1500));
    shell.press("iwritten on n1\x1b:wq\r");
    shell.expect("ready> ");
    assert_eq!(
        std::fs::read_to_string(&file).expect("it was written"),
        "written on n1\n"
    );
}

fn commands(cluster: &Cluster) -> String {
    format!("{:?}", cluster.remote_commands())
}

fn wait_for_nothing(cluster: &Cluster) {
    wait_for(
        "nothing to be left",
        || cluster.remote_commands().is_empty(),
        || commands(cluster),
    );
    assert_eq!(leaders(cluster), Vec::<i32>::new());
}

/// The sessions' leaders of n1 in the head's table.
fn leaders(cluster: &Cluster) -> Vec<i32> {
    let own = children(cluster.agent("n1"));
    own.into_iter()
        .filter(|pid| command_line(*pid) == "wiglaf: session")
        .collect()
}

fn has_vim() -> bool {
    let found = std::path::Path::new("/usr/bin/vim.tiny").exists();
    if !found {
        skip("vim.tiny is not installed");
    }
    found
}

/// The states of the node's processes whose command begins so.
fn states(cluster: &Cluster, command: &str) -> String {
    let list = cluster.json(&["ps", "--json"]);
    let rows = list.as_array().expect("a list");
    let ours = rows
        .iter()
        .filter(|row| row["command"].as_str().unwrap().starts_with(command));
    ours.map(|row| row["state"].as_str().unwrap().to_owned())
        .collect()
}

fn stop_and_resume_an_editor(cluster: &Cluster, before: &str, after: &str) {
    let file = cluster.dir.join("note");
    let mut shell = Shell::start(cluster);
    shell.resize(24, 80);
    shell.say(&format!(
        "wiglaf run --tty -w n1 {before}vim.tiny -u NONE {}{after}",
        file.display()
    ));
    shell.expect("~");
    shell.press("ione \x1b");
    shell.settle(Duration::from_millis(300));
    // Vim restores the terminal, sets the default action and raises SIGTSTP for its group.
    shell.press("\x1a");
    shell.expect_stopped();
    wait_for(
        "it to stop",
        || states(cluster, "vim") == "T",
        || states(cluster, "vim"),
    );
    shell.expect_cooked();
    shell.say("fg");
    shell.settle(Duration::from_millis(500));
    shell.press("atwo \x1b");
    shell.settle(Duration::from_millis(300));
    shell.press("\x1a");
    shell.expect_stopped();
    shell.say("fg");
    shell.settle(Duration::from_millis(500));
    shell.press("athree\x1b:wq\r");
    if !after.is_empty() {
        shell.expect("after 0");
    }
    shell.expect("ready> ");
    assert_eq!(
        std::fs::read_to_string(&file).expect("it was written"),
        "one two three\n"
    );
    shell.expect_code(0);
    shell.expect_cooked();
    wait_for_nothing(cluster);
}

#[test]
fn an_editor_is_stopped_by_ctrl_z_and_goes_on_in_the_foreground() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    if has_vim() {
        stop_and_resume_an_editor(&cluster, "", "");
    }
}

#[test]
fn an_editor_below_a_script_is_stopped_with_it() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    if has_vim() {
        stop_and_resume_an_editor(&cluster, "sh -c '", "; echo after $?'");
    }
}

#[test]
fn an_ordinary_users_cluster_has_job_control_too() {
    if !crate::cluster::is_root() {
        return skip("becomes another user");
    }
    let cluster = Cluster::start_as(ALICE, 1);
    if has_vim() {
        stop_and_resume_an_editor(&cluster, "", "");
    }
}

#[test]
fn a_remote_shell_has_jobs_of_its_own() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.go_far();
    shell.say("cat");
    shell.settle(Duration::from_millis(300));
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.expect("far> ");
    shell.say("sleep 4441 &");
    shell.expect("far> ");
    shell.say("jobs | wc -l");
    shell.expect("2");
    shell.expect("far> ");
    // The one in the background that reads the terminal is stopped by the kernel.
    shell.say("cat <&1 >&2 &");
    shell.expect("far> ");
    shell.settle(Duration::from_millis(300));
    shell.say("jobs");
    shell.expect("cat 0<&1");
    shell.expect("far> ");
    shell.say("kill %3; fg %1");
    shell.settle(Duration::from_millis(300));
    shell.say("echoed");
    shell.expect("echoed\r\nechoed");
    shell.press("\x03");
    shell.expect("far> ");
    // The shell itself is stopped by its own builtin, and goes on by the local `fg`.
    shell.say("suspend");
    shell.expect_stopped();
    shell.expect_cooked();
    shell.say("fg");
    shell.settle(Duration::from_millis(300));
    shell.say("jobs; exit 7");
    shell.expect("sleep 4441");
    shell.settle(Duration::from_millis(300));
    shell.say("exit 7");
    shell.expect("ready> ");
    wait_for_nothing(&cluster);
}

#[test]
fn a_pager_works_in_raw_mode_and_can_be_stopped() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    if !std::path::Path::new("/usr/bin/less").exists() {
        return skip("less is not installed");
    }
    let mut shell = Shell::start(&cluster);
    shell.resize(10, 40);
    shell.say("wiglaf run --tty -w n1 sh -c 'seq 1000 | less -X'");
    shell.expect("9\r\n");
    shell.press("/777\n");
    shell.expect("777");
    shell.press("\x1a");
    shell.expect_stopped();
    shell.expect_cooked();
    shell.resize(20, 40);
    shell.say("fg");
    shell.settle(Duration::from_millis(500));
    shell.press("G");
    shell.expect("1000");
    shell.press("q");
    shell.expect("ready> ");
    shell.expect_code(0);
    shell.expect_cooked();
    wait_for_nothing(&cluster);
}

#[test]
fn keys_that_signal_end_the_task_with_their_signals() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    for (key, code) in [("\x03", 130), ("\x1c", 131)] {
        shell.say("ulimit -c 0; wiglaf run --tty -w n1 sh -c 'echo go; cat; sleep 1234'");
        shell.expect("go\r\n");
        // A shell that is just forking hears the key for itself and forgets it, here as there.
        wait_for(
            "cat",
            || states(&cluster, "cat") == "S",
            || commands(&cluster),
        );
        shell.press(key);
        shell.expect("ready> ");
        shell.expect_code(code);
        shell.expect_cooked();
        wait_for_nothing(&cluster);
    }
    // A new size is told to what runs in the foreground there.
    shell.say("wiglaf run --tty -w n1 bash -c 'trap \"stty size\" WINCH; echo go; until read -t 0.05; do :; done; exit 4'");
    shell.expect("go\r\n");
    shell.resize(33, 77);
    shell.expect("33 77");
    shell.press("\n");
    shell.expect("ready> ");
    shell.expect_code(4);
}

#[test]
fn a_killed_ghost_leaves_nothing_of_a_terminal() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.go_far();
    shell.say("sleep 4451 & sleep 4452");
    let runs = || cluster.remote_commands().contains(&"sleep 4452".to_owned());
    wait_for("the tree", runs, || commands(&cluster));
    let list = cluster.remote_commands();
    assert!(
        list.iter().all(|command| !command.starts_with("wiglaf")),
        "{list:?}"
    );
    assert_eq!(leaders(&cluster).len(), 1);
    let ghost = ghosts("bash --norc --noprofile -i", shell.child.id())[0];
    wiglaf_linux::process::kill(ghost, 9).expect("it is there");
    shell.expect("Killed");
    shell.expect("ready> ");
    shell.expect_code(137);
    shell.expect_cooked();
    wait_for_nothing(&cluster);
}

/// The ghosts among a local shell's children.
fn ghosts(command: &str, shell: u32) -> Vec<i32> {
    let mut below = children(i32::try_from(shell).expect("a PID"));
    below.retain(|pid| command_line(*pid) == command);
    below
}

#[test]
fn a_closed_terminal_leaves_nothing_of_a_remote_shell() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.go_far();
    shell.say("sleep 4461 & sleep 4462");
    let runs = || cluster.remote_commands().contains(&"sleep 4462".to_owned());
    wait_for("the tree", runs, || commands(&cluster));
    drop(shell);
    wait_for_nothing(&cluster);
}

#[test]
fn a_stop_from_elsewhere_is_one_of_the_terminal_too() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    shell.say("wiglaf run --tty -w n1 cat");
    wait_for(
        "the task",
        || states(&cluster, "cat") == "S",
        || commands(&cluster),
    );
    let ghost = ghosts("cat", shell.child.id())[0];
    for signal in [20, 19] {
        wiglaf_linux::process::kill(ghost, signal).expect("it is there");
        shell.expect_stopped();
        wait_for(
            "it to stop",
            || states(&cluster, "cat") == "T",
            || states(&cluster, "cat"),
        );
        assert!("Tt".contains(state(ghost)));
        shell.expect_cooked();
        shell.say("fg");
        wait_for(
            "it to go on",
            || states(&cluster, "cat") == "S",
            || states(&cluster, "cat"),
        );
        shell.say("echoed");
        shell.expect("echoed\r\nechoed");
    }
    shell.press("\x04");
    shell.expect("ready> ");
    shell.expect_code(0);
}

#[test]
fn a_killed_leader_ends_the_task_and_nothing_else() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut shell = Shell::start(&cluster);
    let mut other = cluster.spawn(&["run", "-w", "n1", "sleep", "4472"]);
    shell.go_far();
    shell.say("setsid sleep 4471 & cat");
    wait_for(
        "the tree",
        || states(&cluster, "cat") == "S",
        || commands(&cluster),
    );
    let leader = leaders(&cluster)[0];
    wiglaf_linux::process::kill(leader, 9).expect("it is there");
    shell.expect("ready> ");
    shell.expect_cooked();
    wait_for(
        "its end",
        || cluster.remote_commands() == ["sleep 4472"],
        || commands(&cluster),
    );
    // Terminals work on.
    shell.say("wiglaf run --tty -w n1 sh -c 'exit 3'");
    shell.expect("ready> ");
    shell.expect_code(3);
    other.kill().expect("it runs");
    other.wait().expect("it ended");
    wait_for_nothing(&cluster);
    assert!(processes().contains(&cluster.agent("n1")));
}

#[test]
fn htop_shows_the_nodes_processes_and_ends_with_q() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    if !std::path::Path::new("/usr/bin/htop").exists() {
        return crate::cluster::skip("htop is not installed");
    }
    let mut shell = Shell::start(&cluster);
    shell.resize(24, 100);
    shell.say("wiglaf run --tty -w n1 htop");
    shell.expect("Load average");
    shell.expect("agent n1");
    shell.press("q");
    shell.expect("ready> ");
    shell.say("echo code $?; stty -a | grep -o '[-]*icanon'");
    shell.expect("code 0");
    shell.expect("icanon");
}
