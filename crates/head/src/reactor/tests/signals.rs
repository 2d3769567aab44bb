//! Signals: for whom they are, who may send them, and those that come early.

use super::*;

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
