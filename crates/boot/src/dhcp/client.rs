//! What a client is, from what it says about itself.

use super::options::code;
use super::packet::Packet;
use crate::card::Card;

const PXE_CLASS: &[u8] = b"PXEClient";
const HTTP_CLASS: &[u8] = b"HTTPClient";
/// Our agents' class.
pub(super) const WIGLAF_CLASS: &[u8] = b"wiglaf";
const IPXE_USER_CLASS: &[u8] = b"iPXE";
/// Where the architecture's digits are in `PXEClient:Arch:00007:UNDI:003016`.
const ARCHITECTURE_MARK: &[u8] = b":Arch:";
const ARCHITECTURE_DIGITS: usize = 5;
/// Option 97 is a type and 16 bytes; type 0 is the only one (RFC 4578, section 2.3).
const UUID_TYPE: u8 = 0;
/// Client identifiers beyond this are compared by their first bytes: 2 more than RFC 8415's DUIDs.
const MAX_IDENTIFIER: usize = 130;

/// A machine's processor and firmware, as far as boot programs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Bios,
    UefiIa32,
    UefiX64,
    UefiArm32,
    UefiArm64,
    Other,
}

/// How a machine's firmware fetches its boot program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    Tftp,
    Http,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// BOOTP, of which nothing else is known.
    Bootp,
    /// An operating system: it wants an address, nothing else.
    System,
    /// Firmware that wants a boot program.
    Firmware(Fetch, Architecture),
    /// iPXE: it wants a script.
    Ipxe,
    /// Our agent as a machine's first process.
    Agent,
}

impl Kind {
    /// How far a machine has come when this runs; greater is later.
    pub(super) fn rank(self) -> u8 {
        match self {
            Kind::Bootp | Kind::Firmware(..) => 0,
            Kind::Ipxe => 1,
            Kind::Agent | Kind::System => 2,
        }
    }
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) kind: Kind,
    /// In our words.
    pub(super) words: &'static str,
    /// Its machine's UUID.
    pub(super) uuid: Option<[u8; 16]>,
    /// What it calls itself to servers.
    pub(super) identifier: Option<Vec<u8>>,
    /// Its network card, if it is iPXE and says it.
    pub(super) card: Option<Card>,
}

impl Client {
    pub(super) fn of(packet: &Packet) -> Client {
        let class = packet.options.get(code::CLASS).unwrap_or_default();
        let kind = kind_of(packet, class);
        Client {
            kind,
            words: words_for(kind, class),
            uuid: uuid_of(packet),
            identifier: packet
                .options
                .get(code::CLIENT)
                .filter(|identifier| !identifier.is_empty())
                .map(|identifier| identifier[..identifier.len().min(MAX_IDENTIFIER)].to_vec()),
            card: packet.options.get(code::IPXE).and_then(Card::in_options),
        }
    }
}

fn kind_of(packet: &Packet, class: &[u8]) -> Kind {
    let options = &packet.options;
    if options.get(code::IPXE).is_some() || has_user_class(packet, IPXE_USER_CLASS) {
        return Kind::Ipxe;
    }
    if options.get(code::MESSAGE_TYPE).is_none() {
        return Kind::Bootp;
    }
    if class == WIGLAF_CLASS {
        return Kind::Agent;
    }
    if class.starts_with(HTTP_CLASS) {
        return Kind::Firmware(Fetch::Http, architecture_of(packet, class));
    }
    if class.starts_with(PXE_CLASS) {
        return Kind::Firmware(Fetch::Tftp, architecture_of(packet, class));
    }
    Kind::System
}

/// iPXE sends the word as it is; RFC 3004 wants a length before each.
fn has_user_class(packet: &Packet, word: &[u8]) -> bool {
    let Some(mut field) = packet.options.get(code::USER_CLASS) else {
        return false;
    };
    if field == word {
        return true;
    }
    while let Some((&length, rest)) = field.split_first() {
        let Some((class, rest)) = rest.split_at_checked(usize::from(length)) else {
            return false;
        };
        if class == word {
            return true;
        }
        field = rest;
    }
    false
}

/// From option 93, of which the first that we know counts (RFC 5970, section 3.3), else from
/// the class.
fn architecture_of(packet: &Packet, class: &[u8]) -> Architecture {
    let told = packet.options.get(code::ARCHITECTURE).unwrap_or_default();
    let told = told
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mark = ARCHITECTURE_MARK.len();
    let digits = class
        .windows(mark + ARCHITECTURE_DIGITS)
        .find(|window| window.starts_with(ARCHITECTURE_MARK))
        .and_then(|window| str::from_utf8(&window[mark..]).ok())
        .and_then(|digits| digits.parse().ok());
    told.chain(digits)
        .map(architecture)
        .find(|architecture| *architecture != Architecture::Other)
        .unwrap_or(Architecture::Other)
}

/// By IANA's numbers. 9 was meant for byte code, and is what some 64-bit firmware says.
fn architecture(number: u16) -> Architecture {
    match number {
        0 => Architecture::Bios,
        6 | 15 => Architecture::UefiIa32,
        7 | 9 | 16 => Architecture::UefiX64,
        10 | 18 => Architecture::UefiArm32,
        11 | 19 => Architecture::UefiArm64,
        _ => Architecture::Other,
    }
}

fn words_for(kind: Kind, class: &[u8]) -> &'static str {
    match kind {
        Kind::Bootp => "BOOTP",
        Kind::Ipxe => "iPXE",
        Kind::Agent => "wiglaf",
        Kind::Firmware(Fetch::Tftp, architecture) => match architecture {
            Architecture::Bios => "PXE BIOS",
            Architecture::UefiIa32 => "PXE UEFI i386",
            Architecture::UefiX64 => "PXE UEFI x86_64",
            Architecture::UefiArm32 => "PXE UEFI arm",
            Architecture::UefiArm64 => "PXE UEFI arm64",
            Architecture::Other => "PXE",
        },
        Kind::Firmware(Fetch::Http, architecture) => match architecture {
            Architecture::UefiIa32 => "HTTP UEFI i386",
            Architecture::UefiX64 => "HTTP UEFI x86_64",
            Architecture::UefiArm32 => "HTTP UEFI arm",
            Architecture::UefiArm64 => "HTTP UEFI arm64",
            Architecture::Bios | Architecture::Other => "HTTP",
        },
        Kind::System => {
            const SYSTEMS: [(&[u8], &str); 4] = [
                (b"udhcp", "Linux (udhcp)"),
                (b"dhcpcd", "Linux (dhcpcd)"),
                (b"MSFT", "Windows"),
                (b"android-dhcp", "Android"),
            ];
            let known = SYSTEMS.iter().find(|(prefix, _)| class.starts_with(prefix));
            known.map_or("DHCP", |(_, words)| words)
        }
    }
}

/// Firmware that has no UUID sends zeros or ones.
fn uuid_of(packet: &Packet) -> Option<[u8; 16]> {
    let (&UUID_TYPE, uuid) = packet.options.get(code::UUID)?.split_first()? else {
        return None;
    };
    let uuid: [u8; 16] = uuid.try_into().ok()?;
    (uuid != [0; 16] && uuid != [u8::MAX; 16]).then_some(uuid)
}
