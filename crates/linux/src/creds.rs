//! Credentials of one thread, and how a process becomes a deputy.
//!
//! glibc's wrappers change all threads by signalling them; these change the calling one.

use crate::arch::{checked, int, raw};
use rustix::io::Errno;

/// What `setfsuid` never accepts, so that it only tells.
const ASK: usize = u32::MAX as usize;
/// Capabilities are numbered below this (the kernel's own limit is 64 bits of mask).
const LAST_CAPABILITY: usize = 63;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Why credentials are not as asked.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredsError {
    /// A call failed.
    #[error("can't {step}: {errno}")]
    Failed {
        /// What was tried.
        step: &'static str,
        /// What went wrong.
        errno: Errno,
    },
    /// All calls succeeded and the result is another. The process must not go on.
    #[error("the {what} is not as asked")]
    NotAsAsked {
        /// What differs.
        what: &'static str,
    },
}

/// Sets the uid with which the calling thread accesses files.
pub fn set_fsuid(uid: u32) -> Result<(), CredsError> {
    // SAFETY: no pointer is passed.
    unsafe { raw(libc::SYS_setfsuid, [uid as usize]) };
    expect(fsuid() == uid, "file-system uid")
}

/// Sets the gid with which the calling thread accesses files.
pub fn set_fsgid(gid: u32) -> Result<(), CredsError> {
    // SAFETY: no pointer is passed.
    unsafe { raw(libc::SYS_setfsgid, [gid as usize]) };
    expect(fsgid() == gid, "file-system gid")
}

/// Sets the calling thread's supplementary groups.
pub fn set_groups(groups: &[u32]) -> Result<(), CredsError> {
    let args = [groups.len(), groups.as_ptr().expose_provenance()];
    // SAFETY: the kernel reads as many groups as said.
    step("set the groups", unsafe {
        checked(libc::SYS_setgroups, args)
    })
}

/// The uid with which the calling thread accesses files.
#[must_use]
pub fn fsuid() -> u32 {
    // SAFETY: no pointer is passed.
    low_half(unsafe { raw(libc::SYS_setfsuid, [ASK]) })
}

/// The gid with which the calling thread accesses files.
#[must_use]
pub fn fsgid() -> u32 {
    // SAFETY: no pointer is passed.
    low_half(unsafe { raw(libc::SYS_setfsgid, [ASK]) })
}

/// An id, which the kernel may have sign-extended.
fn low_half(result: isize) -> u32 {
    u32::try_from(result.cast_unsigned() & ASK).unwrap_or(u32::MAX)
}

/// Turns the calling process, which has one thread and is root, into a deputy for ever: its
/// uids are the service's, so that the user can neither signal nor trace it; its file
/// access is the user's and no more.
///
/// Of the capabilities it keeps CAP_LEASE, if there is one, for
/// [`is_open_for_writing`](crate::lease::is_open_for_writing). It gives no access: a lease is on a
/// file that is open already. At worst it lets the process hold up somebody's `open` for
/// `/proc/sys/fs/lease-break-time`. Root's deputy also keeps what root may do with files: there
/// is one only if root has started something, and then the node is trusted as the head is.
///
/// Afterwards the process is undumpable: `/proc/self` belongs to root (`/proc/self/fd` stays
/// usable for itself).
pub fn become_deputy(
    service_uid: u32,
    service_gid: u32,
    user_uid: u32,
    user_gid: u32,
    groups: &[u32],
) -> Result<(), CredsError> {
    let prctl = |what, option, argument| {
        // SAFETY: only options whose argument is no pointer are passed.
        let result = unsafe { checked(libc::SYS_prctl, [int(option), argument, 0, 0, 0]) };
        step(what, result)
    };
    let kept = capabilities()?.of_deputy(user_uid);
    for capability in 0..=LAST_CAPABILITY {
        match prctl("drop the bounding set", libc::PR_CAPBSET_DROP, capability) {
            // Above the last one that this kernel has.
            Err(CredsError::Failed {
                errno: Errno::INVAL,
                ..
            }) => break,
            result => result?,
        }
    }
    set_groups(groups)?;
    // Leaving uid 0 would take CAP_SETUID before the file-system ids are set, and setting
    // those first would be undone by setresuid.
    prctl("keep capabilities", libc::PR_SET_KEEPCAPS, 1)?;
    let gids = [service_gid as usize; 3];
    // SAFETY: no pointer is passed.
    step("set the gids", unsafe {
        checked(libc::SYS_setresgid, gids)
    })?;
    let uids = [service_uid as usize; 3];
    // SAFETY: no pointer is passed.
    step("set the uids", unsafe {
        checked(libc::SYS_setresuid, uids)
    })?;
    prctl("forget capabilities", libc::PR_SET_KEEPCAPS, 0)?;
    set_capabilities(kept.and_setids())?;
    set_fsgid(user_gid)?;
    set_fsuid(user_uid)?;
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned() as usize;
    prctl("clear the ambient set", libc::PR_CAP_AMBIENT, clear)?;
    set_capabilities(kept)?;
    prctl("forbid new rights", libc::PR_SET_NO_NEW_PRIVS, 1)?;
    prctl("become undumpable", libc::PR_SET_DUMPABLE, 0)?;

    verify(service_uid, service_gid, user_uid, user_gid, groups)?;
    expect(capabilities()? == kept, "set of capabilities")
}

fn verify(
    service_uid: u32,
    service_gid: u32,
    user_uid: u32,
    user_gid: u32,
    groups: &[u32],
) -> Result<(), CredsError> {
    let ids = |number| {
        let mut ids = [u32::MAX; 3];
        let base = ids.as_mut_ptr().expose_provenance();
        let each = size_of::<u32>();
        // SAFETY: three places for three ids.
        let result = unsafe { checked(number, [base, base + each, base + 2 * each]) };
        step("read the ids", result).map(|()| ids)
    };
    expect(ids(libc::SYS_getresuid)? == [service_uid; 3], "uid")?;
    expect(ids(libc::SYS_getresgid)? == [service_gid; 3], "gid")?;
    expect(fsuid() == user_uid, "file-system uid")?;
    expect(fsgid() == user_gid, "file-system gid")?;
    let mut found: Vec<u32> = rustix::process::getgroups()
        .map_err(|errno| CredsError::Failed {
            step: "read the groups",
            errno,
        })?
        .into_iter()
        .map(|group| group.as_raw())
        .collect();
    let mut wanted = groups.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    expect(found == wanted, "list of groups")
}

/// `struct __user_cap_data_struct`, twice 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Capabilities([CapabilityWords; 2]);

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct CapabilityWords {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Capabilities {
    /// Whether a capability is in effect.
    pub(crate) fn has(self, number: u32) -> bool {
        let words = self.0.get(number as usize / 32);
        words.is_some_and(|words| words.effective & 1 << (number % 32) != 0)
    }

    /// What a deputy of this user keeps in effect, so far as it is permitted.
    fn of_deputy(self, uid: u32) -> Capabilities {
        const LEASE: u32 = 1 << 28;
        // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID (to make other
        // users' files), LINUX_IMMUTABLE, SYS_ADMIN (trusted attributes), SYS_RESOURCE
        // (blocks that are reserved for root), MKNOD, SETFCAP.
        const OF_ROOT: u32 =
            0b11111 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31;
        let wanted = if uid == 0 { LEASE | OF_ROOT } else { LEASE };
        let low = CapabilityWords {
            effective: self.0[0].permitted & wanted,
            permitted: self.0[0].permitted & wanted,
            inheritable: 0,
        };
        Capabilities([low, CapabilityWords::default()])
    }

    /// With CAP_SETGID and CAP_SETUID.
    fn and_setids(mut self) -> Capabilities {
        const SETIDS: u32 = 1 << 6 | 1 << 7;
        self.0[0].effective |= SETIDS;
        self.0[0].permitted |= SETIDS;
        self
    }
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

const OURSELVES: CapabilityHeader = CapabilityHeader {
    version: CAPABILITY_VERSION,
    pid: 0,
};

pub(crate) fn set_capabilities(sets: Capabilities) -> Result<(), CredsError> {
    let header = OURSELVES;
    let args = [
        (&raw const header).expose_provenance(),
        (&raw const sets).expose_provenance(),
    ];
    // SAFETY: the structs of version 3, which the kernel reads.
    step("set the capabilities", unsafe {
        checked(libc::SYS_capset, args)
    })
}

pub(crate) fn capabilities() -> Result<Capabilities, CredsError> {
    let mut header = OURSELVES;
    let mut sets = Capabilities::default();
    let args = [
        (&raw mut header).expose_provenance(),
        (&raw mut sets).expose_provenance(),
    ];
    // SAFETY: the structs of version 3, which the kernel writes.
    step("read the capabilities", unsafe {
        checked(libc::SYS_capget, args)
    })?;
    // SAFETY: a local that the kernel wrote.
    Ok(unsafe { std::ptr::read_volatile(&raw const sets) })
}

fn step(step: &'static str, result: Result<usize, Errno>) -> Result<(), CredsError> {
    result
        .map(|_| ())
        .map_err(|errno| CredsError::Failed { step, errno })
}

fn expect(as_asked: bool, what: &'static str) -> Result<(), CredsError> {
    if as_asked {
        Ok(())
    } else {
        Err(CredsError::NotAsAsked { what })
    }
}
