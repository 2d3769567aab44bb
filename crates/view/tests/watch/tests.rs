//! The tests of [`crate`].

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use wiglaf_linux::fanotify::Queue;
use wiglaf_view::watch::{Event, FileKey, is_being_written};

use crate::say;
use crate::scene::{Mounted, Scene, elsewhere, mark, open_for_writing, path_of};

pub(crate) const ALL: &[(&str, fn())] = &[
    ("nothing_is_late", nothing_is_late),
    ("each_kind_of_change_is_told", each_kind_of_change_is_told),
    (
        "another_name_is_the_same_file",
        another_name_is_the_same_file,
    ),
    ("own_changes_are_skipped", own_changes_are_skipped),
    (
        "keys_by_name_are_keys_by_descriptor",
        keys_by_name_are_keys_by_descriptor,
    ),
    (
        "stores_are_told_when_the_mapping_goes",
        stores_are_told_when_the_mapping_goes,
    ),
    ("writers_are_seen", writers_are_seen),
    ("too_many_events_are_a_loss", too_many_events_are_a_loss),
    (
        "what_is_not_marked_has_no_key",
        what_is_not_marked_has_no_key,
    ),
    (
        "what_is_watched_stays_so_when_others_mount",
        what_is_watched_stays_so_when_others_mount,
    ),
    (
        "another_file_system_with_the_same_number_is_not_watched",
        another_file_system_with_the_same_number_is_not_watched,
    ),
    (
        "what_is_unmounted_at_one_place_is_watched_at_another",
        what_is_unmounted_at_one_place_is_watched_at_another,
    ),
    (
        "overlays_are_watched_by_what_is_seen",
        overlays_are_watched_by_what_is_seen,
    ),
    ("what_it_costs", what_it_costs),
];

const ROUNDS: usize = 1000;

fn file(key: &FileKey, content: bool) -> Event {
    let key = key.clone();
    Event::File { key, content }
}

fn name(directory: &FileKey, name: &str) -> Event {
    Event::Name {
        directory: directory.clone(),
        name: name.into(),
    }
}

/// A root directory on the disk, and one in memory.
fn on_each(act: impl Fn(&Path)) {
    let tmpfs = Mounted::tmpfs();
    act(tmpfs.path());
    // Not /tmp, which may be in memory too.
    let disk = tempfile::tempdir_in("/var/tmp").unwrap();
    act(disk.path());
}

fn nothing_is_late() {
    on_each(|directory| {
        let path = directory.join("file");
        fs::write(&path, "").unwrap();
        let mut scene = Scene::of(&[directory]);
        let key = scene.key(&path);
        for round in 0..ROUNDS {
            elsewhere(|| {
                let mut file = open_for_writing(&path);
                file.write_all(b"x").unwrap();
            });
            let events = scene.drain_of(&[&key]);
            assert_eq!(events, [file(&key, true)], "round {round}");
        }
        assert_eq!(scene.drain_of(&[&key]), []);
    });
}

fn each_kind_of_change_is_told() {
    on_each(|directory| {
        let path = |name: &str| directory.join(name);
        fs::write(path("a"), "a").unwrap();
        fs::create_dir(path("sub")).unwrap();
        let mut scene = Scene::of(&[directory]);
        let here = scene.key(directory);
        let sub = scene.key(path("sub"));
        let a = scene.key(path("a"));
        let keys = [&here, &sub, &a];
        let names_change = |of: &FileKey, what: &str| [file(of, true), name(of, what)];

        elsewhere(|| fs::set_permissions(path("a"), Permissions::from_mode(0o600)).unwrap());
        assert_eq!(scene.drain_of(&keys), [file(&a, false)]);
        elsewhere(|| fs::set_permissions(path("sub"), Permissions::from_mode(0o700)).unwrap());
        assert_eq!(scene.drain_of(&keys), [file(&sub, false)]);
        elsewhere(|| fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap());
        assert_eq!(scene.drain_of(&keys), [file(&here, false)]);
        elsewhere(|| {
            File::options()
                .write(true)
                .open(path("a"))
                .unwrap()
                .set_len(9)
                .unwrap()
        });
        assert_eq!(scene.drain_of(&keys), [file(&a, true)]);
        elsewhere(|| {
            let file = File::open(path("a")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        });
        assert!(matches!(scene.drain_of(&keys)[..], [Event::File { ref key, .. }] if *key == a));
        elsewhere(|| fs::create_dir(path("sub/new")).unwrap());
        assert_eq!(scene.drain_of(&keys), names_change(&sub, "new"));
        elsewhere(|| fs::remove_dir(path("sub/new")).unwrap());
        assert_eq!(scene.drain_of(&keys), names_change(&sub, "new"));
        elsewhere(|| std::os::unix::fs::symlink("to", path("sub/link")).unwrap());
        assert_eq!(scene.drain_of(&keys), names_change(&sub, "link"));

        elsewhere(|| fs::rename(path("a"), path("sub/b")).unwrap());
        let events = scene.drain_of(&keys);
        for wanted in names_change(&here, "a")
            .iter()
            .chain(&names_change(&sub, "b"))
        {
            assert!(events.contains(wanted), "{wanted:?} of {events:?}");
        }
        assert!(events.contains(&file(&a, false)));
        elsewhere(|| fs::remove_file(path("sub/b")).unwrap());
        let events = scene.drain_of(&keys);
        for wanted in names_change(&sub, "b") {
            assert!(events.contains(&wanted), "{wanted:?} of {events:?}");
        }
        assert!(events.contains(&file(&a, false)));
    });
}

fn another_name_is_the_same_file() {
    on_each(|directory| {
        let path = |name: &str| directory.join(name);
        fs::write(path("one"), "").unwrap();
        fs::create_dir(path("sub")).unwrap();
        let mut scene = Scene::of(&[directory]);
        let one = scene.key(path("one"));
        elsewhere(|| fs::hard_link(path("one"), path("sub/two")).unwrap());
        assert!(scene.drain_of(&[&one]).contains(&file(&one, false)));
        elsewhere(|| open_for_writing(path("sub/two")).write_all(b"x").unwrap());
        assert_eq!(scene.drain_of(&[&one]), [file(&one, true)]);
        assert_eq!(scene.key(path("sub/two")), one);
        // A file that is put in its place is another.
        elsewhere(|| {
            fs::write(path("new"), "").unwrap();
            fs::rename(path("new"), path("one")).unwrap();
        });
        assert!(scene.drain_of(&[&one]).contains(&file(&one, false)));
        assert_ne!(scene.key(path("one")), one);
        assert_eq!(scene.key(path("sub/two")), one);
    });
}

fn own_changes_are_skipped() {
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "");
    let mut scene = Scene::of(&[tmpfs.path()]);
    let key = scene.key(&path);
    fs::write(&path, "ours").unwrap();
    let other_thread = path.clone();
    std::thread::spawn(move || fs::write(other_thread, "a thread's"))
        .join()
        .unwrap()
        .unwrap();
    tmpfs.file("another", "");
    assert_eq!(scene.drain(), []);
    // Ours and theirs are not mixed up.
    fs::write(&path, "ours").unwrap();
    elsewhere(|| open_for_writing(&path).write_all(b"theirs").unwrap());
    fs::write(&path, "ours").unwrap();
    assert_eq!(scene.drain(), [file(&key, true)]);
    // In a PID namespace of its own, somebody may have our number there.
    let status = Command::new("unshare")
        .args(["--pid", "--fork", "sh", "-c", "echo $$ >>\"$0\""])
        .arg(&path)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(scene.drain(), [file(&key, true)]);
}

fn keys_by_name_are_keys_by_descriptor() {
    on_each(|directory| {
        fs::write(directory.join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", directory.join("link")).unwrap();
        let mut scene = Scene::of(&[directory]);
        let here = path_of(directory);
        for (path, name) in [("file", c"file"), ("link", c"link"), (".", c".")] {
            let by_name = scene.watch.key_at(here.as_fd(), name);
            assert_eq!(by_name, Some(scene.key(directory.join(path))), "{path}");
        }
        assert_ne!(
            scene.key(directory.join("file")),
            scene.key(directory.join("link"))
        );
        assert_eq!(scene.watch.key_at(here.as_fd(), c"none"), None);
        // Open in whatever way.
        let file = File::open(directory.join("file")).unwrap();
        let by_file = scene.watch.key(file.as_fd());
        assert_eq!(by_file, Some(scene.key(directory.join("file"))));
    });
}

/// Maps a file shared, closes it, stores into the mapping, tells, and waits to be told to end.
const MAPPER: &str = "
import mmap, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 4)
f.close()
print('mapped', flush=True)
sys.stdin.readline()
m[0:4] = b'true'
print('stored', flush=True)
sys.stdin.readline()
m.close()
";

fn stores_are_told_when_the_mapping_goes() {
    on_each(|directory| {
        let path = directory.join("file");
        fs::write(&path, "data").unwrap();
        let mut scene = Scene::of(&[directory]);
        let key = scene.key(&path);
        let mut mapper = match Command::new("python3")
            .args(["-c", MAPPER])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        {
            Ok(mapper) => mapper,
            Err(error) => return say(&format!("SKIPPED: no python3: {error}")),
        };
        let mut to = mapper.stdin.take().unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(mapper.stdout.take().unwrap()));
        assert_eq!(lines.next().unwrap().unwrap(), "mapped");
        assert_eq!(scene.drain_of(&[&key]), []);
        // It is closed, but a mapping writes.
        let reader = File::open(&path).unwrap();
        assert!(is_being_written(reader.as_fd()));
        to.write_all(b"\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "stored");
        assert_eq!(fs::read(&path).unwrap(), b"true");
        assert!(is_being_written(reader.as_fd()));
        to.write_all(b"\n").unwrap();
        assert!(mapper.wait().unwrap().success());
        assert_eq!(scene.drain_of(&[&key]), [file(&key, true)]);
        assert!(!is_being_written(reader.as_fd()));
    });
}

fn writers_are_seen() {
    on_each(|directory| {
        let path = directory.join("file");
        fs::write(&path, "").unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!is_being_written(reader.as_fd()));
        let writer = open_for_writing(&path);
        assert!(is_being_written(reader.as_fd()));
        drop(writer);
        assert!(!is_being_written(reader.as_fd()));
        // No lease stays: nobody has to wait for it.
        let began = std::time::Instant::now();
        elsewhere(|| drop(open_for_writing(&path)));
        assert!(began.elapsed() < std::time::Duration::from_secs(10));
        // What has no leases is not trusted.
        let null = File::open("/dev/null").unwrap();
        assert!(is_being_written(null.as_fd()));
    });
}

fn too_many_events_are_a_loss() {
    let limit = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 100_000 {
        return say("SKIPPED: the kernel keeps too many events");
    }
    let tmpfs = Mounted::tmpfs();
    let mut scene = Scene::with(Queue::Bounded, &[tmpfs.path()]);
    let mut plenty = Scene::of(&[tmpfs.path()]);
    elsewhere(|| {
        for number in 0..=limit / 2 {
            drop(File::create(tmpfs.path().join(number.to_string())).unwrap());
            fs::remove_file(tmpfs.path().join(number.to_string())).unwrap();
        }
    });
    assert_eq!(scene.drain().last(), Some(&Event::Lost));
    let events = plenty.drain();
    assert!(!events.contains(&Event::Lost));
    let here = plenty.key(tmpfs.path());
    let told = |number: usize| events.contains(&name(&here, &number.to_string()));
    assert!(told(0) && told(limit / 2));
    let names = events
        .iter()
        .filter(|event| matches!(event, Event::Name { .. }));
    assert!(names.count() > limit / 2);
    // It goes on.
    elsewhere(|| drop(tmpfs.file("after", "")));
    assert!(scene.drain().contains(&name(&here, "after")));
}

fn what_is_not_marked_has_no_key() {
    let (marked, unmarked) = (Mounted::tmpfs(), Mounted::tmpfs());
    let path = unmarked.file("file", "");
    let mut scene = Scene::of(&[marked.path()]);
    assert_eq!(scene.watch.key(path_of(&path).as_fd()), None);
    let directory = path_of(unmarked.path());
    assert_eq!(scene.watch.key_at(directory.as_fd(), c"file"), None);
    let null = path_of("/dev/null");
    assert_eq!(scene.watch.key(null.as_fd()), None);
    elsewhere(|| open_for_writing(&path).write_all(b"x").unwrap());
    assert_eq!(scene.drain(), []);
}

fn is_remounted(events: &[Event]) -> bool {
    matches!(events, [Event::Remounted(_)])
}

fn what_is_watched_stays_so_when_others_mount() {
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "");
    let mut scene = Scene::of(&[tmpfs.path()]);
    let key = scene.key(&path);
    assert!(!scene.is_ready());
    assert_eq!(scene.asked(), None);

    let new = Mounted::tmpfs();
    let on_new = new.file("file", "");
    assert!(scene.is_ready());
    // Not by a key, before anybody has drained: it could be another one with its number.
    assert_eq!(scene.watch.key(path_of(&path).as_fd()), None);
    elsewhere(|| open_for_writing(&path).write_all(b"x").unwrap());
    let events = scene.drain();
    assert_eq!(events.first(), Some(&file(&key, true)));
    assert!(is_remounted(&events[1..]), "{events:?}");
    assert!(!scene.is_ready());
    assert_eq!(scene.drain(), []);
    // The keeper has not looked yet.
    assert_eq!(scene.key(&path), key);
    assert_eq!(scene.watch.key(path_of(&on_new).as_fd()), None);

    let first = scene.asked().unwrap();
    let known: Vec<_> = scene.marked.iter().map(|one| one.superblock).collect();
    assert_eq!(first.watched, known);
    assert_eq!(scene.asked(), None);
    // The answer comes too late: there is one mount more.
    let _newer = Mounted::tmpfs();
    scene.answer(first);
    assert!(is_remounted(&scene.drain()));
    assert_eq!(scene.watch.key(path_of(&on_new).as_fd()), None);

    let second = scene.asked().unwrap();
    let marked = mark(&scene.group, new.path());
    scene.marked.push(marked);
    scene.answer(second);
    assert!(scene.is_ready());
    assert_eq!(scene.drain(), []);
    assert!(!scene.is_ready());
    assert_eq!(scene.key(&path), key);
    let new_key = scene.key(&on_new);
    elsewhere(|| open_for_writing(&on_new).write_all(b"x").unwrap());
    assert_eq!(scene.drain(), [file(&new_key, true)]);

    drop(new);
    assert!(is_remounted(&scene.drain()));
    assert_eq!(scene.key(&path), key);
    let third = scene.asked().unwrap();
    assert_eq!(third.watched, known, "the other one has gone");
}

/// The next one in memory has the number of the last.
fn another_file_system_with_the_same_number_is_not_watched() {
    let gone = Mounted::tmpfs();
    let mut scene = Scene::of(&[gone.path()]);
    let device = scene.marked[0].device;
    scene.key(gone.path());
    // All of it between two looks.
    drop(gone);
    let mut others = Vec::new();
    let same = loop {
        let other = Mounted::tmpfs();
        if rustix::fs::stat(other.path()).unwrap().st_dev == device {
            break other;
        }
        others.push(other);
        assert!(others.len() < 64, "device numbers are not given again");
    };
    assert_eq!(scene.watch.key(path_of(same.path()).as_fd()), None);
    assert!(is_remounted(&scene.drain()));
    assert_eq!(scene.watch.key(path_of(same.path()).as_fd()), None);
    let look = scene.asked().unwrap();
    assert_eq!(look.watched, []);
    // The same again, while the keeper looks.
    mark(&scene.group, same.path());
    drop(same);
    scene.answer(look);
    assert!(is_remounted(&scene.drain()));
    assert_eq!(scene.asked().unwrap().watched, []);
}

/// A file system that is still mounted elsewhere has not gone.
fn what_is_unmounted_at_one_place_is_watched_at_another() {
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "");
    let second = Mounted::bound(tmpfs.path());
    let mut scene = Scene::of(&[tmpfs.path()]);
    let key = scene.key(&path);
    drop(tmpfs);
    assert!(is_remounted(&scene.drain()));
    let path = second.path().join("file");
    assert_eq!(scene.key(&path), key);
    elsewhere(|| open_for_writing(&path).write_all(b"x").unwrap());
    assert_eq!(scene.drain(), [file(&key, true)]);
}

fn overlays_are_watched_by_what_is_seen() {
    let base = Mounted::tmpfs();
    let overlay = match Mounted::overlay(&base) {
        Ok(overlay) => overlay,
        Err(reason) => return say(&format!("SKIPPED: {reason}")),
    };
    let below = overlay.path().join("below");
    let mut scene = Scene::of(&[overlay.path()]);
    let here = scene.key(overlay.path());
    let key = scene.key(&below);
    // Copied up, it is the same file.
    elsewhere(|| open_for_writing(&below).write_all(b"x").unwrap());
    assert!(scene.drain_of(&[&key]).contains(&file(&key, true)));
    assert_eq!(scene.key(&below), key);
    elsewhere(|| open_for_writing(&below).write_all(b"x").unwrap());
    assert_eq!(scene.drain_of(&[&key]), [file(&key, true)]);
    elsewhere(|| drop(overlay.file("new", "")));
    assert!(scene.drain_of(&[&here]).contains(&name(&here, "new")));
    let new = scene.key(overlay.path().join("new"));
    elsewhere(|| fs::remove_file(overlay.path().join("new")).unwrap());
    assert!(scene.drain().contains(&file(&new, false)));
}

/// Not a test of time, which is nobody's business here: the figures are for who reads them.
fn what_it_costs() {
    const TIMES: u32 = 20_000;
    let tmpfs = Mounted::tmpfs();
    let path = tmpfs.file("file", "");
    let mut scene = Scene::of(&[tmpfs.path()]);
    let file = path_of(&path);
    let reader = File::open(&path).unwrap();
    let time = |what: &str, act: &mut dyn FnMut()| {
        let began = std::time::Instant::now();
        (0..TIMES).for_each(|_| act());
        say(&format!("  {what}: {:?}", began.elapsed() / TIMES));
    };
    time("drain of nothing", &mut || {
        scene
            .watch
            .drain(&mut |event| assert_eq!(event, Event::Lost));
    });
    time("key", &mut || {
        assert!(scene.watch.key(file.as_fd()).is_some())
    });
    time("probe for writers", &mut || {
        assert!(!is_being_written(reader.as_fd()))
    });
}
