//! Who writes to what nodes have open is known before it is written, and never waits.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use rustix::fs::{Mode, OFlags};

use super::watched::watched;
use super::*;

/// Maps a file, closes it, stores into it at every line that it reads, and unmaps it at the end.
const MAPPER: &str = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
os.close(fd)
print("mapped", flush=True)
for line in sys.stdin:
    if line == "end\n":
        break
    memory[:len(line) - 1] = line[:-1].encode()
    print("stored", flush=True)
memory.close()
print("unmapped", flush=True)
"#;

/// A process on the head with a file in its memory.
struct Mapper {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Mapper {
    /// `None`, said aloud, without Python.
    fn new(rig: &Rig, name: &str) -> Option<Mapper> {
        let mut child = match std::process::Command::new("python3")
            .args(["-c", MAPPER, name])
            .current_dir(&rig.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        {
            Ok(child) => child,
            Err(error) => {
                println!("SKIPPED: no python3: {error}");
                return None;
            }
        };
        let orders = child.stdin.take().expect("piped");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("it answers");
        assert_eq!(line, "mapped\n");
        Some(Mapper {
            child,
            orders,
            answers,
        })
    }

    fn order(&mut self, line: &str) -> String {
        writeln!(self.orders, "{line}").expect("it reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        answer
    }

    fn end(mut self) {
        assert_eq!(self.order("end"), "unmapped\n");
        assert!(self.child.wait().expect("a child").success());
    }
}

/// A process on the head that has a file open for writing.
pub(super) struct Appender(Child);

impl Appender {
    pub(super) fn new(rig: &Rig, name: &str) -> Appender {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "exec 3>>\"$0\"; echo opened; read -r end", name])
            .current_dir(&rig.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut line = String::new();
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        answers.read_line(&mut line).expect("it answers");
        assert_eq!(line, "opened\n");
        Appender(child)
    }

    pub(super) fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("a child");
    }
}

/// `None`, said aloud, where nothing can be watched: a file that both nodes know.
fn shared_file(content: &str) -> Option<(Rig, FileId, OwnedFd)> {
    let (mut rig, keeper) = watched()?;
    rig.write("file", content);
    let told = rig.look_up(A, "file");
    rig.look_up(B, "file");
    if !told.watched {
        println!("SKIPPED: something was mounted meanwhile");
        return None;
    }
    rig.ignore_news();
    Some((rig, told.file, keeper))
}

impl Rig {
    fn shut(&mut self, link: LinkId, opened: &Opened) {
        let handle = opened.handle;
        self.tell(link, Ask::Close { handle });
    }

    /// What a link hears of one file.
    fn heard_of(&mut self, link: LinkId, file: FileId) -> Vec<Change> {
        let mut news = self.news(link);
        news.retain(|change| match change {
            Change::File { file: of, .. } | Change::Doubtful { file: of } => *of == file,
            Change::Name { .. } => false,
            Change::Everything => true,
        });
        news
    }
}

#[test]
fn v1_stores_to_memory_are_seen_by_later_opens() {
    let Some((mut rig, file, _keeper)) = shared_file("before") else {
        return;
    };
    let first = rig.open(A, file, RDONLY).expect("opened");
    assert!(!first.unkept);
    let Some(mut mapper) = Mapper::new(&rig, "file") else {
        return;
    };
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert_eq!(rig.heard_of(B, file), [changed(file, true)]);
    for text in ["stored", "memory"] {
        assert_eq!(mapper.order(text), "stored\n");
        for link in [A, B] {
            let again = rig.open(link, file, RDONLY).expect("opened");
            assert!(again.unkept, "it may change at any time");
            assert!(!again.attributes.watched, "so may its times");
            assert_eq!(again.content.as_deref(), Some(text.as_bytes()));
            rig.shut(link, &again);
        }
        assert!(!rig.look_up(A, "file").watched);
    }
    mapper.end();
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert!(rig.look_up(B, "file").watched, "nobody can write any more");
    // The next one is noticed just so, though nobody has opened the file meanwhile.
    rig.attributes(A, file).expect("told");
    let mapper = Mapper::new(&rig, "file").expect("as before");
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    mapper.end();
    let last = rig.open(A, file, RDONLY).expect("opened");
    assert!(!last.unkept && last.attributes.watched);
    // The guard goes with its last reader.
    rig.shut(A, &first);
    assert_eq!(rig.export.guards.len(), 1);
    rig.shut(A, &last);
    assert_eq!(rig.export.guards.len(), 0);
    let mapper = Mapper::new(&rig, "file").expect("as before");
    assert_eq!(rig.heard_of(A, file), []);
    mapper.end();
}

#[test]
fn a_guard_is_one_for_all_readers_of_a_file() {
    let Some((mut rig, file, _keeper)) = shared_file("before") else {
        return;
    };
    let readers = [A, B].map(|link| rig.open(link, file, RDONLY).expect("opened"));
    assert_eq!(rig.export.guards.len(), 1);
    // It was removed and lives on with its readers; the other one of its name has its own.
    elsewhere(&mut rig, "cp file copy; ln file other; mv copy file");
    let new = rig.look_up(A, "file").file;
    assert_ne!(new, file);
    rig.open(A, new, RDONLY).expect("opened");
    assert_eq!(rig.export.guards.len(), 2);
    rig.shut(A, &readers[0]);
    rig.export.close(A);
    rig.ignore_news();
    rig.attributes(B, file).expect("told");
    let writer = Appender::new(&rig, "other");
    assert_eq!(rig.heard_of(B, file), [changed(file, true)]);
    writer.end();
    rig.export.close(B);
    assert_eq!(rig.export.guards.len(), 0);
}

#[test]
fn whoever_opens_is_noticed_and_does_not_wait() {
    let Some((mut rig, file, _keeper)) = shared_file("123456") else {
        return;
    };
    let opened = rig.open(A, file, RDONLY).expect("opened");
    // Nobody answers for the export while these run.
    for (script, writes) in [
        ("exec 3<file", false),
        ("exec 3<file; cat <&3; cp file copy", false),
        ("exec 3>>file; echo 7 >&3", true),
        ("truncate -s 3 file", true),
        ("truncate -s 0 file", true),
        (
            "dd if=/dev/null of=file oflag=nonblock,append conv=notrunc",
            true,
        ),
    ] {
        rig.attributes(A, file).expect("told");
        elsewhere(&mut rig, script);
        let expected: &[Change] = if writes { &[changed(file, true)] } else { &[] };
        assert_eq!(rig.heard_of(A, file), expected, "{script}");
        let again = rig.open(A, file, RDONLY).expect("opened");
        assert!(!again.unkept, "{script}");
        rig.shut(A, &again);
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    assert!(rustix::fs::open(rig.file("file"), flags, Mode::empty()).is_ok());
    let writer = Appender::new(&rig, "file");
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert!(rig.open(A, file, RDONLY).expect("opened").unkept);
    writer.end();
    rig.shut(A, &opened);
    assert!(!rig.open(A, file, RDONLY).expect("opened").unkept);
}

#[test]
fn whoever_comes_while_events_are_lost_is_noticed() {
    let Some((mut rig, file, _keeper)) = shared_file("before") else {
        return;
    };
    rig.open(A, file, RDONLY).expect("opened");
    let writer = Appender::new(&rig, "file");
    rig.export
        .watch
        .as_mut()
        .expect("a watch")
        .drain(&mut |_| {});
    assert_eq!(rig.heard_of(A, file), []);
    rig.export.obey(&crate::watch::Event::Lost);
    assert_eq!(rig.heard_of(A, file), [Change::Everything]);
    assert!(!rig.attributes(A, file).expect("told").watched);
    assert!(rig.open(A, file, RDONLY).expect("opened").unkept);
    writer.end();
    assert!(rig.attributes(A, file).expect("told").watched);
}

#[test]
fn a_node_that_writes_is_not_in_its_own_way() {
    let Some((mut rig, file, _keeper)) = shared_file("123456") else {
        return;
    };
    let of_a = rig.open(A, file, RDONLY).expect("opened");
    let of_b = rig.open(B, file, RDONLY).expect("opened");
    assert!(!of_a.unkept && !of_b.unkept);
    let writer = rig.open(B, file, RDWR).expect("opened");
    assert!(!writer.unkept, "it knows what it writes");
    assert!(rig.open(A, file, RDONLY).expect("opened").unkept);
    rig.write_to(B, writer.handle, 0, b"0").expect("written");
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    rig.shut(B, &writer);
    assert_eq!(rig.heard_of(B, file), []);
    assert!(!rig.open(A, file, RDONLY).expect("opened").unkept);
    // The other ways to write.
    let size = SetAttributes {
        size: Some(2),
        ..SetAttributes::default()
    };
    rig.set(B, file, size).expect("truncated");
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert!(!rig.open(A, file, RDONLY).expect("opened").unkept);
    let emptied = rig.open(B, file, WRONLY | TRUNC).expect("opened");
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    rig.shut(B, &emptied);
    let emptied = rig.open(B, file, RDONLY | TRUNC).expect("opened");
    assert!(!emptied.unkept);
    let created = rig.create(B, "file", RDWR).expect("opened");
    assert_eq!(created.file, file);
    rig.shut(B, &created);
    assert_eq!(rig.heard_of(B, file), []);
    assert!(!rig.open(A, file, RDONLY).expect("opened").unkept);
}

#[test]
fn somebody_who_comes_while_a_node_writes_is_noticed_when_it_ends() {
    let Some((mut rig, file, _keeper)) = shared_file("before") else {
        return;
    };
    rig.open(A, file, RDONLY).expect("opened");
    let writer = rig.open(A, file, RDWR).expect("opened");
    let Some(mapper) = Mapper::new(&rig, "file") else {
        return;
    };
    assert_eq!(rig.heard_of(A, file), []);
    rig.shut(A, &writer);
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert!(rig.open(A, file, RDONLY).expect("opened").unkept);
    mapper.end();
    assert!(!rig.open(A, file, RDONLY).expect("opened").unkept);
}

#[test]
fn what_is_learned_when_a_link_closes_is_told_to_the_others() {
    let Some((mut rig, file, _keeper)) = shared_file("before") else {
        return;
    };
    let writer = rig.open(B, file, RDWR).expect("opened");
    let reader = rig.open(A, file, RDONLY).expect("opened");
    assert!(reader.unkept);
    let Some(mapper) = Mapper::new(&rig, "file") else {
        return;
    };
    rig.ignore_news();
    assert!(rig.export.deadline().is_none());
    drop(writer);
    rig.export.close(B);
    assert!(rig.export.deadline().is_some_and(|at| at <= Instant::now()));
    let mut told = Vec::new();
    rig.export.tick(Instant::now(), &mut told);
    assert_eq!(told, [(A, Told::Changes(vec![changed(file, true)]))]);
    assert!(rig.export.deadline().is_none());
    mapper.end();
}
