//! Locks that more than one machine could hold.

use std::fs::File;
use std::process::Command;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use wiglaf_fuse::LockRequest;

use crate::served::{Served, soon};

pub(super) fn whole_file_locks() {
    let served = Served::new();
    let node = served.memory().plant("file", b"");
    let open = || File::open(served.path("file")).expect("a file");
    let (first, second) = (open(), open());
    rustix::fs::flock(&first, FlockOperation::LockExclusive).expect("a lock");
    let (at, lock) = served.memory().locks[0];
    assert_eq!((at, lock.flock, lock.kind), (node, true, 1));
    assert_eq!(lock.end, i64::MAX.unsigned_abs());
    let refused = rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared);
    assert_eq!(refused, Err(Errno::AGAIN));
    served.asked();
    let waiter = std::thread::spawn(move || rustix::fs::flock(&second, FlockOperation::LockShared));
    soon("a wait", || served.memory().asked.contains(&"lock-wait"));
    assert!(!waiter.is_finished());
    // The last close gives it up.
    drop(first);
    waiter.join().expect("the waiter").expect("a lock");
    soon("both are given up", || served.memory().locks.is_empty());
}

pub(super) fn record_locks() {
    let served = Served::new();
    let node = served.memory().plant("file", b"content");
    let file = File::options()
        .read(true)
        .write(true)
        .open(served.path("file"));
    let file = file.expect("a file");
    let other = LockRequest {
        handle: 0,
        owner: 1,
        start: 100,
        end: 199,
        kind: 1,
        pid: 0,
        flock: false,
    };
    served.memory().locks.push((node, other));
    let operation = FlockOperation::NonBlockingLockExclusive;
    assert_eq!(rustix::fs::fcntl_lock(&file, operation), Err(Errno::AGAIN));
    served.memory().locks.clear();
    rustix::fs::fcntl_lock(&file, operation).expect("a lock");
    let (_, lock) = served.memory().locks[0];
    assert_eq!((lock.flock, lock.kind, lock.start), (false, 1, 0));
    assert_eq!(lock.end, i64::MAX.unsigned_abs());
    assert_eq!(lock.pid, std::process::id());
    // Any close by the process gives it up.
    drop(File::open(served.path("file")).expect("a file"));
    assert!(served.memory().locks.is_empty());
}

pub(super) fn a_wait_for_a_lock_is_interrupted() {
    let served = Served::new();
    served.memory().plant("file", b"");
    let file = File::open(served.path("file")).expect("a file");
    rustix::fs::flock(&file, FlockOperation::LockExclusive).expect("a lock");
    served.asked();
    let mut command = Command::new("flock");
    let mut child = command
        .arg(served.path("file"))
        .arg("true")
        .spawn()
        .expect("flock runs");
    soon("a wait", || served.memory().asked.contains(&"lock-wait"));
    child.kill().expect("a signal");
    let status = child.wait().expect("it ends");
    assert!(!status.success());
    assert!(served.asked().contains(&"interrupt"));
}
