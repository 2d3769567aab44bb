//! The head, one deputy's export and several nodes' sessions in one thread, without the kernel's
//! FUSE: random changes on the head and on every node, and after each step no node believes
//! anything that is not so (V1, V2, V3). What programs have used is given to whoever runs them
//! next, at any moment between two questions. One node keeps pieces on a disk, which loses some and
//! takes its time.
//!
//! A node here is a [`Session`] and a model of its kernel: it caches names, attributes and
//! content as long as it is told to, and drops what notices name.

mod disk;
mod head;
mod kernel;
mod steps;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_view::export::{Export, LinkId, Told};
use wiglaf_view::session::Missing;
use wiglaf_view::watch::{Marks, Watch};
use wiglaf_wire::marks::FileSystem;
use wiglaf_wire::view::Change;

use disk::Disk;
use head::{Somebody, truth};
use kernel::Kernel;
use steps::{DIRECTORIES, Deed, NAMES, Step, much, step};

const NODES: usize = 3;
/// This one has a disk.
const KEEPER: usize = 2;

/// Orders of gifts and questions that are tried of one story.
const CHANCES: u64 = 24;
/// Steps between two looks at everything.
const COMPARED_EVERY: usize = 7;

struct World {
    at: PathBuf,
    export: Export,
    nodes: Vec<Kernel>,
    links: Vec<LinkId>,
    head: Somebody,
    /// Decides when there are gifts.
    chance: u64,
    gifts: usize,
    disk: Disk,
    _keeper: OwnedFd,
}

impl World {
    fn new(at: &Path, chance: u64) -> World {
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
                superblock: rustix::fs::fstat(&file).expect("stat").st_dev,
                fsid,
            }],
        })
        .expect("a watch");
        World {
            at: at.to_owned(),
            export: Export::new(Vec::new(), Some(watch)).expect("an export"),
            nodes: (0..NODES)
                .map(|number| {
                    let mut kernel = Kernel::new();
                    kernel.check_root();
                    if number > 0 {
                        kernel.keep();
                    }
                    kernel
                })
                .collect(),
            links: (0..NODES as u64).map(LinkId).collect(),
            head: Somebody::new(at),
            chance,
            gifts: 0,
            disk: Disk::default(),
            _keeper: keeper,
        }
    }

    /// One time of two (the generator is that of Knuth's MMIX).
    fn is_chance(&mut self) -> bool {
        const FACTOR: u64 = 6_364_136_223_846_793_005;
        const SUMMAND: u64 = 1_442_695_040_888_963_407;
        self.chance = self.chance.wrapping_mul(FACTOR).wrapping_add(SUMMAND);
        self.chance >> 63 == 0
    }

    /// Carries everything between export and nodes until nothing is under way but, perhaps,
    /// gifts, and what waits for the disk. Gifts may be made before a question is handled and
    /// arrive after it was asked.
    fn settle(&mut self) {
        loop {
            let mut told = Vec::new();
            let mut idle = true;
            for at in 0..NODES {
                let link = self.links[at];
                for question in self.nodes[at].take_questions() {
                    idle = false;
                    if at == KEEPER {
                        self.disk.asked(&question);
                    }
                    if self.is_chance() {
                        self.export.give(link, &mut told);
                    }
                    self.export.question(link, question, &mut told);
                }
                if self.is_chance() {
                    self.export.give(link, &mut told);
                }
            }
            idle &= told.is_empty();
            self.carry(told);
            idle &= self.disk.is_idle() || self.is_chance();
            while !self.disk.is_idle() && self.is_chance() {
                let mut is_lost = [self.is_chance(), self.is_chance(), self.is_chance()]
                    .into_iter()
                    .cycle();
                let all = self.is_chance();
                let is_lost = || !all && is_lost.next() == Some(true);
                self.disk.deliver(&mut self.nodes[KEEPER], is_lost);
            }
            if idle {
                return;
            }
        }
    }

    /// The disk is waited for, too.
    fn settle_all(&mut self) {
        self.settle();
        while !self.disk.is_idle() {
            self.settle();
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
            // A link that is gone is told nothing.
            let Some(at) = self.links.iter().position(|of| *of == link) else {
                continue;
            };
            if let Told::Gifts(gifts) = &what {
                self.gifts += gifts.len();
            }
            if at == KEEPER {
                self.disk.hear(what);
                continue;
            }
            let node = &mut self.nodes[at];
            match what {
                Told::Answer(answer) => node.answer(answer),
                Told::Changes(changes) => node.changed(changes),
                Told::Gifts(gifts) => node.given(gifts, Missing::default()),
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
            Step::Run(a, b) => {
                let (a, b) = (full(a), full(b));
                self.node(node, |k| k.run(&a, &b));
            }
            Step::Launch(p) => {
                let p = full(p);
                self.nodes[node].expect(&p);
            }
            Step::Relink => {
                let next = self.links.iter().map(|link| link.0).max().unwrap_or(0) + 1;
                self.export.close(self.links[node]);
                self.links[node] = LinkId(next);
                self.nodes[node].relink();
                if node == KEEPER {
                    self.disk.relink();
                }
            }
            Step::WriteMuch(p, n) => {
                let text = format!("{n}\n").repeat(much(*n)).into_bytes();
                let p = full(p);
                self.node(node, |k| k.write(&p, &text[..much(*n)], true));
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
        self.settle_all();
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

/// What there was besides questions and answers.
struct Counts {
    gifts: usize,
    /// Pieces that were put back, and that were not there any more.
    kept: (usize, usize),
}

fn explore(deeds: &[Deed], chance: u64, compared_every: usize) -> Result<Counts, TestCaseError> {
    /// The watch does not tell a test what another one of this process does, to `/tmp` too.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = tempfile::tempdir().expect("a directory");
    let at = place.path().canonicalize().expect("a path");
    let mut world = World::new(&at, chance);
    for (number, deed) in deeds.iter().enumerate() {
        world.act(deed);
        // Not after each: what a node believes without having looked must be right too.
        if (number + 1) % compared_every != 0 && number + 1 < deeds.len() {
            continue;
        }
        for node in 0..NODES {
            world.barrier(node);
            world.compare(node)?;
        }
    }
    for node in 0..NODES {
        world.nodes[node].check();
        world.settle_all();
        let mut found = world.nodes[node].take_check();
        // Other processes of the machine may be changing what is above, at this moment.
        let here = at.to_string_lossy();
        found
            .iter_mut()
            .for_each(|found| found.retain(|text| text.starts_with(&*here)));
        prop_assert_eq!(found, Some(Vec::new()), "node {} believes", node + 1);
    }
    Ok(Counts {
        gifts: world.gifts,
        kept: world.disk.counts,
    })
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
        deeds in prop::collection::vec((0..=NODES, step()), 1..60),
        chance in any::<u64>()
    ) {
        if may_watch() {
            explore(&deeds, chance, COMPARED_EVERY)?;
        }
    }
}

/// Without gifts the test above would show nothing of them.
#[test]
fn what_one_node_has_used_is_given_to_the_next() {
    if !may_watch() {
        return;
    }
    let path = |name: &str| name.to_owned();
    let deeds = [
        (0, Step::WriteMuch(path("a"), 2)),
        (0, Step::WriteMuch(path("b"), 5)),
        (1, Step::Run("a", path("b"))),
        (1, Step::Launch("a")),
        (2, Step::Launch("a")),
        (2, Step::Look(path("c"))),
        (2, Step::Look(path("d"))),
        (2, Step::Run("a", path("b"))),
        (0, Step::Append(path("b"), 9)),
        (3, Step::Run("a", path("b"))),
        (3, Step::Look(path("b"))),
    ];
    try_chances(&deeds);
}

/// What a node changes while a gift of it is on its way.
#[test]
fn no_gift_undoes_what_a_node_does_meanwhile() {
    if !may_watch() {
        return;
    }
    let path = |name: &str| name.to_owned();
    for change in [
        Step::Truncate(path("b"), 8),
        Step::Truncate(path("c"), 8),
        Step::Write(path("b"), 6),
        Step::Append(path("c"), 6),
        Step::Remove(path("c")),
        Step::Rename(path("c"), path("d")),
        Step::Rename(path("c"), path("b")),
    ] {
        let deeds = [
            (0, Step::WriteMuch(path("a"), 2)),
            (0, Step::WriteMuch(path("b"), 5)),
            (0, Step::Write(path("c"), 3)),
            (1, Step::Run("a", path("c"))),
            (1, Step::Run("a", path("b"))),
            (1, Step::Launch("a")),
            (2, Step::Mode(path("b"), 0o644)),
            (2, Step::Mode(path("c"), 0o644)),
            (2, Step::Launch("a")),
            (2, change),
            (2, Step::Look(path("b"))),
            (2, Step::Look(path("c"))),
        ];
        try_chances(&deeds);
    }
}

/// What the head changes after it was given and before it is used.
#[test]
fn no_gift_outlives_a_change() {
    if !may_watch() {
        return;
    }
    let path = |name: &str| name.to_owned();
    for change in [
        Step::Append(path("b"), 6),
        Step::Truncate(path("c"), 3),
        Step::Write(path("d"), 3),
        Step::Remove(path("c")),
        Step::Mode(path("b"), 0o600),
    ] {
        let deeds = [
            (0, Step::WriteMuch(path("a"), 2)),
            (0, Step::WriteMuch(path("b"), 5)),
            (0, Step::Write(path("c"), 3)),
            (1, Step::Run("a", path("c"))),
            (1, Step::Run("a", path("b"))),
            (1, Step::Run("a", path("d"))),
            (1, Step::Launch("a")),
            (2, Step::Launch("a")),
            (2, Step::Look(path("e"))),
            (0, change),
            (2, Step::Look(path("e"))),
            (2, Step::Run("a", path("b"))),
        ];
        try_chances(&deeds);
    }
}

/// Without pieces that are lost, the test above would show nothing of them.
#[test]
fn what_a_node_has_kept_is_as_good_as_what_it_is_sent() {
    if !may_watch() {
        return;
    }
    let path = |name: &str| name.to_owned();
    let deeds = [
        (0, Step::WriteMuch(path("b"), 5)),
        (3, Step::Look(path("b"))),
        (3, Step::Relink),
        (3, Step::Look(path("b"))),
        (0, Step::Append(path("b"), 6)),
        (3, Step::Look(path("b"))),
        (3, Step::Append(path("b"), 7)),
        (1, Step::Truncate(path("b"), 8)),
        (0, Step::WriteMuch(path("b"), 5)),
        (3, Step::Look(path("b"))),
    ];
    let counts = try_all_chances(&deeds);
    let (put_back, lost) = counts.kept;
    let least = usize::try_from(CHANCES).expect("few");
    assert!(put_back > least && lost > least / 4, "{put_back} {lost}");
}

fn try_chances(deeds: &[Deed]) {
    let least = usize::try_from(CHANCES).expect("few") * 5;
    let gifts = try_all_chances(deeds).gifts;
    assert!(gifts > least, "{gifts}");
}

fn try_all_chances(deeds: &[Deed]) -> Counts {
    let mut all = Counts {
        gifts: 0,
        kept: (0, 0),
    };
    for chance in 0..CHANCES {
        let seed = chance.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let counts =
            explore(deeds, seed, usize::MAX).unwrap_or_else(|error| panic!("{deeds:?}: {error}"));
        all.gifts += counts.gifts;
        all.kept.0 += counts.kept.0;
        all.kept.1 += counts.kept.1;
    }
    all
}
