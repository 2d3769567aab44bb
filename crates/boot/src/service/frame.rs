//! UDP in IPv4, made by hand: for machines that have no address yet, and for ourselves while we
//! pretend to be one.

use std::net::{Ipv4Addr, SocketAddrV4};

const IP_HEADER_BYTES: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const UDP: u8 = 17;
const TIME_TO_LIVE: u8 = 64;

/// A packet from its IPv4 header on. `None`: the payload is too long for one.
pub(super) fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_bytes = u16::try_from(UDP_HEADER_BYTES + payload.len()).ok()?;
    let all_bytes = u16::try_from(IP_HEADER_BYTES)
        .ok()?
        .checked_add(udp_bytes)?;
    let mut packet = Vec::with_capacity(all_bytes.into());
    packet.extend([0x45, 0]);
    packet.extend(all_bytes.to_be_bytes());
    // No identification, and not to be fragmented (RFC 6864).
    packet.extend([0, 0, 0x40, 0, TIME_TO_LIVE, UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_bytes.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let pseudo = [0, UDP];
    let sum = checksum(&[
        &packet[12..IP_HEADER_BYTES],
        &pseudo,
        &udp_bytes.to_be_bytes(),
        &packet[IP_HEADER_BYTES..],
    ]);
    // 0 says that there is none.
    let sum = if sum == 0 { u16::MAX } else { sum };
    let at = IP_HEADER_BYTES + 6;
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Some(packet)
}

/// Who sent a UDP packet, and what. Checksums are not looked at: between virtual machines they are
/// often not there.
pub(super) fn payload(packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let header = packet.get(..IP_HEADER_BYTES)?;
    let header_bytes = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || header_bytes < IP_HEADER_BYTES || header[9] != UDP {
        return None;
    }
    let from = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let udp = packet.get(header_bytes..)?;
    let length = u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]);
    Some((from, udp.get(UDP_HEADER_BYTES..usize::from(length))?))
}

/// RFC 1071. All parts but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words
        .map(|word| match word {
            [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
            [high] => u64::from(*high) << 8,
            _ => 0,
        })
        .sum();
    let mut sum = sum;
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksums_are_right() {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), 67);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 68);
        let packet = udp(from, to, b"odd").unwrap();
        // Over what has its checksum in it the sum is 0.
        assert_eq!(checksum(&[&packet[..20]]), 0);
        let length = [0, 17, 0, 11];
        assert_eq!(checksum(&[&packet[12..20], &length, &packet[20..]]), 0);
        // The example of RFC 1071, section 3.
        assert_eq!(
            checksum(&[&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
        assert_eq!(payload(&packet), Some((*from.ip(), b"odd".as_slice())));
        assert_eq!(udp(from, to, &[0; 65_536]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = payload(&bytes);
            let _ = payload(&[&[0x45], bytes.as_slice()].concat());
        }
    }
}
