use std::fs;
use std::ops::Range;
use std::slice::from_ref;

use proptest::prelude::*;

use super::*;

/// Pieces in the segment that is damaged; user 2 has the first, too.
const NUMBERS: [u32; 5] = [3, 8, 11, 21, 40];

/// A segment of some pieces, and where they are.
fn segment(is_complete: bool) -> (Place, Vec<u8>, Vec<Placed>) {
    let place = Place::new(1 << 20, SMALL);
    let mut store = place.open();
    for number in NUMBERS {
        put(&mut store, 1, number);
    }
    put(&mut store, 2, NUMBERS[0]);
    let rows = store.current.as_ref().map(|current| current.rows.clone());
    if !is_complete {
        store.current = None;
    }
    drop(store);
    let bytes = fs::read(place.segment(0)).expect("the segment");
    (place, bytes, rows.expect("some"))
}

/// Opens a damaged segment. All that doesn't overlap the damage must be there.
fn check(place: &Place, bytes: &[u8], rows: &[Placed], damaged: &[Range<usize>]) {
    for path in place.files() {
        fs::remove_file(path).expect("removed");
    }
    fs::write(place.segment(0), bytes).expect("written");
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(place.segment(0), mode).expect("its mode");
    let overlaps = |range: Range<usize>| {
        damaged
            .iter()
            .any(|damage| damage.start < range.end && range.start < damage.end)
    };
    let has_header = !overlaps(0..HEADER_BYTES);
    let is_whole = |placed: &Placed| {
        let start = placed.offset as usize;
        has_header && !overlaps(start..start + placed.row.exact_bytes())
    };
    for round in 0..2 {
        let mut store = place.open();
        for (number, placed) in NUMBERS.iter().zip(rows) {
            let found = get(&mut store, 1, *number);
            assert!(found || !is_whole(placed), "{number} {damaged:?}");
        }
        let shared = get(&mut store, 2, NUMBERS[0]);
        let is_shared = is_whole(&rows[0]) && is_whole(&rows[NUMBERS.len()]);
        assert!(shared || !is_shared, "{damaged:?}");
        for number in &NUMBERS[1..] {
            assert!(!get(&mut store, 2, *number), "another user's");
        }
        // What is written now is found, too.
        assert_eq!(get(&mut store, 3, 77), round == 1);
        put(&mut store, 3, 77);
        if round == 0 {
            store.current = None;
        }
    }
}

#[test]
fn a_torn_segment_has_what_is_before_the_tear() {
    for is_complete in [false, true] {
        let (place, bytes, rows) = segment(is_complete);
        for length in (0..bytes.len()).step_by(7).chain(0..HEADER_BYTES * 3) {
            check(
                &place,
                &bytes[..length],
                &rows,
                from_ref(&(length..usize::MAX)),
            );
        }
    }
}

#[test]
fn each_damaged_byte_costs_its_own_record() {
    for is_complete in [false, true] {
        let (place, bytes, rows) = segment(is_complete);
        let all_of_ends = bytes.len() - 200..bytes.len();
        for at in (0..bytes.len())
            .step_by(11)
            .chain(0..200)
            .chain(all_of_ends)
        {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            check(&place, &damaged, &rows, from_ref(&(at..at + 1)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn nothing_comes_of_damage_but_loss(
        is_complete: bool,
        changes in proptest::collection::vec((0..20_000_usize, 1..300_usize, any::<u8>()), 1..5),
    ) {
        let (place, mut bytes, rows) = segment(is_complete);
        let mut damaged = Vec::new();
        for (at, length, value) in changes {
            let start = at % bytes.len();
            let end = (start + length).min(bytes.len());
            bytes[start..end].fill(value);
            damaged.push(start..end);
        }
        check(&place, &bytes, &rows, &damaged);
    }
}

#[test]
fn what_is_written_over_a_tear_has_another_nonce() {
    let (place, bytes, rows) = segment(false);
    let last = rows[NUMBERS.len()].offset as usize;
    fs::write(place.segment(0), &bytes[..last + 20]).expect("written");
    let mut store = place.open();
    assert!(!get(&mut store, 2, NUMBERS[0]));
    put(&mut store, 2, NUMBERS[0]);
    let again = fs::read(place.segment(0)).expect("the segment");
    assert_eq!(again.len(), bytes.len());
    assert_eq!(again[..last], bytes[..last]);
    assert_ne!(again[last..last + 8], bytes[last..last + 8]);
}

#[test]
fn a_record_elsewhere_is_none() {
    let (place, bytes, rows) = segment(false);
    let user = &rows[NUMBERS.len()];
    let range = |placed: &Placed| placed.offset as usize..placed.end() as usize;
    // The piece once more at the end, and the user's record in its place.
    let mut changed = bytes.clone();
    changed.extend_from_slice(&bytes[range(&rows[0])]);
    changed.copy_within(range(user), range(&rows[0]).start);
    let damaged = [range(&rows[0]), bytes.len()..usize::MAX];
    check(&place, &changed, &rows, &damaged);
    let mut store = place.open();
    assert!(!get(&mut store, 1, NUMBERS[0]));
}

#[test]
fn a_file_that_goes_beneath_us_is_loss_and_no_more() {
    let place = Place::new(1 << 20, SMALL);
    let mut store = place.open();
    (0..40).for_each(|number| put(&mut store, 1, number));
    assert!(place.files().len() > 3);
    fs::remove_file(place.segment(0)).expect("removed");
    fs::write(place.segment(1), "").expect("emptied");
    let there = (0..40).filter(|number| get(&mut store, 1, *number)).count();
    assert!((1..39).contains(&there), "{there}");
    let known = store.digests(1).count();
    assert_eq!(known, there, "what isn't there is forgotten");
    (0..40).for_each(|number| put(&mut store, 1, number));
    assert!((0..40).all(|number| get(&mut store, 1, number)));
    drop(store);
    let mut store = place.open();
    assert!((0..40).all(|number| get(&mut store, 1, number)));
    assert_eq!(store.statistics().bytes, place.bytes());
}

#[test]
fn what_is_no_segment_is_not_waited_for_and_not_followed() {
    let place = Place::new(1 << 20, SMALL);
    drop(place.open());
    let elsewhere = place.path.join("elsewhere");
    fs::write(&elsewhere, "precious").expect("written");
    symlink(&elsewhere, place.segment(3)).expect("a link");
    fs::create_dir(place.segment(4)).expect("a directory");
    fs::write(place.segment(5), "short").expect("a file");
    fs::write(place.segment(6), vec![0; 20 << 20]).expect("a long file");
    let (pipe, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, place.segment(7), pipe, mode, 0).expect("a pipe");
    fs::write(place.segment(8), "").expect("a file");
    let none = fs::Permissions::from_mode(0o000);
    fs::set_permissions(place.segment(8), none).expect("its mode");
    let mut store = place.open();
    put(&mut store, 1, 1);
    assert_eq!(
        place.files(),
        [elsewhere.clone(), place.segment(4), place.segment(9)]
    );
    assert_eq!(fs::read(&elsewhere).expect("it"), b"precious");
}

#[test]
fn numbers_begin_anew_when_somebody_has_used_them_up() {
    let place = Place::new(1 << 20, SMALL);
    let mut store = place.open();
    put(&mut store, 1, 1);
    drop(store);
    fs::rename(place.segment(0), place.segment(MAX_NUMBER)).expect("renamed");
    let mut store = place.open();
    put(&mut store, 1, 1);
    assert_eq!(place.files(), [place.segment(0)]);
}
