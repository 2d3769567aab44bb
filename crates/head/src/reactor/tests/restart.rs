//! A head that was started anew, while the keeper kept the ghosts.

use super::*;

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
