//! The parts of a message that have to be understood (RFC 1035, section 4): the header, one
//! question, and what a question says of its asker (EDNS, RFC 6891). All names that are read are
//! those of questions, which nobody abbreviates: a pointer in one is refused, so that none is ever
//! followed.

use std::net::IpAddr;

use super::{LONG_BYTES, PLAIN_BYTES};

pub(super) const HEADER_BYTES: usize = 12;
/// With the lengths, and the root's (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 255;
const MAX_LABEL_BYTES: usize = 63;

pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_PTR: u16 = 12;
pub(super) const TYPE_AAAA: u16 = 28;
pub(super) const TYPE_ANY: u16 = 255;
const TYPE_OPT: u16 = 41;
const CLASS_INTERNET: u16 = 1;
const CLASS_ANY: u16 = 255;

const FLAG_RESPONSE: u16 = 1 << 15;
const FLAG_AUTHORITATIVE: u16 = 1 << 10;
const FLAG_TRUNCATED: u16 = 1 << 9;
const FLAG_RECURSION_DESIRED: u16 = 1 << 8;
const FLAG_RECURSION_AVAILABLE: u16 = 1 << 7;
const FLAG_CHECKING_DISABLED: u16 = 1 << 4;
const OPCODE: u16 = 0xf << 11;
const CODE: u16 = 0xf;

/// A pointer to the question's name, which is where every message has it.
const POINTER: [u8; 2] = [0xc0, 12];

/// How an answer begins (RFC 1035, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It is so.
    Fine = 0,
    /// The question can't be read.
    Format = 1,
    /// Nobody could be asked.
    Failure = 2,
    /// That kind of question is not answered.
    NotImplemented = 4,
    /// It is not answered.
    Refused = 5,
}

/// Why a message is no question that can be dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is not even one that could be answered, or an answer itself.
    #[error("no question")]
    Mute,
    /// It is answered with this code.
    #[error("{0:?}")]
    Answered(Code),
}

/// A question, and what its asker understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The asker's number.
    pub id: u16,
    /// Its flags.
    flags: u16,
    /// In small letters, without the last dot. Bytes that would be a dot or no letter, digit,
    /// hyphen or underscore make it a name that is nobody's here.
    pub name: Option<String>,
    /// What is asked.
    pub kind: u16,
    /// Whether it is about the Internet.
    pub is_internet: bool,
    /// Name, type and class, as they came.
    pub bytes: Vec<u8>,
    /// How long an answer over UDP may be.
    pub room: usize,
    has_edns: bool,
}

/// Reads a question.
///
/// # Errors
/// It is none that can be dealt with.
pub fn parse_question(message: &[u8]) -> Result<Question, Wrong> {
    let header = Header::of(message).ok_or(Wrong::Mute)?;
    if header.flags & FLAG_RESPONSE != 0 {
        // Never answered, or two servers could go on answering each other for ever.
        return Err(Wrong::Mute);
    }
    if header.flags & OPCODE != 0 {
        return Err(Wrong::Answered(Code::NotImplemented));
    }
    let format = Wrong::Answered(Code::Format);
    if header.questions != 1 || header.answers != 0 || header.authorities != 0 {
        return Err(format);
    }
    let section = Section::read(message).ok_or(format)?;
    let edns = edns(message.get(section.end..).unwrap_or_default());
    Ok(Question {
        id: header.id,
        flags: header.flags,
        name: section.name,
        kind: section.kind,
        is_internet: matches!(section.class, CLASS_INTERNET | CLASS_ANY),
        bytes: message[HEADER_BYTES..section.end].to_vec(),
        room: edns.map_or(PLAIN_BYTES, |room| room.clamp(PLAIN_BYTES, LONG_BYTES)),
        has_edns: edns.is_some(),
    })
}

/// Whether this is what a server says to a question with this number and these bytes.
pub fn is_answer_to(message: &[u8], id: u16, question: &[u8]) -> bool {
    let Some(header) = Header::of(message) else {
        return false;
    };
    let said = message.get(HEADER_BYTES..HEADER_BYTES + question.len());
    header.id == id
        && header.flags & FLAG_RESPONSE != 0
        && header.questions == 1
        // Some servers change letters. That 65 (HTTPS) is then the same as 97, which is no type,
        // does no harm.
        && said.is_some_and(|said| said.eq_ignore_ascii_case(question))
}

/// The code of an answer.
pub(super) fn code_of(message: &[u8]) -> Option<u16> {
    Header::of(message).map(|header| header.flags & CODE)
}

/// The same message with another number.
pub fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
    message
}

impl Question {
    /// An answer without anything but the code, and the question.
    pub fn refusal(&self, code: Code) -> Vec<u8> {
        let mut bytes = self.head(0, code as u16, 0);
        bytes.extend_from_slice(&self.bytes);
        self.end(bytes)
    }

    /// That the answer is too long for this way.
    pub fn truncated(&self) -> Vec<u8> {
        let mut bytes = self.head(FLAG_TRUNCATED, 0, 0);
        bytes.extend_from_slice(&self.bytes);
        self.end(bytes)
    }

    /// Addresses; of those only the ones that were asked for. None: there is such a name, but not
    /// that of it.
    pub fn addresses(&self, all: &[IpAddr], ttl_s: u32) -> Vec<u8> {
        let wanted = |address: &&IpAddr| match address {
            IpAddr::V4(_) => matches!(self.kind, TYPE_A | TYPE_ANY),
            IpAddr::V6(_) => matches!(self.kind, TYPE_AAAA | TYPE_ANY),
        };
        let records: Vec<_> = all.iter().filter(wanted).collect();
        let count = u16::try_from(records.len()).unwrap_or(0);
        let mut bytes = self.head(FLAG_AUTHORITATIVE, 0, count);
        bytes.extend_from_slice(&self.bytes);
        for address in records.into_iter().take(usize::from(count)) {
            match address {
                IpAddr::V4(address) => record(&mut bytes, TYPE_A, ttl_s, &address.octets()),
                IpAddr::V6(address) => record(&mut bytes, TYPE_AAAA, ttl_s, &address.octets()),
            }
        }
        self.end(bytes)
    }

    /// The name of an address. `None`: what is asked is not its name.
    pub fn name_of(&self, name: &str, ttl_s: u32) -> Option<Vec<u8>> {
        if !matches!(self.kind, TYPE_PTR | TYPE_ANY) {
            return Some(self.addresses(&[], ttl_s));
        }
        let mut data = Vec::new();
        for label in name.split('.') {
            let length = u8::try_from(label.len()).ok()?;
            if !(1..=MAX_LABEL_BYTES).contains(&label.len()) {
                return None;
            }
            data.push(length);
            data.extend_from_slice(label.as_bytes());
        }
        data.push(0);
        if data.len() > MAX_NAME_BYTES {
            return None;
        }
        let mut bytes = self.head(FLAG_AUTHORITATIVE, 0, 1);
        bytes.extend_from_slice(&self.bytes);
        record(&mut bytes, TYPE_PTR, ttl_s, &data);
        Some(self.end(bytes))
    }

    fn head(&self, flags: u16, code: u16, answers: u16) -> Vec<u8> {
        let kept = self.flags & (FLAG_RECURSION_DESIRED | FLAG_CHECKING_DISABLED);
        let flags = kept | FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | flags | code;
        let others = u16::from(self.has_edns);
        let words = [self.id, flags, 1, answers, 0, others];
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// Who speaks EDNS is answered so (RFC 6891, 6.1.1): the root's name, our room, nothing else.
    fn end(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if self.has_edns {
            bytes.push(0);
            bytes.extend_from_slice(&TYPE_OPT.to_be_bytes());
            let room = u16::try_from(LONG_BYTES).unwrap_or(u16::MAX);
            bytes.extend_from_slice(&room.to_be_bytes());
            bytes.extend_from_slice(&[0; 6]);
        }
        bytes
    }
}

/// What is answered to a message that can't be read: its number is all that is known.
pub(super) fn bare_refusal(message: &[u8], code: Code) -> Option<Vec<u8>> {
    let header = Header::of(message)?;
    let kept = header.flags & (OPCODE | FLAG_RECURSION_DESIRED);
    let flags = kept | FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | code as u16;
    let words = [header.id, flags, 0, 0, 0, 0];
    Some(words.iter().flat_map(|word| word.to_be_bytes()).collect())
}

fn record(bytes: &mut Vec<u8>, kind: u16, ttl_s: u32, data: &[u8]) {
    bytes.extend_from_slice(&POINTER);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&CLASS_INTERNET.to_be_bytes());
    bytes.extend_from_slice(&ttl_s.to_be_bytes());
    let length = u16::try_from(data.len()).unwrap_or(0);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&data[..usize::from(length)]);
}

struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
    authorities: u16,
}

impl Header {
    fn of(message: &[u8]) -> Option<Header> {
        let header = message.get(..HEADER_BYTES)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Header {
            id: word(0),
            flags: word(2),
            questions: word(4),
            answers: word(6),
            authorities: word(8),
        })
    }
}

/// The first question.
struct Section {
    name: Option<String>,
    kind: u16,
    class: u16,
    end: usize,
}

impl Section {
    fn read(message: &[u8]) -> Option<Section> {
        let mut name = String::new();
        let mut is_plain = true;
        let mut at = HEADER_BYTES;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            if length > MAX_LABEL_BYTES || at + length - HEADER_BYTES >= MAX_NAME_BYTES {
                return None;
            }
            let label = message.get(at..at + length)?;
            at += length;
            if !name.is_empty() {
                name.push('.');
            }
            for byte in label {
                is_plain &= byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                name.push(char::from(byte.to_ascii_lowercase()));
            }
        }
        let numbers = message.get(at..at + 4)?;
        Some(Section {
            name: is_plain.then_some(name),
            kind: u16::from_be_bytes([numbers[0], numbers[1]]),
            class: u16::from_be_bytes([numbers[2], numbers[3]]),
            end: at + 4,
        })
    }
}

/// How long an answer the asker takes, if it says so. Its record is the first of what follows the
/// question, or not seen: then the answer is short enough for anybody.
fn edns(rest: &[u8]) -> Option<usize> {
    let record = rest.get(..5)?;
    let is_it = record[0] == 0 && u16::from_be_bytes([record[1], record[2]]) == TYPE_OPT;
    is_it.then(|| usize::from(u16::from_be_bytes([record[3], record[4]])))
}
