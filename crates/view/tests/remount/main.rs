//! Mounts on the head: random ones, and others while questions are answered. No node believes
//! afterwards what is not so (V1, V3), whether or not the keeper has looked by then, and nobody
//! who believed something else loses it.

mod deeds;
#[path = "../coherence/head.rs"]
mod head;
#[expect(dead_code, reason = "the other test that it is for does more")]
#[path = "../coherence/kernel/mod.rs"]
mod kernel;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_linux::handle::file_system_of;
use wiglaf_linux::mountinfo;
use wiglaf_linux::namespace::{NamespaceFlags, unshare};
use wiglaf_view::export::{Export, LinkId, Told};
use wiglaf_view::session::Missing;
use wiglaf_view::watch::{Marks, Watch};
use wiglaf_wire::marks::{FileSystem, Look, MAX_PACKET_BYTES, Marked};
use wiglaf_wire::view::Change;

use deeds::{Deed, NAMES, NODES, PLACES, Step, command, deed, fill, step};
use head::{Somebody, truth};
use kernel::Kernel;

const COMPARED_EVERY: usize = 4;
/// What is held by descriptor can't be unmounted.
const FEW_HELD: usize = 3;
const MANY_HELD: usize = 1000;

struct World {
    at: PathBuf,
    export: Export,
    nodes: Vec<Kernel>,
    head: Somebody,
    group: Group,
    keeper: OwnedFd,
    /// Changes that were told, by what they are.
    everything: usize,
    doubtful: usize,
    told: usize,
}

impl World {
    fn new(at: &Path, held: usize) -> World {
        let group = Group::new(Queue::Unlimited).expect("fanotify");
        let mounts = rustix::fs::open(mountinfo::MOUNTS, OFlags::RDONLY, Mode::empty());
        let root = mark(&group, at).expect("a mark");
        let flags = SocketFlags::CLOEXEC;
        let (ours, keeper) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
        let watch = Watch::new(Marks {
            group: group.as_fd().try_clone_to_owned().expect("a copy"),
            mounts: mounts.expect("mountinfo"),
            keeper: ours,
            file_systems: vec![root],
        })
        .expect("a watch");
        let mut head = Somebody::new(at);
        for place in ["a", "b", "c"] {
            head.run(&fill(place, place.as_bytes()[0]));
        }
        let mut export = Export::new(Vec::new(), Some(watch)).expect("an export");
        export.hold_at_most(held);
        World {
            at: at.to_owned(),
            export,
            nodes: (0..NODES).map(|_| Kernel::new()).collect(),
            head,
            group,
            keeper,
            everything: 0,
            doubtful: 0,
            told: 0,
        }
    }

    fn settle(&mut self) {
        loop {
            let mut told = Vec::new();
            for (at, node) in self.nodes.iter_mut().enumerate() {
                for question in node.take_questions() {
                    self.export.question(LinkId(at as u64), question, &mut told);
                }
            }
            if told.is_empty() {
                return;
            }
            self.carry(told);
        }
    }

    fn carry(&mut self, told: Vec<(LinkId, Told)>) {
        for (link, what) in told {
            let node = &mut self.nodes[usize::try_from(link.0).expect("small")];
            match what {
                Told::Answer(answer) => node.answer(answer),
                Told::Changes(changes) => {
                    self.told += changes.len();
                    let doubtful = |change: &&Change| matches!(change, Change::Doubtful { .. });
                    self.doubtful += changes.iter().filter(doubtful).count();
                    self.everything += usize::from(changes.contains(&Change::Everything));
                    node.changed(changes);
                }
                Told::Gifts(gifts) => node.given(gifts, Missing::default()),
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

    fn full(&self, place: usize, name: &str) -> String {
        let path = format!("{}/{}/{name}", self.at.display(), PLACES[place]);
        path.trim_end_matches('/').to_owned()
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Head(deed) => match command(deed) {
                Some(command) => {
                    self.head.run(&command);
                }
                None => self.look_as_keeper(),
            },
            // A file that is not where it was when its name was looked up is an error when it is
            // opened, after which Linux looks its name up again. The model does not, so it opens
            // what is new to it.
            Step::Look(node, place, name) => {
                self.barrier(*node);
                let path = self.full(*place, NAMES.get(*name).unwrap_or(&""));
                self.node(*node, |k| k.look(&path));
            }
            Step::List(node, place) => {
                let path = self.full(*place, "");
                self.node(*node, |k| k.list(&path));
            }
            Step::Write(node, place, n) => {
                self.barrier(*node);
                let path = self.full(*place, "f");
                let text = n.to_string();
                self.node(*node, |k| k.write(&path, text.as_bytes(), true));
            }
        }
    }

    /// As a fork of the keeper does.
    fn look_as_keeper(&mut self) {
        let mut packet = vec![0; MAX_PACKET_BYTES];
        let mut asked: Option<Look> = None;
        while let Ok((length @ 1.., _)) =
            rustix::net::recv(&self.keeper, &mut packet[..], RecvFlags::DONTWAIT)
        {
            asked = Some(postcard::from_bytes(&packet[..length]).expect("a question"));
        }
        let Some(look) = asked else {
            return;
        };
        let table = mountinfo::read().expect("a table");
        let mounts = mountinfo::parse(&table);
        let new = mounts.iter().filter(|mount| {
            mount.path.starts_with(&self.at) && !look.watched.contains(&mount.device)
        });
        let marked = Marked {
            number: look.number,
            file_systems: new
                .filter_map(|mount| mark(&self.group, &mount.path))
                .collect(),
        };
        let packet = postcard::to_allocvec(&marked).expect("an answer");
        rustix::net::send(&self.keeper, &packet, SendFlags::empty()).expect("the watch");
    }

    fn barrier(&mut self, node: usize) {
        self.nodes[node].barrier();
        self.settle();
        assert!(self.nodes[node].is_past_barrier(), "the barrier is passed");
    }

    /// What a node sees of each path is what there is.
    fn compare(&mut self, node: usize) -> Result<(), TestCaseError> {
        self.barrier(node);
        for place in PLACES {
            let shown = format!("{}/{place}", self.at.display());
            // A directory that was removed and is mounted somewhere can't be read, which programs
            // take for its end.
            let entries = fs::read_dir(&shown).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().into_string().expect("text"));
            let mut expected: Vec<String> = names.collect();
            expected.sort();
            let mut seen = self.node(node, |k| k.list(&shown)).unwrap_or_default();
            seen.sort();
            prop_assert_eq!(&seen, &expected, "node {} lists {}", node, place);
            for name in NAMES.iter().chain(&[""]) {
                let path = format!("{shown}/{name}");
                let path = path.trim_end_matches('/');
                let seen = self.node(node, |k| k.look(path));
                prop_assert_eq!(seen, truth(Path::new(path)), "node {} {}", node, path);
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        for node in 0..NODES {
            self.nodes[node].check();
            self.settle();
            let mut found = self.nodes[node].take_check().expect("it is over");
            // Above is what this process does in other tests, which is not told.
            let here = format!("{}/", self.at.display());
            found.retain(|difference| difference.starts_with(&here));
            prop_assert!(found.is_empty(), "node {} believes {:?}", node, found);
        }
        Ok(())
    }
}

fn mark(group: &Group, at: &Path) -> Option<FileSystem> {
    let file = rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    group.mark_file_system(file.as_fd()).ok()?;
    let device = rustix::fs::fstat(&file).ok()?.st_dev;
    Some(FileSystem {
        device,
        superblock: device,
        fsid: file_system_of(file.as_fd()).ok()?,
    })
}

/// A directory in a mount namespace of this thread's own, where nothing of the machine's is
/// mounted meanwhile. `None`, said aloud: it can't be had.
struct Ground(tempfile::TempDir);

impl Ground {
    fn new() -> Option<Ground> {
        let may = rustix::process::geteuid().is_root() && Group::new(Queue::Unlimited).is_ok();
        if !may {
            let _ = writeln!(std::io::stderr(), "SKIPPED: fanotify needs root");
            return None;
        }
        unshare(NamespaceFlags::NEWNS).expect("a mount namespace");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).expect("private mounts");
        Some(Ground(
            tempfile::tempdir_in("/var/tmp").expect("a directory"),
        ))
    }

    fn at(&self) -> PathBuf {
        self.0.path().canonicalize().expect("a path")
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let Ok(table) = mountinfo::read() else {
            return;
        };
        // What was mounted last is first in the way.
        for mount in mountinfo::parse(&table).iter().rev() {
            if mount.path.starts_with(self.at()) {
                let _ = unmount(&mount.path, UnmountFlags::DETACH);
            }
        }
    }
}

fn explore(steps: &[Step]) -> Result<(), TestCaseError> {
    let Some(ground) = Ground::new() else {
        return Ok(());
    };
    let mut world = World::new(&ground.at(), FEW_HELD);
    for (number, step) in steps.iter().enumerate() {
        world.act(step);
        if number % COMPARED_EVERY == 0 || number + 1 == steps.len() {
            for node in 0..NODES {
                world.compare(node)?;
            }
        }
    }
    world.check()?;
    prop_assert_eq!(world.everything, 0, "nothing but the mounts was doubtful");
    Ok(())
}

/// Mounts while a node asks; then the truth. Where they fall is another thing each time.
fn storm(deeds: &[Deed], looks: &[(usize, usize)]) -> Result<(), TestCaseError> {
    let Some(ground) = Ground::new() else {
        return Ok(());
    };
    let mut world = World::new(&ground.at(), FEW_HELD);
    for node in 0..NODES {
        world.compare(node)?;
    }
    for (number, deed) in deeds.iter().enumerate() {
        let Some(command) = command(deed) else {
            world.look_as_keeper();
            continue;
        };
        // Each loop is some ten mounts, so that they come and go between two questions, too.
        world
            .head
            .begin(&format!("for i in 1 2 3; do ( {command} ); done"));
        for (place, name) in looks {
            let node = number % NODES;
            // What vanishes between its lookup and its opening is an error, which is right.
            let path = world.full(*place, NAMES.get(*name).unwrap_or(&""));
            world.node(node, |k| k.list(&path));
        }
        world.head.end();
        for node in 0..NODES {
            world.compare(node)?;
        }
    }
    world.check()
}

fn cases(usual: u32) -> u32 {
    let wanted = std::env::var("PROPTEST_CASES").ok();
    wanted.and_then(|count| count.parse().ok()).unwrap_or(usual)
}

fn config(usual: u32) -> ProptestConfig {
    ProptestConfig {
        cases: cases(usual),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(120))]

    #[test]
    fn no_node_believes_what_a_mount_has_changed(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        explore(&steps)?;
    }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn nor_when_mounts_come_and_go_between_questions(
        deeds in prop::collection::vec(deed(), 1..12),
        looks in prop::collection::vec((0..PLACES.len(), 0..=NAMES.len()), 1..30)
    ) {
        storm(&deeds, &looks)?;
    }
}

/// A file system in memory goes, and the next one has its number, its place and its mount's
/// number, all between two looks.
#[test]
fn a_successor_with_the_same_numbers_is_another_file_system() {
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        let Some(ground) = Ground::new() else {
            return;
        };
        if succeed(&mut World::new(&ground.at(), FEW_HELD)) {
            return;
        }
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED: numbers are not given again");
}

/// Whether it has the same number.
fn succeed(world: &mut World) -> bool {
    let place = world.at.join("a");
    let device = || fs::metadata(&place).expect("it is there").dev();
    world.act(&Step::Head(Deed::Memory(0, 1)));
    world.barrier(0);
    world.look_as_keeper();
    world.barrier(0);
    // What a node has opened could not be unmounted.
    for shown in ["a", "a/s"] {
        let path = format!("{}/{shown}", world.at.display());
        assert!(world.node(0, |k| k.list(&path)).is_some());
    }
    // Others use the descriptors.
    for other in ["b", "c", "b/s"] {
        let other = PLACES.iter().position(|place| *place == other);
        world.act(&Step::Look(0, other.expect("a place"), 0));
    }
    let before = device();
    world.doubtful = 0;
    world.act(&Step::Head(Deed::Replace(0, 2)));
    let is_same = device() == before;
    let file = fs::read_to_string(place.join("f")).expect("it is there");
    assert_eq!(file, "2\n", "it could not be unmounted");
    world.compare(0).expect("no difference");
    assert!(world.doubtful > 0, "what was there is not believed");
    // Nobody has marked it.
    for n in 3..5 {
        world.act(&Step::Head(Deed::Write(0, n)));
        world.compare(0).expect("no difference");
    }
    is_same
}

/// A directory that is known, held by no descriptor and not where it was may be mounted in.
#[test]
fn a_directory_that_can_not_be_found_is_doubtful() {
    let Some(ground) = Ground::new() else {
        return;
    };
    let mut world = World::new(&ground.at(), FEW_HELD);
    for node in 0..NODES {
        world.compare(node).expect("no difference");
    }
    for command in ["mv -T a e", "mount -t tmpfs t e/s"] {
        world.head.run(command);
    }
    let doubtful = world.doubtful;
    world.barrier(0);
    assert!(world.doubtful > doubtful);
    world.compare(0).expect("no difference");
}

/// What a mount has nothing to do with costs no question again.
#[test]
fn what_is_mounted_elsewhere_takes_nothing_back() {
    let Some(ground) = Ground::new() else {
        return;
    };
    let mut world = World::new(&ground.at(), MANY_HELD);
    for node in 0..NODES {
        world.compare(node).expect("no difference");
    }
    world.told = 0;
    let far = [
        "mkdir -p d/x d/y; mount -t tmpfs t d/x",
        "mount --bind d d/x/..",
        "mkdir -p d/x/z; mount -t proc p d/y",
        "umount d/y",
    ];
    for command in far {
        world.head.run(command);
        world.look_as_keeper();
        for node in 0..NODES {
            world.barrier(node);
            for place in ["a", "b"] {
                let path = format!("{}/{place}/s/f", world.at.display());
                assert!(
                    world.nodes[node].look(&path).flatten().is_some(),
                    "{path} is known without a question after {command}"
                );
            }
        }
    }
    assert_eq!(world.everything, 0);
    // Something is mounted where names are known: those, and no others.
    world.told = 0;
    world.act(&Step::Head(Deed::Memory(0, 9)));
    for node in 0..NODES {
        world.barrier(node);
        let path = |place: &str| format!("{}/{place}/s/f", world.at.display());
        let (other, this) = (path("b"), path("a"));
        assert!(world.nodes[node].look(&other).flatten().is_some());
        assert!(world.nodes[node].look(&this).is_none(), "it has to ask");
        let seen = world.node(node, |k| k.look(&this));
        assert_eq!(seen, truth(Path::new(&this)));
    }
    assert_eq!(world.told, NODES, "one name for each");
}
