//! Locks between two nodes, and with the head's own processes.

use std::time::Duration;

use super::*;

const ALL: (u64, u64) = (0, i64::MAX.cast_unsigned());

fn lock(kind: LockKind, (start, end): (u64, u64)) -> Lock {
    Lock {
        kind,
        start,
        end,
        pid: 0,
    }
}

impl Rig {
    fn lock(
        &mut self,
        link: LinkId,
        opened: &Opened,
        (owner, style): (u64, LockStyle),
        lock: Lock,
        wait: bool,
    ) -> Option<Result<(), Errno>> {
        let what = Ask::Lock {
            file: opened.file,
            handle: opened.handle,
            owner,
            style,
            lock,
            wait,
        };
        let answered = self.try_ask(link, what)?;
        Some(answered.map(|reply| assert!(matches!(reply, Reply::Attributes(_)))))
    }

    fn record(
        &mut self,
        link: LinkId,
        opened: &Opened,
        owner: u64,
        lock: Lock,
    ) -> Result<(), Errno> {
        let how = (owner, LockStyle::Record);
        self.lock(link, opened, how, lock, false)
            .expect("an answer")
    }

    fn whole(&mut self, link: LinkId, opened: &Opened, kind: LockKind) -> Result<(), Errno> {
        let how = (opened.handle.0, LockStyle::Whole);
        let answer = self.lock(link, opened, how, lock(kind, ALL), false);
        answer.expect("an answer")
    }

    fn test(&mut self, link: LinkId, opened: &Opened, owner: u64, lock: Lock) -> Option<Lock> {
        let what = Ask::TestLock {
            file: opened.file,
            handle: opened.handle,
            owner,
            lock,
        };
        match self.ask(link, what) {
            Ok(Reply::Locked(found)) => found,
            other => panic!("{other:?}"),
        }
    }

    /// Ticks until an answer comes that had to wait.
    fn awaited(&mut self) -> (LinkId, Result<Reply, Errno>) {
        for _ in 0..1000 {
            if let Some((link, answer)) = self.late.pop_front() {
                return (link, answer.result.map_err(Errno::from_raw_os_error));
            }
            let deadline = self.export.deadline().expect("somebody waits");
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            let mut out = Vec::new();
            self.export.tick(Instant::now(), &mut out);
            for (to, told) in out {
                match told {
                    Told::Answer(answer) => self.late.push_back((to, answer)),
                    Told::Changes(changes) => self.heard(to, changes),
                    Told::Gifts(gifts) => panic!("{gifts:?}"),
                }
            }
        }
        panic!("nothing came");
    }

    fn both(&mut self) -> (Opened, Opened) {
        self.write("file", "0123456789");
        let file = self.look_up(A, "file").file;
        self.look_up(B, "file");
        let one = self.open(A, file, RDWR).expect("opened");
        let two = self.open(B, file, RDWR).expect("opened");
        (one, two)
    }
}

#[test]
fn record_locks_hold_between_nodes_and_owners() {
    let mut rig = Rig::new();
    let (one, two) = rig.both();
    let write = |range| lock(LockKind::Write, range);
    let read = |range| lock(LockKind::Read, range);
    rig.record(A, &one, 1, write((0, 4))).expect("free");
    assert_eq!(rig.record(B, &two, 1, write((4, 9))), Err(Errno::AGAIN));
    assert_eq!(rig.record(A, &one, 2, read((0, 0))), Err(Errno::AGAIN));
    rig.record(A, &one, 1, write((0, 2))).expect("its own");
    rig.record(B, &two, 1, write((5, 9))).expect("free");
    let found = rig.test(B, &two, 1, read(ALL));
    assert_eq!(found, Some(write((0, 4))));
    assert_eq!(rig.test(A, &one, 1, write((0, 4))), None);
    rig.record(A, &one, 1, lock(LockKind::Unlock, (0, 3)))
        .expect("given up");
    rig.record(B, &two, 1, write((0, 3))).expect("free now");
    let (file, owner) = (one.file, 1);
    rig.tell(A, Ask::Unlock { file, owner });
    rig.record(B, &two, 1, write(ALL)).expect("free now");
    // A node that is gone has none.
    rig.export.close(B);
    rig.record(A, &one, 1, write(ALL)).expect("free now");
}

#[test]
fn locks_go_with_the_open_file() {
    let mut rig = Rig::new();
    let (one, two) = rig.both();
    rig.record(A, &one, 5, lock(LockKind::Write, ALL))
        .expect("free");
    rig.whole(A, &one, LockKind::Write).expect("free");
    let all = lock(LockKind::Read, ALL);
    assert_eq!(rig.record(B, &two, 5, all), Err(Errno::AGAIN));
    assert_eq!(rig.whole(B, &two, LockKind::Read), Err(Errno::AGAIN));
    let handle = one.handle;
    rig.tell(A, Ask::Close { handle });
    rig.record(B, &two, 5, all).expect("free now");
    rig.whole(B, &two, LockKind::Read).expect("free now");
    // A closed one takes none.
    assert_eq!(rig.whole(A, &one, LockKind::Read), Err(Errno::BADF));
}

#[test]
fn whole_locks_hold_between_open_files() {
    let mut rig = Rig::new();
    let (one, two) = rig.both();
    let again = rig.open(A, one.file, RDONLY).expect("opened");
    rig.whole(A, &one, LockKind::Read).expect("free");
    rig.whole(B, &two, LockKind::Read).expect("shared");
    assert_eq!(rig.whole(A, &again, LockKind::Write), Err(Errno::AGAIN));
    rig.whole(B, &two, LockKind::Unlock).expect("given up");
    rig.whole(A, &one, LockKind::Write).expect("alone");
    assert_eq!(rig.whole(A, &again, LockKind::Read), Err(Errno::AGAIN));
    // The two kinds do not see each other.
    rig.record(B, &two, 1, lock(LockKind::Write, ALL))
        .expect("another kind");
}

#[test]
fn locks_hold_against_the_heads_processes() {
    let mut rig = Rig::new();
    let (one, _) = rig.both();
    rig.whole(A, &one, LockKind::Write).expect("free");
    elsewhere(&mut rig, "! flock -n file true");
    rig.whole(A, &one, LockKind::Unlock).expect("given up");
    elsewhere(&mut rig, "flock -n file true");
    let file = std::fs::File::open(rig.file("file")).expect("the file");
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&file, exclusive).expect("free");
    assert_eq!(rig.whole(A, &one, LockKind::Read), Err(Errno::AGAIN));
    drop(file);
    rig.whole(A, &one, LockKind::Read).expect("free now");
    if std::process::Command::new("python3")
        .arg("-V")
        .output()
        .is_err()
    {
        println!("SKIPPED: no python3 to lock with");
        return;
    }
    rig.record(A, &one, 1, lock(LockKind::Write, (0, 4)))
        .expect("free");
    let try_it = "python3 -c 'import fcntl; \
        fcntl.lockf(open(\"file\", \"r+\"), fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 3)'";
    elsewhere(&mut rig, &format!("! {try_it} 2>/dev/null"));
    let (file, owner) = (one.file, 1);
    rig.tell(A, Ask::Unlock { file, owner });
    elsewhere(&mut rig, try_it);
    // A process of the head has its PID told, and keeps us off.
    let mut holder = std::process::Command::new("python3")
        .args(["-uc", "import fcntl, sys; f = open('file', 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); sys.stdin.read()"])
        .current_dir(&rig.path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    let mut line = [0; 5];
    let output = holder.stdout.as_mut().expect("its output");
    std::io::Read::read_exact(output, &mut line).expect("a line");
    let all = lock(LockKind::Write, ALL);
    assert_eq!(rig.record(A, &one, 1, all), Err(Errno::AGAIN));
    let found = rig.test(A, &one, 1, all).expect("it is locked");
    assert_eq!(found.pid, holder.id());
    assert_eq!((found.start, found.end), ALL);
    let waiting = rig.lock(A, &one, (1, LockStyle::Record), all, true);
    assert!(waiting.is_none());
    drop(holder.stdin.take());
    let (link, answer) = rig.awaited();
    assert_eq!(link, A);
    assert!(matches!(answer, Ok(Reply::Attributes(_))));
    holder.wait().expect("it has ended");
}

#[test]
fn a_lock_that_waits_is_granted_at_once_when_it_is_given_up() {
    let mut rig = Rig::new();
    let (one, two) = rig.both();
    for style in [LockStyle::Record, LockStyle::Whole] {
        let write = lock(LockKind::Write, ALL);
        let locked = rig.lock(A, &one, (1, style), write, false);
        assert_eq!(locked, Some(Ok(())));
        assert_eq!(rig.lock(B, &two, (1, style), write, true), None);
        assert_eq!(
            rig.lock(B, &two, (1, style), write, false),
            Some(Err(Errno::AGAIN))
        );
        assert!(rig.export.deadline().is_some());
        rig.attributes(B, two.file).expect("told");
        rig.ignore_news();
        rig.write_to(A, one.handle, 0, b"longer than before")
            .expect("written");
        let unlock = lock(LockKind::Unlock, ALL);
        rig.lock(A, &one, (1, style), unlock, false);
        // Without any tick; and with the attributes as the last holder left them.
        let (link, answer) = rig.late.pop_front().expect("granted");
        assert_eq!(link, B);
        assert_eq!(rig.news(B), [changed(two.file, true)]);
        match answer.result {
            Ok(Reply::Attributes(attributes)) => assert_eq!(attributes.size, 18),
            other => panic!("{other:?}"),
        }
        assert!(rig.export.deadline().is_none());
        rig.lock(B, &two, (1, style), unlock, false);
    }
}

#[test]
fn waiting_locks_are_interrupted_and_closed() {
    let mut rig = Rig::new();
    let (one, two) = rig.both();
    let write = lock(LockKind::Write, ALL);
    rig.record(A, &one, 1, write).expect("free");
    assert_eq!(rig.lock(B, &two, (1, LockStyle::Record), write, true), None);
    let id = rig.ids;
    rig.tell(A, Ask::Interrupt { id });
    assert!(rig.late.is_empty(), "another link's question");
    rig.tell(B, Ask::Interrupt { id });
    let (link, answer) = rig.late.pop_front().expect("an answer");
    assert_eq!((link, answer.id), (B, id));
    assert_eq!(answer.result, Err(Errno::INTR.raw_os_error()));
    assert!(rig.export.deadline().is_none());
    // What was interrupted holds nothing.
    let (file, owner) = (one.file, 1);
    rig.tell(A, Ask::Unlock { file, owner });
    rig.record(A, &one, 2, write).expect("free");
    // A link that is gone waits no more; one that it held off goes on.
    assert_eq!(rig.lock(B, &two, (1, LockStyle::Record), write, true), None);
    rig.export.close(A);
    let (link, answer) = rig.awaited();
    assert!(link == B && answer.is_ok());
    let one = rig.find(A, &rig.file("file")).file;
    let one = rig.open(A, one, RDWR).expect("opened");
    assert_eq!(rig.lock(A, &one, (1, LockStyle::Record), write, true), None);
    rig.export.close(A);
    assert!(rig.export.deadline().is_none());
}

#[test]
fn waiting_costs_little() {
    let mut rig = Rig::new();
    let (one, two) = rig.both();
    let write = lock(LockKind::Write, ALL);
    rig.record(A, &one, 1, write).expect("free");
    assert_eq!(rig.lock(B, &two, (1, LockStyle::Record), write, true), None);
    let mut now = Instant::now();
    let mut ticks = 0;
    let end = now + Duration::from_secs(10);
    while now < end {
        now = now.max(rig.export.deadline().expect("somebody waits"));
        rig.export.tick(now, &mut Vec::new());
        ticks += 1;
    }
    assert!(ticks < 250, "{ticks}");
}

#[test]
fn a_file_that_may_only_be_read_takes_read_locks() {
    let mut rig = Rig::new();
    if rustix::process::geteuid().is_root() {
        println!("SKIPPED: root may write everywhere");
        return;
    }
    rig.write("file", "x");
    let path = rig.file("file");
    rustix::fs::chmod(&path, 0o444.into()).expect("read-only");
    let file = rig.look_up(A, "file").file;
    let opened = rig.open(A, file, RDONLY).expect("opened");
    rig.record(A, &opened, 1, lock(LockKind::Read, ALL))
        .expect("free");
    let write = rig.record(A, &opened, 1, lock(LockKind::Write, ALL));
    assert_eq!(write, Err(Errno::BADF));
}

#[test]
fn directories_are_opened_to_be_locked_and_for_nothing_else() {
    const DIRECTORY: u32 = 0o200_000;
    let mut rig = Rig::new();
    std::fs::create_dir(rig.file("d")).expect("a directory");
    rig.write("file", "1");
    let file = rig.look_up(A, "file").file;
    let directory = rig.look_up(A, "d").file;
    rig.look_up(B, "d");
    let refused = |rig: &mut Rig, file, flags| rig.open(A, file, flags).err();
    assert_eq!(refused(&mut rig, file, DIRECTORY), Some(Errno::NOTDIR));
    assert_eq!(refused(&mut rig, directory, RDONLY), Some(Errno::ISDIR));
    assert_eq!(
        refused(&mut rig, directory, RDWR | DIRECTORY),
        Some(Errno::ISDIR)
    );
    let one = rig.open(A, directory, DIRECTORY).expect("opened");
    let other = rig.open(B, directory, DIRECTORY).expect("opened");
    assert_eq!((one.content.as_deref(), one.unkept), (None, false));
    assert_eq!(rig.whole(A, &one, LockKind::Write), Ok(()));
    assert_eq!(rig.whole(B, &other, LockKind::Read), Err(Errno::AGAIN));
    elsewhere(&mut rig, "! flock -n d true");
    rig.tell(A, Ask::Close { handle: one.handle });
    assert_eq!(rig.whole(B, &other, LockKind::Read), Ok(()));
    let records = rig.record(B, &other, 1, lock(LockKind::Read, ALL));
    assert_eq!(records, Err(Errno::ISDIR));
    let handle = other.handle;
    let read = rig.read(B, directory, Some(handle), 0, 1);
    assert_eq!(read, Err(Errno::BADF));
    let written = rig.write_to(B, handle, 0, b"1");
    assert_eq!(written.err(), Some(Errno::BADF));
    let seek = Ask::Seek {
        handle,
        offset: 0,
        whence: 3,
    };
    assert_eq!(rig.ask(B, seek), Err(Errno::ISDIR));
    let sync = Ask::Sync {
        file: directory,
        handle: Some(handle),
        data_only: false,
    };
    assert_eq!(rig.done(B, sync), Ok(()));
}
