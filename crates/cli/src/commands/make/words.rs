//! What ghosts write to their standard error: the only way in which a line's end can be told from
//! the cluster's failure when the head can't say it.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use wiglaf_wire::id::Pid;
use wiglaf_wire::status::own_failure;

/// Of text that no line ends, which nobody writes.
const MAX_LINE_BYTES: usize = 4096;

/// One pipe for all ghosts.
pub(super) struct Words {
    from: OwnedFd,
    to: OwnedFd,
    pending: Vec<u8>,
    /// PIDs of those whose lines have failed themselves.
    failed: HashSet<i32>,
}

impl Words {
    pub(super) fn new() -> Result<Words, Errno> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC)?;
        // Not the other end: ghosts wait until there is room.
        rustix::io::ioctl_fionbio(&from, true)?;
        Ok(Words {
            from,
            to,
            pending: Vec::new(),
            failed: HashSet::new(),
        })
    }

    /// What a ghost writes to.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.to.as_fd()
    }

    /// Takes what there is, or ghosts would wait at last.
    pub(super) fn take(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(read) = rustix::io::read(&self.from, &mut bytes) {
            self.pending.extend_from_slice(&bytes[..read]);
            while let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(at + 1);
                let line = std::mem::replace(&mut self.pending, rest);
                self.failed.extend(failed(&line));
            }
            self.pending.truncate(MAX_LINE_BYTES);
        }
    }

    /// Whether the line that this ghost stood for has itself ended with the code that is the
    /// cluster's else. To be asked of each that has ended so, as PIDs come again.
    pub(super) fn tell_own_failure(&mut self, pid: i32) -> bool {
        self.take();
        self.failed.remove(&pid)
    }
}

fn failed(line: &[u8]) -> Option<i32> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let line = line.strip_prefix("wiglaf: ")?;
    let (pid, _) = line.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (line == own_failure(Pid(pid))).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_tells_of_its_own_line_once() {
        let mut words = Words::new().expect("a pipe");
        assert!(!words.tell_own_failure(7));
        let text = format!(
            "wiglaf: the head has ended\nwiglaf: {}\n",
            own_failure(Pid(7))
        );
        rustix::io::write(words.descriptor(), text.as_bytes()).expect("there is room");
        assert!(!words.tell_own_failure(70));
        assert!(words.tell_own_failure(7));
        assert!(!words.tell_own_failure(7));
    }
}
