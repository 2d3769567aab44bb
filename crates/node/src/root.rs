//! The task root: the mount namespace that a node's tasks enter by setns.
//!
//! It is prepared once, since making mounts for each task would cost more than its fork and
//! exec. Tasks see the head's files, and the node's own `/proc`, `/dev`, `/sys` and `/run`.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use rustix::mount::{mount, mount_bind, mount_bind_recursive, mount_change};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io, thread};
use wiglaf_linux::mount::{MountAttributes, mount_setattr, pivot_into};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};
use wiglaf_view::Bounds;

mod names;
mod pass_through;
mod private;

pub(crate) use names::{HOSTS, NameFiles, RESOLVER, STAND_INS, show_in};
pub use pass_through::{PassThrough, PassThroughError};
use pass_through::{Passed, Taken};
pub(crate) use private::{PrivateRoot, Shared, private_places};

/// Where the new root is put together before it becomes `/`: any directory that all machines
/// have. What it shows meanwhile only the thread at work sees.
pub(crate) const STAGE: &str = "/tmp";
/// The devices that every program may expect.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// The devices that only some machines have.
const OPTIONAL_DEVICES: [&str; 2] = ["fuse", "net/tun"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("dev/fd", "/proc/self/fd"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"),
    ("dev/ptmx", "pts/ptmx"),
];
/// Directories of `/` that a node which shows the head's files has of its own.
const OWN_DIRECTORIES: [&str; 4] = ["proc", "sys", "dev", "run"];
/// The one that it has of its own only if that is wanted: programs hand files on in it.
const TEMPORARY: &str = "tmp";
/// What of the head's `/run` is files that programs name and not the state of its daemons:
/// removable disks, and the system's own programs on NixOS.
const SHARED_RUN: [&str; 5] = [
    "media",
    "current-system",
    "booted-system",
    "opengl-driver",
    "wrappers",
];

const PRIVATE_DATA: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_PROGRAMS: MountFlags = PRIVATE_DATA.union(MountFlags::NOEXEC);

/// Why there is no task root.
#[derive(thiserror::Error, Debug)]
pub enum RootError {
    /// A step failed.
    #[error("can't {action} {path} for the task root: {errno}{}", reason(.action, *.errno))]
    Step {
        /// What was tried.
        action: &'static str,
        /// With which path, as tasks will see it.
        path: PathBuf,
        /// What went wrong.
        errno: Errno,
    },
    /// There is no thread for it.
    #[error("can't start the thread that makes the task root: {0}")]
    Thread(#[source] io::Error),
}

impl RootError {
    /// Whether the kernel has no overlays, or none for us.
    pub(crate) fn is_about_overlays(&self) -> bool {
        matches!(self, RootError::Step { action, .. } if *action == MOUNT_OVERLAY)
    }
}

fn reason(action: &str, errno: Errno) -> &'static str {
    if errno == Errno::PERM && action == MOUNT_PROC {
        " (a container hides parts of /proc from this process: run outside of it, or with \
         an unmasked /proc)"
    } else {
        ""
    }
}

const MOUNT_OVERLAY: &str = "mount an overlay at";
const MOUNT_PROC: &str = "mount a fresh process list at";

/// A prepared mount namespace. It lives as long as the descriptor or a task in it does.
#[derive(Debug)]
pub struct TaskRoot {
    /// What tasks enter by `setns` with `CLONE_NEWNS`.
    pub mount_ns: OwnedFd,
}

/// Where the files that a node's tasks see come from.
#[derive(Debug)]
pub enum Files {
    /// From this machine's disk, which is the head's.
    Disk(TaskRoot),
    /// From the head's, by way of the view.
    View(ViewOptions),
}

/// What a node that shows the head's files adds to them, and how much it remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewOptions {
    /// Whether `/tmp` is in the node's memory rather than the head's.
    pub own_tmp: bool,
    /// Directories of this machine that tasks see in place of the head's.
    pub pass_through: PassThrough,
    /// How much each view may remember.
    pub bounds: Bounds,
}

/// What a node has of its own, for the roots of all views: `/proc`, `/sys`, `/dev`, `/run`,
/// perhaps `/tmp`, and what is passed through. Only the agent's process sees where they are kept.
#[derive(Clone, Debug)]
pub(crate) struct OwnDirectories {
    at: PathBuf,
    names: Vec<&'static str>,
    passed: Arc<Passed>,
}

impl OwnDirectories {
    /// Makes them in memory. The process must have a mount namespace of its own.
    pub(crate) fn make(options: &ViewOptions) -> Result<OwnDirectories, RootError> {
        let own_tmp = options.own_tmp;
        keep_mounts_to_ourselves()?;
        let taken = Taken::take(&options.pass_through)?;
        mount_tmpfs(STAGE, PRIVATE_DATA, c"mode=0755")?;
        let at = Path::new(STAGE).join("own");
        let mut names = OWN_DIRECTORIES.to_vec();
        if own_tmp {
            names.push(TEMPORARY);
        }
        let fill = || {
            // A thread's own working directory and umask.
            unshare(NamespaceFlags::FS).map_err(step("make a thread's own", STAGE))?;
            rustix::process::umask(Mode::empty());
            for directory in std::iter::once("").chain(names.iter().copied()) {
                let path = at.join(directory);
                make_directory(&path.to_string_lossy())?;
            }
            rustix::process::chdir(&at).map_err(step("enter", &at))?;
            mount_proc("proc")?;
            fill_dev()?;
            mount_sys()?;
            fill_run()?;
            if own_tmp {
                mount_tmpfs(TEMPORARY, PRIVATE_DATA, c"mode=1777")?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let worker = scope.spawn(fill);
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let passed = Arc::new(taken.keep(Path::new(STAGE))?);
        Ok(OwnDirectories { at, names, passed })
    }

    /// Their names in `/`.
    pub(crate) fn names(&self) -> Vec<String> {
        let own = self.names.iter().copied().map(str::to_owned);
        own.chain(self.passed.top_names()).collect()
    }

    /// Directories of the head's, below those of `/`, that others stand on.
    pub(crate) fn covered(&self) -> impl Iterator<Item = &Path> {
        self.passed.deep_paths()
    }

    /// Where the terminals are, as the agent sees them.
    pub(crate) fn terminals(&self) -> PathBuf {
        self.at.join("dev/pts")
    }

    /// Where the node's disks are to be mounted, each by the name that it has in `/`.
    pub(crate) fn disk_places(&self) -> PathBuf {
        self.at.clone()
    }

    /// The same with a disk that has been mounted there since.
    pub(crate) fn with_disk(&self, name: &'static str) -> OwnDirectories {
        let mut own = self.clone();
        if !own.names.contains(&name) {
            own.names.push(name);
        }
        own
    }

    /// Whether it has a disk of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// Whether something of the node's own stands at or in a directory, or on the way to it.
    fn covers(&self, directory: &str) -> bool {
        let mut names = self.names().into_iter();
        let top = directory.split('/').next();
        let directory = Path::new("/").join(directory);
        let mut deep = self.covered();
        names.any(|name| top == Some(&name))
            || deep.any(|path| path.starts_with(&directory) || directory.starts_with(path))
    }

    /// A new directory for a view to be mounted on.
    pub(crate) fn place(&self, name: &str) -> Result<PathBuf, RootError> {
        let path = Path::new(STAGE).join(name);
        make_directory(&path.to_string_lossy())?;
        Ok(path)
    }
}

impl TaskRoot {
    /// A root with the head's files as this machine's own kernel shows them: for virtual nodes.
    /// What is at the paths `hidden` (the head's run directory, if it is not in `/run`) is
    /// covered.
    ///
    /// The mounts are a recursive *slave* copy of the head's: what the head's administrator
    /// mounts or unmounts later appears and disappears here, and nothing done here shows there.
    /// (Where the head's mounts are private, as in many containers, later ones do not appear.)
    pub fn from_head_disk(hidden: &[PathBuf]) -> Result<TaskRoot, RootError> {
        in_own_thread(|| prepare(Path::new("/"), hidden))
    }

    /// A root with the files of another system that is mounted on this machine.
    pub(crate) fn from_tree(tree: &Path) -> Result<TaskRoot, RootError> {
        in_own_thread(|| prepare(tree, &[]))
    }

    /// A root around the view that is mounted at `view`, with the node's own directories in it.
    /// The view's requests must be answered meanwhile.
    pub(crate) fn from_view(view: &Path, own: &OwnDirectories) -> Result<TaskRoot, RootError> {
        in_own_thread(|| surround(view, own))
    }
}

fn surround(view: &Path, own: &OwnDirectories) -> Result<TaskRoot, RootError> {
    unshare(NamespaceFlags::NEWNS).map_err(step("leave the mount namespace with", "/"))?;
    enter_for_good(&bind_own(view, own)?)
}

/// Puts the node's own directories into a view, and makes it the working directory.
fn bind_own(view: &Path, own: &OwnDirectories) -> Result<OwnedFd, RootError> {
    let root = rustix::fs::open(
        view,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step("open", view))?;
    rustix::process::fchdir(&root).map_err(step("enter", view))?;
    for name in &own.names {
        mount_bind_recursive(own.at.join(name), *name).map_err(step("bind", name))?;
    }
    own.passed.show(&root)?;
    Ok(root)
}

fn enter_for_good(root: &OwnedFd) -> Result<TaskRoot, RootError> {
    pivot_into(root.as_fd()).map_err(step("change to the new root", "/"))?;
    let namespace = "/proc/thread-self/ns/mnt";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mount_ns =
        rustix::fs::open(namespace, flags, Mode::empty()).map_err(step("open", namespace))?;
    Ok(TaskRoot { mount_ns })
}

/// Shows this process the process list of its own PID namespace at `/proc`. It must have a
/// mount namespace of its own already, which is cut off from the head's here.
pub fn mount_own_proc() -> Result<(), RootError> {
    keep_mounts_to_ourselves()?;
    mount_proc("/proc")
}

/// A thread, since a mount namespace belongs to one: the caller keeps its own, and nothing has
/// to be undone after a failure.
fn in_own_thread<T: Send>(
    work: impl FnOnce() -> Result<T, RootError> + Send,
) -> Result<T, RootError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("task root".into())
            .spawn_scoped(scope, work)
            .map_err(RootError::Thread)?;
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn prepare(tree: &Path, hidden: &[PathBuf]) -> Result<TaskRoot, RootError> {
    unshare(NamespaceFlags::NEWNS).map_err(step("leave the mount namespace with", "/"))?;
    // The thread's own since the line above: the modes below are meant as they stand.
    rustix::process::umask(Mode::empty());
    keep_mounts_to_ourselves()?;
    // Now: the stage is going to cover what may lie below it. One that is not there needs no hiding.
    let hidden: Vec<PathBuf> = (hidden.iter())
        .filter_map(|directory| directory.canonicalize().ok())
        .collect();
    mount_bind_recursive(tree, STAGE).map_err(step("bind", tree))?;
    let root = rustix::fs::open(
        STAGE,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step("open", STAGE))?;
    rustix::process::fchdir(&root).map_err(step("enter", STAGE))?;

    // From here on relative paths are the new root's, absolute ones the old root's.
    mount_proc("proc")?;
    fill_dev()?;
    mount_sys()?;
    fill_run()?;
    share_run()?;
    for path in &hidden {
        hide(path)?;
    }
    enter_for_good(&root)
}

fn keep_mounts_to_ourselves() -> Result<(), RootError> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(step("make a slave of", "/"))
}

fn mount_proc(target: &str) -> Result<(), RootError> {
    mount("proc", target, "proc", NO_PROGRAMS, None).map_err(step(MOUNT_PROC, target))
}

fn fill_dev() -> Result<(), RootError> {
    let flags = MountFlags::NOSUID | MountFlags::STRICTATIME;
    mount_tmpfs("dev", flags, c"mode=0755,size=1m")?;
    for name in DEVICES {
        bind_device(name)?;
    }
    for name in OPTIONAL_DEVICES {
        if Path::new("/dev").join(name).exists() {
            bind_device(name)?;
        }
    }
    for (link, target) in DEVICE_LINKS {
        rustix::fs::symlink(target, link).map_err(step("make the link", link))?;
    }
    make_directory("dev/shm")?;
    mount_tmpfs("dev/shm", PRIVATE_DATA, c"mode=1777")?;
    mount_terminals()
}

fn bind_device(name: &str) -> Result<(), RootError> {
    let (source, target) = (format!("/dev/{name}"), format!("dev/{name}"));
    if let Some((directory, _)) = name.split_once('/') {
        make_directory(&format!("dev/{directory}"))?;
    }
    fs::File::create(&target).map_err(io_step("make", &target))?;
    mount_bind(&source, &target).map_err(step("bind", &target))
}

fn mount_terminals() -> Result<(), RootError> {
    make_directory("dev/pts")?;
    let devpts = |data: &CStr| {
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("devpts", "dev/pts", "devpts", flags, data)
    };
    // Group 5 is "tty" everywhere. A rootless node's user namespace has no such group.
    match devpts(c"newinstance,ptmxmode=0666,mode=0620,gid=5") {
        Err(Errno::INVAL) => devpts(c"newinstance,ptmxmode=0666,mode=0620"),
        result => result,
    }
    .map_err(step("mount terminals at", "dev/pts"))
}

/// A fresh sysfs shows the node's own network devices. Where a container's masks forbid one,
/// the machine's is shown.
fn mount_sys() -> Result<(), RootError> {
    let flags = NO_PROGRAMS | MountFlags::RDONLY;
    if mount("sysfs", "sys", "sysfs", flags, None).is_ok() {
        return Ok(());
    }
    mount_bind_recursive("/sys", "sys").map_err(step("bind", "/sys"))?;
    let read_only = MountAttributes {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        ..MountAttributes::default()
    };
    mount_setattr(CWD, c"sys", true, &read_only).map_err(step("make read-only", "/sys"))
}

fn fill_run() -> Result<(), RootError> {
    mount_tmpfs("run", PRIVATE_DATA, c"mode=0755")?;
    make_directory("run/lock")?;
    let sticky = Mode::from_raw_mode(0o1777);
    rustix::fs::chmod("run/lock", sticky).map_err(step("open to all", "run/lock"))
}

fn share_run() -> Result<(), RootError> {
    for name in SHARED_RUN {
        let (source, target) = (format!("/run/{name}"), format!("run/{name}"));
        if let Ok(link) = fs::read_link(&source) {
            rustix::fs::symlink(&link, &target).map_err(step("make the link", &target))?;
        } else if Path::new(&source).is_dir() {
            make_directory(&target)?;
            mount_bind_recursive(&source, &target).map_err(step("bind", &target))?;
        }
    }
    Ok(())
}

/// Covers a directory or a file with nothing. One that is covered already (below `/run`) is fine.
fn hide(path: &Path) -> Result<(), RootError> {
    let target = path.strip_prefix("/").unwrap_or(path);
    if target.as_os_str().is_empty() || !target.exists() {
        return Ok(());
    }
    if !target.is_dir() {
        return hide_file(path, target);
    }
    let flags = NO_PROGRAMS | MountFlags::RDONLY;
    mount("tmpfs", target, "tmpfs", flags, c"mode=0,size=4k").map_err(step("hide", path))
}

fn hide_file(path: &Path, target: &Path) -> Result<(), RootError> {
    let cover = "dev/nothing";
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(cover, flags, Mode::empty()).map_err(step("make", cover))?;
    mount_bind(cover, target).map_err(step("hide", path))?;
    // The mount keeps it.
    fs::remove_file(cover).map_err(io_step("remove", cover))?;
    let read_only = MountAttributes {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        ..MountAttributes::default()
    };
    let target = CString::new(target.as_os_str().as_bytes()).map_err(|_| Errno::INVAL);
    target
        .and_then(|target| mount_setattr(CWD, &target, false, &read_only))
        .map_err(step("hide", path))
}

fn mount_tmpfs(target: &str, flags: MountFlags, data: &CStr) -> Result<(), RootError> {
    mount("tmpfs", target, "tmpfs", flags, data).map_err(step("mount memory at", target))
}

fn make_directory(path: &str) -> Result<(), RootError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        result => result.map_err(step("make the directory", path)),
    }
}

fn step(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> RootError {
    let path = Path::new("/").join(path);
    move |errno| RootError::Step {
        action,
        path,
        errno,
    }
}

fn io_step(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> RootError {
    let step = step(action, path);
    move |error| step(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
