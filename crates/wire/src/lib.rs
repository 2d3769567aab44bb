#![forbid(unsafe_code)]
//! Identifiers, every message and the codec. No I/O, no clock.
//!
//! One file is one conversation; `docs/protocol.md` names sender and receiver of each message.

pub mod agent;
pub mod boot;
pub mod client;
pub mod deputy;
pub mod disk;
pub mod frame;
pub mod id;
pub mod keeper;
pub mod launch;
pub mod marks;
pub mod names;
pub mod nodeset;
pub mod status;
pub mod stream;
pub mod view;

/// Version of every conversation in this crate. Both ends must be equal: nodes fetch the head's
/// binary rather than speak an older protocol.
pub const PROTOCOL_VERSION: u32 = 3;
