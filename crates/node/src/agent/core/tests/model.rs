//! Whatever the network, the clock and the head do: a machine around the core, and what must never
//! be so there.

use std::collections::{BTreeSet, HashMap, HashSet};

use proptest::prelude::*;
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::id::TaskId;
use wiglaf_wire::status::{Status, Usage};

use super::{Driver, LEASE_MS, launch, task, welcome};
use crate::agent::core::membership::WELCOME_WAIT_MS;
use crate::agent::core::{Effect, Event};

#[derive(Clone, Debug)]
enum Step {
    Connect,
    Disconnect,
    Welcome,
    Answer,
    Launch(u64),
    Kill(u64),
    Acknowledge(u64),
    SpawnAnswer(u64, bool),
    Exit(u64),
    Gone(u64),
    Drained(u64),
    RelayLost(u64),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..4_u64;
    prop_oneof![
        3 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        3 => Just(Step::Welcome),
        2 => Just(Step::Answer),
        4 => number.clone().prop_map(Step::Launch),
        1 => number.clone().prop_map(Step::Kill),
        2 => number.clone().prop_map(Step::Acknowledge),
        4 => (number.clone(), any::<bool>()).prop_map(|(n, ok)| Step::SpawnAnswer(n, ok)),
        2 => number.clone().prop_map(Step::Exit),
        2 => number.clone().prop_map(Step::Gone),
        2 => number.clone().prop_map(Step::Drained),
        1 => number.prop_map(Step::RelayLost),
        2 => (1..LEASE_MS / 2).prop_map(Step::Pass),
    ]
}

/// The machine around a core: what lives there.
#[derive(Default)]
struct Model {
    dialled: bool,
    linked: bool,
    starting: HashSet<TaskId>,
    alive: HashSet<TaskId>,
    killed: HashSet<TaskId>,
    collecting: HashSet<TaskId>,
    draining: HashSet<TaskId>,
    told: HashMap<TaskId, u32>,
    unanswered: BTreeSet<u64>,
    /// When the lease ends by our own reckoning.
    lease_until: u64,
    sent_at: HashMap<u64, u64>,
    hello_at: u64,
}

impl Model {
    fn apply(&mut self, now_ms: u64, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Dial => {
                    assert!(!self.linked && !self.dialled, "dialled twice");
                    self.dialled = true;
                }
                Effect::HangUp => self.hung_up(),
                Effect::Send(message) => {
                    assert!(self.linked, "{message:?} went nowhere");
                    match message {
                        FromAgent::Hello { tasks, .. } => {
                            self.hello_at = now_ms;
                            for report in tasks.iter().filter(|report| report.ended.is_some()) {
                                *self.told.entry(report.task).or_default() += 1;
                            }
                        }
                        FromAgent::Ended { task, .. } => {
                            *self.told.entry(task).or_default() += 1;
                            assert!(!self.alive.contains(&task) && !self.starting.contains(&task));
                        }
                        _ => {}
                    }
                    for (task, times) in &self.told {
                        assert!(*times <= 1, "the end of {task} was told {times} times");
                    }
                }
                Effect::Renew { sequence } => {
                    self.unanswered.insert(sequence);
                    self.sent_at.insert(sequence, now_ms);
                }
                Effect::Spawn { task, .. } => {
                    assert!(now_ms < self.lease_until, "launched without a lease");
                    assert!(!self.alive.contains(&task), "two incarnations of {task}");
                    assert!(self.starting.insert(task), "{task} is being spawned twice");
                }
                Effect::KillTree { task, .. } => {
                    self.killed.insert(task);
                }
                Effect::KillEverything => self.killed.extend(&self.alive),
                Effect::CollectLeftovers { task } => {
                    assert!(self.collecting.insert(task));
                }
                Effect::WaitDrained { task, .. } => {
                    self.draining.insert(task);
                }
                Effect::CloseTask { task } => {
                    self.draining.remove(&task);
                }
                _ => {}
            }
        }
    }

    fn hung_up(&mut self) {
        self.linked = false;
        self.dialled = false;
        self.told.clear();
        self.unanswered.clear();
    }

    /// What the machine makes of the step; `None` when it can't happen now.
    fn event(&mut self, now_ms: u64, step: &Step) -> Option<Event> {
        let message = |message| self.linked.then_some(Event::Message(message));
        match *step {
            Step::Connect => {
                let connects = std::mem::take(&mut self.dialled);
                self.linked |= connects;
                connects.then_some(Event::Connected)
            }
            Step::Disconnect => {
                let was_up = self.linked || self.dialled;
                self.hung_up();
                was_up.then_some(Event::Disconnected)
            }
            Step::Welcome => {
                let event = message(welcome())?;
                if self.hello_at + WELCOME_WAIT_MS > now_ms {
                    self.lease_until = self.lease_until.max(self.hello_at + LEASE_MS);
                }
                Some(event)
            }
            Step::Answer => {
                let sequence = self.unanswered.pop_first().filter(|_| self.linked)?;
                self.lease_until = self.lease_until.max(self.sent_at[&sequence] + LEASE_MS);
                Some(Event::Message(ToAgent::Renewed { sequence }))
            }
            Step::Launch(n) => message(launch(n, n == 3)),
            Step::Kill(n) => message(ToAgent::Kill { task: task(n) }),
            Step::Acknowledge(n) => {
                // A head acknowledges what it was told.
                self.told.remove(&task(n)).filter(|_| self.linked)?;
                Some(Event::Message(ToAgent::Acknowledge { task: task(n) }))
            }
            Step::SpawnAnswer(n, ok) => {
                self.starting.take(&task(n))?;
                if ok {
                    self.alive.insert(task(n));
                    return Some(Event::Spawned { task: task(n) });
                }
                let status = Status::Failed {
                    code: 127,
                    reason: "none".into(),
                };
                Some(Event::SpawnFailed {
                    task: task(n),
                    status,
                })
            }
            Step::Exit(n) => {
                self.alive.take(&task(n))?;
                self.killed.remove(&task(n));
                Some(Event::MainExited {
                    task: task(n),
                    status: Status::Exited(0),
                    usage: Usage::default(),
                })
            }
            Step::Gone(n) => {
                self.collecting.take(&task(n))?;
                Some(Event::TaskGone {
                    task: task(n),
                    leftovers: 0,
                })
            }
            Step::Drained(n) => {
                self.draining.take(&task(n))?;
                Some(Event::Drained { task: task(n) })
            }
            Step::RelayLost(n) => Some(Event::RelayLost {
                task: task(n),
                reason: "gone".into(),
            }),
            Step::Pass(_) => Some(Event::Tick),
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_no_task_runs_twice_or_outlives_the_lease(
        steps in proptest::collection::vec(step(), 1..200)
    ) {
        let mut driver = Driver::new();
        let mut model = Model::default();
        for step in steps {
            if let Step::Pass(ms) = step {
                driver.now_ms += ms;
            }
            // The loop never sleeps beyond a deadline by more than the machine made it.
            if driver.core.next_deadline().is_some_and(|at| at <= driver.now_ms) {
                let effects = driver.event(Event::Tick);
                model.apply(driver.now_ms, effects);
            }
            if let Some(event) = model.event(driver.now_ms, &step) {
                let effects = driver.event(event);
                model.apply(driver.now_ms, effects);
            }
            if model.lease_until <= driver.now_ms {
                for task in &model.alive {
                    prop_assert!(model.killed.contains(task), "{task} outlives the lease");
                }
            }
        }
    }
}
