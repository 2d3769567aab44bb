//! Exports in processes of their own, and who else opens what their nodes read.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use wiglaf_linux::creds::become_deputy;
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork};
use wiglaf_view::export::{Export, LinkId, Told};
use wiglaf_wire::view::{Ask, Change, FileId, HandleId, Question, Reply};

use crate::say;
use crate::scene::{Mounted, Scene, elsewhere, open_for_writing};

pub(crate) const ALL: &[(&str, fn())] = &[
    (
        "deputies_notice_and_do_not_hinder_each_other",
        deputies_notice_and_do_not_hinder_each_other,
    ),
    (
        "an_ordinary_users_deputy_notices_who_opens",
        an_ordinary_users_deputy_notices_who_opens,
    ),
    (
        "nobody_who_must_not_wait_is_refused",
        nobody_who_must_not_wait_is_refused,
    ),
    ("what_a_guard_costs", what_a_guard_costs),
];

const LINK: LinkId = LinkId(1);
const RDONLY: u32 = 0;
const RDWR: u32 = 2;
/// Of an ordinary user, and of the service.
const USER: u32 = 32_001;
const SERVICE: u32 = 64_194;

struct Deputy {
    export: Export,
    _keeper: OwnedFd,
    asked: u64,
    changes: Vec<Change>,
}

impl Deputy {
    fn new(at: &Path) -> Deputy {
        Deputy::of(Scene::of(&[at]))
    }

    fn of(scene: Scene) -> Deputy {
        let Scene { watch, keeper, .. } = scene;
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
                Told::Gifts(gifts) => panic!("{gifts:?}"),
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

    /// Whether it is heard by the barrier that a file has changed.
    fn hears_of(&mut self, file: FileId) -> bool {
        assert!(matches!(self.ask(Ask::Barrier), Some(Reply::Done)));
        let content = true;
        let changes = std::mem::take(&mut self.changes);
        changes.contains(&Change::File { file, content })
    }
}

/// Goes on when the other has come as far.
fn meet(other: &OwnedFd) {
    rustix::net::send(other, b"!", SendFlags::NOSIGNAL).unwrap();
    let (_, length) = rustix::net::recv(other, &mut [0][..], RecvFlags::empty()).unwrap();
    assert_eq!(length, 1, "the other has ended");
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

fn deputies_notice_and_do_not_hinder_each_other() {
    const ROUNDS: usize = 300;
    let tmpfs = Mounted::tmpfs();
    let files = [tmpfs.file("one", "1"), tmpfs.file("other", "2")];
    both(|first, other| {
        let mut deputy = Deputy::new(tmpfs.path());
        let numbers = [0, 1].map(|at: usize| deputy.find(&files[at]));
        for round in 0..ROUNDS {
            // Each reads both, and writes one: the other's, or the same.
            let same = round % 3 == 0;
            let mine = usize::from(first && !same);
            let theirs = usize::from(!first && !same);
            let readers = [0, 1].map(|at: usize| deputy.open(&files[at], RDONLY));
            assert!(readers.iter().all(|(_, unkept)| !unkept), "{round}");
            deputy.changes.clear();
            meet(&other);
            let (writer, _) = deputy.open(&files[mine], RDWR);
            meet(&other);
            if !same {
                assert!(deputy.hears_of(numbers[theirs]), "{round}");
                assert!(deputy.open(&files[theirs], RDONLY).1, "{round}");
            }
            meet(&other);
            deputy.close(writer);
            for (handle, _) in readers {
                deputy.close(handle);
            }
            meet(&other);
        }
    });
}

fn an_ordinary_users_deputy_notices_who_opens() {
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "1");
    both(|first, other| {
        if first {
            meet(&other);
            let writer = open_for_writing(&path);
            meet(&other);
            meet(&other);
            drop(writer);
            return meet(&other);
        }
        let scene = Scene::of(&[tmpfs.path()]);
        become_deputy(SERVICE, SERVICE, USER, USER, &[]).unwrap();
        let mut deputy = Deputy::of(scene);
        let file = deputy.find(&path);
        let (reader, unkept) = deputy.open(&path, RDONLY);
        assert!(!unkept);
        meet(&other);
        meet(&other);
        assert!(deputy.hears_of(file));
        assert!(deputy.open(&path, RDONLY).1);
        meet(&other);
        meet(&other);
        assert!(!deputy.open(&path, RDONLY).1);
        deputy.close(reader);
    });
}

fn nobody_who_must_not_wait_is_refused() {
    const TIMES: usize = 200;
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "1");
    let mut deputy = Deputy::new(tmpfs.path());
    let file = deputy.find(&path);
    for _ in 0..TIMES {
        let (reader, unkept) = deputy.open(&path, RDONLY);
        assert!(!unkept);
        // The deputy does nothing meanwhile.
        elsewhere(|| {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK;
            let opened = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
            rustix::fs::ftruncate(&opened, 0).unwrap();
        });
        assert!(deputy.hears_of(file));
        deputy.close(reader);
    }
}

/// As `what_it_costs`: figures for who reads them.
fn what_a_guard_costs() {
    const TIMES: u32 = 20_000;
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "1");
    let others: Vec<_> = (0..100)
        .map(|number| tmpfs.file(&format!("file{number}"), "1"))
        .collect();
    let mut deputy = Deputy::new(tmpfs.path());
    let on_the_head = |what: &str| {
        elsewhere(|| {
            let began = Instant::now();
            (0..TIMES).for_each(|_| drop(File::open(&path).unwrap()));
            say(&format!("  {what}: {:?}", began.elapsed() / TIMES));
        });
    };
    on_the_head("open and close on the head, without a reader");
    let file = deputy.find(&path);
    let open_and_close = |deputy: &mut Deputy, what: &str| {
        let began = Instant::now();
        for number in 0..TIMES {
            let handle = HandleId(u64::from(number) + 1_000_000);
            let flags = RDONLY;
            let content = false;
            deputy.ask(Ask::Open {
                file,
                flags,
                handle,
                content,
            });
            deputy.close(handle);
        }
        say(&format!("  {what}: {:?}", began.elapsed() / TIMES));
    };
    open_and_close(&mut deputy, "Open and Close of a node, the first reader");
    let (reader, _) = deputy.open(&path, RDONLY);
    open_and_close(&mut deputy, "Open and Close of a node, another reader");
    on_the_head("open and close on the head, with a reader");
    let began = Instant::now();
    deputy.ask(Ask::Barrier);
    say(&format!("  barrier after these: {:?}", began.elapsed()));
    deputy.close(reader);
    let few = u32::try_from(others.len()).unwrap();
    for other in &others {
        deputy.open(other, RDONLY);
    }
    elsewhere(|| {
        others
            .iter()
            .for_each(|other| drop(fs::read(other).unwrap()))
    });
    let began = Instant::now();
    deputy.ask(Ask::Barrier);
    let each = began.elapsed() / few;
    say(&format!(
        "  barrier for each file that was opened: {each:?}"
    ));
    let began = Instant::now();
    deputy.ask(Ask::Barrier);
    say(&format!("  barrier for nothing: {:?}", began.elapsed()));
}
