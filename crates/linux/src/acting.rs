//! Making a file that belongs to somebody else from the start, as a file server of root's does.

use crate::creds::{self, Capabilities, CredsError};

/// A file of another owner or group keeps its set-id bits when this process writes to it.
pub const CAP_FSETID: u32 = 4;

/// Whether the calling thread has a capability (by its number) in effect.
pub fn has_capability(number: u32) -> Result<bool, CredsError> {
    Ok(creds::capabilities()?.has(number))
}

/// Does something as this user and group so far as the ownership of new files goes, but with the
/// capabilities that the calling thread has: becoming another file-system uid than 0 takes those
/// for files away, and they are raised again. Needs CAP_SETUID and CAP_SETGID.
///
/// # Errors
/// When the ids can't be had, nothing is done.
///
/// # Panics
/// When they can't be given back: the thread would act as somebody else from then on.
pub fn acting_as<T>(uid: u32, gid: u32, act: impl FnOnce() -> T) -> Result<T, CredsError> {
    let own = Own {
        uid: creds::fsuid(),
        gid: creds::fsgid(),
        capabilities: creds::capabilities()?,
    };
    creds::set_fsgid(gid)?;
    // From here on the ids are given back whatever happens.
    creds::set_fsuid(uid)?;
    creds::set_capabilities(own.capabilities)?;
    let done = act();
    drop(own);
    Ok(done)
}

struct Own {
    uid: u32,
    gid: u32,
    capabilities: Capabilities,
}

impl Drop for Own {
    fn drop(&mut self) {
        let restored = creds::set_fsuid(self.uid)
            .and_then(|()| creds::set_fsgid(self.gid))
            .and_then(|()| creds::set_capabilities(self.capabilities));
        if let Err(error) = restored {
            panic!("after acting as another user: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn new_files_are_the_other_users() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: not root");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        acting_as(1234, 5678, || std::fs::write(&path, "x"))
            .expect("as another")
            .expect("root's rights in root's directory");
        let found = std::fs::metadata(&path).expect("the file");
        assert_eq!((found.uid(), found.gid()), (1234, 5678));
        assert_eq!((creds::fsuid(), creds::fsgid()), (0, 0));
        assert!(has_capability(CAP_FSETID).expect("known"));
    }
}
