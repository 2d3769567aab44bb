//! The head, one deputy's export and several nodes' sessions in one thread, without the kernel's
//! FUSE: random changes on the head and on every node, and after each step no node believes
//! anything that is not so (V1, V2, V3).
//!
//! A node here is a [`Session`] and a model of its kernel: it caches names, attributes and
//! content as long as it is told to, and drops what notices name.

mod kernel;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_view::export::{Export, LinkId, Told};
use wiglaf_view::watch::{Marks, Watch};
use wiglaf_wire::marks::FileSystem;
use wiglaf_wire::view::Change;

use kernel::{Kernel, Seen};

const NODES: usize = 3;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const DIRECTORIES: [&str; 3] = ["", "p", "q"];

/// Steps between two looks at everything.
const COMPARED_EVERY: usize = 7;
/// Something that somebody does.
#[derive(Clone, Debug)]
enum Step {
    Write(String, u8),
    Append(String, u8),
    Truncate(String, u8),
    Remove(String),
    MakeDirectory(String),
    RemoveDirectory(String),
    Rename(String, String),
    Link(String, String),
    Mode(String, u32),
    /// Only looks: what it sees is kept by its kernel.
    Look(String),
    List(String),
    /// Nothing is sure any more, as after a mount on the head.
    Doubt,
}

/// Who does it: 0 is the head, others are nodes.
type Deed = (usize, Step);

fn path() -> impl Strategy<Value = String> {
    let parts = (0..DIRECTORIES.len(), 0..NAMES.len());
    parts.prop_map(|(directory, name)| match DIRECTORIES[directory] {
        "" => NAMES[name].to_owned(),
        directory => format!("{directory}/{}", NAMES[name]),
    })
}

fn directory() -> impl Strategy<Value = String> {
    (0..DIRECTORIES.len()).prop_map(|at| DIRECTORIES[at].to_owned())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (path(), any::<u8>()).prop_map(|(p, n)| Step::Write(p, n)),
        (path(), any::<u8>()).prop_map(|(p, n)| Step::Append(p, n)),
        (path(), any::<u8>()).prop_map(|(p, n)| Step::Truncate(p, n)),
        path().prop_map(Step::Remove),
        directory().prop_map(Step::MakeDirectory),
        directory().prop_map(Step::RemoveDirectory),
        (path(), path()).prop_map(|(a, b)| Step::Rename(a, b)),
        (path(), path()).prop_map(|(a, b)| Step::Link(a, b)),
        (path(), 0..0o1000_u32).prop_map(|(p, m)| Step::Mode(p, m)),
        path().prop_map(Step::Look),
        directory().prop_map(Step::List),
        Just(Step::Doubt),
    ]
}

/// A shell that changes files as another process than the test's, whose own changes the watch
/// takes for the deputy's.
struct Somebody {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Somebody {
    fn new(at: &Path) -> Somebody {
        let mut child = Command::new("sh")
            .current_dir(at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let orders = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Somebody {
            child,
            orders,
            answers,
        }
    }

    fn run(&mut self, command: &str) {
        writeln!(self.orders, "( {command} ) </dev/null >/dev/null\necho $?").expect("sh reads");
        self.orders.flush().expect("sh reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("sh answers");
        let truncated = command.contains("truncate");
        assert!(!truncated || line == "0\n", "{command}: {line}");
    }

    fn act(&mut self, step: &Step) {
        let text = |n: &u8| format!("{n}").repeat(usize::from(*n % 7) + 1);
        let command = match step {
            Step::Write(p, n) => format!("printf {} > {p}", text(n)),
            Step::Append(p, n) => format!("printf {} >> {p}", text(n)),
            Step::Truncate(p, n) => format!("[ ! -f {p} ] || truncate -s {} {p}", n % 9),
            Step::Remove(p) => format!("rm -f {p}"),
            Step::MakeDirectory(p) if p.is_empty() => ":".into(),
            Step::MakeDirectory(p) => format!("mkdir {p}"),
            Step::RemoveDirectory(p) if p.is_empty() => ":".into(),
            Step::RemoveDirectory(p) => format!("rmdir {p}"),
            Step::Rename(a, b) => format!("mv -fT {a} {b}"),
            Step::Link(a, b) => format!("ln -T {a} {b}"),
            Step::Mode(p, m) => format!("chmod {m:o} {p}"),
            Step::Look(p) => format!("cat {p}"),
            Step::List(p) => format!("ls -l ./{p}"),
            Step::Doubt => return,
        };
        self.run(&command);
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct World {
    at: PathBuf,
    export: Export,
    nodes: Vec<Kernel>,
    head: Somebody,
    _keeper: OwnedFd,
}

impl World {
    fn new(at: &Path) -> World {
        let group = Group::new(Queue::Unlimited).expect("fanotify");
        let file = rustix::fs::open(at, OFlags::PATH, Mode::empty()).expect("it is there");
        group.mark_file_system(file.as_fd()).expect("a mark");
        let mounts = rustix::fs::open("/proc/self/mountinfo", OFlags::RDONLY, Mode::empty());
        let (ours, keeper) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("sockets");
        let fsid = fsid_of(at);
        let watch = Watch::new(Marks {
            group: group.into(),
            mounts: mounts.expect("mountinfo"),
            keeper: ours,
            file_systems: vec![FileSystem {
                device: rustix::fs::fstat(&file).expect("stat").st_dev,
                fsid,
            }],
        })
        .expect("a watch");
        World {
            at: at.to_owned(),
            export: Export::new(Vec::new(), Some(watch)).expect("an export"),
            nodes: (0..NODES).map(|_| Kernel::new()).collect(),
            head: Somebody::new(at),
            _keeper: keeper,
        }
    }

    /// Carries everything between export and nodes until nothing is under way.
    fn settle(&mut self) {
        loop {
            let mut told = Vec::new();
            let mut idle = true;
            for (at, node) in self.nodes.iter_mut().enumerate() {
                for question in node.take_questions() {
                    idle = false;
                    self.export
                        .question(LinkId(at as u64 + 1), question, &mut told);
                }
            }
            idle &= told.is_empty();
            self.carry(told);
            if idle {
                return;
            }
        }
    }

    fn node<T>(&mut self, node: usize, mut act: impl FnMut(&mut Kernel) -> Option<T>) -> T {
        for _ in 0..1000 {
            if let Some(result) = act(&mut self.nodes[node]) {
                return result;
            }
            self.settle();
        }
        panic!("node {node} never gets an answer");
    }

    fn carry(&mut self, told: Vec<(LinkId, Told)>) {
        for (link, what) in told {
            let node = &mut self.nodes[usize::try_from(link.0).expect("small") - 1];
            match what {
                Told::Answer(answer) => node.answer(answer),
                Told::Changes(changes) => node.changed(changes),
            }
        }
    }

    fn act(&mut self, (who, step): &Deed) {
        if *who == 0 {
            return self.head.act(step);
        }
        let node = who - 1;
        let base = self.at.to_str().expect("a plain path").to_owned();
        let full = |p: &str| format!("{base}/{p}");
        let text = |n: &u8| format!("{n}").repeat(usize::from(*n % 7) + 1);
        match step {
            Step::Write(p, n) => {
                let (p, text) = (full(p), text(n));
                self.node(node, |k| k.write(&p, text.as_bytes(), true));
            }
            Step::Append(p, n) => {
                let (p, text) = (full(p), text(n));
                self.node(node, |k| k.write(&p, text.as_bytes(), false));
            }
            Step::Truncate(p, n) => {
                let p = full(p);
                self.node(node, |k| k.truncate(&p, u64::from(n % 9)));
            }
            Step::Remove(p) => {
                let p = full(p);
                self.node(node, |k| k.remove(&p, false));
            }
            Step::MakeDirectory(p) if p.is_empty() => {}
            Step::MakeDirectory(p) => {
                let p = full(p);
                self.node(node, |k| k.make_directory(&p));
            }
            Step::RemoveDirectory(p) if p.is_empty() => {}
            Step::RemoveDirectory(p) => {
                let p = full(p);
                self.node(node, |k| k.remove(&p, true));
            }
            Step::Rename(a, b) => {
                let (a, b) = (full(a), full(b));
                self.node(node, |k| k.rename(&a, &b));
            }
            Step::Link(a, b) => {
                let (a, b) = (full(a), full(b));
                self.node(node, |k| k.link(&a, &b));
            }
            Step::Mode(p, m) => {
                let p = full(p);
                self.node(node, |k| k.mode(&p, *m));
            }
            Step::Look(p) => {
                let p = full(p);
                self.node(node, |k| k.look(&p));
            }
            Step::Doubt => self.nodes[node].changed(vec![Change::Everything]),
            Step::List(p) => {
                let p = full(p);
                self.node(node, |k| k.list(p.trim_end_matches('/')));
            }
        }
        self.settle();
    }

    /// As the launch of a task does (V1).
    fn barrier(&mut self, node: usize) {
        self.nodes[node].barrier();
        self.settle();
        assert!(self.nodes[node].is_past_barrier(), "the barrier is passed");
    }

    /// What a node sees of each path is what there is.
    fn compare(&mut self, node: usize) -> Result<(), TestCaseError> {
        for directory in DIRECTORIES {
            let real = self.at.join(directory);
            let shown = format!("{}/{directory}", self.at.display());
            let shown = shown.trim_end_matches('/').to_owned();
            let mut expected: Option<Vec<String>> = fs::read_dir(&real).ok().map(|entries| {
                let names = entries.map(|entry| entry.expect("an entry").file_name());
                names
                    .map(|name| name.into_string().expect("text"))
                    .collect()
            });
            if let Some(names) = &mut expected {
                names.sort();
            }
            let mut seen = self.node(node, |k| k.list(&shown));
            if let Some(names) = &mut seen {
                names.sort();
            }
            prop_assert_eq!(&seen, &expected, "node {} lists {}", node + 1, directory);
            for name in NAMES {
                let path = format!("{shown}/{name}");
                let seen = self.node(node, |k| k.look(&path));
                prop_assert_eq!(seen, truth(Path::new(&path)), "node {} {}", node + 1, path);
            }
        }
        Ok(())
    }
}

/// As `stat -f -c %i`, which prints the two words as one number, the first of them first.
fn fsid_of(directory: &Path) -> [u8; 8] {
    let output = Command::new("stat")
        .args(["-f", "-c", "%i"])
        .arg(directory)
        .output()
        .expect("stat");
    let text = String::from_utf8(output.stdout).expect("text");
    let both = u64::from_str_radix(text.trim(), 16).expect("a number");
    both.rotate_left(32).to_ne_bytes()
}

fn truth(path: &Path) -> Option<Seen> {
    let stat = fs::symlink_metadata(path).ok()?;
    Some(Seen {
        ino: stat.ino(),
        mode: stat.mode(),
        links: u32::try_from(stat.nlink()).expect("few"),
        size: stat.is_file().then_some(stat.size()),
        modified: (stat.mtime(), stat.mtime_nsec()),
        changed: (stat.ctime(), stat.ctime_nsec()),
        content: stat.is_file().then(|| fs::read(path).expect("readable")),
    })
}

fn explore(deeds: &[Deed]) -> Result<(), TestCaseError> {
    let place = tempfile::tempdir().expect("a directory");
    let at = place.path().canonicalize().expect("a path");
    let mut world = World::new(&at);
    for (number, deed) in deeds.iter().enumerate() {
        world.act(deed);
        // Not after each: what a node believes without having looked must be right too.
        if number % COMPARED_EVERY != 0 && number + 1 < deeds.len() {
            continue;
        }
        for node in 0..NODES {
            world.barrier(node);
            world.compare(node)?;
        }
    }
    for node in 0..NODES {
        world.nodes[node].check();
        world.settle();
        let found = world.nodes[node].take_check();
        prop_assert_eq!(found, Some(Vec::new()), "node {} believes", node + 1);
    }
    Ok(())
}

fn may_watch() -> bool {
    let may = rustix::process::geteuid().is_root() && Group::new(Queue::Unlimited).is_ok();
    if !may {
        let _ = writeln!(std::io::stderr(), "SKIPPED: fanotify needs root");
    }
    may
}

/// `PROPTEST_CASES` for a longer search than the usual one, of some thousands of steps.
fn cases() -> u32 {
    let wanted = std::env::var("PROPTEST_CASES").ok();
    wanted.and_then(|count| count.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_node_ever_believes_what_is_not_so(
        deeds in prop::collection::vec((0..=NODES, step()), 1..60)
    ) {
        if may_watch() {
            explore(&deeds)?;
        }
    }
}
