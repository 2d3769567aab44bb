//! The head's file system on a node.
//!
//! [`export`] is the head's end and runs in a deputy, with [`watch`] to learn of changes;
//! [`session`] is the node's, pure, and [`mount`] carries it. Neither knows how questions travel,
//! what a task is, or which credential a deputy has.

#![forbid(unsafe_code)]

pub mod export;
pub mod mount;
pub mod session;
pub mod watch;

pub use export::{Export, ExportError};
pub use mount::{Outcome, ViewError, ViewMount, Witness, check_device};
pub use session::{Bounds, Missing, Statistics};
pub use wiglaf_fuse::{FILE_SYSTEM_TYPE, unmount};
