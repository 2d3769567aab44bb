//! What makes a process a daemon of its own.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use wiglaf_linux::process;
use wiglaf_linux::signal::{self, Disposition, SignalFd, SignalSet};

use super::KeeperError;

/// Two descriptors for each ghost, for as many ghosts as PIDs can be had by default.
const DESCRIPTORS: u64 = 1 << 17;
/// SIGHUP, SIGINT, SIGTERM: meant for who started it.
const IGNORED: [i32; 3] = [1, 2, 15];
const SIGCHLD: i32 = 17;

/// One line of the log.
pub(super) fn log(line: &str) {
    // A full disk must not end the keeper.
    let _ = writeln!(std::io::stderr(), "wiglaf: keeper: {line}");
}

/// Own session, no terminal, no working directory, signals only by the descriptor that is
/// returned. What ends it is `ToKeeper::Shutdown`, not a signal meant for its starter.
pub(super) fn detach_from_starter() -> Result<SignalFd, KeeperError> {
    let setup = |what| move |errno| KeeperError::Setup { what, errno };
    match rustix::process::setsid() {
        // A group leader can't; its starter made it one, so it is apart already.
        Ok(_) | Err(Errno::PERM) => {}
        Err(errno) => return Err(setup("start a session")(errno)),
    }
    rustix::process::chdir("/").map_err(setup("change to /"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(setup("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(setup("replace standard input"))?;
    rustix::stdio::dup2_stdout(&null).map_err(setup("replace standard output"))?;
    raise_descriptor_limit();
    for signal in IGNORED {
        signal::set_disposition(signal, Disposition::Ignore).map_err(setup("ignore signals"))?;
    }
    let watched = SignalSet::of(&[SIGCHLD]);
    signal::block_signals(watched);
    let signals = SignalFd::new(watched).map_err(setup("make a signal descriptor"))?;
    set_title("wiglaf: keeper");
    Ok(signals)
}

/// Undoes for a fork what [`detach_from_starter`] did to signals.
pub(super) fn take_signals_back() -> Result<(), Errno> {
    for signal in IGNORED {
        signal::set_disposition(signal, Disposition::Default)?;
    }
    signal::set_signal_mask(SignalSet::EMPTY);
    Ok(())
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
    let failed = |source| KeeperError::Listen {
        path: socket.to_owned(),
        source,
    };
    if UnixStream::connect(socket).is_ok() {
        return Err(KeeperError::AlreadyRunning(socket.to_owned()));
    }
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let old = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(socket);
    rustix::process::umask(old);
    let listener = bound.map_err(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
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
