//! The one way in of a daemon that only its own user may talk to.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::Mode;

/// Why a private socket can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum PrivateListenError {
    /// Somebody listens there already.
    #[error("something listens there already")]
    Taken,
    /// The file system's word.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Listens, non-blocking, on a socket of mode 0600 at no moment open to others. What is left of
/// a daemon that has died is replaced; one that answers is left alone.
///
/// # Errors
/// See [`PrivateListenError`].
pub fn listen_privately(socket: &Path) -> Result<UnixListener, PrivateListenError> {
    if UnixStream::connect(socket).is_ok() {
        return Err(PrivateListenError::Taken);
    }
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let old = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(socket);
    rustix::process::umask(old);
    let listener = bound?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("it.sock");
        let first = listen_privately(&socket).unwrap();
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            listen_privately(&socket),
            Err(PrivateListenError::Taken)
        ));
        drop(first);
        listen_privately(&socket).unwrap();
    }
}
