//! The life of a task on its node (P1, P2): from the launch, which is taken once, to the end, which
//! is told until the head has acknowledged it.

use wiglaf_wire::agent::{FromAgent, SignalScope, TaskReport};
use wiglaf_wire::id::{Pid, TaskId};
use wiglaf_wire::status::{Status, Usage};

use super::{Core, Effect};

/// How long the output of a killed task may take to reach the head.
pub(super) const KILLED_DRAIN_MS: u64 = 5_000;
/// Signals kept for a task that is being started.
const MAX_HELD_SIGNALS: usize = 64;
/// Largest signal number.
const LAST_SIGNAL: u8 = 64;

#[derive(Debug)]
pub(super) struct Task {
    pub(super) pid: Pid,
    pub(super) leave: bool,
    pub(super) killed: bool,
    /// Replaces what the main process says of its end.
    pub(super) verdict: Option<Status>,
    /// Nobody is there to take the output.
    pub(super) undrainable: bool,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting {
        held: Vec<(u8, SignalScope)>,
    },
    Running {
        stopped: Option<u8>,
    },
    /// The main process has ended, leftovers are being ended.
    Collecting {
        end: End,
    },
    /// All processes are gone, output is under way.
    Draining {
        end: End,
        until: Option<u64>,
    },
    /// Kept until the head acknowledges it.
    Ended(End),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) status: Status,
    pub(super) usage: Usage,
    pub(super) leftovers: u32,
}

impl End {
    /// Of a task that never had a process.
    fn never_ran(status: Status) -> End {
        End {
            status,
            usage: Usage::default(),
            leftovers: 0,
        }
    }
}

impl Core {
    pub(super) fn launch(&mut self, id: TaskId, pid: Pid, leave: bool, effects: &mut Vec<Effect>) {
        let refusal = if self.lease.over {
            Some(self.lease_reason())
        } else if self.leaving_until.is_some() {
            Some(format!(
                "{} is leaving the cluster; run the command again",
                self.name
            ))
        } else {
            None
        };
        let phase = Phase::Starting { held: Vec::new() };
        let task = Task {
            pid,
            leave,
            killed: false,
            verdict: None,
            undrainable: false,
            phase,
        };
        self.tasks.insert(id, task);
        if let Some(reason) = refusal {
            let status = Status::cluster_failed(reason);
            self.end(id, End::never_ran(status), effects);
        }
    }

    pub(super) fn spawned(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let Phase::Starting { held } = &mut task.phase else {
            return;
        };
        let held = std::mem::take(held);
        let pid = task.pid;
        task.phase = Phase::Running { stopped: None };
        let killed = task.killed;
        self.send(FromAgent::Started { task: id }, effects);
        if killed {
            effects.push(Effect::KillTree { task: id, pid });
            return;
        }
        for (signal, scope) in held {
            effects.push(Effect::Signal {
                task: id,
                pid,
                signal,
                scope,
            });
        }
    }

    pub(super) fn spawn_failed(&mut self, id: TaskId, status: Status, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        if matches!(task.phase, Phase::Starting { .. }) {
            effects.push(Effect::CloseTask { task: id });
            self.end(id, End::never_ran(status), effects);
        }
    }

    pub(super) fn signal(
        &mut self,
        id: TaskId,
        signal: u8,
        scope: SignalScope,
        effects: &mut Vec<Effect>,
    ) {
        if signal == 0 || signal > LAST_SIGNAL {
            return;
        }
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        match &mut task.phase {
            Phase::Starting { held } if held.len() < MAX_HELD_SIGNALS => held.push((signal, scope)),
            Phase::Running { .. } => {
                effects.push(Effect::Signal {
                    task: id,
                    pid: task.pid,
                    signal,
                    scope,
                });
            }
            _ => {}
        }
    }

    pub(super) fn kill(&mut self, now_ms: u64, id: TaskId, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.killed = true;
        match &mut task.phase {
            Phase::Running { .. } => effects.push(Effect::KillTree {
                task: id,
                pid: task.pid,
            }),
            Phase::Draining { until, .. } => {
                until.get_or_insert(now_ms + KILLED_DRAIN_MS);
            }
            Phase::Starting { .. } | Phase::Collecting { .. } | Phase::Ended(_) => {}
        }
    }

    pub(super) fn stopped(&mut self, id: TaskId, signal: u8, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Phase::Running { stopped } = &mut task.phase
            && stopped.replace(signal) != Some(signal)
        {
            self.send(FromAgent::Stopped { task: id, signal }, effects);
        }
    }

    pub(super) fn continued(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Phase::Running { stopped } = &mut task.phase
            && stopped.take().is_some()
        {
            self.send(FromAgent::Continued { task: id }, effects);
        }
    }

    pub(super) fn main_exited(
        &mut self,
        now_ms: u64,
        id: TaskId,
        end: End,
        effects: &mut Vec<Effect>,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if !matches!(task.phase, Phase::Running { .. }) {
            return;
        }
        let leave = task.leave && !task.killed;
        task.phase = Phase::Collecting { end };
        if leave {
            self.drain(now_ms, id, true, effects);
        } else {
            effects.push(Effect::CollectLeftovers { task: id });
        }
    }

    pub(super) fn gone(
        &mut self,
        now_ms: u64,
        id: TaskId,
        leftovers: u32,
        effects: &mut Vec<Effect>,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Phase::Collecting { end } = &mut task.phase {
            end.leftovers = leftovers;
            self.drain(now_ms, id, false, effects);
        }
    }

    /// All processes are gone (or left on purpose): the output is what remains.
    fn drain(&mut self, now_ms: u64, id: TaskId, leave: bool, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let Phase::Collecting { end } = task.phase.clone() else {
            return;
        };
        let until = task.killed.then_some(now_ms + KILLED_DRAIN_MS);
        task.phase = Phase::Draining { end, until };
        if task.undrainable {
            self.end_if_drained(id, effects);
        } else {
            effects.push(Effect::WaitDrained { task: id, leave });
        }
    }

    pub(super) fn end_if_drained(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        if self.tasks.get(&id).is_some_and(|task| task.undrainable) {
            self.drained(id, effects);
        }
    }

    pub(super) fn drained(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        if let Phase::Draining { end, .. } = &task.phase {
            let end = end.clone();
            effects.push(Effect::CloseTask { task: id });
            self.end(id, end, effects);
        }
    }

    /// Ends the tasks whose output has been waited for long enough.
    pub(super) fn end_late_drains(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let late: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, task)| {
                matches!(task.phase, Phase::Draining { until: Some(until), .. } if until <= now_ms)
            })
            .map(|(id, _)| *id)
            .collect();
        for task in late {
            self.drained(task, effects);
        }
    }

    pub(super) fn relay_lost(&mut self, id: TaskId, reason: &str, effects: &mut Vec<Effect>) {
        let name = &self.name;
        let reason = format!("{name} lost the streams of this task: {reason}; run it again");
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if !task.is_live() {
            return;
        }
        task.verdict.get_or_insert(Status::cluster_failed(reason));
        task.undrainable = true;
        task.killed = true;
        if let Phase::Running { .. } = task.phase {
            effects.push(Effect::KillTree {
                task: id,
                pid: task.pid,
            });
        }
        self.end_if_drained(id, effects);
    }

    pub(super) fn files_lost(&mut self, id: TaskId, reason: &str) {
        if let Some(task) = self.tasks.get_mut(&id) {
            let reason = format!("{}: {reason}", self.name);
            task.verdict.get_or_insert(Status::cluster_failed(reason));
        }
    }

    fn end(&mut self, id: TaskId, mut end: End, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Some(verdict) = task.verdict.take() {
            end.status = verdict;
        }
        task.phase = Phase::Ended(end.clone());
        let End {
            status,
            usage,
            leftovers,
        } = end;
        self.send(
            FromAgent::Ended {
                task: id,
                status,
                usage,
                leftovers,
            },
            effects,
        );
    }

    pub(super) fn acknowledged(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|task| !task.is_live()) {
            self.tasks.remove(&id);
        }
    }
}

impl Task {
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }

    pub(super) fn report(&self, task: TaskId) -> TaskReport {
        let (ended, stopped) = match &self.phase {
            Phase::Ended(end) => (Some((end.status.clone(), end.usage)), None),
            Phase::Running { stopped } => (None, *stopped),
            _ => (None, None),
        };
        TaskReport {
            task,
            pid: self.pid,
            ended,
            stopped,
        }
    }
}
