//! Correcting the system's clock gently.

use crate::arch::checked;
use rustix::io::Errno;
use std::mem::MaybeUninit;

/// `ADJ_OFFSET_SINGLESHOT` (linux/timex.h), which the libc crate knows only as a C function's.
const ADJ_OFFSET_SINGLESHOT: u32 = 0x8001;

/// Has the clock run up to 0.05 % faster or slower until it has made up `microseconds`, as
/// `adjtime(3)`. What is left of an earlier correction is forgotten.
///
/// # Errors
/// `EPERM`; `EINVAL`: more than half a second.
pub fn slew_clock(microseconds: i32) -> Result<(), Errno> {
    // SAFETY: a struct of integers.
    let mut change: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    change.modes = ADJ_OFFSET_SINGLESHOT;
    change.offset = microseconds.into();
    let args = [(&raw mut change).expose_provenance()];
    // SAFETY: the kernel reads and writes one struct.
    unsafe { checked(libc::SYS_adjtimex, args) }.map(|_| ())
}
