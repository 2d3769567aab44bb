//! The code by which a person sees that the machine in front of them is the one that asks the
//! head to join.

use crate::trust::sha256;

/// Eight digits can be compared at a glance and typed without a mistake.
const CODES: u64 = 100_000_000;

/// The code of a machine with this Ethernet address that asks the CA with this fingerprint to
/// certify this key, for example `1234-5678`. Both sides compute it: whoever stands between them
/// or asks in the machine's name has another key, and so another code.
pub fn approval_code(fingerprint: &[u8; 32], point: &[u8], mac: [u8; 6]) -> String {
    let mut bytes = Vec::with_capacity(fingerprint.len() + point.len() + mac.len());
    bytes.extend_from_slice(fingerprint);
    bytes.extend_from_slice(point);
    bytes.extend_from_slice(&mac);
    let hash = sha256(&bytes);
    let number = hash
        .iter()
        .take(8)
        .fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let digits = number % CODES;
    format!("{:04}-{:04}", digits / 10_000, digits % 10_000)
}

/// What a public key is remembered by.
pub fn public_key_digest(point: &[u8]) -> [u8; 32] {
    sha256(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_depends_on_all_that_it_stands_for() {
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let code = approval_code(&[1; 32], &[4; 65], mac);
        // What an older agent shows has to be what a newer head computes.
        assert_eq!(code, "4036-9265");
        assert_ne!(approval_code(&[2; 32], &[4; 65], mac), code);
        assert_ne!(approval_code(&[1; 32], &[5; 65], mac), code);
        assert_ne!(approval_code(&[1; 32], &[4; 65], [0; 6]), code);
    }
}
