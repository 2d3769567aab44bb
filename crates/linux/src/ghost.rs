//! The ghost program (`ghost/` beside `src/`), how it is started, and what it is told.
//!
//! Its descriptors: 0 its terminal when it pumps, else `/dev/null`; 2 where to write the
//! cluster's complaints; 3 the control socket (`SOCK_SEQPACKET`, one message a packet); 4 the
//! write end of the standard input pipe when it pumps. It closes all others itself.

use crate::arch::{self, checked, int, raw};
use crate::signal::{SignalSet, set_signal_mask};
use crate::spawn::{Spawned, exit, pointers, reap_failed, set_signals};
use crate::vfork;
use rustix::io::Errno;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

/// The program: a static ELF for this architecture.
pub const GHOST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ghost"));

/// The longest complaint that a ghost writes; the rest is cut off.
pub const MAX_COMPLAINT: usize = 1023;

/// Descriptors that the ghost has: 0 to 4.
const GHOST_FDS: usize = 5;
/// The exit code of a child that failed; nobody sees it, as it is reaped here.
const CHILD_FAILED: i32 = 127;

/// What a keeper tells a ghost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order<'a> {
    /// The first order: whether to carry descriptor 0 to descriptor 4, and whether to have the
    /// terminal in raw mode while it is in the foreground. Without `pump` it closes 4.
    Mode {
        /// Carry input.
        pump: bool,
        /// Raw terminal.
        raw: bool,
    },
    /// Restore the terminal and exit with this code.
    Exit(u8),
    /// Restore the terminal and die of this signal (let it pass when it is delivered); if it
    /// does not kill, exit with 128 + signal.
    Die(u8),
    /// Restore the terminal and stop by this signal (let it pass); when continued, take raw
    /// mode up again.
    Stop(u8),
    /// Write this to standard error, at most [`MAX_COMPLAINT`] bytes of it.
    Complain(&'a str),
    /// Set raw mode anew: somebody else changed the terminal.
    RawAgain,
}

impl Order<'_> {
    /// The packet to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Order::Mode { pump, raw } => vec![b'M', u8::from(pump) | u8::from(raw) << 1],
            Order::Exit(code) => vec![b'X', code],
            Order::Die(signal) => vec![b'D', signal],
            Order::Stop(signal) => vec![b'T', signal],
            Order::Complain(text) => {
                let mut packet = vec![b'E'];
                packet.extend(text.bytes().take(MAX_COMPLAINT));
                packet
            }
            Order::RawAgain => vec![b'R'],
        }
    }
}

/// What a ghost is started with. Descriptors may have any numbers.
#[derive(Debug)]
pub struct GhostRequest<'a> {
    /// The remote command line, which `ps` then shows.
    pub argv: &'a [CString],
    /// Its environment; the less, the less memory it takes.
    pub env: &'a [CString],
    /// The ghost's end of the control socket.
    pub control: BorrowedFd<'a>,
    /// Its terminal, if it pumps; else it gets `/dev/null`.
    pub stdin: Option<BorrowedFd<'a>>,
    /// The write end of the standard input pipe, if it pumps.
    pub stdin_pipe: Option<BorrowedFd<'a>>,
    /// Where to complain; else `/dev/null`.
    pub stderr: Option<BorrowedFd<'a>>,
    /// The process group to join (0: one of its own); `None` stays in the caller's. Only
    /// [`spawn_ghost`] heeds it.
    pub group: Option<i32>,
    /// The ghost is killed when the thread that starts it ends. Only [`spawn_ghost`] heeds it.
    pub dies_with_parent: bool,
}

/// Becomes the ghost; signals that come meanwhile are kept for it. Returns only if that failed, with the descriptors 0 to 4 then undefined.
/// For a process with one thread, or whose other threads may end at any moment.
pub fn exec_ghost(request: &GhostRequest<'_>) -> Errno {
    let prepared = match Prepared::new(request) {
        Ok(prepared) => prepared,
        Err(errno) => return errno,
    };
    // The ghost unblocks them when it has its handlers.
    let mask = set_signal_mask(SignalSet::ALL);
    // SAFETY: the caller gives its own process up, as documented.
    let errno = unsafe { prepared.become_ghost() };
    set_signal_mask(mask);
    errno
}

/// Starts a ghost as a child of the caller, without copying its memory.
pub fn spawn_ghost(request: &GhostRequest<'_>) -> Result<Spawned, Errno> {
    let mut context = Context {
        prepared: Prepared::new(request)?,
        group: request.group,
        parent: request
            .dies_with_parent
            .then(|| rustix::process::getpid().as_raw_nonzero().get()),
        failure: None,
    };
    let context = &raw mut context;
    let options = vfork::Options::default();
    // SAFETY: `child` makes raw system calls only, and the context outlives the call.
    let (pid, pidfd) = unsafe { vfork::run(&options, child, context.cast()) }?;
    // SAFETY: the child no longer shares our memory; volatile because the compiler does not
    // see the child's write.
    match unsafe { ptr::read_volatile(&raw const (*context).failure) } {
        None => Ok(Spawned { pid, pidfd }),
        Some(errno) => {
            reap_failed(pid);
            Err(errno)
        }
    }
}

struct Context {
    prepared: Prepared,
    group: Option<i32>,
    parent: Option<i32>,
    failure: Option<Errno>,
}

extern "C" fn child(context: *mut c_void) -> ! {
    let context = context.cast::<Context>();
    // SAFETY: the parent passed its context and waits until we are done with it; what is
    // called makes raw system calls only.
    unsafe {
        let prepared = &(*context).prepared;
        let joined = match (*context).group {
            Some(group) => checked(libc::SYS_setpgid, [0, int(group)]).map(|_| ()),
            None => Ok(()),
        };
        // Under Yama only a declared tracer may seize an ordinary user's process; where there is
        // no Yama this is an error that does not matter.
        let any = usize::MAX;
        let _ = checked(libc::SYS_prctl, [int(libc::PR_SET_PTRACER), any]);
        let tied = match (*context).parent {
            Some(parent) => tie_to(parent),
            None => Ok(()),
        };
        let errno = match joined.and(tied).and_then(|()| set_signals_or_errno()) {
            Ok(()) => prepared.become_ghost(),
            Err(errno) => errno,
        };
        ptr::write_volatile(&raw mut (*context).failure, Some(errno));
    }
    exit(CHILD_FAILED)
}

/// Asks to be killed with the parent, and sees to it that the parent has not gone before.
///
/// # Safety
/// Only in a child.
unsafe fn tie_to(parent: i32) -> Result<(), Errno> {
    // SAFETY: these calls touch nothing of ours.
    let found = unsafe {
        checked(
            libc::SYS_prctl,
            [int(libc::PR_SET_PDEATHSIG), int(libc::SIGKILL)],
        )?;
        checked(libc::SYS_getppid, [])?
    };
    if found == int(parent) {
        Ok(())
    } else {
        Err(Errno::CHILD)
    }
}

/// The ghost sets its own handlers; until then no handler of ours may run in it, and nothing
/// may kill it before its tracer can see why: signals stay blocked until the ghost unblocks.
///
/// # Safety
/// Only in a child.
unsafe fn set_signals_or_errno() -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { set_signals(SignalSet::EMPTY, SignalSet::ALL) }.map_err(|(_, errno)| errno)
}

/// All that is needed between the caller and the ghost, so that nothing is allocated there.
struct Prepared {
    program: RawFd,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    fds: [RawFd; GHOST_FDS],
}

/// No descriptor belongs there.
const NONE: RawFd = -1;

impl Prepared {
    fn new(request: &GhostRequest<'_>) -> Result<Prepared, Errno> {
        static NULL: OnceLock<OwnedFd> = OnceLock::new();
        let null = kept(&NULL, || {
            use rustix::fs::{Mode, OFlags};
            rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        })?;
        let or = |fd: Option<BorrowedFd<'_>>, other| fd.map_or(other, |fd| fd.as_raw_fd());
        Ok(Prepared {
            program: program()?.as_raw_fd(),
            argv: pointers(request.argv),
            env: pointers(request.env),
            fds: [
                or(request.stdin, null.as_raw_fd()),
                NONE,
                or(request.stderr, null.as_raw_fd()),
                request.control.as_raw_fd(),
                or(request.stdin_pipe, NONE),
            ],
        })
    }

    /// Places the descriptors and executes the ghost, with raw system calls only.
    ///
    /// # Safety
    /// The calling process's descriptors 0 to 4 are replaced: it must be a fresh child, or one
    /// that gives itself up.
    unsafe fn become_ghost(&self) -> Errno {
        // SAFETY: no pointer is passed but C strings and arrays of them that `self` keeps; the
        // descriptors are the caller's promise.
        unsafe {
            // The program's descriptor too must not lie where another is to go.
            let program = match move_up(self.program, libc::F_DUPFD_CLOEXEC) {
                Ok(program) => program,
                Err(errno) => return errno,
            };
            let mut fds = self.fds;
            for fd in &mut fds {
                if *fd == NONE {
                    continue;
                }
                *fd = match move_up(*fd, libc::F_DUPFD_CLOEXEC) {
                    Ok(fd) => fd,
                    Err(errno) => return errno,
                };
            }
            for (target, fd) in fds.into_iter().enumerate() {
                if fd == NONE {
                    raw(libc::SYS_close, [target]);
                } else if let Err(errno) = checked(libc::SYS_dup3, [int(fd), target, 0]) {
                    return errno;
                }
            }
            let args = [
                int(program),
                c"".as_ptr().expose_provenance(),
                self.argv.as_ptr().expose_provenance(),
                self.env.as_ptr().expose_provenance(),
                int(libc::AT_EMPTY_PATH),
            ];
            arch::errno(raw(libc::SYS_execveat, args))
        }
    }
}

/// A copy of a descriptor above those that the ghost has, if it lies among them.
///
/// # Safety
/// As `fcntl`.
unsafe fn move_up(fd: RawFd, how: i32) -> Result<RawFd, Errno> {
    if arch::int(fd) >= GHOST_FDS {
        return Ok(fd);
    }
    // SAFETY: no pointer is passed.
    unsafe { checked(libc::SYS_fcntl, [int(fd), int(how), GHOST_FDS]) }.map(arch::pid_from)
}

/// The program in memory, sealed and shared by all ghosts of this process.
fn program() -> Result<&'static OwnedFd, Errno> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    kept(&PROGRAM, || {
        let file = create_memfd(c"wiglaf-ghost")?;
        let mut rest = GHOST;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = &rest[written..];
        }
        use rustix::fs::SealFlags;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(file)
    })
}

/// Kernels before 6.3 do not know MFD_EXEC and make every memfd executable.
fn create_memfd(name: &CStr) -> Result<OwnedFd, Errno> {
    let create = |flags: u32| {
        let args = [name.as_ptr().expose_provenance(), flags as usize];
        // SAFETY: a C string.
        unsafe { checked(libc::SYS_memfd_create, args) }
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let fd = match create(flags | libc::MFD_EXEC) {
        Err(Errno::INVAL) => create(flags),
        result => result,
    }?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(arch::pid_from(fd)) })
}

/// Made once; if two threads race, one of the two is closed again.
fn kept(
    slot: &'static OnceLock<OwnedFd>,
    make: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<&'static OwnedFd, Errno> {
    if let Some(fd) = slot.get() {
        return Ok(fd);
    }
    let made = make()?;
    Ok(slot.get_or_init(|| made))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two kilobytes and a page of code, per ghost: the design rests on it.
    const MAX_BYTES: usize = 2048;

    #[test]
    fn the_ghost_is_a_small_static_program() {
        assert_eq!(&GHOST[..4], b"\x7fELF");
        #[cfg(target_arch = "x86_64")]
        assert!(GHOST.len() <= MAX_BYTES, "{} bytes", GHOST.len());
        assert!(GHOST.len() <= MAX_BYTES * 2, "{} bytes", GHOST.len());
        assert!(program().expect("a memfd").as_raw_fd() > 2);
    }

    #[test]
    fn orders_are_packets() {
        let mode = |pump, raw| Order::Mode { pump, raw }.encode();
        assert_eq!(mode(true, false), b"M\x01");
        assert_eq!(mode(true, true), b"M\x03");
        assert_eq!(Order::Exit(7).encode(), b"X\x07");
        assert_eq!(Order::Die(15).encode(), b"D\x0f");
        assert_eq!(Order::Stop(20).encode(), b"T\x14");
        assert_eq!(Order::RawAgain.encode(), b"R");
        let long = "x".repeat(5000);
        assert_eq!(Order::Complain(&long).encode().len(), 1 + MAX_COMPLAINT);
    }
}
