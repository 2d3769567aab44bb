//! What members of the cluster prove themselves by.

use std::fmt;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::TrustError;

/// A member's certificate and key.
#[derive(Clone)]
pub struct NodeIdentity {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// PKCS #8. A secret.
    pub key: Vec<u8>,
    /// The CA's certificate, DER.
    pub authority: CertificateDer<'static>,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").finish_non_exhaustive()
    }
}

impl NodeIdentity {
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.authority.clone()]
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// An agent's key, before it has a certificate.
#[derive(Debug)]
pub struct AgentIdentity {
    key: KeyPair,
}

impl AgentIdentity {
    /// A fresh key, in memory only.
    ///
    /// # Errors
    /// No randomness.
    pub fn create() -> Result<AgentIdentity, TrustError> {
        Ok(AgentIdentity {
            key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        })
    }

    /// What [`Authority::certify`](super::Authority::certify) takes.
    pub fn public_point(&self) -> Vec<u8> {
        self.key.der_bytes().to_vec()
    }

    /// With the certificate that the head sent.
    pub fn certified(&self, certificate: Vec<u8>, authority: Vec<u8>) -> NodeIdentity {
        NodeIdentity {
            certificate: certificate.into(),
            key: self.key.serialize_der(),
            authority: authority.into(),
        }
    }
}
