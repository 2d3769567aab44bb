//! The keeper with its ghosts, and the deputies: they outlive the head.

use std::collections::BTreeMap;

use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostReport, ToKeeper};
use wiglaf_wire::launch::Credential;
use wiglaf_wire::status::EXIT_CLUSTER_FAILED;

use crate::faults::Mistake;
use crate::truth::Truth;
use crate::world::{Event, Wire, World};

/// A ghost that was told to end has this long (`FINISH_TIMEOUT` of the keeper).
const FINISH_TIMEOUT_MS: u64 = 2_000;
const SIGKILL: u8 = 9;
const SIGCONT: u8 = 18;

#[derive(Debug, Default)]
pub(crate) struct Keeper {
    pub(crate) life: u64,
    pub(crate) is_running: bool,
    /// The life of the head that it talks to.
    head: Option<u64>,
    pub(crate) ghosts: BTreeMap<TaskId, Ghost>,
    pub(crate) deputies: BTreeMap<DeputyId, Deputy>,
}

#[derive(Debug)]
pub(crate) struct Ghost {
    pub(crate) pid: Pid,
    record: Vec<u8>,
    state: State,
    /// What waits for a head.
    held: Vec<FromKeeper>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Alive,
    Finishing(GhostEnd),
    /// A zombie that its parent can't see yet.
    Dead(GhostEnd),
}

#[derive(Debug)]
pub(crate) struct Deputy {
    credential: Credential,
    pub(crate) is_started: bool,
    pub(crate) attached: BTreeMap<TaskId, NodeId>,
}

/// What the keeper's channel brings the head.
#[derive(Debug)]
pub(crate) enum KeeperSays {
    Message(FromKeeper),
    /// A deputy's channel, and what it says there first.
    Deputy(DeputyId, FromDeputy),
    /// The channel is closed.
    Gone,
}

impl World {
    /// A head has come: it finds the keeper or starts one, and is told everything. What the head
    /// before had still sent is read first.
    pub(crate) fn meet_keeper(&mut self, head: u64) {
        if !self.keeper.is_running {
            let life = self.keeper.life + 1;
            self.keeper = Keeper {
                life,
                is_running: true,
                ..Keeper::default()
            };
        }
        let keeper = self.keeper.life;
        let delay_ms = self.local_ms();
        self.send(
            Wire::HeadToKeeper,
            delay_ms,
            Event::HeadMeetsKeeper { head, keeper },
        );
    }

    pub(crate) fn keeper_greets(&mut self, head: u64, keeper: u64) {
        if self.keeper.life != keeper || !self.keeper.is_running {
            // It died before it could answer.
            if self.head.as_ref().is_some_and(|h| h.life == head) {
                self.send(
                    Wire::KeeperToHead,
                    0,
                    Event::KeeperToHead {
                        life: head,
                        message: KeeperSays::Gone,
                    },
                );
            }
            return;
        }
        self.keeper.head = Some(head);
        let ghosts = self.keeper.ghosts.iter().map(|(task, ghost)| GhostReport {
            task: *task,
            pid: ghost.pid,
            record: ghost.record.clone(),
            died: match ghost.state {
                State::Dead(end) => Some(end),
                State::Alive | State::Finishing(_) => None,
            },
        });
        let ghosts = ghosts.collect();
        let deputies = self
            .keeper
            .deputies
            .iter()
            .map(|(id, d)| (*id, d.credential.clone()))
            .collect();
        self.keeper_says(FromKeeper::Inventory {
            ghosts,
            deputies,
            last: true,
        });
        let held: Vec<_> = self
            .keeper
            .ghosts
            .values_mut()
            .flat_map(|g| std::mem::take(&mut g.held))
            .collect();
        held.into_iter()
            .for_each(|message| self.keeper_says(message));
        let deputies: Vec<_> = self
            .keeper
            .deputies
            .iter()
            .filter(|(_, deputy)| deputy.is_started)
            .map(|(id, _)| *id)
            .collect();
        for deputy in deputies {
            // Its old channel is read to its end first.
            self.send(
                Wire::HeadToDeputy(deputy),
                0,
                Event::DeputyStarts { keeper, deputy },
            );
        }
    }

    fn keeper_says(&mut self, message: FromKeeper) {
        self.keeper_tells(KeeperSays::Message(message));
    }

    fn keeper_tells(&mut self, message: KeeperSays) {
        let alive = self.head.as_ref().map(|head| head.life);
        match self.keeper.head.filter(|life| alive == Some(*life)) {
            Some(life) => {
                let delay_ms = self.local_ms();
                self.send(
                    Wire::KeeperToHead,
                    delay_ms,
                    Event::KeeperToHead { life, message },
                );
            }
            None => {
                if let KeeperSays::Message(message) = message
                    && let FromKeeper::Signal { task, .. }
                    | FromKeeper::Stopped { task, .. }
                    | FromKeeper::Continued { task } = &message
                    && let Some(ghost) = self.keeper.ghosts.get_mut(task)
                {
                    ghost.held.push(message);
                }
            }
        }
    }

    fn give_channel(&mut self, deputy: DeputyId) {
        let tasks = self
            .keeper
            .deputies
            .get(&deputy)
            .map(|d| d.attached.keys().copied().collect());
        let ready = FromDeputy::Ready {
            tasks: tasks.unwrap_or_default(),
        };
        self.keeper_tells(KeeperSays::Deputy(deputy, ready));
    }

    pub(crate) fn deputy_starts(&mut self, keeper: u64, deputy: DeputyId) {
        if self.keeper.life != keeper {
            return;
        }
        if let Some(found) = self.keeper.deputies.get_mut(&deputy) {
            found.is_started = true;
            self.give_channel(deputy);
        }
    }

    pub(crate) fn keeper_obeys(&mut self, life: u64, message: ToKeeper) {
        if self.keeper.life != life || !self.keeper.is_running {
            if let ToKeeper::Seize { pid, .. } = message {
                self.control_socket_closes(pid);
            }
            return;
        }
        self.note(|_| format!("  keeper gets {message:?}"));
        match message {
            ToKeeper::Seize {
                task,
                pid,
                start_time,
                record,
                ..
            } => {
                let twice = self.keeper.ghosts.values().any(|ghost| ghost.pid == pid);
                if twice || self.pids.get(&pid) != Some(&start_time) {
                    let reason = "it can't be seized".into();
                    return self.keeper_says(FromKeeper::SeizeFailed { task, reason });
                }
                self.becomes_true(task, pid, &record);
                let ghost = Ghost {
                    pid,
                    record,
                    state: State::Alive,
                    held: Vec::new(),
                };
                self.keeper.ghosts.insert(task, ghost);
                self.keeper_says(FromKeeper::Seized { task });
            }
            ToKeeper::Record { task, record } => {
                if let Some(ghost) = self.keeper.ghosts.get_mut(&task) {
                    ghost.record = record;
                }
            }
            ToKeeper::Finish { task, end, .. } => self.finish_ghost(task, end),
            // Whether a ghost looks stopped concerns nobody here.
            ToKeeper::Stop { .. } | ToKeeper::Continue { .. } => {}
            ToKeeper::StartDeputy { deputy, credential } => {
                let attached = BTreeMap::new();
                let deputy_ = Deputy {
                    credential,
                    is_started: false,
                    attached,
                };
                self.keeper.deputies.insert(deputy, deputy_);
                let delay_ms = self.local_ms();
                self.after(
                    delay_ms,
                    Event::DeputyStarts {
                        keeper: life,
                        deputy,
                    },
                );
            }
            ToKeeper::Shutdown { .. } => {}
        }
    }

    fn finish_ghost(&mut self, task: TaskId, end: GhostEnd) {
        let Some(ghost) = self.keeper.ghosts.get_mut(&task) else {
            return;
        };
        let (pid, keeper) = (ghost.pid, self.keeper.life);
        match ghost.state {
            State::Finishing(_) => {}
            State::Dead(end) => self.ghost_is_reaped(task, end),
            State::Alive => {
                ghost.state = State::Finishing(end);
                // A command that has not become the ghost yet can't read its order.
                if self.is_ghost_program(pid) {
                    let delay_ms = self.local_ms();
                    self.after(
                        delay_ms,
                        Event::GhostEnds {
                            keeper,
                            task,
                            overdue: false,
                        },
                    );
                }
                self.after(
                    FINISH_TIMEOUT_MS,
                    Event::GhostEnds {
                        keeper,
                        task,
                        overdue: true,
                    },
                );
            }
        }
    }

    /// The program has read its order, or is killed because it did not.
    pub(crate) fn ghost_ends(&mut self, keeper: u64, task: TaskId, overdue: bool) {
        if self.keeper.life != keeper {
            return;
        }
        let Some(ghost) = self.keeper.ghosts.get(&task) else {
            return;
        };
        if let State::Finishing(end) = ghost.state {
            let end = if overdue {
                GhostEnd::Signal(SIGKILL)
            } else {
                end
            };
            self.ghost_is_reaped(task, end);
        }
    }

    /// A command has become the ghost program, which reads what was sent before.
    pub(crate) fn ghost_program_starts(&mut self, pid: Pid) {
        let keeper = self.keeper.life;
        let found = self
            .keeper
            .ghosts
            .iter()
            .find(|(_, ghost)| ghost.pid == pid);
        match found.map(|(task, ghost)| (*task, ghost.state)) {
            Some((task, State::Finishing(_))) => {
                self.after(
                    0,
                    Event::GhostEnds {
                        keeper,
                        task,
                        overdue: false,
                    },
                );
            }
            Some(_) => {}
            // Its keeper has died meanwhile: it reads an end of file.
            None => self.process_is_gone(pid, GhostEnd::Exit(EXIT_CLUSTER_FAILED)),
        }
    }

    fn ghost_is_reaped(&mut self, task: TaskId, end: GhostEnd) {
        if let Some(ghost) = self.keeper.ghosts.remove(&task) {
            self.told(task, end);
            self.process_is_gone(ghost.pid, end);
            self.keeper_says(FromKeeper::Gone { task });
        }
    }

    /// Somebody signals a process of the head's machine.
    pub(crate) fn signal_local(&mut self, pid: Pid, signal: u8) {
        let Some((task, state)) = self
            .keeper
            .ghosts
            .iter()
            .find(|(_, ghost)| ghost.pid == pid)
            .map(|(task, ghost)| (*task, ghost.state))
        else {
            if signal == SIGKILL {
                self.process_is_gone(pid, GhostEnd::Signal(SIGKILL));
            }
            return;
        };
        if let Some(truth) = self.truths.get_mut(&task) {
            truth.interfered = true;
        }
        match (signal, state) {
            (SIGKILL, State::Alive) => self.ghost_dies(task, GhostEnd::Signal(SIGKILL)),
            (SIGKILL, State::Finishing(_)) => {
                self.ghost_is_reaped(task, GhostEnd::Signal(SIGKILL));
            }
            (_, State::Dead(_) | State::Finishing(_)) => {}
            (SIGCONT, State::Alive) => self.keeper_says(FromKeeper::Continued { task }),
            (_, State::Alive) => {
                let leads_group = self.rng.chance(50);
                let from_kernel = self.rng.chance(20);
                let said = FromKeeper::Signal {
                    task,
                    signal,
                    from_kernel,
                    leads_group,
                };
                self.keeper_says(said);
            }
        }
    }

    /// A ghost dies unasked, by a signal or because its command gives up: a zombie until `Finish`.
    pub(crate) fn ghost_dies(&mut self, task: TaskId, end: GhostEnd) {
        if let Some(ghost) = self.keeper.ghosts.get_mut(&task)
            && ghost.state == State::Alive
        {
            ghost.state = State::Dead(end);
            let pid = ghost.pid;
            self.command_process_died(pid);
            self.keeper_says(FromKeeper::Died { task, end });
            if self.setup.mistake == Some(Mistake::EagerKeeper) {
                self.ghost_is_reaped(task, end);
            }
        }
    }

    pub(crate) fn crash_keeper(&mut self) {
        if !self.keeper.is_running {
            return;
        }
        self.keeper.is_running = false;
        let ghosts = std::mem::take(&mut self.keeper.ghosts);
        let deputies = std::mem::take(&mut self.keeper.deputies);
        self.excuse("its keeper died", |_| true);
        self.truths
            .values_mut()
            .filter(|truth| truth.told.is_none())
            .for_each(|truth| truth.keeper_died = true);
        for (task, ghost) in ghosts {
            let end = match ghost.state {
                State::Dead(end) | State::Finishing(end) => end,
                State::Alive => GhostEnd::Exit(EXIT_CLUSTER_FAILED),
            };
            self.told(task, end);
            // A command that still launches is traced no more, and waits for the head.
            if self.is_ghost_program(ghost.pid) || matches!(ghost.state, State::Dead(_)) {
                self.process_is_gone(ghost.pid, end);
            }
        }
        deputies
            .into_keys()
            .for_each(|deputy| self.relays_break(deputy));
        if let Some(head) = &self.head {
            let life = head.life;
            let delay_ms = self.local_ms();
            let message = KeeperSays::Gone;
            self.send(
                Wire::KeeperToHead,
                delay_ms,
                Event::KeeperToHead { life, message },
            );
        }
    }

    pub(crate) fn crash_deputy(&mut self) {
        let all: Vec<_> = self.keeper.deputies.keys().copied().collect();
        let Some(deputy) = self.rng.pick(&all) else {
            return;
        };
        self.keeper.deputies.remove(&deputy);
        self.excuse("its deputy died", |truth: &Truth| truth.deputy == deputy);
        self.relays_break(deputy);
        self.keeper_says(FromKeeper::DeputyGone {
            deputy,
            how: "was killed".into(),
        });
    }

    pub(crate) fn deputy_obeys(&mut self, keeper: u64, deputy: DeputyId, message: ToDeputy) {
        if self.keeper.life != keeper {
            return;
        }
        let Some(found) = self.keeper.deputies.get_mut(&deputy) else {
            return;
        };
        match message {
            ToDeputy::Attach { task, node, .. } => {
                found.attached.insert(task, node);
            }
            ToDeputy::Say { task, .. } => self.deputy_says(deputy, FromDeputy::Said { task }),
            ToDeputy::Detach { task } => {
                found.attached.remove(&task);
            }
            ToDeputy::Identity { .. }
            | ToDeputy::Link
            | ToDeputy::Undo { .. }
            | ToDeputy::AllowCheck { .. }
            | ToDeputy::WindowChanged { .. }
            | ToDeputy::Fenced { .. } => {}
        }
    }

    fn deputy_says(&mut self, deputy: DeputyId, message: FromDeputy) {
        let alive = self.head.as_ref().map(|head| head.life);
        if let Some(life) = self.keeper.head.filter(|life| alive == Some(*life)) {
            let delay_ms = self.local_ms();
            let wire = Wire::DeputyToHead(deputy);
            self.send(
                wire,
                delay_ms,
                Event::DeputyToHead {
                    life,
                    deputy,
                    message,
                },
            );
        }
    }
}
