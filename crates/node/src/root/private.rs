//! Task roots in which `/tmp` and `/var/tmp` are a task's own: what the head has there is seen,
//! what the task makes there stays in the node's memory until somebody takes it out.
//!
//! They are overlays, and dear: their end takes the kernel a millisecond. So a root that a task
//! left as it found it serves the next one.

use std::ffi::CString;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, SeekFrom, Stat, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsPickFlags, MoveMountFlags, OpenTreeFlags, fsconfig_reconfigure, fspick, mount, move_mount,
    open_tree,
};
use wiglaf_linux::namespace::{NamespaceFlags, unshare};

use super::{
    OwnDirectories, PRIVATE_DATA, RootError, STAGE, TaskRoot, bind_own, enter_for_good,
    in_own_thread, make_directory, mount_tmpfs, step,
};

/// Where programs put what they need for a while, below `/`.
const PLACES: [&str; 2] = ["tmp", "var/tmp"];
/// Where all that is kept, below the stage.
const MEMORY: &str = "private";
/// All of a node's private directories together have as much as a tmpfs has anyway.
const MEMORY_OPTIONS: &std::ffi::CStr = c"mode=0711,size=50%";
const OVERLAY_OPTIONS: &str = "index=off,metacopy=off,redirect_dir=off,xino=off";
/// Room for the entries of an empty directory and some more.
const FEW_ENTRIES: usize = 1024;

/// The directories that overlays stand on.
pub(crate) fn private_places() -> impl Iterator<Item = PathBuf> {
    PLACES.iter().map(|place| Path::new("/").join(place))
}

/// What stays the head's though it lies in one of the places: where the task works, so that its
/// results are where all see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shared(Option<(&'static str, Option<Vec<u8>>)>);

impl Shared {
    /// By the working directory.
    pub(crate) fn by(cwd: &[u8]) -> Shared {
        let cwd = Path::new(std::ffi::OsStr::from_bytes(cwd));
        let below = PLACES.iter().find_map(|place| {
            let rest = cwd.strip_prefix(Path::new("/").join(place)).ok()?;
            Some((*place, rest))
        });
        Shared(below.map(|(place, rest)| {
            let top = rest.components().find_map(|part| match part {
                Component::Normal(name) => Some(name.as_bytes().to_vec()),
                _ => None,
            });
            (place, top)
        }))
    }

    /// Whether a place is the head's as a whole.
    fn is_all_of(&self, place: &str) -> bool {
        matches!(self.0, Some((shared, None)) if shared == place)
    }

    /// The directory in one of the places, as a path below `/`.
    fn directory(&self) -> Option<PathBuf> {
        let (place, name) = self.0.as_ref()?;
        Some(Path::new(place).join(std::ffi::OsStr::from_bytes(name.as_ref()?)))
    }
}

/// One such root.
#[derive(Debug)]
pub(crate) struct PrivateRoot {
    pub(crate) root: TaskRoot,
    pub(crate) layers: Vec<Layer>,
    shared: Option<(PathBuf, Identity)>,
    view: PathBuf,
    at: PathBuf,
    /// When it was last lent to a task, by two clocks.
    pub(crate) lent: (Instant, SystemTime),
}

/// One private directory.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Below `/`.
    pub(crate) place: &'static str,
    /// What has been made or changed there.
    pub(crate) upper: OwnedFd,
    overlay: OwnedFd,
    lower: Identity,
}

/// Which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(stat: &Stat) -> Identity {
        Identity(stat.st_dev, stat.st_ino)
    }
}

impl PrivateRoot {
    /// The memory in which they are, once for each node.
    pub(crate) fn prepare() -> Result<(), RootError> {
        let memory = Path::new(STAGE).join(MEMORY);
        let memory = memory.to_string_lossy();
        make_directory(&memory)?;
        mount_tmpfs(&memory, PRIVATE_DATA, MEMORY_OPTIONS)
    }

    /// Makes one around the view that is mounted at `view`, whose requests must be answered
    /// meanwhile. `number` tells it from others.
    pub(crate) fn make(
        view: &Path,
        own: &OwnDirectories,
        shared: &Shared,
        number: u64,
        rootless: bool,
    ) -> Result<PrivateRoot, RootError> {
        let at = Path::new(STAGE).join(MEMORY).join(number.to_string());
        let made = in_own_thread(|| surround(view, own, shared, &at, rootless));
        if made.is_err() {
            // What can't be removed is empty.
            let _ = fs::remove_dir_all(&at);
        }
        made
    }

    /// Whether nothing has been made, changed or removed in it.
    pub(crate) fn is_clean(&self) -> bool {
        self.layers.iter().all(|layer| is_empty(&layer.upper))
    }

    /// Makes it fit for another task, to whom nothing that the one before has seen matters. Fails
    /// if it stands on what is not there any more.
    pub(crate) fn refresh(&mut self) -> Result<(), Errno> {
        let view = rustix::fs::open(&self.view, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        for layer in &self.layers {
            if Identity::of(&look(view.as_fd(), Path::new(layer.place))?) != layer.lower {
                return Err(Errno::STALE);
            }
            // The overlay would believe what it has found for ever. This has the kernel forget all
            // that nobody uses.
            let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
            fsconfig_reconfigure(fspick(&layer.overlay, c"", flags)?)?;
        }
        if let Some((path, identity)) = &self.shared
            && Identity::of(&look(view.as_fd(), path)?) != *identity
        {
            return Err(Errno::STALE);
        }
        self.lent = (Instant::now(), SystemTime::now());
        Ok(())
    }

    /// The view that it stands in, as the agent sees it.
    pub(crate) fn view(&self) -> &Path {
        &self.view
    }

    /// Gives its memory back. No process may be in it any more. It takes the kernel some time.
    pub(crate) fn discard(self) {
        let PrivateRoot {
            root, layers, at, ..
        } = self;
        drop(root);
        drop(layers);
        // What can't be removed goes with the node.
        let _ = fs::remove_dir_all(at);
    }
}

fn surround(
    view: &Path,
    own: &OwnDirectories,
    shared: &Shared,
    at: &Path,
    rootless: bool,
) -> Result<PrivateRoot, RootError> {
    unshare(NamespaceFlags::NEWNS).map_err(step("leave the mount namespace with", "/"))?;
    rustix::process::umask(Mode::empty());
    let root = bind_own(view, own)?;
    fs::create_dir(at).map_err(super::io_step("make the directory", at))?;
    let kept = match shared.directory() {
        Some(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let found = step_in(&path, look(CWD, &path))?;
            let tree = open_tree(CWD, &path, flags).map_err(step("keep", &path))?;
            Some((path, Identity::of(&found), tree))
        }
        None => None,
    };
    let mut layers = Vec::new();
    for place in PLACES {
        if shared.is_all_of(place) || own.covers(place) {
            continue;
        }
        // A link leads to another of them, or to what is not meant to be private.
        let lower = look(CWD, Path::new(place));
        if let Ok(lower) = lower
            && FileType::from_raw_mode(lower.st_mode).is_dir()
        {
            layers.push(cover(place, &lower, at, rootless)?);
        }
    }
    let mut directory = None;
    if let Some((path, identity, tree)) = kept {
        if layers.iter().any(|layer| path.starts_with(layer.place)) {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&tree, c"", CWD, &path, flags).map_err(step("keep", &path))?;
        }
        directory = Some((path, identity));
    }
    Ok(PrivateRoot {
        root: enter_for_good(&root)?,
        layers,
        shared: directory,
        view: view.to_owned(),
        at: at.to_owned(),
        lent: (Instant::now(), SystemTime::now()),
    })
}

/// Covers one place, below the working directory, with an overlay.
fn cover(place: &'static str, lower: &Stat, at: &Path, rootless: bool) -> Result<Layer, RootError> {
    let name = place.replace('/', "-");
    let (upper, work) = (at.join(&name), at.join(format!("{name}.work")));
    for directory in [&upper, &work] {
        fs::create_dir(directory).map_err(super::io_step("make the directory", directory))?;
    }
    let mode = Mode::from_raw_mode(lower.st_mode & 0o7777);
    let owner = (Uid::from_raw(lower.st_uid), Gid::from_raw(lower.st_gid));
    // A rootless node can't: it knows one user only.
    let _ = rustix::fs::chown(&upper, Some(owner.0), Some(owner.1));
    rustix::fs::chmod(&upper, mode).map_err(step("open to others", &upper))?;
    let by_user = if rootless { ",userxattr" } else { "" };
    let options = format!(
        "lowerdir={place},upperdir={},workdir={},{OVERLAY_OPTIONS}{by_user}",
        upper.display(),
        work.display()
    );
    let options = CString::new(options).map_err(|_| Errno::INVAL);
    options
        .and_then(|options| mount("overlay", place, "overlay", PRIVATE_DATA, &*options))
        .map_err(step(super::MOUNT_OVERLAY, place))?;
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path, flags| {
        rustix::fs::open(path, flags | directory, Mode::empty()).map_err(step("open", path))
    };
    Ok(Layer {
        place,
        upper: open(&upper, OFlags::RDONLY)?,
        overlay: open(Path::new(place), OFlags::PATH)?,
        lower: Identity::of(lower),
    })
}

fn look(directory: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<Stat, Errno> {
    rustix::fs::statat(directory, path, AtFlags::SYMLINK_NOFOLLOW)
}

fn step_in<T>(path: &Path, result: Result<T, Errno>) -> Result<T, RootError> {
    result.map_err(step("look at", path))
}

fn is_empty(directory: &OwnedFd) -> bool {
    if rustix::fs::seek(directory, SeekFrom::Start(0)).is_err() {
        return false;
    }
    let mut room = [const { MaybeUninit::uninit() }; FEW_ENTRIES];
    let mut entries = RawDir::new(directory, &mut room);
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_task_works_stays_the_heads() {
        let shared = |cwd: &str| Shared::by(cwd.as_bytes());
        assert_eq!(shared("/home/u"), Shared::default());
        assert_eq!(shared("/tmpfiles/x"), Shared::default());
        assert_eq!(shared("/var/tmp/a/b").directory(), Some("var/tmp/a".into()));
        assert_eq!(shared("/tmp/a"), shared("/tmp/a/b/c"));
        assert!(shared("/tmp").is_all_of("tmp") && !shared("/tmp").is_all_of("var/tmp"));
        assert!(!shared("/tmp/a").is_all_of("tmp"));
    }
}
