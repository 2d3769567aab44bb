//! The rack with real namespaces. Without the test harness, whose threads could not be forked:
//! this process starts itself again as a rack, and plays the head.

mod head;
mod processes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};
use wiglaf_linux::process::{set_child_subreaper, wait_any_child};
use wiglaf_node::rack::{Rack, RackConfig, RackError, VirtualFiles, remove_leftovers};

use head::Head;
use processes::be_rack;

const NODES: [&str; 2] = ["n1", "n2"];
const ECHO_PORT: u16 = 7000;
/// Debian's `nobody`; any user without rights would do.
const ORDINARY_USER: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(20);
const MAX_MESSAGE: usize = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [role, tag, rootless, hidden] = &arguments[..]
        && role == "as-rack"
    {
        return be_rack(tag, rootless == "true", hidden);
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let tests: [(&str, fn()); 4] = [
        ("nodes_of_root", nodes_of_root),
        ("nodes_of_an_ordinary_user", nodes_of_an_ordinary_user),
        ("a_forbidden_user_namespace_is_explained", forbidden),
        ("a_second_rack_of_a_tag_is_refused", second_rack),
    ];
    if rustix::process::geteuid().is_root() {
        stand_apart();
    } else {
        say("SKIPPED: all but the rootless tests need root");
    }
    set_child_subreaper(true).expect("subreaper");
    let (mut passed, mut failed) = (0_u8, 0_u8);
    for (name, test) in tests {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let outcome = catch_unwind(AssertUnwindSafe(test));
        say(&format!(
            "test {name} ... {}",
            if outcome.is_ok() { "ok" } else { "FAILED" }
        ));
        failed += u8::from(outcome.is_err());
        passed += u8::from(outcome.is_ok());
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured"
    ));
    ExitCode::from(failed)
}

#[expect(
    clippy::print_stdout,
    reason = "a test without a harness reports by itself"
)]
fn say(text: &str) {
    println!("{text}");
}

/// Gives the tests a network and mounts of their own, the mounts shared as systemd has them:
/// so that what leaks would show.
fn stand_apart() {
    unshare(NamespaceFlags::NEWNS | NamespaceFlags::NEWNET).expect("unshare");
    for propagation in [
        MountPropagationFlags::PRIVATE,
        MountPropagationFlags::SHARED,
    ] {
        rustix::mount::mount_change("/", propagation | MountPropagationFlags::REC)
            .expect("propagation");
    }
}

fn needs_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        say("SKIPPED: needs root");
    }
    root
}

fn nodes_of_root() {
    if !needs_root() {
        return;
    }
    let mut head = Head::with_rack("troot", false);
    assert!(device_names().contains("wgtroot"), "no bridge");
    look_around(&mut head);
    new_mounts_appear(&mut head);
    a_dead_node_is_noticed_and_starts_again(&mut head);
    let terminal_group = head.task("n1", "stat -c %a:%F /dev/pts/ptmx");
    assert_eq!(terminal_group, "666:character special file\n");
    killed_rack_leaves_nothing(head);

    assert!(
        remove_leftovers("troot").expect("leftovers"),
        "nothing left?"
    );
    assert!(!device_names().contains("wgtroot"), "{}", device_names());
    assert!(
        !remove_leftovers("troot").expect("leftovers"),
        "still there"
    );
}

fn nodes_of_an_ordinary_user() {
    let mut head = Head::with_rack("tuser", true);
    assert!(!device_names().contains("wgtuser"), "bridge in the open");
    look_around(&mut head);
    a_dead_node_is_noticed_and_starts_again(&mut head);
    // Every capability, for the tasks' PIDs and mounts, yet no other user's rights.
    let status = head.agent("n1", "cat /proc/1/status");
    let capabilities = status.lines().find(|line| line.starts_with("CapEff:"));
    let effective = capabilities.and_then(|line| line.split_whitespace().nth(1));
    let effective = u64::from_str_radix(effective.expect("CapEff"), 16).expect("a number");
    let sys_admin = 1 << 21;
    assert!(effective & sys_admin != 0, "{status}");
    assert_eq!(
        head.task("n1", "cat /etc/shadow 2>&1 | grep -c denied"),
        "1\n"
    );
    killed_rack_leaves_nothing(head);
    assert!(!remove_leftovers("tuser").expect("leftovers"));
}

fn forbidden() {
    if !needs_root() {
        return;
    }
    // The limit of a user namespace of our own: the machine's must not be touched.
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$0\" as-rack tno true /";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "/bin/sh", "-c", script])
        .arg(env::current_exe().expect("exe"))
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("user.max_user_namespaces is 0"), "{said}");
    assert!(
        said.contains("sysctl -w user.max_user_namespaces="),
        "{said}"
    );
}

fn second_rack() {
    if !needs_root() {
        return;
    }
    let config = RackConfig {
        tag: "twice".into(),
        nodes: NODES.map(String::from).into(),
        rootless: false,
        hidden: Vec::new(),
        files: VirtualFiles::Disk,
    };
    let other = RackConfig {
        tag: "other".into(),
        ..config.clone()
    };
    let first = Rack::set_up(&config).expect("first");
    assert!(matches!(
        Rack::set_up(&config),
        Err(RackError::BridgeExists(name)) if name == "wgtwice"
    ));
    let second = Rack::set_up(&other).expect("second");
    assert_ne!(first.listen_addr.ip(), second.listen_addr.ip());
    first.tear_down().expect("tear down");
    second.tear_down().expect("tear down");
    assert!(!device_names().contains("wg"), "{}", device_names());
}

/// What programs on the nodes see.
fn look_around(head: &mut Head) {
    for name in NODES {
        assert_eq!(
            head.task(name, "hostname; cat /proc/sys/kernel/hostname"),
            format!("{name}\n{name}\n")
        );
        assert_eq!(head.agent(name, "cat /proc/1/comm"), "wiglaf\n");
        let title = format!("wiglaf: agent {name}");
        let shown = head.task(name, "tr '\\0' ' ' </proc/1/cmdline");
        assert!(
            title.starts_with(shown.trim_end()) && shown.len() > 6,
            "{shown}"
        );
    }
    // Of processes only the node's own: init, the shell and ls.
    let processes = head.task("n1", "ls -d /proc/[0-9]* | wc -l");
    let processes: u32 = processes.trim().parse().expect("a number");
    assert!((2..=6).contains(&processes), "{processes} processes");
    assert_eq!(head.task("n1", "ls /sys/class/net"), "eth0\nlo\n");
    // By the agent itself: what it executes has no capabilities when it is not root.
    head.ask("n1", "steer 300");
    assert_eq!(head.agent("n1", "echo $$"), "301\n");

    let addresses = head.addresses.clone();
    for (here, there) in [("n1", "n2"), ("n2", "n1")] {
        let answer = head.ask(here, &format!("dial {}:{ECHO_PORT}", addresses[there]));
        assert_eq!(answer, format!("this is {there}"));
    }

    let seen = head.task("n2", "cat /etc/passwd");
    assert_eq!(seen, fs::read_to_string("/etc/passwd").expect("passwd"));
    let directory = head.directory.path().to_owned();
    fs::write(directory.join("from-head"), "hello").expect("write");
    let directory = directory.display().to_string();
    assert_eq!(
        head.task("n1", &format!("cat {directory}/from-head")),
        "hello"
    );
    head.task("n2", &format!("echo back >{directory}/from-node"));
    let back = fs::read_to_string(format!("{directory}/from-node")).expect("read");
    assert_eq!(back, "back\n");
    assert!(directory.starts_with("/tmp") || env::var_os("TMPDIR").is_some());

    let hidden = format!("ls {directory}/hidden/ 2>/dev/null | wc -l");
    assert_eq!(head.task("n1", &hidden), "0\n");
    assert_eq!(head.agent("n1", &hidden), "1\n");
    assert_eq!(head.task("n1", "ls -A /run"), "lock\n");
    assert_eq!(
        head.task("n1", "stat -c %a /run /run/lock /dev/shm /dev/null"),
        "755\n1777\n1777\n666\n"
    );
    let devices = head.task("n1", "ls /dev");
    for name in [
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero",
    ] {
        assert!(
            devices.lines().any(|line| line == name),
            "{name} of {devices}"
        );
    }
    assert!(
        !devices.contains("vda") && !devices.contains("kmsg"),
        "{devices}"
    );
    assert_eq!(
        head.task(
            "n1",
            "echo x >/dev/null; head -c 3 /dev/zero | wc -c; : >/dev/shm/x"
        ),
        "3\n"
    );
    assert_eq!(
        head.task("n1", "script -qc tty /dev/null </dev/null | tr -d '\\r'"),
        "/dev/pts/0\n"
    );
    assert_eq!(
        head.task(
            "n1",
            "touch /sys/kernel/x 2>&1 | grep -c -e Read-only -e denied"
        ),
        "1\n"
    );
    // The head's old tree is nowhere below the new root.
    let roots = head.task("n1", "awk '$5 == \"/\"' /proc/self/mountinfo | wc -l");
    assert_eq!(roots, "1\n");
}

fn new_mounts_appear(head: &mut Head) {
    let place = head.directory.path().join("disk");
    fs::create_dir(&place).expect("mkdir");
    rustix::mount::mount("tmpfs", &place, "tmpfs", MountFlags::empty(), None).expect("mount");
    fs::write(place.join("file"), "on disk").expect("write");
    let seen = head.task("n1", &format!("cat {}/file", place.display()));
    rustix::mount::unmount(&place, UnmountFlags::empty()).expect("unmount: a node holds it");
    assert_eq!(seen, "on disk");
    assert_eq!(head.task("n1", &format!("ls {}", place.display())), "");
}

fn a_dead_node_is_noticed_and_starts_again(head: &mut Head) {
    head.task("n2", "sleep 98765 >/dev/null 2>&1 &");
    wait_until_running("sleep\x0098765\0");
    head.order("kill n2");
    assert!(head.hear().starts_with("died n2 Signaled"), "no notice");
    assert_eq!(running("sleep\x0098765\0"), 0, "a task outlived its node");
    head.order("start 1");
    head.meet();
    let there = head.addresses["n2"].clone();
    let answer = head.ask("n1", &format!("dial {there}:{ECHO_PORT}"));
    assert_eq!(answer, "this is n2");
}

fn killed_rack_leaves_nothing(mut head: Head) {
    head.task("n1", "setsid sleep 98764 >/dev/null 2>&1 &");
    wait_until_running("sleep\x0098764\0");
    head.rack.kill().expect("kill");
    head.rack.wait().expect("wait");
    // The agents, orphaned, are ours now; ECHILD says that the last has ended.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match wait_any_child(true) {
            Err(Errno::CHILD) => break,
            Ok(_) => assert!(Instant::now() < deadline, "an agent outlived its rack"),
            Err(errno) => panic!("{errno}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(running("sleep\x0098764\0"), 0, "a task outlived its rack");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert_eq!(mounts, head.mounts_before);
}

/// A shell may return before what it has put into the background is executed.
fn wait_until_running(cmdline: &str) {
    let deadline = Instant::now() + PATIENCE;
    while running(cmdline) == 0 {
        assert!(Instant::now() < deadline, "{cmdline} does not run");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many processes have this command line.
fn running(cmdline: &str) -> usize {
    let is_it = |entry: &fs::DirEntry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|found| found == cmdline.as_bytes())
    };
    let processes = fs::read_dir("/proc").expect("/proc");
    processes.flatten().filter(is_it).count()
}

fn device_names() -> String {
    // Not from /sys, which shows the network of whoever mounted it.
    fs::read_to_string("/proc/self/net/dev").expect("net/dev")
}
