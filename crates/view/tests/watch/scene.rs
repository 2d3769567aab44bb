//! A watch, with the test as its keeper, and directories on several file systems.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use wiglaf_linux::fanotify::{Group, Queue};
use wiglaf_linux::handle::file_system_of;
use wiglaf_linux::process::{self, ChildState, ExitStatus, Fork};
use wiglaf_view::watch::{Event, FileKey, Marks, Watch};
use wiglaf_wire::marks::{FileSystem, Look, Marked};

pub(crate) struct Scene {
    pub(crate) watch: Watch,
    pub(crate) keeper: OwnedFd,
    /// The keeper's, to mark what comes later.
    pub(crate) group: Group,
    pub(crate) marked: Vec<FileSystem>,
}

impl Scene {
    /// Watches the file systems of these directories.
    pub(crate) fn of(directories: &[&Path]) -> Scene {
        Scene::with(Queue::Unlimited, directories)
    }

    pub(crate) fn with(queue: Queue, directories: &[&Path]) -> Scene {
        let group = Group::new(queue).unwrap();
        let mounts = rustix::fs::open("/proc/self/mountinfo", OFlags::RDONLY, Mode::empty());
        let marked: Vec<_> = directories.iter().map(|one| mark(&group, one)).collect();
        let (ours, keeper) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let watch = Watch::new(Marks {
            group: group.as_fd().try_clone_to_owned().unwrap(),
            mounts: mounts.unwrap(),
            keeper: ours,
            file_systems: marked.clone(),
        })
        .unwrap();
        Scene {
            watch,
            keeper,
            group,
            marked,
        }
    }

    pub(crate) fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.watch.drain(&mut |event| events.push(event));
        events
    }

    /// What happened to these files, without what else happens on the machine.
    pub(crate) fn drain_of(&mut self, keys: &[&FileKey]) -> Vec<Event> {
        let mut events = self.drain();
        events.retain(|event| match event {
            Event::File { key, .. }
            | Event::Opened { key }
            | Event::Name { directory: key, .. } => keys.contains(&key),
            Event::Remounted(_) | Event::Lost => true,
        });
        events
    }

    pub(crate) fn key(&mut self, path: impl AsRef<Path>) -> FileKey {
        let file = path_of(path);
        self.watch.key(file.as_fd()).expect("it is watched")
    }

    /// Whether the watch's descriptor is readable.
    pub(crate) fn is_ready(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.watch.fd(), PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).unwrap() == 1
    }

    /// The question that the keeper has.
    pub(crate) fn asked(&self) -> Option<Look> {
        let mut packet = [0; 4096];
        let received = rustix::net::recv(&self.keeper, &mut packet[..], RecvFlags::DONTWAIT);
        let (length, _) = received.ok()?;
        Some(postcard::from_bytes(&packet[..length]).unwrap())
    }

    pub(crate) fn answer(&self, look: Look) {
        let marked = Marked {
            number: look.number,
            file_systems: self.marked.clone(),
        };
        let packet = postcard::to_allocvec(&marked).unwrap();
        rustix::net::send(&self.keeper, &packet, SendFlags::empty()).unwrap();
    }
}

pub(crate) fn mark(group: &Group, directory: &Path) -> FileSystem {
    let file = path_of(directory);
    group.mark_file_system(file.as_fd()).unwrap();
    let device = rustix::fs::fstat(&file).unwrap().st_dev;
    FileSystem {
        device,
        superblock: device,
        fsid: file_system_of(file.as_fd()).unwrap(),
    }
}

pub(crate) fn path_of(path: impl AsRef<Path>) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path.as_ref(), flags, Mode::empty()).unwrap()
}

/// Does something in another process, and waits until it has ended.
pub(crate) fn elsewhere(act: impl FnOnce()) {
    match process::fork().unwrap() {
        Fork::Parent { pid, .. } => {
            let change = process::wait(pid, false).unwrap().unwrap();
            assert_eq!(change.state, ChildState::Ended(ExitStatus::Exited(0)));
        }
        Fork::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            std::process::exit(i32::from(done.is_err()));
        }
    }
}

/// A mount that goes with its directory.
pub(crate) struct Mounted {
    directory: tempfile::TempDir,
    at: PathBuf,
}

impl Mounted {
    pub(crate) fn tmpfs() -> Mounted {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_owned();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).unwrap();
        Mounted { directory, at }
    }

    /// Another place of what is mounted here.
    pub(crate) fn bound(here: &Path) -> Mounted {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_owned();
        rustix::mount::mount_bind(here, &at).unwrap();
        Mounted { directory, at }
    }

    /// One whose files have handles, as only those that can be exported by NFS do. `Err`: this
    /// kernel has none.
    pub(crate) fn overlay(over: &Mounted) -> Result<Mounted, String> {
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(over.path().join(name)).unwrap();
        }
        fs::write(over.path().join("lower/below"), "below").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_owned();
        let base = over.path().display();
        let options = format!(
            "lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work,\
             index=on,nfs_export=on"
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount(
            "overlay",
            &at,
            "overlay",
            MountFlags::empty(),
            Some(&*options),
        )
        .map_err(|errno| format!("no overlay can be mounted: {errno}"))?;
        let mounted = Mounted { directory, at };
        let group = Group::new(Queue::Bounded).unwrap();
        group
            .mark_file_system(path_of(&mounted.at).as_fd())
            .map_err(|errno| format!("an overlay can't be watched: {errno}"))?;
        Ok(mounted)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.at.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let _ = self.directory.path();
    }
}

pub(crate) fn open_for_writing(path: impl AsRef<Path>) -> File {
    File::options().append(true).open(path).unwrap()
}
