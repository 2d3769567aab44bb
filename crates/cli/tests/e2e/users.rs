//! Several users on one head, and callers that are refused (S3).

use crate::cluster::{ALICE, BOB, Cluster, DOOMED, OWNER, User, skip, text, wait_for};

#[test]
fn nobody_signals_or_hears_another() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut alices = cluster
        .command_as(DOOMED, &["run", "sleep", "3331"])
        .spawn()
        .unwrap();
    let pid = || {
        let list = cluster.json(&["ps", "--json"]);
        let row = list
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["command"] == "sleep 3331");
        row.map(|row| row["pid"].as_i64().unwrap())
    };
    wait_for("alice's task", || pid().is_some(), String::new);
    let pid = pid().unwrap().to_string();
    let bob = crate::cluster::output_of(cluster.command_as(BOB, &["kill", &pid]));
    assert_ne!(bob.status.code(), Some(0));
    assert!(
        text(&bob.stderr).contains("not yours"),
        "{}",
        text(&bob.stderr)
    );
    // On the node it is another user's process as well.
    let there =
        crate::cluster::output_of(cluster.command_as(BOB, &["run", "-w", "n1", "kill", &pid]));
    assert!(
        text(&there.stderr).contains("not permitted"),
        "{}",
        text(&there.stderr)
    );
    let peek = cluster.script_as(BOB, &format!("wiglaf run -w n1 cat /proc/{pid}/environ"));
    assert!(
        text(&peek.stderr).contains("Permission denied"),
        "{}",
        text(&peek.stderr)
    );
    for forbidden in [&["down"][..], &["node", "drain", "n1"], &["node", "token"]] {
        let output = crate::cluster::output_of(cluster.command_as(BOB, forbidden));
        assert_ne!(output.status.code(), Some(0), "{forbidden:?}");
    }
    // A user's `kill -9 -1` reaches the ghosts, but not the deputy that serves them.
    cluster.script_as(DOOMED, "kill -9 -1");
    alices.wait().unwrap();
    let output = crate::cluster::output_of(cluster.command_as(DOOMED, &["run", "id", "-u"]));
    assert_eq!(text(&output.stdout).trim(), "54323");
    let root = cluster.ok(&["run", "id", "-u"]);
    assert_eq!(root.trim(), "0");
}

/// A node keeps the views of a few users who have nothing running there, and no more.
#[test]
fn more_users_than_a_node_keeps_views_for() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    for round in 0..3 {
        for uid in 54400..54412 {
            let run = [
                "run",
                "-w",
                "n1",
                "sh",
                "-c",
                "id -u; head -c 5 /etc/passwd",
            ];
            let output = crate::cluster::output_of(cluster.command_as(User::Id(uid), &run));
            assert_eq!(
                text(&output.stdout),
                format!("{uid}\nroot:"),
                "round {round}: {}",
                text(&output.stderr)
            );
        }
    }
}

#[test]
fn logs_and_jobs_are_their_owners() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let job = crate::cluster::output_of(
        cluster.command_as(ALICE, &["run", "--detach", "echo", "secret"]),
    );
    let job = text(&job.stdout).trim().to_owned();
    let waited = crate::cluster::output_of(cluster.command_as(ALICE, &["wait", &job]));
    assert!(waited.status.success(), "{}", text(&waited.stderr));
    let bob = crate::cluster::output_of(cluster.command_as(BOB, &["logs", &job]));
    assert_ne!(bob.status.code(), Some(0));
    assert!(!text(&bob.stdout).contains("secret"));
    let alice = crate::cluster::output_of(cluster.command_as(ALICE, &["logs", &job]));
    assert_eq!(text(&alice.stdout), "secret\n");
}

#[test]
fn permissions_of_nodes_are_enforced_at_the_head() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    cluster.ok(&["node", "set", "n1", "--user", "54321", "--mode", "100"]);
    let run = |user, node| {
        crate::cluster::output_of(cluster.command_as(user, &["run", "-w", node, "true"]))
    };
    assert!(run(ALICE, "n1").status.success());
    let bob = run(BOB, "n1");
    assert_eq!(bob.status.code(), Some(125));
    assert!(
        text(&bob.stderr).contains("may not run anything on n1"),
        "{}",
        text(&bob.stderr)
    );
    assert!(run(BOB, "n2").status.success());
    cluster.ok(&["node", "drain", "n2"]);
    let drained = run(BOB, "n2");
    assert!(
        text(&drained.stderr).contains("drain"),
        "{}",
        text(&drained.stderr)
    );
    cluster.ok(&["node", "resume", "n2"]);
    assert!(run(BOB, "n2").status.success());
}

#[test]
fn s3_confined_callers_are_refused() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let refused = |wrapper: &str, why: &str| {
        let output = cluster.script(&format!("{wrapper} wiglaf run true"));
        assert_ne!(output.status.code(), Some(0), "{wrapper}");
        assert!(
            text(&output.stderr).contains(why),
            "{wrapper}: {}",
            text(&output.stderr)
        );
    };
    refused("unshare -m", "mount namespace");
    refused("unshare -p -f", "PID namespace");
    refused("unshare -U -r", "user namespace");
    refused("setpriv --no-new-privs", "no_new_privs");
}

#[test]
fn an_ordinary_users_cluster_works_the_same() {
    if !crate::cluster::is_root() {
        return skip("this test becomes an ordinary user, which only root can");
    }
    let probe = crate::cluster::output_of({
        let mut command = crate::cluster::as_user(OWNER, "unshare".as_ref());
        command.args(["-Urn", "true"]);
        command
    });
    if !probe.status.success() {
        return skip("ordinary users may not make user namespaces here");
    }
    let cluster = Cluster::start_as(OWNER, 2);
    let output = cluster.ok(&["run", "-a", "-l", "sh", "-c", "echo $(id -u) $(hostname)"]);
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["n1: 54324 n1", "n2: 54324 n2"]);
    let piped = cluster.script("wiglaf run -w n1 seq 10 | wiglaf run -w n2 wc -l");
    assert_eq!(text(&piped.stdout).trim(), "10");
    let written = cluster.script("cd $WIGLAF_DIR; wiglaf run sh -c 'echo x > made'; ls -ln made");
    assert!(
        text(&written.stdout).contains(" 54324 54324 "),
        "{}",
        text(&written.stdout)
    );
    let killed = cluster.script("wiglaf run sleep 100 & sleep 0.5; kill $!; wait $!; echo $?");
    assert_eq!(text(&killed.stdout), "143\n");
    let other = crate::cluster::output_of(cluster.command_as(BOB, &["run", "true"]));
    assert_ne!(other.status.code(), Some(0));
    assert_eq!(cluster.owner, OWNER);
    assert_ne!(cluster.owner, User::Root);
    cluster.down();
}
