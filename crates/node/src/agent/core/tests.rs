//! The core against a hand-played head and machine: here the life of its tasks.

mod membership;
mod model;

use wiglaf_wire::agent::{FromAgent, Machine, SignalScope, ToAgent};
use wiglaf_wire::id::{DeputyId, Incarnation, JobId, NodeId, Pid, TaskId};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::{Status, Usage};

use super::membership::LAST_REDIAL_MS;
use super::tasks::KILLED_DRAIN_MS;
use super::{Core, Effect, Event};

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
            leave,
            ..LaunchSpec::plain(&["true"])
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
