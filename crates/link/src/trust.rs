//! The cluster's certificate authority, the certificates of its members, and join tokens.
//!
//! Names in certificates carry the role: `head.wiglaf`, `n7.node.wiglaf`, `d12.deputy.wiglaf`.

mod authority;
mod configs;
mod identity;
#[cfg(test)]
mod tests;
mod token;

pub use rcgen::KeyPair;

pub use authority::Authority;
pub use configs::{client_config, joining_config, pinning_config, server_config};
pub use identity::{AgentIdentity, NodeIdentity};
pub use token::{JoinToken, TokenError};

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use wiglaf_wire::id::{DeputyId, NodeId};

const HEAD_NAME: &str = "head.wiglaf";
const NODE_SUFFIX: &str = ".node.wiglaf";
const DEPUTY_SUFFIX: &str = ".deputy.wiglaf";

/// Why a certificate can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// From the certificate library.
    #[error("a certificate can't be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// From TLS.
    #[error("a certificate can't be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer's key is not a point of P-256.
    #[error("a public key of {0} bytes is not one of curve P-256")]
    BadKey(usize),
    /// A verifier can't be built from the CA.
    #[error("the cluster's CA can't be used: {0}")]
    Authority(String),
}

/// Who a certificate's owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The head daemon.
    Head,
    /// A node's agent.
    Node(NodeId),
    /// A deputy.
    Deputy(DeputyId),
}

impl Role {
    /// The name in its certificate.
    pub fn certificate_name(self) -> String {
        match self {
            Role::Head => HEAD_NAME.to_owned(),
            Role::Node(id) => format!("n{id}{NODE_SUFFIX}"),
            Role::Deputy(id) => format!("d{id}{DEPUTY_SUFFIX}"),
        }
    }

    /// The role behind a name.
    pub fn from_name(name: &str) -> Option<Role> {
        if name == HEAD_NAME {
            return Some(Role::Head);
        }
        let number = |prefix, suffix| name.strip_prefix(prefix)?.strip_suffix(suffix);
        if let Some(id) = number('n', NODE_SUFFIX) {
            return Some(Role::Node(NodeId(id.parse().ok()?)));
        }
        Some(Role::Deputy(DeputyId(
            number('d', DEPUTY_SUFFIX)?.parse().ok()?,
        )))
    }

    /// The role in a certificate that TLS has already verified.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Role> {
        let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
        parsed.valid_dns_names().find_map(Role::from_name)
    }
}

/// The name to dial a role by.
pub fn server_name(role: Role) -> ServerName<'static> {
    ServerName::try_from(role.certificate_name()).expect("names made by Role are DNS names")
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = suite
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(bytes))
        .expect("this suite is of TLS 1.3");
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}
