//! Who writes to what nodes have open is known before it is written.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::watched::watched;
use super::*;

/// A lease that nobody gives up ends after 45 s.
const AT_ONCE: Duration = Duration::from_secs(10);

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
    fn new(rig: &mut Rig, name: &str) -> Option<Mapper> {
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
        let (line, answers) = rig.beside(move || {
            let mut line = String::new();
            let _ = answers.read_line(&mut line);
            (line, answers)
        });
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
    fn is_leased(&self, opened: &Opened) -> bool {
        let handle = self.export.links[&A].handles.get(&opened.handle);
        let handle = handle.or_else(|| self.export.links[&B].handles.get(&opened.handle));
        wiglaf_linux::lease::is_held(handle.expect("it is open").file.as_fd())
    }

    fn has_leases(&self, file: FileId) -> bool {
        self.export.leases.has(file)
    }

    fn shut(&mut self, link: LinkId, opened: &Opened) {
        let handle = opened.handle;
        self.tell(link, Ask::Close { handle });
    }

    /// What a link hears of one file.
    fn heard_of(&mut self, link: LinkId, file: FileId) -> Vec<Change> {
        let mut news = self.news(link);
        news.retain(|change| match change {
            Change::File { file: of, .. } => *of == file,
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
    assert!(!first.unkept && rig.is_leased(&first));
    let Some(mut mapper) = Mapper::new(&mut rig, "file") else {
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
    let last = rig.open(A, file, RDONLY).expect("opened");
    assert!(!last.unkept && last.attributes.watched && rig.is_leased(&first));
    // It goes with its last reader.
    rig.shut(A, &first);
    assert!(rig.has_leases(file));
    rig.shut(A, &last);
    assert!(!rig.has_leases(file));
    let writer = std::fs::File::options().append(true).open(rig.file("file"));
    drop(writer.expect("nobody has to wait"));
}

#[test]
fn whoever_opens_or_truncates_is_noticed() {
    let Some((mut rig, file, _keeper)) = shared_file("123456") else {
        return;
    };
    let path = rig.file("file");
    let scripts = [
        "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))",
        "import os, sys; os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND))",
        "import os, sys; os.truncate(sys.argv[1], 3)",
    ];
    for script in scripts {
        let opened = rig.open(A, file, RDONLY).expect("opened");
        rig.attributes(B, file).expect("told");
        assert!(!opened.unkept && rig.is_leased(&opened));
        let began = Instant::now();
        let target = path.clone();
        let status = rig.beside(move || {
            let mut python = std::process::Command::new("python3");
            python.args(["-c", script]).arg(target).status()
        });
        let Ok(status) = status else {
            println!("SKIPPED: no python3");
            return;
        };
        assert!(status.success() && began.elapsed() < AT_ONCE);
        assert!(!rig.is_leased(&opened), "{script}");
        assert!(rig.heard_of(A, file).contains(&changed(file, true)));
        assert!(rig.heard_of(B, file).contains(&changed(file, true)));
        rig.shut(A, &opened);
    }
    let opened = rig.open(A, file, RDONLY).expect("opened");
    assert_eq!(opened.content.as_deref(), Some(&b"123"[..]));
    // Who does not want to wait need not, but has to come again.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    let refused = rustix::fs::open(&path, flags, Mode::empty());
    assert_eq!(refused.err(), Some(Errno::WOULDBLOCK));
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert!(rustix::fs::open(&path, flags, Mode::empty()).is_ok());
    rig.shut(A, &opened);
    let opened = rig.open(A, file, RDONLY).expect("opened");
    assert!(rig.is_leased(&opened));
    // Readers hold nobody up, and nobody holds them up.
    elsewhere(&mut rig, "cat file >copy; rm file; mv copy file");
    assert!(rig.is_leased(&opened));
}

#[test]
fn a_node_that_writes_waits_for_no_lease_of_its_own_deputy() {
    let Some((mut rig, file, _keeper)) = shared_file("123456") else {
        return;
    };
    let began = Instant::now();
    let of_a = rig.open(A, file, RDONLY).expect("opened");
    let of_b = rig.open(B, file, RDONLY).expect("opened");
    assert!(!of_a.unkept && !of_b.unkept && rig.is_leased(&of_a));
    let writer = rig.open(B, file, RDWR).expect("opened");
    assert!(!writer.unkept, "it knows what it writes");
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert_eq!(rig.heard_of(B, file), []);
    assert!(rig.open(A, file, RDONLY).expect("opened").unkept);
    rig.shut(B, &writer);
    // What B read through the handle that it had before is kept, so it is guarded again.
    assert!(rig.is_leased(&of_a));
    assert_eq!(rig.heard_of(B, file), []);
    // The other ways to write.
    let size = SetAttributes {
        size: Some(2),
        ..SetAttributes::default()
    };
    rig.set(B, file, size).expect("truncated");
    assert!(rig.is_leased(&of_a));
    rig.open(A, file, RDONLY).expect("opened");
    rig.ignore_news();
    let emptied = rig.open(B, file, WRONLY | TRUNC).expect("opened");
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    rig.shut(B, &emptied);
    let emptied = rig.open(B, file, RDONLY | TRUNC).expect("opened");
    assert!(!emptied.unkept && rig.is_leased(&of_a));
    let created = rig.create(B, "file", RDWR).expect("opened");
    assert_eq!(created.file, file);
    rig.shut(B, &created);
    assert!(began.elapsed() < AT_ONCE);
    assert!(rig.is_leased(&of_a));
}

#[test]
fn somebody_who_comes_while_a_node_writes_is_noticed_when_it_ends() {
    let Some((mut rig, file, _keeper)) = shared_file("before") else {
        return;
    };
    let reader = rig.open(A, file, RDONLY).expect("opened");
    let writer = rig.open(A, file, RDWR).expect("opened");
    let Some(mapper) = Mapper::new(&mut rig, "file") else {
        return;
    };
    assert_eq!(rig.heard_of(A, file), []);
    rig.shut(A, &writer);
    assert_eq!(rig.heard_of(A, file), [changed(file, true)]);
    assert!(rig.open(A, file, RDONLY).expect("opened").unkept);
    mapper.end();
    assert!(!rig.open(A, file, RDONLY).expect("opened").unkept);
    assert!(rig.is_leased(&reader));
}

#[test]
fn what_is_learned_when_a_link_closes_is_told_to_the_others() {
    let Some((mut rig, file, _keeper)) = shared_file("before") else {
        return;
    };
    let writer = rig.open(B, file, RDWR).expect("opened");
    let reader = rig.open(A, file, RDONLY).expect("opened");
    assert!(reader.unkept);
    let Some(mapper) = Mapper::new(&mut rig, "file") else {
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
