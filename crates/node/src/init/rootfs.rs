//! A full system, if the image has one: fetched into memory, checked, mounted, and given the
//! machine. We go on beside it, in the root that we came with.

mod fetch;
mod handover;
mod particulars;

pub(super) use handover::is_ending;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use wiglaf_linux::loop_device::LoopDevice;

use super::http::HttpError;
use super::journal::Journal;
use super::network::{Home, LOOK_PERIOD, Network};
use super::now_ms;

/// What the image's builder wrote of it.
const WANTED: &str = "/etc/wiglaf/system";
/// Where it is put together, in our own root.
const PLACE: &str = "/system";
/// Its file, in memory of its own.
const FILE: &str = "/system/file";
/// What is in the file.
const LOWER: &str = "/system/lower";
/// What the machine changes of it.
const MEMORY: &str = "/system/memory";
/// Both together.
const ROOT: &str = "/system/root";
/// A system needs as much to run in, or it would be killed as it starts.
const RESERVE_BYTES: u64 = 64 << 20;
/// Programs that have the machine if no other one is named, the first that is there.
const INITS: [&str; 3] = [
    "/sbin/init",
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
];
/// Where file systems are mounted in any system.
const DIRECTORIES: [(&str, u32); 6] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];

/// Between two attempts. Somebody may have given the machine another image meanwhile, or memory
/// been taken by what is gone now.
const TRY_AGAIN_MS: u64 = 20_000;

/// Why there is no system yet.
#[derive(Debug, thiserror::Error)]
enum SystemError {
    #[error("{WANTED} of this image is damaged: build it anew (wiglaf image build)")]
    Damaged,
    #[error("this machine's system can't be fetched: where the head's boot service is nobody says")]
    NoService,
    #[error("this machine's system can't be fetched: {0}")]
    Fetch(#[from] HttpError),
    #[error("the head names no image for this machine any more")]
    NoImage,
    #[error(
        "this machine has {free_mb} MB of memory free; its system takes {size_mb} MB, and some {} \
         MB more to run in. Give it more memory, or a smaller system (wiglaf image build \
         --rootfs), or another image (wiglaf image use IMAGE --nodes NODE)",
        RESERVE_BYTES / 1_000_000
    )]
    Memory { free_mb: u64, size_mb: u64 },
    #[error(
        "what the head has as the system of {image} is not what this image was built with. If \
         this machine was given another image meanwhile, start it anew; else it is \
         damaged: build it anew (wiglaf image build), and start this machine anew"
    )]
    Another { image: String },
    #[error("can't {action}: {errno}")]
    Step { action: &'static str, errno: Errno },
    #[error("the system has no {0}, which was to be its init (wiglaf image build --init)")]
    NoInit(PathBuf),
}

fn step(action: &'static str) -> impl FnOnce(Errno) -> SystemError {
    move |errno| SystemError::Step { action, errno }
}

/// What the image says of its system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    sha256: String,
    size: u64,
    /// Instead of the usual ones.
    init: Option<PathBuf>,
    /// Tasks see its files and not the head's.
    has_tasks: bool,
}

impl Wanted {
    /// `None`: the image has none.
    pub(super) fn read() -> Option<Result<Wanted, String>> {
        let text = fs::read_to_string(WANTED).ok()?;
        Some(Wanted::parse(&text).ok_or_else(|| SystemError::Damaged.to_string()))
    }

    fn parse(text: &str) -> Option<Wanted> {
        let value = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        };
        let sha256 = value("sha256")?;
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        Some(Wanted {
            sha256: sha256.to_owned(),
            size: value("size")?.parse().ok()?,
            init: value("init").map(PathBuf::from),
            has_tasks: value("files") == Some("node"),
        })
    }

    /// Fetches and mounts it, however often that has to be tried.
    pub(super) fn bring(
        &self,
        network: &mut Network,
        home: &mut Home,
        journal: &mut Journal,
    ) -> System {
        loop {
            match self.try_bring(network, home, journal) {
                Ok(system) => return system,
                Err(error) => journal.say(format_args!(
                    "{error}; trying again in {} s",
                    TRY_AGAIN_MS / 1000
                )),
            }
            unmount_all();
            keep_address(network, home, journal, now_ms() + TRY_AGAIN_MS, &|| false);
        }
    }

    fn try_bring(
        &self,
        network: &mut Network,
        home: &mut Home,
        journal: &mut Journal,
    ) -> Result<System, SystemError> {
        check_memory(self.size)?;
        make_directory(PLACE)?;
        let options = format!("mode=0700,size={}", self.size + (1 << 20));
        mount_memory(FILE, &options)?;
        let path = Path::new(FILE).join("system");
        let file = fetch::fetch(self, &path, network, home, journal)?;
        mount_file(&file)?;
        mount_memory(MEMORY, "mode=0755,size=50%")?;
        cover()?;
        let root = rustix::fs::open(ROOT, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(step("open the system's root"))?;
        let init = self.find_init(&root)?;
        for (name, mode) in DIRECTORIES {
            // What is there already is as good; a link may lead to what is.
            let _ = rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(mode));
        }
        particulars::write(Path::new(ROOT), home, journal);
        journal.say(match &init {
            Some(init) => format!("the system is mounted; its init is {}", init.display()),
            None => "the system is mounted; it has no init, so it is there for tasks only".into(),
        });
        Ok(System {
            root: ROOT.into(),
            init,
            has_tasks: self.has_tasks,
        })
    }

    fn find_init(&self, root: &OwnedFd) -> Result<Option<PathBuf>, SystemError> {
        if let Some(init) = &self.init {
            return match is_program(root, init) {
                true => Ok(Some(init.clone())),
                false => Err(SystemError::NoInit(init.clone())),
            };
        }
        let mut known = INITS.iter().map(Path::new);
        let found = known.find(|path| is_program(root, path));
        Ok(found.map(Path::to_owned))
    }
}

/// A system that is mounted.
#[derive(Debug)]
pub(super) struct System {
    /// Where, in our own root.
    pub(super) root: PathBuf,
    /// What has the machine; nothing in what is only made for containers.
    pub(super) init: Option<PathBuf>,
    /// Tasks see its files and not the head's.
    pub(super) has_tasks: bool,
}

/// Whether it is there and may be executed. Its links lead to where they do in that root.
fn is_program(root: &OwnedFd, path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let status = open.and_then(|file| rustix::fs::fstat(&file));
    status.is_ok_and(|status| {
        FileType::from_raw_mode(status.st_mode) == FileType::RegularFile
            && status.st_mode & 0o111 != 0
    })
}

fn check_memory(size: u64) -> Result<(), SystemError> {
    let info = rustix::system::sysinfo();
    let free = (info.freeram as u64 + info.bufferram as u64) * u64::from(info.mem_unit);
    if free < size + RESERVE_BYTES {
        return Err(SystemError::Memory {
            free_mb: free / 1_000_000,
            size_mb: size / 1_000_000,
        });
    }
    Ok(())
}

fn make_directory(path: &str) -> Result<(), SystemError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        result => result.map_err(step("make a directory for the system")),
    }
}

fn mount_memory(at: &str, options: &str) -> Result<(), SystemError> {
    make_directory(at)?;
    let flags = MountFlags::NODEV;
    let options = std::ffi::CString::new(options).unwrap_or_default();
    mount("tmpfs", at, "tmpfs", flags, &*options).map_err(step("have memory for the system"))
}

fn mount_file(file: &File) -> Result<(), SystemError> {
    let device = LoopDevice::attach(file.as_fd()).map_err(step("have a loop device"))?;
    make_directory(LOWER)?;
    mount(&device.path, LOWER, "squashfs", MountFlags::RDONLY, None)
        .map_err(step("mount the system's file"))
}

/// Changes go to memory.
fn cover() -> Result<(), SystemError> {
    let upper = Path::new(MEMORY).join("upper");
    let work = Path::new(MEMORY).join("work");
    for directory in [&upper, &work] {
        rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755))
            .map_err(step("make a directory for the system"))?;
    }
    // The root's own rights: an overlay shows those of the upper one.
    if let Ok(status) = rustix::fs::stat(LOWER) {
        let _ = rustix::fs::chmod(&upper, Mode::from_raw_mode(status.st_mode & 0o7777));
    }
    make_directory(ROOT)?;
    let options = format!(
        "lowerdir={LOWER},upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).unwrap_or_default();
    mount("overlay", ROOT, "overlay", MountFlags::empty(), &*options)
        .map_err(step("mount an overlay upon the system"))
}

fn unmount_all() {
    for path in [ROOT, MEMORY, LOWER, FILE] {
        // Mostly it is not mounted.
        let _ = unmount(path, UnmountFlags::DETACH);
    }
}

/// Waits until then, or until something is over; renews the address meanwhile.
fn keep_address(
    network: &mut Network,
    home: &mut Home,
    journal: &mut Journal,
    until_ms: u64,
    is_over: &dyn Fn() -> bool,
) {
    loop {
        let now = now_ms();
        if let Some(new) = network.step(now, journal) {
            *home = Home {
                boot: new.boot.or(home.boot),
                ..new
            };
        }
        if now >= until_ms || is_over() {
            return;
        }
        let next = network.deadline().unwrap_or(until_ms).min(until_ms);
        let wait = Duration::from_millis(next.saturating_sub(now_ms())).min(LOOK_PERIOD);
        let mut sockets: Vec<_> = network
            .sockets()
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        // Too early is no harm.
        let _ = poll(&mut sockets, Timespec::try_from(wait).ok().as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_the_builder_writes_is_read() {
        let digest = "0123456789abcdef".repeat(4);
        let text = format!("sha256 {digest}\nsize 17\n");
        let wanted = Wanted::parse(&text).unwrap();
        assert_eq!(
            (wanted.size, wanted.init, wanted.has_tasks),
            (17, None, false)
        );
        let text = format!("{text}init /opt/init\nfiles node\n");
        let wanted = Wanted::parse(&text).unwrap();
        assert_eq!(wanted.init.as_deref(), Some(Path::new("/opt/init")));
        assert!(wanted.has_tasks);
        for broken in ["", "sha256 01\nsize 1\n", &format!("sha256 {digest}\n")] {
            assert_eq!(Wanted::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn an_init_is_sought_in_the_systems_own_root() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("usr/sbin")).unwrap();
        fs::create_dir_all(at("usr/lib/only-here")).unwrap();
        symlink("/usr/sbin", at("sbin")).unwrap();
        symlink("/usr/lib/only-here/init", at("usr/sbin/init")).unwrap();
        let open = rustix::fs::open(root.path(), OFlags::PATH, Mode::empty()).unwrap();
        let wanted = Wanted {
            sha256: String::new(),
            size: 0,
            init: None,
            has_tasks: false,
        };
        assert_eq!(wanted.find_init(&open).unwrap(), None);
        let program = at("usr/lib/only-here/init");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        assert_eq!(wanted.find_init(&open).unwrap(), None);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let found = wanted.find_init(&open).unwrap();
        assert_eq!(found.as_deref(), Some(Path::new("/sbin/init")));
        let named = Wanted {
            init: Some("/sbin/other".into()),
            ..wanted
        };
        assert!(named.find_init(&open).is_err());
    }

    #[test]
    fn a_machine_that_is_too_small_says_how_much_is_missing() {
        let error = check_memory(1 << 50).unwrap_err().to_string();
        assert!(error.contains("takes 1125899906 MB"), "{error}");
        check_memory(0).unwrap();
    }
}
