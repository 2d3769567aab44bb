//! Answers IPv6 router solicitations by "no router here" (RFC 4861, section 6).
//!
//! iPXE asks for a router before it asks for an IPv4 address, and waits 16 s for one.

use std::net::Ipv6Addr;

/// The type of a router solicitation.
pub const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// No router has touched it: the sender is on this wire.
const UNTOUCHED: u8 = 255;
const HEADER_BYTES: usize = 8;
const SOURCE_LINK_ADDRESS: u8 = 1;

/// To whom the answer to a message goes, if it is a valid solicitation (RFC 4861, section 6.1.1;
/// the checksum is the kernel's business).
pub fn asker(message: &[u8], from: Ipv6Addr, hop_limit: Option<u8>) -> Option<Ipv6Addr> {
    let (header, mut options) = message.split_at_checked(HEADER_BYTES)?;
    if header[0] != SOLICITATION || header[1] != 0 || hop_limit != Some(UNTOUCHED) {
        return None;
    }
    let is_nobody = from.is_unspecified();
    if !is_nobody && !from.is_unicast_link_local() {
        return None;
    }
    while let [kind, length, ..] = *options {
        if length == 0 || (is_nobody && kind == SOURCE_LINK_ADDRESS) {
            return None;
        }
        options = options.get(usize::from(length) * 8..)?;
    }
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    options
        .is_empty()
        .then_some(if is_nobody { all_nodes } else { from })
}

/// Lifetime 0: not a router; no prefix: no address to be had. The kernel adds the checksum, and
/// the link-local source address.
pub fn advertisement() -> [u8; 16] {
    let mut message = [0; 16];
    message[0] = ADVERTISEMENT;
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASKER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
    /// As iPXE sends it, with its Ethernet address.
    const IPXE: [u8; 16] = [
        133, 0, 0x7b, 0x2c, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56,
    ];

    #[test]
    fn the_asker_is_answered() {
        assert_eq!(asker(&IPXE, ASKER, Some(255)), Some(ASKER));
        let everybody = "ff02::1".parse().unwrap();
        let nobody = Ipv6Addr::UNSPECIFIED;
        assert_eq!(asker(&IPXE[..8], nobody, Some(255)), Some(everybody));
    }

    #[test]
    fn what_did_not_start_on_this_wire_is_not_answered() {
        assert_eq!(asker(&IPXE, ASKER, Some(254)), None);
        assert_eq!(asker(&IPXE, ASKER, None), None);
        let far = "2001:db8::1".parse().unwrap();
        assert_eq!(asker(&IPXE, far, Some(255)), None);
    }

    #[test]
    fn malformed_solicitations_are_not_answered() {
        assert_eq!(asker(&IPXE[..7], ASKER, Some(255)), None);
        assert_eq!(asker(&IPXE[..12], ASKER, Some(255)), None);
        assert_eq!(asker(&IPXE[..9], ASKER, Some(255)), None);
        // An address of the link without one of its own.
        assert_eq!(asker(&IPXE, Ipv6Addr::UNSPECIFIED, Some(255)), None);
        let mut endless = IPXE;
        endless[9] = 0;
        assert_eq!(asker(&endless, ASKER, Some(255)), None);
        let mut advertised = IPXE;
        advertised[0] = 134;
        assert_eq!(asker(&advertised, ASKER, Some(255)), None);
    }

    #[test]
    fn the_answer_makes_nobody_a_router() {
        let message = advertisement();
        assert_eq!(message[0], 134);
        assert!(message[1..].iter().all(|byte| *byte == 0));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = asker(&bytes, ASKER, Some(255));
            if bytes.len() > 2 {
                bytes[0] = SOLICITATION;
                bytes[1] = 0;
                let _ = asker(&bytes, ASKER, Some(255));
            }
        }
    }
}
