//! Requests as the kernel lays them out, and bytes as it never would.

use proptest::prelude::*;
use wiglaf_fuse::{LockRequest, Operation, ParseError, Request, SetAttributes, SetTime};

const UNIQUE: u64 = 0x1122_3344_5566_7788;
const NODE: u64 = 9;

/// A request in the kernel's layout.
struct Message(Vec<u8>);

impl Message {
    fn new(opcode: u32) -> Self {
        let mut message = Self(Vec::new());
        message = message.u32(&[0, opcode]).u64(&[UNIQUE, NODE]);
        message.u32(&[1000, 100, 4321, 0])
    }

    fn u32(mut self, values: &[u32]) -> Self {
        for value in values {
            self.0.extend_from_slice(&value.to_ne_bytes());
        }
        self
    }

    fn u64(mut self, values: &[u64]) -> Self {
        for value in values {
            self.0.extend_from_slice(&value.to_ne_bytes());
        }
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn done(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// One of each, with what it means.
fn examples() -> Vec<(Vec<u8>, Operation<'static>)> {
    let message = Message::new;
    let lock = LockRequest {
        handle: 3,
        owner: 77,
        start: 5,
        end: i64::MAX as u64,
        kind: 1,
        pid: 99,
        flock: true,
    };
    let lock_body = |opcode| {
        message(opcode)
            .u64(&[3, 77, 5, i64::MAX as u64])
            .u32(&[1, 99, 1, 0])
            .done()
    };
    vec![
        (
            message(1).bytes(b"name\0").done(),
            Operation::Lookup { name: b"name" },
        ),
        (message(2).u64(&[5]).done(), Operation::Forget { count: 5 }),
        (
            message(3).u32(&[1, 0]).u64(&[8]).done(),
            Operation::GetAttributes { handle: Some(8) },
        ),
        (
            message(3).u32(&[0, 0]).u64(&[8]).done(),
            Operation::GetAttributes { handle: None },
        ),
        (
            message(4)
                .u32(&[0b1010_1111_1111, 0])
                .u64(&[8, 4096, 77, u64::MAX, 20, 30])
                .u32(&[1, 2, 3, 0o100_644, 0, 1000, 100, 0])
                .done(),
            Operation::SetAttributes(SetAttributes {
                handle: Some(8),
                mode: Some(0o100_644),
                uid: Some(1000),
                gid: Some(100),
                size: Some(4096),
                accessed: Some(SetTime::Now),
                modified: Some(SetTime::At(20, 2)),
                kill_privileges: true,
                lock_owner: Some(77),
            }),
        ),
        (
            message(4)
                .u32(&[1 << 4, 0])
                .u64(&[8, 4096, 77, u64::MAX, 20, 30])
                .u32(&[1, 2, 3, 0, 0, 0, 0, 0])
                .done(),
            Operation::SetAttributes(SetAttributes {
                accessed: Some(SetTime::At(-1, 1)),
                ..SetAttributes::default()
            }),
        ),
        (message(5).done(), Operation::ReadLink),
        (
            message(6).bytes(b"new\0to/where\0").done(),
            Operation::Symlink {
                name: b"new",
                target: b"to/where",
            },
        ),
        (
            message(8)
                .u32(&[0o010_600, 0x103, 0o22, 0])
                .bytes(b"pipe\0")
                .done(),
            Operation::MakeNode {
                name: b"pipe",
                mode: 0o010_600,
                rdev: 0x103,
                umask: 0o22,
            },
        ),
        (
            message(9).u32(&[0o755, 0o22]).bytes(b"dir\0").done(),
            Operation::MakeDirectory {
                name: b"dir",
                mode: 0o755,
                umask: 0o22,
            },
        ),
        (
            message(10).bytes(b"file\0").done(),
            Operation::Unlink { name: b"file" },
        ),
        (
            message(11).bytes(b"dir\0").done(),
            Operation::RemoveDirectory { name: b"dir" },
        ),
        (
            message(12).u64(&[4]).bytes(b"old\0new\0").done(),
            Operation::Rename {
                name: b"old",
                new_parent: 4,
                new_name: b"new",
                flags: 0,
            },
        ),
        (
            message(45)
                .u64(&[4])
                .u32(&[2, 0])
                .bytes(b"old\0new\0")
                .done(),
            Operation::Rename {
                name: b"old",
                new_parent: 4,
                new_name: b"new",
                flags: 2,
            },
        ),
        (
            message(13).u64(&[6]).bytes(b"more\0").done(),
            Operation::Link {
                file: 6,
                name: b"more",
            },
        ),
        (
            message(14).u32(&[0o1001, 1]).done(),
            Operation::Open {
                flags: 0o1001,
                kill_privileges: true,
            },
        ),
        (
            message(27).u32(&[0o200_000, 0]).done(),
            Operation::OpenDirectory { flags: 0o200_000 },
        ),
        (
            message(35)
                .u32(&[0o102, 0o100_644, 0o22, 0])
                .bytes(b"made\0")
                .done(),
            Operation::Create {
                name: b"made",
                mode: 0o100_644,
                umask: 0o22,
                flags: 0o102,
                kill_privileges: false,
            },
        ),
        (
            message(51)
                .u32(&[2, 0o100_600, 0o22, 0])
                .bytes(b"/\0")
                .done(),
            Operation::TemporaryFile {
                mode: 0o100_600,
                umask: 0o22,
                flags: 2,
            },
        ),
        (
            message(15)
                .u64(&[3, 8192])
                .u32(&[4096, 2])
                .u64(&[77])
                .u32(&[0o4000, 0])
                .done(),
            Operation::Read {
                handle: 3,
                offset: 8192,
                size: 4096,
                lock_owner: Some(77),
                flags: 0o4000,
            },
        ),
        (
            message(16)
                .u64(&[3, 8192])
                .u32(&[5, 0b101])
                .u64(&[77])
                .u32(&[1, 0])
                .bytes(b"hello")
                .done(),
            Operation::Write {
                handle: 3,
                offset: 8192,
                data: b"hello",
                from_cache: true,
                kill_privileges: true,
                lock_owner: None,
                flags: 1,
            },
        ),
        (message(17).done(), Operation::StatFs),
        (
            message(52)
                .u32(&[1, 0])
                .u64(&[8])
                .u32(&[0x2000, 0xfff])
                .done(),
            Operation::Statx {
                handle: Some(8),
                flags: 0x2000,
                mask: 0xfff,
            },
        ),
        (message(50).u64(&[0]).done(), Operation::SyncFs),
        (
            message(18).u64(&[3]).u32(&[1, 2]).u64(&[77]).done(),
            Operation::Release {
                handle: 3,
                flags: 1,
                flock_owner: Some(77),
                lock_owner: 77,
            },
        ),
        (
            message(29).u64(&[3]).u32(&[0, 0]).u64(&[0]).done(),
            Operation::ReleaseDirectory { handle: 3 },
        ),
        (
            message(25).u64(&[3]).u32(&[0, 0]).u64(&[77]).done(),
            Operation::Flush {
                handle: 3,
                lock_owner: 77,
            },
        ),
        (
            message(20).u64(&[3]).u32(&[1, 0]).done(),
            Operation::Fsync {
                handle: 3,
                data_only: true,
            },
        ),
        (
            message(30).u64(&[3]).u32(&[0, 0]).done(),
            Operation::FsyncDirectory { data_only: false },
        ),
        (
            message(21)
                .u32(&[5, 1, 1, 0])
                .bytes(b"user.a\0\0\x01lue")
                .done(),
            Operation::SetXattr {
                name: b"user.a",
                value: b"\0\x01lue",
                flags: 1,
                drop_set_gid: true,
            },
        ),
        (
            message(22).u32(&[64, 0]).bytes(b"user.a\0").done(),
            Operation::GetXattr {
                name: b"user.a",
                size: 64,
            },
        ),
        (
            message(23).u32(&[64, 0]).done(),
            Operation::ListXattr { size: 64 },
        ),
        (
            message(24).bytes(b"user.a\0").done(),
            Operation::RemoveXattr { name: b"user.a" },
        ),
        (
            message(28)
                .u64(&[3, 12])
                .u32(&[4096, 0])
                .u64(&[0])
                .u32(&[0, 0])
                .done(),
            Operation::ReadDirectory {
                handle: 3,
                offset: 12,
                size: 4096,
                plus: false,
            },
        ),
        (
            message(44)
                .u64(&[3, 12])
                .u32(&[4096, 0])
                .u64(&[0])
                .u32(&[0, 0])
                .done(),
            Operation::ReadDirectory {
                handle: 3,
                offset: 12,
                size: 4096,
                plus: true,
            },
        ),
        (lock_body(31), Operation::GetLock(lock)),
        (lock_body(32), Operation::SetLock { lock, wait: false }),
        (lock_body(33), Operation::SetLock { lock, wait: true }),
        (
            message(34).u32(&[4, 0]).done(),
            Operation::Access { mask: 4 },
        ),
        (
            message(36).u64(&[12]).done(),
            Operation::Interrupt { unique: 12 },
        ),
        (message(38).done(), Operation::Destroy),
        (
            message(42).u32(&[2, 0]).u64(&[5, 1, 6, 2]).done(),
            Operation::BatchForget(vec![(5, 1), (6, 2)]),
        ),
        (
            message(43).u64(&[3, 10, 20]).u32(&[1, 0]).done(),
            Operation::Allocate {
                handle: 3,
                offset: 10,
                length: 20,
                mode: 1,
            },
        ),
        (
            message(46).u64(&[3, 10]).u32(&[4, 0]).done(),
            Operation::Seek {
                handle: 3,
                offset: 10,
                whence: 4,
            },
        ),
        (
            message(47)
                .u64(&[3, 10, 6, 4, 20, u64::from(u32::MAX) + 1, 0])
                .done(),
            Operation::Copy {
                from_handle: 3,
                from_offset: 10,
                to_node: 6,
                to_handle: 4,
                to_offset: 20,
                length: u64::from(u32::MAX),
                flags: 0,
            },
        ),
        (
            message(53).u64(&[3, 10, 6, 4, 20, 1 << 33, 0]).done(),
            Operation::Copy {
                from_handle: 3,
                from_offset: 10,
                to_node: 6,
                to_handle: 4,
                to_offset: 20,
                length: 1 << 33,
                flags: 0,
            },
        ),
        (
            message(39)
                .u64(&[3])
                .u32(&[0, 0x5401])
                .u64(&[0xdead])
                .u32(&[0, 60])
                .done(),
            Operation::Ioctl {
                handle: 3,
                command: 0x5401,
            },
        ),
        (
            message(40).u64(&[3, 1]).u32(&[0, 1]).done(),
            Operation::Poll,
        ),
        (
            message(37).u64(&[3]).u32(&[512, 0]).done(),
            Operation::Other { opcode: 37 },
        ),
        (
            message(9999).bytes(b"whatever").done(),
            Operation::Other { opcode: 9999 },
        ),
    ]
}

#[test]
fn every_operation_is_understood() {
    for (bytes, operation) in examples() {
        let request = Request::parse(&bytes).expect("a good request");
        assert_eq!(request.operation, operation);
        assert_eq!((request.unique, request.node), (UNIQUE, NODE));
        let who = (request.uid, request.gid, request.pid);
        assert_eq!(who, (1000, 100, 4321));
    }
}

#[test]
fn the_first_request_has_64_bits_of_flags() {
    let upper = 1u32 << 3;
    let bytes = Message::new(26)
        .u32(&[7, 45, 131_072, 1 << 30 | 1, upper])
        .u32(&[0; 11])
        .done();
    let Ok(Operation::Init(init)) = Request::parse(&bytes).map(|request| request.operation) else {
        panic!("not the first request");
    };
    assert_eq!((init.major, init.minor), (7, 45));
    assert_eq!(init.max_readahead, 131_072);
    assert_eq!(init.flags, 1 << 35 | 1 << 30 | 1);
    let old = Message::new(26).u32(&[7, 35, 0, 1, upper]).done();
    let Ok(Operation::Init(init)) = Request::parse(&old).map(|request| request.operation) else {
        panic!("not the first request");
    };
    assert_eq!(init.flags, 1, "the second field means nothing there");
}

#[test]
fn what_is_cut_off_can_be_refused() {
    let whole = Message::new(16)
        .u64(&[3, 0])
        .u32(&[100, 0])
        .u64(&[0])
        .u32(&[0, 0])
        .bytes(&[0; 99])
        .done();
    let error = Request::parse(&whole).expect_err("99 bytes are not 100");
    let (unique, opcode) = (UNIQUE, 16);
    assert_eq!(error, ParseError::Body { unique, opcode });
    let unended = Message::new(1).bytes(b"name").done();
    assert!(matches!(
        Request::parse(&unended),
        Err(ParseError::Body { .. })
    ));
    let error = Request::parse(&whole[..39]).expect_err("no header");
    assert_eq!(error, ParseError::Header { length: 39 });
}

#[test]
fn extensions_are_no_part_of_the_request() {
    let mut bytes = Message::new(1).bytes(b"a\0").bytes(&[1; 16]).done();
    bytes[36..38].copy_from_slice(&2u16.to_ne_bytes());
    let request = Request::parse(&bytes).expect("a good request");
    assert_eq!(request.operation, Operation::Lookup { name: b"a" });
    bytes[36..38].copy_from_slice(&u16::MAX.to_ne_bytes());
    assert!(Request::parse(&bytes).is_err());
}

#[test]
fn forgetting_and_interrupting_take_no_reply() {
    let silent: Vec<Operation<'_>> = examples()
        .into_iter()
        .map(|(_, operation)| operation)
        .filter(|operation| !operation.takes_reply())
        .collect();
    assert_eq!(silent.len(), 3);
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&bytes);
    }

    /// The length is right, and the operation exists.
    #[test]
    fn random_bodies_do_no_harm(
        opcode in 0u32..60,
        extensions in prop_oneof![Just(0u16), any::<u16>()],
        body in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200),
    ) {
        let mut bytes = Message::new(opcode).bytes(&body).done();
        bytes[36..38].copy_from_slice(&extensions.to_ne_bytes());
        let _ = Request::parse(&bytes);
    }

    #[test]
    fn damaged_requests_do_no_harm(
        which in 0..examples().len(),
        cut in any::<proptest::sample::Index>(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = examples()[which].0.clone();
        for (place, value) in flips {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(length) = u32::try_from(bytes.len())
            && bytes.len() >= 4
        {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
        }
        let _ = Request::parse(&bytes);
    }
}
