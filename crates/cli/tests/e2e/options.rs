//! What a person can set about the files that nodes see.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use wiglaf_linux::process::kill;

use crate::cluster::{ALICE, Cluster, User, is_root, output_of, skip, text, wait_for, wiglaf};

const SIGTERM: i32 = 15;
const MIB: u64 = 1 << 20;

/// A cluster that is not up yet, and a directory that everybody may write to.
fn prepare(name: &str) -> Option<(Cluster, PathBuf)> {
    if !is_root() {
        skip("clusters of this test are made by root");
        return None;
    }
    if let Err(error) = wiglaf_view::check_device() {
        skip(&error.to_string());
        return None;
    }
    let dir = PathBuf::from(format!("/var/tmp/wiglaf-{name}-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    Some((Cluster::prepare(User::Root), dir))
}

fn configure(cluster: &Cluster, config: &str) {
    let state = cluster.dir.join("state");
    let made = fs::DirBuilder::new().mode(0o700).create(&state);
    made.unwrap_or_else(|_| assert!(state.is_dir()));
    fs::write(state.join("wiglaf.toml"), config).unwrap();
}

fn as_alice(cluster: &Cluster, node: &str, script: &str) -> (String, String) {
    let output = output_of(cluster.command_as(ALICE, &["run", "-w", node, "sh", "-c", script]));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn hidden_paths_are_on_no_node() {
    let Some((cluster, dir)) = prepare("hidden") else {
        return;
    };
    let shown = dir.display();
    fs::create_dir(dir.join("secret")).unwrap();
    fs::write(dir.join("secret/inside"), "secret").unwrap();
    fs::write(dir.join("key"), "secret").unwrap();
    fs::write(dir.join("open"), "open").unwrap();
    for kind in ["secret", "key"] {
        fs::set_permissions(dir.join(kind), fs::Permissions::from_mode(0o777)).unwrap();
    }
    configure(
        &cluster,
        &format!("[view]\nhidden = ['{shown}/secret', '{shown}/key', '{shown}/later']\n"),
    );
    let look = format!("cd {shown}; ls; cat open key later secret/inside; echo x >>key");

    cluster.ok(&["up", "-n", "1"]);
    fs::write(dir.join("later"), "secret").unwrap();
    for user in [User::Root, ALICE] {
        let output = output_of(cluster.command_as(user, &["run", "-w", "n1", "sh", "-c", &look]));
        assert_eq!(text(&output.stdout), "open\nopen", "{user:?}");
        let said = text(&output.stderr);
        assert_eq!(said.matches("No such file").count(), 3, "{said}");
    }
    cluster.ok(&["down"]);

    cluster.ok(&["up", "-n", "1", "--files", "disk"]);
    let (read, said) = as_alice(&cluster, "n1", &look);
    assert_eq!(read, "key\nlater\nopen\nsecret\nopen", "{said}");
    cluster.ok(&[
        "run",
        "-w",
        "n1",
        "test",
        "!",
        "-s",
        &format!("{shown}/key"),
    ]);
    cluster.down();
    assert_eq!(fs::read_to_string(dir.join("key")).unwrap(), "secret");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_view_remembers_no_more_than_it_may() {
    let Some((cluster, dir)) = prepare("bounds") else {
        return;
    };
    for number in 0..1500 {
        fs::write(dir.join(number.to_string()), [b'x'; 2048]).unwrap();
    }
    let look = format!("cat {0}/* | wc -c; ls {0} | wc -l", dir.display());
    let content = || {
        assert_eq!(
            cluster.ok(&["run", "-w", "n1", "sh", "-c", &look]),
            "3072000\n1500\n"
        );
        let status = cluster.json(&["view", "status", "--json"]);
        status[0]["content_bytes"].as_u64().unwrap()
    };
    cluster.ok(&["up", "-n", "1"]);
    let usual = content();
    assert!(usual > 2 * MIB, "{usual}");
    cluster.ok(&["down"]);
    cluster.ok(&[
        "up",
        "-n",
        "1",
        "--view-memory",
        "1",
        "--view-files",
        "1000",
    ]);
    let bounded = content();
    assert!(bounded <= MIB, "{bounded}");
    cluster.down();
    fs::remove_dir_all(dir).unwrap();
}

/// An agent beside this system, as on another machine.
struct Agent(Child);

impl Agent {
    /// In mounts of its own, with two file systems that the head does not have.
    fn start(cluster: &Cluster, head: &str, deep: &Path, options: &[&str]) -> Agent {
        let token = cluster.dir.join("token");
        fs::write(&token, cluster.ok(&["node", "token"])).unwrap();
        let script = format!(
            "for at in /mnt {}; do mount -t tmpfs -o mode=1777 none $at && echo mine >$at/mine; \
             done; exec \"$@\"",
            deep.display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script, "sh"])
            .arg(wiglaf())
            .args(["node", "agent", "--head", head, "--name", "far"])
            .arg("--token-file")
            .arg(token)
            .args(options)
            .current_dir("/")
            .stdin(Stdio::null());
        Agent(command.spawn().expect("unshare"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = kill(self.0.id().cast_signed(), SIGTERM);
        let _ = self.0.wait();
    }
}

/// A port that nobody listens on, or did not a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn what_both_machines_mount_is_passed_through() {
    let Some((cluster, dir)) = prepare("passed") else {
        return;
    };
    let shown = dir.display().to_string();
    let deep = dir.join("shared");
    fs::create_dir(&deep).unwrap();
    fs::write(deep.join("heads"), "the head's\n").unwrap();
    cluster.ok(&["init"]);
    let head = format!("127.0.0.1:{}", free_port());
    configure(&cluster, &format!("listen = \"{head}\"\n"));
    let log = fs::File::create(cluster.dir.join("state/head.log")).unwrap();
    let mut daemon = cluster.command(&["head"]).stderr(log).spawn().unwrap();
    let socket = cluster.dir.join("run/head.sock");
    wait_for("the head", || socket.exists(), String::new);

    let passed = format!("{shown}/shared");
    let options = ["--pass-through", "/mnt", "--pass-through", &passed];
    let agent = Agent::start(
        &cluster,
        &head,
        &deep,
        &[&options[..], &["--own-tmp"]].concat(),
    );
    cluster.ok(&["nodes", "--wait", "1"]);
    let (read, said) = as_alice(
        &cluster,
        "far",
        &format!(
            "cat /mnt/mine {passed}/mine; ls {passed}; echo new >{passed}/new; \
             echo x >/tmp/wiglaf-own && stat -f -c %T /tmp"
        ),
    );
    assert_eq!(read, "mine\nmine\nmine\ntmpfs\n", "{said}");
    assert!(!deep.join("new").exists() && !Path::new("/tmp/wiglaf-own").exists());

    // Names on its way may change on the head meanwhile.
    let script = format!(
        "echo ready >{shown}/ready; until [ -e {shown}/go ]; do sleep 0.05; done; \
         cat {passed}/mine; ls {shown}"
    );
    let waiting = cluster
        .command_as(ALICE, &["run", "-w", "far", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the task", || dir.join("ready").exists(), String::new);
    let away = dir.with_extension("away");
    for _ in 0..3 {
        fs::rename(&deep, dir.join("moved")).unwrap();
        fs::rename(dir.join("moved"), &deep).unwrap();
        fs::rename(&dir, &away).unwrap();
        fs::rename(&away, &dir).unwrap();
    }
    fs::write(dir.join("go"), "").unwrap();
    let output = waiting.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(text(&output.stdout), "mine\ngo\nready\nshared\n", "{said}");
    let again = as_alice(&cluster, "far", &format!("cat {passed}/new"));
    assert_eq!(again.0, "new\n", "{}", again.1);

    drop(agent);
    cluster.down();
    daemon.wait().unwrap();
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_can_not_be_passed_through_is_said_at_once() {
    for (path, why) in [
        ("/proc/sys", "this machine's own there anyway"),
        ("relative", "absolute path"),
    ] {
        let output = Command::new(wiglaf())
            .args([
                "node",
                "agent",
                "--head",
                "127.0.0.1:1",
                "--pass-through",
                path,
            ])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(125));
        let said = text(&output.stderr);
        assert!(said.contains(path) && said.contains(why), "{said}");
    }
}
