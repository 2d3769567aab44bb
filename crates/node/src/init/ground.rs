//! What a kernel that has just started lacks for programs: mounts, limits, a root that can be
//! left.

use std::fs;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

const CONSOLE: &str = "/dev/console";
/// Where the root is mounted anew.
const NEW_ROOT: &str = "/root.new";
/// As many as the kernel lets a process have without a change of `fs.nr_open`.
const MAX_OPEN_FILES: u64 = 1 << 20;

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const DATA: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// A file system that every machine has.
struct Place {
    at: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: &'static std::ffi::CStr,
    /// Whether tasks can do without it.
    is_optional: bool,
}

const PLACES: [Place; 8] = [
    place("/proc", "proc", SAFE, c""),
    place("/sys", "sysfs", SAFE, c""),
    place("/dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755"),
    place(
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"mode=0620,gid=5,ptmxmode=0666",
    ),
    place("/dev/shm", "tmpfs", DATA, c"mode=1777"),
    place("/run", "tmpfs", DATA, c"mode=0755"),
    place("/tmp", "tmpfs", DATA, c"mode=1777"),
    Place {
        is_optional: true,
        ..place("/sys/fs/cgroup", "cgroup2", SAFE, c"")
    },
];

const fn place(
    at: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: &'static std::ffi::CStr,
) -> Place {
    Place {
        at,
        kind,
        flags,
        data,
        is_optional: false,
    }
}

/// What the kernel is set to. A kernel that lacks one of them does without.
const SETTINGS: [(&str, &str); 9] = [
    // Else it drops lines of ours when there are more than ten in five seconds. It refuses the word
    // without the end of a line.
    ("kernel/printk_devkmsg", "on\n"),
    // What is more urgent than information goes to the consoles: warnings, and our lines.
    ("kernel/printk", "6 4 1 6"),
    // Nodes' blocks of PIDs are above the head's own.
    ("kernel/pid_max", "4194304"),
    // A node that nobody sits at starts anew rather than stand there for ever.
    ("kernel/panic", "30"),
    // Warnings with a back-trace are no reason to.
    ("kernel/panic_on_warn", "0"),
    // In directories that everybody may write to nobody lays traps for others.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "1"),
];
const DEBUG_LEVELS: (&str, &str) = ("kernel/printk", "8 4 1 8");

/// Mounts what has to be there before anything can be said. Returns what went wrong.
pub(super) fn lay() -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(errno) = leave_first_root() {
        problems.push(format!(
            "can't mount the root anew ({errno}): tasks will not start"
        ));
    }
    for place in PLACES {
        // A directory that is there is as good.
        let _ = rustix::fs::mkdir(place.at, Mode::from_raw_mode(0o755));
        match mount(place.kind, place.at, place.kind, place.flags, place.data) {
            Ok(()) => {}
            // The kernel has done it (CONFIG_DEVTMPFS_MOUNT).
            Err(Errno::BUSY) => {}
            Err(_) if place.is_optional => {}
            Err(errno) => problems.push(format!("can't mount {}: {errno}", place.at)),
        }
    }
    if let Err(errno) = use_console() {
        problems.push(format!("can't open {CONSOLE}: {errno}"));
    }
    problems
}

/// The kernel's first root can't be exchanged by `pivot_root(2)`, which task roots are made with,
/// since nothing lies below it. The same files mounted upon it can.
fn leave_first_root() -> Result<(), Errno> {
    match rustix::fs::mkdir(NEW_ROOT, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    mount_bind("/", NEW_ROOT)?;
    rustix::process::chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    rustix::fs::rmdir(NEW_ROOT)
}

fn use_console() -> Result<(), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let console = rustix::fs::open(CONSOLE, flags, Mode::empty())?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)
}

/// Limits and settings as programs know them from other systems.
pub(super) fn set_limits(is_debug: bool) {
    // One that can't be set is as it was.
    for (name, value) in SETTINGS.into_iter().chain(is_debug.then_some(DEBUG_LEVELS)) {
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    let limit = Rlimit {
        current: Some(MAX_OPEN_FILES),
        maximum: Some(MAX_OPEN_FILES),
    };
    let _ = setrlimit(Resource::Nofile, limit);
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    for resource in [Resource::Nproc, Resource::Memlock] {
        let _ = setrlimit(resource, unlimited);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
}
