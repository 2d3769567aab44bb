//! Nodes: machines with a clock of their own, the agent's core, and a model of its shell and of
//! the processes that it runs.

use std::collections::BTreeMap;

use wiglaf_node::agent::core::{self, Core};
use wiglaf_wire::agent::{FromAgent, Machine as Facts, SignalScope};
use wiglaf_wire::id::{DeputyId, Incarnation, NodeId, Pid, TaskId};
use wiglaf_wire::launch::LaunchSpec;
use wiglaf_wire::status::{EXIT_NOT_FOUND, Status, Usage};

use crate::faults::Mistake;
use crate::network::{ConnId, Up};
use crate::world::{Event, Wire, World};

/// Clocks may differ from the head's by this much in a thousand; the margin covers a twelfth.
const MAX_DRIFT_PER_MILLE: u64 = 60;
/// An agent's loop may be this late.
const MAX_JITTER_MS: u64 = 50;
/// How long a deputy waits for the head to name a task (`ATTACH_WAIT` of the deputy).
const ATTACH_WAIT_MS: u64 = 5_000;
const RELAY_RETRY_MS: u64 = 200;
const SPAWN_FAILURES_PERCENT: u64 = 4;
const MAX_RUN_MS: u64 = 60_000;
const SIGKILL: u8 = 9;
const SIGCONT: u8 = 18;

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

/// The processes of one task.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    deputy: DeputyId,
    main: Main,
    pub(crate) leftovers: u32,
    /// How it will end by itself.
    fate: Status,
    /// It has reached its end while it was stopped.
    is_due: bool,
    spawned_ms: u64,
    drains: bool,
    /// The shell's streams of it.
    is_attached: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Main {
    Starting,
    Running { stopped: bool },
    Dead,
}

impl Process {
    pub(crate) fn is_main_alive(&self) -> bool {
        matches!(self.main, Main::Running { .. })
    }
}

/// What happens to processes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ProcessEvent {
    Born,
    Ends,
    LeftoversKilled,
    /// The streams are looked at.
    Relay,
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
                let event = ProcessEvent::LeftoversKilled;
                self.after(
                    delay_ms,
                    Event::Process {
                        node,
                        life: number,
                        task,
                        event,
                    },
                );
            }
            Effect::WaitDrained { task, .. } => {
                if let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) {
                    process.drains = true;
                }
                let delay_ms = self.network_ms();
                let event = ProcessEvent::Relay;
                self.after(
                    delay_ms,
                    Event::Process {
                        node,
                        life: number,
                        task,
                        event,
                    },
                );
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

    fn spawn(
        &mut self,
        node: NodeId,
        number: u64,
        (task, pid): (TaskId, Pid),
        deputy: DeputyId,
        spec: &LaunchSpec,
    ) {
        let fate = match self.rng.below(20) {
            0 => Status::Signaled(11),
            other => Status::Exited(u8::try_from(other % 4).unwrap_or(0)),
        };
        let process = Process {
            pid,
            deputy,
            main: Main::Starting,
            leftovers: 0,
            fate,
            is_due: false,
            spawned_ms: self.now_ms,
            drains: false,
            is_attached: true,
        };
        if let Some(truth) = self.truths.get_mut(&task) {
            truth.leave = spec.leave;
        }
        if let Some(life) = self.life(node) {
            life.processes.insert(task, process);
        }
        let delay_ms = self.local_ms();
        let born = ProcessEvent::Born;
        self.after(
            delay_ms,
            Event::Process {
                node,
                life: number,
                task,
                event: born,
            },
        );
        let relay = ProcessEvent::Relay;
        let delay_ms = self.network_ms();
        self.after(
            delay_ms,
            Event::Process {
                node,
                life: number,
                task,
                event: relay,
            },
        );
    }

    pub(crate) fn process_event(
        &mut self,
        node: NodeId,
        life: u64,
        task: TaskId,
        event: ProcessEvent,
    ) {
        if self
            .nodes
            .get(&node)
            .is_none_or(|machine| machine.lives != life)
        {
            return;
        }
        match event {
            ProcessEvent::Born => self.born(node, life, task),
            ProcessEvent::Ends => self.ends(node, task),
            ProcessEvent::LeftoversKilled => {
                let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) else {
                    return;
                };
                let leftovers = std::mem::take(&mut process.leftovers);
                self.shell_sees(node, core::Event::TaskGone { task, leftovers });
            }
            ProcessEvent::Relay => self.relay(node, life, task),
        }
    }

    fn born(&mut self, node: NodeId, life: u64, task: TaskId) {
        let fails = self.rng.chance(SPAWN_FAILURES_PERCENT);
        let (leftovers, run_ms) = (self.rng.below(5), self.run_ms());
        let machine = self
            .nodes
            .get_mut(&node)
            .and_then(|machine| machine.life.as_mut());
        let Some(process) = machine.and_then(|life| life.processes.get_mut(&task)) else {
            return;
        };
        let Some(truth) = self.truths.get_mut(&task) else {
            return self.violated("P1", format!("n{node} starts {task}, which has no ghost"));
        };
        if fails {
            process.main = Main::Dead;
            let reason = "not found".into();
            let status = Status::Failed {
                code: EXIT_NOT_FOUND,
                reason,
            };
            truth.own_end.get_or_insert(status.clone());
            return self.shell_sees(node, core::Event::SpawnFailed { task, status });
        }
        process.main = Main::Running { stopped: false };
        process.leftovers = u32::try_from(leftovers.saturating_sub(3)).unwrap_or(0);
        truth.starts += 1;
        let (pid, ghost, starts) = (process.pid, truth.pid, truth.starts);
        let (is_over, keeper_died) = (truth.over, truth.keeper_died);
        if starts > 1 {
            self.violated(
                "P4",
                format!("n{node} starts {task} for the {starts}nd time"),
            );
        }
        if is_over && !keeper_died {
            self.violated(
                "P4",
                format!("n{node} starts {task}, which was called over"),
            );
        }
        if pid != ghost {
            self.violated("P1", format!("{task} has PID {pid} and its ghost {ghost}"));
        }
        self.shell_sees(node, core::Event::Spawned { task });
        self.after(
            run_ms,
            Event::Process {
                node,
                life,
                task,
                event: ProcessEvent::Ends,
            },
        );
    }

    fn run_ms(&mut self) -> u64 {
        let longest_ms = self.rng.pick(&[5, 500, 10_000, MAX_RUN_MS]).unwrap_or(500);
        self.rng.below(longest_ms)
    }

    fn ends(&mut self, node: NodeId, task: TaskId) {
        let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) else {
            return;
        };
        match process.main {
            Main::Running { stopped: true } => process.is_due = true,
            Main::Running { stopped: false } => {
                process.main = Main::Dead;
                let status = process.fate.clone();
                if let Some(truth) = self.truths.get_mut(&task) {
                    truth.own_end = Some(status.clone());
                }
                let usage = Usage::default();
                self.shell_sees(
                    node,
                    core::Event::MainExited {
                        task,
                        status,
                        usage,
                    },
                );
            }
            Main::Starting | Main::Dead => {}
        }
    }

    fn kill_processes(&mut self, node: NodeId, task: TaskId) {
        let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) else {
            return;
        };
        process.leftovers = 0;
        self.kill_main(node, task, SIGKILL);
    }

    fn kill_main(&mut self, node: NodeId, task: TaskId, signal: u8) {
        let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) else {
            return;
        };
        if process.is_main_alive() {
            process.main = Main::Dead;
            let (status, usage) = (Status::Signaled(signal), Usage::default());
            self.shell_sees(
                node,
                core::Event::MainExited {
                    task,
                    status,
                    usage,
                },
            );
        }
    }

    fn signal_process(&mut self, node: NodeId, task: TaskId, signal: u8, scope: SignalScope) {
        let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) else {
            return;
        };
        let Main::Running { stopped } = process.main else {
            return;
        };
        if scope != SignalScope::Process && signal == SIGKILL {
            process.leftovers = 0;
        }
        match signal {
            19..=22 if !stopped => {
                process.main = Main::Running { stopped: true };
                self.shell_sees(node, core::Event::MainStopped { task, signal });
            }
            SIGCONT if stopped => {
                process.main = Main::Running { stopped: false };
                let is_due = process.is_due;
                self.shell_sees(node, core::Event::MainContinued { task });
                if is_due {
                    self.ends(node, task);
                }
            }
            1 | 2 | 15 if stopped => {}
            1 | 2 | SIGKILL | 15 => self.kill_main(node, task, signal),
            _ => {}
        }
    }

    /// A user on the node lets all that is stopped go on.
    pub(crate) fn continue_all(&mut self, node: NodeId) {
        let all: Vec<_> = self
            .life(node)
            .map(|life| life.processes.keys().copied().collect())
            .unwrap_or_default();
        for task in all {
            self.signal_process(node, task, SIGCONT, SignalScope::Process);
        }
    }

    /// The streams of a task: they need the deputy, and a network to it.
    fn relay(&mut self, node: NodeId, life: u64, task: TaskId) {
        let Some(machine) = self.nodes.get(&node) else {
            return;
        };
        let Some(process) = self.process(node, task) else {
            return;
        };
        if !process.is_attached {
            return;
        }
        let waited_ms = self.now_ms - process.spawned_ms;
        let deputy = self.keeper.deputies.get(&process.deputy);
        let is_known = deputy.is_some_and(|deputy| deputy.attached.contains_key(&task));
        let drains = process.drains;
        let retry_ms = if machine.partition_until_ms > self.now_ms {
            machine.partition_until_ms - self.now_ms
        } else if deputy.is_none_or(|deputy| !deputy.is_started) || !is_known {
            if waited_ms > ATTACH_WAIT_MS || deputy.is_none() {
                if let Some(process) = self.life(node).and_then(|l| l.processes.get_mut(&task)) {
                    process.is_attached = false;
                }
                let reason = "the deputy does not know it".into();
                return self.shell_sees(node, core::Event::RelayLost { task, reason });
            }
            RELAY_RETRY_MS
        } else if drains {
            return self.shell_sees(node, core::Event::Drained { task });
        } else {
            // All is well; the deputy's death is told by `crash_deputy`.
            return;
        };
        let event = ProcessEvent::Relay;
        let retry_ms = retry_ms + self.network_ms();
        self.after(
            retry_ms,
            Event::Process {
                node,
                life,
                task,
                event,
            },
        );
    }

    /// A deputy is dead: agents that had streams there find out.
    pub(crate) fn relays_break(&mut self, deputy: DeputyId) {
        let mut broken = Vec::new();
        for (node, machine) in &self.nodes {
            let Some(life) = &machine.life else { continue };
            for (task, process) in &life.processes {
                if process.deputy == deputy && process.is_attached {
                    broken.push((*node, machine.lives, *task));
                }
            }
        }
        for (node, life, task) in broken {
            let delay_ms = self.network_ms();
            let event = ProcessEvent::Relay;
            self.after(
                delay_ms,
                Event::Process {
                    node,
                    life,
                    task,
                    event,
                },
            );
        }
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
