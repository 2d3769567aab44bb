//! DHCP's options (RFC 2132), each as a whole however it was cut into pieces (RFC 3396).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::packet::PacketError;

/// Codes of options that are read or written here.
pub mod code {
    /// Filler, without a length.
    pub const PAD: u8 = 0;
    /// The network's mask.
    pub const SUBNET_MASK: u8 = 1;
    /// The way out.
    pub const ROUTER: u8 = 3;
    /// Who resolves names.
    pub const NAME_SERVER: u8 = 6;
    /// What the client should call itself.
    pub const HOST_NAME: u8 = 12;
    /// The network's broadcast address.
    pub const BROADCAST: u8 = 28;
    /// Vendor's information: PXE's own options are inside.
    pub const VENDOR: u8 = 43;
    /// The address that a client asks for.
    pub const REQUESTED: u8 = 50;
    /// How long an address is given for.
    pub const LEASE_TIME: u8 = 51;
    /// Which of `file` and `sname` hold options, too.
    pub const OVERLOAD: u8 = 52;
    /// Without it a packet is BOOTP.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Whose offer it is.
    pub const SERVER: u8 = 54;
    /// What a client wants to be told.
    pub const WANTED: u8 = 55;
    /// Why it was refused, in words.
    pub const MESSAGE: u8 = 56;
    /// The largest message that a client takes.
    pub const MAX_SIZE: u8 = 57;
    /// When to renew.
    pub const RENEW: u8 = 58;
    /// When to ask anybody.
    pub const REBIND: u8 = 59;
    /// What a client is: `PXEClient…`, `HTTPClient…`, `wiglaf`.
    pub const CLASS: u8 = 60;
    /// What a client calls itself to servers.
    pub const CLIENT: u8 = 61;
    /// The name of the server that has the boot file.
    pub const TFTP_SERVER: u8 = 66;
    /// The boot file, where `file` can't hold it.
    pub const BOOT_FILE: u8 = 67;
    /// What a client's user says it is (RFC 3004).
    pub const USER_CLASS: u8 = 77;
    /// What a relay added, for itself (RFC 3046).
    pub const RELAY: u8 = 82;
    /// A client's architectures (RFC 4578).
    pub const ARCHITECTURE: u8 = 93;
    /// A client machine's UUID (RFC 4578).
    pub const UUID: u8 = 97;
    /// iPXE's own options are inside.
    pub const IPXE: u8 = 175;
    /// For our agents: where the head is (private use, RFC 3942).
    pub const WIGLAF: u8 = 224;
    /// Nothing follows.
    pub const END: u8 = 255;
}

/// The most bytes that fit one piece of an option.
const MAX_PIECE: usize = 255;
/// An option's code and length.
const PIECE_HEADER: usize = 2;

/// A packet's options by their codes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Replaces an option. Filler, end and overload are matters of form, and never held.
    pub fn set(&mut self, code: u8, value: impl Into<Vec<u8>>) {
        if !matches!(code, code::PAD | code::END | code::OVERLOAD) {
            self.0.insert(code, value.into());
        }
    }

    /// An option's bytes.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// An option that is one byte.
    pub fn byte(&self, code: u8) -> Option<u8> {
        match self.get(code)? {
            [byte] => Some(*byte),
            _ => None,
        }
    }

    /// An option that is two bytes.
    pub fn short(&self, code: u8) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    /// An option that is an address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    }

    /// Reads one field of options into these. Ends at the end's mark or the field's end: some
    /// clients forget the mark.
    pub(super) fn read(&mut self, mut field: &[u8]) -> Result<(), PacketError> {
        while let Some((&code, rest)) = field.split_first() {
            field = match code {
                code::PAD => rest,
                code::END => break,
                _ => {
                    let cut = PacketError::Option(code);
                    let (&length, rest) = rest.split_first().ok_or(cut)?;
                    let (value, rest) = rest.split_at_checked(usize::from(length)).ok_or(cut)?;
                    self.0.entry(code).or_default().extend_from_slice(value);
                    rest
                }
            };
        }
        Ok(())
    }

    /// Takes out how `file` and `sname` are used: 1 and 2 are bits.
    pub(super) fn take_overload(&mut self) -> u8 {
        match self.0.remove(&code::OVERLOAD).as_deref() {
            Some([bits]) => *bits,
            _ => 0,
        }
    }

    /// Writes all that fit `room` with the end's mark. What a client can't do without comes
    /// first, the relay's own option has to be last (RFC 3046, section 2.1) and keeps its place.
    pub(super) fn write(&self, out: &mut Vec<u8>, room: usize) {
        const FIRST: [u8; 7] = [
            code::MESSAGE_TYPE,
            code::SERVER,
            code::LEASE_TIME,
            code::SUBNET_MASK,
            code::ROUTER,
            code::CLASS,
            code::WIGLAF,
        ];
        let limit = out.len() + room.saturating_sub(1);
        let relay = self.0.get(&code::RELAY);
        let kept = relay.map_or(0, |value| length_of(value));
        let kept = if out.len() + kept <= limit { kept } else { 0 };
        let rest = self.0.iter().filter(|(code, _)| !FIRST.contains(code));
        let ordered = FIRST
            .iter()
            .filter_map(|code| self.0.get_key_value(code))
            .chain(rest);
        for (&code, value) in ordered {
            if code != code::RELAY && out.len() + length_of(value) + kept <= limit {
                write_option(out, code, value);
            }
        }
        if let Some(value) = relay
            && kept > 0
        {
            write_option(out, code::RELAY, value);
        }
        out.push(code::END);
    }
}

fn length_of(value: &[u8]) -> usize {
    value.len() + PIECE_HEADER * value.len().div_ceil(MAX_PIECE).max(1)
}

fn write_option(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    if value.is_empty() {
        out.extend([code, 0]);
    }
    for piece in value.chunks(MAX_PIECE) {
        out.push(code);
        out.push(u8::try_from(piece.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(piece);
    }
}
