//! Signal numbers as sets, the thread's mask, and signals read from a descriptor.

use crate::arch::{self, checked};
use rustix::io::Errno;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The largest signal number.
pub const LAST_SIGNAL: i32 = 64;

/// A set of signals, in the kernel's own form.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SignalSet(u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: SignalSet = SignalSet(0);
    /// Every signal, those that glibc keeps for itself included.
    pub const ALL: SignalSet = SignalSet(u64::MAX);

    /// The set of these signals; numbers outside 1 to 64 are left out.
    #[must_use]
    pub fn of(signals: &[i32]) -> SignalSet {
        signals
            .iter()
            .fold(SignalSet::EMPTY, |set, &signal| set.with(signal))
    }

    /// The set whose bit `n - 1` stands for signal `n`, as in `/proc/PID/status`.
    #[must_use]
    pub const fn from_bits(bits: u64) -> SignalSet {
        SignalSet(bits)
    }

    /// Bit `n - 1` stands for signal `n`.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// This set and `signal`.
    #[must_use]
    pub const fn with(self, signal: i32) -> SignalSet {
        SignalSet(self.0 | bit(signal))
    }

    /// This set without `signal`.
    #[must_use]
    pub const fn without(self, signal: i32) -> SignalSet {
        SignalSet(self.0 & !bit(signal))
    }

    /// Whether `signal` is in the set.
    #[must_use]
    pub const fn contains(self, signal: i32) -> bool {
        self.0 & bit(signal) != 0
    }

    /// The signals of the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = i32> {
        (1..=LAST_SIGNAL).filter(move |&signal| self.contains(signal))
    }

    /// Makes this set the calling thread's mask; returns the one before.
    pub(crate) fn replace_mask(self) -> SignalSet {
        mask(libc::SIG_SETMASK, self)
    }
}

const fn bit(signal: i32) -> u64 {
    if signal >= 1 && signal <= LAST_SIGNAL {
        1 << (signal - 1)
    } else {
        0
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Blocks these signals in the calling thread; returns the mask before.
pub fn block_signals(set: SignalSet) -> SignalSet {
    mask(libc::SIG_BLOCK, set)
}

/// Sets the calling thread's mask; returns the one before.
pub fn set_signal_mask(set: SignalSet) -> SignalSet {
    set.replace_mask()
}

fn mask(how: i32, set: SignalSet) -> SignalSet {
    let mut old = 0_u64;
    // SAFETY: both sets are eight bytes, as said. The call can't fail with a valid `how`.
    let _ = unsafe {
        checked(
            libc::SYS_rt_sigprocmask,
            [
                arch::int(how),
                (&raw const set.0).expose_provenance(),
                (&raw mut old).expose_provenance(),
                size_of::<u64>(),
            ],
        )
    };
    SignalSet(old)
}

/// What the process does with a signal, so far as it can be said without a handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// The kernel's default action.
    Default,
    /// The signal is thrown away.
    Ignore,
}

/// Sets what the whole process does with `signal`.
pub fn set_disposition(signal: i32, disposition: Disposition) -> Result<(), Errno> {
    let action = KernelSigaction::plain(match disposition {
        Disposition::Default => libc::SIG_DFL,
        Disposition::Ignore => libc::SIG_IGN,
    });
    // SAFETY: the action is the kernel's struct and installs no handler.
    unsafe {
        checked(
            libc::SYS_rt_sigaction,
            [
                arch::int(signal),
                (&raw const action).expose_provenance(),
                0,
                size_of::<u64>(),
            ],
        )
    }?;
    Ok(())
}

/// `struct sigaction` as the kernel has it (aarch64 has the restorer field too).
#[repr(C)]
pub(crate) struct KernelSigaction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

impl KernelSigaction {
    /// Default or ignore.
    pub(crate) const fn plain(handler: usize) -> KernelSigaction {
        KernelSigaction {
            handler,
            flags: 0,
            restorer: 0,
            mask: 0,
        }
    }
}

/// A descriptor from which blocked signals are read.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// One signal, as read from a [`SignalFd`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceivedSignal {
    /// Its number.
    pub signo: i32,
    /// Why it was sent (`SI_USER`, `SI_KERNEL`, `CLD_EXITED` …).
    pub code: i32,
    /// The sender, or for SIGCHLD the child; 0 when it is the kernel.
    pub pid: i32,
    /// The sender's real uid.
    pub uid: u32,
    /// For SIGCHLD the exit code or signal.
    pub status: i32,
    /// The value given to `sigqueue`.
    pub value: i32,
}

impl SignalFd {
    /// A non-blocking, close-on-exec descriptor. The caller blocks the signals, in every
    /// thread: best before there is a second one.
    pub fn new(set: SignalSet) -> Result<SignalFd, Errno> {
        // SAFETY: the set is eight bytes, as said.
        let fd = unsafe {
            checked(
                libc::SYS_signalfd4,
                [
                    usize::MAX,
                    (&raw const set).expose_provenance(),
                    size_of::<u64>(),
                    arch::int(libc::SFD_CLOEXEC | libc::SFD_NONBLOCK),
                ],
            )
        }?;
        // SAFETY: a descriptor that the kernel just made for us.
        Ok(SignalFd(unsafe {
            OwnedFd::from_raw_fd(arch::pid_from(fd))
        }))
    }

    /// The next signal, or `None` when none is pending.
    pub fn read(&self) -> Result<Option<ReceivedSignal>, Errno> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        loop {
            // SAFETY: the kernel writes at most one whole struct.
            let result = unsafe {
                checked(
                    libc::SYS_read,
                    [
                        arch::int(self.0.as_raw_fd()),
                        info.as_mut_ptr().expose_provenance(),
                        size_of::<libc::signalfd_siginfo>(),
                    ],
                )
            };
            return match result {
                Ok(_) => {
                    // SAFETY: zeroed before, and every bit pattern is a valid one.
                    let info = unsafe { info.assume_init() };
                    Ok(Some(ReceivedSignal {
                        signo: info.ssi_signo.cast_signed(),
                        code: info.ssi_code,
                        pid: info.ssi_pid.cast_signed(),
                        uid: info.ssi_uid,
                        status: info.ssi_status,
                        value: info.ssi_int,
                    }))
                }
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error),
            };
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
