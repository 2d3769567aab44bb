//! What the broker holds of a line.

use std::time::Duration;

use crate::policy::{Judgement, Reason};
use crate::record::Row;
use crate::{AttemptId, ShimId};

/// The place in the queue: retries, then what is not known, then the longest; then who came
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    order: u64,
    number: u64,
}

impl Rank {
    pub(super) fn new(line: &Line) -> Rank {
        let order = match line.judgement.estimate {
            _ if line.row.attempts > 0 => 0,
            None => 1,
            Some(estimate) => u64::MAX - estimate.wall_us.min(u64::MAX - 2),
        };
        Rank {
            order,
            number: line.row.number,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Bound by nothing but make.
    Free,
    /// One of the processors for short and returned lines.
    Processor,
    /// One of the head's slots.
    Slot,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In the queue for nodes.
    Queued,
    /// In the queue for room here, after failures.
    Returned,
    /// Asked for at the head.
    Asked(AttemptId),
    /// Placed.
    OnNode(AttemptId, String),
    /// Executed by its shim.
    Here(Room),
}

pub(super) struct Line {
    pub(super) judgement: Judgement,
    pub(super) row: Row,
    pub(super) state: State,
    /// Told to wait.
    pub(super) is_held: bool,
    /// Nodes that have failed it.
    pub(super) failed_on: Vec<String>,
    /// It has got this signal while it waited: it is not begun again.
    pub(super) signal: Option<u8>,
    /// The shim's line that it is a part of.
    pub(super) inside: Option<ShimId>,
    /// What it starts here runs here as well and stands in no row.
    pub(super) keeps: bool,
    /// It has a row of its own.
    pub(super) is_recorded: bool,
    /// It has started lines for nodes.
    pub(super) gathers: bool,
}

impl Line {
    pub(super) fn attempt(&self) -> Option<AttemptId> {
        match &self.state {
            State::Asked(attempt) | State::OnNode(attempt, _) => Some(*attempt),
            State::Queued | State::Returned | State::Here(_) => None,
        }
    }

    /// It does nothing itself.
    pub(super) fn only_waits(&self) -> bool {
        !self.row.counts || !self.is_recorded || waits(&self.judgement.reason)
    }
}

/// Lines that start others and wait for them.
pub(super) fn waits(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::Recursive | Reason::Builder(_) | Reason::Gathers
    )
}

/// One launch.
pub(super) struct Attempt {
    /// Who waits for it; `None` when it was cancelled.
    pub(super) shim: Option<ShimId>,
    pub(super) node: Option<String>,
    pub(super) began: Duration,
    pub(super) expected_us: Option<u64>,
}
