//! Replies and notifications, byte by byte as `linux/fuse.h` has them.

use std::time::Duration;

use wiglaf_fuse::{
    Attributes, DirectoryBuffer, Entry, InitReply, InitRequest, LockReply, Notification, Opened,
    Reply, StatFs, Statx, Unsupported, Valid,
};

const UNIQUE: u64 = 0x0102_0304_0506_0708;
const HEADER: usize = 16;
const ALWAYS: u64 = u32::MAX as u64;

const ATTRIBUTES: Attributes = Attributes {
    ino: 11,
    size: 12,
    blocks: 13,
    accessed: (-14, 17),
    modified: (15, 18),
    changed: (16, 19),
    mode: 0o100_644,
    links: 21,
    uid: 22,
    gid: 23,
    rdev: 0x0120_0345,
    block_size: 4096,
};
const ENTRY: Entry = Entry {
    node: 5,
    generation: 6,
    attributes: ATTRIBUTES,
    entry_valid: Valid::Always,
    attributes_valid: Valid::For(Duration::new(2, 500)),
};

/// The reply's body, its header checked; and that both ways to encode it agree.
fn body(reply: &Reply) -> Vec<u8> {
    let mut whole = b"what was there before".to_vec();
    reply.encode(UNIQUE, &mut whole);
    let mut header = b"likewise".to_vec();
    let data = reply.parts(UNIQUE, &mut header);
    assert_eq!([&header, data].concat(), whole);
    assert_eq!(u32_at(&whole, 0) as usize, whole.len());
    assert_eq!(u64_at(&whole, 8), UNIQUE);
    if !matches!(reply, Reply::Error(_)) {
        assert_eq!(u32_at(&whole, 4), 0);
    }
    whole.split_off(HEADER)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn check_attributes(bytes: &[u8]) {
    assert_eq!(bytes.len(), 88);
    let words: Vec<u64> = (0..6).map(|n| u64_at(bytes, n * 8)).collect();
    assert_eq!(words, [11, 12, 13, (-14i64).cast_unsigned(), 15, 16]);
    let halves: Vec<u32> = (0..10).map(|n| u32_at(bytes, 48 + n * 4)).collect();
    let mode = 0o100_644;
    let expected = [17, 18, 19, mode, 21, 22, 23, 0x0120_0345, 4096, 0];
    assert_eq!(halves, expected);
}

fn check_entry(bytes: &[u8]) {
    assert_eq!((u64_at(bytes, 0), u64_at(bytes, 8)), (5, 6));
    assert_eq!((u64_at(bytes, 16), u64_at(bytes, 24)), (ALWAYS, 2));
    assert_eq!((u32_at(bytes, 32), u32_at(bytes, 36)), (0, 500));
    check_attributes(&bytes[40..128]);
}

#[test]
fn errors_are_negative_and_ones_that_the_kernel_takes() {
    for (errno, told) in [(2, -2), (110, -110), (0, -5), (512, -5), (-2, -5)] {
        let mut whole = Vec::new();
        Reply::Error(errno).encode(UNIQUE, &mut whole);
        assert_eq!(whole.len(), HEADER);
        assert_eq!(u32_at(&whole, 4).cast_signed(), told, "{errno}");
    }
    assert_eq!(body(&Reply::Empty), []);
}

#[test]
fn files() {
    let bytes = body(&Reply::Entry(ENTRY));
    assert_eq!(bytes.len(), 128);
    check_entry(&bytes);

    let valid = Valid::For(Duration::from_millis(1));
    let bytes = body(&Reply::NoEntry { valid });
    assert_eq!(bytes.len(), 128);
    assert_eq!((u64_at(&bytes, 0), u32_at(&bytes, 32)), (0, 1_000_000));

    let (attributes, valid) = (ATTRIBUTES, Valid::No);
    let bytes = body(&Reply::Attributes { attributes, valid });
    assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 8)), (0, 0));
    check_attributes(&bytes[16..]);

    let born = Some((31, 32));
    let valid = Valid::Always;
    let bytes = body(&Reply::Statx(Statx {
        attributes,
        born,
        valid,
    }));
    assert_eq!(bytes.len(), 288);
    assert_eq!(u64_at(&bytes, 0), ALWAYS);
    let stat = &bytes[32..];
    assert_eq!((u32_at(stat, 0), u32_at(stat, 4)), (0xfff, 4096));
    let owner = (u32_at(stat, 16), u32_at(stat, 20), u32_at(stat, 24));
    assert_eq!(owner, (21, 22, 23));
    assert_eq!((u16_at(stat, 28), u16_at(stat, 30)), (0o100_644, 0));
    let numbers = (u64_at(stat, 32), u64_at(stat, 40), u64_at(stat, 48));
    assert_eq!(numbers, (11, 12, 13));
    assert_eq!(
        (u64_at(stat, 64).cast_signed(), u32_at(stat, 72)),
        (-14, 17)
    );
    assert_eq!((u64_at(stat, 80), u32_at(stat, 88)), (31, 32));
    assert_eq!((u64_at(stat, 96), u32_at(stat, 104)), (16, 19));
    assert_eq!((u64_at(stat, 112), u32_at(stat, 120)), (15, 18));
    assert_eq!((u32_at(stat, 128), u32_at(stat, 132)), (3, 0x1245));
}

#[test]
fn open_files() {
    let opened = Opened {
        handle: 7,
        keep_cache: true,
        direct_io: true,
        no_flush: true,
        cache_directory: true,
        parallel_direct_writes: true,
    };
    let bytes = body(&Reply::Opened(opened));
    assert_eq!(bytes.len(), 16);
    assert_eq!((u64_at(&bytes, 0), u32_at(&bytes, 8)), (7, 0b110_1011));

    let opened = Opened {
        handle: 7,
        keep_cache: true,
        ..Opened::default()
    };
    let bytes = body(&Reply::Created {
        entry: ENTRY,
        opened,
    });
    assert_eq!(bytes.len(), 144);
    check_entry(&bytes);
    assert_eq!((u64_at(&bytes, 128), u32_at(&bytes, 136)), (7, 2));
}

#[test]
fn small_ones() {
    assert_eq!(body(&Reply::Data(b"bytes".to_vec())), b"bytes");
    let bytes = body(&Reply::Written { size: 9 });
    assert_eq!((bytes.len(), u32_at(&bytes, 0)), (8, 9));
    let bytes = body(&Reply::Size(9));
    assert_eq!((bytes.len(), u32_at(&bytes, 0)), (8, 9));
    let bytes = body(&Reply::Copied { size: 9 });
    assert_eq!(
        (bytes.len(), u32_at(&bytes, 0), u32_at(&bytes, 4)),
        (8, 9, 0)
    );
    let bytes = body(&Reply::Offset(1 << 40));
    assert_eq!((bytes.len(), u64_at(&bytes, 0)), (8, 1 << 40));
    let bytes = body(&Reply::Lock(LockReply {
        start: 1,
        end: 2,
        kind: 1,
        pid: 4,
    }));
    assert_eq!(bytes.len(), 24);
    assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 8)), (1, 2));
    assert_eq!((u32_at(&bytes, 16), u32_at(&bytes, 20)), (1, 4));
    let bytes = body(&Reply::Space(StatFs {
        blocks: 1,
        free: 2,
        available: 3,
        files: 4,
        free_files: 5,
        block_size: 6,
        name_length: 7,
        fragment_size: 8,
    }));
    assert_eq!(bytes.len(), 80);
    let words: Vec<u64> = (0..5).map(|n| u64_at(&bytes, n * 8)).collect();
    assert_eq!(words, [1, 2, 3, 4, 5]);
    let halves: Vec<u32> = (0..3).map(|n| u32_at(&bytes, 40 + n * 4)).collect();
    assert_eq!(halves, [6, 7, 8]);
}

#[test]
fn listings_are_aligned_and_fit() {
    let mut buffer = DirectoryBuffer::new(24 + 8 + 24 + 16);
    assert!(buffer.is_empty());
    assert!(buffer.add(1, 10, 4, b"abc"));
    assert!(buffer.add(2, 20, 8, b"exactly16bytes!!"));
    assert!(!buffer.add(3, 30, 8, b"x"));
    let bytes = body(&Reply::Directory(buffer));
    assert_eq!(bytes.len(), 72);
    assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 8)), (1, 10));
    assert_eq!((u32_at(&bytes, 16), u32_at(&bytes, 20)), (3, 4));
    assert_eq!(&bytes[24..32], b"abc\0\0\0\0\0");
    assert_eq!((u64_at(&bytes, 32), u64_at(&bytes, 40)), (2, 20));
    assert_eq!(&bytes[56..], b"exactly16bytes!!");

    let mut buffer = DirectoryBuffer::new(2 * (128 + 24 + 8));
    assert!(buffer.add_plus(1, 10, 4, b".", None));
    assert!(buffer.add_plus(11, 20, 8, b"file", Some(&ENTRY)));
    assert!(!buffer.add_plus(12, 30, 8, b"more", Some(&ENTRY)));
    let bytes = body(&Reply::Directory(buffer));
    assert_eq!(bytes.len(), 320);
    assert!(bytes[..128].iter().all(|byte| *byte == 0));
    assert_eq!((u64_at(&bytes, 128), u64_at(&bytes, 136)), (1, 10));
    check_entry(&bytes[160..288]);
    assert_eq!((u64_at(&bytes, 288), u64_at(&bytes, 296)), (11, 20));
    assert_eq!(&bytes[312..316], b"file");
}

#[test]
fn the_kernel_is_offered_what_it_has() {
    let offer = InitRequest {
        major: 7,
        minor: 45,
        max_readahead: 131_072,
        flags: u64::MAX,
    };
    let reply = InitReply::answering(&offer).expect("a new kernel");
    let bytes = body(&Reply::Init(reply));
    assert_eq!(bytes.len(), 64);
    assert_eq!((u32_at(&bytes, 0), u32_at(&bytes, 4)), (7, 45));
    assert_eq!(u32_at(&bytes, 8), 256 << 10);
    let has = |bit: u32| {
        let (at, bit) = if bit < 32 { (12, bit) } else { (32, bit - 32) };
        u32_at(&bytes, at) & 1 << bit != 0
    };
    let wanted = [
        0, 1, 3, 5, 6, 10, 13, 14, 18, 20, 22, 23, 24, 25, 28, 29, 30, 35,
    ];
    for bit in 0..64 {
        assert_eq!(has(bit), wanted.contains(&bit), "bit {bit}");
    }
    assert_eq!((u16_at(&bytes, 16), u16_at(&bytes, 18)), (64, 48));
    assert_eq!((u32_at(&bytes, 20), u32_at(&bytes, 24)), (1 << 20, 1));
    assert_eq!(u16_at(&bytes, 28), 256);

    let reply = InitReply::answering(&InitRequest { minor: 99, ..offer });
    assert_eq!(reply.map(|reply| reply.minor), Ok(45));
    let flags = !(1 << 35 | 1 << 20);
    let older = InitReply::answering(&InitRequest {
        minor: 37,
        flags,
        ..offer
    });
    let older = older.expect("Linux 6.1");
    assert_eq!(older.flags & !flags, 0);
    assert!(!older.can_expire() && !older.has_epochs());
    assert!(reply.is_ok_and(|reply| reply.can_expire() && reply.has_epochs()));
}

#[test]
fn a_kernel_that_can_not_is_told_so() {
    let offer = InitRequest {
        major: 7,
        minor: 45,
        max_readahead: 0,
        flags: u64::MAX,
    };
    let old = InitReply::answering(&InitRequest { minor: 36, ..offer });
    let (major, minor) = (7, 36);
    assert_eq!(old, Err(Unsupported::Version { major, minor }));
    let other = InitReply::answering(&InitRequest { major: 8, ..offer });
    assert!(matches!(other, Err(Unsupported::Version { major: 8, .. })));
    let missing = 1 << 29;
    let flags = !missing;
    let poor = InitReply::answering(&InitRequest { flags, ..offer });
    assert_eq!(poor, Err(Unsupported::Features { missing }));
}

#[test]
fn notifications() {
    let message = |notification: &Notification, code: u32| {
        let mut header = b"what was there before".to_vec();
        let data = notification.parts(&mut header);
        let mut whole = [&header, data].concat();
        assert_eq!(u32_at(&whole, 0) as usize, whole.len());
        assert_eq!((u32_at(&whole, 4), u64_at(&whole, 8)), (code, 0));
        whole.split_off(HEADER)
    };
    let words = |bytes: &[u8]| -> Vec<i64> {
        (0..bytes.len() / 8)
            .map(|n| u64_at(bytes, n * 8).cast_signed())
            .collect()
    };
    let bytes = message(&Notification::Attributes { node: 5 }, 2);
    assert_eq!(words(&bytes), [5, -1, 0]);
    let bytes = message(&Notification::Content { node: 5 }, 2);
    assert_eq!(words(&bytes), [5, 0, 0]);

    let (parent, name) = (3, b"name".to_vec());
    let entry = Notification::Entry {
        parent,
        name: name.clone(),
    };
    let bytes = message(&entry, 3);
    assert_eq!(u64_at(&bytes, 0), 3);
    assert_eq!((u32_at(&bytes, 8), u32_at(&bytes, 12)), (4, 0));
    assert_eq!(&bytes[16..], b"name\0");
    let expire = Notification::Expire {
        parent,
        name: name.clone(),
    };
    let bytes = message(&expire, 3);
    assert_eq!((u32_at(&bytes, 8), u32_at(&bytes, 12)), (4, 1));
    assert_eq!(&bytes[16..], b"name\0");
    let node = 5;
    let deleted = Notification::Deleted { parent, node, name };
    let bytes = message(&deleted, 6);
    assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 8)), (3, 5));
    assert_eq!((u32_at(&bytes, 16), &bytes[24..]), (4, &b"name\0"[..]));

    let store = Notification::Store {
        node,
        offset: 4096,
        data: b"data".to_vec(),
    };
    let bytes = message(&store, 4);
    assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 8)), (5, 4096));
    assert_eq!((u32_at(&bytes, 16), &bytes[24..]), (4, &b"data"[..]));
    assert_eq!(message(&Notification::Epoch, 8), []);
}
