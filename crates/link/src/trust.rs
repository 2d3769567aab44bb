//! The cluster's certificate authority, the certificates of its members, and join tokens.
//!
//! Names in certificates carry the role: `head.wiglaf`, `n7.node.wiglaf`, `d12.deputy.wiglaf`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use wiglaf_wire::id::{DeputyId, NodeId};

pub use rcgen::KeyPair;

const HEAD_NAME: &str = "head.wiglaf";
const NODE_SUFFIX: &str = ".node.wiglaf";
const DEPUTY_SUFFIX: &str = ".deputy.wiglaf";
const TOKEN_PREFIX: &str = "wiglaf1";
/// Length of an uncompressed point of P-256 (SEC 1, 2.3.3).
const P256_POINT_BYTES: usize = 65;
/// Random bytes in a token.
const TOKEN_SECRET_BYTES: usize = 16;

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
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.authority.clone()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
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

    /// What [`Authority::certify`] takes.
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

/// Why a text is no token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: it should read {TOKEN_PREFIX}-<64 hex digits>-<32 hex digits>; \
     `wiglaf node token` on the head prints one"
)]
pub struct TokenError;

/// Lets a machine join: which CA its head must have, and the secret that the head knows the hash
/// of.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA's certificate.
    pub authority: [u8; 32],
    /// The secret.
    pub secret: [u8; TOKEN_SECRET_BYTES],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").finish_non_exhaustive()
    }
}

impl JoinToken {
    /// A fresh one.
    ///
    /// # Errors
    /// No randomness.
    pub fn create(authority: [u8; 32]) -> Result<JoinToken, rustix::io::Errno> {
        let mut secret = [0; TOKEN_SECRET_BYTES];
        let mut filled = 0;
        while filled < secret.len() {
            filled += rustix::rand::getrandom(
                &mut secret[filled..],
                rustix::rand::GetRandomFlags::empty(),
            )?;
        }
        Ok(JoinToken { authority, secret })
    }

    /// What the head stores: it never needs the secret itself again.
    pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
        sha256(secret)
    }

    /// The text that a person carries to the machine. A secret.
    pub fn reveal(&self) -> String {
        format!(
            "{TOKEN_PREFIX}-{}-{}",
            hex(&self.authority),
            hex(&self.secret)
        )
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(TOKEN_PREFIX) {
            return Err(TokenError);
        }
        let authority = parts.next().and_then(unhex).ok_or(TokenError)?;
        let secret = parts.next().and_then(unhex).ok_or(TokenError)?;
        if parts.next().is_some() {
            Err(TokenError)
        } else {
            Ok(JoinToken { authority, secret })
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = suite
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(bytes))
        .expect("this suite is of TLS 1.3");
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TlsLink;
    use rustix::net::{AddressFamily, SocketAddrV4, SocketType};
    use std::net::Ipv4Addr;
    use std::os::fd::OwnedFd;
    use wiglaf_wire::frame::Frame;

    fn tcp_pair() -> (OwnedFd, OwnedFd) {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialled = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::connect(&dialled, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).unwrap();
        (dialled, listener.accept().unwrap().0.into())
    }

    type End = TlsLink<String, String>;

    fn exchange(client: &mut End, server: &mut End) -> Result<String, crate::LinkError> {
        client.queue(&"hello".to_owned())?;
        for _ in 0..1000 {
            client.flush()?;
            server.flush()?;
            server.receive()?;
            client.receive()?;
            if let Some(Frame::Message(text)) = server.next_frame()? {
                return Ok(text);
            }
        }
        panic!("no message crossed");
    }

    #[test]
    fn a_token_lets_a_machine_join_and_its_certificate_says_who_it_is() {
        let ca = Authority::create("test").unwrap();
        let ca = Authority::load(ca.certificate().to_vec(), ca.key().to_vec()).unwrap();
        let token = JoinToken::create(ca.fingerprint()).unwrap();
        let token: JoinToken = token.reveal().parse().unwrap();
        let head = server_config(&ca.issue(Role::Head).unwrap(), true).unwrap();

        let (a, b) = tcp_pair();
        let config = joining_config(&token).unwrap();
        let mut client = End::client(a, config, server_name(Role::Head)).unwrap();
        let mut server = End::server(b, head.clone()).unwrap();
        assert_eq!(exchange(&mut client, &mut server).unwrap(), "hello");
        assert!(server.peer_certificates().is_none());

        let agent = AgentIdentity::create().unwrap();
        let certificate = ca
            .certify(Role::Node(NodeId(7)), &agent.public_point())
            .unwrap();
        let identity = agent.certified(certificate.to_vec(), ca.certificate().to_vec());
        let (a, b) = tcp_pair();
        let config = client_config(&identity).unwrap();
        let mut client = End::client(a, config, server_name(Role::Head)).unwrap();
        let mut server = End::server(b, head).unwrap();
        assert_eq!(exchange(&mut client, &mut server).unwrap(), "hello");
        let shown = &server.peer_certificates().unwrap()[0];
        assert_eq!(Role::of_certificate(shown), Some(Role::Node(NodeId(7))));
    }

    #[test]
    fn another_clusters_head_or_agent_is_refused() {
        let ours = Authority::create("ours").unwrap();
        let theirs = Authority::create("theirs").unwrap();
        let token = JoinToken::create(ours.fingerprint()).unwrap();
        let head = server_config(&theirs.issue(Role::Head).unwrap(), true).unwrap();
        let (a, b) = tcp_pair();
        let mut client =
            End::client(a, joining_config(&token).unwrap(), server_name(Role::Head)).unwrap();
        let mut server = End::server(b, head).unwrap();
        assert!(exchange(&mut client, &mut server).is_err());

        let head = server_config(&ours.issue(Role::Head).unwrap(), true).unwrap();
        let mut stranger = theirs.issue(Role::Node(NodeId(1))).unwrap();
        stranger.authority = ours.certificate().clone();
        let (a, b) = tcp_pair();
        let mut client = End::client(
            a,
            client_config(&stranger).unwrap(),
            server_name(Role::Head),
        )
        .unwrap();
        let mut server = End::server(b, head).unwrap();
        assert!(exchange(&mut client, &mut server).is_err());
    }

    #[test]
    fn a_node_is_not_taken_for_the_head() {
        let ca = Authority::create("test").unwrap();
        let node = ca.issue(Role::Node(NodeId(1))).unwrap();
        let impostor = server_config(&node, true).unwrap();
        let (a, b) = tcp_pair();
        let config = client_config(&ca.issue(Role::Node(NodeId(2))).unwrap()).unwrap();
        let mut client = End::client(a, config, server_name(Role::Head)).unwrap();
        let mut server = End::server(b, impostor).unwrap();
        assert!(exchange(&mut client, &mut server).is_err());
    }

    #[test]
    fn tokens_that_are_none_are_refused() {
        for text in ["", "wiglaf1", "wiglaf1-00-00", "wiglaf1-é-00", "x-1-2-3"] {
            assert_eq!(text.parse::<JoinToken>(), Err(TokenError));
        }
    }
}
