#![forbid(unsafe_code)]
//! What has two ends and concerns processes: the ghost and its keeper, the deputy, the relay of
//! standard streams.
//!
//! The keeper knows ghosts and deputies, not nodes or placement; what the head wants remembered
//! for a ghost is an opaque record to it.

pub mod deputy;
pub mod keeper;
pub mod relay;
