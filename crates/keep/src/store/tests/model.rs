use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put(u32, u32),
    Get(u32, u32),
    Reopen,
    /// Without an index of the current segment.
    Crash,
    Bound(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (user, number) = (0..3_u32, 0..60_u32);
    let step = prop_oneof![
        10 => (user.clone(), number.clone()).prop_map(|(user, number)| Step::Put(user, number)),
        10 => (user, number).prop_map(|(user, number)| Step::Get(user, number)),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        1 => (20_u64..80).prop_map(|kib| Step::Bound(kib << 10)),
    ];
    proptest::collection::vec(step, 1..250)
}

/// Steps with bounds, or with room for all.
fn run(steps: &[Step], is_bounded: bool) {
    let mut place = Place::new(if is_bounded { 50 << 10 } else { 4 << 20 }, SMALL);
    let mut store = place.open();
    let mut kept = HashSet::new();
    for step in steps {
        match step {
            Step::Put(user, number) => {
                put(&mut store, *user, *number);
                kept.insert((*user, *number));
                assert!(get(&mut store, *user, *number));
            }
            Step::Get(user, number) => {
                let found = get(&mut store, *user, *number);
                let may = kept.contains(&(*user, *number));
                assert!(may || !found, "another user's");
                assert!(!may || found || is_bounded);
            }
            Step::Reopen | Step::Crash => {
                if matches!(step, Step::Crash) {
                    store.current = None;
                }
                drop(store);
                store = place.open();
            }
            Step::Bound(bytes) if is_bounded => {
                place.bounds.bytes = *bytes;
                drop(store);
                store = place.open();
            }
            Step::Bound(_) => {}
        }
        let Statistics { bytes, bound, .. } = store.statistics();
        assert!(bytes <= bound);
        assert_eq!(bytes, place.bytes());
    }
    for user in 0..3 {
        let digests: HashSet<_> = store.digests(user).collect();
        let of_user = kept.iter().filter(|(of, _)| *of == user);
        let may: HashSet<_> = of_user
            .map(|(_, number)| Digest::of(&data(*number)))
            .collect();
        assert!(digests.is_subset(&may));
        assert!(is_bounded || digests == may);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn a_user_has_exactly_what_it_has_put_while_there_is_room(steps in steps()) {
        run(&steps, false);
    }

    #[test]
    fn a_user_has_nothing_but_what_it_has_put(steps in steps()) {
        run(&steps, true);
    }
}
