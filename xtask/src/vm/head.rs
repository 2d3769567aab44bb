//! A head on the ground, as its administrator and its users see it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::guest::Guest;
use super::stage::Stage;
use super::wire::{PORT, Wire};
use crate::debs::Kernel;
use crate::run::text_of;

/// The head's address on the wire.
pub(super) const ADDRESS: &str = "10.77.0.1/24";
/// Any user but root, whose commands don't run on other machines.
const USER: u32 = 65_534;
/// What a console shows before the code.
pub(super) const CODE: &str = "Code ";
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A head that answers, or a command of it.
const COMMAND: Duration = Duration::from_secs(60);
/// Compressing a debugging build, or a full system.
pub(super) const IMAGE: Duration = Duration::from_secs(400);
/// From the mains switch to the list of unknown machines, on a loaded machine.
const KNOCK: Duration = Duration::from_secs(150);
/// From an answer to the firmware to the code on the console.
pub(super) const BOOT: Duration = Duration::from_secs(240);
/// From the code's approval to a node that is up.
const JOIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

pub(super) struct Head<'a> {
    pub(super) stage: &'a Stage<'a>,
    pub(super) wire: Wire,
    dir: PathBuf,
    daemon: RefCell<Option<Child>>,
}

impl<'a> Head<'a> {
    /// A new cluster that serves machines on a new wire.
    pub(super) fn found(stage: &'a Stage<'a>) -> Result<Head<'a>> {
        let head = Head::with_image(stage)?;
        head.admin(&["boot", "enable", "--interface", PORT])?;
        Ok(head)
    }

    /// A new cluster with an image, that serves nobody yet.
    pub(super) fn with_image(stage: &'a Stage<'a>) -> Result<Head<'a>> {
        let head = Head::bare(stage, Wire::lay(PORT, Some(ADDRESS))?);
        head.admin(&["init"])?;
        head.start()?;
        head.build(stage.kernel, &[])?;
        Ok(head)
    }

    /// Likewise, with a full system in the image.
    pub(super) fn with_system(stage: &'a Stage<'a>, words: &[&str]) -> Result<Head<'a>> {
        let head = Head::bare(stage, Wire::lay(PORT, Some(ADDRESS))?);
        head.admin(&["init"])?;
        head.start()?;
        head.build(stage.kernel, words)?;
        Ok(head)
    }

    /// Builds an image.
    pub(super) fn build(&self, kernel: &Kernel, more: &[&str]) -> Result<()> {
        let image = kernel.image.to_string_lossy();
        let modules = kernel.modules.to_string_lossy();
        let words = ["image", "build", "--kernel", &image, "--modules", &modules];
        self.admin_within(&[&words[..], more].concat(), IMAGE)?;
        self.stage.say("an image is built");
        Ok(())
    }

    /// Nothing yet.
    pub(super) fn bare(stage: &'a Stage<'a>, wire: Wire) -> Head<'a> {
        Head {
            stage,
            wire,
            dir: stage.dir.join("w"),
            daemon: RefCell::new(None),
        }
    }

    /// Starts the daemon as a service manager would.
    pub(super) fn start(&self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.stage.logs.join("head.log"))?;
        let mut command = self.command();
        command.arg("head").stdout(Stdio::null()).stderr(log);
        let child = command.spawn().context("can't start the head")?;
        *self.daemon.borrow_mut() = Some(child);
        let started = Instant::now();
        while let Err(error) = self.admin(&["nodes", "--json"]) {
            if started.elapsed() > COMMAND {
                return Err(error.context("the head does not answer"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Kills the daemon and the boot service, without a warning.
    pub(super) fn kill(&self) -> Result<()> {
        let daemon = self.daemon.borrow_mut().take();
        let mut daemon = daemon.context("no head is running")?;
        daemon.kill()?;
        daemon.wait()?;
        let service = process_named("wiglaf: boot").context("no boot service is running")?;
        kill_process(service, Signal::KILL)?;
        Ok(())
    }

    /// A script in this cluster, as root or as an ordinary user.
    pub(super) fn shell(&self, script: &str, is_user: bool) -> Command {
        let mut command = self.program("sh".as_ref());
        command.args(["-e", "-c", script]);
        if is_user {
            command.uid(USER).gid(USER);
        }
        command
    }

    fn command(&self) -> Command {
        self.program(self.stage.binary)
    }

    /// A program in this cluster.
    fn program(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("WIGLAF_DIR", &self.dir)
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .current_dir(&self.stage.dir);
        command
    }

    pub(super) fn admin(&self, words: &[&str]) -> Result<String> {
        self.admin_within(words, COMMAND)
    }

    pub(super) fn admin_within(&self, words: &[&str], timeout: Duration) -> Result<String> {
        let mut command = self.command();
        succeed(command.args(words), timeout)
    }

    /// However it ends.
    pub(super) fn admin_output(&self, words: &[&str], timeout: Duration) -> Result<Output> {
        let mut command = self.command();
        ended(command.args(words), timeout)
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.admin(words)?;
        serde_json::from_str(&text)
            .with_context(|| format!("`wiglaf {}` printed no JSON: {text}", words.join(" ")))
    }

    /// As an ordinary user, in a folder of the user's.
    pub(super) fn user(&self, dir: &Path, words: &[&str]) -> Result<Output> {
        self.user_within(dir, words, COMMAND)
    }

    pub(super) fn user_within(
        &self,
        dir: &Path,
        words: &[&str],
        timeout: Duration,
    ) -> Result<Output> {
        let mut command = self.command();
        command
            .args(words)
            .current_dir(dir)
            .env("HOME", &self.stage.dir)
            .env("XDG_CACHE_HOME", self.stage.dir.join("cache"))
            .uid(USER)
            .gid(USER);
        ended(&mut command, timeout)
    }

    /// A folder that the user may write to.
    pub(super) fn users_folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.stage.folder(name)?;
        std::os::unix::fs::chown(&dir, Some(USER), Some(USER))?;
        Ok(dir)
    }

    /// What a command that must succeed prints on a node.
    pub(super) fn on_node(&self, node: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["run", "-w", node];
        all.extend(words);
        let output = self.user(&self.stage.dir, &all)?;
        if !output.status.success() {
            bail!("`wiglaf {}` {}", all.join(" "), said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The folder of the one image that there is.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let dir = self.dir.join("state/images");
        fs::read_dir(&dir)
            .with_context(|| format!("can't read {}", dir.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.join("kernel").exists())
            .with_context(|| format!("there is no image in {}", dir.display()))
    }

    /// What a machine has told of itself.
    pub(super) fn log_of(&self, node: &str) -> Result<String> {
        let path = self.dir.join(format!("state/nodes/{node}.log"));
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// The machines that nobody knows, as the list has them.
    pub(super) fn unknown(&self) -> Result<Vec<Value>> {
        match self.json(&["nodes", "--unknown", "--json"])? {
            Value::Array(rows) => Ok(rows),
            other => bail!("`wiglaf nodes --unknown --json` printed no list: {other}"),
        }
    }

    /// Waits until a machine is in the list of those that nobody knows.
    pub(super) fn wait_for_unknown(&self, guest: &Guest<'_>) -> Result<Value> {
        let mac = guest.plan.mac.as_str();
        let started = Instant::now();
        loop {
            let rows = self.unknown()?;
            let row = rows.iter().find(|row| text(row, "mac") == Some(mac));
            if let Some(row) = row {
                return Ok(row.clone());
            }
            if started.elapsed() > KNOCK || !guest.is_running() {
                bail!(
                    "{mac} is not among the unknown machines {rows:?}:{}",
                    guest.console.tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    pub(super) fn adopt(&self, mac: &str, name: &str) -> Result<()> {
        self.admin(&["node", "adopt", mac, "--as", name])?;
        Ok(())
    }

    /// Reads the code at the console, as a person would, and types it at the head.
    pub(super) fn approve(&self, guest: &Guest<'_>, name: &str) -> Result<()> {
        let code = if guest.shows_kernel() {
            let line = guest.wait_for(CODE, BOOT)?;
            code_in(&line).with_context(|| format!("there is no code in {line:?}"))?
        } else {
            self.code(guest, name)?
        };
        self.admin(&["node", "approve", name, &code])?;
        Ok(())
    }

    /// The code that the head has computed, where there is no console to read it from.
    fn code(&self, guest: &Guest<'_>, name: &str) -> Result<String> {
        let started = Instant::now();
        loop {
            let why = self.json(&["node", "why", name, "--json"])?;
            if let Some(code) = text(&why, "code") {
                return Ok(code.to_owned());
            }
            if started.elapsed() > BOOT || !guest.is_running() {
                bail!(
                    "{name} has not asked to join: {why}{}",
                    guest.console.tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until so many nodes are up.
    pub(super) fn wait_up(&self, count: u32) -> Result<()> {
        self.wait_up_within(count, JOIN)
    }

    pub(super) fn wait_up_within(&self, count: u32, timeout: Duration) -> Result<()> {
        self.admin_within(&["nodes", "--wait", &count.to_string()], timeout)
            .map(|_| ())
    }

    /// A node's state and its address.
    pub(super) fn node(&self, node: &str) -> Result<(String, String)> {
        let rows = self.json(&["nodes", "--json"])?;
        let row = rows
            .as_array()
            .and_then(|rows| rows.iter().find(|row| text(row, "name") == Some(node)))
            .with_context(|| format!("there is no node {node} in {rows}"))?;
        let field = |name: &str| text(row, name).unwrap_or_default().to_owned();
        Ok((field("state"), field("address")))
    }

    /// Waits until a node is in this state.
    pub(super) fn wait_for_state(&self, node: &str, wanted: &str, timeout: Duration) -> Result<()> {
        self.wait_for_node(node, timeout, wanted, |state| state == wanted)
    }

    /// Waits until a node that starts anew is up, as long as its machine is on.
    pub(super) fn wait_for_return(
        &self,
        guest: &Guest<'_>,
        node: &str,
        timeout: Duration,
    ) -> Result<()> {
        let mut is_on = true;
        self.wait_for_node(node, timeout, "up", |state| {
            is_on = guest.is_running();
            state == "up" || !is_on
        })
        .with_context(|| guest.console.tail())?;
        if !is_on {
            bail!("{node}'s machine has been reset:{}", guest.console.tail());
        }
        Ok(())
    }

    /// Waits until a node is in any other state.
    pub(super) fn wait_for_state_but(
        &self,
        node: &str,
        old: &str,
        timeout: Duration,
    ) -> Result<()> {
        self.wait_for_node(node, timeout, &format!("anything but {old}"), |state| {
            state != old
        })
    }

    fn wait_for_node(
        &self,
        node: &str,
        timeout: Duration,
        wanted: &str,
        mut is_wanted: impl FnMut(&str) -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            let (state, _) = self.node(node)?;
            if is_wanted(&state) {
                return Ok(());
            }
            if started.elapsed() > timeout {
                bail!(
                    "{node} is {state}, not {wanted}, after {} s",
                    timeout.as_secs()
                );
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Head<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.borrow_mut().take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for dir in ["state", "state/nodes"] {
            let Ok(entries) = fs::read_dir(self.dir.join(dir)) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if name.to_string_lossy().ends_with(".log") {
                    let to = format!("wiglaf-{}", name.to_string_lossy());
                    let _ = fs::copy(entry.path(), self.stage.logs.join(to));
                }
            }
        }
    }
}

/// Runs a command, and ends it when its time is over.
pub(super) fn ended(command: &mut Command, timeout: Duration) -> Result<Output> {
    let text = text_of(command);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't run `{text}`"))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.context("a process without a number")?;
    let (done, ends) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let is_late = ends.recv_timeout(timeout) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if is_late {
            let _ = kill_process(pid, Signal::KILL);
        }
        is_late
    });
    let output = child.wait_with_output()?;
    let _ = done.send(());
    if watch.join().unwrap_or(false) {
        bail!(
            "`{text}` did not end within {} s; it said: {}",
            timeout.as_secs(),
            said(&output)
        );
    }
    Ok(output)
}

fn succeed(command: &mut Command, timeout: Duration) -> Result<String> {
    let output = ended(command, timeout)?;
    if !output.status.success() {
        bail!("`{}` {}", text_of(command), said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How a command ended, and what it printed.
pub(super) fn said(output: &Output) -> String {
    format!(
        "ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
    .trim_end()
    .to_owned()
}

fn text<'a>(row: &'a Value, field: &str) -> Option<&'a str> {
    row.get(field).and_then(Value::as_str)
}

/// A process by its title. On the ground there are only ours.
fn process_named(title: &str) -> Option<Pid> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        line.starts_with(title.as_bytes())
            .then(|| Pid::from_raw(pid))?
    })
}

/// `1234-5678`, wherever it is in the line.
pub(super) fn code_in(line: &str) -> Option<String> {
    line.split(|char: char| !(char.is_ascii_digit() || char == '-'))
        .find(|word| {
            let mut parts = word.split('-').map(str::len);
            (parts.next(), parts.next(), parts.next()) == (Some(4), Some(4), None)
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_in_a_line() {
        let line = "[   12.345678] wiglaf: This machine asks to join as 52:54:00:77:00:01. \
                    Code 0123-4567. On the head:";
        assert_eq!(code_in(line).as_deref(), Some("0123-4567"));
        assert_eq!(code_in("52-54-00-77 12345-678 2026-11"), None);
    }

    #[test]
    fn a_command_ends_when_its_time_is_over() -> Result<()> {
        let late = ended(
            Command::new("sh").args(["-c", "echo before; exec sleep 20"]),
            Duration::from_millis(300),
        );
        let error = late.err().context("it should be late")?.to_string();
        assert!(error.contains("before"), "{error}");
        let output = ended(Command::new("sh").args(["-c", "exit 3"]), COMMAND)?;
        assert_eq!(output.status.code(), Some(3));
        Ok(())
    }
}
