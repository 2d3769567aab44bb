//! The reactor against a hand-played world. Invariants by their numbers in docs/invariants.md.

use wiglaf_wire::agent::{FromAgent, Machine, SignalScope, TaskReport, ToAgent};
use wiglaf_wire::client::{NodeSelection, Reply, Request, RunRequest};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, Incarnation, JobId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostMode, GhostReport, ToKeeper};
use wiglaf_wire::launch::{Credential, LaunchSpec, StdioKind, WindowSize};
use wiglaf_wire::status::{Status, Usage};

use super::{Effect, Event, Policy, Reactor};

mod following;
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
        selection: NodeSelection {
            nodes: None,
            all: false,
            exclude: None,
            prefer: Vec::new(),
            node_count: None,
            task_count: None,
            exclusive: false,
            now: false,
            memory_kib: None,
        },
        spec: LaunchSpec {
            program: None,
            argv: vec![b"true".to_vec()],
            env: vec![],
            cwd: b"/".to_vec(),
            umask: 0,
            limits: vec![],
            ignored_signals: 0,
            blocked_signals: 0,
            stdio: [StdioKind::Relayed; 3],
            window: WindowSize::default(),
            leave: false,
            private_tmp: false,
            undo: false,
            host_name: None,
        },
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
fn p4_a_silent_node_is_dead_only_after_last_answer_lease_and_margin() {
    let mut world = World::new();
    let task = world.running();
    world.now_ms += 400;
    let renew = FromAgent::Renew {
        sequence: 1,
        load_centi: 0,
        available_kib: 0,
    };
    world.event(Event::FromNode(N1, renew));
    let answered = world.now_ms;
    world.event(Event::NodeLost(N1));
    world.now_ms = answered + LEASE_MS + MARGIN_MS - 1;
    assert!(says(&world.event(Event::Tick)).is_none());
    world.now_ms += 1;
    let effects = world.event(Event::Tick);
    let text = says(&effects).expect("the task is declared lost");
    assert!(text.contains("n1 fell silent"), "{text}");
    // Its links may last longer than its lease.
    let fenced = ToDeputy::Fenced { node: N1 };
    assert!(effects.contains(&Effect::ToDeputy(DEPUTY, fenced)));
    let effects = world.event(Event::FromDeputy(
        wiglaf_wire::id::DeputyId(1),
        FromDeputy::Said { task },
    ));
    assert_eq!(finishes(&effects), [GhostEnd::Exit(125)]);
}

#[test]
fn p4_a_suspected_node_is_not_answered() {
    let mut world = World::new();
    world.running();
    world.event(Event::NodeLost(N1));
    let renew = FromAgent::Renew {
        sequence: 2,
        load_centi: 0,
        available_kib: 0,
    };
    assert!(world.event(Event::FromNode(N1, renew)).is_empty());
}

#[test]
fn p4_another_life_of_the_agent_proves_the_earlier_ones_tasks_dead() {
    let mut world = World::new();
    world.running();
    let effects = world.join_as(Incarnation(78), vec![]);
    assert!(says(&effects).unwrap().contains("n1 was started again"));
}

#[test]
fn a_node_that_comes_back_in_time_keeps_its_tasks() {
    let mut world = World::new();
    let task = world.running();
    world.event(Event::NodeLost(N1));
    world.event(Event::FromKeeper(FromKeeper::Signal {
        task,
        signal: 10,
        from_kernel: false,
        leads_group: true,
    }));
    let report = TaskReport {
        task,
        pid: Pid(4242),
        ended: None,
        stopped: None,
    };
    let effects = world.join(vec![report]);
    assert!(says(&effects).is_none());
    let scope = SignalScope::Process;
    let signal = ToAgent::Signal {
        task,
        signal: 10,
        scope,
    };
    assert!(
        effects.contains(&Effect::ToNode(N1, signal)),
        "the signal was kept"
    );
}

#[test]
fn a_launch_that_was_lost_with_the_connection_is_sent_again() {
    let mut world = World::new();
    world.join(vec![]);
    let task = world.launch();
    world.event(Event::NodeLost(N1));
    let effects = world.join(vec![]);
    let again =
        |e: &Effect| matches!(e, Effect::ToNode(_, ToAgent::Launch { task: t, .. }) if *t == task);
    assert!(effects.iter().any(again));
}

#[test]
fn a_task_that_nobody_wants_is_killed() {
    let mut world = World::new();
    let task = TaskId {
        job: JobId(99),
        index: 0,
    };
    let report = TaskReport {
        task,
        pid: Pid(1),
        ended: None,
        stopped: None,
    };
    let effects = world.join(vec![report]);
    assert!(effects.contains(&Effect::ToNode(N1, ToAgent::Kill { task })));
}

#[test]
fn p5_the_terminals_signals_and_a_group_leaders_go_to_the_whole_group() {
    let mut world = World::new();
    let task = world.running();
    let mut scope_of = |signal, from_kernel, leads_group| {
        let message = FromKeeper::Signal {
            task,
            signal,
            from_kernel,
            leads_group,
        };
        world
            .event(Event::FromKeeper(message))
            .into_iter()
            .find_map(|effect| match effect {
                Effect::ToNode(_, ToAgent::Signal { scope, .. }) => Some(scope),
                _ => None,
            })
            .unwrap()
    };
    assert_eq!(scope_of(2, true, false), SignalScope::Group);
    assert_eq!(scope_of(15, false, true), SignalScope::Group);
    assert_eq!(scope_of(15, false, false), SignalScope::Process);
    assert_eq!(scope_of(10, false, true), SignalScope::Process);
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

fn restarted(world: &mut World) -> World {
    let record = {
        let job = world.reactor.jobs().next().unwrap();
        let task = job.tasks.values().next().unwrap();
        crate::jobs::TaskRecord::of(job, task).to_bytes()
    };
    let mut next = World::new();
    next.now_ms = world.now_ms + 50;
    let task = TaskId {
        job: JobId(1),
        index: 0,
    };
    let report = GhostReport {
        task,
        pid: Pid(4242),
        record,
        died: None,
    };
    let deputies = vec![(DEPUTY, caller().credential)];
    let inventory = FromKeeper::Inventory {
        ghosts: vec![report],
        deputies,
        last: true,
    };
    next.event(Event::FromKeeper(inventory));
    next.event(Event::FromDeputy(
        DEPUTY,
        FromDeputy::Ready { tasks: vec![task] },
    ));
    next
}

#[test]
fn p4_a_restarted_head_knows_its_tasks_and_counts_nodes_as_just_renewed() {
    let mut world = World::new();
    let task = world.running();
    let mut next = restarted(&mut world);
    next.now_ms += LEASE_MS + MARGIN_MS - 1;
    assert!(finishes(&next.event(Event::Tick)).is_empty());
    let report = TaskReport {
        task,
        pid: Pid(4242),
        ended: None,
        stopped: None,
    };
    next.join(vec![report]);
    assert_eq!(
        finishes(&next.ended(task, Status::Exited(3))),
        [GhostEnd::Exit(3)]
    );
}

#[test]
fn p4_a_command_that_asks_a_restarted_head_again_is_not_started_twice() {
    let mut world = World::new();
    let task = world.running();
    let mut next = restarted(&mut world);
    let report = TaskReport {
        task,
        pid: Pid(4242),
        ended: None,
        stopped: None,
    };
    next.join(vec![report]);
    let effects = next.event(Event::Request(
        caller(),
        Request::Run(Box::new(run_request(0))),
    ));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Reply(_, Reply::Placed { job: JobId(1), .. })))
    );
    let effects = next.event(ghost());
    assert!(effects.contains(&Effect::Reply(ClientId(9), Reply::Go { task })));
    assert!(
        !effects
            .iter()
            .any(|e| matches!(e, Effect::ToKeeper(ToKeeper::Seize { .. })))
    );
}

#[test]
fn others_processes_are_not_signalled() {
    let mut world = World::new();
    world.running();
    let mut stranger = caller();
    stranger.credential.uid = 1001;
    let effects = world.event(Event::Request(
        stranger.clone(),
        Request::Signal {
            pid: Pid(4242),
            signal: 15,
        },
    ));
    assert!(matches!(
        effects.as_slice(),
        [Effect::Reply(_, Reply::Refused { .. })]
    ));
    let effects = world.event(Event::Request(stranger, Request::Shutdown));
    assert!(matches!(
        effects.as_slice(),
        [Effect::Reply(_, Reply::Refused { .. })]
    ));
}

// What the simulator has found.

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
fn a_node_that_says_goodbye_is_gone_at_once() {
    let mut world = World::new();
    world.running();
    let effects = world.event(Event::FromNode(N1, FromAgent::Leaving));
    assert!(effects.contains(&Effect::DropNode(N1)), "{effects:?}");
    let says_so = |effect: &Effect| {
        matches!(effect,
        Effect::ToDeputy(_, ToDeputy::Say { text, .. }) if text.contains("left the cluster"))
    };
    assert!(effects.iter().any(says_so), "{effects:?}");
    assert!(world.event(Event::NodeLost(N1)).is_empty());
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
fn p4_a_restarted_head_waits_for_a_silent_node_longer_than_for_commands() {
    let mut world = World::new();
    let task = world.running();
    let mut next = restarted(&mut world);
    // Longer than the resume wait, shorter than the lease of a real cluster.
    next.reactor.policy.lease_ms = 60_000;
    next.now_ms += 20_000;
    assert!(finishes(&next.event(Event::Tick)).is_empty());
    assert!(
        next.reactor
            .next_deadline_ms()
            .is_some_and(|at| at > next.now_ms),
        "it would spin"
    );
    let report = TaskReport {
        task,
        pid: Pid(4242),
        ended: None,
        stopped: None,
    };
    let effects = next.join(vec![report]);
    assert!(!effects.contains(&Effect::ToNode(N1, ToAgent::Kill { task })));
    assert_eq!(
        finishes(&next.ended(task, Status::Exited(3))),
        [GhostEnd::Exit(3)]
    );
}

#[test]
fn p4_a_restarted_head_does_not_start_a_task_again_in_another_life_of_its_node() {
    let mut world = World::new();
    world.running();
    let mut next = restarted(&mut world);
    let effects = next.join_as(Incarnation(78), vec![]);
    assert_eq!(launches(&effects), 0);
    assert!(says(&effects).unwrap().contains("was started again"));
}

#[test]
fn p4_before_the_keeper_has_spoken_no_node_and_no_job_is_let_in() {
    let mut world = World::new();
    let mut table = NodeTable::default();
    table.enrol("n1").unwrap();
    world.reactor = Reactor::new(world.reactor.policy.clone(), table, Vec::new(), 1);
    assert_eq!(world.join(vec![]), [Effect::DropNode(N1)]);
    let run = Request::Run(Box::new(run_request(0)));
    assert!(world.event(Event::Request(caller(), run)).is_empty());
}

#[test]
fn p4_a_task_that_is_over_is_not_launched_for_a_command_that_asks_again() {
    let mut world = World::new();
    world.running();
    let mut next = restarted(&mut world);
    next.join_as(Incarnation(78), vec![]);
    next.event(Event::Request(
        caller(),
        Request::Run(Box::new(run_request(0))),
    ));
    assert_eq!(launches(&next.event(ghost())), 0);
}

#[test]
fn a_process_with_a_used_pid_is_not_taken_for_the_one_before() {
    let mut world = World::new();
    world.running();
    let mut next = restarted(&mut world);
    next.join(vec![]);
    let mut other = caller();
    other.start_time += 1;
    let effects = next.event(Event::Request(
        other,
        Request::Run(Box::new(run_request(0))),
    ));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Reply(_, Reply::Waiting { .. })))
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
fn a_deputy_that_died_while_no_head_was_there_is_missed() {
    let mut world = World::new();
    let task = world.running();
    let job = world.reactor.jobs().next().unwrap();
    let record = crate::jobs::TaskRecord::of(job, &job.tasks[&0]).to_bytes();
    let mut next = World::new();
    let report = GhostReport {
        task,
        pid: Pid(4242),
        record,
        died: None,
    };
    let inventory = FromKeeper::Inventory {
        ghosts: vec![report],
        deputies: vec![],
        last: true,
    };
    next.event(Event::FromKeeper(inventory));
    let report = TaskReport {
        task,
        pid: Pid(4242),
        ended: None,
        stopped: None,
    };
    assert!(
        next.join(vec![report])
            .contains(&Effect::ToNode(N1, ToAgent::Kill { task }))
    );
    assert_eq!(
        finishes(&next.ended(task, Status::Signaled(9))),
        [GhostEnd::Exit(125)]
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

#[test]
fn a_signal_that_comes_before_the_launch_follows_it() {
    let mut world = World::new();
    let task = seized_before_its_deputy_is_ready(&mut world);
    world.event(Event::Request(
        caller(),
        Request::Signal {
            pid: Pid(4242),
            signal: 15,
        },
    ));
    let effects = world.event(Event::FromDeputy(
        DEPUTY,
        FromDeputy::Ready { tasks: vec![] },
    ));
    let signal = ToAgent::Signal {
        task,
        signal: 15,
        scope: SignalScope::Process,
    };
    assert!(effects.contains(&Effect::ToNode(N1, signal)));
}
