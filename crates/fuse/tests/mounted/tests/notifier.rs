//! The thread that waits in the kernel.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use wiglaf_fuse::{DeviceError, Notification, Notifier};

use crate::served::{Served, soon};

pub(super) fn a_barrier_is_reached() {
    let served = Served::new();
    let notifier = Notifier::start(served.device.clone()).expect("a thread");
    assert!(notifier.is_idle() && !rings(&notifier, Duration::ZERO));
    let path = served.path("name");
    for round in 0..100 {
        assert!(!path.exists());
        served.memory().plant("name", b"x");
        let name = b"name".to_vec();
        notifier.send(
            Notification::Entry {
                parent: 1,
                name: name.clone(),
            },
            false,
        );
        notifier.barrier(round);
        assert!(rings(&notifier, Duration::from_secs(5)));
        assert_eq!(notifier.done(), [round]);
        assert!(!rings(&notifier, Duration::ZERO));
        assert!(path.exists(), "round {round}");
        served.memory().file(1).names.clear();
        served
            .notify(&Notification::Entry { parent: 1, name })
            .expect("known");
    }
    soon("the thread is idle", || notifier.is_idle());
    assert_eq!(notifier.failures(), 0);
}

fn rings(notifier: &Notifier, patience: Duration) -> bool {
    let bell = notifier.bell();
    let mut waiting = [rustix::event::PollFd::new(
        &bell,
        rustix::event::PollFlags::IN,
    )];
    let patience = rustix::event::Timespec::try_from(patience).expect("short");
    rustix::event::poll(&mut waiting, Some(&patience)) == Ok(1)
}

pub(super) fn the_notifier_waits_instead_of_us() {
    let served = Served::new();
    let notifier = Notifier::start(served.device.clone()).expect("a thread");
    served.memory().hold = Some(b"slow");
    let path = served.path("slow");
    let asker = std::thread::spawn(move || path.metadata().map(|_| ()));
    soon("a lookup", || !served.memory().held.is_empty());
    // The directory is in use by one who waits for us.
    let name = b"other".to_vec();
    notifier.send(Notification::Entry { parent: 1, name }, false);
    notifier.barrier(1);
    notifier.barrier(2);
    assert!(!rings(&notifier, Duration::from_millis(50)));
    assert!(!notifier.is_idle() && notifier.done().is_empty());
    // This one does not wait, so that it needs no thread.
    served
        .notify(&Notification::Attributes { node: 1 })
        .expect("known");
    served.release();
    assert!(asker.join().expect("the asker").is_err());
    soon("the barriers are reached", || notifier.is_idle());
    assert_eq!(notifier.done(), [1, 2]);
}

pub(super) fn the_notifier_retries() {
    let served = Served::new();
    assert!(served.root().metadata().is_ok());
    let notifier = Notifier::start(served.device.clone()).expect("a thread");
    let start = Instant::now();
    for node in 1000..2000 {
        notifier.send(Notification::Content { node }, true);
    }
    notifier.barrier(1);
    notifier.send(Notification::Content { node: 1 }, true);
    soon("they are given up", || notifier.is_idle());
    let time = start.elapsed();
    assert_eq!(notifier.done(), [1]);
    assert!(time >= Duration::from_millis(20), "{time:?}");
    assert!(time < Duration::from_secs(2), "one after another: {time:?}");
    assert_eq!(notifier.failures(), 0);
}

pub(super) fn the_notifier_ends() {
    let served = Served::new();
    let (over, is_over) = mpsc::channel();
    let notifier = Notifier::start(served.device.clone()).expect("a thread");
    let device = std::sync::Arc::downgrade(&served.device);
    served.memory().hold = Some(b"slow");
    let path = served.path("slow");
    std::thread::spawn(move || over.send(path.metadata().is_err()));
    soon("a lookup", || !served.memory().held.is_empty());
    let name = b"other".to_vec();
    notifier.send(Notification::Entry { parent: 1, name }, false);
    // Neither this nor the unmount waits for the thread, which waits for the lookup.
    drop(notifier);
    assert_eq!(served.end(), DeviceError::Gone);
    assert_eq!(is_over.recv(), Ok(true));
    soon("the thread has let go of the device", || {
        device.strong_count() == 0
    });
}
