//! Nodes that are slow: each may use a small part of one processor, by cgroup v1's `cpu`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bench::ground::stage::Stage;

const HIERARCHY: &str = "/sys/fs/cgroup/cpu";
/// Sixteen nodes leave half of two processors to the head.
pub(super) const PERCENT: u64 = 6;
const PERIOD_US: u64 = 100_000;

pub(super) struct Quota {
    dir: PathBuf,
}

impl Quota {
    /// Why it can't be had, if not.
    pub(super) fn new(stage: &Stage) -> Result<Quota> {
        let dir = Path::new(HIERARCHY).join(format!("wiglaf-bench-slow.{}", std::process::id()));
        fs::create_dir(&dir).context("no cgroup v1 with `cpu`")?;
        stage.sweeper.add_group(&dir)?;
        Ok(Quota { dir })
    }

    /// From now on this process and its children, of whatever depth, have what the node has.
    pub(super) fn slow_down(&self, node: usize, process: i32) -> Result<()> {
        let group = self.dir.join(format!("node{node}"));
        if !group.exists() {
            fs::create_dir(&group)?;
            fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            let quota = PERIOD_US * PERCENT / 100;
            fs::write(group.join("cpu.cfs_quota_us"), quota.to_string())?;
        }
        for pid in family(process)? {
            // It may have ended since.
            let _ = fs::write(group.join("cgroup.procs"), pid.to_string());
        }
        Ok(())
    }

    /// All are as fast as before.
    pub(super) fn lift(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let group = entry.path();
            if !group.is_dir() {
                continue;
            }
            let members = fs::read_to_string(group.join("cgroup.procs"))?;
            for pid in members.lines() {
                let _ = fs::write(Path::new(HIERARCHY).join("cgroup.procs"), pid);
            }
            // What was only just forked keeps it, and it is used again.
            let _ = fs::remove_dir(&group);
        }
        Ok(())
    }
}

/// A process and all that descend from it.
pub(super) fn family(process: i32) -> Result<Vec<i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![process];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    Ok(found)
}

pub(super) fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may contain anything, come the state and the parent.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
