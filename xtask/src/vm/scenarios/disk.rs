//! A node's own disks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::parts::{check_run, join};
use crate::run;
use crate::vm::guest::{Firmware, Guest, Plan};
use crate::vm::head::{BOOT, Head};
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

const DISK_BYTES: u64 = 1 << 30;
const LARGE_BYTES: u64 = 8 << 20;
/// Making a file system takes memory.
const MEMORY_MIB: u32 = 192;
/// Modules of file systems are large, and mkfs emulated is slow.
const APPLY: Duration = Duration::from_secs(180);
const END: Duration = Duration::from_secs(60);
const LAYOUT: &str = "
[[disk]]
nodes = \"n[1-4]\"
device = \"first\"
swap = \"128M\"
scratch = \"rest\"

[[disk]]
device = \"full\"
data = \"rest\"
";
/// Where that puts the scratch file system's superblock.
const SUPERBLOCK: u64 = (129 << 20) + 1024;

pub(super) fn disk(stage: &Stage<'_>) -> Result<()> {
    let head = Head::with_system(stage, &["--disk"])?;
    head.admin(&["boot", "enable", "--interface", PORT])?;
    let [empty, full] = [stage.dir.join("empty.img"), stage.dir.join("full.img")];
    File::create(&empty)?.set_len(DISK_BYTES)?;
    File::create(&full)?.set_len(DISK_BYTES)?;
    run::output(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&full))?;
    let guest = node(stage, &head, &empty, &full)?;
    join(&head, &guest, "n1", 1)?;
    // So that there is a view from before.
    check_run(&head, "n1")?;

    check_without_layout(&head)?;
    check_plan(&head)?;
    let before = fs::read(&full)?;
    check_apply(&head)?;
    ensure!(fs::read(&full)? == before, "a disk with data was changed");
    stage.say("the disk with a file system on it has not changed by a byte");
    check_used(&head)?;
    head.on_node("n1", &["sh", "-c", "echo was here >/scratch/kept"])?;
    let (file, sum) = large_file(stage)?;
    ensure!(head.on_node("n1", &["sha256sum", &file])?.starts_with(&sum));

    restart(&head, &guest)?;
    check_kept(&head, &file, &sum)?;
    check_used(&head)?;
    ensure!(head.on_node("n1", &["cat", "/scratch/kept"])? == "was here");
    let lines = steps(&head, &["disk", "apply"], Some(1))?;
    ensure!(text_of(&lines, "/dev/vda")? == "nothing to do", "{lines:?}");
    stage.say("after a new start it is swapped to, the file is there, and nothing is to be done");

    let words = ["disk", "apply", "--erase", "n1:full"];
    let lines = steps(&head, &words, Some(0))?;
    ensure!(
        lines.iter().any(|line| field(line, "verdict") == "done"),
        "{lines:?}"
    );
    head.on_node("n1", &["sh", "-c", "echo mine >/data/mine"])?;
    let lines = steps(&head, &["disk", "plan"], Some(0))?;
    ensure!(
        lines.iter().all(|line| field(line, "verdict") == "right"),
        "{lines:?}"
    );
    stage.say("named, the other disk is erased and used; then nothing is to be done");

    head.admin(&["node", "poweroff", "n1"])?;
    guest.wait_for_end(END)?;
    drop(guest);
    File::options()
        .write(true)
        .open(&empty)?
        .write_all_at(&[0xee; 1024], SUPERBLOCK)?;
    let damaged = fs::read(&empty)?;
    let guest = node(stage, &head, &empty, &full)?;
    head.wait_for_state("n1", "up", BOOT)
        .with_context(|| guest.console.tail())?;
    ensure!(head.on_node("n1", &["cat", "/data/mine"])? == "mine");
    check_damaged(&head)?;
    ensure!(fs::read(&empty)? == damaged, "a damaged disk was changed");
    stage.say("a damaged file system is said to be one, and left alone");
    check_anew(&head)
}

/// A file of the head's that nothing compresses, and its SHA-256.
fn large_file(stage: &Stage<'_>) -> Result<(String, String)> {
    let file = stage.dir.join("large");
    let mut random = File::open("/dev/urandom")?.take(LARGE_BYTES);
    std::io::copy(&mut random, &mut File::create(&file)?)?;
    let sums = run::output(Command::new("sha256sum").arg(&file))?;
    let sum = sums.split(' ').next().context("a sum")?;
    Ok((file.display().to_string(), sum.to_owned()))
}

/// What the node had read is on its disk: it comes from there.
fn check_kept(head: &Head<'_>, file: &str, sum: &str) -> Result<()> {
    ensure!(head.on_node("n1", &["sha256sum", file])?.starts_with(sum));
    let views = head.admin(&["view", "status", "--json"])?;
    let views: Vec<Value> = serde_json::from_str(&views)?;
    let count = |name: &str| -> u64 {
        let counts = views.iter().filter_map(|view| view[name].as_u64());
        counts.sum()
    };
    let (read, kept) = (count("bytes_read"), count("bytes_kept"));
    ensure!(kept > LARGE_BYTES / 10 * 9, "{kept} bytes were kept");
    ensure!(read < LARGE_BYTES / 2, "{read} bytes were sent again");
    head.stage.say(&format!(
        "of the head's files it had kept {kept} bytes over its new start; {read} were sent"
    ));
    Ok(())
}

fn node<'w>(stage: &Stage<'_>, head: &'w Head<'_>, empty: &Path, full: &Path) -> Result<Guest<'w>> {
    let mut plan = Plan::new("guest", Firmware::BiosIpxe)
        .memory(MEMORY_MIB)
        .disk("empty", empty.to_owned())
        .disk("full", full.to_owned());
    plan.reboots = true;
    stage.guest(&head.wire, plan)
}

fn restart(head: &Head<'_>, guest: &Guest<'_>) -> Result<()> {
    head.admin(&["node", "reboot", "n1"])?;
    head.wait_for_state_but("n1", "up", END)?;
    head.wait_for_state("n1", "up", BOOT)
        .with_context(|| guest.console.tail())
}

/// Disks are shown, and whoever has no layout hears how to have one.
fn check_without_layout(head: &Head<'_>) -> Result<()> {
    let shown = head.admin(&["disk", "show"])?;
    let line = |device: &str| {
        let line = shown.lines().find(|line| line.contains(device));
        line.with_context(|| format!("there is no {device} in {shown}"))
    };
    ensure!(line("/dev/vda")?.ends_with("empty"), "{shown}");
    ensure!(line("/dev/vda")?.contains("1.0G"), "{shown}");
    ensure!(line("/dev/vdb")?.ends_with("ext4"), "{shown}");
    let Err(error) = head.admin(&["disk", "plan"]) else {
        bail!("there is a plan without a layout");
    };
    ensure!(error.to_string().contains("[[disk]]"), "{error}");
    let mut config = File::options().append(true).open(config_of(head))?;
    config.write_all(LAYOUT.as_bytes())?;
    head.stage
        .say("its disks are shown, and how to say what they are for");
    Ok(())
}

fn config_of(head: &Head<'_>) -> PathBuf {
    head.stage.dir.join("w/state/wiglaf.toml")
}

fn check_plan(head: &Head<'_>) -> Result<()> {
    let lines = steps(head, &["disk", "plan"], Some(0))?;
    let text = text_of(&lines, "/dev/vda")?;
    ensure!(
        text == "divide and format: swap 128M, scratch 894M",
        "{text}"
    );
    let text = text_of(&lines, "/dev/vdb")?;
    ensure!(
        text.contains("it has ext4") && text.ends_with("--erase n1:full"),
        "{text}"
    );
    head.stage
        .say("the plan says what would be done, and what would not");
    Ok(())
}

fn check_apply(head: &Head<'_>) -> Result<()> {
    let lines = steps(head, &["disk", "apply"], Some(1))?;
    ensure!(
        lines.len() == 2
            && field(&lines[0], "verdict") == "done"
            && field(&lines[1], "verdict") == "refused",
        "{lines:?}"
    );
    Ok(())
}

/// Swap and scratch are there, for tasks, too.
fn check_used(head: &Head<'_>) -> Result<()> {
    let swaps = head.on_node("n1", &["cat", "/proc/swaps"])?;
    ensure!(swaps.contains("/dev/vda1"), "{swaps}");
    let scratch = head.on_node("n1", &["sh", "-c", "stat -c %a $WIGLAF_SCRATCH; pwd"])?;
    ensure!(scratch.starts_with("1777"), "{scratch}");
    let mounts = head.on_node("n1", &["grep", "/scratch ", "/proc/mounts"])?;
    ensure!(
        mounts.contains("ext4") && mounts.contains("nosuid,nodev"),
        "{mounts}"
    );
    let shown = head.admin(&["disk", "show"])?;
    ensure!(shown.contains("wiglaf swap, on"), "{shown}");
    ensure!(
        shown.contains("wiglaf scratch: ext4, at /scratch"),
        "{shown}"
    );
    head.stage.say("it is swapped to, and tasks have /scratch");
    Ok(())
}

fn check_damaged(head: &Head<'_>) -> Result<()> {
    let there = head.on_node("n1", &["sh", "-c", "ls -d /scratch 2>&1 || echo none"])?;
    ensure!(there.ends_with("none"), "{there}");
    let log = head.admin(&["node", "log", "n1"])?;
    ensure!(
        log.contains("/dev/vda2 can't be mounted at /scratch"),
        "{log}"
    );
    let shown = head.admin(&["disk", "show"])?;
    ensure!(shown.contains("damaged"), "{shown}");
    let lines = steps(head, &["disk", "apply"], Some(1))?;
    let text = text_of(&lines, "/dev/vda")?;
    ensure!(
        text.contains("left alone: its scratch has unknown data"),
        "{text}"
    );
    Ok(())
}

/// Named, a disk is laid out anew, if the node can let go of it.
fn check_anew(head: &Head<'_>) -> Result<()> {
    let erase = ["disk", "apply", "--erase", "n1:empty"];
    steps(head, &erase, Some(0))?;
    check_used(head)?;
    ensure!(head.on_node("n1", &["ls", "/scratch"])? == "lost+found");
    let config = fs::read_to_string(config_of(head))?;
    fs::write(config_of(head), config.replace("128M", "64M"))?;
    let lines = steps(head, &["disk", "apply"], Some(1))?;
    let text = text_of(&lines, "/dev/vda")?;
    ensure!(
        text.contains("it is laid out otherwise: swap 128M, scratch 894M"),
        "{text}"
    );
    let lines = steps(head, &erase, Some(1))?;
    let text = text_of(&lines, "/dev/vda")?;
    ensure!(text.contains("start the node anew"), "{text}");
    check_used(head)?;
    head.stage
        .say("named, a disk is laid out anew, but not one that tasks have");
    Ok(())
}

/// What `wiglaf disk …` says of each disk.
fn steps(head: &Head<'_>, words: &[&str], code: Option<i32>) -> Result<Vec<Value>> {
    let words = [words, &["--json"]].concat();
    let output = head.admin_output(&words, APPLY)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.code() != code {
        bail!(
            "`wiglaf {}` {}",
            words.join(" "),
            crate::vm::head::said(&output)
        );
    }
    match serde_json::from_str(&text)? {
        Value::Array(lines) => Ok(lines),
        other => bail!("no list: {other}"),
    }
}

fn field<'a>(line: &'a Value, name: &str) -> &'a str {
    line.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn text_of<'a>(lines: &'a [Value], device: &str) -> Result<&'a str> {
    let line = lines.iter().find(|line| field(line, "device") == device);
    let line = line.with_context(|| format!("nothing is said of {device} in {lines:?}"))?;
    Ok(field(line, "text"))
}
