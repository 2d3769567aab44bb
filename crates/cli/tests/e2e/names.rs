//! Names on nodes.

use std::fs;
use std::os::unix::fs::DirBuilderExt;

use crate::cluster::{ALICE, Cluster, User, is_root, output_of, skip, text, wait_for};
use crate::machines::Pair;

/// A cluster that is not up yet, with this configuration.
fn prepare(owner: User, config: &str) -> Option<Cluster> {
    if !is_root() {
        skip("clusters of this test are made by root");
        return None;
    }
    if let Err(error) = wiglaf_view::check_device() {
        skip(&error.to_string());
        return None;
    }
    let cluster = Cluster::prepare(owner);
    if !config.is_empty() {
        let state = cluster.dir.join("state");
        fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
        fs::write(state.join("wiglaf.toml"), config).unwrap();
    }
    Some(cluster)
}

/// The address of a node.
fn address(cluster: &Cluster, node: &str) -> String {
    let hosts = cluster.ok(&["nodes", "--hosts"]);
    let line = hosts
        .lines()
        .find(|line| line.ends_with(&format!("\t{node}")));
    let line = line.unwrap_or_else(|| panic!("{node} is not in {hosts}"));
    line.split('\t').next().unwrap_or_default().to_owned()
}

/// Which addresses a name has on a node, as programs are told.
fn found(cluster: &Cluster, node: &str, name: &str) -> Vec<String> {
    let output = cluster.wiglaf(&["run", "-w", node, "getent", "ahosts", name]);
    let said = text(&output.stdout);
    let addresses = said.lines().filter(|line| line.contains("STREAM"));
    let first = addresses.filter_map(|line| line.split_ascii_whitespace().next());
    first.map(str::to_owned).collect()
}

fn head_name() -> String {
    text(rustix::system::uname().nodename().to_bytes())
}

fn check(cluster: &Cluster) {
    for node in ["n1", "n2"] {
        for other in ["n1", "n2"] {
            // The one that came first hears of the other a moment later.
            wait_for(
                "nodes know each other",
                || found(cluster, node, other) == [address(cluster, other)],
                || cluster.ok(&["run", "-w", node, "cat", "/etc/hosts"]),
            );
        }
        assert!(
            found(cluster, node, "localhost")
                .iter()
                .all(|it| it == "127.0.0.1" || it == "::1")
        );
        assert_eq!(
            cluster.ok(&["run", "-w", node, "hostname"]),
            format!("{node}\n")
        );
    }
    // The head is where it is reached.
    let head = head_name();
    let addresses = found(cluster, "n1", &head);
    let [address] = addresses.as_slice() else {
        panic!("{head} is {addresses:?}");
    };
    let script = format!("exec 3<>/dev/udp/{address}/9 && echo reachable");
    let said = cluster.ok(&["run", "-w", "n1", "bash", "-c", &script]);
    assert_eq!(said, "reachable\n", "no way leads to {address}");
}

#[test]
fn nodes_know_each_other_and_the_head_by_name() {
    let Some(cluster) = prepare(User::Root, "") else {
        return;
    };
    cluster.ok(&["up", "-n", "2"]);
    check(&cluster);
    // What else the head has.
    let here = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let there = cluster.ok(&["run", "-w", "n1", "cat", "/etc/hosts"]);
    let is_other = |line: &&str| {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        first
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| !ip.is_loopback())
    };
    for line in here.lines().filter(is_other) {
        let name = line.split_ascii_whitespace().nth(1).unwrap_or_default();
        assert!(there.contains(name), "{name} is missing in {there}");
    }
    let resolver = "cat /etc/resolv.conf";
    let there = cluster.ok(&["run", "-w", "n1", "sh", "-c", resolver]);
    assert_eq!(
        there,
        fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    );
    // Links, which the head does not have, and which nobody can change.
    let script = "stat -c '%F' /etc/hosts; ls -l /etc | grep -c ' hosts -> '; \
                  find /etc -maxdepth 1 -name hosts -type l; \
                  rm -f /etc/hosts; echo >/etc/hosts; mv /etc/hosts /etc/other; \
                  ln -s a /etc/resolv.conf; touch /etc/hosts; : >/run/wiglaf-names/new";
    let output = output_of(cluster.command(&["run", "-w", "n1", "sh", "-c", script]));
    let said = text(&output.stdout);
    assert_eq!(
        said,
        "symbolic link\n1\n/etc/hosts\n",
        "{}",
        text(&output.stderr)
    );
    let errors = text(&output.stderr);
    assert_eq!(errors.lines().count(), 6, "{errors}");
    assert_eq!(fs::read_to_string("/etc/hosts").unwrap_or_default(), here);
    cluster.down();
}

#[test]
fn a_rootless_cluster_has_names_too() {
    let Some(cluster) = prepare(ALICE, "") else {
        return;
    };
    cluster.ok(&["up", "-n", "2"]);
    check(&cluster);
    cluster.down();
}

#[test]
fn nodes_without_a_view_have_names_too() {
    let Some(cluster) = prepare(User::Root, "") else {
        return;
    };
    cluster.ok(&["up", "-n", "2", "--files", "disk"]);
    check(&cluster);
    let said = cluster.wiglaf(&["run", "-w", "n1", "sh", "-c", ": >/run/wiglaf-names/hosts"]);
    assert!(!said.status.success());
    cluster.down();
}

#[test]
fn a_machine_beside_another_system_has_names() {
    let Some(pair) = Pair::start("") else { return };
    let head = head_name();
    let script = format!("getent ahostsv4 far; getent ahostsv4 {head}; cat /etc/resolv.conf");
    let said = text(&pair.alice(&script).wait_with_output().unwrap().stdout);
    let own = address(&pair.cluster, "far");
    let first: Vec<&str> = (said.lines().filter(|line| line.contains("STREAM")))
        .filter_map(|line| line.split_ascii_whitespace().next())
        .collect();
    assert_eq!(first.len(), 2, "{said}");
    assert_eq!(first[0], own, "{said}");
    assert!(first[1] != own && !first[1].starts_with("127."), "{said}");
    assert!(said.contains("nameserver"), "{said}");
}

#[test]
fn a_restarted_head_tells_names_again() {
    let Some(cluster) = prepare(User::Root, "") else {
        return;
    };
    cluster.ok(&["up", "-n", "1"]);
    assert_eq!(found(&cluster, "n1", "n1"), [address(&cluster, "n1")]);
    for pid in cluster.daemon("wiglaf: head") {
        wiglaf_linux::process::kill(pid, 9).unwrap();
    }
    wait_for(
        "the head is back",
        || {
            cluster
                .wiglaf(&["run", "-w", "n1", "true"])
                .status
                .success()
        },
        || text(&cluster.wiglaf(&["nodes"]).stdout),
    );
    assert_eq!(found(&cluster, "n1", "n1"), [address(&cluster, "n1")]);
    cluster.down();
}

#[test]
fn without_names_tasks_see_the_heads_files() {
    let Some(cluster) = prepare(User::Root, "[nodes]\nnames = false\n") else {
        return;
    };
    cluster.ok(&["up", "-n", "1"]);
    let there = cluster.ok(&["run", "-w", "n1", "cat", "/etc/hosts"]);
    assert_eq!(there, fs::read_to_string("/etc/hosts").unwrap_or_default());
    assert_eq!(
        cluster.ok(&["run", "-w", "n1", "stat", "-c", "%F", "/etc/hosts"]),
        "regular file\n"
    );
    assert!(found(&cluster, "n1", "n1").is_empty());
    cluster.down();
}
