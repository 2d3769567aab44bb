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
    // SAFETY: the child never returns from `entry`, so it never sees this frame; rsp is the
    // page-aligned top of its stack, so that `call` leaves it as the ABI wants it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(args).expose_provenance(),
            in("rsi") size_of::<CloneArgs>(),
            in("r8") argument,
            in("r9") entry,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}
