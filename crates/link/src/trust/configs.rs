//! Whom TLS believes: what each side of a connection asks of the other.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use super::{JoinToken, NodeIdentity, TrustError, sha256};

fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    // AES-128 first: both ends are ours, and stdio is bulk data.
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(Arc::new(roots))
}

/// For the side that is dialled: the head (which also lets peers without a certificate say
/// [`wiglaf_wire::agent::FromAgent::Join`]) and the deputies (which do not).
///
/// # Errors
/// The identity is damaged.
pub fn server_config(
    identity: &NodeIdentity,
    allow_unauthenticated: bool,
) -> Result<Arc<ServerConfig>, TrustError> {
    let mut verifier =
        WebPkiClientVerifier::builder_with_provider(roots(&identity.authority)?, provider());
    if allow_unauthenticated {
        verifier = verifier.allow_unauthenticated();
    }
    let verifier = verifier
        .build()
        .map_err(|error| TrustError::Authority(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For an agent that has a certificate.
///
/// # Errors
/// The identity is damaged.
pub fn client_config(identity: &NodeIdentity) -> Result<Arc<ClientConfig>, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&identity.authority)?)
        .with_client_auth_cert(identity.chain(), identity.private_key())?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// For an agent that has only a token: the head must show the CA that the token pins.
///
/// # Errors
/// TLS can't be set up.
pub fn joining_config(token: &JoinToken) -> Result<Arc<ClientConfig>, TrustError> {
    pinning_config(token.authority)
}

/// For an agent that knows only the SHA-256 of the CA's certificate, which the head must show.
///
/// # Errors
/// TLS can't be set up.
pub fn pinning_config(fingerprint: [u8; 32]) -> Result<Arc<ClientConfig>, TrustError> {
    let verifier = PinnedAuthority {
        fingerprint,
        algorithms: provider().signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts a head whose chain holds the CA with the pinned fingerprint and verifies under it.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.fingerprint)
            .ok_or_else(|| {
                rustls::Error::General(
                    "this head is not of the cluster that this machine is to join".into(),
                )
            })?;
        let roots = roots(&authority.clone().into_owned())
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
