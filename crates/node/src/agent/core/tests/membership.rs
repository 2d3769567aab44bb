//! The lease, the connection and leaving.

use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::status::Status;

use super::{Driver, LEASE_MS, ended, launch, task};
use crate::agent::core::lease::RENEWALS_PER_LEASE;
use crate::agent::core::membership::{FIRST_REDIAL_MS, LAST_REDIAL_MS, LEAVE_WAIT_MS};
use crate::agent::core::{Effect, Event};

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
