//! The relay of standard streams between a deputy and the nodes' agents.
//!
//! Both ends are made of the same parts: a [`flow`] for what is agreed on the wire, a port for a
//! descriptor, and streams that join the two. It does not know what runs behind the descriptors,
//! nor who may attach to what.

pub mod buffers;
pub(crate) mod carrier;
pub mod flow;
pub mod node;
pub(crate) mod port;
pub(crate) mod streams;
