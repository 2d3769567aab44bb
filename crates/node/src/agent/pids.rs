//! Where descendants of tasks get their PIDs from: the node's own block, so that a PID means the
//! same process all over the cluster.
//!
//! The kernel counts upwards from a cursor; main processes get theirs by `set_tid` and don't move
//! it. It is a cursor, not a range, so it has to be set back before the block ends.

use std::fs;
use std::io;

use wiglaf_wire::id::Pid;

const CURSOR: &str = "/proc/sys/kernel/ns_last_pid";
const PID_MAX: &str = "/proc/sys/kernel/pid_max";
/// The cursor is set back when less than this part of the block is ahead of it: between two looks
/// at it, tasks don't fork so much.
const LAST_PARTS: i32 = 8;

/// Why the kernel does not take the block.
#[derive(Debug, thiserror::Error)]
#[error("can't set {file} to {value}: {source}")]
pub(super) struct PidError {
    file: &'static str,
    value: i32,
    #[source]
    source: io::Error,
}

/// A node's block of PIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PidBlock {
    first: i32,
    end: i32,
}

impl PidBlock {
    pub(super) fn new(first: Pid, end: Pid) -> PidBlock {
        PidBlock {
            first: first.0,
            end: end.0,
        }
    }

    /// Raises the kernel's limit if the block is beyond it.
    pub(super) fn make_room(self) -> Result<(), PidError> {
        let limit = read(PID_MAX).unwrap_or(i32::MAX);
        if limit < self.end {
            write(PID_MAX, self.end)
        } else {
            Ok(())
        }
    }

    /// Sets the cursor back into the block if it is not in it, or near its end.
    pub(super) fn steer(self) -> Result<(), PidError> {
        match read(CURSOR) {
            Some(cursor) if !self.is_due(cursor) => Ok(()),
            _ => write(CURSOR, self.first - 1),
        }
    }

    fn is_due(self, cursor: i32) -> bool {
        let last = self.end - (self.end - self.first) / LAST_PARTS;
        cursor < self.first - 1 || cursor >= last
    }
}

fn read(file: &str) -> Option<i32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn write(file: &'static str, value: i32) -> Result<(), PidError> {
    fs::write(file, value.to_string()).map_err(|source| PidError {
        file,
        value,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_stays_in_the_block() {
        let block = PidBlock::new(Pid(1000), Pid(1800));
        for (cursor, due) in [
            (0, true),
            (998, true),
            (999, false),
            (1699, false),
            (1700, true),
            (9000, true),
        ] {
            assert_eq!(block.is_due(cursor), due, "{cursor}");
        }
    }
}
