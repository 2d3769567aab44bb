use proptest::prelude::*;

use super::*;

const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;
const COOKED: GhostMode = GhostMode {
    pump: false,
    raw: false,
};

fn running() -> Ghost {
    let mut ghost = Ghost::new(COOKED);
    ghost.step(Event::Seized).unwrap();
    ghost
}

fn after(events: impl IntoIterator<Item = Event>) -> Ghost {
    let mut ghost = running();
    for event in events {
        ghost.step(event).unwrap();
    }
    ghost
}

const fn told(signal: u8, from_kernel: bool) -> Effect {
    Effect::Report(Report::Signal {
        signal,
        from_kernel,
    })
}

#[test]
fn a_signal_is_swallowed_and_told() {
    let mut ghost = running();
    assert_eq!(
        ghost.step(Event::Delivery(SIGINT, Sender::Kernel)).unwrap(),
        [Effect::Resume(0), told(SIGINT, true)]
    );
    assert_eq!(
        ghost.step(Event::Delivery(SIGTERM, Sender::Other)).unwrap(),
        [Effect::Resume(0), told(SIGTERM, false)]
    );
    assert_eq!(ghost.state(), State::Running);
}

#[test]
fn sigstop_stops_at_once_and_is_told() {
    let mut ghost = running();
    assert_eq!(
        ghost.step(Event::Delivery(SIGSTOP, Sender::Other)).unwrap(),
        [Effect::Resume(SIGSTOP), told(SIGSTOP, false)]
    );
    assert_eq!(
        ghost.step(Event::GroupStop(SIGSTOP)).unwrap(),
        [Effect::Listen, Effect::Report(Report::Stopped(SIGSTOP))]
    );
    // Its remote process has stopped too, in answer: nothing is left to do.
    assert_eq!(ghost.step(Event::Stop(SIGSTOP)).unwrap(), []);
}

#[test]
fn a_remote_stop_lets_one_signal_through() {
    let mut ghost = after([Event::Stop(SIGTSTP)]);
    assert_eq!(
        ghost.step(Event::Delivery(SIGTERM, Sender::Other)).unwrap(),
        [Effect::Resume(0), told(SIGTERM, false)]
    );
    assert_eq!(
        ghost
            .step(Event::Delivery(SIGTSTP, Sender::Itself))
            .unwrap(),
        [Effect::Resume(SIGTSTP)]
    );
    // In an orphaned process group it does not stop: the next Ctrl-Z is an ordinary one again.
    assert_eq!(
        ghost
            .step(Event::Delivery(SIGTSTP, Sender::Kernel))
            .unwrap(),
        [Effect::Resume(0), told(SIGTSTP, true)]
    );
}

#[test]
fn a_merged_stop_is_not_lost() {
    let mut ghost = after([Event::Stop(SIGTSTP)]);
    let effects = ghost
        .step(Event::Delivery(SIGTSTP, Sender::Kernel))
        .unwrap();
    assert_eq!(effects[0], Effect::Resume(SIGTSTP));
    assert_eq!(ghost.state(), State::Stopping(SIGTSTP));
}

#[test]
fn a_stop_overtaken_by_continue_does_not_stop() {
    let mut ghost = after([Event::Stop(SIGTSTP), Event::Continue]);
    assert_eq!(
        ghost
            .step(Event::Delivery(SIGTSTP, Sender::Itself))
            .unwrap(),
        [Effect::Resume(0)]
    );
}

#[test]
fn fg_continues_and_is_told_but_the_heads_own_continue_is_not() {
    let mut ghost = after([Event::GroupStop(SIGTSTP), Event::Trap]);
    assert_eq!(
        ghost.step(Event::Delivery(SIGCONT, Sender::Other)).unwrap(),
        [Effect::Resume(SIGCONT), Effect::Report(Report::Continued)]
    );
    let mut ghost = after([Event::GroupStop(SIGTSTP)]);
    assert_eq!(
        ghost.step(Event::Continue).unwrap(),
        [Effect::Kill(SIGCONT)]
    );
    assert_eq!(ghost.step(Event::Trap).unwrap(), [Effect::Resume(0)]);
    assert_eq!(
        ghost
            .step(Event::Delivery(SIGCONT, Sender::Keeper))
            .unwrap(),
        [Effect::Resume(SIGCONT)]
    );
}

#[test]
fn a_raw_terminal_is_raw_again_after_continue() {
    let mut ghost = Ghost::new(GhostMode {
        pump: true,
        raw: true,
    });
    ghost.step(Event::Seized).unwrap();
    let effects = ghost.step(Event::Delivery(SIGCONT, Sender::Other)).unwrap();
    assert!(effects.contains(&Effect::Send(Packet::Raw)));
}

#[test]
fn a_stopped_ghost_is_continued_to_finish() {
    let mut ghost = after([Event::GroupStop(SIGTSTP)]);
    assert_eq!(
        ghost
            .step(Event::Finish(GhostEnd::Exit(3), Some("why".into())))
            .unwrap(),
        [
            Effect::Send(Packet::Text("why".into())),
            Effect::Send(Packet::Exit(3)),
            Effect::Kill(SIGCONT)
        ]
    );
    assert_eq!(ghost.step(Event::Trap).unwrap(), [Effect::Resume(0)]);
    assert_eq!(
        ghost.step(Event::Died(GhostEnd::Exit(3))).unwrap(),
        [Effect::Reap, Effect::Report(Report::Gone)]
    );
}

#[test]
fn death_by_signal_injects_only_that_signal() {
    let mut ghost = after([Event::Finish(GhostEnd::Signal(SIGINT), None)]);
    assert_eq!(
        ghost.step(Event::Delivery(SIGTERM, Sender::Other)).unwrap(),
        [Effect::Resume(0)]
    );
    assert_eq!(
        ghost.step(Event::Delivery(SIGINT, Sender::Itself)).unwrap(),
        [Effect::Resume(SIGINT)]
    );
}

#[test]
fn an_unasked_death_waits_for_finish() {
    let mut ghost = running();
    let end = GhostEnd::Signal(SIGKILL);
    assert_eq!(
        ghost.step(Event::Died(end)).unwrap(),
        [Effect::Report(Report::Died(end))]
    );
    assert_eq!(ghost.step(Event::Continue).unwrap(), []);
    assert_eq!(
        ghost.step(Event::Finish(GhostEnd::Exit(0), None)).unwrap(),
        [Effect::Reap, Effect::Report(Report::Gone)]
    );
    assert!(ghost.step(Event::Continue).is_err());
}

#[test]
fn a_fault_kills() {
    let sender = Sender::of(SIGSEGV, 1, 0, 10, 20);
    assert_eq!(
        running().step(Event::Delivery(SIGSEGV, sender)).unwrap(),
        [Effect::Kill(9)]
    );
}

#[test]
fn senders_are_told_apart() {
    assert_eq!(Sender::of(SIGINT, 0x80, 0, 10, 20), Sender::Kernel);
    assert_eq!(Sender::of(SIGSEGV, 0, 30, 10, 20), Sender::Other);
    assert_eq!(Sender::of(SIGTSTP, 0, 10, 10, 20), Sender::Itself);
    assert_eq!(Sender::of(SIGCONT, -6, 20, 10, 20), Sender::Keeper);
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let bytes = Packet::Text("ü".repeat(5000)).bytes();
    assert!(bytes.len() <= 1 + MAX_COMPLAINT);
    assert!(std::str::from_utf8(&bytes[1..]).unwrap().ends_with("ü\n"));
}

#[test]
fn the_table() {
    insta::assert_snapshot!(table());
}

/// Every state and event, with one representative of each: the picture of the machine.
fn table() -> String {
    let end = GhostEnd::Signal(SIGTERM);
    let states = [
        State::Seizing,
        State::Running,
        State::Stopping(SIGTSTP),
        State::Stopped(SIGTSTP),
        State::Finishing(end),
        State::Dead(GhostEnd::Signal(SIGKILL)),
        State::Gone,
    ];
    let events = [
        Event::Seized,
        Event::Delivery(SIGTERM, Sender::Other),
        Event::Delivery(SIGSTOP, Sender::Other),
        Event::Delivery(SIGTSTP, Sender::Itself),
        Event::Delivery(SIGTTIN, Sender::Kernel),
        Event::Delivery(SIGCONT, Sender::Other),
        Event::Delivery(SIGCONT, Sender::Keeper),
        Event::Delivery(SIGSEGV, Sender::Fault),
        Event::GroupStop(SIGTSTP),
        Event::Trap,
        Event::Died(end),
        Event::Finish(end, None),
        Event::Stop(SIGTSTP),
        Event::Continue,
        Event::Overdue,
    ];
    let mut lines = String::new();
    for state in states {
        for event in &events {
            let mut ghost = Ghost {
                state,
                mode: COOKED,
            };
            if let Ok(effects) = ghost.step(event.clone()) {
                lines += &format!("{event:?}: {state:?} → {:?} {effects:?}\n", ghost.state);
            }
        }
    }
    lines
}

fn any_event() -> impl Strategy<Value = Event> {
    let sender = prop_oneof![
        Just(Sender::Kernel),
        Just(Sender::Itself),
        Just(Sender::Keeper),
        Just(Sender::Other),
        Just(Sender::Fault)
    ];
    let end = prop_oneof![
        (0..=255_u8).prop_map(GhostEnd::Exit),
        (1..=31_u8).prop_map(GhostEnd::Signal)
    ];
    prop_oneof![
        Just(Event::Seized),
        (1..=64_u8, sender).prop_map(|(signal, sender)| Event::Delivery(signal, sender)),
        (19..=22_u8).prop_map(Event::GroupStop),
        Just(Event::Trap),
        end.clone().prop_map(Event::Died),
        end.prop_map(|end| Event::Finish(end, None)),
        (19..=22_u8).prop_map(Event::Stop),
        Just(Event::Continue),
        Just(Event::Overdue),
    ]
}

proptest! {
    /// P1: whatever the order, one `Gone`, only after `Finish`, and nothing after it; the reap
    /// comes right before it. An invalid event changes nothing.
    #[test]
    fn gone_once_and_only_after_finish(events in proptest::collection::vec(any_event(), 0..60)) {
        let mut ghost = Ghost::new(COOKED);
        let (mut finished, mut died, mut gone) = (false, false, 0);
        for event in events {
            let before = ghost.state();
            let asked = matches!(event, Event::Finish(..));
            let dies = matches!(event, Event::Died(_));
            match ghost.step(event) {
                Err(_) => prop_assert_eq!(ghost.state(), before),
                Ok(effects) => {
                    finished |= asked;
                    died |= dies;
                    prop_assert_eq!(gone, 0, "nothing is valid after Gone");
                    let stop_answered = effects
                        .iter()
                        .filter(|e| matches!(e, Effect::Resume(_) | Effect::Listen))
                        .count();
                    prop_assert!(stop_answered <= 1);
                    if let Some(at) = effects.iter().position(|e| *e == Effect::Report(Report::Gone)) {
                        prop_assert!(finished && died);
                        prop_assert_eq!(&effects[at - 1], &Effect::Reap);
                        gone += 1;
                    }
                }
            }
        }
        // From wherever it stands, death and `Finish` bring it to its end.
        for event in [Event::Seized, Event::Finish(GhostEnd::Exit(0), None), Event::Died(GhostEnd::Exit(0)), Event::Finish(GhostEnd::Exit(0), None)] {
            if let Ok(effects) = ghost.step(event) {
                gone += effects.iter().filter(|e| **e == Effect::Report(Report::Gone)).count();
            }
        }
        prop_assert_eq!(gone, 1);
    }
}
