//! The kernel adapter: FUSE requests in, [`Routes`] asked, FUSE replies out. No decisions.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, Request, Session, SessionACL,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use wiglaf_wire::stream::{MAX_VIEW_READ_BYTES, ViewAttributes};

use crate::mount::ViewError;
use crate::routes::{Entries, Found, Good, Routes};

/// How long the kernel believes a name or attributes.
const TTL: Duration = Duration::from_secs(1);
/// The same for the node's own directories: a name that is asked for again could be refused,
/// which would detach what is mounted there.
const OWN_TTL: Duration = Duration::from_secs(1 << 30);
/// Read-ahead of the mount, if the node lets it be set.
const READAHEAD_KB: u32 = 1024;
/// Reads ahead that the kernel may have under way.
const MAX_BACKGROUND: u16 = 64;
/// Block size that programs are told; also what `statfs` counts in.
const BLOCK_BYTES: u32 = 4096;
/// What `statfs` says: an amount that no installer finds too small, none of it free, since
/// nothing can be written.
const STATFS_BLOCKS: u64 = 1 << 28;
/// Longest name in a directory.
const MAX_NAME_BYTES: u32 = 255;
/// What is mounted, as `mount` shows it.
const SOURCE: &str = "wiglaf";

/// Mounts at `path` and serves it in a thread until the last copy of the mount is gone.
pub(crate) fn mount(path: &Path, routes: Arc<Routes>) -> Result<(), ViewError> {
    let failed = |errno| ViewError::Mount {
        path: path.to_owned(),
        errno,
    };
    // Once it is mounted, a walk to it would have to be answered.
    let found = std::fs::canonicalize(path)
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let device = open_device()?;
    let options = format!(
        "fd={},rootmode=40755,user_id={},group_id={},default_permissions,allow_other,max_read={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        MAX_VIEW_READ_BYTES,
    );
    let options = CString::new(options).unwrap_or_default();
    // Device files mean the head's devices, and the node's /dev is its own.
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    rustix::mount::mount(SOURCE, path, "fuse.wiglaf", flags, options.as_c_str()).map_err(failed)?;
    let started = Session::from_fd(
        Adapter { routes },
        device,
        SessionACL::All,
        Config::default(),
    )
    .and_then(|session| {
        std::thread::Builder::new()
            .name("wiglaf: view".to_owned())
            .spawn(move || session.run())
    });
    if let Err(source) = started {
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
        let path = path.to_owned();
        return Err(ViewError::Start { path, source });
    }
    read_ahead(&found);
    Ok(())
}

/// The kernel's end.
pub(crate) fn open_device() -> Result<OwnedFd, ViewError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|errno| ViewError::Device { errno })
}

/// Reads further ahead than the kernel's 128 kB, which halves the number of reads. A node
/// without /sys reads slower.
fn read_ahead(path: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let device = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?;
        (fields.nth(1)? == path.to_str()?).then_some(device)
    });
    if let Some(device) = device {
        let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
        let _ = std::fs::write(setting, READAHEAD_KB.to_string());
    }
}

struct Adapter {
    routes: Arc<Routes>,
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ];
        for flag in wanted {
            // Every kernel since 6.1 has them; one that has not is slower, not wrong.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        let then = move |found: Result<Found, Errno>| match found {
            Ok(found) => {
                let ttl = match found.good {
                    Good::Briefly => TTL,
                    Good::Forever => OWN_TTL,
                    Good::Once => Duration::ZERO,
                };
                reply.entry(&ttl, &attributes(&found), Generation(0));
            }
            // Number 0 lets the kernel remember that there is no such name.
            Err(Errno::NOENT) => reply.entry(&TTL, &nothing(), Generation(0)),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        self.routes
            .lookup(request.uid(), parent.0, name, Box::new(then));
    }

    fn forget(&self, _: &Request, node: INodeNo, count: u64) {
        self.routes.forget(node.0, count);
    }

    fn getattr(
        &self,
        request: &Request,
        node: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let then = move |found: Result<Found, Errno>| match found {
            Ok(found) => reply.attr(&TTL, &attributes(&found)),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        let handle = handle.map(|handle| handle.0);
        self.routes
            .attributes(request.uid(), node.0, handle, Box::new(then));
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let then = move |text: Result<Vec<u8>, Errno>| match text {
            Ok(text) => reply.data(&text),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        self.routes.read_link(request.uid(), node.0, Box::new(then));
    }

    fn open(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let then = move |opened: Result<(u64, bool), Errno>| match opened {
            Ok((handle, true)) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
            Ok((handle, false)) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        self.routes.open(request.uid(), node.0, Box::new(then));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let then = move |data: Result<Vec<u8>, Errno>| match data {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        self.routes.read(handle.0, offset, size, Box::new(then));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.routes.close_handle(handle.0);
        reply.ok();
    }

    fn opendir(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let handle = self.routes.open_directory(request.uid(), node.0);
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let then = move |listing: Result<Entries, Errno>| {
            let listing = match listing {
                Ok(listing) => listing,
                Err(errno) => return reply.error(to_fuse(errno)),
            };
            for entry in &listing.entries[listing.skip..] {
                let name = OsStr::from_bytes(&entry.name);
                let kind = listed_kind(entry.kind);
                if reply.add(INodeNo(entry.ino), entry.next, kind, name) {
                    break;
                }
            }
            reply.ok();
        };
        self.routes.read_directory(handle.0, offset, Box::new(then));
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.routes.close_handle(handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (free, files) = (0, STATFS_BLOCKS);
        reply.statfs(
            STATFS_BLOCKS,
            free,
            free,
            files,
            free,
            BLOCK_BYTES,
            MAX_NAME_BYTES,
            BLOCK_BYTES,
        );
    }
}

fn attributes(found: &Found) -> FileAttr {
    let told = &found.attributes;
    let [accessed, modified, changed] = told.times.map(time);
    FileAttr {
        ino: INodeNo(found.node),
        size: told.size,
        blocks: told.blocks,
        atime: accessed,
        mtime: modified,
        ctime: changed,
        crtime: UNIX_EPOCH,
        kind: kind(told),
        perm: u16::try_from(told.mode & 0o7777).unwrap_or(0),
        nlink: told.links,
        uid: told.uid,
        gid: told.gid,
        rdev: device_number(told.rdev),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// What is said of a name that does not exist.
fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn kind(told: &ViewAttributes) -> FileType {
    file_type(rustix::fs::FileType::from_raw_mode(told.mode))
}

/// From `DT_*`. FUSE has no word for an unknown type, which some file systems answer with.
fn listed_kind(kind: u8) -> FileType {
    file_type(rustix::fs::FileType::from_raw_mode(u32::from(kind) << 12))
}

fn file_type(kind: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as Kind;
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// Seconds and nanoseconds of a peer; what no clock shows becomes the epoch.
fn time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let nanoseconds = u64::from(nanoseconds);
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds)))
        .unwrap_or(UNIX_EPOCH)
}

/// The kernel's 32-bit form of a device number: 12 bits of major between 8 and 12 of minor.
fn device_number(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

fn to_fuse(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}
