//! The main processes of tasks: their children's changes become events, their leftovers end.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;

use rustix::io::Errno;
use wiglaf_linux::process::{ChildChange, ChildState, ExitStatus, kill, wait_any_child};
use wiglaf_linux::session::{Leader, Report};
use wiglaf_linux::status::read_status;
use wiglaf_wire::agent::SignalScope;
use wiglaf_wire::id::{Pid, TaskId};
use wiglaf_wire::status::{Status, Usage};

use super::core::Event;
use super::processes;
use super::spawner::{Answer, Made, UtsTag};

/// The agent is its namespace's first process.
const OWN_PID: i32 = 1;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;

/// All tasks that may have processes here.
#[derive(Debug, Default)]
pub(super) struct Mains {
    tasks: HashMap<TaskId, Main>,
    /// Sessions' leaders that have to be watched.
    fresh: Vec<TaskId>,
    by_pid: HashMap<i32, TaskId>,
    /// Tags of ended tasks whose leftovers were to stay.
    left: HashMap<UtsTag, TaskId>,
    /// The agent's own child, which is nobody's leftover.
    pub(super) watchdog: Option<i32>,
}

#[derive(Debug)]
struct Main {
    pid: i32,
    state: State,
    /// A stop signal that was replaced by SIGSTOP.
    stop_as: Option<i32>,
    /// Its parent, where it has a terminal.
    leader: Option<Leader>,
}

#[derive(Debug)]
enum State {
    /// The spawner is at it. Changes are kept: a child that failed is not a task's end.
    Starting {
        held: Vec<ChildChange>,
    },
    Running {
        tag: UtsTag,
    },
    /// The main process is gone; the others, those killed so far, are to follow.
    Ended {
        tag: UtsTag,
        collecting: bool,
        killed: HashSet<i32>,
    },
}

impl State {
    fn tag(&self) -> Option<UtsTag> {
        match self {
            State::Starting { .. } => None,
            State::Running { tag } | State::Ended { tag, .. } => Some(*tag),
        }
    }
}

impl Mains {
    /// The task that carries this tag.
    pub(super) fn by_tag(&self, tag: UtsTag) -> Option<TaskId> {
        let known = self
            .tasks
            .iter()
            .find(|(_, main)| main.state.tag() == Some(tag));
        known
            .map(|(id, _)| *id)
            .or_else(|| self.left.get(&tag).copied())
    }

    /// The task whose main process this is.
    pub(super) fn by_pid(&self, pid: i32) -> Option<TaskId> {
        self.by_pid.get(&pid).copied()
    }

    /// Whether [`Mains::collect`] has work.
    pub(super) fn is_collecting(&self) -> bool {
        self.tasks.values().any(|main| {
            matches!(
                main.state,
                State::Ended {
                    collecting: true,
                    ..
                }
            )
        })
    }

    /// The spawner is about to make it.
    pub(super) fn starting(&mut self, task: TaskId, pid: Pid) {
        let state = State::Starting { held: Vec::new() };
        self.by_pid.insert(pid.0, task);
        self.tasks.insert(
            task,
            Main {
                pid: pid.0,
                state,
                stop_as: None,
                leader: None,
            },
        );
    }

    /// The spawner has made it, or failed to.
    pub(super) fn answered(&mut self, answer: Answer, events: &mut Vec<Event>) {
        let Answer { task, outcome, .. } = answer;
        let Some(main) = self.tasks.get_mut(&task) else {
            return;
        };
        match outcome {
            Ok(Made { tag, leader }) => {
                if leader.is_some() {
                    self.fresh.push(task);
                }
                main.leader = leader;
                // A namespace's number is used again once nothing is left in it.
                self.left.remove(&tag);
                events.push(Event::Spawned { task });
                let before = std::mem::replace(&mut main.state, State::Running { tag });
                if let State::Starting { held } = before {
                    held.into_iter()
                        .for_each(|change| self.changed(change, events));
                }
            }
            Err(status) => {
                self.by_pid.remove(&main.pid);
                self.tasks.remove(&task);
                events.push(Event::SpawnFailed { task, status });
            }
        }
    }

    /// The leaders that have come since the last call.
    pub(super) fn fresh_leaders(&mut self) -> Vec<&Leader> {
        let fresh = std::mem::take(&mut self.fresh);
        fresh
            .into_iter()
            .filter_map(|task| self.leader(task))
            .collect()
    }

    /// A task's leader.
    pub(super) fn leader(&self, task: TaskId) -> Option<&Leader> {
        self.tasks.get(&task)?.leader.as_ref()
    }

    /// The task whose session this process leads. It is the agent's own, not one of the task's.
    pub(super) fn by_leader(&self, pid: i32) -> Option<TaskId> {
        let leads = |main: &Main| main.leader.as_ref().is_some_and(|leader| leader.pid == pid);
        self.tasks
            .iter()
            .find(|(_, main)| leads(main))
            .map(|(id, _)| *id)
    }

    /// Takes all that a leader reports. Returns whether it can report more.
    pub(super) fn hear_leader(&mut self, task: TaskId, events: &mut Vec<Event>) -> bool {
        while let Some(leader) = self.leader(task) {
            match leader.report() {
                Ok(Report::Changed(change)) => self.changed(change, events),
                Ok(Report::Nothing) => return true,
                Ok(Report::Over) | Err(_) => return false,
            }
        }
        false
    }

    /// A leader has ended. If its task has not, somebody killed it: there is no more terminal to
    /// speak of, and the main process, now the agent's child, follows.
    pub(super) fn leader_ended(&mut self, task: TaskId, events: &mut Vec<Event>) {
        self.hear_leader(task, events);
        let Some(main) = self.tasks.get_mut(&task) else {
            return;
        };
        main.leader = None;
        let (State::Running { tag }, pid) = (&main.state, main.pid) else {
            return;
        };
        if processes::is_own_child(pid) {
            for member in processes::tagged(*tag) {
                let _ = kill(member, SIGKILL);
            }
            return;
        }
        // It was reaped by the leader, which could not tell any more.
        let state = ChildState::Ended(ExitStatus::Signaled {
            signal: SIGKILL,
            core: false,
        });
        self.changed(
            ChildChange {
                pid,
                state,
                usage: Default::default(),
            },
            events,
        );
    }

    /// Takes all changes of children. Orphans that have ended are reaped on the way.
    pub(super) fn reap(&mut self, events: &mut Vec<Event>) -> Result<(), Errno> {
        loop {
            match wait_any_child(true) {
                Ok(Some(change)) => self.changed(change, events),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn changed(&mut self, change: ChildChange, events: &mut Vec<Event>) {
        let Some(&task) = self.by_pid.get(&change.pid) else {
            return;
        };
        let Some(main) = self.tasks.get_mut(&task) else {
            return;
        };
        let tag = match &mut main.state {
            State::Starting { held } => return held.push(change),
            State::Running { tag } => *tag,
            State::Ended { .. } => return,
        };
        match change.state {
            ChildState::Stopped(signal) => {
                let told = main.stop_as.filter(|_| signal == SIGSTOP).unwrap_or(signal);
                let signal = u8::try_from(told).unwrap_or(0);
                events.push(Event::MainStopped { task, signal });
            }
            ChildState::Continued => {
                main.stop_as = None;
                events.push(Event::MainContinued { task });
            }
            ChildState::Ended(status) => {
                self.by_pid.remove(&change.pid);
                main.state = State::Ended {
                    tag,
                    collecting: false,
                    killed: HashSet::new(),
                };
                let usage = Usage {
                    user_us: change.usage.user_us,
                    system_us: change.usage.system_us,
                    max_rss_kib: change.usage.max_rss_kb,
                };
                events.push(Event::MainExited {
                    task,
                    status: status_of(status),
                    usage,
                });
            }
        }
    }

    /// Begins to end what the main process has left.
    pub(super) fn collect_leftovers(&mut self, task: TaskId) {
        if let Some(Main {
            state: State::Ended { collecting, .. },
            ..
        }) = self.tasks.get_mut(&task)
        {
            *collecting = true;
        }
    }

    /// Goes on with it; to be called again after each reaping until nothing is found.
    pub(super) fn collect(&mut self, events: &mut Vec<Event>) {
        // Most tasks leave nothing, and then this one look is all that their end costs.
        let mut alive: HashMap<UtsTag, Vec<i32>> = HashMap::new();
        // An orphan without a tag is about to end, nobody knows whose it was. It is reaped soon.
        let mut ending = false;
        if processes::has_orphans(self.watchdog).unwrap_or(true) {
            for pid in processes::pids() {
                match UtsTag::of(pid) {
                    Ok(tag) => alive.entry(tag).or_default().push(pid),
                    Err(error) => {
                        let ends = error.kind() == ErrorKind::NotFound;
                        ending |= ends && processes::is_own_child(pid);
                    }
                }
            }
        }
        let strays = self.strays(&alive);
        for (&task, main) in &mut self.tasks {
            let State::Ended {
                tag,
                collecting,
                killed,
            } = &mut main.state
            else {
                continue;
            };
            if !*collecting {
                continue;
            }
            let own = alive.get(tag).map_or(&[][..], Vec::as_slice);
            let left: Vec<i32> = own.iter().chain(&strays).copied().collect();
            for &pid in &left {
                killed.insert(pid);
                // It may have ended by itself meanwhile.
                let _ = kill(pid, SIGKILL);
            }
            if left.is_empty() && !ending {
                *collecting = false;
                let leftovers = u32::try_from(killed.len()).unwrap_or(u32::MAX);
                events.push(Event::TaskGone { task, leftovers });
            }
        }
    }

    /// Processes that no task can be told to own, because they made a user namespace and in it a
    /// UTS namespace of their own. They are ended with the node's last task.
    fn strays(&self, alive: &HashMap<UtsTag, Vec<i32>>) -> Vec<i32> {
        let is_over = |main: &Main| matches!(main.state, State::Ended { .. });
        if alive.is_empty() || !self.left.is_empty() || !self.tasks.values().all(is_over) {
            return Vec::new();
        }
        let Ok(ours) = UtsTag::of(OWN_PID) else {
            return Vec::new();
        };
        let is_known = |tag: &UtsTag| *tag == ours || self.by_tag(*tag).is_some();
        let unknown = alive.iter().filter(|(tag, _)| !is_known(tag));
        unknown.flat_map(|(_, pids)| pids.iter().copied()).collect()
    }

    /// What the main process has left may stay.
    pub(super) fn keep_leftovers(&mut self, task: TaskId) {
        if let Some(tag) = self.tasks.get(&task).and_then(|main| main.state.tag()) {
            self.left.insert(tag, task);
        }
    }

    /// The task is over.
    pub(super) fn forget(&mut self, task: TaskId) {
        if let Some(main) = self.tasks.remove(&task)
            && self.by_pid.get(&main.pid) == Some(&task)
        {
            self.by_pid.remove(&main.pid);
        }
    }

    /// Kills the task at once, so far as that can be done at once; its end does the rest.
    pub(super) fn kill_tree(&self, task: TaskId) {
        if let Some(Main {
            pid,
            state: State::Running { .. },
            ..
        }) = self.tasks.get(&task)
        {
            let _ = kill(-pid, SIGKILL);
            let _ = kill(*pid, SIGKILL);
        }
    }

    /// Signals a task. Processes that are gone need none, so nothing can go wrong here.
    pub(super) fn signal(&mut self, task: TaskId, signal: u8, scope: SignalScope) {
        let signal = i32::from(signal);
        let Some(main) = self.tasks.get_mut(&task) else {
            return;
        };
        let State::Running { tag } = main.state else {
            return;
        };
        let pid = main.pid;
        // With a leader the kernel does all by itself.
        let is_soft_stop = main.leader.is_none() && matches!(signal, SIGTSTP | SIGTTIN | SIGTTOU);
        let targets: Vec<i32> = match scope {
            SignalScope::Process => vec![pid],
            // The main process is born as a leader, so its group has its number for ever.
            SignalScope::Group if !is_soft_stop => {
                let _ = kill(-pid, signal);
                return;
            }
            SignalScope::Group => processes::tagged(tag)
                .filter(|&member| processes::group(member) == Some(pid))
                .collect(),
            SignalScope::Tree => processes::tagged(tag).collect(),
        };
        for target in targets {
            let mut sent = signal;
            if is_soft_stop && stops(target, signal) {
                sent = SIGSTOP;
                if target == pid {
                    main.stop_as = Some(signal);
                }
            }
            let _ = kill(target, sent);
        }
    }
}

/// Whether the signal would stop the process, had its group a shell that looks after it: it has
/// none without a terminal, and the kernel throws away stop signals for such groups (POSIX, orphaned process
/// groups). SIGSTOP it does not.
fn stops(pid: i32, signal: i32) -> bool {
    read_status(pid).is_ok_and(|status| {
        !status.caught.contains(signal)
            && !status.ignored.contains(signal)
            && !status.blocked.contains(signal)
    })
}

fn status_of(status: ExitStatus) -> Status {
    match status {
        ExitStatus::Exited(code) => Status::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        ExitStatus::Signaled { signal, .. } => {
            Status::Signaled(u8::try_from(signal).unwrap_or(u8::MAX))
        }
    }
}
