use super::CloneArgs;
use std::arch::asm;
use std::ffi::c_void;

/// `clone3` whose child calls `entry(argument)` on the stack named in `args`.
///
/// # Safety
/// `args` must name a stack of its own for the child, and everything that the child touches
/// must live until the child has exec'd or exited (which `CLONE_VFORK` waits for).
pub(crate) unsafe fn clone3_on_stack(
    args: &CloneArgs,
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> isize {
    let result: isize;
    // SAFETY: the child never returns from `entry`, so it never sees this frame; its stack
    // pointer is the page-aligned top of its own stack.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x9",
            "blr x10",
            "brk #1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") std::ptr::from_ref(args) => result,
            in("x1") size_of::<CloneArgs>(),
            in("x9") argument,
            in("x10") entry,
            // Only the child's branch writes x30, but the compiler must not rely on it.
            out("x30") _,
        );
    }
    result
}
