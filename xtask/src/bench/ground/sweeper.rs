//! Clears up after the benchmark however it ends: a process of its own that reads what there is
//! to clear from a pipe, and clears it when the pipe closes, be it by the end, Ctrl-C or SIGKILL.

use std::ffi::OsStr;
use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::child::kill_all;
use super::groups::members_of;

/// What its process is called among the benchmarks.
pub(in crate::bench) const NAME: &str = "sweep";
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long killed processes may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

pub(crate) struct Sweeper {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Sweeper {
    pub(crate) fn start() -> Result<Sweeper> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", NAME, &std::process::id().to_string()])
            .stdin(Stdio::piped())
            // The terminal's Ctrl-C is not for it.
            .process_group(0)
            .spawn()
            .context("can't start the sweeper")?;
        let pipe = child.stdin.take();
        Ok(Sweeper { child, pipe })
    }

    pub(crate) fn add_dir(&self, path: &Path) -> Result<()> {
        self.add("dir", path.as_os_str())
    }

    pub(in crate::bench) fn add_group(&self, path: &Path) -> Result<()> {
        self.add("group", path.as_os_str())
    }

    pub(in crate::bench) fn add_user(&self, name: &str) -> Result<()> {
        self.add("user", OsStr::new(name))
    }

    /// A network interface.
    pub(in crate::bench) fn add_link(&self, name: &str) -> Result<()> {
        self.add("link", OsStr::new(name))
    }

    /// A network namespace.
    pub(in crate::bench) fn add_space(&self, name: &str) -> Result<()> {
        self.add("space", OsStr::new(name))
    }

    pub(crate) fn add_cluster(&self, binary: &Path, dir: &Path) -> Result<()> {
        self.add("binary", binary.as_os_str())?;
        self.add("cluster", dir.as_os_str())
    }

    /// One that has been taken down since.
    pub(crate) fn forget_cluster(&self, dir: &Path) -> Result<()> {
        self.add("down", dir.as_os_str())
    }

    fn add(&self, kind: &str, value: &OsStr) -> Result<()> {
        let line = [kind.as_bytes(), b" ", value.as_bytes(), b"\n"].concat();
        let mut pipe = self
            .pipe
            .as_ref()
            .context("the sweeper has been told to end")?;
        Write::write_all(&mut pipe, &line).context("the sweeper has gone")
    }

    /// Lets it sweep, and waits.
    pub(crate) fn finish(&mut self) {
        drop(self.pipe.take());
        match self.child.wait() {
            Ok(status) if status.success() => {}
            other => println!("something was left behind ({other:?})"),
        }
    }
}

/// The sweeper's own main function.
pub(in crate::bench) fn run(args: &[String]) -> Result<()> {
    let benchmark: i32 = args.first().context("whom to sweep after?")?.parse()?;
    let mut items = Vec::new();
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line?;
        let Some(at) = line.iter().position(|byte| *byte == b' ') else {
            continue;
        };
        let kind = String::from_utf8_lossy(&line[..at]).into_owned();
        items.push((kind, PathBuf::from(OsStr::from_bytes(&line[at + 1..]))));
    }
    let of = |kind: &str| -> Vec<&PathBuf> {
        items
            .iter()
            .filter(|(found, _)| found == kind)
            .map(|(_, path)| path)
            .collect()
    };
    let mut failures = Vec::new();
    let mut check = |result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    };
    let mut crippled = Vec::new();
    let gone = of("down");
    for (binary, dir) in of("binary").into_iter().zip(of("cluster")) {
        if gone.contains(&dir) {
            continue;
        }
        let down = move || bounded(Command::new(binary).arg("down").env("WIGLAF_DIR", dir));
        let result = down();
        if result.is_err() {
            crippled.push(down);
        }
        check(result);
    }
    for base in of("group") {
        check(empty(base, benchmark));
    }
    // Of a cluster that did not end itself, and whose processes are gone by now, it removes the
    // network devices; that nothing runs any more is its error.
    for down in crippled {
        let _ = down();
    }
    for link in of("link") {
        check(bounded(
            Command::new("ip").args(["link", "delete"]).arg(link),
        ));
    }
    for space in of("space") {
        check(bounded(
            Command::new("ip").args(["netns", "delete"]).arg(space),
        ));
    }
    for name in of("user") {
        check(bounded(Command::new("userdel").arg(name)));
    }
    for dir in of("dir") {
        check(
            std::fs::remove_dir_all(dir).with_context(|| format!("can't remove {}", dir.display())),
        );
    }
    if !failures.is_empty() {
        bail!("left behind: {}", failures.join("; "));
    }
    Ok(())
}

fn bounded(command: &mut Command) -> Result<()> {
    let text = super::text_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("can't run `{text}`"))?;
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                bail!("`{text}` failed: {status}")
            };
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!(
                "`{text}` did not end within {} s",
                COMMAND_TIMEOUT.as_secs()
            );
        }
        std::thread::sleep(POLL);
    }
}

/// Ends what is still in the groups below this one, and removes them.
fn empty(base: &Path, benchmark: i32) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let mut folders = Vec::new();
        below(base, &mut folders);
        let mut pids: Vec<i32> = folders
            .iter()
            .filter_map(|folder| members_of(folder).ok())
            .flatten()
            .collect();
        // It leaves by itself; or it has been killed, and the number may be another's.
        pids.retain(|pid| *pid != benchmark);
        kill_all(&pids);
        if pids.is_empty()
            && folders
                .iter()
                .all(|folder| std::fs::remove_dir(folder).is_ok())
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} processes in {} do not end", pids.len(), base.display());
        }
        std::thread::sleep(POLL);
    }
}

/// The folder and all below it, the deepest first.
fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        below(&entry.path(), found);
    }
    if folder.exists() {
        found.push(folder.to_owned());
    }
}
