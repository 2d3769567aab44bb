//! The private ground on which everything runs, and which the sweeper clears.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::child::Watchdog;
use super::groups::{Group, Groups};
use super::sweeper::Sweeper;

/// What a run leaves to others (a node's reaping) is charged to it if it is done by then.
const SETTLE: Duration = Duration::from_millis(20);
/// Nothing of the caller's own: a version manager in front would be searched for each command.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

pub(in crate::bench) struct Stage {
    /// Short, as sockets are in it.
    pub(in crate::bench) dir: PathBuf,
    pub(in crate::bench) groups: Arc<Groups>,
    pub(in crate::bench) watchdog: Watchdog,
    pub(in crate::bench) sweeper: Sweeper,
}

impl Stage {
    pub(in crate::bench) fn set() -> Result<Stage> {
        let pid = std::process::id();
        let sweeper = Sweeper::start()?;
        let dir = PathBuf::from(format!("/tmp/wgb.{pid}"));
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .with_context(|| format!("can't make {}", dir.display()))?;
        sweeper.add_dir(&dir)?;
        let groups = Arc::new(Groups::make(&format!("wiglaf-bench.{pid}"))?);
        for base in groups.bases() {
            sweeper.add_group(base)?;
        }
        let watchdog = Watchdog::start(groups.clone())?;
        Ok(Stage {
            dir,
            groups,
            watchdog,
            sweeper,
        })
    }

    /// A command without streams, in an environment that is the same for all.
    pub(in crate::bench) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Runs it once without measuring; if it fails, says what it printed.
    pub(in crate::bench) fn try_out(&self, command: &mut Command, timeout: Duration) -> Result<()> {
        let path = self.dir.join("try.log");
        let log = std::fs::File::create(&path)?;
        command.stderr(log);
        let result = self.watchdog.time_success(command, timeout);
        command.stderr(Stdio::null());
        if let Err(error) = result {
            let said = std::fs::read_to_string(&path).unwrap_or_default();
            bail!("{error:#}; it said: {:?}", said.trim());
        }
        Ok(())
    }

    /// The CPU time in milliseconds that the work costs the groups.
    pub(in crate::bench) fn cpu_ms_of(
        &self,
        groups: &[Group],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<f64> {
        let used =
            || -> Result<f64> { groups.iter().map(|group| self.groups.cpu_ms(*group)).sum() };
        let before = used()?;
        work()?;
        std::thread::sleep(SETTLE);
        Ok(used()? - before)
    }

    /// An error once the watchdog had to kill everything.
    pub(in crate::bench) fn check_alive(&self) -> Result<()> {
        if self.watchdog.has_killed_all() {
            bail!("something hung and could not be killed alone, so everything was ended");
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = self.groups.leave() {
            println!("{error:#}");
        }
        self.sweeper.finish();
    }
}
