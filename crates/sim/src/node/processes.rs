//! A model of the processes that an agent runs, and of what its shell sees of them.

use wiglaf_node::agent::core;
use wiglaf_wire::agent::SignalScope;
use wiglaf_wire::id::{DeputyId, NodeId, Pid, TaskId};
use wiglaf_wire::launch::LaunchSpec;
use wiglaf_wire::status::{EXIT_NOT_FOUND, Status, Usage};

use crate::world::{Event, World};

/// How long a deputy waits for the head to name a task (`ATTACH_WAIT` of the deputy).
const ATTACH_WAIT_MS: u64 = 5_000;
const RELAY_RETRY_MS: u64 = 200;
const SPAWN_FAILURES_PERCENT: u64 = 4;
const MAX_RUN_MS: u64 = 60_000;
const SIGKILL: u8 = 9;
const SIGCONT: u8 = 18;

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
    pub(super) drains: bool,
    /// The shell's streams of it.
    pub(super) is_attached: bool,
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
    pub(super) fn spawn(
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
        self.process_after(delay_ms, (node, number, task), ProcessEvent::Born);
        let delay_ms = self.network_ms();
        self.process_after(delay_ms, (node, number, task), ProcessEvent::Relay);
    }

    /// Lets something happen to the processes of a task that one life of an agent runs.
    pub(super) fn process_after(
        &mut self,
        delay_ms: u64,
        (node, life, task): (NodeId, u64, TaskId),
        event: ProcessEvent,
    ) {
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
        self.process_after(run_ms, (node, life, task), ProcessEvent::Ends);
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

    pub(super) fn kill_processes(&mut self, node: NodeId, task: TaskId) {
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

    pub(super) fn signal_process(
        &mut self,
        node: NodeId,
        task: TaskId,
        signal: u8,
        scope: SignalScope,
    ) {
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
        let retry_ms = retry_ms + self.network_ms();
        self.process_after(retry_ms, (node, life, task), ProcessEvent::Relay);
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
            self.process_after(delay_ms, (node, life, task), ProcessEvent::Relay);
        }
    }
}
