//! Detached jobs, lists, copying, and the reading of tables by programs.

use crate::cluster::{Cluster, text};

#[test]
fn a_detached_job_is_followed_and_waited_for() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let job = cluster.ok(&[
        "run",
        "--detach",
        "-w",
        "n1",
        "sh",
        "-c",
        "echo one; sleep 0.5; echo two; echo err >&2; exit 7",
    ]);
    let job = job.trim();
    let followed = cluster.wiglaf(&["logs", "-f", job]);
    assert_eq!(text(&followed.stdout), "one\ntwo\n");
    assert_eq!(text(&followed.stderr), "err\n");
    let waited = cluster.wiglaf(&["wait", job]);
    assert_eq!(waited.status.code(), Some(7));
    let jobs = cluster.json(&["jobs", "--json"]);
    let row = jobs
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["job"] == job.parse::<u64>().unwrap())
        .unwrap();
    assert_eq!(row["state"], "ended");
    assert_eq!(row["exit_code"], 7);
    assert_eq!(row["tasks"][0]["node"], "n1");
    let unknown = cluster.wiglaf(&["wait", "999999"]);
    assert!(text(&unknown.stderr).contains("no job 999999"));
}

#[test]
fn lists_show_trees_users_and_times() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut child = cluster.spawn(&["run", "sh", "-c", "sleep 4441 & sleep 4442"]);
    let found = || {
        let list = cluster.json(&["ps", "--json"]);
        let rows = list.as_array().unwrap().clone();
        (rows.len() == 3).then_some(rows)
    };
    crate::cluster::wait_for("the tree", || found().is_some(), String::new);
    let rows = found().unwrap();
    assert_eq!(rows[0]["pid"].as_i64(), Some(i64::from(child.id())));
    assert_eq!(rows[1]["ppid"], rows[0]["pid"]);
    assert_eq!(rows[0]["node"], "n1");
    assert_eq!(rows[0]["user"], "root");
    assert!(rows[0]["rss_kib"].as_u64().unwrap() > 0);
    let table = cluster.ok(&["ps"]);
    assert!(
        table.lines().any(|line| line.ends_with("  sleep 4441")),
        "{table}"
    );
    // A descendant is known by the PID that it has on its node.
    let descendant = rows
        .iter()
        .find(|row| row["command"] == "sleep 4442")
        .unwrap();
    cluster.ok(&["kill", &descendant["pid"].to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn files_are_copied_from_and_to_what_is_the_nodes_own() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    let script = "
        cd $WIGLAF_DIR; head -c 3000000 /dev/urandom > data; mkdir tree; echo x > tree/a; ln -s a tree/b
        wiglaf cp data n1:/run/data && wiglaf cp n1:/run/data back && cmp data back && echo same
        ls /run/data 2>/dev/null
        wiglaf cp -r tree n2:/run/tree && wiglaf run -w n2 cat /run/tree/b
        wiglaf cp n1:/run/nothing x; echo code $?";
    let output = cluster.script(script);
    assert_eq!(
        text(&output.stdout),
        "same\nx\ncode 1\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn nodes_are_listed_and_shown() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let nodes = cluster.json(&["nodes", "--wait", "3", "--json"]);
    assert_eq!(nodes.as_array().unwrap().len(), 3);
    assert_eq!(nodes[0]["name"], "n1");
    assert_eq!(nodes[0]["state"], "up");
    assert_eq!(nodes[0]["virtual"], true);
    let shown = cluster.ok(&["node", "show", "n2"]);
    assert!(shown.contains("n2: up (virtual"), "{shown}");
    let unknown = cluster.wiglaf(&["node", "show", "n77"]);
    assert!(text(&unknown.stderr).contains("no node n77"));
}

/// It was drained before the cluster was ended, and is when that is up again.
#[test]
fn nobody_waits_for_a_drained_node_without_a_word() {
    let Some(cluster) = Cluster::start(2) else {
        return;
    };
    cluster.ok(&["node", "drain", "n1"]);
    cluster.ok(&["down"]);
    let up = cluster.wiglaf(&["up", "-n", "2"]);
    assert!(up.status.success(), "{}", text(&up.stderr));
    assert!(
        text(&up.stderr).contains("`wiglaf node resume n1`"),
        "{}",
        text(&up.stderr)
    );
    let waiting = cluster.spawn(&["nodes", "--wait", "2"]);
    cluster.ok(&["node", "resume", "n1"]);
    let waited = waiting.wait_with_output().unwrap();
    assert!(waited.status.success());
}
