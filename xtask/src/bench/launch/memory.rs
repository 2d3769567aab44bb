//! Memory: the kernel's by /proc/meminfo, the processes' by their proportional shares.

use std::fs;

use anyhow::{Context, Result};

use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;

/// What the kernel has that is not a cache of files. SReclaimable is left out as it is mostly that;
/// the cgroup's figure has the sockets' inodes that are in it.
const KERNEL_FIELDS: [&str; 4] = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"];

/// In bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    /// Of the whole machine.
    pub(super) kernel: i64,
    /// Of the processes in the head's group: daemons, command and ghosts.
    pub(super) pss: i64,
    /// Charged to the head's group, kernel structures and files' pages included.
    pub(super) head_group: Option<i64>,
    pub(super) nodes_group: Option<i64>,
    pub(super) peer_group: Option<i64>,
}

impl Snapshot {
    pub(super) fn take(stage: &Stage) -> Result<Snapshot> {
        // First what reading the processes' files would change.
        let kernel = kernel_bytes()?;
        let charged = |group| {
            stage
                .groups
                .memory_bytes(group)
                .and_then(|bytes| i64::try_from(bytes).ok())
        };
        let (head_group, nodes_group, peer_group) = (
            charged(Group::Head),
            charged(Group::Nodes),
            charged(Group::Peer),
        );
        let pss = stage
            .groups
            .members(Group::Head)?
            .iter()
            .filter_map(|pid| pss_bytes(*pid))
            .sum();
        Ok(Snapshot {
            kernel,
            pss,
            head_group,
            nodes_group,
            peer_group,
        })
    }

    /// What came since.
    pub(super) fn since(self, before: Snapshot) -> Snapshot {
        let less = |now: Option<i64>, then: Option<i64>| Some(now? - then?);
        Snapshot {
            kernel: self.kernel - before.kernel,
            pss: self.pss - before.pss,
            head_group: less(self.head_group, before.head_group),
            nodes_group: less(self.nodes_group, before.nodes_group),
            peer_group: less(self.peer_group, before.peer_group),
        }
    }
}

fn kernel_bytes() -> Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    KERNEL_FIELDS
        .iter()
        .map(|field| kib(&text, field).map(|kib| kib * 1024))
        .sum()
}

fn kib(text: &str, field: &str) -> Result<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field));
    let number = rest.and_then(|rest| rest.split_whitespace().next());
    Ok(number
        .with_context(|| format!("/proc/meminfo has no {field}"))?
        .parse()?)
}

/// None of one that has gone.
fn pss_bytes(pid: i32) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    kib(&text, "Pss:").ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_kib() {
        let text = "MemTotal:  12 kB\nSUnreclaim:       34688 kB\n";
        assert_eq!(kib(text, "SUnreclaim:").expect("it is there"), 34688);
        assert!(kib(text, "Percpu:").is_err());
    }
}
