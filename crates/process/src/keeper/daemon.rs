//! What makes a process a daemon of its own.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use wiglaf_link::{PrivateListenError, listen_privately};
use wiglaf_linux::signal::{self, SignalFd, SignalSet};
use wiglaf_linux::{detach, process};

use super::KeeperError;

/// Two descriptors for each ghost, for as many ghosts as PIDs can be had by default.
const DESCRIPTORS: u64 = 1 << 17;
const SIGCHLD: i32 = 17;

/// One line of the log.
pub(super) fn log(line: &str) {
    // A full disk must not end the keeper.
    let _ = writeln!(std::io::stderr(), "wiglaf: keeper: {line}");
}

/// A daemon of its own, that hears of its children by the descriptor that is returned.
pub(super) fn detach_from_starter() -> Result<SignalFd, KeeperError> {
    let setup = |what| move |errno| KeeperError::Setup { what, errno };
    detach::from_starter()?;
    raise_descriptor_limit();
    let watched = SignalSet::of(&[SIGCHLD]);
    signal::block_signals(watched);
    let signals = SignalFd::new(watched).map_err(setup("make a signal descriptor"))?;
    set_title("wiglaf: keeper");
    Ok(signals)
}

/// What `ps` shows.
pub(super) fn set_title(title: &str) {
    if let Err(error) = process::set_process_title(title) {
        log(&error.to_string());
    }
}

fn raise_descriptor_limit() {
    let old = rustix::process::getrlimit(Resource::Nofile);
    let both = |limit| Rlimit {
        current: limit,
        maximum: limit,
    };
    if old.maximum.is_some_and(|hard| hard < DESCRIPTORS)
        && rustix::process::setrlimit(Resource::Nofile, both(Some(DESCRIPTORS))).is_ok()
    {
        return;
    }
    // Fewer ghosts then; the hard limit is what a user has.
    let _ = rustix::process::setrlimit(Resource::Nofile, both(old.maximum));
}

/// The head's way in, for this user only.
pub(super) fn listen(socket: &Path) -> Result<UnixListener, KeeperError> {
    listen_privately(socket).map_err(|error| match error {
        PrivateListenError::Taken => KeeperError::AlreadyRunning(socket.to_owned()),
        PrivateListenError::Io(source) => KeeperError::Listen {
            path: socket.to_owned(),
            source,
        },
    })
}

/// Root, or who the keeper is.
pub(super) fn peer_is_trusted(socket: impl AsFd) -> Result<bool, Errno> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?.uid;
    Ok(peer.is_root() || peer == rustix::process::getuid())
}

/// All of them mean "look again" or nothing.
pub(super) fn drain(signals: &SignalFd) {
    while let Ok(Some(_)) = signals.read() {}
}
