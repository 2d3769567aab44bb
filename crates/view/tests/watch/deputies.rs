//! Exports in several processes, which lease the same files.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit, setrlimit};
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork};
use wiglaf_view::export::{Export, LinkId, Told};
use wiglaf_wire::view::{Ask, Change, FileId, HandleId, Question, Reply};

use crate::scene::{Mounted, Scene};

pub(crate) const ALL: &[(&str, fn())] = &[
    (
        "deputies_that_write_what_others_lease_do_not_wait_for_each_other",
        deputies_that_write_what_others_lease_do_not_wait_for_each_other,
    ),
    (
        "leases_are_heard_of_when_no_signal_can_be_queued",
        leases_are_heard_of_when_no_signal_can_be_queued,
    ),
];

const LINK: LinkId = LinkId(1);
const RDONLY: u32 = 0;
const RDWR: u32 = 2;
/// A lease that nobody gives up ends after 45 s.
const AT_ONCE: Duration = Duration::from_secs(10);

struct Deputy {
    export: Export,
    _keeper: OwnedFd,
    asked: u64,
    changes: Vec<Change>,
}

impl Deputy {
    fn new(at: &Path) -> Deputy {
        let Scene { watch, keeper, .. } = Scene::of(&[at]);
        Deputy {
            export: Export::new(Vec::new(), Some(watch)).unwrap(),
            _keeper: keeper,
            asked: 0,
            changes: Vec::new(),
        }
    }

    fn hear(&mut self, told: Vec<(LinkId, Told)>) -> Option<Reply> {
        let mut answer = None;
        for (_, told) in told {
            match told {
                Told::Answer(told) => answer = Some(told.result.unwrap()),
                Told::Changes(changes) => self.changes.extend(changes),
            }
        }
        answer
    }

    fn ask(&mut self, what: Ask) -> Option<Reply> {
        self.asked += 1;
        let question = Question {
            id: self.asked,
            uid: 0,
            gid: 0,
            what,
        };
        let mut told = Vec::new();
        self.export.question(LINK, question, &mut told);
        self.hear(told)
    }

    fn find(&mut self, path: &Path) -> FileId {
        let mut parent = FileId::ROOT;
        for name in path.components().skip(1) {
            let name = name.as_os_str().as_encoded_bytes().to_vec();
            match self.ask(Ask::Lookup { parent, name }) {
                Some(Reply::Entry(Some(found))) => parent = found.file,
                other => panic!("{other:?}"),
            }
        }
        parent
    }

    /// The handle, and whether the content may not be kept.
    fn open(&mut self, path: &Path, flags: u32) -> (HandleId, bool) {
        let file = self.find(path);
        let handle = HandleId(self.asked);
        let what = Ask::Open {
            file,
            flags,
            handle,
            content: false,
        };
        match self.ask(what) {
            Some(Reply::Opened { unkept, .. }) => (handle, unkept),
            other => panic!("{other:?}"),
        }
    }

    fn close(&mut self, handle: HandleId) {
        assert!(self.ask(Ask::Close { handle }).is_none());
    }

    /// Lives on until the other has come as far.
    fn meet(&mut self, other: &OwnedFd) {
        rustix::net::send(other, b"!", SendFlags::NOSIGNAL).unwrap();
        let flags = RecvFlags::DONTWAIT;
        while rustix::net::recv(other, &mut [0][..], flags).is_err() {
            self.live();
        }
    }

    fn live(&mut self) {
        const TURN: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let watch = self.export.watch_fd().unwrap();
        poll(
            &mut [PollFd::from_borrowed_fd(watch, PollFlags::IN)],
            Some(&TURN),
        )
        .unwrap();
        let mut told = Vec::new();
        self.export.changes(&mut told);
        assert!(self.hear(told).is_none());
    }
}

/// Two processes, each with one end of a socket. What the other one does not do is a panic here.
fn both(act: impl Fn(bool, OwnedFd)) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let guarded = |first, end| {
        let act = std::panic::AssertUnwindSafe(|| act(first, end));
        std::panic::catch_unwind(act).is_ok()
    };
    match process::fork().unwrap() {
        Fork::Parent { pid, .. } => {
            drop(theirs);
            let good = guarded(true, ours);
            let change = process::wait(pid, false).unwrap().unwrap();
            assert_eq!(change.state, ChildState::Ended(ExitStatus::Exited(0)));
            assert!(good);
        }
        Fork::Child => {
            drop(ours);
            std::process::exit(i32::from(!guarded(false, theirs)));
        }
    }
}

fn deputies_that_write_what_others_lease_do_not_wait_for_each_other() {
    const ROUNDS: usize = 100;
    let tmpfs = Mounted::tmpfs();
    let files = [tmpfs.file("one", "1"), tmpfs.file("other", "2")];
    both(|first, other| {
        let mut deputy = Deputy::new(tmpfs.path());
        for round in 0..ROUNDS {
            // Each has a lease on what the other one is about to write, or both on the same.
            let same = round % 3 == 0;
            let (mine, theirs) = match (same, first) {
                (true, _) | (_, false) => (0, 1),
                (false, true) => (1, 0),
            };
            let readers = [0, 1].map(|at| deputy.open(&files[at], RDONLY));
            assert!(readers.iter().all(|(_, unkept)| !unkept), "{round}");
            deputy.changes.clear();
            deputy.meet(&other);
            let began = Instant::now();
            let (writer, _) = deputy.open(&files[mine], RDWR);
            deputy.close(writer);
            deputy.meet(&other);
            assert!(began.elapsed() < AT_ONCE);
            deputy.live();
            if !same {
                let file = deputy.find(&files[theirs]);
                let content = true;
                assert!(deputy.changes.contains(&Change::File { file, content }));
            }
            for (handle, _) in readers {
                deputy.close(handle);
            }
            deputy.meet(&other);
        }
    });
}

fn leases_are_heard_of_when_no_signal_can_be_queued() {
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "1");
    both(|first, other| {
        if first {
            rustix::net::recv(&other, &mut [0][..], RecvFlags::empty()).unwrap();
            let began = Instant::now();
            drop(crate::scene::open_for_writing(&path));
            assert!(began.elapsed() < AT_ONCE);
            rustix::net::send(&other, b"!", SendFlags::NOSIGNAL).unwrap();
            return;
        }
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Sigpending, none).unwrap();
        let mut deputy = Deputy::new(tmpfs.path());
        let (_, unkept) = deputy.open(&path, RDONLY);
        assert!(!unkept);
        deputy.meet(&other);
        deputy.live();
        let file = deputy.find(&path);
        let content = true;
        assert!(deputy.changes.contains(&Change::File { file, content }));
    });
}
