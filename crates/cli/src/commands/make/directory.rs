//! The build's directory: where its shims find the broker.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use wiglaf_linux::shim;

use crate::error::CommandError;

const NAME: &str = "wiglaf-build-";
/// Builds of one process number whose leavings are still there.
const MAX_TRIES: u32 = 100;
const SPACE_FILE: &str = "namespace";

/// Removed with the build, unless something of it still runs.
pub(super) struct Directory {
    path: PathBuf,
    /// The build's mount namespace.
    space: Option<PathBuf>,
}

impl Directory {
    /// A fresh one, and the socket in it.
    pub(super) fn make() -> Result<(Directory, OwnedFd), CommandError> {
        let places = places();
        remove_stale(&places);
        let mut failure = None;
        for place in &places {
            match make_below(place) {
                Ok(path) => {
                    let directory = Directory { path, space: None };
                    let socket = shim::listen(&directory.path).map_err(|errno| {
                        CommandError::new(format!("{}: {errno}", directory.path.display()))
                    })?;
                    return Ok((directory, socket));
                }
                Err(error) => failure = Some(format!("{}: {error}", place.display())),
            }
        }
        let failure = failure.unwrap_or_default();
        Err(CommandError::new(format!(
            "there is no place for the build's socket: {failure}"
        )))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The build runs as this process.
    pub(super) fn entered_by(&mut self, pid: i32) {
        self.space = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        if let Some(space) = &self.space {
            // Without it the leavings of a build that was killed stay until the next boot.
            let _ = fs::write(
                self.path.join(SPACE_FILE),
                space.as_os_str().as_encoded_bytes(),
            );
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What the build has left running has its programs there: removing the directory would
        // take their mounts away, even out of another namespace.
        if !self.space.as_ref().is_some_and(|space| is_inhabited(space)) {
            remove(&self.path);
        }
    }
}

fn places() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime
        .into_iter()
        .chain(["/run".into(), "/tmp".into()])
        .filter(|place| place.is_absolute())
        .collect()
}

/// Under `su` the environment may name another user's, who could exchange what is in it.
fn is_trusted(place: &Path) -> io::Result<bool> {
    let owner = fs::metadata(place)?.uid();
    Ok(owner == rustix::process::geteuid().as_raw() || owner == 0)
}

fn make_below(place: &Path) -> io::Result<PathBuf> {
    if !is_trusted(place)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let pid = std::process::id();
    let mut last = io::ErrorKind::AlreadyExists.into();
    for number in 0..MAX_TRIES {
        let path = match number {
            0 => place.join(format!("{NAME}{pid}")),
            _ => place.join(format!("{NAME}{pid}.{number}")),
        };
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Those of our own builds that were killed.
fn remove_stale(places: &[PathBuf]) {
    let own = rustix::process::geteuid().as_raw();
    let trusted = places
        .iter()
        .filter(|place| is_trusted(place).unwrap_or(false));
    let entries = trusted.filter_map(|place| fs::read_dir(place).ok());
    for entry in entries.flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(NAME)) else {
            continue;
        };
        let pid = pid.split('.').next().unwrap_or(pid);
        let is_ours = entry
            .metadata()
            .is_ok_and(|of| of.is_dir() && of.uid() == own);
        if !is_ours || Path::new("/proc").join(pid).exists() {
            continue;
        }
        let space = fs::read_to_string(entry.path().join(SPACE_FILE)).ok();
        if !space.is_some_and(|space| is_inhabited(Path::new(&space))) {
            remove(&entry.path());
        }
    }
}

fn remove(directory: &Path) {
    // What can't be removed is found by the next build.
    let _ = fs::remove_file(shim::socket_in(directory));
    let _ = fs::remove_file(directory.join(SPACE_FILE));
    let _ = fs::remove_dir(directory.join("space"));
    let _ = fs::remove_dir(directory);
}

/// Whether some process lives in this mount namespace.
fn is_inhabited(space: &Path) -> bool {
    fs::read_dir("/proc").is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            fs::read_link(entry.path().join("ns/mnt")).is_ok_and(|found| found == space)
        })
    })
}

/// Whether this process is itself part of a build, whose broker then sees to the lines; it says
/// whether there still is one.
pub(super) fn build_around() -> Option<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let directory = build_of(&mounts)?;
    let answers = || {
        use rustix::net::{
            AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
        };
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
        connect(
            &socket,
            &SocketAddrUnix::new(shim::socket_in(Path::new(directory)))?,
        )
    };
    Some(answers().is_ok())
}

/// The space of a build is mounted below its directory (proc_pid_mountinfo(5), field 5).
fn build_of(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|mount| {
        let directory = mount.split(' ').nth(4)?.strip_suffix("/space")?;
        let name = directory.rsplit('/').next()?;
        name.starts_with(NAME).then_some(directory)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_known_by_its_space() {
        let within = "30 29 0:26 / /proc rw - proc proc rw\n\
                      61 29 0:40 / /run/wiglaf-build-77/space rw,nosuid - tmpfs wiglaf rw\n";
        assert_eq!(build_of(within), Some("/run/wiglaf-build-77"));
        assert_eq!(
            None,
            build_of("61 29 0:40 / /run/wiglaf-build-77 rw - tmpfs x rw\n")
        );
        assert_eq!(None, build_of("61 29 0:40 / /srv/space rw - tmpfs x rw\n"));
    }

    #[test]
    fn other_users_places_are_left_alone() {
        let place = tempfile::tempdir().expect("a directory");
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // Beyond the greatest PID.
        let stale = place.path().join(format!("{NAME}99999999"));
        fs::create_dir(&stale).expect("made");
        std::os::unix::fs::chown(place.path(), Some(54_321), None).expect("given away");
        remove_stale(&[place.path().to_owned()]);
        assert!(stale.exists());
        assert!(make_below(place.path()).is_err());
        std::os::unix::fs::chown(place.path(), Some(0), None).expect("taken back");
        remove_stale(&[place.path().to_owned()]);
        assert!(!stale.exists());
    }

    #[test]
    fn namespaces_with_processes_are_known() {
        let own = fs::read_link("/proc/self/ns/mnt").expect("we have one");
        assert!(is_inhabited(&own));
        assert!(!is_inhabited(Path::new("mnt:[1]")));
    }
}
