//! With a watch, as root has one: what the head's own processes change.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_wire::marks::FileSystem;

use super::guards::Appender;
use super::*;
use crate::watch::Marks;

/// `None`, said aloud, where nothing can be watched. The other descriptor is the keeper's.
pub(super) fn watched() -> Option<(Rig, OwnedFd)> {
    if !is_root() {
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let group = Group::new(Queue::Unlimited).expect("a group");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = rustix::fs::open(directory.path(), flags, Mode::empty()).expect("it");
    group.mark_file_system(path.as_fd()).expect("a mark");
    let mounts = rustix::fs::open("/proc/self/mountinfo", OFlags::RDONLY, Mode::empty());
    let (ours, keeper) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a pair");
    let watch = Watch::new(Marks {
        group: group.as_fd().try_clone_to_owned().expect("a copy"),
        mounts: mounts.expect("the mount table"),
        keeper: ours,
        file_systems: vec![FileSystem {
            device: rustix::fs::fstat(&path).expect("its status").st_dev,
            superblock: rustix::fs::fstat(&path).expect("its status").st_dev,
            fsid: fsid_of(directory.path()),
        }],
    });
    let export = Export::new(Vec::new(), Some(watch.expect("a watch"))).expect("an export");
    let mut rig = Rig::with(directory, export);
    rig.ignore_news();
    Some((rig, keeper))
}

/// As `stat -f -c %i`, which prints the two words as one number, the first one first.
fn fsid_of(directory: &Path) -> [u8; 8] {
    let mut stat = std::process::Command::new("stat");
    let output = stat.args(["-f", "-c", "%i"]).arg(directory).output();
    let text = String::from_utf8(output.expect("stat").stdout).expect("text");
    let both = u64::from_str_radix(text.trim(), 16).expect("a number");
    both.rotate_left(32).to_ne_bytes()
}

impl Rig {
    /// News of these files; other processes of the machine do as they like, and their mounts
    /// make everything unsure for a moment.
    fn news_of(&mut self, link: LinkId, files: &[FileId]) -> Vec<Change> {
        let mut news = self.news(link);
        news.retain(|change| match change {
            Change::File { file, .. } | Change::Doubtful { file } => files.contains(file),
            Change::Name { directory, .. } => files.contains(directory),
            Change::Everything => true,
        });
        news
    }
}

#[test]
fn changes_on_the_head_are_told_before_the_barrier_is_answered() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("file", "1");
    let told = rig.look_up(A, "file");
    if !told.watched {
        println!("SKIPPED: something was mounted meanwhile");
        return;
    }
    let (file, here) = (told.file, rig.here);
    rig.look_up(B, "file");
    rig.attributes(A, here).expect("told");
    assert_eq!(rig.try_look_up(A, here, b"new"), Ok(None));
    rig.changes.clear();
    elsewhere(&mut rig, "echo 2 >file; chmod 600 file; touch new");
    rig.done(A, Ask::Barrier).expect("done");
    let expected = [
        changed(file, true),
        changed(here, true),
        renamed(here, "new"),
    ];
    let files = [file, here];
    let all = rig.news_of(A, &files);
    if all.contains(&Change::Everything) {
        println!("SKIPPED: something was mounted meanwhile");
        return;
    }
    assert_eq!(all, expected);
    assert_eq!(rig.news_of(B, &[file]), [changed(file, true)]);
    // Once, until it is asked for again.
    elsewhere(&mut rig, "echo 3 >file");
    assert_eq!(rig.news_of(A, &files), []);
    rig.attributes(A, file).expect("told");
    elsewhere(&mut rig, "ln file other");
    assert_eq!(rig.news_of(A, &files), [changed(file, false)]);
    // By any of its names.
    rig.attributes(A, file).expect("told");
    elsewhere(&mut rig, "echo 4 >other");
    assert_eq!(rig.news_of(A, &files), [changed(file, true)]);
    // What a node does itself is not told to it by the watch either.
    let opened = rig.open(A, file, RDWR).expect("opened");
    rig.write_to(A, opened.handle, 0, b"5").expect("written");
    rig.attributes(A, file).expect("told");
    assert_eq!(rig.news_of(A, &files), []);
}

#[test]
fn listed_files_are_watched_too() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("file", "1");
    let listed = rig.list(A, true);
    let told = listed[0].attributes.clone().expect("attributes");
    let here = rig.here;
    rig.ignore_news();
    elsewhere(&mut rig, "echo 2 >file; mv file other");
    let news = rig.news_of(A, &[told.file, here]);
    if !told.watched || news.contains(&Change::Everything) {
        println!("SKIPPED: something was mounted meanwhile");
        return;
    }
    assert!(news.contains(&changed(told.file, true)), "{news:?}");
    assert!(news.contains(&renamed(here, "file")));
    assert!(news.contains(&renamed(here, "other")));
}

#[test]
fn rights_of_now_are_needed_to_read_without_a_handle() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("file", "1");
    let told = rig.look_up(A, "file");
    assert_eq!(rig.read(A, told.file, None, 0, 9), Ok(b"1".to_vec()));
    let kept = rig.export.readers.get(told.file, || Err(Errno::NOENT));
    assert_eq!(kept.is_ok(), told.watched);
    elsewhere(&mut rig, "chmod 000 file");
    rig.done(A, Ask::Barrier).expect("done");
    let kept = rig.export.readers.get(told.file, || Err(Errno::NOENT));
    assert_eq!(kept.err(), Some(Errno::NOENT));
}

#[test]
fn a_file_that_others_write_is_not_kept() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("file", "1");
    let told = rig.look_up(A, "file");
    rig.look_up(B, "file");
    if !told.watched {
        println!("SKIPPED: something was mounted meanwhile");
        return;
    }
    let file = told.file;
    let open = |rig: &mut Rig, link, flags| {
        let opened = rig.open(link, file, flags).expect("opened");
        (opened.unkept, opened.handle)
    };
    let close = |rig: &mut Rig, link, handle| rig.tell(link, Ask::Close { handle });
    let (unkept, one) = open(&mut rig, A, RDONLY);
    assert!(!unkept);
    let (unkept, two) = open(&mut rig, A, RDWR);
    assert!(!unkept, "its own node's alone");
    let (unkept, three) = open(&mut rig, A, RDONLY);
    assert!(!unkept, "its own node's alone");
    let (unkept, four) = open(&mut rig, B, RDONLY);
    assert!(unkept, "another node writes");
    for handle in [one, two, three] {
        close(&mut rig, A, handle);
    }
    close(&mut rig, B, four);
    let (unkept, five) = open(&mut rig, B, RDONLY);
    assert!(!unkept);
    // A process of the head.
    let writer = Appender::new(&rig, "file");
    for flags in [RDONLY, RDWR, RDONLY] {
        let (unkept, handle) = open(&mut rig, A, flags);
        assert!(unkept);
        close(&mut rig, A, handle);
    }
    writer.end();
    close(&mut rig, B, five);
    let (unkept, _) = open(&mut rig, A, RDWR);
    assert!(!unkept);
}

#[test]
fn write_locks_are_no_writers() {
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("file", "1");
    let file = rig.look_up(A, "file").file;
    rig.look_up(B, "file");
    let opened = rig.open(A, file, RDONLY).expect("opened");
    let lock = Lock {
        kind: LockKind::Read,
        start: 0,
        end: 5,
        pid: 0,
    };
    let what = Ask::Lock {
        file,
        handle: opened.handle,
        owner: 1,
        style: LockStyle::Record,
        lock,
        wait: false,
    };
    rig.attributes_of(A, what).expect("locked");
    assert!(!rig.open(B, file, RDONLY).expect("opened").unkept);
    let handle = opened.handle;
    rig.tell(A, Ask::Close { handle });
    assert!(!rig.open(B, file, RDONLY).expect("opened").unkept);
}

#[test]
fn lost_events_are_everything() {
    if !is_root() {
        return;
    }
    let Some((mut rig, _keeper)) = watched() else {
        return;
    };
    rig.write("file", "1");
    let file = rig.look_up(A, "file").file;
    rig.ignore_news();
    rig.export.obey(&crate::watch::Event::Lost);
    assert_eq!(rig.news(A), [Change::Everything]);
    assert_eq!(rig.news(B), [Change::Everything]);
    elsewhere(&mut rig, "echo 2 >file");
    assert_eq!(rig.news_of(A, &[file]), []);
    // Asked for again, it is watched again.
    let again = rig.attributes(A, file).expect("told");
    elsewhere(&mut rig, "echo 3 >file");
    if again.watched {
        assert!(rig.news_of(A, &[file]).contains(&changed(file, true)));
    }
}
