//! Processes that outlive a head, and whose next head is of another version.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use wiglaf_linux::process::kill;
use wiglaf_wire::PROTOCOL_VERSION;

use crate::cluster::{Cluster, text, wait_for};

const SIGKILL: i32 = 9;

/// An interface that leads nowhere.
struct Wire {
    name: String,
    address: Ipv4Addr,
}

impl Wire {
    fn new() -> Wire {
        let pid = std::process::id();
        let name = format!("wu{pid}");
        let [low, ..] = pid.to_le_bytes();
        let address = Ipv4Addr::new(10, 231, low, 1);
        let other = format!("{name}x");
        ip(&["link", "add", &name, "type", "veth", "peer", "name", &other]);
        ip(&["link", "set", &name, "up"]);
        ip(&["link", "set", &other, "up"]);
        Wire { name, address }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        ip(&["link", "delete", &self.name]);
    }
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().expect("iproute2");
    assert!(
        output.status.success(),
        "ip {words:?}: {}",
        text(&output.stderr)
    );
}

fn socket(cluster: &Cluster, name: &str, version: u32) -> PathBuf {
    cluster.dir.join(format!("run/{name}.{version}.sock"))
}

/// Its socket is all by which a head knows what a keeper speaks.
#[test]
fn a_keeper_of_another_version_keeps_its_tasks_and_its_head_waits() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let mut task = cluster.spawn(&["run", "-w", "n1", "sh", "-c", "sleep 4; exit 33"]);
    let runs = || !cluster.remote_commands().is_empty();
    wait_for("the task", runs, String::new);
    let ours = socket(&cluster, "keeper", PROTOCOL_VERSION);
    let others = socket(&cluster, "keeper", PROTOCOL_VERSION + 1);
    fs::rename(&ours, &others).unwrap();
    kill(cluster.daemon("wiglaf: head")[0], SIGKILL).unwrap();
    let log = || fs::read_to_string(cluster.dir.join("state/head.log")).unwrap_or_default();
    let is_told = || log().contains("a keeper of another version of Wiglaf holds running tasks");
    wait_for("the new head's complaint", is_told, log);
    fs::rename(&others, &ours).unwrap();
    let is_back = || cluster.wiglaf(&["nodes", "--wait", "1"]).status.success();
    wait_for("the head", is_back, log);
    assert_eq!(task.wait().unwrap().code(), Some(33));
    assert_eq!(cluster.ok(&["run", "echo", "on"]), "on\n");
    cluster.down();
}

#[test]
fn a_boot_service_of_another_version_is_replaced() {
    let Some(cluster) = Cluster::start(1) else {
        return;
    };
    let service = || cluster.daemon("wiglaf: boot");
    let wire = Wire::new();
    let address = format!("{}/24", wire.address);
    cluster.ok(&[
        "boot",
        "enable",
        "--interface",
        &wire.name,
        "--address",
        &address,
    ]);
    wait_for("the boot service", || service().len() == 1, String::new);
    let old = service();
    let ours = socket(&cluster, "boot", PROTOCOL_VERSION);
    fs::rename(&ours, socket(&cluster, "boot", PROTOCOL_VERSION + 1)).unwrap();
    kill(cluster.daemon("wiglaf: head")[0], SIGKILL).unwrap();
    let is_another = || service().len() == 1 && service() != old && ours.exists();
    wait_for("another boot service", is_another, String::new);
    cluster.down();
}
