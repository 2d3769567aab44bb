//! What is executed: the paths to try, as `execvp` does, in arrays as the kernel wants them.

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use rustix::io::Errno;

use crate::arch::{self, checked, int, raw};

/// Where programs are sought when the new environment has no `PATH`, as in glibc.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// What runs a file that is executable and has no known format, as `execvp` does.
const SHELL: &CStr = c"/bin/sh";

/// What `execve` needs, as the pointer arrays that it wants.
pub(super) struct Image {
    candidates: Vec<CString>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// `/bin/sh CANDIDATE ARGS…`; the second place is filled in by the child.
    shell_argv: *mut *const c_char,
    _shell_argv: Box<[*const c_char]>,
}

impl Image {
    pub(super) fn new(candidates: Vec<CString>, argv: &[CString], env: &[CString]) -> Image {
        let mut shell_argv: Box<[*const c_char]> = [SHELL.as_ptr(), ptr::null()]
            .into_iter()
            .chain(argv.iter().skip(1).map(|arg| arg.as_ptr()))
            .chain([ptr::null()])
            .collect();
        Image {
            candidates,
            argv: pointers(argv),
            env: pointers(env),
            shell_argv: shell_argv.as_mut_ptr(),
            _shell_argv: shell_argv,
        }
    }
}

/// A null-terminated array of the strings' addresses.
pub(crate) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// The paths to try, in order.
pub(super) fn candidates(program: &CStr, env: &[CString]) -> Vec<CString> {
    let name = program.to_bytes();
    if name.is_empty() || name.contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = env
        .iter()
        .find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(|&byte| byte == b':')
        .filter_map(|directory| {
            let mut candidate = directory.to_vec();
            // An empty entry means the working directory.
            if !candidate.is_empty() && !candidate.ends_with(b"/") {
                candidate.push(b'/');
            }
            candidate.extend_from_slice(name);
            // Neither part can hold a NUL: both came from C strings.
            CString::new(candidate).ok()
        })
        .collect()
}

/// Tries the candidates as `execvp` does; returns only if none could be run.
pub(super) fn execute(image: &Image) -> Errno {
    let mut denied = false;
    let mut last = Errno::NOENT;
    for candidate in &image.candidates {
        // SAFETY: null-terminated arrays of C strings that the parent keeps.
        last = unsafe { execve(candidate.as_ptr(), image.argv.as_ptr(), image.env.as_ptr()) };
        if last == Errno::NOEXEC {
            // SAFETY: the array has a second place, and the parent waits for us.
            unsafe {
                image.shell_argv.add(1).write(candidate.as_ptr());
                execve(SHELL.as_ptr(), image.shell_argv, image.env.as_ptr());
            }
            return Errno::NOEXEC;
        }
        match last {
            // As shells have it: a file that may not be executed is remembered (126), one that is
            // not even seen, because its directory may not be searched, is not there (127).
            // SAFETY: a C string that the parent keeps.
            Errno::ACCESS => denied |= unsafe { is_seen(candidate.as_ptr()) },
            Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT => {}
            other => return other,
        }
    }
    match last {
        _ if denied => Errno::ACCESS,
        Errno::ACCESS if image.candidates.len() > 1 => Errno::NOENT,
        other => other,
    }
}

/// # Safety
/// The pointer is a C string.
unsafe fn is_seen(path: *const c_char) -> bool {
    let at = int(libc::AT_FDCWD);
    let exists = int(libc::F_OK);
    // SAFETY: the caller's promise.
    unsafe { checked(libc::SYS_faccessat, [at, path.expose_provenance(), exists]) }.is_ok()
}

/// # Safety
/// The pointers are a C string and two null-terminated arrays of C strings.
unsafe fn execve(
    path: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
) -> Errno {
    let args = [
        path.expose_provenance(),
        argv.expose_provenance(),
        env.expose_provenance(),
    ];
    // SAFETY: the caller's promise.
    arch::errno(unsafe { raw(libc::SYS_execve, args) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(program: &CStr, path: &CStr) -> Vec<String> {
        candidates(program, &[path.to_owned()])
            .into_iter()
            .map(|candidate| candidate.into_string().expect("UTF-8"))
            .collect()
    }

    #[test]
    fn the_new_environments_path_is_searched() {
        assert_eq!(paths(c"ls", c"PATH=/a:/b/"), ["/a/ls", "/b/ls"]);
        assert_eq!(paths(c"ls", c"PATH=:/b"), ["ls", "/b/ls"]);
        assert_eq!(paths(c"ls", c"HOME=/"), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(paths(c"./ls", c"PATH=/a"), ["./ls"]);
        assert_eq!(paths(c"", c"PATH=/a"), [""]);
    }
}
