//! Join tokens: the text that a person carries to a machine.

use std::fmt;
use std::str::FromStr;

use super::sha256;

const TOKEN_PREFIX: &str = "wiglaf1";
/// Random bytes in a token.
const TOKEN_SECRET_BYTES: usize = 16;

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
