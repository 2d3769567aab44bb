//! What the kernel keeps, and what it is told to drop.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::io::Errno;
use wiglaf_fuse::Notification;

use crate::served::{Served, soon};

pub(super) fn what_is_cached_is_not_asked() {
    let served = Served::new();
    served.memory().plant("file", b"content");
    let look = || {
        assert_eq!(fs::read(served.path("file")).expect("a file"), b"content");
        assert!(!served.path("absent").exists());
        assert!(served.path("file").metadata().is_ok());
    };
    look();
    served.asked();
    look();
    soon("the file is closed", || {
        served.memory().asked.contains(&"release")
    });
    assert_eq!(served.asked(), ["open", "flush", "release"]);
}

pub(super) fn content_is_dropped() {
    let served = Served::new();
    let node = served.memory().plant("file", b"old");
    let file = File::open(served.path("file")).expect("a file");
    let read = || {
        let mut bytes = [0; 16];
        let length = file.read_at(&mut bytes, 0).expect("a read");
        bytes[..length].to_vec()
    };
    assert_eq!(read(), b"old");
    served.memory().set_content(node, b"longer");
    assert_eq!(read(), b"old");
    served
        .notify(&Notification::Content { node })
        .expect("known");
    assert_eq!(read(), b"longer");
}

pub(super) fn attributes_are_dropped() {
    let served = Served::new();
    let node = served.memory().plant("file", b"content");
    assert_eq!(fs::read(served.path("file")).expect("a file"), b"content");
    // A read makes the access time unknown, so that attributes are asked for once more.
    assert!(served.path("file").metadata().is_ok());
    served.memory().file(node).attributes.mode = 0o100_600;
    let mode = || served.path("file").metadata().expect("a file").mode();
    assert_eq!(mode(), 0o100_644);
    served
        .notify(&Notification::Attributes { node })
        .expect("known");
    assert_eq!(mode(), 0o100_600);
    served.asked();
    assert_eq!(fs::read(served.path("file")).expect("a file"), b"content");
    assert!(!served.asked().contains(&"read"), "the content is kept");
}

pub(super) fn names_are_dropped() {
    let served = Served::new();
    let path = served.path("name");
    assert!(!path.exists());
    let node = served.memory().plant("name", b"first");
    assert!(!path.exists());
    let name = Notification::Entry {
        parent: 1,
        name: b"name".to_vec(),
    };
    served.notify(&name).expect("known");
    assert_eq!(fs::read(&path).expect("a file"), b"first");
    let other = served.memory().plant("name", b"second");
    assert_eq!(fs::read(&path).expect("a file"), b"first");
    served.notify(&name).expect("known");
    assert_eq!(fs::read(&path).expect("a file"), b"second");
    assert_ne!(node, other);
    let unknown = Notification::Entry {
        parent: 1,
        name: b"never heard of".to_vec(),
    };
    assert_eq!(served.notify(&unknown), Err(Errno::NOENT));
}

pub(super) fn names_expire() {
    let served = Served::new();
    let path = served.path("name");
    served.memory().plant("name", b"first");
    assert_eq!(fs::read(&path).expect("a file"), b"first");
    let init = served.memory().init.expect("it began");
    let mut notifications = Vec::new();
    if init.can_expire() {
        let name = b"name".to_vec();
        notifications.push(Notification::Expire { parent: 1, name });
    }
    if init.has_epochs() {
        notifications.push(Notification::Epoch);
    }
    assert!(!init.has_epochs() || init.can_expire());
    for (number, notification) in notifications.iter().enumerate() {
        let content = [u8::try_from(number).expect("few")];
        let before = fs::read(&path).expect("a file");
        served.memory().plant("name", &content);
        assert_eq!(fs::read(&path).expect("a file"), before);
        served.notify(notification).expect("known");
        assert_eq!(
            fs::read(&path).expect("a file"),
            content,
            "{notification:?}"
        );
    }
}

pub(super) fn removed_names_are_gone() {
    let served = Served::new();
    let node = served.memory().plant("name", b"x");
    let path = served.path("name");
    let file = File::open(&path).expect("a file");
    served.memory().file(1).names.clear();
    assert!(path.exists());
    let deleted = Notification::Deleted {
        parent: 1,
        node,
        name: b"name".to_vec(),
    };
    served.notify(&deleted).expect("known");
    assert!(!path.exists());
    let mut byte = [0];
    file.read_at(&mut byte, 0).expect("an open file stays");
    assert_eq!(&byte, b"x");
}

pub(super) fn stored_content_is_not_read() {
    const LENGTH: usize = 2 << 20;
    let served = Served::new();
    let content = vec![7; LENGTH];
    let node = served.memory().plant("file", &content);
    let file = File::open(served.path("file")).expect("a file");
    // What the kernel is told is seen, not what the file holds.
    let stored = Notification::Store {
        node,
        offset: 0,
        data: vec![8; LENGTH],
    };
    served.notify(&stored).expect("known");
    served.asked();
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).expect("a read");
    // A kernel may drop what it has stored whenever it likes, and some do within milliseconds
    // (DAMON); then it asks.
    let has_asked = served.asked().contains(&"read");
    assert!(has_asked || bytes == vec![8; LENGTH]);
    assert_eq!(bytes.len(), LENGTH);
    assert!(bytes.contains(&8), "nothing was stored");
    served
        .notify(&Notification::Content { node })
        .expect("known");
    let mut byte = [0];
    file.read_at(&mut byte, 0).expect("a read");
    assert_eq!(byte, [7]);
}

pub(super) fn unknown_nodes_are_said_to_be() {
    let served = Served::new();
    let node = 4321;
    let data = b"data".to_vec();
    let name = b"name".to_vec();
    for notification in [
        Notification::Attributes { node },
        Notification::Content { node },
        Notification::Entry { parent: node, name },
        Notification::Store {
            node,
            offset: 0,
            data,
        },
    ] {
        let result = served.notify(&notification);
        assert_eq!(result, Err(Errno::NOENT), "{notification:?}");
    }
}

pub(super) fn the_kernel_forgets_what_it_was_told() {
    let served = Served::new();
    for number in 0..50 {
        served.memory().plant(&format!("file{number}"), b"x");
    }
    for entry in fs::read_dir(served.root()).expect("a listing") {
        fs::read(entry.expect("an entry").path()).expect("a file");
    }
    assert!(served.memory().told.values().any(|count| *count > 0));
    served
        .notify(&Notification::Content { node: 1 })
        .expect("known");
    let names: Vec<Vec<u8>> = served.memory().file(1).names.keys().cloned().collect();
    for name in names {
        served
            .notify(&Notification::Entry { parent: 1, name })
            .expect("known");
    }
    soon("everything is forgotten", || {
        served.memory().told.values().all(|count| *count == 0)
    });
}
