use std::collections::{BTreeSet, HashMap, HashSet};

use proptest::prelude::*;
use wiglaf_wire::id::{DeputyId, JobId, NodeId};
use wiglaf_wire::launch::{Credential, LaunchSpec, StdioKind, WindowSize};

use super::lease::RENEWALS_PER_LEASE;
use super::*;

const LEASE_MS: u64 = 60_000;

fn task(number: u64) -> TaskId {
    TaskId {
        job: JobId(number),
        index: 0,
    }
}

fn launch(number: u64, leave: bool) -> ToAgent {
    ToAgent::Launch {
        task: task(number),
        pid: Pid(1000 + i32::try_from(number).unwrap()),
        credential: Credential {
            uid: 1,
            gid: 1,
            groups: vec![],
        },
        deputy: DeputyId(1),
        spec: Box::new(LaunchSpec {
            program: None,
            argv: vec![b"true".to_vec()],
            env: vec![],
            cwd: b"/".to_vec(),
            umask: 0o22,
            limits: vec![],
            ignored_signals: 0,
            blocked_signals: 0,
            stdio: [StdioKind::Relayed; 3],
            window: WindowSize::default(),
            leave,
            private_tmp: false,
            undo: false,
            host_name: None,
        }),
    }
}

fn welcome() -> ToAgent {
    ToAgent::Welcome {
        node: NodeId(1),
        name: "n1".into(),
        first_pid: Pid(100_000),
        end_pid: Pid(140_000),
        lease_ms: LEASE_MS,
    }
}

/// A core and what it has asked for, with a clock of its own.
struct Driver {
    core: Core,
    now_ms: u64,
    effects: Vec<Effect>,
}

impl Driver {
    fn new() -> Driver {
        let core = Core::new(
            Incarnation(0x0123_4567_89ab_cdef),
            Machine::default(),
            "here",
        );
        Driver {
            core,
            now_ms: 1_000,
            effects: Vec::new(),
        }
    }

    fn welcomed() -> Driver {
        let mut driver = Driver::new();
        assert_eq!(driver.event(Event::Tick), [Effect::Dial]);
        let hello = driver.event(Event::Connected);
        assert!(matches!(
            &hello[..],
            [Effect::Send(FromAgent::Hello { .. })]
        ));
        driver.message(welcome());
        driver
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        self.core.handle(self.now_ms, event, &mut self.effects);
        std::mem::take(&mut self.effects)
    }

    fn message(&mut self, message: ToAgent) -> Vec<Effect> {
        self.event(Event::Message(message))
    }

    fn pass(&mut self, ms: u64) -> Vec<Effect> {
        self.now_ms += ms;
        self.event(Event::Tick)
    }

    fn start(&mut self, number: u64) {
        let spawn = self.message(launch(number, false));
        assert!(matches!(&spawn[..], [Effect::Spawn { .. }]));
        let told = self.event(Event::Spawned { task: task(number) });
        assert_eq!(
            told,
            [Effect::Send(FromAgent::Started { task: task(number) })]
        );
    }

    fn exit(&mut self, number: u64) -> Vec<Effect> {
        self.event(Event::MainExited {
            task: task(number),
            status: Status::Exited(7),
            usage: Usage::default(),
        })
    }
}

fn ended(effects: &[Effect]) -> Option<(TaskId, &Status)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send(FromAgent::Ended { task, status, .. }) => Some((*task, status)),
        _ => None,
    })
}

#[test]
fn a_task_ends_when_its_leftovers_are_gone_and_its_output_has_arrived() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    assert_eq!(driver.exit(1), [Effect::CollectLeftovers { task: task(1) }]);
    let drain = driver.event(Event::TaskGone {
        task: task(1),
        leftovers: 2,
    });
    assert_eq!(
        drain,
        [Effect::WaitDrained {
            task: task(1),
            leave: false
        }]
    );
    let end = driver.event(Event::Drained { task: task(1) });
    assert_eq!(
        end,
        [
            Effect::CloseTask { task: task(1) },
            Effect::Send(FromAgent::Ended {
                task: task(1),
                status: Status::Exited(7),
                usage: Usage::default(),
                leftovers: 2,
            }),
        ]
    );
    assert!(
        driver
            .message(ToAgent::Acknowledge { task: task(1) })
            .is_empty()
    );
    assert!(driver.core.tasks.is_empty());
}

#[test]
fn leftovers_that_shall_stay_are_not_collected() {
    let mut driver = Driver::welcomed();
    driver.message(launch(1, true));
    driver.event(Event::Spawned { task: task(1) });
    assert_eq!(
        driver.exit(1),
        [Effect::WaitDrained {
            task: task(1),
            leave: true
        }]
    );
}

#[test]
fn a_launch_is_taken_once_and_only_by_a_member() {
    let mut driver = Driver::new();
    driver.event(Event::Tick);
    driver.event(Event::Connected);
    assert!(driver.message(launch(1, false)).is_empty());
    driver.message(welcome());
    driver.start(1);
    assert!(driver.message(launch(1, false)).is_empty());
}

#[test]
fn signals_and_kills_of_unknown_tasks_are_ignored() {
    let mut driver = Driver::welcomed();
    let scope = SignalScope::Process;
    assert!(
        driver
            .message(ToAgent::Signal {
                task: task(9),
                signal: 15,
                scope
            })
            .is_empty()
    );
    assert!(driver.message(ToAgent::Kill { task: task(9) }).is_empty());
    assert!(
        driver
            .message(ToAgent::Acknowledge { task: task(9) })
            .is_empty()
    );
}

#[test]
fn signals_wait_for_the_start_and_a_kill_beats_them() {
    let mut driver = Driver::welcomed();
    let scope = SignalScope::Group;
    driver.message(launch(1, false));
    assert!(
        driver
            .message(ToAgent::Signal {
                task: task(1),
                signal: 15,
                scope
            })
            .is_empty()
    );
    let effects = driver.event(Event::Spawned { task: task(1) });
    let pid = Pid(1001);
    assert_eq!(
        effects[1..],
        [Effect::Signal {
            task: task(1),
            pid,
            signal: 15,
            scope
        }]
    );

    driver.message(launch(2, false));
    driver.message(ToAgent::Signal {
        task: task(2),
        signal: 15,
        scope,
    });
    driver.message(ToAgent::Kill { task: task(2) });
    let effects = driver.event(Event::Spawned { task: task(2) });
    assert_eq!(
        effects[1..],
        [Effect::KillTree {
            task: task(2),
            pid: Pid(1002)
        }]
    );
}

#[test]
fn a_signal_out_of_range_goes_nowhere() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    for signal in [0, 65, 255] {
        let message = ToAgent::Signal {
            task: task(1),
            signal,
            scope: SignalScope::Tree,
        };
        assert!(driver.message(message).is_empty());
    }
}

#[test]
fn an_end_is_told_again_until_it_is_acknowledged() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    driver.event(Event::Disconnected);
    driver.exit(1);
    driver.event(Event::TaskGone {
        task: task(1),
        leftovers: 0,
    });
    assert_eq!(
        driver.event(Event::Drained { task: task(1) }),
        [Effect::CloseTask { task: task(1) }]
    );
    for _ in 0..2 {
        driver.pass(LAST_REDIAL_MS);
        let hello = driver.event(Event::Connected);
        let [Effect::Send(FromAgent::Hello { tasks, .. })] = &hello[..] else {
            panic!("{hello:?}")
        };
        assert_eq!(tasks[0].ended, Some((Status::Exited(7), Usage::default())));
        driver.message(welcome());
        driver.event(Event::Disconnected);
    }
    driver.pass(LAST_REDIAL_MS);
    driver.event(Event::Connected);
    driver.message(welcome());
    driver.message(ToAgent::Acknowledge { task: task(1) });
    driver.event(Event::Disconnected);
    driver.pass(LAST_REDIAL_MS);
    let hello = driver.event(Event::Connected);
    assert!(
        matches!(&hello[..], [Effect::Send(FromAgent::Hello { tasks, .. })] if tasks.is_empty())
    );
}

#[test]
fn the_lease_runs_from_when_the_answered_renewal_was_sent() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    assert_eq!(driver.pass(15_000), [Effect::Renew { sequence: 0 }]);
    driver.now_ms += 10_000;
    assert!(driver.message(ToAgent::Renewed { sequence: 0 }).is_empty());
    driver.event(Event::Disconnected);
    // Sent at 15 s after the welcome, so it ends at 75 s; now it is 25 s.
    let before = driver.pass(49_999);
    assert!(!before.contains(&Effect::KillEverything));
    assert!(driver.pass(1).contains(&Effect::KillEverything));
}

#[test]
fn what_the_lease_ended_is_told_as_the_clusters_failure() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    driver.event(Event::Disconnected);
    assert!(driver.pass(LEASE_MS).contains(&Effect::KillEverything));
    driver.exit(1);
    let end = driver.event(Event::TaskGone {
        task: task(1),
        leftovers: 0,
    });
    assert_eq!(end, [Effect::CloseTask { task: task(1) }]);
    driver.pass(LAST_REDIAL_MS);
    let hello = driver.event(Event::Connected);
    let [Effect::Send(FromAgent::Hello { tasks, .. })] = &hello[..] else {
        panic!("{hello:?}")
    };
    let Some((Status::Failed { code: 125, reason }, _)) = &tasks[0].ended else {
        panic!("{tasks:?}")
    };
    assert!(
        reason.starts_with("n1 ") && reason.contains("run the command again"),
        "{reason}"
    );
}

#[test]
fn a_late_launch_is_refused_while_the_lease_is_over() {
    let mut driver = Driver::welcomed();
    // The machine slept: the launch is older than the lease.
    driver.now_ms += LEASE_MS + 1;
    let effects = driver.message(launch(1, false));
    assert!(matches!(
        ended(&effects),
        Some((_, Status::Failed { code: 125, .. }))
    ));
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Spawn { .. }))
    );
}

#[test]
fn a_silent_head_is_dialled_anew_ever_more_slowly() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    driver.pass(LEASE_MS / 4);
    assert_eq!(driver.pass(LEASE_MS / 4), [Effect::HangUp]);
    let mut waits = Vec::new();
    for _ in 0..10 {
        let due = driver.core.next_deadline().unwrap();
        waits.push(due - driver.now_ms);
        driver.now_ms = due;
        assert!(driver.event(Event::Tick).contains(&Effect::Dial));
        driver.event(Event::Disconnected);
    }
    assert!(waits[0] <= FIRST_REDIAL_MS * 5 / 4, "{waits:?}");
    assert!(
        waits[9] >= LAST_REDIAL_MS / 2 && waits[9] <= LAST_REDIAL_MS * 5 / 4,
        "{waits:?}"
    );
}

#[test]
fn lost_streams_end_the_task_without_waiting_for_them() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    let effects = driver.event(Event::RelayLost {
        task: task(1),
        reason: "refused".into(),
    });
    assert_eq!(
        effects,
        [Effect::KillTree {
            task: task(1),
            pid: Pid(1001)
        }]
    );
    driver.exit(1);
    let effects = driver.event(Event::TaskGone {
        task: task(1),
        leftovers: 0,
    });
    assert!(matches!(
        ended(&effects),
        Some((_, Status::Failed { code: 125, .. }))
    ));
}

#[test]
fn a_killed_tasks_output_is_waited_for_only_so_long() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    driver.message(ToAgent::Kill { task: task(1) });
    driver.exit(1);
    driver.event(Event::TaskGone {
        task: task(1),
        leftovers: 0,
    });
    assert_eq!(
        ended(&driver.pass(KILLED_DRAIN_MS)),
        Some((task(1), &Status::Exited(7)))
    );
}

#[test]
fn an_agent_that_leaves_kills_its_work_tells_of_it_and_exits() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    assert_eq!(driver.message(ToAgent::Leave), [Effect::KillEverything]);
    driver.exit(1);
    driver.event(Event::TaskGone {
        task: task(1),
        leftovers: 0,
    });
    let effects = driver.event(Event::Drained { task: task(1) });
    assert!(matches!(
        ended(&effects),
        Some((_, Status::Failed { code: 125, .. }))
    ));
    let effects = driver.message(ToAgent::Acknowledge { task: task(1) });
    let last = [
        Effect::Send(FromAgent::Leaving),
        Effect::Exit { reason: None },
    ];
    assert_eq!(effects, last);
    assert_eq!(driver.core.next_deadline(), None);
}

#[test]
fn p4_an_agent_that_can_not_end_its_work_does_not_say_that_it_has_left() {
    let mut driver = Driver::welcomed();
    driver.start(1);
    driver.message(ToAgent::Leave);
    let effects = driver.pass(LEAVE_WAIT_MS);
    assert!(effects.contains(&Effect::Exit { reason: None }));
    assert!(
        !effects.contains(&Effect::Send(FromAgent::Leaving)),
        "{effects:?}"
    );
}

#[test]
fn a_refused_agent_exits_with_the_reason() {
    let mut driver = Driver::new();
    driver.event(Event::Tick);
    driver.event(Event::Connected);
    let effects = driver.message(ToAgent::Refused {
        reason: "unknown".into(),
    });
    assert_eq!(
        effects,
        [Effect::Exit {
            reason: Some("unknown".into())
        }]
    );
}

#[test]
fn an_idle_member_wakes_up_for_its_renewals_only() {
    let driver = Driver::welcomed();
    assert_eq!(
        driver.core.next_deadline(),
        Some(1_000 + LEASE_MS / RENEWALS_PER_LEASE)
    );
}

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
