//! Nodes: machines with a clock of their own, the agent's core and a model of its shell.

mod processes;

pub(crate) use processes::{Process, ProcessEvent};

use std::collections::BTreeMap;

use wiglaf_node::agent::core::{self, Core};
use wiglaf_wire::agent::{FromAgent, Machine as Facts};
use wiglaf_wire::id::{Incarnation, NodeId, TaskId};

use crate::faults::Mistake;
use crate::network::{ConnId, Up};
use crate::world::{Event, Wire, World};

/// Clocks may differ from the head's by this much in a thousand; the margin covers a twelfth.
const MAX_DRIFT_PER_MILLE: u64 = 60;
/// An agent's loop may be this late.
const MAX_JITTER_MS: u64 = 50;

/// A machine.
pub(crate) struct Machine {
    /// The kernel of the head's machine shows when its agent dies.
    pub(crate) is_virtual: bool,
    pub(crate) partition_until_ms: u64,
    /// When the head last answered it, truly.
    pub(crate) answered_ms: Option<u64>,
    rate_per_mille: u64,
    offset_ms: u64,
    pub(crate) lives: u64,
    pub(crate) life: Option<Life>,
    /// What the last greeting told of.
    pub(crate) last_hello: Vec<TaskId>,
}

/// One life of an agent, with all its processes.
pub(crate) struct Life {
    pub(crate) core: Core,
    pub(crate) incarnation: Incarnation,
    pub(crate) conn: Option<ConnId>,
    pub(crate) dialling: Option<ConnId>,
    pub(crate) processes: BTreeMap<TaskId, Process>,
    tick_at_ms: Option<u64>,
}

impl World {
    pub(crate) fn add_node(&mut self, id: NodeId) {
        let is_virtual = self.rng.chance(50);
        let node = self.store.nodes.insert(id, format!("n{id}"));
        node.is_virtual = is_virtual;
        node.slots = Some(u32::try_from(self.rng.between(1, 4)).unwrap_or(1));
        let machine = Machine {
            is_virtual,
            partition_until_ms: 0,
            answered_ms: None,
            rate_per_mille: 1_000 - MAX_DRIFT_PER_MILLE
                + self.rng.below(2 * MAX_DRIFT_PER_MILLE + 1),
            offset_ms: self.rng.below(1_000_000),
            lives: 0,
            life: None,
            last_hello: Vec::new(),
        };
        self.nodes.insert(id, machine);
        let delay_ms = self.rng.below(3_000);
        self.after(delay_ms, Event::AgentStart(id));
    }

    pub(crate) fn process(&self, node: NodeId, task: TaskId) -> Option<&Process> {
        self.nodes.get(&node)?.life.as_ref()?.processes.get(&task)
    }

    fn life(&mut self, node: NodeId) -> Option<&mut Life> {
        self.nodes.get_mut(&node)?.life.as_mut()
    }

    pub(crate) fn start_agent(&mut self, node: NodeId) {
        let incarnation = Incarnation(self.rng.next());
        let Some(machine) = self.nodes.get_mut(&node) else {
            return;
        };
        if machine.life.is_some() {
            return;
        }
        machine.lives += 1;
        let life = machine.lives;
        let facts = Facts {
            cpus: 2,
            ..Facts::default()
        };
        machine.life = Some(Life {
            core: Core::new(incarnation, facts, &format!("n{node}")),
            incarnation,
            conn: None,
            dialling: None,
            processes: BTreeMap::new(),
            tick_at_ms: None,
        });
        self.agent_tick(node, life);
    }

    pub(crate) fn crash_agent(&mut self, node: NodeId, power: bool) {
        let Some(machine) = self.nodes.get_mut(&node) else {
            return;
        };
        let Some(life) = machine.life.take() else {
            return;
        };
        let (number, is_virtual) = (machine.lives, machine.is_virtual);
        self.excuse("its node's agent died", |truth| truth.node == node);
        // A virtual node shares the head's power.
        let power = power && !is_virtual;
        for conn in life.conn.into_iter().chain(life.dialling) {
            if power {
                self.silence_agent_end(conn);
            } else {
                self.close_agent_end(conn);
            }
        }
        self.note(|_| format!("  life {number} of n{node} is over"));
        if is_virtual {
            self.head_sees_agent_die(node);
        }
    }

    pub(crate) fn agent_tick(&mut self, node: NodeId, life: u64) {
        if self
            .nodes
            .get(&node)
            .is_some_and(|machine| machine.lives == life)
        {
            if let Some(life) = self.life(node) {
                life.tick_at_ms = None;
            }
            self.agent_event(node, core::Event::Tick);
        }
    }

    pub(crate) fn shell_tells(&mut self, node: NodeId, life: u64, event: core::Event) {
        if self
            .nodes
            .get(&node)
            .is_some_and(|machine| machine.lives == life)
        {
            self.agent_event(node, event);
        }
    }

    /// Lets the core take an event, by the node's own clock.
    pub(crate) fn agent_event(&mut self, node: NodeId, event: core::Event) {
        let now_ms = self.now_ms;
        let Some(machine) = self.nodes.get_mut(&node) else {
            return;
        };
        let number = machine.lives;
        let local_ms = machine.local_ms(now_ms);
        let Some(life) = &mut machine.life else {
            return;
        };
        let mut effects = Vec::new();
        life.core.handle(local_ms, event, &mut effects);
        for effect in effects {
            self.note(|_| format!("  n{node} does {effect:?}"));
            self.agent_does(node, number, effect);
        }
        self.plan_agent_tick(node, number);
    }

    fn plan_agent_tick(&mut self, node: NodeId, number: u64) {
        let jitter_ms = self.rng.below(MAX_JITTER_MS);
        let now_ms = self.now_ms;
        let Some(machine) = self.nodes.get_mut(&node).filter(|m| m.lives == number) else {
            return;
        };
        let Some(deadline) = machine.life.as_ref().and_then(|l| l.core.next_deadline()) else {
            return;
        };
        let at_ms = machine.head_ms(deadline).max(now_ms) + 1 + jitter_ms;
        let Some(life) = &mut machine.life else {
            return;
        };
        if life.tick_at_ms.is_none_or(|planned| planned > at_ms) {
            life.tick_at_ms = Some(at_ms);
            self.at(at_ms, Event::AgentTick { node, life: number });
        }
    }

    fn agent_does(&mut self, node: NodeId, number: u64, effect: core::Effect) {
        use core::Effect;
        match effect {
            Effect::Dial => {
                let conn = self.dial(node);
                if let Some(life) = self.life(node) {
                    life.dialling = Some(conn);
                }
            }
            Effect::HangUp => {
                if let Some(conn) = self.life(node).and_then(|life| life.conn.take()) {
                    self.close_agent_end(conn);
                }
            }
            Effect::Send(message) => {
                if let FromAgent::Hello { tasks, .. } = &message
                    && let Some(machine) = self.nodes.get_mut(&node)
                {
                    machine.last_hello = tasks.iter().map(|report| report.task).collect();
                }
                self.agent_says(node, message);
            }
            Effect::Renew { sequence } => {
                let renew = FromAgent::Renew {
                    sequence,
                    load_centi: 0,
                    available_kib: 0,
                };
                self.agent_says(node, renew);
            }
            // No files here; output goes on when the node is back.
            Effect::Welcomed { .. } | Effect::CutLinks => {}
            Effect::Spawn {
                task,
                pid,
                deputy,
                spec,
                ..
            } => {
                self.spawn(node, number, (task, pid), deputy, &spec);
            }
            Effect::Signal {
                task,
                signal,
                scope,
                ..
            } => {
                self.signal_process(node, task, signal, scope);
            }
            Effect::KillTree { task, .. } => self.kill_processes(node, task),
            Effect::KillEverything if self.setup.mistake == Some(Mistake::Immortal) => {}
            Effect::KillEverything => {
                self.summary.leases_lost += 1;
                self.excuse("its node's lease was over", |truth| truth.node == node);
                let all: Vec<_> = self
                    .life(node)
                    .map(|life| life.processes.keys().copied().collect())
                    .unwrap_or_default();
                all.into_iter()
                    .for_each(|task| self.kill_processes(node, task));
            }
            Effect::CollectLeftovers { task } => {
                let delay_ms = self.local_ms();
                self.process_after(
                    delay_ms,
                    (node, number, task),
                    ProcessEvent::LeftoversKilled,
                );
            }
            Effect::WaitDrained { task, .. } => {
                if let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) {
                    process.drains = true;
                }
                let delay_ms = self.network_ms();
                self.process_after(delay_ms, (node, number, task), ProcessEvent::Relay);
            }
            Effect::CloseTask { task } => {
                if let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) {
                    process.is_attached = false;
                }
            }
            Effect::ListProcesses { request } => {
                let list = FromAgent::Processes {
                    request,
                    list: vec![],
                    last: true,
                };
                self.agent_says(node, list);
            }
            Effect::SignalProcess { request, .. } => {
                self.agent_says(node, FromAgent::Signalled { request, errno: 0 });
            }
            // The simulated nodes see no files.
            Effect::ListViews { request } => {
                let list = FromAgent::Views {
                    request,
                    list: vec![],
                    last: true,
                };
                self.agent_says(node, list);
            }
            Effect::CheckViews { request, .. } => {
                let list = FromAgent::ViewsChecked {
                    request,
                    list: vec![],
                    last: true,
                };
                self.agent_says(node, list);
            }
            Effect::Exit { .. } => self.crash_agent(node, false),
        }
    }

    fn agent_says(&mut self, node: NodeId, message: FromAgent) {
        if let Some(conn) = self.life(node).and_then(|life| life.conn) {
            self.push_up(conn, Up::Message(message));
        }
    }

    /// What the shell sees reaches the core in order, a little later.
    fn shell_sees(&mut self, node: NodeId, event: core::Event) {
        let Some(life) = self.nodes.get(&node).map(|machine| machine.lives) else {
            return;
        };
        let delay_ms = self.local_ms();
        self.send(
            Wire::Shell(node),
            delay_ms,
            Event::Agent { node, life, event },
        );
    }
}

impl Machine {
    fn local_ms(&self, now_ms: u64) -> u64 {
        self.offset_ms + now_ms * self.rate_per_mille / 1_000
    }

    /// When, by the head's clock, the node's shows this.
    fn head_ms(&self, local_ms: u64) -> u64 {
        (local_ms.saturating_sub(self.offset_ms) * 1_000).div_ceil(self.rate_per_mille)
    }
}
