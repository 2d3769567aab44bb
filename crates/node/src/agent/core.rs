//! What an agent decides: membership, the lease and the life of its tasks (P1, P2, P4).
//!
//! Pure: events in, effects out. The loop of [`super::run`] owns sockets, clock and processes;
//! the simulator drives this same core with lost messages and crashes.

mod events;
mod lease;

pub use events::{Effect, Event};
use lease::Lease;

use std::collections::BTreeMap;

use wiglaf_wire::PROTOCOL_VERSION;
use wiglaf_wire::agent::{FromAgent, Machine, SignalScope, TaskReport, ToAgent};
use wiglaf_wire::id::{Incarnation, Pid, TaskId};
use wiglaf_wire::status::{Status, Usage};

/// A head that has said nothing for this part of a lease is dialled anew.
const SILENT_LEASE_PARTS: u64 = 2;
/// How long a connection may take from the dial to the welcome.
const WELCOME_WAIT_MS: u64 = 10_000;
/// Wait before the first new dial; it doubles with each one that fails.
const FIRST_REDIAL_MS: u64 = 100;
/// Longest wait between dials.
const LAST_REDIAL_MS: u64 = 5_000;
/// How long the output of a killed task may take to reach the head.
const KILLED_DRAIN_MS: u64 = 5_000;
/// How long a leaving agent waits until the head knows of its tasks' ends.
const LEAVE_WAIT_MS: u64 = 3_000;
/// Signals kept for a task that is being started.
const MAX_HELD_SIGNALS: usize = 64;
/// Largest signal number.
const LAST_SIGNAL: u8 = 64;

/// The agent's state.
#[derive(Debug)]
pub struct Core {
    incarnation: Incarnation,
    machine: Machine,
    name: String,
    link: Link,
    redial_ms: u64,
    dials: u32,
    lease: Lease,
    tasks: BTreeMap<TaskId, Task>,
    leaving_until: Option<u64>,
    exited: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Link {
    Down {
        dial_at: u64,
    },
    Dialling,
    /// The hello is sent.
    Greeting {
        since: u64,
    },
    Welcomed {
        heard: u64,
        renew_at: u64,
    },
}

#[derive(Debug)]
struct Task {
    pid: Pid,
    leave: bool,
    killed: bool,
    /// Replaces what the main process says of its end.
    verdict: Option<Status>,
    /// Nobody is there to take the output.
    undrainable: bool,
    phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
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
struct End {
    status: Status,
    usage: Usage,
    leftovers: u32,
}

impl Core {
    /// An agent that has not dialled yet: its first [`Event::Tick`] makes it. `machine` and
    /// `name` (until the head gives it one) are what it tells of itself.
    pub fn new(incarnation: Incarnation, machine: Machine, name: &str) -> Core {
        Core {
            incarnation,
            machine,
            name: name.to_owned(),
            link: Link::Down { dial_at: 0 },
            redial_ms: FIRST_REDIAL_MS,
            dials: 0,
            lease: Lease::default(),
            tasks: BTreeMap::new(),
            leaving_until: None,
            exited: false,
        }
    }

    /// Takes one event at the time `now_ms` of a clock that goes on while the machine sleeps.
    pub fn handle(&mut self, now_ms: u64, event: Event, effects: &mut Vec<Effect>) {
        if self.exited {
            return;
        }
        // Before all else: a message that was under way while the machine slept must not start
        // anything under a lease that is over.
        self.check_lease(now_ms, effects);
        match event {
            Event::Connected => self.connected(now_ms, effects),
            Event::Disconnected => self.disconnected(now_ms),
            Event::Message(message) => self.message(now_ms, message, effects),
            Event::Spawned { task } => self.spawned(task, effects),
            Event::SpawnFailed { task, status } => self.spawn_failed(task, status, effects),
            Event::MainStopped { task, signal } => self.stopped(task, signal, effects),
            Event::MainContinued { task } => self.continued(task, effects),
            Event::MainExited {
                task,
                status,
                usage,
            } => {
                self.main_exited(
                    now_ms,
                    task,
                    End {
                        status,
                        usage,
                        leftovers: 0,
                    },
                    effects,
                );
            }
            Event::TaskGone { task, leftovers } => self.gone(now_ms, task, leftovers, effects),
            Event::Drained { task } => self.drained(task, effects),
            Event::RelayLost { task, reason } => self.relay_lost(task, &reason, effects),
            Event::FilesLost { task, reason } => {
                if let Some(task) = self.tasks.get_mut(&task) {
                    let reason = format!("{}: {reason}", self.name);
                    task.verdict.get_or_insert(Status::cluster_failed(reason));
                }
            }
            Event::LeaveAsked => self.leave(now_ms, effects),
            Event::Tick => {}
        }
        self.check_time(now_ms, effects);
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.exited {
            return None;
        }
        let link = match self.link {
            Link::Down { dial_at } => Some(dial_at),
            Link::Dialling => None,
            Link::Greeting { since } => Some(since + WELCOME_WAIT_MS),
            Link::Welcomed { heard, renew_at } => Some(renew_at.min(self.silent_at(heard))),
        };
        let lease = if self.lease.over {
            None
        } else {
            self.lease.until
        };
        let drains = self.tasks.values().filter_map(|task| match task.phase {
            Phase::Draining { until, .. } => until,
            _ => None,
        });
        link.into_iter()
            .chain(lease)
            .chain(self.leaving_until)
            .chain(drains)
            .min()
    }

    /// Whether any task has, or may have, a process here.
    pub fn has_live_tasks(&self) -> bool {
        self.tasks.values().any(Task::is_live)
    }

    fn silent_at(&self, heard: u64) -> u64 {
        heard + self.lease.length_ms / SILENT_LEASE_PARTS
    }

    // Membership

    fn connected(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.link != Link::Dialling {
            return;
        }
        self.link = Link::Greeting { since: now_ms };
        let tasks = self
            .tasks
            .iter()
            .map(|(id, task)| task.report(*id))
            .collect();
        effects.push(Effect::Send(FromAgent::Hello {
            version: PROTOCOL_VERSION,
            incarnation: self.incarnation,
            machine: self.machine.clone(),
            tasks,
        }));
    }

    fn disconnected(&mut self, now_ms: u64) {
        if matches!(self.link, Link::Down { .. }) {
            return;
        }
        self.lease.forget_open();
        // A thousand agents whose head comes back don't all dial in the same millisecond.
        let spread = self.incarnation.0.rotate_right(self.dials * 8) & 0xff;
        self.dials = self.dials.wrapping_add(1) % 8;
        let wait = self.redial_ms * 3 / 4 + self.redial_ms * spread / 512;
        self.redial_ms = (self.redial_ms * 2).min(LAST_REDIAL_MS);
        self.link = Link::Down {
            dial_at: now_ms + wait,
        };
    }

    fn is_linked(&self) -> bool {
        matches!(self.link, Link::Greeting { .. } | Link::Welcomed { .. })
    }

    fn send(&self, message: FromAgent, effects: &mut Vec<Effect>) {
        // What is not said now, the next hello says.
        if self.is_linked() {
            effects.push(Effect::Send(message));
        }
    }

    fn message(&mut self, now_ms: u64, message: ToAgent, effects: &mut Vec<Effect>) {
        if let Link::Welcomed { heard, .. } = &mut self.link {
            *heard = now_ms;
        }
        match message {
            ToAgent::Welcome {
                node,
                name,
                first_pid,
                end_pid,
                lease_ms,
            } => {
                let Link::Greeting { since } = self.link else {
                    return;
                };
                self.name.clone_from(&name);
                self.redial_ms = FIRST_REDIAL_MS;
                self.lease.length_ms = lease_ms;
                // The hello was a renewal too.
                self.lease.extend(now_ms, since);
                let renew_at = now_ms + self.lease.renewal_ms();
                self.link = Link::Welcomed {
                    heard: now_ms,
                    renew_at,
                };
                effects.push(Effect::Welcomed {
                    node,
                    name,
                    first_pid,
                    end_pid,
                });
            }
            ToAgent::Refused { reason } => self.exit(Some(reason), effects),
            // Not while this is no member: what follows from it would be told to nobody.
            _ if !matches!(self.link, Link::Welcomed { .. }) => {}
            ToAgent::Renewed { sequence } => self.lease.renewed(now_ms, sequence),
            ToAgent::Launch {
                task,
                pid,
                credential,
                deputy,
                spec,
            } => {
                if self.tasks.contains_key(&task) {
                    return;
                }
                self.launch(task, pid, spec.leave, effects);
                if self.tasks.get(&task).is_some_and(Task::is_live) {
                    effects.push(Effect::Spawn {
                        task,
                        pid,
                        credential,
                        deputy,
                        spec,
                    });
                }
            }
            ToAgent::Signal {
                task,
                signal,
                scope,
            } => self.signal(task, signal, scope, effects),
            ToAgent::Kill { task } => self.kill(now_ms, task, effects),
            ToAgent::Acknowledge { task } => {
                if self.tasks.get(&task).is_some_and(|task| !task.is_live()) {
                    self.tasks.remove(&task);
                }
            }
            ToAgent::ListProcesses { request } => effects.push(Effect::ListProcesses { request }),
            ToAgent::SignalProcess {
                request,
                pid,
                signal,
                uid,
            } => {
                effects.push(Effect::SignalProcess {
                    request,
                    pid,
                    signal,
                    uid,
                });
            }
            ToAgent::ListViews { request } => effects.push(Effect::ListViews { request }),
            ToAgent::CheckViews { request, uid } => {
                effects.push(Effect::CheckViews { request, uid });
            }
            ToAgent::Leave => self.leave(now_ms, effects),
            // Only for a machine that is joining, which is done before there is a core.
            ToAgent::Certificate { .. }
            | ToAgent::AwaitApproval { .. }
            | ToAgent::Time { .. }
            | ToAgent::Power { .. } => {}
        }
    }

    // The lease (P4)

    fn check_lease(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let is_over = self.lease.until.is_some_and(|until| until <= now_ms);
        if !is_over || self.lease.over {
            return;
        }
        self.lease.over = true;
        let reason = self.lease_reason();
        effects.push(Effect::KillEverything);
        effects.push(Effect::CutLinks);
        let live: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.is_live())
            .map(|(id, _)| *id)
            .collect();
        for id in live {
            let Some(task) = self.tasks.get_mut(&id) else {
                continue;
            };
            task.killed = true;
            // An earlier verdict knows better why.
            task.verdict
                .get_or_insert(Status::cluster_failed(reason.clone()));
            task.undrainable = true;
            self.end_if_drained(id, effects);
        }
    }

    fn lease_reason(&self) -> String {
        format!(
            "{} heard nothing from the head for {} s and ended its tasks, so that none runs twice; \
             check the network between them and run the command again",
            self.name,
            self.lease.length_ms.div_ceil(1000)
        )
    }

    fn check_time(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.exited {
            return;
        }
        match self.link {
            Link::Greeting { since } if since + WELCOME_WAIT_MS <= now_ms => {
                effects.push(Effect::HangUp);
                self.disconnected(now_ms);
            }
            Link::Welcomed { heard, .. } if self.silent_at(heard) <= now_ms => {
                effects.push(Effect::HangUp);
                self.disconnected(now_ms);
            }
            Link::Welcomed {
                ref mut renew_at, ..
            } if *renew_at <= now_ms => {
                *renew_at = now_ms + self.lease.renewal_ms();
                let sequence = self.lease.renew(now_ms);
                effects.push(Effect::Renew { sequence });
            }
            Link::Down { dial_at } if dial_at <= now_ms => {
                self.link = Link::Dialling;
                effects.push(Effect::Dial);
            }
            _ => {}
        }
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
        if self
            .leaving_until
            .is_some_and(|until| self.tasks.is_empty() || until <= now_ms)
        {
            // Whatever is still alive when the wait is over goes with its init, but only the
            // fence proves that to the head.
            if !self.has_live_tasks() {
                self.send(FromAgent::Leaving, effects);
            }
            self.exit(None, effects);
        }
    }

    fn leave(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.leaving_until.is_some() {
            return;
        }
        self.leaving_until = Some(now_ms + LEAVE_WAIT_MS);
        if self.has_live_tasks() {
            effects.push(Effect::KillEverything);
        }
        let reason = format!(
            "{} was asked to leave the cluster and ended its tasks; run the command again",
            self.name
        );
        for task in self.tasks.values_mut().filter(|task| task.is_live()) {
            task.killed = true;
            task.verdict
                .get_or_insert(Status::cluster_failed(reason.clone()));
        }
    }

    fn exit(&mut self, reason: Option<String>, effects: &mut Vec<Effect>) {
        self.exited = true;
        effects.push(Effect::Exit { reason });
    }

    // Tasks

    fn launch(&mut self, id: TaskId, pid: Pid, leave: bool, effects: &mut Vec<Effect>) {
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
            self.end(
                id,
                End {
                    status,
                    usage: Usage::default(),
                    leftovers: 0,
                },
                effects,
            );
        }
    }

    fn spawned(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
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

    fn spawn_failed(&mut self, id: TaskId, status: Status, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        if matches!(task.phase, Phase::Starting { .. }) {
            effects.push(Effect::CloseTask { task: id });
            self.end(
                id,
                End {
                    status,
                    usage: Usage::default(),
                    leftovers: 0,
                },
                effects,
            );
        }
    }

    fn signal(&mut self, id: TaskId, signal: u8, scope: SignalScope, effects: &mut Vec<Effect>) {
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

    fn kill(&mut self, now_ms: u64, id: TaskId, effects: &mut Vec<Effect>) {
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

    fn stopped(&mut self, id: TaskId, signal: u8, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Phase::Running { stopped } = &mut task.phase
            && stopped.replace(signal) != Some(signal)
        {
            self.send(FromAgent::Stopped { task: id, signal }, effects);
        }
    }

    fn continued(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        if let Phase::Running { stopped } = &mut task.phase
            && stopped.take().is_some()
        {
            self.send(FromAgent::Continued { task: id }, effects);
        }
    }

    fn main_exited(&mut self, now_ms: u64, id: TaskId, end: End, effects: &mut Vec<Effect>) {
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

    fn gone(&mut self, now_ms: u64, id: TaskId, leftovers: u32, effects: &mut Vec<Effect>) {
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

    fn end_if_drained(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        if self.tasks.get(&id).is_some_and(|task| task.undrainable) {
            self.drained(id, effects);
        }
    }

    fn drained(&mut self, id: TaskId, effects: &mut Vec<Effect>) {
        let Some(task) = self.tasks.get(&id) else {
            return;
        };
        if let Phase::Draining { end, .. } = &task.phase {
            let end = end.clone();
            effects.push(Effect::CloseTask { task: id });
            self.end(id, end, effects);
        }
    }

    fn relay_lost(&mut self, id: TaskId, reason: &str, effects: &mut Vec<Effect>) {
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
}

impl Task {
    fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }

    fn report(&self, task: TaskId) -> TaskReport {
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

#[cfg(test)]
mod tests;
