//! DHCP packets (RFC 2131, RFC 2132), as far as a client needs them.
//!
//! What arrives was written by anybody on the wire: it is read with bounds checks only, and what
//! makes no sense is no packet.

use std::net::{Ipv4Addr, SocketAddrV4};

use wiglaf_wire::boot::Mac;

/// Up to the magic cookie (RFC 2131, section 2).
const HEADER_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Every client takes this much; some servers drop less than BOOTP's 300.
const LEAST_BYTES: usize = 300;
/// What we take, told by option 57: whatever fits in an Ethernet frame.
const MOST_BYTES: u16 = 1500;
/// Longest text of ours that is believed.
const MAX_TEXT: usize = 255;
const MAX_ROUTERS: usize = 8;
/// As many as programs ask (resolv.conf(5)).
const MAX_NAME_SERVERS: usize = 3;

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const BROADCAST_FLAG: u16 = 0x8000;

mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const NAME_SERVER: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const OVERLOAD: u8 = 52;
    pub(super) const MESSAGE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const WANTED: u8 = 55;
    pub(super) const MOST_BYTES: u8 = 57;
    pub(super) const RENEW: u8 = 58;
    pub(super) const REBIND: u8 = 59;
    pub(super) const CLASS: u8 = 60;
    /// Private use (RFC 3942): where our head is.
    pub(super) const WIGLAF: u8 = 224;
    pub(super) const END: u8 = 255;
}

/// What says to our boot service that we are no firmware.
const CLASS: &[u8] = b"wiglaf";

/// What a DHCP message is for (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
    Inform = 8,
}

/// Where our head is, as our boot service tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Where the head listens for agents.
    pub(crate) head: SocketAddrV4,
    /// Where images, scripts and boot logs are served.
    pub(crate) boot: Option<SocketAddrV4>,
    /// The cluster's identifier.
    pub(crate) id: String,
}

impl Cluster {
    /// `head=IP:PORT boot=IP:PORT cluster=ID`, in any order; other words are for later.
    pub(super) fn parse(text: &str) -> Option<Cluster> {
        let word = |key: &str| {
            text.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        Some(Cluster {
            head: word("head")?.parse().ok()?,
            boot: word("boot").and_then(|address| address.parse().ok()),
            id: word("cluster").unwrap_or_default().to_owned(),
        })
    }
}

/// A server's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) kind: Kind,
    pub(super) transaction: u32,
    pub(super) mac: Mac,
    /// Ours to be; unspecified from a server that only says what to boot.
    pub(super) address: Ipv4Addr,
    pub(super) server: Option<Ipv4Addr>,
    pub(super) mask: Option<Ipv4Addr>,
    pub(super) routers: Vec<Ipv4Addr>,
    pub(super) name_servers: Vec<Ipv4Addr>,
    pub(super) host_name: Option<String>,
    pub(super) lease_s: Option<u32>,
    pub(super) renew_s: Option<u32>,
    pub(super) rebind_s: Option<u32>,
    pub(super) cluster: Option<Cluster>,
}

impl Reply {
    /// `None`: not a DHCP server's message to an Ethernet client, or broken.
    pub(super) fn parse(bytes: &[u8]) -> Option<Reply> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
        if header[0] != BOOT_REPLY || header[1] != ETHERNET || header[2] != 6 {
            return None;
        }
        let options = Options::collect(header, rest.strip_prefix(&COOKIE)?)?;
        let kind = match options.get(option::MESSAGE)? {
            [2] => Kind::Offer,
            [5] => Kind::Ack,
            [6] => Kind::Nak,
            _ => return None,
        };
        let text = |code| {
            let bytes = options.get(code)?;
            let text = std::str::from_utf8(bytes.get(..bytes.len().min(MAX_TEXT))?).ok()?;
            Some(text.trim_end_matches('\0').to_owned())
        };
        let addresses = |code, most| {
            let all = options.get(code).unwrap_or_default().chunks_exact(4);
            all.take(most).filter_map(address).collect()
        };
        Some(Reply {
            kind,
            transaction: u32::from_be_bytes(header[4..8].try_into().ok()?),
            mac: Mac(header[28..34].try_into().ok()?),
            address: address(&header[16..20])?,
            server: options.get(option::SERVER).and_then(address),
            mask: options.get(option::MASK).and_then(address),
            routers: addresses(option::ROUTER, MAX_ROUTERS),
            name_servers: addresses(option::NAME_SERVER, MAX_NAME_SERVERS),
            host_name: text(option::HOST_NAME).filter(|name| is_host_name(name)),
            lease_s: options.get(option::LEASE).and_then(number),
            renew_s: options.get(option::RENEW).and_then(number),
            rebind_s: options.get(option::REBIND).and_then(number),
            cluster: text(option::WIGLAF).and_then(|text| Cluster::parse(&text)),
        })
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    number(bytes).map(Ipv4Addr::from_bits)
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Letters, digits, hyphens and dots, as RFC 1123 has it and the kernel takes it.
fn is_host_name(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(is_fine)
}

/// Each option's bytes; pieces of one are put together (RFC 3396).
struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    fn collect(header: &[u8], options: &[u8]) -> Option<Options> {
        let mut all = Options(Vec::new());
        all.read(options)?;
        // Where the option field is too small, the file's and the server's names hold more.
        let overload = all.get(option::OVERLOAD).unwrap_or(&[0]).first().copied()?;
        if overload & 1 != 0 {
            all.read(&header[108..236])?;
        }
        if overload & 2 != 0 {
            all.read(&header[44..108])?;
        }
        Some(all)
    }

    fn read(&mut self, mut bytes: &[u8]) -> Option<()> {
        while let Some((&code, rest)) = bytes.split_first() {
            match code {
                option::PAD => bytes = rest,
                option::END => break,
                _ => {
                    let (&length, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(length.into())?;
                    bytes = rest;
                    match self.0.iter_mut().find(|(known, _)| *known == code) {
                        Some((_, known)) => known.extend_from_slice(value),
                        None => self.0.push((code, value.to_vec())),
                    }
                }
            }
        }
        Some(())
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, value)| value.as_slice())
    }
}

/// A client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) transaction: u32,
    pub(super) mac: Mac,
    /// How long it has been asking.
    pub(super) seconds: u16,
    /// The address that it has and may keep (RFC 2131, section 4.3.2: renewing and rebinding).
    pub(super) own: Option<Ipv4Addr>,
    /// The address that it was offered, and by which server.
    pub(super) offered: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Question {
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[0] = BOOT_REQUEST;
        bytes[1] = ETHERNET;
        bytes[2] = 6;
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.seconds.to_be_bytes());
        match self.own {
            Some(own) => bytes[12..16].copy_from_slice(&own.octets()),
            // Nothing that is sent to an address arrives before we have it.
            None => bytes[10..12].copy_from_slice(&BROADCAST_FLAG.to_be_bytes()),
        }
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes.extend_from_slice(&COOKIE);
        let mut add = |code: u8, value: &[u8]| {
            bytes.push(code);
            bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(value);
        };
        add(option::MESSAGE, &[self.kind as u8]);
        add(option::MOST_BYTES, &MOST_BYTES.to_be_bytes());
        add(option::CLASS, CLASS);
        if let Some((address, server)) = self.offered {
            add(option::REQUESTED, &address.octets());
            add(option::SERVER, &server.octets());
        }
        let wanted = [
            option::MASK,
            option::ROUTER,
            option::NAME_SERVER,
            option::HOST_NAME,
            option::LEASE,
            option::RENEW,
            option::REBIND,
            option::WIGLAF,
        ];
        add(option::WANTED, &wanted);
        bytes.push(option::END);
        bytes.resize(bytes.len().max(LEAST_BYTES), option::PAD);
        bytes
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    /// A server's answer with these options.
    pub(in super::super) fn answer(
        transaction: u32,
        address: Ipv4Addr,
        options: &[(u8, &[u8])],
    ) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..3].copy_from_slice(&[BOOT_REPLY, ETHERNET, 6]);
        bytes[4..8].copy_from_slice(&transaction.to_be_bytes());
        bytes[16..20].copy_from_slice(&address.octets());
        bytes[28..34].copy_from_slice(&MAC.0);
        bytes.extend_from_slice(&COOKIE);
        bytes.extend(encoded(options));
        bytes
    }

    fn encoded(options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (code, value) in options {
            bytes.extend([*code, u8::try_from(value.len()).unwrap()]);
            bytes.extend_from_slice(value);
        }
        bytes.push(option::END);
        bytes
    }

    const OURS: &[u8] = b"head=10.7.0.1:7494 boot=10.7.0.1:7480 cluster=c1";

    #[test]
    fn an_offer_is_read() {
        let own = Ipv4Addr::new(10, 7, 0, 11);
        let bytes = answer(
            7,
            own,
            &[
                (53, &[2]),
                (54, &[10, 7, 0, 1]),
                (1, &[255, 255, 0, 0]),
                (3, &[10, 7, 0, 1, 10, 7, 0, 2]),
                (12, b"n1"),
                (51, &[255; 4]),
                (224, OURS),
            ],
        );
        let reply = Reply::parse(&bytes).unwrap();
        assert_eq!((reply.kind, reply.transaction), (Kind::Offer, 7));
        assert_eq!((reply.mac, reply.address), (MAC, own));
        assert_eq!(reply.mask, Some(Ipv4Addr::new(255, 255, 0, 0)));
        assert_eq!(reply.routers.len(), 2);
        assert_eq!(reply.host_name.as_deref(), Some("n1"));
        assert_eq!(reply.lease_s, Some(u32::MAX));
        let cluster = reply.cluster.unwrap();
        assert_eq!(cluster.head, "10.7.0.1:7494".parse().unwrap());
        assert_eq!(cluster.boot, Some("10.7.0.1:7480".parse().unwrap()));
        assert_eq!(cluster.id, "c1");
    }

    #[test]
    fn long_options_and_overloaded_fields_are_put_together() {
        let (first, second) = OURS.split_at(20);
        let options: [(u8, &[u8]); 3] = [(53, &[5]), (52, &[3]), (224, first)];
        let mut bytes = answer(1, Ipv4Addr::LOCALHOST, &options);
        let file = encoded(&[(224, second)]);
        bytes[108..108 + file.len()].copy_from_slice(&file);
        let name = encoded(&[(12, b"n9")]);
        bytes[44..44 + name.len()].copy_from_slice(&name);
        let reply = Reply::parse(&bytes).unwrap();
        assert_eq!(
            reply.cluster,
            Cluster::parse("head=10.7.0.1:7494 boot=10.7.0.1:7480 cluster=c1")
        );
        assert_eq!(reply.host_name.as_deref(), Some("n9"));
    }

    #[test]
    fn what_is_cut_short_or_for_others_is_no_packet() {
        let bytes = answer(1, Ipv4Addr::LOCALHOST, &[(53, &[2]), (51, &[0, 0, 0, 9])]);
        for length in 0..bytes.len() - 1 {
            if let Some(reply) = Reply::parse(&bytes[..length]) {
                // Whole options may be missing, half of one never counts.
                assert!(reply.lease_s.is_none_or(|seconds| seconds == 9));
            }
        }
        let mut request = bytes.clone();
        request[0] = BOOT_REQUEST;
        assert_eq!(Reply::parse(&request), None);
        let bad = answer(1, Ipv4Addr::LOCALHOST, &[(53, &[2]), (12, b"a b;reboot")]);
        assert_eq!(Reply::parse(&bad).unwrap().host_name, None);
    }

    #[test]
    fn a_question_says_who_asks() {
        let question = Question {
            kind: Kind::Request,
            transaction: 0x0102_0304,
            mac: MAC,
            seconds: 3,
            own: None,
            offered: Some((Ipv4Addr::new(10, 7, 0, 11), Ipv4Addr::new(10, 7, 0, 1))),
        };
        let bytes = question.emit();
        assert!(bytes.len() >= LEAST_BYTES);
        assert_eq!(bytes[4..12], [1, 2, 3, 4, 0, 3, 0x80, 0]);
        let options = Options::collect(&bytes[..HEADER_BYTES], &bytes[240..]).unwrap();
        assert_eq!(options.get(60), Some(CLASS));
        assert_eq!(options.get(50), Some(&[10, 7, 0, 11][..]));
        assert_eq!(options.get(54), Some(&[10, 7, 0, 1][..]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..800)) {
            let _ = Reply::parse(&bytes);
        }

        #[test]
        fn any_options_are_survived(
            tail in prop::collection::vec(any::<u8>(), 0..600),
            names in prop::collection::vec(any::<u8>(), 192),
        ) {
            let mut bytes = answer(1, Ipv4Addr::LOCALHOST, &[(53, &[2]), (52, &[3])]);
            bytes.pop();
            bytes[44..236].copy_from_slice(&names);
            bytes.extend(tail);
            if let Some(reply) = Reply::parse(&bytes) {
                prop_assert!(reply.routers.len() <= MAX_ROUTERS);
            }
        }
    }
}
