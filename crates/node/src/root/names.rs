//! Where tasks find names: links in place of the head's files lead to files of the node's own,
//! which are replaced as a whole whenever something changes. A mount over the file itself would
//! not do: it shows one file for ever, and goes when the head's is replaced.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, move_mount, open_tree,
    unmount,
};
use wiglaf_linux::mount::{MountAttributes, mount_setattr};
use wiglaf_linux::namespace::{NamespaceFlags, setns, unshare};

use super::{OwnDirectories, RootError, STAGE, TaskRoot, in_own_thread, step};

/// Below `/`. Nothing of the head's is called so.
const DIRECTORY: &str = "run/wiglaf-names";
/// Beside each file a link to it, to be mounted where there is no view.
const LINK_PREFIX: &str = ".to-";
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// A file of the node's own that stands in place of one of the head's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StandIn {
    /// The head's.
    pub(crate) path: &'static str,
    /// The node's.
    pub(crate) target: &'static str,
    name: &'static str,
}

/// `hosts(5)`.
pub(crate) const HOSTS: StandIn = StandIn {
    path: "/etc/hosts",
    target: "/run/wiglaf-names/hosts",
    name: "hosts",
};
/// `resolv.conf(5)`.
pub(crate) const RESOLVER: StandIn = StandIn {
    path: "/etc/resolv.conf",
    target: "/run/wiglaf-names/resolv.conf",
    name: "resolv.conf",
};
pub(crate) const STAND_INS: [StandIn; 2] = [HOSTS, RESOLVER];

/// The directory of these files. Tasks can't change it; the agent can.
#[derive(Debug)]
pub(crate) struct NameFiles(OwnedFd);

impl NameFiles {
    /// For all views of a node.
    pub(crate) fn of_views(own: &OwnDirectories) -> Result<NameFiles, RootError> {
        let kept = Path::new(STAGE).join("names");
        make(&kept)?;
        let shown = own.at.join(DIRECTORY);
        make(&shown)?;
        mount_bind(&kept, &shown).map_err(step("bind", DIRECTORY))?;
        make_read_only(&shown)?;
        open(&kept).map(NameFiles)
    }

    /// For a root without views.
    pub(crate) fn of_root(root: &TaskRoot) -> Result<NameFiles, RootError> {
        in_root(root, || {
            let directory = Path::new("/").join(DIRECTORY);
            make(&directory)?;
            for StandIn { target, name, .. } in STAND_INS {
                let link = directory.join(format!("{LINK_PREFIX}{name}"));
                rustix::fs::symlink(target, &link).map_err(step("make the link", &link))?;
            }
            // What is opened before can be changed.
            let opened = open(&directory)?;
            mount_bind(&directory, &directory).map_err(step("bind", DIRECTORY))?;
            make_read_only(&directory)?;
            Ok(NameFiles(opened))
        })
    }

    /// Replaces one of them; whoever reads sees the old one or the new one.
    pub(crate) fn write(&self, which: StandIn, content: &[u8]) -> Result<(), RootError> {
        let new = format!("{}.new", which.name);
        let write = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.0, &new, flags, FILE_MODE)?;
            // Whatever the agent's umask is.
            rustix::fs::fchmod(&file, FILE_MODE)?;
            let mut rest = content;
            while !rest.is_empty() {
                let count = rustix::io::write(&file, rest)?;
                rest = &rest[count..];
            }
            rustix::fs::renameat(&self.0, &new, &self.0, which.name)
        };
        write().map_err(step("write", which.target))
    }
}

/// Has the files stand in for the head's in a root without views, or not any more. What the root's
/// files are in may have been replaced since, and the mount be gone with it: said again, it is
/// made again.
pub(crate) fn show_in(root: &TaskRoot, shown: bool) -> Result<(), RootError> {
    in_root(root, || {
        for StandIn { path, target, name } in STAND_INS {
            let is_shown = fs::read_link(path).is_ok_and(|link| link == Path::new(target));
            if is_shown && !shown {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                unmount(path, flags).map_err(step("uncover", path))?;
            } else if shown && !is_shown {
                let link = Path::new("/").join(DIRECTORY);
                let link = link.join(format!("{LINK_PREFIX}{name}"));
                let flags = OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC
                    | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
                let tree = open_tree(CWD, &link, flags).map_err(step("take", &link))?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                match move_mount(&tree, c"", CWD, path, flags) {
                    // Nothing can be mounted on what is not there.
                    Err(Errno::NOENT) => {}
                    result => result.map_err(step("cover", path))?,
                }
            }
        }
        Ok(())
    })
}

fn in_root<T: Send>(
    root: &TaskRoot,
    work: impl FnOnce() -> Result<T, RootError> + Send,
) -> Result<T, RootError> {
    in_own_thread(|| {
        // A thread that shares its working directory with others may not change its mounts.
        unshare(NamespaceFlags::FS).map_err(step("make a thread's own", "/"))?;
        setns(root.mount_ns.as_fd(), NamespaceFlags::NEWNS).map_err(step("enter", "/"))?;
        work()
    })
}

fn make(directory: &Path) -> Result<(), RootError> {
    super::make_directory(&directory.to_string_lossy())?;
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::chmodat(CWD, directory, mode, AtFlags::empty())
        .map_err(step("open to all", directory))
}

fn open(directory: &Path) -> Result<OwnedFd, RootError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(step("open", directory))
}

fn make_read_only(directory: &Path) -> Result<(), RootError> {
    let read_only = MountAttributes {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        ..MountAttributes::default()
    };
    let path = CString::new(directory.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL);
    path.and_then(|path| mount_setattr(CWD, &path, false, &read_only))
        .map_err(step("make read-only", directory))
}
