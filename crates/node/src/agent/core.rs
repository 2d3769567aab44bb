//! What an agent decides: membership, the lease and the life of its tasks (P1, P2, P4). Here is
//! what it hears and when it wants to hear of the time; what it makes of that is in the modules.
//!
//! Pure: events in, effects out. The loop of [`super::run`] owns sockets, clock and processes;
//! the simulator drives this same core with lost messages and crashes.

mod events;
mod lease;
mod membership;
mod tasks;

pub use events::{Effect, Event};

use std::collections::BTreeMap;

use wiglaf_wire::agent::{Machine, ToAgent};
use wiglaf_wire::id::{Incarnation, TaskId};

use lease::Lease;
use membership::{FIRST_REDIAL_MS, Link};
use tasks::{End, Phase, Task};

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
            Event::FilesLost { task, reason } => self.files_lost(task, &reason),
            Event::LeaveAsked => self.leave(now_ms, effects),
            Event::Tick => {}
        }
        self.check_time(now_ms, effects);
    }

    /// Whether any task has, or may have, a process here.
    pub fn has_live_tasks(&self) -> bool {
        self.tasks.values().any(Task::is_live)
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.exited {
            return None;
        }
        let lease = if self.lease.over {
            None
        } else {
            self.lease.until
        };
        let drains = self.tasks.values().filter_map(|task| match task.phase {
            Phase::Draining { until, .. } => until,
            _ => None,
        });
        self.link_deadline()
            .into_iter()
            .chain(lease)
            .chain(self.leaving_until)
            .chain(drains)
            .min()
    }

    fn check_time(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.exited {
            return;
        }
        self.check_link(now_ms, effects);
        self.end_late_drains(now_ms, effects);
        self.check_leaving(now_ms, effects);
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
                if self.welcomed(now_ms, &name, lease_ms) {
                    effects.push(Effect::Welcomed {
                        node,
                        name,
                        first_pid,
                        end_pid,
                    });
                }
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
            ToAgent::Acknowledge { task } => self.acknowledged(task),
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
            | ToAgent::Keep { .. }
            | ToAgent::Names { .. }
            | ToAgent::Power { .. }
            | ToAgent::Disk { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
