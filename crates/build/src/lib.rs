#![forbid(unsafe_code)]
//! What a build's lines are, where each of them runs, and what came of it. Decisions only: no
//! socket, no clock, no `/proc`.
//!
//! A *call* is one start of a program that a shim stands for: mostly a shell with a recipe's line.
//! [`Broker`] takes calls and what becomes of them as [`Event`]s and the time, and answers with
//! [`Effect`]s. It asks `policy` for a judgement of each call, which asks `line` and `tool` what
//! the line does and [`Learned`] how long it took in earlier builds. What happened stands in the
//! [`Record`].

mod broker;
mod call;
mod learned;
mod line;
mod policy;
mod record;
mod tool;

pub use broker::{Broker, Effect, Event, Node, Progress, Settings};
pub use call::{Call, StdinKind};
pub use learned::Learned;
pub use record::{Chain, Place, Record, Report, Row, Share, Step};

use serde::{Deserialize, Serialize};

/// A shim that has called, by the number that the broker's shell gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShimId(pub u64);

/// One launch of a line on a node, by the number that the broker gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId(pub u64);
