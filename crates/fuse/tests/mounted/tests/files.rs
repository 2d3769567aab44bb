//! What programs do with files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use wiglaf_fuse::{Notification, Options};

use crate::memory::BORN;
use crate::served::Served;

pub(super) fn a_mount_is_as_asked_for() {
    let options = Options {
        no_devices: true,
        no_set_uid: false,
    };
    let served = Served::with(options);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("a list");
    let path = served.root().to_str().expect("a plain path");
    let line = mounts.lines().find(|line| line.contains(path));
    let line = line.expect("it is mounted");
    for part in [
        " rw,nodev,",
        " fuse.wiglaf wiglaf ",
        "allow_other",
        "max_read=1048576",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains("nosuid"), "{line}");
    assert!(served.root().metadata().is_ok(), "the first answer");
    assert!(served.memory().init.is_some());
}

pub(super) fn files_are_used() {
    let served = Served::new();
    let path = served.path("file");
    assert!(!path.exists());
    fs::write(&path, "some content").expect("a file");
    assert_eq!(fs::read_to_string(&path).expect("a file"), "some content");
    fs::write(&path, "less").expect("a truncated file");
    assert_eq!(fs::read_to_string(&path).expect("a file"), "less");
    fs::create_dir(served.path("directory")).expect("a directory");
    let moved = served.path("directory/moved");
    fs::rename(&path, &moved).expect("a rename");
    assert!(!path.exists());
    let file = File::options().append(true).open(&moved);
    file.expect("a file")
        .write_all(b" and more")
        .expect("a write");
    assert_eq!(fs::read_to_string(&moved).expect("a file"), "less and more");
    let error = fs::create_dir(served.path("directory")).expect_err("it exists");
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    fs::remove_file(&moved).expect("a removal");
    fs::remove_dir(served.path("directory")).expect("a removal");
    assert!(!moved.exists() && !served.path("directory").exists());
    assert!(
        served
            .memory()
            .umasks
            .iter()
            .all(|umask| *umask == umask_of_ours())
    );
}

fn umask_of_ours() -> u32 {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    u32::from_str_radix(line.expect("a umask").trim(), 8).expect("a number")
}

pub(super) fn long_writes_come_whole() {
    const LENGTH: usize = 3 << 20;
    let served = Served::new();
    let bytes: Vec<u8> = (0..LENGTH).map(|n| (n % 251).to_le_bytes()[0]).collect();
    fs::write(served.path("long"), &bytes).expect("a file");
    assert_eq!(served.memory().writes, [1 << 20; 3]);
    let node = served.path("long").metadata().expect("a file").ino() - 1000;
    served
        .notify(&Notification::Content { node })
        .expect("known");
    served.asked();
    assert!(fs::read(served.path("long")).expect("a file") == bytes);
    let reads = served
        .asked()
        .iter()
        .filter(|name| **name == "read")
        .count();
    // As far as is read ahead at once, and not more often.
    assert!((9..=16).contains(&reads), "{reads} reads");
}

pub(super) fn attributes_arrive() {
    let served = Served::new();
    let node = served.memory().plant("file", b"12345");
    served.memory().file(node).attributes.blocks = 8;
    let found = served.path("file").metadata().expect("a file");
    assert_eq!(
        (found.ino(), found.size(), found.blocks()),
        (node + 1000, 5, 8)
    );
    assert_eq!((found.mode(), found.nlink()), (0o100_644, 1));
    assert_eq!(
        (found.mtime(), found.mtime_nsec()),
        (BORN.0, i64::from(BORN.1))
    );
    assert_eq!(
        (found.ctime(), found.atime_nsec()),
        (BORN.0, i64::from(BORN.1))
    );
    let path = served.path("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a chmod");
    let long_ago = UNIX_EPOCH - Duration::new(9, 500_000_000);
    let file = File::options().write(true).open(&path).expect("a file");
    file.set_modified(long_ago).expect("a time");
    file.set_len(3).expect("a truncation");
    let found = file.metadata().expect("a file");
    assert_eq!((found.mode(), found.size()), (0o100_600, 3));
    assert_eq!((found.mtime(), found.mtime_nsec()), (-10, 500_000_000));
    // Linux 6.6 asks for it, with 7.39; before, a FUSE file had no birth.
    if served.memory().init.is_some_and(|init| init.minor >= 39) {
        let born = found.created().expect("files have a birth");
        let nanoseconds = Duration::new(BORN.0.unsigned_abs(), BORN.1);
        assert_eq!(born.duration_since(UNIX_EPOCH).expect("later"), nanoseconds);
    }
    let space = rustix::fs::statfs(served.root()).expect("a size");
    assert_eq!(
        (space.f_blocks, space.f_bfree, space.f_bavail),
        (1000, 600, 500)
    );
    assert_eq!((space.f_bsize, space.f_namelen), (8192, 200));
}

pub(super) fn xattrs_arrive() {
    let served = Served::new();
    served.memory().plant("file", b"");
    let path = served.path("file");
    let value = b"a value\0with anything".as_slice();
    rustix::fs::setxattr(&path, "user.one", value, XattrFlags::empty()).expect("set");
    rustix::fs::setxattr(&path, "user.two", b"", XattrFlags::CREATE).expect("set");
    let mut room = [0; 64];
    let length = rustix::fs::getxattr(&path, "user.one", &mut room).expect("there");
    assert_eq!(&room[..length], value);
    let length = rustix::fs::getxattr_query(&path, "user.one").expect("there");
    assert_eq!(length, value.len());
    let short = rustix::fs::getxattr(&path, "user.one", &mut [0; 3]);
    assert_eq!(short, Err(Errno::RANGE));
    let length = rustix::fs::listxattr(&path, &mut room).expect("a list");
    assert_eq!(&room[..length], b"user.one\0user.two\0");
    rustix::fs::removexattr(&path, "user.one").expect("removed");
    let gone = rustix::fs::getxattr(&path, "user.one", &mut room);
    assert_eq!(gone, Err(Errno::NODATA));
}

pub(super) fn listings_tell_of_files() {
    const FILES: usize = 1000;
    let served = Served::new();
    for number in 0..FILES {
        served.memory().plant(&format!("file{number:04}"), b"x");
    }
    let list = || {
        let listing = fs::read_dir(served.root()).expect("a listing");
        let names = listing.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let names = list();
    assert_eq!(names.len(), FILES);
    assert_eq!(
        (&*names[0], &*names[FILES - 1]),
        ("file0000".as_ref(), "file0999".as_ref())
    );
    let asked = served.asked();
    assert!(asked.contains(&"list-plus"), "{asked:?}");
    // The kernel lists on without attributes if nobody wants them, so only the first are known.
    let found = served.path("file0000").metadata().expect("a file");
    assert_eq!(found.size(), 1);
    assert!(!served.asked().contains(&"lookup"));
    // Opening a directory is refused once, and its listing is then kept.
    list();
    served.asked();
    assert_eq!(list(), names);
    assert_eq!(served.asked(), [""; 0]);
    served.memory().plant("new", b"");
    assert_eq!(list().len(), FILES);
    served
        .notify(&Notification::Content { node: 1 })
        .expect("known");
    assert_eq!(list().len(), FILES + 1);
}

pub(super) fn links_and_special_files() {
    let served = Served::new();
    std::os::unix::fs::symlink("some/where", served.path("link")).expect("a link");
    for _ in 0..2 {
        let text = fs::read_link(served.path("link")).expect("a link");
        assert_eq!(text.to_str(), Some("some/where"));
    }
    let reads = served
        .asked()
        .iter()
        .filter(|name| **name == "read-link")
        .count();
    assert_eq!(reads, 1, "links are kept");
    fs::write(served.path("one"), "x").expect("a file");
    fs::hard_link(served.path("one"), served.path("two")).expect("a link");
    assert_eq!(served.path("two").metadata().expect("a file").nlink(), 2);
    let (kind, mode) = (rustix::fs::FileType::Fifo, Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, served.path("pipe"), kind, mode, 0).expect("a pipe");
    assert_eq!(
        served.path("pipe").metadata().expect("a pipe").mode(),
        0o010_400
    );
    let from = rustix::fs::CWD;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(from, served.path("two"), from, served.path("three"), flags)
        .expect("a rename");
    assert!(served.path("three").exists());
}

pub(super) fn less_usual_calls() {
    let served = Served::new();
    served.memory().plant("from", b"0123456789");
    let (source, target) = (served.path("from"), served.path("to"));
    let source = File::open(source).expect("a file");
    let target = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(target);
    let target = target.expect("a file");
    let (mut at, mut to) = (2, 1);
    let copied = rustix::fs::copy_file_range(&source, Some(&mut at), &target, Some(&mut to), 5);
    assert_eq!(copied, Ok(5));
    let mut bytes = Vec::new();
    (&target).read_to_end(&mut bytes).expect("a read");
    assert_eq!(bytes, b"\x0023456");
    rustix::fs::fallocate(&target, FallocateFlags::empty(), 0, 100).expect("room");
    assert_eq!(target.metadata().expect("a file").size(), 100);
    assert_eq!(rustix::fs::seek(&source, SeekFrom::Hole(3)), Ok(10));
    assert_eq!(rustix::fs::seek(&source, SeekFrom::Data(3)), Ok(3));
    target.sync_all().expect("synced");
    let asked = served.asked();
    for name in ["copy", "allocate", "seek"] {
        assert!(asked.contains(&name), "{name} in {asked:?}");
    }
    assert!(rustix::termios::tcgetattr(&source).is_err());
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let asker = (uid.as_raw(), gid.as_raw(), std::process::id());
    let memory = served.memory();
    assert!(memory.askers.contains(&asker), "{:?}", memory.askers);
}

pub(super) fn nameless_files_get_names() {
    let served = Served::new();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(served.root(), flags, Mode::RUSR | Mode::WUSR).expect("a file");
    rustix::io::write(&file, b"secret").expect("a write");
    assert!(served.memory().file(1).names.is_empty());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let (from, follow) = (rustix::fs::CWD, AtFlags::SYMLINK_FOLLOW);
    rustix::fs::linkat(from, path, from, served.path("named"), follow).expect("a name");
    assert_eq!(fs::read(served.path("named")).expect("a file"), b"secret");
    let asked = served.asked();
    assert!(
        asked.contains(&"temporary") && asked.contains(&"link"),
        "{asked:?}"
    );
}

pub(super) fn privileges_are_killed() {
    const NOBODY: u32 = 65534;
    let served = Served::new();
    let node = served.memory().plant("file", b"");
    served.memory().file(node).attributes.mode = 0o106_777;
    fs::set_permissions(served.root(), fs::Permissions::from_mode(0o755)).expect("a chmod");
    fs::write(served.path("file"), "by root").expect("a write");
    assert_eq!(served.memory().privileges_killed, 0);
    let path = served.path("file");
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo more >>\"$1\"", "sh"]).arg(&path);
    let status = shell.uid(NOBODY).gid(NOBODY).current_dir("/").status();
    // The directory around the mount is root's alone, so the shell may not even get there.
    let parent = fs::metadata(served.root().parent().expect("a parent")).expect("a parent");
    assert!(parent.mode() & 0o1 != 0, "nobody may enter the parent");
    assert!(status.expect("a shell").success());
    assert_eq!(served.memory().privileges_killed, 1);
}

pub(super) fn devices_keep_their_numbers() {
    let served = Served::new();
    let kind = rustix::fs::FileType::CharacterDevice;
    let device = rustix::fs::makedev(3, 0x1245);
    let path = served.path("device");
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::RUSR, device).expect("a device");
    assert_eq!(path.metadata().expect("a device").rdev(), device);
}

pub(super) fn it_reads_further_ahead() {
    let served = Served::new();
    let found = served.root().metadata().expect("the root").dev();
    let (major, minor) = (rustix::fs::major(found), rustix::fs::minor(found));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let kilobytes = fs::read_to_string(setting).expect("a setting");
    assert_eq!(kilobytes.trim(), "256");
}
