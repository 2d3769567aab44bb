mod damage;
mod disk;
mod model;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;

const KEY: [u8; 32] = [7; 32];
const SMALL: Shape = Shape {
    segment_bytes: 16 << 10,
    records: MAX_RECORDS,
};

/// A directory's store, opened again and again.
struct Place {
    /// Removed with it.
    _around: tempfile::TempDir,
    path: PathBuf,
    bounds: Bounds,
    shape: Shape,
}

impl Place {
    fn new(bytes: u64, shape: Shape) -> Place {
        let around = tempfile::tempdir().expect("a directory");
        Place {
            path: around.path().join("kept"),
            _around: around,
            bounds: Bounds { bytes, spare: 0 },
            shape,
        }
    }

    fn open(&self) -> Store {
        Store::open_with(&self.path, &KEY, self.bounds, self.shape).expect("a store")
    }

    fn segment(&self, number: u32) -> PathBuf {
        self.path.join(format!("kept-{number:08}.seg"))
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.path).expect("the directory");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("one").path()).collect();
        files.sort();
        files
    }

    fn bytes(&self) -> u64 {
        let sizes = self
            .files()
            .into_iter()
            .map(|path| path.metadata().expect("it").len());
        sizes.sum()
    }
}

/// Different for each number, and of a length that is.
fn data(number: u32) -> Vec<u8> {
    let length = 1 + number.wrapping_mul(2_654_435_761) % 3_000;
    let bytes = (0..length).map(|at| (at.wrapping_mul(number | 1) >> 3).to_le_bytes()[0]);
    let mut data: Vec<_> = bytes.collect();
    data.extend_from_slice(&number.to_le_bytes());
    data
}

fn put(store: &mut Store, user: u32, number: u32) {
    let data = data(number);
    store.put(user, &data).expect("kept");
}

/// Whether it was there; if so, it was the right one.
fn get(store: &mut Store, user: u32, number: u32) -> bool {
    let data = data(number);
    let found = store.get(user, &Digest::of(&data));
    assert!(
        found.as_ref().is_none_or(|found| *found == data),
        "{number}"
    );
    found.is_some()
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let place = Place::new(1 << 20, SMALL);
    for round in 0..3 {
        let mut store = place.open();
        for number in 0..round * 20 {
            assert!(get(&mut store, 1000, number), "{number}");
        }
        for number in 0..round * 20 + 20 {
            put(&mut store, 1000, number);
        }
        assert_eq!(store.statistics().pieces, u64::from(round * 20 + 20));
        assert_eq!(store.statistics().bytes, place.bytes());
    }
}

#[test]
fn pieces_are_up_to_64_kib() {
    let place = Place::new(1 << 20, SMALL);
    let mut store = place.open();
    let longest = vec![5; MAX_PIECE_BYTES];
    for data in [&longest[..], &[]] {
        let digest = Digest::of(data);
        store.put(1, data).expect("kept");
        assert_eq!(store.get(1, &digest).as_deref(), Some(data));
    }
    let data = vec![5; MAX_PIECE_BYTES + 1];
    let refused = store.put(1, &data);
    assert!(matches!(refused, Err(KeepError::TooLong { .. })));
    drop(store);
    let mut store = place.open();
    assert_eq!(store.get(1, &Digest::of(&longest)), Some(longest));
}

#[test]
fn the_same_bytes_of_two_users_are_kept_once_and_nobody_else_has_them() {
    let place = Place::new(1 << 20, SMALL);
    let mut store = place.open();
    put(&mut store, 1000, 1);
    let once = store.statistics();
    put(&mut store, 1001, 1);
    let twice = store.statistics();
    assert_eq!(twice.pieces, 1);
    assert!(twice.bytes - once.bytes < 200);
    put(&mut store, 1001, 1);
    assert_eq!(store.statistics(), twice);
    for _ in 0..2 {
        for (user, has) in [(1000, true), (1001, true), (1002, false)] {
            assert_eq!(get(&mut store, user, 1), has);
            assert_eq!(store.has(user, &Digest::of(&data(1))), has);
            assert_eq!(store.digests(user).count(), usize::from(has));
        }
        drop(store);
        store = place.open();
    }
}

#[test]
fn a_piece_that_moves_keeps_all_its_users() {
    let place = Place::new(64 << 10, SMALL);
    let mut store = place.open();
    put(&mut store, 1000, 1);
    put(&mut store, 1001, 1);
    for number in 100..400 {
        put(&mut store, 1002, number);
        assert!(get(&mut store, 1000, 1), "{number}");
    }
    assert!(store.segments.keys().next() > Some(&10), "much has gone");
    assert!(get(&mut store, 1001, 1));
    assert!(!get(&mut store, 1002, 1));
    drop(store);
    let mut store = place.open();
    assert!(get(&mut store, 1000, 1));
    assert!(get(&mut store, 1001, 1));
    assert!(!get(&mut store, 1002, 1));
}

#[test]
fn what_is_used_outlives_what_is_not() {
    let place = Place::new(128 << 10, SMALL);
    let mut store = place.open();
    put(&mut store, 1, 0);
    put(&mut store, 1, 1);
    let mut number = 100;
    while get_unused(&store, 1) {
        put(&mut store, 1, number);
        number += 1;
        assert!(get(&mut store, 1, 0));
    }
    // Once moved it needs to be used again.
    for number in number..number + 300 {
        put(&mut store, 1, number);
    }
    assert!(!get(&mut store, 1, 0));
}

fn get_unused(store: &Store, number: u32) -> bool {
    store.has(1, &Digest::of(&data(number)))
}

#[test]
fn all_used_and_no_room_ends_all_the_same() {
    let place = Place::new(64 << 10, SMALL);
    let mut store = place.open();
    for number in 0..500 {
        put(&mut store, 1, number);
        for earlier in number.saturating_sub(60)..=number {
            get(&mut store, 1, earlier);
        }
        assert!(get(&mut store, 1, number));
        assert!(place.bytes() <= place.bounds.bytes);
        assert_eq!(store.statistics().bytes, place.bytes());
    }
}

#[test]
fn the_bound_holds_and_the_oldest_goes_first() {
    let place = Place::new(200 << 10, SMALL);
    let mut store = place.open();
    let mut lengths = Vec::new();
    for number in 0..1_000 {
        put(&mut store, 1, number);
        lengths.push(data(number).len() as u64 + 200);
        assert!(place.bytes() <= place.bounds.bytes);
    }
    drop(store);
    assert!(place.bytes() <= place.bounds.bytes, "with all indices");
    let mut store = place.open();
    // One segment has just gone, and one may be about to.
    let mut room = place.bounds.bytes - 2 * place.shape.segment_bytes;
    for number in (0..1_000).rev() {
        let Some(less) = room.checked_sub(lengths[number as usize]) else {
            break;
        };
        room = less;
        assert!(get(&mut store, 1, number), "{number}");
    }
    assert!(!get(&mut store, 1, 700));
}

#[test]
fn a_lower_bound_holds_from_the_opening_on() {
    let mut place = Place::new(1 << 20, SMALL);
    let mut store = place.open();
    (0..300).for_each(|number| put(&mut store, 1, number));
    drop(store);
    assert!(place.bytes() > 300 << 10);
    place.bounds.bytes = 100 << 10;
    let mut store = place.open();
    assert!(place.bytes() <= 100 << 10);
    assert!(get(&mut store, 1, 299));
    assert!(!get(&mut store, 1, 0));
    drop(store);
    place.bounds.bytes = 100;
    let mut store = place.open();
    assert_eq!(place.bytes(), 0);
    let data = data(1);
    let refused = store.put(1, &data);
    assert!(matches!(refused, Err(KeepError::Full { .. })));
    assert!(!get(&mut store, 1, 1));
}

#[test]
fn no_more_records_than_memory_is_meant_for() {
    let shape = Shape {
        records: 50,
        ..SMALL
    };
    let place = Place::new(1 << 20, shape);
    let mut store = place.open();
    for number in 0..200 {
        put(&mut store, 1, number % 100);
        put(&mut store, 2, number % 100);
        assert!(get(&mut store, 2, number % 100));
        assert!(store.pieces.records() <= 50);
    }
    drop(store);
    let place = Place {
        shape: Shape {
            records: 20,
            ..shape
        },
        ..place
    };
    assert!(place.open().pieces.records() <= 20);
}

#[test]
fn with_another_key_nothing_is_there_and_the_old_is_gone() {
    let place = Place::new(1 << 20, SMALL);
    let mut store = place.open();
    (0..30).for_each(|number| put(&mut store, 1, number));
    drop(store);
    assert!(place.files().len() > 2);
    let mut store = Store::open(&place.path, &[8; 32], place.bounds).expect("a store");
    assert_eq!(place.files().len(), 0);
    assert!(!get(&mut store, 1, 1));
    put(&mut store, 1, 1);
    assert!(get(&mut store, 1, 1));
}

#[test]
fn one_process_at_a_time() {
    let place = Place::new(1 << 20, SMALL);
    let store = place.open();
    let second = Store::open(&place.path, &KEY, place.bounds);
    assert!(matches!(second, Err(KeepError::Busy { .. })));
    drop(store);
    place.open();
}

#[test]
fn only_a_directory_of_our_own_holds_kept_files() {
    let around = tempfile::tempdir().expect("a directory");
    let open = |name: &str| {
        let bounds = Bounds {
            bytes: 1 << 20,
            spare: 0,
        };
        Store::open(&around.path().join(name), &KEY, bounds).map(drop)
    };
    let in_around = |name: &str| around.path().join(name);
    open("new").expect("made");
    let mode = in_around("new")
        .metadata()
        .expect("it")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
    open("new").expect("there already");

    symlink("new", in_around("link")).expect("a link");
    symlink("nowhere", in_around("dangling")).expect("a link");
    std::fs::write(in_around("file"), "").expect("a file");
    std::fs::create_dir(in_around("open")).expect("a directory");
    let mode = std::fs::Permissions::from_mode(0o750);
    std::fs::set_permissions(in_around("open"), mode).expect("its mode");
    for name in ["link", "dangling", "file", "open", ".."] {
        let refused = open(name);
        assert!(
            matches!(refused, Err(KeepError::NotOurs { .. })),
            "{name}: {refused:?}"
        );
    }
    assert!(matches!(open("missing/kept"), Err(KeepError::Disk { .. })));
    assert!(!in_around("nowhere").exists());

    let other = rustix::process::geteuid().as_raw() ^ 1;
    match std::os::unix::fs::chown(in_around("new"), Some(other), None) {
        Ok(()) => assert!(matches!(open("new"), Err(KeepError::NotOurs { .. }))),
        Err(error) => println!("SKIPPED: another's directory: {error}"),
    }
}
