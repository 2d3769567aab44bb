//! A private space: a command in a mount namespace of its own, in which the shim lies over
//! shells and compilers. Nobody outside sees it, and it goes with its last process.
//!
//! Each program has a copy of the shim with the size, mode and times of its own, since caches
//! and build tools know compilers by those; the copies and the real programs lie in a `tmpfs`,
//! as the build's directory may be on a file system that does not let anything be executed.
//!
//! An ordinary user's command gets a user namespace too, in which its user and group stand for
//! themselves. It keeps no capability over its exec; files belong to the user as before, but
//! other users and groups can't be named, and set-user-ID programs run as the user.

use crate::arch::{self, checked, raw};
use crate::shim::{BadDirectory, REAL, shim_for};
use crate::signal::SignalSet;
use crate::spawn::{Spawned, exit, pointers, reap_failed, set_signals};
use crate::vfork;
use rustix::fs::{CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::ptr;

/// Below the build's directory: where the `tmpfs` is mounted.
const SPACE: &str = "space";
/// In it: the shim's copies.
const COPIES: &str = "space/shim";
const ELF: [u8; 4] = *b"\x7fELF";
const SET_ID: u32 = 0o6000;
/// Others have to pass through the build's directory: a build of root's runs as others, too.
const DIRECTORY_MODE: u32 = 0o711;
/// The exit code of a child that failed; nobody sees it, as it is reaped here.
const CHILD_FAILED: i32 = 127;

/// What a private space is to be, worked out before there is one.
#[derive(Debug)]
pub struct PrivateSpace {
    space: CString,
    shim: Vec<u8>,
    folders: Vec<CString>,
    covers: Vec<Cover>,
    left_alone: Vec<(PathBuf, LeftAlone)>,
    ids: Ids,
}

/// A program that the shim is to lie over.
#[derive(Debug)]
struct Cover {
    program: CString,
    real: CString,
    copy: CString,
    size: u64,
    mode: u32,
    owner: (u32, u32),
    times: Timestamps,
}

#[derive(Debug)]
struct Ids {
    root: bool,
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
}

/// Why the shim does not lie over a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftAlone {
    /// A script: it would be told another path than its own. The shell that runs it is covered.
    Script,
    /// Its user is another one.
    SetsUser,
    /// It can't be read, or is no file.
    Unreadable,
}

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LeftAlone::Script => "is a script",
            LeftAlone::SetsUser => "runs as another user",
            LeftAlone::Unreadable => "can't be read",
        })
    }
}

/// The command that starts in a private space. The rest (descriptors, directory, process group,
/// limits, umask) is the caller's.
#[derive(Clone, Copy, Debug)]
pub struct SpaceCommand<'a> {
    /// Its path.
    pub program: &'a CStr,
    /// The whole argument list, `argv[0]` included.
    pub argv: &'a [CString],
    /// The whole environment, `NAME=value` each.
    pub env: &'a [CString],
    /// Signals that it is to ignore; all others get their default action.
    pub ignored_signals: SignalSet,
    /// The signal mask to start with.
    pub blocked_signals: SignalSet,
}

/// Why there is no private space.
#[derive(thiserror::Error, Debug)]
pub enum SpaceError {
    /// The directory's path.
    #[error(transparent)]
    BadDirectory(#[from] BadDirectory),
    /// The directory itself.
    #[error("can't prepare {}", path.display())]
    Directory {
        /// What could not be made.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The kernel made no process.
    #[error("can't create a process: {0}")]
    Clone(Errno),
    /// The process was made, failed at this step and is gone.
    #[error("{step}{}: {errno}", At(path))]
    Step {
        /// What it was doing.
        step: SpaceStep,
        /// To what.
        path: Option<PathBuf>,
        /// What went wrong.
        errno: Errno,
        /// Whether root tried.
        root: bool,
    },
}

struct At<'a>(&'a Option<PathBuf>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => write!(f, " {}", path.display()),
            None => Ok(()),
        }
    }
}

/// The steps of the child, in their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceStep {
    /// A mount namespace, for root.
    MountNamespace,
    /// A user and a mount namespace.
    UserNamespace,
    /// Writing who is who in it.
    IdMaps,
    /// Keeping our mounts from everybody else's sight.
    Propagation,
    /// Mounting the `tmpfs`.
    Space,
    /// Making a folder in it.
    Folder,
    /// Giving the real program its second path.
    Real,
    /// Writing the shim's copy.
    Copy,
    /// Laying the shim over the program.
    Cover,
    /// Setting what signals do.
    Signals,
    /// Executing the command.
    Exec,
}

impl fmt::Display for SpaceStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpaceStep::MountNamespace => "can't have a mount namespace",
            SpaceStep::UserNamespace => "can't have a user namespace",
            SpaceStep::IdMaps => "can't set the users of a user namespace",
            SpaceStep::Propagation => "can't keep mounts private",
            SpaceStep::Space => "can't mount a file system in memory at",
            SpaceStep::Folder => "can't make",
            SpaceStep::Real => "can't give a second path to",
            SpaceStep::Copy => "can't write",
            SpaceStep::Cover => "can't lay the shim over",
            SpaceStep::Signals => "can't set the signal actions",
            SpaceStep::Exec => "can't execute",
        })
    }
}

impl SpaceError {
    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        let &SpaceError::Step {
            step, errno, root, ..
        } = self
        else {
            return None;
        };
        if step == SpaceStep::Propagation && errno == Errno::INVAL {
            return Some("the root directory is no mount point, as in a chroot: start it outside");
        }
        let refused = matches!(
            errno,
            Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::USERS | Errno::NOSYS
        );
        if !refused || matches!(step, SpaceStep::Signals | SpaceStep::Exec) {
            return None;
        }
        let says = |setting: &str, value: &str| {
            fs::read_to_string(format!("/proc/sys/{setting}"))
                .is_ok_and(|text| text.trim() == value)
        };
        Some(if root {
            "root may not mount here, as in a container: it needs CAP_SYS_ADMIN"
        } else if says("kernel/apparmor_restrict_unprivileged_userns", "1") {
            "AppArmor keeps user namespaces from ordinary users: let root give this program a \
             profile with `userns,` or run `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
        } else if says("kernel/unprivileged_userns_clone", "0") {
            "let root run `sysctl kernel.unprivileged_userns_clone=1`"
        } else if says("user/max_user_namespaces", "0") {
            "let root run `sysctl user.max_user_namespaces=10000`"
        } else {
            "user namespaces are not allowed here, as in a container or a chroot"
        })
    }
}

impl PrivateSpace {
    /// Works out a space in which the shim for `directory` lies over these programs, each by its
    /// real path once. The directory is the caller's own and empty, but for the socket.
    ///
    /// # Errors
    /// [`SpaceError::BadDirectory`], [`SpaceError::Directory`].
    pub fn new(directory: &Path, programs: &[PathBuf]) -> Result<PrivateSpace, SpaceError> {
        let shim = shim_for(directory)?;
        let space = directory.join(SPACE);
        let failed = |path: &Path, source| SpaceError::Directory {
            path: path.to_owned(),
            source,
        };
        fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))
            .map_err(|error| failed(directory, error))?;
        match fs::create_dir(&space) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&space, error));
            }
            _ => {}
        }
        let mut covers = BTreeMap::new();
        let mut folders = BTreeSet::new();
        let mut left_alone = Vec::new();
        for program in programs {
            let (path, mut cover) = match Cover::new(directory, program) {
                Ok(found) => found,
                Err(reason) => {
                    left_alone.push((program.clone(), reason));
                    continue;
                }
            };
            for (below, file) in [(REAL, &cover.real), (COPIES, &cover.copy)] {
                let file = Path::new(std::ffi::OsStr::from_bytes(file.to_bytes()));
                let above = directory.join(below);
                let parents = file.ancestors().skip(1);
                folders.extend(
                    parents
                        .take_while(|folder| folder.starts_with(&above))
                        .filter_map(c_string),
                );
            }
            cover.size = cover.size.max(shim.len() as u64);
            covers.insert(path, cover);
        }
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Ok(PrivateSpace {
            space: c_string(&space).unwrap_or_default(),
            shim,
            folders: folders.into_iter().collect(),
            covers: covers.into_values().collect(),
            left_alone,
            ids: Ids {
                root: uid.is_root(),
                uid_map: format!("{uid} {uid} 1", uid = uid.as_raw()).into_bytes(),
                gid_map: format!("{gid} {gid} 1", gid = gid.as_raw()).into_bytes(),
            },
        })
    }

    /// The programs that the shim will lie over.
    pub fn covered(&self) -> impl Iterator<Item = &Path> {
        self.covers.iter().map(|cover| path_of(&cover.program))
    }

    /// The programs that it will not lie over, and why.
    #[must_use]
    pub fn left_alone(&self) -> &[(PathBuf, LeftAlone)] {
        &self.left_alone
    }

    /// Starts a command in a new space of this kind; returns when it has exec'd or failed.
    ///
    /// # Errors
    /// [`SpaceError::Clone`], [`SpaceError::Step`].
    pub fn spawn(&self, command: &SpaceCommand<'_>) -> Result<Spawned, SpaceError> {
        let mut context = Context {
            space: self,
            command,
            argv: pointers(command.argv),
            env: pointers(command.env),
            failure: None,
        };
        let context = &raw mut context;
        let options = vfork::Options::default();
        // SAFETY: `child` makes system calls only, and the context outlives the call.
        let (pid, pidfd) =
            unsafe { vfork::run(&options, child, context.cast()) }.map_err(SpaceError::Clone)?;
        // SAFETY: the child no longer shares our memory; volatile because the compiler does not
        // see the child's write.
        let Some(failure) = (unsafe { ptr::read_volatile(&raw const (*context).failure) }) else {
            return Ok(Spawned { pid, pidfd });
        };
        reap_failed(pid);
        Err(SpaceError::Step {
            step: failure.step,
            path: self.path(failure, command),
            errno: failure.errno,
            root: self.ids.root,
        })
    }

    fn path(&self, failure: Failure, command: &SpaceCommand<'_>) -> Option<PathBuf> {
        let covers = self.covers.get(failure.index);
        let path: &CStr = match failure.step {
            SpaceStep::Space => &self.space,
            SpaceStep::Folder => self.folders.get(failure.index)?,
            SpaceStep::Real | SpaceStep::Cover => &covers?.program,
            SpaceStep::Copy => &covers?.copy,
            SpaceStep::Exec => command.program,
            _ => return None,
        };
        Some(path_of(path).to_owned())
    }
}

impl Cover {
    fn new(directory: &Path, program: &Path) -> Result<(PathBuf, Cover), LeftAlone> {
        let unreadable = |_| LeftAlone::Unreadable;
        let path = fs::canonicalize(program).map_err(unreadable)?;
        let mut file = fs::File::open(&path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        if !found.is_file() {
            return Err(LeftAlone::Unreadable);
        }
        if found.mode() & SET_ID != 0 {
            return Err(LeftAlone::SetsUser);
        }
        let mut head = [0; ELF.len()];
        match file.read_exact(&mut head) {
            Ok(()) if head == ELF => {}
            _ => return Err(LeftAlone::Script),
        }
        let below = |place: &str| {
            let mut file = directory.join(place).into_os_string();
            file.push(&path);
            c_string(Path::new(&file)).ok_or(LeftAlone::Unreadable)
        };
        let time = |seconds, nanoseconds| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let cover = Cover {
            program: c_string(&path).ok_or(LeftAlone::Unreadable)?,
            real: below(REAL)?,
            copy: below(COPIES)?,
            size: found.size(),
            mode: found.mode() & 0o777,
            owner: (found.uid(), found.gid()),
            times: Timestamps {
                last_access: time(found.atime(), found.atime_nsec()),
                last_modification: time(found.mtime(), found.mtime_nsec()),
            },
        };
        Ok((path, cover))
    }
}

/// A path of the file system never holds a zero.
fn c_string(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().to_owned().into_vec()).ok()
}

fn path_of(path: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

/// What parent and child share.
struct Context<'s, 'c, 'a> {
    space: &'s PrivateSpace,
    command: &'c SpaceCommand<'a>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    failure: Option<Failure>,
}

#[derive(Clone, Copy)]
struct Failure {
    step: SpaceStep,
    /// Of the folder or program.
    index: usize,
    errno: Errno,
}

/// Names the step at which a system call failed.
fn at(step: SpaceStep, index: usize) -> impl Fn(Errno) -> Failure {
    move |errno| Failure { step, index, errno }
}

/// The child: system calls on the caller's memory, nothing else. (What rustix does with C
/// strings and descriptors is a system call and no more.)
extern "C" fn child(context: *mut c_void) -> ! {
    let context = context.cast::<Context<'_, '_, '_>>();
    // SAFETY: the parent passed its context and waits until we are done with it.
    let (space, command, argv, env) = unsafe {
        (
            (*context).space,
            (*context).command,
            (*context).argv.as_ptr(),
            (*context).env.as_ptr(),
        )
    };
    let failure = match enter(space).and_then(|()| set_signals_of(command)) {
        Err(failure) => failure,
        Ok(()) => {
            let args = [
                command.program.as_ptr().expose_provenance(),
                argv.expose_provenance(),
                env.expose_provenance(),
            ];
            // SAFETY: a C string and two null-terminated arrays of them.
            let result = unsafe { raw(libc::SYS_execve, args) };
            at(SpaceStep::Exec, 0)(arch::errno(result))
        }
    };
    // SAFETY: as above; we are the only one who runs.
    unsafe { ptr::write_volatile(&raw mut (*context).failure, Some(failure)) };
    exit(CHILD_FAILED)
}

fn set_signals_of(command: &SpaceCommand<'_>) -> Result<(), Failure> {
    // SAFETY: we are a child.
    unsafe { set_signals(command.ignored_signals, command.blocked_signals) }
        .map_err(|(_, errno)| at(SpaceStep::Signals, 0)(errno))
}

fn enter(space: &PrivateSpace) -> Result<(), Failure> {
    separate(&space.ids)?;
    let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", below).map_err(at(SpaceStep::Propagation, 0))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(
        c"wiglaf",
        space.space.as_c_str(),
        c"tmpfs",
        flags,
        c"mode=0755",
    )
    .map_err(at(SpaceStep::Space, 0))?;
    let umask = rustix::process::umask(Mode::empty());
    for (index, folder) in space.folders.iter().enumerate() {
        rustix::fs::mkdir(folder.as_c_str(), Mode::from_raw_mode(0o755))
            .map_err(at(SpaceStep::Folder, index))?;
    }
    for (index, cover) in space.covers.iter().enumerate() {
        cover.keep_real().map_err(at(SpaceStep::Real, index))?;
        cover
            .write_copy(&space.shim, space.ids.root)
            .map_err(at(SpaceStep::Copy, index))?;
        rustix::mount::mount_bind(cover.copy.as_c_str(), cover.program.as_c_str())
            .map_err(at(SpaceStep::Cover, index))?;
    }
    rustix::process::umask(umask);
    Ok(())
}

/// Leaves the caller's mount namespace. Who has the capability needs no user namespace; root
/// without it gets none, since then it could not give files to others any more.
fn separate(ids: &Ids) -> Result<(), Failure> {
    // SAFETY: no pointer is passed, and descriptors stay shared with nobody.
    let unshare = |flags: UnshareFlags| unsafe {
        checked(libc::SYS_unshare, [flags.bits() as usize]).map(|_| ())
    };
    match unshare(UnshareFlags::NEWNS) {
        Err(Errno::PERM) if !ids.root => {}
        result => return result.map_err(at(SpaceStep::MountNamespace, 0)),
    }
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
        .map_err(at(SpaceStep::UserNamespace, 0))?;
    write_file(c"/proc/self/setgroups", b"deny")
        .and_then(|()| write_file(c"/proc/self/uid_map", &ids.uid_map))
        .and_then(|()| write_file(c"/proc/self/gid_map", &ids.gid_map))
        .map_err(at(SpaceStep::IdMaps, 0))
}

fn write_file(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text).map(|_| ())
}

impl Cover {
    fn keep_real(&self) -> Result<(), Errno> {
        create(&self.real)?;
        rustix::mount::mount_bind(self.program.as_c_str(), self.real.as_c_str())
    }

    fn write_copy(&self, shim: &[u8], root: bool) -> Result<(), Errno> {
        let file = create(&self.copy)?;
        let mut rest = shim;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        // A hole: it takes no memory.
        rustix::fs::ftruncate(&file, self.size)?;
        if root {
            let (uid, gid) = self.owner;
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            // In a container the owner may be one that can't be named.
            let _ = rustix::fs::fchown(&file, Some(uid), Some(gid));
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode))?;
        rustix::fs::futimens(&file, &self.times)
    }
}

fn create(path: &CStr) -> Result<rustix::fd::OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600))
}
