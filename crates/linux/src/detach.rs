//! How a process that another one started becomes a daemon that outlives it.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::signal::{self, Disposition, SignalSet};

/// SIGHUP, SIGINT, SIGTERM: meant for who started it. What ends it is a message.
const IGNORED: [i32; 3] = [1, 2, 15];

/// A step that failed, in words that follow "cannot".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {what}: {errno}")]
pub struct DetachError {
    /// What was tried.
    pub what: &'static str,
    /// Why not.
    pub errno: Errno,
}

/// Own session, no terminal, no working directory, nothing read or written but standard error,
/// and deaf to what is meant for its starter.
///
/// # Errors
/// The kernel's, with the step.
pub fn from_starter() -> Result<(), DetachError> {
    let failed = |what| move |errno| DetachError { what, errno };
    match rustix::process::setsid() {
        // A group leader can't; its starter made it one, so it is apart already.
        Ok(_) | Err(Errno::PERM) => {}
        Err(errno) => return Err(failed("start a session")(errno)),
    }
    rustix::process::chdir("/").map_err(failed("change to /"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(failed("replace standard input"))?;
    rustix::stdio::dup2_stdout(&null).map_err(failed("replace standard output"))?;
    for signal in IGNORED {
        signal::set_disposition(signal, Disposition::Ignore).map_err(failed("ignore signals"))?;
    }
    Ok(())
}

/// Undoes for a fork what [`from_starter`] did to signals, and blocks none.
///
/// # Errors
/// The kernel's.
pub fn take_signals_back() -> Result<(), Errno> {
    for signal in IGNORED {
        signal::set_disposition(signal, Disposition::Default)?;
    }
    signal::set_signal_mask(SignalSet::EMPTY);
    Ok(())
}
