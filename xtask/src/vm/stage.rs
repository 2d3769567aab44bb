//! What one scenario has: a folder, a folder for logs, a kernel, our binary, and its wires.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::LARGEST_BINARY;
use super::ground::Ground;
use super::guest::{Guest, Plan};
use super::wire::Wire;
use crate::debs::Kernel;

/// What a node of a debugging build needs more.
const UNOPTIMISED_MIB: u32 = 128;
/// How many of a log's last lines a failure shows.
const SHOWN_LINES: usize = 25;

pub(super) struct Stage<'a> {
    /// Short, as sockets are in it; gone at the end.
    pub(super) dir: PathBuf,
    /// Kept until the scenario runs again.
    pub(super) logs: PathBuf,
    pub(super) kernel: &'a Kernel,
    pub(super) binary: &'a Path,
    pub(super) workspace: &'a Path,
    started: Instant,
}

impl<'a> Stage<'a> {
    pub(super) fn set(
        ground: &Ground,
        name: &str,
        logs: &Path,
        kernel: &'a Kernel,
        binary: &'a Path,
        workspace: &'a Path,
    ) -> Result<Stage<'a>> {
        let logs = logs.join(name);
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).with_context(|| format!("can't make {}", logs.display()))?;
        Ok(Stage {
            dir: ground.folder(name)?,
            logs,
            kernel,
            binary,
            workspace,
            started: Instant::now(),
        })
    }

    /// What has been shown to hold.
    pub(super) fn say(&self, text: &str) {
        println!("{:>7.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        Ok(dir)
    }

    /// Switches a machine on.
    pub(super) fn guest<'w>(&self, wire: &'w Wire, mut plan: Plan) -> Result<Guest<'w>> {
        if self.binary.metadata()?.len() > LARGEST_BINARY {
            plan.memory_mib += UNOPTIMISED_MIB;
        }
        Guest::start(wire, plan, &self.logs, &self.dir)
    }

    /// The ends of all logs.
    pub(super) fn show_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.logs) else {
            return;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).replace('\r', "");
            if text.trim().is_empty() {
                continue;
            }
            println!("--- {}", path.display());
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
                let line: String = line.chars().filter(|char| !char.is_control()).collect();
                println!("    {line}");
            }
        }
    }
}
