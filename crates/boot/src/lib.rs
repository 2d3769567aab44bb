#![forbid(unsafe_code)]
//! Serves machines that start from the network.
//!
//! `card`, `dhcp`, `dns`, `tftp`, `http` and `router` are pure: packets in, packets out. `service`
//! is the process around them.

pub mod card;
pub mod dhcp;
pub mod dns;
pub mod http;
pub mod router;
pub mod script;
pub mod service;
pub mod tftp;
