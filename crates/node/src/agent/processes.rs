//! The processes of the node, as `/proc` of the agent's PID namespace shows them.

use std::collections::HashMap;
use std::fs;
use std::sync::OnceLock;

use rustix::io::Errno;
use wiglaf_linux::process::{pidfd_open, pidfd_send_signal};
use wiglaf_linux::status::read_status;
use wiglaf_wire::agent::Process;
use wiglaf_wire::id::{Pid, TaskId};

use super::mains::Mains;
use super::spawner::UtsTag;

/// Longest command line in a list; `ps` on the node shows the rest.
const MAX_COMMAND_BYTES: usize = 4096;
/// Most parents that are walked up to a task's main process.
const MAX_ANCESTORS: usize = 4096;
const LAST_SIGNAL: u8 = 64;
/// The agent's own PID.
const INIT: i32 = 1;

/// All processes but the agent.
pub(super) fn pids() -> Vec<i32> {
    let Ok(directory) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != INIT)
        .collect()
}

/// The processes that carry a task's tag.
pub(super) fn tagged(tag: UtsTag) -> impl Iterator<Item = i32> {
    pids()
        .into_iter()
        .filter(move |&pid| UtsTag::of(pid).is_ok_and(|of| of == tag))
}

/// A process's group.
pub(super) fn group(pid: i32) -> Option<i32> {
    Some(read_stat(pid)?.group)
}

/// Whether the process is a child of the agent: a main process or an orphan.
pub(super) fn is_own_child(pid: i32) -> bool {
    read_stat(pid).is_some_and(|stat| stat.parent == INIT)
}

/// All processes of tasks; a session's leader and the watchdog are parts of the agent.
pub(super) fn list(mains: &Mains) -> Vec<Process> {
    let stats: HashMap<i32, Stat> = pids()
        .into_iter()
        .filter_map(|pid| Some((pid, read_stat(pid)?)))
        .collect();
    let boot_ms = boot_time_ms();
    let mut list: Vec<_> = stats
        .iter()
        .filter(|&(&pid, _)| mains.by_leader(pid).is_none() && mains.watchdog != Some(pid))
        .filter_map(|(&pid, stat)| {
            let parent = if mains.by_leader(stat.parent).is_some() {
                INIT
            } else {
                stat.parent
            };
            Some(Process {
                task: task_of(pid, mains, |pid| stats.get(&pid).map(|stat| stat.parent)),
                pid: Pid(pid),
                parent: Pid(parent),
                uid: read_status(pid).ok()?.uids[0],
                state: stat.state,
                cpu_ms: ticks_ms(stat.cpu_ticks),
                rss_kib: stat.rss_pages * (rustix::param::page_size() as u64 / 1024),
                started_ms: boot_ms + ticks_ms(stat.start_ticks),
                command: command(pid, &stat.name),
            })
        })
        .collect();
    list.sort_unstable_by_key(|process| process.pid.0);
    list
}

fn task_of(pid: i32, mains: &Mains, parent: impl Fn(i32) -> Option<i32>) -> Option<TaskId> {
    if let Some(task) = UtsTag::of(pid).ok().and_then(|tag| mains.by_tag(tag)) {
        return Some(task);
    }
    // One that has ended or, as root may, left its namespace.
    let mut pid = pid;
    for _ in 0..MAX_ANCESTORS {
        if let Some(task) = mains.by_pid(pid) {
            return Some(task);
        }
        pid = parent(pid).filter(|&parent| parent > INIT)?;
    }
    None
}

/// Signals one process of a task.
pub(super) fn signal(pid: Pid, signal: u8, uid: Option<u32>, mains: &Mains) -> Result<(), Errno> {
    if signal > LAST_SIGNAL {
        return Err(Errno::INVAL);
    }
    if pid.0 <= INIT {
        return Err(Errno::SRCH);
    }
    // First the descriptor, so that what is checked is what is signalled.
    let pidfd = pidfd_open(pid.0)?;
    let parent = |pid| read_stat(pid).map(|stat| stat.parent);
    task_of(pid.0, mains, parent).ok_or(Errno::SRCH)?;
    let owner = read_status(pid.0).map_err(|_| Errno::SRCH)?.uids[0];
    if uid.is_some_and(|uid| uid != owner) {
        return Err(Errno::PERM);
    }
    pidfd_send_signal(&pidfd, signal.into())
}

fn command(pid: i32, name: &str) -> String {
    let mut bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.truncate(MAX_COMMAND_BYTES);
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return format!("[{name}]");
    }
    bytes
        .iter_mut()
        .filter(|byte| **byte == 0)
        .for_each(|byte| *byte = b' ');
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What lists need of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    parent: i32,
    group: i32,
    cpu_ticks: u64,
    start_ticks: u64,
    rss_pages: u64,
}

fn read_stat(pid: i32) -> Option<Stat> {
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&bytes))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold parentheses, spaces and newlines; numbers come after the last one.
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let fields: Vec<_> = tail.split_ascii_whitespace().collect();
    // `proc_pid_stat(5)` counts from 1, and the state is the third.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at: usize| field(at)?.parse::<u64>().ok();
    Some(Stat {
        name: name.to_owned(),
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        group: field(5)?.parse().ok()?,
        cpu_ticks: number(14)? + number(15)?,
        start_ticks: number(22)?,
        rss_pages: number(24)?,
    })
}

fn ticks_ms(ticks: u64) -> u64 {
    static PER_SECOND: OnceLock<u64> = OnceLock::new();
    let per_second = *PER_SECOND.get_or_init(|| rustix::param::clock_ticks_per_second().max(1));
    ticks.saturating_mul(1000) / per_second
}

/// When the machine was started, since the Epoch.
fn boot_time_ms() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    seconds.unwrap_or(0_u64) * 1000
}

/// The orphans that this thread, the first of PID 1, has adopted; `None` where the kernel does
/// not tell. Main processes are children of the spawner's thread and not among them; the watchdog
/// is this one's.
pub(super) fn has_orphans(watchdog: Option<i32>) -> Option<bool> {
    let children = fs::read_to_string("/proc/thread-self/children").ok()?;
    let mut children = children.split_ascii_whitespace().map(str::parse::<i32>);
    Some(children.any(|child| child.ok() != watchdog))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_understood() {
        let text = "42 (a) b (c)) S 1 42 42 0 -1 4194304 90 0 0 0 7 3 0 0 20 0 1 0 1234 \
                    5000000 250 18446744073709551615\n";
        let stat = parse_stat(text).unwrap();
        let expected = Stat {
            name: "a) b (c)".into(),
            state: 'S',
            parent: 1,
            group: 42,
            cpu_ticks: 10,
            start_ticks: 1234,
            rss_pages: 250,
        };
        assert_eq!(stat, expected);
        assert_eq!(parse_stat("42 (a"), None);
        assert_eq!(parse_stat("42 (a) S 1"), None);
    }
}
