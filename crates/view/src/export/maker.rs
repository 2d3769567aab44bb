//! Whose new files are, and which set-id bits survive: what is this process's own to see to.

use std::os::fd::OwnedFd;

use rustix::fs::Statx;
use rustix::io::Errno;
use wiglaf_linux::acting::{self, CAP_FSETID};
use wiglaf_linux::creds::{self, CredsError};

use super::descriptor;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// As whom a process on the node makes files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

#[derive(Debug)]
pub(super) struct Maker {
    own: Owner,
    /// The kernel leaves set-id bits alone for this process.
    keeps_privileges: bool,
}

impl Maker {
    pub(super) fn new() -> Result<Maker, CredsError> {
        Ok(Maker {
            own: Owner {
                uid: creds::fsuid(),
                gid: creds::fsgid(),
            },
            keeps_privileges: acting::has_capability(CAP_FSETID)?,
        })
    }

    /// Makes something that is to belong to `owner`, before the umask. Only root's deputy makes
    /// files that are somebody else's.
    pub(super) fn make<T>(
        &self,
        owner: Owner,
        umask: u32,
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        rustix::process::umask(descriptor::mode(umask & 0o777));
        if self.own.uid != 0 || self.own == owner {
            return make();
        }
        acting::acting_as(owner.uid, owner.gid, make).map_err(|_| Errno::PERM)?
    }

    /// Whether an action of this user must not leave set-id bits that the kernel would leave.
    pub(super) fn must_drop(&self, owner: Owner) -> bool {
        self.keeps_privileges && owner.uid != 0
    }

    /// Clears the bits that give a program another's rights, as the kernel does for an ordinary
    /// user who writes to it; returns whether there were any.
    pub(super) fn drop_privileges(&self, file: &OwnedFd, stat: &Statx) -> Result<bool, Errno> {
        let bits = u32::from(stat.stx_mode);
        let mut dropped = bits & SET_UID;
        if bits & GROUP_EXECUTE != 0 {
            dropped |= bits & SET_GID;
        }
        let regular = descriptor::kind(stat) == rustix::fs::FileType::RegularFile;
        if !self.keeps_privileges || !regular || dropped == 0 {
            return Ok(false);
        }
        self.set_bits(file, bits & !dropped)?;
        Ok(true)
    }

    /// Clears the set-gid bit alone.
    pub(super) fn drop_set_gid(&self, file: &OwnedFd, stat: &Statx) -> Result<(), Errno> {
        let bits = u32::from(stat.stx_mode);
        if !self.keeps_privileges || bits & SET_GID == 0 {
            return Ok(());
        }
        self.set_bits(file, bits & !SET_GID)
    }

    fn set_bits(&self, file: &OwnedFd, bits: u32) -> Result<(), Errno> {
        rustix::fs::chmod(descriptor::magic(file), descriptor::mode(bits))
    }
}
