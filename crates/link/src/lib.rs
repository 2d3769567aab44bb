#![forbid(unsafe_code)]
//! How the processes of a cluster reach each other: an epoll loop, framed Unix sockets that
//! carry descriptors, framed TLS over TCP with compression, and the certificates that TLS runs on.
//!
//! Everything here is non-blocking and knows nothing of what the messages mean. Why there is no
//! async runtime: `docs/adr/0002-epoll-loops.md`.

mod approval;
mod channel;
mod inbox;
mod poll;
mod private;
mod tls;
mod trust;
mod zip;

pub use approval::{approval_code, public_key_digest};
pub use channel::{Channel, Descriptors};
pub use poll::{Interest, Poll, Ready, Token};
pub use private::{PrivateListenError, listen_privately};
pub use tls::{TlsLink, Traffic, peek_server_name};
pub use trust::{
    AgentIdentity, Authority, JoinToken, KeyPair, NodeIdentity, Role, TokenError, TrustError,
    client_config, joining_config, pinning_config, server_config, server_name,
};

use wiglaf_wire::frame::FrameError;

/// Most bytes that wait to be written to one peer. A peer that reads nothing is cut off rather
/// than remembered without end (S1).
pub const MAX_QUEUED_BYTES: usize = 64 << 20;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed it.
    #[error("the connection was closed by the other side")]
    Closed,
    /// The operating system's word.
    #[error("the connection failed: {0}")]
    Io(#[from] rustix::io::Errno),
    /// The peer broke the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// TLS refused it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer sends descriptors that no message asks for, or fewer than a message needs.
    #[error("a message came with the wrong descriptors")]
    Descriptors,
    /// The peer does not read.
    #[error("the other side has stopped reading: {MAX_QUEUED_BYTES} bytes wait for it")]
    NotReading,
}
