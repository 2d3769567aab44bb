//! What several scenarios look at.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run;
use crate::vm::guest::Guest;
use crate::vm::head::{BOOT, Head, said};

/// A program of several files, in C.
const PROGRAM: &str = "crates/cli/src/commands/demo/spheres";
/// What is made of it: two files for each of two nodes, as emulated compilers are slow.
const TARGETS: &[&str] = &["image.o", "plane.o", "sphere.o", "vector.o"];
/// How far a node's clock may be off, with the time that a command takes.
const CLOCK_OFF_S: f64 = 2.0;
/// Some files, by compilers that run a hundred times slower than usual.
const BUILD: Duration = Duration::from_secs(240);
/// iPXE asks again every five seconds.
const ASKS_AGAIN: Duration = Duration::from_secs(7);

/// Between two looks at what is to come.
const POLL: Duration = Duration::from_millis(500);

/// What comes within some time.
pub(super) fn soon<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(POLL);
    }
}

/// Brings a machine that is being switched on from nothing to a node.
pub(super) fn join(head: &Head<'_>, guest: &Guest<'_>, name: &str, count: u32) -> Result<()> {
    head.wait_for_unknown(guest)?;
    head.adopt(&guest.plan.mac, name)?;
    head.approve(guest, name)?;
    head.wait_up(count)?;
    // One whose machine has just been switched off still counts for a while.
    head.wait_for_state(name, "up", BOOT)?;
    head.stage.say(&format!("{name} is up"));
    Ok(())
}

/// It is in the list, and has been given nothing else (B2).
pub(super) fn check_unknown(head: &Head<'_>, guests: &[&Guest<'_>]) -> Result<()> {
    for guest in guests {
        head.wait_for_unknown(guest)?;
        // Its console says what to type on the head.
        let command = format!("wiglaf node adopt {}", guest.plan.mac);
        guest.wait_for(&command, BOOT)?;
    }
    std::thread::sleep(ASKS_AGAIN);
    for guest in guests {
        ensure!(
            head.unknown()?
                .iter()
                .any(|row| row.get("mac").and_then(Value::as_str) == Some(&guest.plan.mac)),
            "{} has left the list by itself",
            guest.plan.mac
        );
        ensure!(
            !guest.console.text().contains("/image/"),
            "a machine that nobody knows was given an image"
        );
    }
    head.stage
        .say("unknown machines got a place in the list, and nothing else");
    Ok(())
}

/// A node runs what is on the head, with the head's files and clock, and its exit code.
pub(super) fn check_run(head: &Head<'_>, node: &str) -> Result<()> {
    let dir = head.users_folder(&format!("{node}.files"))?;
    let said_there = |words: &[&str]| head.on_node(node, words);
    let version = head.stage.kernel.modules.file_name().unwrap_or_default();
    let kernel = said_there(&["uname", "-r"])?;
    ensure!(
        *version == *kernel,
        "{node} runs Linux {kernel}, which is not the image's"
    );
    let name = said_there(&["hostname"])?;
    ensure!(name == node, "{node} calls itself {name}");

    let file = dir.join("from-the-head");
    fs::write(&file, "written on the head\n")?;
    let read = said_there(&["cat", &file.to_string_lossy()])?;
    ensure!(read == "written on the head", "{node} reads {read:?}");
    let file = dir.join("from-the-node");
    let script = format!("echo written on the node >{}", file.display());
    said_there(&["sh", "-c", &script])?;
    let written = fs::read_to_string(&file)?;
    ensure!(written == "written on the node\n", "it wrote {written:?}");

    let output = head.user(&dir, &["run", "-w", node, "sh", "-c", "exit 7"])?;
    ensure!(output.status.code() == Some(7), "exit 7 {}", said(&output));

    let there: f64 = said_there(&["date", "+%s.%N"])?.parse()?;
    let here = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    ensure!(
        (here - there).abs() < CLOCK_OFF_S,
        "{node}'s clock is off by {:.1} s",
        there - here
    );
    head.stage.say(&format!(
        "{node} runs programs with the head's files, its clock and their exit codes"
    ));
    Ok(())
}

/// The nodes compile something together, and it has the bytes that it has when made here.
pub(super) fn check_make(head: &Head<'_>, nodes: &[&str]) -> Result<()> {
    let sources = head.stage.workspace.join(PROGRAM);
    let copy = |name: &str| -> Result<_> {
        let dir = head.users_folder(name)?;
        let files =
            fs::read_dir(&sources).with_context(|| format!("can't read {}", sources.display()))?;
        for file in files.flatten() {
            fs::copy(file.path(), dir.join(file.file_name()))?;
        }
        Ok(dir)
    };
    let (here, over) = (copy("here")?, copy("over")?);
    run::output(
        Command::new("make")
            .arg("-j2")
            .args(TARGETS)
            .current_dir(&here),
    )?;
    // Twice as many lines as slots, so that each node gets some.
    let jobs = format!("-j{}", 2 * nodes.len());
    let words = ["make", &jobs, "--require-cluster", "--json"];
    let words = [&words[..], TARGETS].concat();
    let output = head.user_within(&over, &words, BUILD)?;
    ensure!(output.status.success(), "wiglaf make {}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let record = text.lines().last().unwrap_or_default();
    let record: Value = serde_json::from_str(record).context("its last line is no JSON")?;
    let used = places(&record);
    for node in nodes {
        ensure!(used.contains(*node), "{node} had no line: {used:?} had");
    }
    let count = compare(&here, &over)?;
    head.stage.say(&format!(
        "{} compiled a program together; its {count} files are those of a build here",
        nodes.join(" and ")
    ));
    Ok(())
}

/// The nodes on which lines of a build ran.
fn places(record: &Value) -> BTreeSet<&str> {
    let lines = record.get("lines").and_then(Value::as_array);
    let lines = lines.map(Vec::as_slice).unwrap_or_default();
    lines
        .iter()
        .filter_map(|line| line.get("place")?.get("node")?.as_str())
        .collect()
}

fn compare(one: &Path, other: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(one)?.flatten() {
        let name = entry.file_name();
        let theirs = other.join(&name);
        let theirs = fs::read(&theirs).with_context(|| theirs.display().to_string())?;
        if fs::read(entry.path())? != theirs {
            bail!("{} differs", name.to_string_lossy());
        }
        count += 1;
    }
    Ok(count)
}
