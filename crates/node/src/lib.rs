#![forbid(unsafe_code)]
//! A node: the agent that runs tasks for the head, and virtual nodes on the head itself.

pub mod agent;
mod disk;
pub mod init;
mod join;
pub mod rack;
pub mod root;
