//! Namespaces: making, entering and comparing them.

use crate::arch::{checked, int};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

pub use rustix::thread::UnshareFlags as NamespaceFlags;

/// Gives the calling thread new namespaces. (User and PID namespaces want a process with one
/// thread; a PID namespace takes only the children in.)
pub fn unshare(flags: NamespaceFlags) -> Result<(), Errno> {
    // SAFETY: no pointer is passed. Descriptors are not unshared behind a thread's back:
    // the type has that flag, so it is taken out.
    unsafe {
        checked(
            libc::SYS_unshare,
            [flags.difference(NamespaceFlags::FILES).bits() as usize],
        )
    }?;
    Ok(())
}

/// Moves the calling thread into the namespace of `/proc/PID/ns/…`, or with a pidfd into
/// those of a process that `flags` name. Empty flags take any kind of namespace file.
pub fn setns(fd: BorrowedFd<'_>, flags: NamespaceFlags) -> Result<(), Errno> {
    // SAFETY: no pointer is passed.
    unsafe {
        checked(
            libc::SYS_setns,
            [int(fd.as_raw_fd()), flags.bits() as usize],
        )
    }?;
    Ok(())
}

/// What of a process's surroundings can differ from ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Surrounding {
    /// The mount namespace.
    Mount,
    /// The user namespace.
    User,
    /// The PID namespace.
    Pid,
    /// The root directory.
    Root,
}

impl Surrounding {
    const ALL: [Surrounding; 4] = [
        Surrounding::Mount,
        Surrounding::User,
        Surrounding::Pid,
        Surrounding::Root,
    ];

    fn file(self) -> &'static str {
        match self {
            Surrounding::Mount => "ns/mnt",
            Surrounding::User => "ns/user",
            Surrounding::Pid => "ns/pid",
            Surrounding::Root => "root",
        }
    }
}

impl std::fmt::Display for Surrounding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Surrounding::Mount => "mount namespace",
            Surrounding::User => "user namespace",
            Surrounding::Pid => "PID namespace",
            Surrounding::Root => "root directory",
        })
    }
}

/// Why a process is not taken for one of our own surroundings.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignNamespace {
    /// It has another one.
    #[error("process {pid} has another {which}")]
    Differs {
        /// The process.
        pid: i32,
        /// What differs.
        which: Surrounding,
    },
    /// It can't be looked at: gone (ENOENT), or not ours to see (EACCES).
    #[error("can't see the {which} of process {pid}: {errno}")]
    Unseen {
        /// The process.
        pid: i32,
        /// What can't be seen.
        which: Surrounding,
        /// What went wrong.
        errno: Errno,
    },
}

/// What this process sees, looked up once: it does not change for a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings([Identity; Surrounding::ALL.len()]);

impl Surroundings {
    /// Our own.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn own() -> Result<Surroundings, Errno> {
        let mut identities = [Identity::default(); Surrounding::ALL.len()];
        for (identity, which) in identities.iter_mut().zip(Surrounding::ALL) {
            *identity = identify(&format!("/proc/self/{}", which.file()))?;
        }
        Ok(Surroundings(identities))
    }

    /// Checks that a process sees the same mounts, users, processes and root. The caller makes
    /// sure that the PID still means the same process (a pidfd, its start time).
    ///
    /// # Errors
    /// [`ForeignNamespace`].
    pub fn include(&self, pid: i32) -> Result<(), ForeignNamespace> {
        for (ours, which) in self.0.iter().zip(Surrounding::ALL) {
            let theirs = identify(&format!("/proc/{pid}/{}", which.file()))
                .map_err(|errno| ForeignNamespace::Unseen { pid, which, errno })?;
            if theirs != *ours {
                return Err(ForeignNamespace::Differs { pid, which });
            }
        }
        Ok(())
    }
}

/// Device, inode and mount.
type Identity = (u32, u32, u64, u64);

/// Device, inode and, where the kernel tells, the mount: two mounts can show one directory.
fn identify(path: &str) -> Result<Identity, Errno> {
    let flags = StatxFlags::INO | StatxFlags::MNT_ID;
    let found = statx(CWD, path, AtFlags::empty(), flags)?;
    let mount = if found.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        found.stx_mnt_id
    } else {
        0
    };
    Ok((
        found.stx_dev_major,
        found.stx_dev_minor,
        found.stx_ino,
        mount,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_in_our_own_namespaces() {
        let pid = std::process::id().cast_signed();
        assert_eq!(Surroundings::own().unwrap().include(pid), Ok(()));
        assert!(matches!(
            Surroundings::own().unwrap().include(i32::MAX),
            Err(ForeignNamespace::Unseen {
                errno: Errno::NOENT,
                ..
            })
        ));
    }
}
