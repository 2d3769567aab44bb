//! On small file systems of their own.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::*;

/// A file system in memory that no directory shows.
fn small(bytes: u64) -> Option<(OwnedFd, PathBuf)> {
    let mount = || {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "size", bytes.to_string())?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())
    };
    match mount() {
        Ok(mounted) => {
            let path = format!("/proc/self/fd/{}", mounted.as_raw_fd());
            Some((mounted, path.into()))
        }
        Err(error) => {
            println!("SKIPPED: no small file system: {error}");
            None
        }
    }
}

fn open(path: &Path, bytes: u64, spare: u64) -> Store {
    let bounds = Bounds { bytes, spare };
    Store::open_with(&path.join("kept"), &KEY, bounds, SMALL).expect("a store")
}

fn free(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).expect("a file system");
    stat.f_bavail * stat.f_frsize
}

#[test]
fn a_full_disk_costs_the_oldest() {
    let Some((_mounted, path)) = small(256 << 10) else {
        return;
    };
    let mut store = open(&path, 1 << 30, 0);
    for number in 0..500 {
        put(&mut store, 1, number);
        assert!(get(&mut store, 1, number));
    }
    assert!(get(&mut store, 1, 480));
    assert!(!get(&mut store, 1, 100));
    store.current = None;
    drop(store);
    let mut store = open(&path, 1 << 30, 0);
    assert!(get(&mut store, 1, 499));
}

#[test]
fn a_disk_that_others_fill_takes_nothing_and_all_stays_right() {
    let Some((_mounted, path)) = small(256 << 10) else {
        return;
    };
    let mut store = open(&path, 1 << 30, 0);
    (0..50).for_each(|number| put(&mut store, 1, number));
    // Others take what there is, and what is given up for it.
    for number in 1_000..1_030 {
        let _ = fs::write(path.join(format!("others-{number}")), vec![1; 256 << 10]);
        put(&mut store, 1, number);
        assert!(get(&mut store, 1, number));
    }
    assert!(store.statistics().pieces < 10);
    let long = vec![3; 60_000];
    let refused = store.put(1, &long);
    assert!(
        matches!(refused, Err(KeepError::Full { .. })),
        "{refused:?}"
    );
    assert_eq!(store.statistics().pieces, 0);
    assert_eq!(store.statistics().bytes, 0);
    assert!((1_000..1_030).all(|number| !get(&mut store, 1, number)));
    for entry in fs::read_dir(&path).expect("the directory") {
        let _ = fs::remove_file(entry.expect("one").path());
    }
    put(&mut store, 1, 7);
    assert!(get(&mut store, 1, 7));
}

#[test]
fn others_have_their_share_of_the_disk() {
    let (all, spare) = (12 << 20, 6 << 20);
    let Some((_mounted, path)) = small(all) else {
        return;
    };
    let mut store = open(&path, 1 << 30, spare);
    for number in 0..6_000 {
        put(&mut store, 1, number);
        assert!(free(&path) >= spare, "{number}");
    }
    assert!(store.statistics().bytes > 3 << 20);
    fs::write(path.join("others"), vec![1; 3 << 20]).expect("room for others");
    (7_000..9_000).for_each(|number| put(&mut store, 1, number));
    assert!(free(&path) >= spare);
    assert!(get(&mut store, 1, 8_999));
    fs::write(path.join("more"), vec![1; 4 << 20]).expect("room for others");
    let refused = (10_000..11_000).find_map(|number| {
        let data = data(number);
        store.put(1, &data).err()
    });
    assert!(
        matches!(refused, Some(KeepError::Full { .. })),
        "{refused:?}"
    );
    drop(store);
    let store = open(&path, 1 << 30, spare);
    assert_eq!(store.statistics().bytes, 0);
}
