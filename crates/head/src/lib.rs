#![forbid(unsafe_code)]
//! The head daemon: the node table, the process table, placement and fencing, behind the sockets
//! that commands, agents, the keeper and the deputies talk to.
//!
//! [`reactor`] decides; everything else here carries messages to it and effects from it.

pub mod caller;
pub mod config;
pub mod daemon;
pub mod jobs;
pub mod machines;
pub mod node_table;
pub mod placement;
pub mod reactor;
pub mod store;
