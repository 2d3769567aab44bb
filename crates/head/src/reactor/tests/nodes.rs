//! Nodes that fall silent, come back, start anew and leave.

use super::*;

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
