//! Directories of the node's own machine that tasks see at their paths instead of the head's: for
//! file systems that both mount, such as NFS or Lustre.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, mount_bind_recursive, move_mount, open_tree};

use super::{OWN_DIRECTORIES, RootError, TEMPORARY, make_directory, step};

/// Why a directory can't be passed through.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum PassThroughError {
    /// It does not lead down from `/`.
    #[error("{0} can't be passed through: it has to be an absolute path without `.` or `..`")]
    NotPlain(PathBuf),
    /// Tasks never see the head's there.
    #[error("{0} needs not be passed through: tasks see this machine's own there anyway")]
    Own(PathBuf),
    /// One hides the other.
    #[error("{inner} can't be passed through besides {outer}, which it is in")]
    Inside {
        /// The one.
        inner: PathBuf,
        /// The other.
        outer: PathBuf,
    },
}

/// The directories that are passed through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassThrough(Vec<PathBuf>);

impl PassThrough {
    /// Takes them if they can be; whether they are there shows when the node starts. `own_tmp`
    /// says that `/tmp` is the node's own already.
    ///
    /// # Errors
    /// [`PassThroughError`]: one of them can't be, and why.
    pub fn new(
        paths: impl IntoIterator<Item = PathBuf>,
        own_tmp: bool,
    ) -> Result<PassThrough, PassThroughError> {
        let mut all: Vec<PathBuf> = Vec::new();
        for path in paths {
            let plain = plain(&path).ok_or(PassThroughError::NotPlain(path))?;
            let own = OWN_DIRECTORIES.iter().copied();
            let mut own = own.chain(own_tmp.then_some(TEMPORARY));
            if own.any(|own| plain.starts_with(Path::new("/").join(own))) {
                return Err(PassThroughError::Own(plain));
            }
            for other in &all {
                let (inner, outer) = if plain.starts_with(other) {
                    (&plain, other)
                } else {
                    (other, &plain)
                };
                if inner.starts_with(outer) {
                    let (inner, outer) = (inner.clone(), outer.clone());
                    return Err(PassThroughError::Inside { inner, outer });
                }
            }
            all.push(plain);
        }
        Ok(PassThrough(all))
    }
}

fn plain(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components();
    let is_plain = parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)));
    // Without slashes at its end.
    is_plain.then(|| path.components().collect())
}

/// Copies of their mounts that stand nowhere yet.
pub(super) struct Taken(Vec<(PathBuf, OwnedFd)>);

/// Where their mounts are kept, and where tasks see them.
#[derive(Debug)]
pub(super) struct Passed(Vec<(PathBuf, PathBuf)>);

impl Taken {
    /// Takes hold of them, as long as nothing covers them.
    pub(super) fn take(directories: &PassThrough) -> Result<Taken, RootError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let take = |path: &PathBuf| {
            // A file can't be told from a directory by what follows.
            let kind = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, kind, Mode::empty()).map_err(step("pass through", path))?;
            let tree = open_tree(CWD, path, flags).map_err(step("pass through", path))?;
            Ok((path.clone(), tree))
        };
        directories
            .0
            .iter()
            .map(take)
            .collect::<Result<_, _>>()
            .map(Taken)
    }

    /// Keeps them below the directory `place`, which nobody else has.
    pub(super) fn keep(self, place: &Path) -> Result<Passed, RootError> {
        let mut kept = Vec::new();
        for (number, (path, tree)) in self.0.into_iter().enumerate() {
            let at = place.join(format!("passed-{number}"));
            make_directory(&at.to_string_lossy())?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&tree, "", CWD, &at, flags).map_err(step("pass through", &path))?;
            kept.push((at, path));
        }
        Ok(Passed(kept))
    }
}

impl Passed {
    /// Those in `/` itself: names that the head need not have.
    pub(super) fn top_names(&self) -> impl Iterator<Item = String> {
        let paths = self.0.iter().map(|(_, path)| path);
        paths
            .filter(|path| !is_deep(path))
            .filter_map(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned())
    }

    /// Those that stand on directories of the head's.
    pub(super) fn deep_paths(&self) -> impl Iterator<Item = &Path> {
        let paths = self.0.iter().map(|(_, path)| path.as_path());
        paths.filter(|path| is_deep(path))
    }

    /// Shows them in the root of a view. Who may not get there on the head misses nothing.
    pub(super) fn show(&self, root: &OwnedFd) -> Result<(), RootError> {
        for (at, path) in &self.0 {
            let target = match open_below(root, path) {
                Err(Errno::ACCESS) => continue,
                result => {
                    result.map_err(step("pass through, with the head's directory, ", path))?
                }
            };
            let target = format!("/proc/thread-self/fd/{}", target.as_fd().as_raw_fd());
            mount_bind_recursive(at, target).map_err(step("pass through", path))?;
        }
        Ok(())
    }
}

fn is_deep(path: &Path) -> bool {
    path.components().count() > 2
}

/// Where a link leads would be another place in each root.
fn open_below(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        root,
        path.strip_prefix("/").unwrap_or(path),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(paths: &[&str], own_tmp: bool) -> Result<PassThrough, PassThroughError> {
        PassThrough::new(paths.iter().map(PathBuf::from), own_tmp)
    }

    #[test]
    fn what_can_not_be_passed_through_is_refused() {
        let good = take(&["/nfs/home/", "/nfs/data", "/scratch"], true).unwrap();
        assert_eq!(good.0[0].as_os_str(), "/nfs/home");
        for bad in ["/", "nfs", "/nfs/../etc", ""] {
            let error = Err(PassThroughError::NotPlain(bad.into()));
            assert_eq!(take(&[bad], false), error, "{bad}");
        }
        for own in ["/proc", "/run/user", "/dev/shm", "/sys"] {
            let error = Err(PassThroughError::Own(own.into()));
            assert_eq!(take(&[own], false), error, "{own}");
        }
        assert!(take(&["/tmp", "/tmpfiles"], false).is_ok());
        assert!(take(&["/tmp/shared"], true).is_err());
        for pair in [["/nfs", "/nfs/home"], ["/nfs/home", "/nfs"]] {
            let error = Err(PassThroughError::Inside {
                inner: "/nfs/home".into(),
                outer: "/nfs".into(),
            });
            assert_eq!(take(&pair, false), error);
        }
        assert!(take(&["/nfs", "/nfs"], false).is_err());
    }
}
