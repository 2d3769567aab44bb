//! How a task ended, and the exit codes that say so.

use serde::{Deserialize, Serialize};

use crate::id::Pid;

/// The cluster failed, not the command (see `docs/semantics.md`, exit codes).
pub const EXIT_CLUSTER_FAILED: u8 = 125;
/// The command was found but could not be executed, as shells have it.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// The command was not found, as shells have it.
pub const EXIT_NOT_FOUND: u8 = 127;
/// `--timeout` ran out, as `timeout(1)` has it.
pub const EXIT_TIMED_OUT: u8 = 124;
/// Added to a signal's number when it has to be told as an exit code.
pub const EXIT_SIGNAL_BASE: u8 = 128;

/// How a task's main process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It called `exit` with this code.
    Exited(u8),
    /// This signal ended it.
    Signaled(u8),
    /// It never ran, or the cluster lost it: the exit code that says so and the sentence that
    /// tells the user why.
    Failed {
        /// 124 to 127.
        code: u8,
        /// A full sentence that names the node or the file, and what to do.
        reason: String,
    },
}

impl Status {
    /// The cluster failed this task.
    pub fn cluster_failed(reason: impl Into<String>) -> Status {
        Status::Failed {
            code: EXIT_CLUSTER_FAILED,
            reason: reason.into(),
        }
    }

    /// The status as one exit code, as a shell tells it in `$?`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Status::Exited(code) | Status::Failed { code, .. } => *code,
            Status::Signaled(signal) => EXIT_SIGNAL_BASE.saturating_add(*signal),
        }
    }
}

/// What the ghost of a followed task is given to write if the task itself has exited with
/// [`EXIT_CLUSTER_FAILED`]: who can't hear the head any more has nothing else to go by.
pub fn own_failure(pid: Pid) -> String {
    format!("{} exited with {EXIT_CLUSTER_FAILED} of itself", pid.0)
}

/// What a task used, from the kernel's accounting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode.
    pub user_us: u64,
    /// CPU time in the kernel.
    pub system_us: u64,
    /// The largest resident set.
    pub max_rss_kib: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_as_shells_tell_it() {
        assert_eq!(Status::Signaled(9).exit_code(), 137);
        assert_eq!(Status::Signaled(2).exit_code(), 130);
        assert_eq!(Status::cluster_failed("n1 died").exit_code(), 125);
    }
}
