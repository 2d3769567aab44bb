//! An agent on a machine that has another system: PID 1 of namespaces of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use wiglaf_link::JoinToken;
use wiglaf_linux::namespace::NamespaceFlags;
use wiglaf_linux::process::{
    ChildState, ExitStatus, Fork, clone_into, pidfd_open, pidfd_send_signal, set_pdeathsig, wait,
};
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};

use super::run::{AgentConfig, Trust, live};
use crate::root::{Files, ViewOptions, mount_own_proc};

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const EXIT_FAILED: i32 = 1;
/// As Rust's runtime ends after a panic.
const EXIT_PANIC: i32 = 101;

/// Why there is no agent on this machine (any more).
#[derive(Debug, thiserror::Error)]
pub enum BesideError {
    /// It takes root's rights to run other users' commands.
    #[error("the agent needs root's rights to run commands of all users: start it with sudo")]
    NotRoot,
    /// The kernel refuses namespaces.
    #[error("can't make namespaces for the agent: {0}")]
    Namespaces(#[source] Errno),
    /// The supervisor itself.
    #[error("can't watch the agent: {0}")]
    Watch(#[from] Errno),
    /// It has said why on standard error.
    #[error("the agent has ended with exit code {0}")]
    Exited(i32),
    /// Something has killed it, and all its tasks with it.
    #[error("the agent was killed by signal {0}")]
    Killed(i32),
}

/// Runs an agent on this machine, with the head's files, until the head or a SIGTERM has it leave.
/// `keep` is a directory in which it may keep what it reads of them. The caller has one thread. This process stays as the supervisor: it passes signals on, and if it
/// is killed the agent and all tasks are, too.
///
/// # Errors
/// [`BesideError`]: no agent, or one that has not ended well.
pub fn run_beside(
    head: SocketAddr,
    token: JoinToken,
    name: Option<String>,
    view: ViewOptions,
    keep: Option<PathBuf>,
) -> Result<(), BesideError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BesideError::NotRoot);
    }
    let handled = SignalSet::of(&[SIGTERM, SIGINT]);
    block_signals(handled);
    let signals = SignalFd::new(handled)?;
    let life = || be_agent(head, token, name, view, keep);
    let (pid, pidfd) = start_apart(life).map_err(BesideError::Namespaces)?;
    watch(pid, &pidfd, &signals)
}

/// Starts a process as PID 1 of PID, mount, UTS and IPC namespaces of its own, with `/proc` to
/// match, that does `life` and ends with the code that it gives. It is killed when the caller,
/// which has one thread, ends.
pub(crate) fn start_apart(
    life: impl FnOnce() -> Result<i32, Box<dyn std::error::Error>>,
) -> Result<(i32, OwnedFd), Errno> {
    let parent = pidfd_open(std::process::id().cast_signed())?;
    let spaces = NamespaceFlags::NEWPID
        | NamespaceFlags::NEWNS
        | NamespaceFlags::NEWUTS
        | NamespaceFlags::NEWIPC;
    match clone_into(spaces)? {
        Fork::Child => {
            let life = || match settle(&parent).and_then(|()| life()) {
                Ok(code) => code,
                Err(error) => {
                    // There is nobody else to tell.
                    let _ = writeln!(std::io::stderr(), "wiglaf agent: {error}");
                    EXIT_FAILED
                }
            };
            // A panic must not unwind into the copy of the parent's frames.
            std::process::exit(catch_unwind(AssertUnwindSafe(life)).unwrap_or(EXIT_PANIC))
        }
        Fork::Parent { pid, pidfd } => Ok((pid, pidfd)),
    }
}

fn settle(parent: &OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
    set_pdeathsig(SIGKILL)?;
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut [PollFd::new(parent, PollFlags::IN)], Some(&now))? > 0 {
        // It died before its death could have been told.
        std::process::exit(0);
    }
    Ok(mount_own_proc()?)
}

fn be_agent(
    head: SocketAddr,
    token: JoinToken,
    name: Option<String>,
    view: ViewOptions,
    keep: Option<PathBuf>,
) -> Result<i32, Box<dyn std::error::Error>> {
    let config = AgentConfig {
        head,
        trust: Trust::Token(token),
        name,
        files: Files::View(view),
        keep,
        address: local_address(head)?,
        rootless: false,
        is_virtual: false,
    };
    live(config, true)?;
    Ok(0)
}

/// The address that the head is reached from. Nothing is sent.
fn local_address(head: SocketAddr) -> std::io::Result<String> {
    let any: SocketAddr = if head.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(head)?;
    Ok(socket.local_addr()?.ip().to_string())
}

fn watch(pid: i32, pidfd: &OwnedFd, signals: &SignalFd) -> Result<(), BesideError> {
    loop {
        let mut waited = [
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut waited, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        while signals.read()?.is_some() {
            // It may just have ended.
            let _ = pidfd_send_signal(pidfd, SIGTERM);
        }
        if let Some(change) = wait(pid, true)? {
            return match change.state {
                ChildState::Ended(ExitStatus::Exited(0)) => Ok(()),
                ChildState::Ended(ExitStatus::Exited(code)) => Err(BesideError::Exited(code)),
                ChildState::Ended(ExitStatus::Signaled { signal, .. }) => {
                    Err(BesideError::Killed(signal))
                }
                ChildState::Stopped(_) | ChildState::Continued => continue,
            };
        }
    }
}
