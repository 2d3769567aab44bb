//! Nodes that see the head's files through the view.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use wiglaf_linux::process::kill;

use crate::cluster::{
    ALICE, Cluster, User, is_root, may_have_views, output_of, skip, text, wait_for,
};
use crate::terminal::Shell;

const SIGKILL: i32 = 9;
/// Where these tests make files.
const SHARED: &str = "/var/tmp";

fn start(nodes: u32) -> Option<Cluster> {
    if !is_root() {
        skip("clusters of this test are made by root");
        return None;
    }
    if !may_have_views() {
        return None;
    }
    let cluster = Cluster::prepare(User::Root);
    cluster.ok(&["up", "-n", &nodes.to_string()]);
    Some(cluster)
}

fn here(script: &str) -> String {
    text(
        &output_of({
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            command
        })
        .stdout,
    )
}

#[test]
fn programs_run_as_on_the_head() {
    let Some(cluster) = start(2) else { return };
    assert_eq!(cluster.ok(&["run", "-w", "n1", "hostname"]), "n1\n");
    let root = cluster.ok(&[
        "run", "-w", "n2", "stat", "-f", "-c", "%T", "/", "/proc", "/tmp",
    ]);
    assert_eq!(root, "fuseblk\nproc\nfuseblk\n");
    for script in [
        "ls /usr/bin | wc -l",
        "gcc --version",
        "python3 -c 'import json; print(json.dumps({}))'",
        "cd /usr/include && find . -type f | sort | head -200 | xargs sha256sum | sha256sum",
        "readlink /bin /etc/alternatives/awk; stat -c '%n %A %u %g %s %Y' /bin/sh /etc /etc/passwd",
    ] {
        let there = cluster.ok(&["run", "-w", "n1", "sh", "-c", script]);
        assert_eq!(there, here(script), "{script}");
    }
    let compiled = cluster.ok(&[
        "run",
        "-w",
        "n2",
        "sh",
        "-c",
        "cd $(mktemp -d) && printf '#include <stdio.h>\\nint main(){puts(\"made here\");}' >a.c \
         && cc -o a a.c && ./a",
    ]);
    assert_eq!(compiled, "made here\n");
    for (command, code) in [
        ("no-such-program", 127),
        ("/etc/passwd", 126),
        ("/etc", 126),
    ] {
        let output = cluster.wiglaf(&["run", "-w", "n1", command]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{command}: {}",
            text(&output.stderr)
        );
    }
    cluster.down();
}

#[test]
fn v4_rights_are_the_users() {
    let Some(cluster) = start(1) else { return };
    let secret = format!("{SHARED}/wiglaf-secret-{}", std::process::id());
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let as_alice = |script: &str| {
        output_of(cluster.command_as(ALICE, &["run", "-w", "n1", "sh", "-c", script]))
    };
    let read = as_alice(&format!("id -u; cat {secret}"));
    assert_eq!(text(&read.stdout), "54321\n");
    assert!(
        text(&read.stderr).contains("Permission denied"),
        "{}",
        text(&read.stderr)
    );
    // What root has read there does not stay readable in the node's memory.
    assert_eq!(cluster.ok(&["run", "-w", "n1", "cat", &secret]), "secret");
    let again = as_alice(&format!("cat {secret}"));
    assert!(
        text(&again.stderr).contains("Permission denied"),
        "{}",
        text(&again.stderr)
    );
    let list = as_alice("ls /root");
    assert!(
        text(&list.stderr).contains("Permission denied"),
        "{}",
        text(&list.stderr)
    );
    fs::remove_file(&secret).unwrap();
    let written = as_alice("touch /usr/wiglaf-was-here");
    assert!(
        text(&written.stderr).contains("Permission denied"),
        "{}",
        text(&written.stderr)
    );
    cluster.down();
}

#[test]
fn tmp_is_the_heads_or_by_option_the_nodes() {
    let Some(cluster) = start(1) else { return };
    let file = format!("/tmp/wiglaf-handed-on-{}", std::process::id());
    let write = format!("echo x >{file} && cat {file}");
    assert_eq!(cluster.ok(&["run", "-w", "n1", "sh", "-c", &write]), "x\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "x\n");
    fs::remove_file(&file).unwrap();
    cluster.ok(&["down"]);
    cluster.ok(&["up", "-n", "1", "--own-tmp"]);
    assert_eq!(cluster.ok(&["run", "-w", "n1", "sh", "-c", &write]), "x\n");
    assert!(fs::read_to_string(&file).is_err());
    assert_eq!(cluster.ok(&["run", "-w", "n1", "cat", &file]), "x\n");
    cluster.down();
}

#[test]
fn s4_the_clusters_own_directories_do_not_exist_on_nodes() {
    if !is_root() {
        return skip("clusters of this test are made by root");
    }
    let mut cluster = Cluster::prepare(User::Root);
    let shared = std::path::PathBuf::from(format!("{SHARED}/wg{}", std::process::id()));
    fs::rename(&cluster.dir, &shared)
        .or_else(|_| fs::create_dir(&shared))
        .unwrap();
    let _ = fs::remove_dir(&cluster.dir);
    cluster.dir.clone_from(&shared);
    cluster.ok(&["up", "-n", "1"]);
    let shown = cluster.ok(&["run", "-w", "n1", "ls", "-a", &shared.display().to_string()]);
    assert_eq!(shown, ".\n..\n");
    let secrets = format!("{}/state/head.sqlite", shared.display());
    let read = cluster.wiglaf(&["run", "-w", "n1", "cat", &secrets]);
    assert!(
        text(&read.stderr).contains("No such file"),
        "{}",
        text(&read.stderr)
    );
    cluster.down();
}

#[test]
fn v1_a_change_on_the_head_is_seen_by_the_next_command() {
    let Some(cluster) = start(1) else { return };
    let file = format!("{SHARED}/wiglaf-change-{}", std::process::id());
    fs::write(&file, "first").unwrap();
    assert_eq!(cluster.ok(&["run", "-w", "n1", "cat", &file]), "first");
    fs::write(format!("{file}.new"), "second").unwrap();
    fs::rename(format!("{file}.new"), &file).unwrap();
    assert_eq!(cluster.ok(&["run", "-w", "n1", "cat", &file]), "second");
    fs::remove_file(&file).unwrap();
    let gone = cluster.wiglaf(&["run", "-w", "n1", "cat", &file]);
    assert!(
        text(&gone.stderr).contains("No such file"),
        "{}",
        text(&gone.stderr)
    );
    cluster.down();
}

/// Both a node that knows the names and the deputy of an ordinary user, who can't look at what
/// is mounted, hear of it.
#[test]
fn v1_mounts_on_the_head_are_seen_and_cost_only_their_names() {
    const WORK: &str = "find /usr/include -maxdepth 1 -type f | xargs cat | sha256sum";
    const FEW: u64 = 60;
    let Some(cluster) = start(1) else { return };
    let dir = format!("{SHARED}/wiglaf-{}-mounts", std::process::id());
    here(&format!(
        "mkdir -p {dir}/on {dir}/other; echo under >{dir}/on/file"
    ));
    let asked = || -> u64 {
        let views = cluster.json(&["view", "status", "--json"]);
        let views = views.as_array().expect("a list");
        views.iter().filter_map(|view| view["asked"].as_u64()).sum()
    };
    let seen = |user| {
        text(
            &cluster
                .script_as(
                    user,
                    &format!("wiglaf run -w n1 sh -c '{WORK}; cat {dir}/on/file'"),
                )
                .stdout,
        )
    };
    let (user, file) = (ALICE, |n: u32| format!("echo {n} >{dir}/on/file"));
    let mount = format!("mount -t tmpfs -o mode=0755 wiglaf-test {dir}/on");
    let first = seen(user);
    assert!(first.ends_with("under\n"), "{first}");
    let work = first.trim_end_matches("under\n").to_owned();
    assert_eq!(seen(user), first);
    for round in 1..4 {
        let before = asked();
        here(&format!("{mount} && {}", file(round)));
        assert_eq!(seen(user), format!("{work}{round}\n"));
        // The same line of the mount table, perhaps with the same numbers.
        here(&format!(
            "umount -l {dir}/on; {mount} && {}",
            file(round + 10)
        ));
        assert_eq!(seen(user), format!("{work}{}\n", round + 10));
        here(&format!(
            "mount --bind {dir}/on {dir}/other; umount -l {dir}/on"
        ));
        assert_eq!(seen(user), first);
        here(&format!("umount -l {dir}/other"));
        assert_eq!(seen(user), first);
        let after = asked();
        assert!(after - before < 4 * FEW, "{before} {after}");
    }
    here(&format!("rm -rf {dir}"));
}

#[test]
fn streams_and_files_share_the_link() {
    let Some(cluster) = start(1) else { return };
    let file = format!("{}/bytes", cluster.dir.display());
    let piped = cluster.script(&format!(
        "F={file}; head -c 8000000 /dev/urandom >$F; \
         cat $F | wiglaf run -w n1 cat | cmp - $F && echo same"
    ));
    assert_eq!(text(&piped.stdout), "same\n", "{}", text(&piped.stderr));
    // A task that reads a lot of files while another's output must not stand still.
    let both = cluster.script(
        "wiglaf run -w n1 sh -c 'timeout 4 cat /usr/lib/x86_64-linux-gnu/*.so*' >/dev/null & \
         sleep 1; wiglaf run -w n1 echo quick; wait",
    );
    assert_eq!(text(&both.stdout), "quick\n", "{}", text(&both.stderr));
    cluster.down();
}

#[test]
fn a_task_without_streams_has_files() {
    let Some(cluster) = start(1) else { return };
    let silent = cluster.script("wiglaf run -w n1 ls /usr >/dev/null 2>&1 </dev/null; echo $?");
    assert_eq!(text(&silent.stdout), "0\n");
    let job = cluster.ok(&["run", "--detach", "-w", "n1", "ls", "-d", "/usr"]);
    let job = job.trim();
    cluster.ok(&["wait", job]);
    assert_eq!(cluster.ok(&["logs", job]), "/usr\n");
    cluster.down();
}

#[test]
fn a_terminal_works_through_the_view() {
    let Some(cluster) = start(1) else { return };
    let mut shell = Shell::start(&cluster);
    shell.say("wiglaf run --tty -w n1 bash --norc --noprofile -i");
    shell.expect("# ");
    shell.say("tty; stat -f -c %T / | tr a-z A-Z");
    shell.expect("/dev/pts/");
    shell.expect("FUSEBLK");
    shell.say("sleep 98 & jobs; exit 3");
    shell.expect("Running");
    shell.expect("ready> ");
    shell.say("echo code:$?");
    shell.expect("code:3");
    drop(shell);
    cluster.down();
}

#[test]
fn killing_the_head_disturbs_no_file() {
    let Some(cluster) = start(1) else { return };
    let script = "for i in 1 2 3 4 5 6 7 8; do ls /usr/lib | wc -l; sleep 0.3; done";
    let child = cluster.spawn(&["run", "-w", "n1", "sh", "-c", script]);
    wait_for(
        "the task",
        || !cluster.remote_commands().is_empty(),
        String::new,
    );
    for pid in cluster.daemon("wiglaf: head") {
        kill(pid, SIGKILL).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        text(&output.stderr)
    );
    let entries = here("ls /usr/lib | wc -l");
    assert_eq!(
        text(&output.stdout),
        entries.repeat(8),
        "{}",
        text(&output.stderr)
    );
    cluster.down();
}

#[test]
fn a_killed_node_leaves_no_process_that_waits_for_files() {
    let Some(cluster) = start(2) else { return };
    let readers: Vec<_> = (0..4)
        .map(|_| {
            cluster.spawn(&[
                "run",
                "-w",
                "n1",
                "sh",
                "-c",
                "find /usr -type f | xargs cat",
            ])
        })
        .collect();
    wait_for(
        "the tasks",
        || cluster.remote_commands().len() >= 4,
        String::new,
    );
    let agent = cluster.agent("n1");
    kill(agent, SIGKILL).unwrap();
    for reader in readers {
        assert_eq!(reader.wait_with_output().unwrap().status.code(), Some(125));
    }
    assert_eq!(cluster.ok(&["run", "-w", "n2", "hostname"]), "n2\n");
    cluster.down();
}
