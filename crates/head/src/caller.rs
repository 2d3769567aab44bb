//! Who a caller is, from the kernel alone, and whether it may be served (S3).

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wiglaf_linux::namespace::{ForeignNamespace, Surroundings};
use wiglaf_linux::peer::{peer_groups, peer_pidfd};
use wiglaf_linux::status::{StatusError, read_status, start_time};
use wiglaf_wire::id::Pid;
use wiglaf_wire::launch::Credential;

use crate::jobs::{Caller, ClientId};

/// Why a caller is not served.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// The kernel does not say who it is.
    #[error("the kernel does not tell who is calling: {0}")]
    Unknown(#[from] rustix::io::Errno),
    /// It is confined to less than the head's file system.
    #[error(
        "a caller in another {0} than the head's is refused, because the nodes' view of the \
         head's files would be its way out; run the command outside, or set \
         allow_confined_callers in the head's configuration"
    )]
    Confined(String),
    /// Its `/proc` files.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// A head without root's rights can act for nobody but its own user.
    #[error(
        "this head belongs to user {0} and can't act for others; ask the administrator for a \
         cluster of the machine (`sudo wiglaf up`)"
    )]
    NotOurUser(u32),
    /// It ended before it was looked at.
    #[error("the caller has ended")]
    Gone,
    /// It has given up rights that the remote process would have again.
    #[error(
        "a caller {0} is refused, because its remote process would be without that bond; run the \
         command outside, or set allow_confined_callers in the head's configuration"
    )]
    Bound(&'static str),
}

/// Identifies the process at the other end of a Unix socket. With `outside`, the head's own
/// surroundings, callers that see less than the head are refused.
///
/// # Errors
/// It can't be told, or must not be served.
pub fn identify(
    socket: impl AsFd,
    client: ClientId,
    outside: Option<&Surroundings>,
) -> Result<Caller, CallerError> {
    let socket = socket.as_fd();
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    let own = rustix::process::geteuid();
    if !own.is_root() && peer.uid != own {
        return Err(CallerError::NotOurUser(own.as_raw()));
    }
    let pid = peer.pid.as_raw_nonzero().get();
    let mut groups = peer_groups(socket)?;
    if !own.is_root() {
        // They can't be mapped into a user namespace without root's help (docs/semantics.md).
        groups.clear();
    }
    groups.sort_unstable();
    groups.dedup();
    let status = read_status(pid)?;
    let start_time = start_time(pid)?;
    if let Some(own) = outside {
        match own.include(pid) {
            Ok(()) => {}
            Err(ForeignNamespace::Differs { which, .. }) => {
                return Err(CallerError::Confined(which.to_string()));
            }
            Err(ForeignNamespace::Unseen { errno, .. }) => return Err(errno.into()),
        }
        if status.no_new_privs {
            return Err(CallerError::Bound("with no_new_privs"));
        }
        if status.seccomp != 0 {
            return Err(CallerError::Bound("under seccomp"));
        }
    }
    // All of the above was about the caller itself only if it still lives: its PID may be
    // another's by now.
    if let Some(pidfd) = peer_pidfd(socket)? {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now))? > 0 {
            return Err(CallerError::Gone);
        }
    }
    let credential = Credential {
        uid: peer.uid.as_raw(),
        gid: peer.gid.as_raw(),
        groups,
    };
    Ok(Caller {
        client,
        pid: Pid(pid),
        start_time,
        credential,
    })
}

/// The start time of a process that is to be a ghost: the caller itself, or one of its children
/// with its uid.
///
/// # Errors
/// It is neither.
pub fn check_ghost(caller: &Caller, pid: Pid) -> Result<u64, &'static str> {
    if pid == caller.pid {
        return Ok(caller.start_time);
    }
    let status = read_status(pid.0).map_err(|_| "the ghost is no process")?;
    if status.ppid != caller.pid.0 || status.uids[0] != caller.credential.uid {
        return Err("the ghost is not a child of the caller");
    }
    start_time(pid.0).map_err(|_| "the ghost is no process")
}
