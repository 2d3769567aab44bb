//! Nodes that boot a full system from memory, with its own init.

use std::fs;
use std::io::{self, Read};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::parts::{check_run, join};
use crate::debootstrap::{self, MARK};
use crate::run;
use crate::vm::guest::{Firmware, Guest, Plan};
use crate::vm::head::{BOOT, Head, said};
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

/// The system's file, what is read of it, and what its services take.
const MEMORY_MIB: u32 = 256;
/// More than a small machine has, debugging build or not.
const LARGE_BYTES: u64 = 256 << 20;
/// What the system's own login shows, with the name that the head gave the machine.
const LOGIN: &str = "n1 login:";
/// From the handover to a login, on a machine that is emulated.
const START: Duration = Duration::from_secs(240);
/// Its services end first.
const END: Duration = Duration::from_secs(150);
/// What may be its init.
const INITS: [&str; 2] = ["./usr/sbin/init", "./usr/lib/systemd/systemd"];
const BOOT_ID: &[&str] = &["cat", "/proc/sys/kernel/random/boot_id"];

pub(super) fn rootfs(stage: &Stage<'_>) -> Result<()> {
    let tree = debootstrap::fetch(&stage.workspace.join("target"))?;
    let rootfs = tree.to_string_lossy();
    let head = Head::with_system(stage, &["--rootfs", &rootfs])?;
    let size = head.image()?.join("system").metadata()?.len();
    stage.say(&format!("the system has {} MB", size / 1_000_000));
    head.admin(&["boot", "enable", "--interface", PORT])?;
    let mut plan = Plan::new("guest", Firmware::BiosIpxe).memory(MEMORY_MIB);
    plan.reboots = true;
    let guest = stage.guest(&head.wire, plan)?;
    join(&head, &guest, "n1", 1)?;
    check_run(&head, "n1")?;
    guest.wait_for(LOGIN, START)?;
    stage.say("the system's own init runs, and lets people log in");
    let log = head.admin(&["node", "log", "n1"])?;
    ensure!(
        log.contains("is what this image was built with"),
        "its log does not say that the system was checked: {log}"
    );
    let (_, address) = head.node("n1")?;

    // Now tasks see the system, too.
    let words = ["--name", "own", "--files", "node", "--rootfs", &rootfs];
    build(&head, &words)?;
    start_anew(&head, &guest, &["node", "reboot", "n1"])?;
    ensure!(head.node("n1")?.1 == address, "it has another address now");
    check_mark(&head)?;
    stage.say("n1 has started anew in its init's own way; its tasks see the system's files");

    // As containers are: an archive, and nothing in it that could have a machine.
    let tar = stage.dir.join("system.tar");
    let mut command = Command::new("tar");
    command.args(["--xattrs", "--xattrs-include=*"]);
    for init in INITS {
        command.arg(format!("--exclude={init}"));
    }
    let command = command.arg("-C").arg(&tree).arg("-cf").arg(&tar).arg(".");
    run::output(command)?;
    let tar = tar.to_string_lossy();
    build(
        &head,
        &["--name", "bare", "--files", "node", "--rootfs", &tar],
    )?;
    start_anew(&head, &guest, &["node", "reboot", "--kexec", "n1"])?;
    check_mark(&head)?;
    stage.say("n1 was started anew by kexec with a system that has no init");

    head.admin(&["node", "poweroff", "n1"])?;
    let status = guest.wait_for_end(END)?;
    ensure!(status.success(), "QEMU ended with {status}");
    stage.say("n1 is off");
    Ok(())
}

/// A machine that can't hold its system says so, where an administrator asks first.
pub(super) fn too_small(stage: &Stage<'_>) -> Result<()> {
    let tree = stage.folder("large")?;
    fs::create_dir(tree.join("usr"))?;
    let mut random = fs::File::open("/dev/urandom")?.take(LARGE_BYTES);
    io::copy(&mut random, &mut fs::File::create(tree.join("usr/large"))?)?;
    let words = ["--files", "node", "--rootfs", &tree.to_string_lossy()];
    let head = Head::with_system(stage, &words)?;
    let plan = Plan::new("guest", Firmware::BiosIpxe);
    check_why(&head, plan, "MB of memory free")
}

/// One whose system was changed since its image was built does not execute it; built anew, it is
/// whole.
pub(super) fn damaged(stage: &Stage<'_>) -> Result<()> {
    let tree = stage.folder("tree")?;
    fs::create_dir(tree.join("usr"))?;
    fs::write(tree.join("usr/file"), "of the system\n")?;
    let words = ["--files", "node", "--rootfs", &tree.to_string_lossy()];
    let head = Head::with_system(stage, &words)?;
    let path = head.image()?.join("system");
    let whole = fs::read(&path)?;
    let mut changed = whole.clone();
    *changed.last_mut().context("the system is empty")? ^= 1;
    fs::write(&path, changed)?;
    let plan = Plan::new("guest", Firmware::BiosIpxe).memory(MEMORY_MIB);
    check_why(&head, plan, "is not what this image was built with")?;
    let state = head.node("n1")?.0;
    ensure!(state != "up", "n1 is {state} without its system");
    head.build(stage.kernel, &words)?;
    ensure!(fs::read(&path)? == whole, "the image is still damaged");
    Ok(())
}

/// A machine that can't have its system tells the head why, in these words.
fn check_why(head: &Head<'_>, plan: Plan, words: &str) -> Result<()> {
    head.admin(&["boot", "enable", "--interface", PORT])?;
    let guest = head.stage.guest(&head.wire, plan)?;
    head.wait_for_unknown(&guest)?;
    head.adopt(&guest.plan.mac, "n1")?;
    let started = Instant::now();
    loop {
        let why = head.admin(&["node", "why", "n1"])?;
        if why.contains(words) {
            head.stage
                .say(&format!("wiglaf node why n1: {}", why.trim_end()));
            return Ok(());
        }
        ensure!(started.elapsed() < BOOT, "{why}{}", guest.console.tail());
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Another image for the node.
fn build(head: &Head<'_>, words: &[&str]) -> Result<()> {
    head.build(head.stage.kernel, words)?;
    let name = words.get(1).context("no name is among the words")?;
    head.admin(&["image", "use", name])?;
    Ok(())
}

fn start_anew(head: &Head<'_>, guest: &Guest<'_>, words: &[&str]) -> Result<()> {
    let before = on_node(head, BOOT_ID)?;
    head.admin(words)?;
    head.wait_for_state_but("n1", "up", END)?;
    head.wait_for_state("n1", "up", BOOT)
        .with_context(|| guest.console.tail())?;
    ensure!(on_node(head, BOOT_ID)? != before, "it has not started anew");
    Ok(())
}

fn check_mark(head: &Head<'_>) -> Result<()> {
    let mark = format!("/{MARK}");
    let read = on_node(head, &["cat", &mark])?;
    ensure!(read == "the system", "{mark} on n1 reads {read:?}");
    Ok(())
}

/// From a directory that either's files have.
fn on_node(head: &Head<'_>, words: &[&str]) -> Result<String> {
    let words = [&["run", "-w", "n1"], words].concat();
    let output = head.user("/".as_ref(), &words)?;
    ensure!(output.status.success(), "{words:?} {}", said(&output));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
