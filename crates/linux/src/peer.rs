//! Who is at the other end of a Unix socket, beyond what `SO_PEERCRED` says.

use crate::arch::{checked, int};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Absent from libc's older releases.
const SO_PEERPIDFD: i32 = 77;
/// The kernel's own bound on supplementary groups (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;
/// Enough for nearly everybody, so that one call does.
const USUAL_GROUPS: usize = 64;

/// The supplementary groups that the peer had when it connected.
pub fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut room = USUAL_GROUPS;
    loop {
        let mut groups = vec![0_u32; room];
        let bytes = groups.len() * size_of::<u32>();
        let address = groups.as_mut_ptr().expose_provenance();
        // SAFETY: the kernel writes at most `bytes` to the vector.
        match unsafe { getsockopt(socket, libc::SO_PEERGROUPS, address, bytes) } {
            Ok(length) => {
                groups.truncate(length / size_of::<u32>());
                return Ok(groups);
            }
            Err(Errno::RANGE) if room < MAX_GROUPS => room = MAX_GROUPS,
            Err(error) => return Err(error),
        }
    }
}

/// A descriptor of the peer's process; `None` where the kernel (before 6.5) has none or the
/// process is gone and reaped.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    let mut fd = -1_i32;
    let address = (&raw mut fd).expose_provenance();
    // SAFETY: the kernel writes one int.
    match unsafe { getsockopt(socket, SO_PEERPIDFD, address, size_of::<i32>()) } {
        // SAFETY: a descriptor that the kernel just made for us, read as the kernel wrote it.
        Ok(_) => Ok(Some(unsafe {
            OwnedFd::from_raw_fd(std::ptr::read_volatile(&raw const fd))
        })),
        Err(Errno::NOPROTOOPT | Errno::NODATA | Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The effective user of the process that listened at, or connected to, the other end.
///
/// Unlike the credentials as a whole this can be had from inside a PID namespace, in which the
/// other process has no PID.
pub fn peer_uid(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let address = (&raw mut credentials).expose_provenance();
    // SAFETY: the kernel writes at most the structure that it is meant for.
    unsafe { getsockopt(socket, libc::SO_PEERCRED, address, size_of::<libc::ucred>()) }?;
    // SAFETY: as the kernel wrote it, which the compiler has not seen.
    Ok(unsafe { std::ptr::read_volatile(&raw const credentials.uid) })
}

/// # Safety
/// `address` has room for `bytes`.
unsafe fn getsockopt(
    socket: BorrowedFd<'_>,
    option: i32,
    address: usize,
    bytes: usize,
) -> Result<usize, Errno> {
    let mut length = u32::try_from(bytes).map_err(|_| Errno::INVAL)?;
    let args = [
        int(socket.as_raw_fd()),
        int(libc::SOL_SOCKET),
        int(option),
        address,
        (&raw mut length).expose_provenance(),
    ];
    // SAFETY: the caller's promise; the length is a local.
    unsafe { checked(libc::SYS_getsockopt, args) }?;
    // SAFETY: a local that the kernel wrote.
    Ok(unsafe { std::ptr::read_volatile(&raw const length) } as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_peer_of_a_pair_is_ourselves() {
        let (a, _b) = UnixStream::pair().expect("a socket pair");
        let pid = std::process::id().cast_signed();
        let ours = crate::status::read_status(pid).expect("our status").groups;
        assert_eq!(peer_groups(a.as_fd()), Ok(ours));
        if let Some(pidfd) = peer_pidfd(a.as_fd()).expect("an answer") {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
                .expect("the descriptor's description");
            assert!(info.contains(&format!("Pid:\t{pid}\n")), "{info}");
        }
    }
}
