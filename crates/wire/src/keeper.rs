//! Head ↔ keeper, over a Unix socket that only they can open. The keeper holds what has to
//! outlive the head daemon: the ghosts, each with the head's own record of it, and the deputies.

use serde::{Deserialize, Serialize};

use crate::id::{DeputyId, Pid, TaskId};
use crate::launch::Credential;

/// How the ghost treats its terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GhostMode {
    /// It reads its own standard input (a terminal) and passes it on by descriptor 4.
    pub pump: bool,
    /// It keeps that terminal raw while it runs.
    pub raw: bool,
}

/// How a ghost has to end, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GhostEnd {
    /// With this exit code.
    Exit(u8),
    /// By this signal.
    Signal(u8),
}

/// Head → keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Trace this process. One descriptor comes along: the keeper's end of the ghost's control
    /// socket.
    Seize {
        /// Its task.
        task: TaskId,
        /// Its PID.
        pid: Pid,
        /// Its real uid: checked after seizing, with the start time, before anything else (S3).
        uid: u32,
        /// Start time in clock ticks since boot, `proc_pid_stat(5)` field 22.
        start_time: u64,
        /// Its terminal.
        mode: GhostMode,
        /// The head's record, given back in [`FromKeeper::Inventory`].
        record: Vec<u8>,
    },
    /// Replaces the head's record.
    Record {
        /// Its task.
        task: TaskId,
        /// The new record.
        record: Vec<u8>,
    },
    /// The remote process is gone, confirmed: the ghost ends the same way and is reaped.
    Finish {
        /// Its task.
        task: TaskId,
        /// How.
        end: GhostEnd,
        /// Written by the ghost to its standard error first.
        text: Option<String>,
    },
    /// The remote process has stopped: so does the ghost.
    Stop {
        /// Its task.
        task: TaskId,
        /// By this signal.
        signal: u8,
    },
    /// The remote process runs again: so does the ghost.
    Continue {
        /// Its task.
        task: TaskId,
    },
    /// Start a deputy.
    StartDeputy {
        /// Its number.
        deputy: DeputyId,
        /// Whose rights it has.
        credential: Credential,
    },
    /// End every ghost with 125 and this text, every deputy, and the keeper.
    Shutdown {
        /// The reason.
        text: String,
    },
}

/// Keeper → head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// First messages: everything that it holds, in as many parts as it takes. Each deputy's
    /// channel follows by [`FromKeeper::Deputy`].
    Inventory {
        /// All ghosts.
        ghosts: Vec<GhostReport>,
        /// All deputies.
        deputies: Vec<(DeputyId, Credential)>,
        /// No further part comes.
        last: bool,
    },
    /// The ghost is traced and was what the head said it was.
    Seized {
        /// Its task.
        task: TaskId,
    },
    /// It can't be a ghost.
    SeizeFailed {
        /// Its task.
        task: TaskId,
        /// Why, and what to do.
        reason: String,
    },
    /// Somebody sent the ghost a signal; it was not delivered there.
    Signal {
        /// Its task.
        task: TaskId,
        /// The signal's number.
        signal: u8,
        /// The kernel sent it: the terminal, or its hang-up.
        from_kernel: bool,
        /// The ghost leads its process group.
        leads_group: bool,
    },
    /// The ghost stopped.
    Stopped {
        /// Its task.
        task: TaskId,
        /// By this signal.
        signal: u8,
    },
    /// The ghost was continued.
    Continued {
        /// Its task.
        task: TaskId,
    },
    /// The ghost died before [`ToKeeper::Finish`] (SIGKILL). It stays a zombie, its parent
    /// waiting, until then.
    Died {
        /// Its task.
        task: TaskId,
        /// By this signal or exit.
        end: GhostEnd,
    },
    /// The ghost is reaped, its PID is free.
    Gone {
        /// Its task.
        task: TaskId,
    },
    /// A deputy's channel: one descriptor comes along, a socket to it.
    Deputy {
        /// Its number.
        deputy: DeputyId,
    },
    /// A deputy ended.
    DeputyGone {
        /// Its number.
        deputy: DeputyId,
        /// How, in words.
        how: String,
    },
}

/// One ghost, told to a restarted head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GhostReport {
    /// Its task.
    pub task: TaskId,
    /// Its PID.
    pub pid: Pid,
    /// The head's record.
    pub record: Vec<u8>,
    /// Whether it has died, unasked.
    pub died: Option<GhostEnd>,
}
