//! Randomness before it is needed. A processor without a generator of its own makes the kernel
//! gather it from the clock's jitter, which takes a second, and begins only when somebody waits.

use rustix::rand::{GetRandomFlags, getrandom};
use wiglaf_linux::process::fork_aside;

/// Has somebody wait from now on, so that the key of this machine need not. The loop that reaps
/// orphans reaps it, too.
pub(super) fn gather() {
    // Without it the key takes longer.
    let _ = fork_aside(|| {
        // It has the machine when nobody else wants it.
        let _ = rustix::process::nice(19);
        let _ = getrandom(&mut [0_u8; 1], GetRandomFlags::empty());
    });
}
