//! Advisory locks of nodes and head are one set of locks (V5).

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::files::ground::Place;
use crate::files::{At, Ground, on_both_grounds};

on_both_grounds! {
    v5_locks_hold_across_nodes_and_head(2),
    v5_a_lock_protects_what_is_read_and_written(2),
    v5_locks_end_with_their_holder(2),
}

const STYLES: [&str; 3] = ["posix", "ofd", "flock"];
const PAIRS: [(At, At); 4] = [
    (At::Node(1), At::Node(2)),
    (At::Node(1), At::Head),
    (At::Head, At::Node(2)),
    (At::Node(2), At::Node(1)),
];
/// A lock that is not granted within this time is taken not to be.
const A_WHILE: Duration = Duration::from_millis(60);
const ROUNDS: u32 = 60;

/// `EAGAIN`, the one errno that Linux gives for a lock that somebody has.
const AGAIN: i64 = 11;

fn open(place: &mut Place, file: &str) {
    place.ask(&format!("opened('l', '{file}', os.O_RDWR)"));
}

fn v5_locks_hold_across_nodes_and_head(ground: &Ground) {
    let mut places: Vec<Place> = ground.everywhere().map(|at| ground.place(at)).collect();
    for (number, style) in STYLES.iter().enumerate() {
        let file = ground.path(&format!("lock{number}"));
        fs::write(&file, "").unwrap();
        for place in &mut places {
            open(place, &file);
        }
        for pair in PAIRS {
            let [one, two] = pick(&mut places, pair);
            let try_lock = |kind: &str| format!("lock('{style}', 'l', {kind})");
            one.ask(&try_lock("EXCLUSIVE"));
            assert_eq!(
                two.attempt(&try_lock("SHARED")),
                Err(AGAIN),
                "{style} {pair:?}"
            );
            assert_eq!(
                two.attempt(&try_lock("EXCLUSIVE")),
                Err(AGAIN),
                "{style} {pair:?}"
            );
            // Who waits gets it when it is free, and not before.
            two.send(&format!("lock('{style}', 'l', EXCLUSIVE, wait=True)"));
            assert!(
                two.answer_within(A_WHILE).is_none(),
                "{style} {pair:?}: granted to both"
            );
            one.ask(&try_lock("NONE"));
            two.answer().unwrap();
            assert_eq!(
                one.attempt(&try_lock("SHARED")),
                Err(AGAIN),
                "{style} {pair:?}"
            );
            two.ask(&try_lock("NONE"));
            one.ask(&try_lock("SHARED"));
            two.ask(&try_lock("SHARED"));
            assert_eq!(
                two.attempt(&try_lock("EXCLUSIVE")),
                Err(AGAIN),
                "{style} {pair:?}"
            );
            one.ask(&try_lock("NONE"));
            two.ask(&try_lock("EXCLUSIVE"));
            two.ask(&try_lock("NONE"));
            if *style == "flock" {
                continue;
            }
            one.ask(&format!(
                "lock('{style}', 'l', EXCLUSIVE, start=100, length=50)"
            ));
            two.ask(&format!(
                "lock('{style}', 'l', EXCLUSIVE, start=0, length=100)"
            ));
            two.ask(&format!("lock('{style}', 'l', SHARED, start=150)"));
            let inside = format!("lock('{style}', 'l', SHARED, start=149, length=1)");
            assert_eq!(two.attempt(&inside), Err(AGAIN), "{style} {pair:?}");
            let found = two.ask("holder('l', EXCLUSIVE, 120, 1)");
            assert_eq!(found, json!([1, 100, 50]), "{style} {pair:?}");
            for place in [one, two] {
                place.ask(&try_lock("NONE"));
            }
        }
        for place in &mut places {
            place.ask("closed('l')");
        }
    }
}

fn v5_a_lock_protects_what_is_read_and_written(ground: &Ground) {
    let mut places: Vec<Place> = ground.everywhere().map(|at| ground.place(at)).collect();
    for style in STYLES {
        for way in ["count_under_lock", "count_under_lock_kept_open"] {
            let file = ground.path(&format!("{way}-{style}"));
            fs::write(&file, "0").unwrap();
            for place in &mut places {
                place.send(&format!("{way}('{style}', '{file}', {ROUNDS})"));
            }
            for place in &mut places {
                place.answer().unwrap();
            }
            let expected = ROUNDS * u32::try_from(places.len()).unwrap();
            let counted = fs::read_to_string(&file).unwrap();
            assert_eq!(counted, expected.to_string(), "{way} by {style}");
        }
    }
}

fn v5_locks_end_with_their_holder(ground: &Ground) {
    for style in STYLES {
        let file = ground.path(&format!("held-{style}"));
        fs::write(&file, "").unwrap();
        let mut head = ground.place(At::Head);
        open(&mut head, &file);
        // Killed while holding; killed while waiting; closed; gone by its own end.
        for end in ["kill", "waiter", "close", "finish"] {
            let mut holder = ground.place(At::Node(1));
            open(&mut holder, &file);
            holder.ask(&format!("lock('{style}', 'l', EXCLUSIVE)"));
            head.send(&format!("lock('{style}', 'l', EXCLUSIVE, wait=True)"));
            assert!(
                head.answer_within(A_WHILE).is_none(),
                "{style}: granted to both"
            );
            match end {
                "kill" => holder.kill(),
                "waiter" => {
                    let mut waiter = ground.place(At::Node(2));
                    open(&mut waiter, &file);
                    waiter.send(&format!("lock('{style}', 'l', EXCLUSIVE, wait=True)"));
                    assert!(waiter.answer_within(A_WHILE).is_none());
                    waiter.kill();
                    holder.ask(&format!("lock('{style}', 'l', NONE)"));
                }
                "close" => {
                    holder.ask("closed('l')");
                }
                _ => assert_eq!(holder.finish(), Some(0)),
            }
            head.answer()
                .unwrap_or_else(|errno| panic!("{style} {end}: errno {errno}"));
            head.ask(&format!("lock('{style}', 'l', NONE)"));
        }
    }
}

fn pick(places: &mut [Place], (one, two): (At, At)) -> [&mut Place; 2] {
    let index = |at: At| match at {
        At::Head => 0,
        At::Node(number) => usize::try_from(number).expect("small"),
    };
    places
        .get_disjoint_mut([index(one), index(two)])
        .expect("two different places")
}
