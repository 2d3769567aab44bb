//! Advisory locks, as a node asks for them and is told of them.

use serde::{Deserialize, Serialize};

/// Kinds of advisory locks, which do not see each other on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockStyle {
    /// `fcntl(2)`: of a process or, with `F_OFD_*`, an open file; of a range.
    Record,
    /// `flock(2)`.
    Whole,
}

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// What.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` is the end of the file wherever that will be.
    pub end: u64,
    /// Of whom it is, where that is known: a PID on the head or in the cluster; 0 is nobody's.
    pub pid: u32,
}

/// What a lock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Keeps writers off.
    Read,
    /// Keeps everybody else off.
    Write,
    /// Is no lock.
    Unlock,
}
