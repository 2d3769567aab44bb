//! What an agent is told at its start, and how it ends.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use rustix::io::Errno;
use wiglaf_link::{JoinToken, NodeIdentity, TrustError};
use wiglaf_wire::agent::PowerAction;
use wiglaf_wire::boot::Mac;

use super::super::view::NodeViewError;
use crate::join::JoinError;
use crate::root::Files;

/// Why an agent has ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// It was asked to leave.
    Left,
    /// The head wants this of the machine.
    Power(PowerAction),
}

/// Who an agent is to the head.
#[derive(Debug)]
pub enum Trust {
    /// It has to ask for a certificate with this.
    Token(JoinToken),
    /// It has one.
    Identity(NodeIdentity),
    /// Its machine booted from the network and is known by its Ethernet address. The agent keeps
    /// the machine's clock and may have it start anew.
    Booted {
        /// SHA-256 of the CA's certificate.
        authority: [u8; 32],
        /// The address that it booted by.
        mac: Mac,
        /// Where its boot service is.
        boot: Option<SocketAddrV4>,
    },
}

/// What an agent is to be.
#[derive(Debug)]
pub struct AgentConfig {
    /// Where the head listens.
    pub head: SocketAddr,
    /// Who it is.
    pub trust: Trust,
    /// The name that it would like.
    pub name: Option<String>,
    /// What its tasks see.
    pub files: Files,
    /// Where it may keep what it reads of the head's files, on a disk: an existing directory.
    pub keep: Option<PathBuf>,
    /// Its address on the cluster's network, as text.
    pub address: String,
    /// Whether it lacks root's rights, so that supplementary groups can't be set.
    pub rootless: bool,
    /// Whether it is on the head's own machine: what goes there by memory is not compressed.
    pub is_virtual: bool,
}

/// Why an agent has ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It would kill processes that are not its own, and lose orphans.
    #[error("the agent has to be PID 1 of a PID namespace; it is process {0}")]
    NotInit(u32),
    /// It is no node.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The head sent it away.
    #[error("the head refuses this node: {0}")]
    Refused(String),
    /// Its certificate is of no use.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It can't see the head's files.
    #[error(transparent)]
    View(#[from] NodeViewError),
    /// The terminals of the task root can't be reached.
    #[error("can't open /dev/pts of the task root: {0}")]
    Terminals(#[source] Errno),
    /// There is no thread for it.
    #[error("can't start the agent's spawner: {0}")]
    Spawner(#[source] io::Error),
    /// There is no process for it.
    #[error("can't start the agent's watchdog: {0}")]
    Watchdog(#[source] Errno),
    /// There is no place to keep what it reads.
    #[error("can't keep anything in {}: {errno}", .name.display())]
    Keep {
        /// What was given for it.
        name: PathBuf,
        /// Why not.
        errno: Errno,
    },
    /// The loop itself.
    #[error("the agent's event loop: {0}")]
    Loop(#[from] Errno),
}
