//! TFTP's packets (RFC 1350, section 5; options: RFC 2347).

/// Longest request: file name, mode and options. RFC 2347 allows 512.
const MAX_REQUEST_BYTES: usize = 512;
/// Longest error text that is sent.
const MAX_TEXT_BYTES: usize = 200;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// It wants to read a file.
    Read(Request),
    /// It wants to write one.
    Write,
    /// It has everything up to this block.
    Acknowledge(u16),
    /// It gives up, or never wanted more than the size.
    Error,
}

/// Wants a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Its name, as the client wrote it.
    pub name: String,
    /// `blksize`: bytes of a block.
    pub block_bytes: Option<u32>,
    /// `windowsize`: blocks that may be under way.
    pub window: Option<u32>,
    /// `timeout`: seconds after which something is sent again.
    pub timeout_s: Option<u32>,
    /// `tsize`: it wants to know the file's size.
    pub wants_size: bool,
}

/// It is not a packet that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a TFTP packet of a client")]
pub struct Wrong;

/// Why a request fails (RFC 1350, appendix).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// There is no such file.
    NotFound,
    /// Nobody writes here.
    NotAllowed,
    /// The packet makes no sense.
    Illegal,
}

/// Reads a packet.
///
/// # Errors
/// It is none.
pub fn parse(bytes: &[u8]) -> Result<Packet, Wrong> {
    let (kind, rest) = take_u16(bytes)?;
    match kind {
        READ => read_request(rest).map(Packet::Read),
        WRITE => Ok(Packet::Write),
        ACKNOWLEDGE => Ok(Packet::Acknowledge(take_u16(rest)?.0)),
        ERROR => Ok(Packet::Error),
        _ => Err(Wrong),
    }
}

fn read_request(bytes: &[u8]) -> Result<Request, Wrong> {
    if bytes.len() > MAX_REQUEST_BYTES {
        return Err(Wrong);
    }
    // Some ROMs pad their request, or forget the last zero byte.
    let mut words = bytes.split(|byte| *byte == 0).map(std::str::from_utf8);
    let mut word = || match words.next() {
        Some(Ok(word)) => Some(word),
        Some(Err(_)) | None => None,
    };
    let name = word().ok_or(Wrong)?;
    // Boot programs are served as they are, whatever the mode: nobody means to have their
    // bytes changed.
    let mode = word().ok_or(Wrong)?;
    let is_known = ["octet", "netascii"]
        .iter()
        .any(|known| mode.eq_ignore_ascii_case(known));
    if name.is_empty() || !is_known {
        return Err(Wrong);
    }
    let mut request = Request {
        name: name.to_owned(),
        ..Request::default()
    };
    while let (Some(option), Some(value)) = (word(), word()) {
        let number = value.parse().ok();
        match option.to_ascii_lowercase().as_str() {
            "blksize" => request.block_bytes = number,
            "windowsize" => request.window = number,
            "timeout" => request.timeout_s = number,
            "tsize" => request.wants_size = true,
            // Not answered, so not in force.
            _ => {}
        }
    }
    Ok(request)
}

fn take_u16(bytes: &[u8]) -> Result<(u16, &[u8]), Wrong> {
    match bytes {
        [high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
        _ => Err(Wrong),
    }
}

/// A piece of the file.
pub(super) fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(4 + bytes.len());
    packet.extend(DATA.to_be_bytes());
    packet.extend(block.to_be_bytes());
    packet.extend(bytes);
    packet
}

/// The options that are in force.
pub(super) fn options(options: &[(&str, u64)]) -> Vec<u8> {
    let mut packet = OPTIONS.to_be_bytes().to_vec();
    for (name, value) in options {
        packet.extend(name.as_bytes());
        packet.push(0);
        packet.extend(value.to_string().as_bytes());
        packet.push(0);
    }
    packet
}

/// Refuses.
pub fn error(code: Code, text: &str) -> Vec<u8> {
    let code: u16 = match code {
        Code::NotFound => 1,
        Code::NotAllowed => 2,
        Code::Illegal => 4,
    };
    let mut packet = ERROR.to_be_bytes().to_vec();
    packet.extend(code.to_be_bytes());
    packet.extend(text.bytes().take(MAX_TEXT_BYTES));
    packet.push(0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_of_real_clients() {
        // OVMF asks for the size first.
        let bytes = b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";
        let Ok(Packet::Read(request)) = parse(bytes) else {
            panic!("no request");
        };
        assert_eq!(request.name, "snponly.efi");
        assert_eq!(request.block_bytes, Some(1468));
        assert_eq!(request.window, Some(4));
        assert_eq!(request.timeout_s, None);
        assert!(request.wants_size);
        // Without options and in text mode, as tftp-hpa's client does at first.
        let Ok(Packet::Read(request)) = parse(b"\0\x01undionly.kpxe\0NetASCII\0") else {
            panic!("no request");
        };
        let plain = Request {
            name: "undionly.kpxe".to_owned(),
            ..Request::default()
        };
        assert_eq!(request, plain);
        let Ok(Packet::Read(request)) = parse(b"\0\x01a\0octet\0blksize\0many\0tsize\x000") else {
            panic!("no request");
        };
        assert_eq!(request.block_bytes, None);
        assert!(request.wants_size);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let long = [b"\0\x01".as_slice(), &[b'a'; 600], b"\0octet\0"].concat();
        for bytes in [
            b"".as_slice(),
            b"\0",
            b"\0\x01",
            b"\0\x01name",
            b"\0\x01name\0mail\0",
            b"\0\x01\0octet\0",
            b"\0\x01\xff\0octet\0",
            b"\0\x04\0",
            b"\0\x03\0\x01data",
            b"\0\x06",
            &long,
        ] {
            assert_eq!(parse(bytes), Err(Wrong), "{bytes:?}");
        }
        assert_eq!(parse(b"\0\x02x\0octet\0"), Ok(Packet::Write));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0_u8..8) {
            let _ = parse(&bytes);
            let _ = parse(&[&[0, kind], bytes.as_slice()].concat());
        }
    }
}
