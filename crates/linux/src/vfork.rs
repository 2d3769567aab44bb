//! Children that share our memory until they exec: the cheap way to start a process from a
//! large one, since no page table is copied.

use crate::arch::{self, CloneArgs, checked};
use crate::signal::SignalSet;
use rustix::io::Errno;
use std::cell::RefCell;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// The child's stack: what it does needs a tenth of this, even unoptimised.
const STACK_BYTES: usize = 64 * 1024;
/// The inaccessible page below the stack (64 kB is the largest page size of aarch64).
const GUARD_BYTES: usize = 64 * 1024;

/// What the kernel is asked for besides `CLONE_VM | CLONE_VFORK | CLONE_PIDFD`.
#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) flags: u64,
    pub(crate) pid: Option<i32>,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// Runs `entry(argument)` in a child that shares our memory, on a stack of this thread's;
/// returns when the child has exec'd or exited.
///
/// # Safety
/// `entry` must make raw system calls only: no allocation, no lock, no panic, nothing that
/// touches thread-local state, all of which it shares with the calling thread.
pub(crate) unsafe fn run(
    options: &Options<'_>,
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<(i32, OwnedFd), Errno> {
    with_stack(|stack| {
        let _undumpable = Undumpable::enter();
        // A handler of ours running in the child would work on our memory under another PID.
        let _blocked = Blocked::all();
        // SAFETY: the stack is this thread's own; the rest is the caller's promise.
        let (pid, pidfd) = unsafe { run_on(stack, options, entry, argument) }?;
        // SAFETY: a descriptor that the kernel just made for us.
        Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
    })
}

/// [`run`] without what touches locks or thread-local state: for forks of a process with
/// several threads. Returns the child's PID and the number of its pidfd.
///
/// # Safety
/// As [`run`]; `stack` is [`own_stack`]'s, all signals are blocked, and the caller does not
/// mind being undumpable afterwards.
pub(crate) unsafe fn run_on(
    stack: *mut c_void,
    options: &Options<'_>,
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<(i32, i32), Errno> {
    let mut pidfd: i32 = -1;
    let set_tid = [options.pid.unwrap_or(0)];
    let mut args = CloneArgs {
        flags: options.flags
            | (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD).cast_unsigned() as u64,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        stack: stack.expose_provenance() as u64,
        stack_size: STACK_BYTES as u64,
        ..CloneArgs::default()
    };
    if options.pid.is_some() {
        args.set_tid = set_tid.as_ptr().expose_provenance() as u64;
        args.set_tid_size = 1;
    }
    if let Some(cgroup) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: CLONE_VFORK holds this thread until the child is done with the stack and with
    // `argument`; the rest is the caller's promise.
    let result = unsafe { arch::clone3_on_stack(&args, entry, argument) };
    let pid = arch::pid_from(arch::decode(result)?);
    // SAFETY: CLONE_PIDFD stored it, behind the compiler's back.
    Ok((pid, unsafe { ptr::read_volatile(&raw const pidfd) }))
}

/// The calling thread's stack for [`run_on`], also in a fork that the thread makes.
pub(crate) fn own_stack() -> Result<*mut c_void, Errno> {
    with_stack(Ok)
}

/// `CLONE_INTO_CGROUP`, which libc declares with too narrow a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// All signals blocked in this thread, glibc's internal ones included, until dropped.
pub(crate) struct Blocked(SignalSet);

impl Blocked {
    pub(crate) fn all() -> Blocked {
        Blocked(SignalSet::ALL.replace_mask())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.replace_mask();
    }
}

/// A child that changes its uids makes the memory it shares with us undumpable
/// (`commit_creds`). While it runs as the user that is what we want: else that user could
/// attach to it with ptrace and read us. Afterwards our own flag has to come back, or our
/// `/proc/self` stays root's and nobody can debug us. The last spawn that ends, of whatever
/// thread, puts back what the first one found.
struct Undumpable;

struct DumpableState {
    spawns: usize,
    found: usize,
}

static DUMPABLE: Mutex<DumpableState> = Mutex::new(DumpableState {
    spawns: 0,
    found: 0,
});

impl Undumpable {
    fn enter() -> Undumpable {
        let mut state = DUMPABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if state.spawns == 0 {
            state.found = get_dumpable();
        }
        state.spawns += 1;
        Undumpable
    }
}

impl Drop for Undumpable {
    fn drop(&mut self) {
        let mut state = DUMPABLE.lock().unwrap_or_else(PoisonError::into_inner);
        state.spawns -= 1;
        if state.spawns == 0 && state.found == 1 && get_dumpable() != 1 {
            // SAFETY: PR_SET_DUMPABLE takes no pointer.
            let _ = unsafe {
                checked(
                    libc::SYS_prctl,
                    [arch::int(libc::PR_SET_DUMPABLE), 1, 0, 0, 0],
                )
            };
        }
    }
}

fn get_dumpable() -> usize {
    // SAFETY: PR_GET_DUMPABLE takes no pointer.
    unsafe {
        checked(
            libc::SYS_prctl,
            [arch::int(libc::PR_GET_DUMPABLE), 0, 0, 0, 0],
        )
    }
    .unwrap_or(0)
}

/// A mapped stack with a guard below it.
struct Stack {
    mapping: *mut c_void,
}

impl Stack {
    fn map() -> Result<Stack, Errno> {
        // SAFETY: a fresh anonymous mapping.
        let mapping = unsafe {
            checked(
                libc::SYS_mmap,
                [
                    0,
                    GUARD_BYTES + STACK_BYTES,
                    arch::int(libc::PROT_NONE),
                    arch::int(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
                    usize::MAX,
                    0,
                ],
            )
        }?;
        let stack = Stack {
            mapping: ptr::with_exposed_provenance_mut(mapping),
        };
        // SAFETY: the range is the upper part of the mapping just made.
        unsafe {
            checked(
                libc::SYS_mprotect,
                [
                    stack.bottom().expose_provenance(),
                    STACK_BYTES,
                    arch::int(libc::PROT_READ | libc::PROT_WRITE),
                ],
            )
        }?;
        Ok(stack)
    }

    fn bottom(&self) -> *mut c_void {
        self.mapping.wrapping_byte_add(GUARD_BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no child runs on it: `run` has returned.
        let _ = unsafe {
            checked(
                libc::SYS_munmap,
                [self.mapping.expose_provenance(), GUARD_BYTES + STACK_BYTES],
            )
        };
    }
}

thread_local! {
    static STACK: RefCell<Option<Stack>> = const { RefCell::new(None) };
}

fn with_stack<T>(use_it: impl FnOnce(*mut c_void) -> Result<T, Errno>) -> Result<T, Errno> {
    STACK.with_borrow_mut(|slot| {
        let stack = match slot {
            Some(stack) => stack,
            None => slot.insert(Stack::map()?),
        };
        use_it(stack.bottom())
    })
}
