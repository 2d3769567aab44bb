//! The head's file system on a node: read-only for now, right within a second.
//!
//! [`export`] is the head's end and runs in a deputy; [`mount`] is the node's. Neither knows how
//! questions travel, what a task is, or which credential a deputy has.

#![forbid(unsafe_code)]

pub mod export;
mod fuse;
pub mod mount;
mod routes;
mod table;

pub use export::{Export, ExportError};
pub use mount::{Answer, Ask, View, ViewError, ViewMount, check_device};
