//! The reactor against a hand-played world: here the life of tasks. Invariants by their numbers in
//! docs/invariants.md.

use wiglaf_wire::agent::{FromAgent, Machine, SignalScope, TaskReport, ToAgent};
use wiglaf_wire::client::{NodeSelection, Reply, Request, RunRequest};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, Incarnation, JobId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostMode, GhostReport, ToKeeper};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::{Status, Usage};

use super::{Effect, Event, Policy, Reactor};

mod following;
mod nodes;
mod restart;
mod signals;
mod takeover;
mod views;

use crate::jobs::{Caller, ClientId};
use crate::node_table::NodeTable;

const LEASE_MS: u64 = 1_000;
const MARGIN_MS: u64 = 100;
const N1: NodeId = NodeId(1);
const DEPUTY: DeputyId = DeputyId(1);
const LIFE: Incarnation = Incarnation(77);

struct World {
    reactor: Reactor,
    now_ms: u64,
}

impl World {
    fn new() -> World {
        let policy = Policy {
            lease_ms: LEASE_MS,
            margin_ms: MARGIN_MS,
            root_on_nodes: true,
            ..Policy::default()
        };
        let mut table = NodeTable::default();
        table.enrol("n1").unwrap();
        let reactor = Reactor::new(policy, table, Vec::new(), 1);
        let mut world = World {
            reactor,
            now_ms: 10_000,
        };
        let inventory = FromKeeper::Inventory {
            ghosts: vec![],
            deputies: vec![],
            last: true,
        };
        world.event(Event::FromKeeper(inventory));
        world
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.reactor.handle(self.now_ms, event, &mut effects);
        effects
    }

    fn join(&mut self, tasks: Vec<TaskReport>) -> Vec<Effect> {
        self.join_as(LIFE, tasks)
    }

    fn join_as(&mut self, incarnation: Incarnation, tasks: Vec<TaskReport>) -> Vec<Effect> {
        let version = wiglaf_wire::PROTOCOL_VERSION;
        let hello = FromAgent::Hello {
            version,
            incarnation,
            machine: Machine::default(),
            tasks,
        };
        self.event(Event::NodeHello { node: N1, hello })
    }

    /// A task of one process, up to the launch message.
    fn launch(&mut self) -> TaskId {
        self.event(Event::Request(
            caller(),
            Request::Run(Box::new(run_request(0))),
        ));
        self.event(ghost());
        self.event(Event::FromDeputy(
            DEPUTY,
            FromDeputy::Ready { tasks: vec![] },
        ));
        let task = TaskId {
            job: JobId(1),
            index: 0,
        };
        let effects = self.event(Event::FromKeeper(FromKeeper::Seized { task }));
        assert!(
            effects
                .iter()
                .any(|e| matches!(e, Effect::ToNode(N1, ToAgent::Launch { .. })))
        );
        task
    }

    fn running(&mut self) -> TaskId {
        self.join(vec![]);
        let task = self.launch();
        self.event(Event::FromNode(N1, FromAgent::Started { task }));
        task
    }

    fn ended(&mut self, task: TaskId, status: Status) -> Vec<Effect> {
        let ended = FromAgent::Ended {
            task,
            status,
            usage: Usage::default(),
            leftovers: 0,
        };
        self.event(Event::FromNode(N1, ended))
    }
}

fn ghost() -> Event {
    Event::Ghost {
        caller: caller(),
        index: 0,
        pid: Pid(4242),
        start_time: 5,
        mode: GhostMode::default(),
    }
}

fn caller() -> Caller {
    Caller {
        client: ClientId(9),
        pid: Pid(4242),
        start_time: 5,
        credential: Credential {
            uid: 1000,
            gid: 1000,
            groups: vec![],
        },
    }
}

fn run_request(timeout_ms: u64) -> RunRequest {
    RunRequest {
        selection: NodeSelection::default(),
        spec: LaunchSpec::plain(&["true"]),
        timeout_ms,
        detach: false,
        follow: false,
    }
}

fn finishes(effects: &[Effect]) -> Vec<GhostEnd> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::ToKeeper(ToKeeper::Finish { end, .. }) => Some(*end),
            _ => None,
        })
        .collect()
}

fn says(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::ToDeputy(_, ToDeputy::Say { text, .. }) => Some(text.clone()),
        _ => None,
    })
}

fn launches(effects: &[Effect]) -> usize {
    let is_launch = |e: &&Effect| matches!(e, Effect::ToNode(_, ToAgent::Launch { .. }));
    effects.iter().filter(is_launch).count()
}

fn seized_before_its_deputy_is_ready(world: &mut World) -> TaskId {
    world.join(vec![]);
    world.event(Event::Request(
        caller(),
        Request::Run(Box::new(run_request(300))),
    ));
    world.event(ghost());
    let task = TaskId {
        job: JobId(1),
        index: 0,
    };
    assert!(
        world
            .event(Event::FromKeeper(FromKeeper::Seized { task }))
            .is_empty()
    );
    task
}

#[test]
fn a_task_goes_from_its_request_to_its_acknowledgement() {
    let mut world = World::new();
    let task = world.running();
    let effects = world.ended(task, Status::Exited(7));
    assert_eq!(finishes(&effects), [GhostEnd::Exit(7)]);
    assert!(
        !effects
            .iter()
            .any(|e| matches!(e, Effect::ToNode(_, ToAgent::Acknowledge { .. })))
    );
    let effects = world.event(Event::FromKeeper(FromKeeper::Gone { task }));
    assert!(effects.contains(&Effect::ToNode(N1, ToAgent::Acknowledge { task })));
    assert_eq!(world.reactor.jobs().count(), 0);
}

#[test]
fn p2_an_end_that_is_told_twice_ends_the_ghost_once() {
    let mut world = World::new();
    let task = world.running();
    world.ended(task, Status::Exited(0));
    assert!(finishes(&world.ended(task, Status::Exited(0))).is_empty());
    world.event(Event::FromKeeper(FromKeeper::Gone { task }));
    let again = world.ended(task, Status::Exited(0));
    assert_eq!(again, [Effect::ToNode(N1, ToAgent::Acknowledge { task })]);
}

#[test]
fn nothing_is_launched_before_the_ghost_is_seized() {
    let mut world = World::new();
    world.join(vec![]);
    let mut effects = world.event(Event::Request(
        caller(),
        Request::Run(Box::new(run_request(0))),
    ));
    effects.extend(world.event(ghost()));
    assert!(
        !effects
            .iter()
            .any(|e| matches!(e, Effect::ToNode(_, ToAgent::Launch { .. })))
    );
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::ToKeeper(ToKeeper::Seize { .. })))
    );
}

#[test]
fn p1_a_killed_ghost_is_kept_until_its_node_has_confirmed_the_end() {
    let mut world = World::new();
    let task = world.running();
    let died = FromKeeper::Died {
        task,
        end: GhostEnd::Signal(9),
    };
    let effects = world.event(Event::FromKeeper(died));
    assert!(effects.contains(&Effect::ToNode(N1, ToAgent::Kill { task })));
    assert!(finishes(&effects).is_empty());
    assert_eq!(
        finishes(&world.ended(task, Status::Exited(0))),
        [GhostEnd::Signal(9)]
    );
}

#[test]
fn a_timeout_kills_and_is_told_as_124() {
    let mut world = World::new();
    world.join(vec![]);
    world.event(Event::Request(
        caller(),
        Request::Run(Box::new(run_request(300))),
    ));
    world.event(ghost());
    world.event(Event::FromDeputy(
        DEPUTY,
        FromDeputy::Ready { tasks: vec![] },
    ));
    let task = TaskId {
        job: JobId(1),
        index: 0,
    };
    world.event(Event::FromKeeper(FromKeeper::Seized { task }));
    world.event(Event::FromNode(N1, FromAgent::Started { task }));
    world.now_ms += 300;
    assert!(
        world
            .event(Event::Tick)
            .contains(&Effect::ToNode(N1, ToAgent::Kill { task }))
    );
    let effects = world.ended(task, Status::Signaled(9));
    assert!(says(&effects).unwrap().contains("--timeout"));
}

#[test]
fn a_command_is_let_go_only_when_its_deputy_has_the_streams() {
    let mut world = World::new();
    let task = seized_before_its_deputy_is_ready(&mut world);
    let effects = world.event(Event::FromDeputy(
        DEPUTY,
        FromDeputy::Ready { tasks: vec![] },
    ));
    assert_eq!(launches(&effects), 1);
    assert!(effects.contains(&Effect::Reply(ClientId(9), Reply::Go { task })));
}

#[test]
fn what_is_over_before_it_is_launched_is_not_launched() {
    // Its time is up.
    let mut world = World::new();
    seized_before_its_deputy_is_ready(&mut world);
    world.now_ms += 300;
    world.event(Event::Tick);
    let effects = world.event(Event::FromDeputy(
        DEPUTY,
        FromDeputy::Ready { tasks: vec![] },
    ));
    assert_eq!(
        (launches(&effects), finishes(&effects)),
        (0, vec![GhostEnd::Exit(124)])
    );
    // Its node is dead.
    let mut world = World::new();
    seized_before_its_deputy_is_ready(&mut world);
    assert!(finishes(&world.event(Event::NodeProvenDead(N1))).is_empty());
    let effects = world.event(Event::FromDeputy(
        DEPUTY,
        FromDeputy::Ready { tasks: vec![] },
    ));
    assert_eq!(
        (launches(&effects), finishes(&effects)),
        (0, vec![GhostEnd::Exit(125)])
    );
    // Its deputy is dead.
    let mut world = World::new();
    seized_before_its_deputy_is_ready(&mut world);
    let gone = FromKeeper::DeputyGone {
        deputy: DEPUTY,
        how: "was killed".into(),
    };
    let effects = world.event(Event::FromKeeper(gone));
    assert_eq!(
        (launches(&effects), finishes(&effects)),
        (0, vec![GhostEnd::Exit(125)])
    );
}

#[test]
fn a_launching_command_hears_that_the_keeper_has_died() {
    let mut world = World::new();
    seized_before_its_deputy_is_ready(&mut world);
    let effects = world.event(Event::KeeperLost);
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Reply(_, Reply::Refused { .. })))
    );
}

#[test]
fn after_the_keepers_death_ended_tasks_are_acknowledged_and_nothing_is_placed() {
    let mut world = World::new();
    let task = world.running();
    world.ended(task, Status::cluster_failed("why"));
    let mut next = caller();
    next.client = ClientId(10);
    world.event(Event::Request(next, Request::Run(Box::new(run_request(0)))));
    let effects = world.event(Event::KeeperLost);
    assert!(effects.contains(&Effect::ToNode(N1, ToAgent::Acknowledge { task })));
    assert!(
        !effects.iter().any(|e| matches!(e, Effect::ToKeeper(_))),
        "nobody would hear it"
    );
}

#[test]
fn a_ghost_that_dies_while_its_user_is_told_leaves_nothing_with_the_deputy() {
    let mut world = World::new();
    let task = world.running();
    world.ended(task, Status::cluster_failed("why"));
    let died = FromKeeper::Died {
        task,
        end: GhostEnd::Signal(9),
    };
    let effects = world.event(Event::FromKeeper(died));
    assert!(effects.contains(&Effect::ToDeputy(DEPUTY, ToDeputy::Detach { task })));
    assert_eq!(finishes(&effects), [GhostEnd::Signal(9)]);
}
