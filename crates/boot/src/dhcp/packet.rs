//! A packet of BOOTP (RFC 951) or DHCP (RFC 2131), read and written.
//!
//! Written here rather than taken from `dhcproto` 0.15: that draws in `hickory-proto` with an
//! internationalised name resolver, 55 crates in all, for two options that we don't use; and
//! what is in this file is what stands between anybody on the wire and us.

use std::net::Ipv4Addr;

use wiglaf_wire::boot::Mac;

use super::options::Options;

/// Everything before the options' cookie.
pub const HEADER_BYTES: usize = 236;
/// BOOTP's size: relays and firmware drop what is smaller (RFC 1542, section 2.1).
pub const MIN_BYTES: usize = 300;
/// No Ethernet frame holds more; a packet of more bytes is not looked at.
pub const MAX_BYTES: usize = 1_500;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const ETHERNET: u8 = 1;
const MAC_BYTES: u8 = 6;
const BROADCAST_FLAG: u16 = 0x8000;
const SERVER_NAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..HEADER_BYTES;
/// In option 52: `file` holds options.
const FILE_IS_OPTIONS: u8 = 1;
/// In option 52: `sname` holds options.
const SERVER_NAME_IS_OPTIONS: u8 = 2;

/// Why bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Too few for a header, or more than a frame holds.
    #[error("{0} bytes are no packet of BOOTP or DHCP")]
    Size(usize),
    /// Neither asked nor answered.
    #[error("operation {0} is neither a request nor a reply")]
    Operation(u8),
    /// Hardware other than Ethernet.
    #[error("hardware of type {0} with addresses of {1} bytes is not Ethernet")]
    Hardware(u8, u8),
    /// An option goes beyond its field.
    #[error("option {0} is cut off")]
    Option(u8),
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A client.
    Request,
    /// A server.
    Reply,
}

/// A packet, with the names of RFC 2131's fields in the comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// `op`.
    pub operation: Operation,
    /// `hops`.
    pub hops: u8,
    /// `xid`.
    pub transaction: u32,
    /// `secs`.
    pub seconds: u16,
    /// The one bit of `flags` that means something.
    pub broadcast: bool,
    /// `ciaddr`: the client has it and answers there.
    pub client: Ipv4Addr,
    /// `yiaddr`.
    pub your: Ipv4Addr,
    /// `siaddr`.
    pub next_server: Ipv4Addr,
    /// `giaddr`.
    pub relay: Ipv4Addr,
    /// `chaddr`.
    pub hardware: Mac,
    /// `sname`, without its zeros.
    pub server_name: Vec<u8>,
    /// `file`, without its zeros.
    pub file: Vec<u8>,
    /// The options, from wherever they were.
    pub options: Options,
}

impl Packet {
    /// An empty one.
    pub fn new(operation: Operation, transaction: u32, hardware: Mac) -> Packet {
        Packet {
            operation,
            hops: 0,
            transaction,
            seconds: 0,
            broadcast: false,
            client: Ipv4Addr::UNSPECIFIED,
            your: Ipv4Addr::UNSPECIFIED,
            next_server: Ipv4Addr::UNSPECIFIED,
            relay: Ipv4Addr::UNSPECIFIED,
            hardware,
            server_name: Vec::new(),
            file: Vec::new(),
            options: Options::default(),
        }
    }

    /// Reads one.
    pub fn parse(bytes: &[u8]) -> Result<Packet, PacketError> {
        let size = PacketError::Size(bytes.len());
        if bytes.len() > MAX_BYTES {
            return Err(size);
        }
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(size)?;
        let &[op, hardware_type, hardware_length, hops, ..] = header else {
            return Err(size);
        };
        let operation = match op {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(PacketError::Operation(op)),
        };
        if (hardware_type, hardware_length) != (ETHERNET, MAC_BYTES) {
            return Err(PacketError::Hardware(hardware_type, hardware_length));
        }
        let mut options = Options::default();
        let (mut server_name, mut file) = (&header[SERVER_NAME], &header[FILE]);
        // BOOTP's vendors had cookies of their own: theirs are none of our options.
        if let Some(field) = rest.strip_prefix(&COOKIE) {
            options.read(field)?;
            let overload = options.take_overload();
            if overload & FILE_IS_OPTIONS != 0 {
                options.read(file)?;
                file = &[];
            }
            if overload & SERVER_NAME_IS_OPTIONS != 0 {
                options.read(server_name)?;
                server_name = &[];
            }
            options.take_overload();
        }
        Ok(Packet {
            operation,
            hops,
            transaction: u32::from_be_bytes(array(header, 4)),
            seconds: u16::from_be_bytes(array(header, 8)),
            broadcast: u16::from_be_bytes(array(header, 10)) & BROADCAST_FLAG != 0,
            client: Ipv4Addr::from(array::<4>(header, 12)),
            your: Ipv4Addr::from(array::<4>(header, 16)),
            next_server: Ipv4Addr::from(array::<4>(header, 20)),
            relay: Ipv4Addr::from(array::<4>(header, 24)),
            hardware: Mac(array(header, 28)),
            server_name: until_zero(server_name),
            file: until_zero(file),
            options,
        })
    }

    /// Writes it, in at most `limit` bytes: options that don't fit are left out, the least
    /// needed first.
    pub fn emit(&self, limit: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(MIN_BYTES);
        out.push(match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        });
        out.extend([ETHERNET, MAC_BYTES, self.hops]);
        out.extend(self.transaction.to_be_bytes());
        out.extend(self.seconds.to_be_bytes());
        let flags = if self.broadcast { BROADCAST_FLAG } else { 0 };
        out.extend(flags.to_be_bytes());
        for address in [self.client, self.your, self.next_server, self.relay] {
            out.extend(address.octets());
        }
        out.extend(self.hardware.0);
        out.resize(SERVER_NAME.start, 0);
        put(&mut out, &self.server_name, SERVER_NAME.end);
        put(&mut out, &self.file, FILE.end);
        out.extend(COOKIE);
        self.options
            .write(&mut out, limit.saturating_sub(HEADER_BYTES + COOKIE.len()));
        if out.len() < MIN_BYTES {
            out.resize(MIN_BYTES, 0);
        }
        out
    }
}

/// The bytes from `at` on, of a slice whose length was checked.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn until_zero(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|byte| *byte == 0);
    field[..end.unwrap_or(field.len())].to_vec()
}

/// Fills a field with as much as it holds.
fn put(out: &mut Vec<u8>, value: &[u8], end: usize) {
    let room = end - out.len();
    out.extend_from_slice(&value[..value.len().min(room)]);
    out.resize(end, 0);
}
