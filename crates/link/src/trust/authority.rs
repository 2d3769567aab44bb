//! The cluster's certificate authority, and the certificates that it makes.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use ring::hkdf::{HKDF_SHA256, Salt};
use rustls::pki_types::CertificateDer;

use super::{NodeIdentity, Role, TrustError, sha256};

/// Length of an uncompressed point of P-256 (SEC 1, 2.3.3).
const P256_POINT_BYTES: usize = 65;

/// The cluster's certificate authority.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    key_der: Vec<u8>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new one for the cluster with this identifier.
    ///
    /// # Errors
    /// No randomness.
    pub fn create(cluster: &str) -> Result<Authority, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("wiglaf cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key)?.der().clone();
        Authority::load(certificate.to_vec(), key.serialize_der())
    }

    /// From its certificate (DER) and key (PKCS #8).
    ///
    /// # Errors
    /// They are damaged.
    pub fn load(certificate: Vec<u8>, key: Vec<u8>) -> Result<Authority, TrustError> {
        let pair = KeyPair::try_from(key.as_slice())?;
        let certificate = CertificateDer::from(certificate);
        // All that an issuer needs of its own certificate is its name, which holds what `create`
        // put there; it is read back from the certificate so that both always agree.
        let name = common_name(&certificate)
            .ok_or_else(|| TrustError::Authority("its certificate has no name".into()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        Ok(Authority {
            certificate,
            issuer: Issuer::new(params, pair),
            key_der: key,
        })
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its key, PKCS #8. A secret.
    pub fn key(&self) -> &[u8] {
        &self.key_der
    }

    /// SHA-256 of its certificate: what a token pins.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// The secret by which a node seals what it keeps of the head's files: always the same for a
    /// name, and of no use to whoever has another's (HKDF of RFC 5869).
    pub fn keeping_key(&self, node: &str) -> [u8; 32] {
        let extracted = Salt::new(HKDF_SHA256, b"wiglaf kept").extract(&self.key_der);
        let mut key = [0; 32];
        let info = [node.as_bytes()];
        let expanded = extracted.expand(&info, HKDF_SHA256);
        expanded
            .and_then(|expanded| expanded.fill(&mut key))
            .unwrap_or_else(|_| unreachable!("32 bytes are one block of SHA-256"));
        key
    }

    /// A certificate with a fresh key, for a process of the head's own machine.
    ///
    /// # Errors
    /// No randomness.
    pub fn issue(&self, role: Role) -> Result<NodeIdentity, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = member_params(role)?
            .signed_by(&key, &self.issuer)?
            .der()
            .clone();
        Ok(NodeIdentity {
            certificate,
            key: key.serialize_der(),
            authority: self.certificate.clone(),
        })
    }

    /// A certificate for a key that the peer made and keeps.
    ///
    /// # Errors
    /// `point` is no uncompressed P-256 point.
    pub fn certify(&self, role: Role, point: &[u8]) -> Result<CertificateDer<'static>, TrustError> {
        if point.len() != P256_POINT_BYTES || point[0] != 4 {
            return Err(TrustError::BadKey(point.len()));
        }
        let key = PeerKey(point.to_vec());
        Ok(member_params(role)?
            .signed_by(&key, &self.issuer)?
            .der()
            .clone())
    }
}

struct PeerKey(Vec<u8>);

impl PublicKeyData for PeerKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn member_params(role: Role) -> Result<CertificateParams, TrustError> {
    let name = role.certificate_name();
    let mut params = CertificateParams::new(vec![name.clone()])?;
    params.distinguished_name = named(&name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

/// The common name of a certificate that [`Authority::create`] made: its UTF8String follows the
/// attribute's object identifier 2.5.4.3 (X.520), and is shorter than 128 bytes.
fn common_name(certificate: &[u8]) -> Option<String> {
    const COMMON_NAME_OID: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    const UTF8_STRING: u8 = 0x0c;
    let at = certificate
        .windows(5)
        .position(|window| window == COMMON_NAME_OID)?
        + 5;
    let (&tag, rest) = certificate.get(at..)?.split_first()?;
    let (&length, rest) = rest.split_first()?;
    if tag != UTF8_STRING || length >= 0x80 {
        return None;
    }
    String::from_utf8(rest.get(..usize::from(length))?.to_vec()).ok()
}
