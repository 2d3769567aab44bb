//! What a person has written of machines that nobody has adopted yet: who of them is, and how
//! they are called.

use std::fmt;

use serde::{Deserialize, Serialize};
use wiglaf_wire::boot::Mac;
use wiglaf_wire::nodeset::is_node_name;

/// Stands for the next number in a pattern of names.
const NUMBER: &str = "%d";
/// Bytes of an Ethernet address.
const MAC_BYTES: usize = 6;

/// How often somebody has to compare a machine's code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approve {
    /// When it joins for the first time.
    #[default]
    Once,
    /// Whenever it has booted.
    Always,
}

/// Machines that are adopted by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which.
    pub mac: MacPattern,
    /// How their nodes are called; the next free names if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NamePattern>,
    /// What they boot, if not what all do: an image's ID or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// An Ethernet address, or the beginning of some: `52:54:00:*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacPattern {
    first: Vec<u8>,
}

/// What a node is called, with `%d` for the next free number: `gpu%d`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

/// It is no such pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPattern {
    /// Not one of Ethernet addresses.
    #[error("{0:?} is neither an Ethernet address nor the beginning of some, such as 52:54:00:*")]
    Mac(String),
    /// Not one of names.
    #[error("{0:?} is no name of nodes with %d for their number, such as gpu%d")]
    Name(String),
}

impl MacPattern {
    /// Whether this machine is meant.
    pub fn matches(&self, mac: Mac) -> bool {
        mac.0.starts_with(&self.first)
    }
}

impl TryFrom<String> for MacPattern {
    type Error = NotAPattern;

    fn try_from(text: String) -> Result<MacPattern, NotAPattern> {
        if let Ok(mac) = text.parse::<Mac>() {
            return Ok(MacPattern {
                first: mac.0.to_vec(),
            });
        }
        let failed = || NotAPattern::Mac(text.clone());
        let start = text.strip_suffix('*').ok_or_else(failed)?;
        let start = start.strip_suffix([':', '-']).unwrap_or(start);
        let byte = |digits: &str| {
            let is_one = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let parsed = u8::from_str_radix(digits, 16).ok();
            parsed.filter(|_| is_one).ok_or_else(failed)
        };
        let first: Vec<u8> = match start {
            "" => Vec::new(),
            start => start
                .split([':', '-'])
                .map(byte)
                .collect::<Result<_, _>>()?,
        };
        if first.len() >= MAC_BYTES {
            return Err(failed());
        }
        Ok(MacPattern { first })
    }
}

impl From<MacPattern> for String {
    fn from(pattern: MacPattern) -> String {
        let bytes: Vec<_> = pattern
            .first
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let start = bytes.join(":");
        match bytes.len() {
            0 => "*".into(),
            MAC_BYTES => start,
            _ => format!("{start}:*"),
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = NotAPattern;

    fn try_from(text: String) -> Result<NamePattern, NotAPattern> {
        let is_one = text.matches('%').count() == 1;
        if is_one && text.contains(NUMBER) && is_node_name(&text.replace(NUMBER, "1")) {
            return Ok(NamePattern(text));
        }
        Err(NotAPattern::Name(text))
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> String {
        pattern.0
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl NamePattern {
    /// The name with this number.
    pub fn name(&self, number: u32) -> String {
        self.0.replace(NUMBER, &number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_matched_from_their_beginning() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0xab, 0xff]);
        for (text, matches) in [
            ("52:54:00:*", true),
            ("52-54-00-*", true),
            ("*", true),
            ("52:54:00:12:ab:ff", true),
            ("52:54:01:*", false),
            ("52:54:00:12:ab:fe", false),
        ] {
            let pattern = MacPattern::try_from(text.to_owned()).unwrap();
            assert_eq!(pattern.matches(mac), matches, "{text}");
            let again = MacPattern::try_from(String::from(pattern.clone())).unwrap();
            assert_eq!(again, pattern, "{text}");
        }
        for text in ["", "52:54", "5*", "52:+1:*", "zz:*", "52:54:00:12:ab:ff:*"] {
            assert!(MacPattern::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn names_have_one_number() {
        let pattern = NamePattern::try_from("gpu%d".to_owned()).unwrap();
        assert_eq!(pattern.name(12), "gpu12");
        for text in ["gpu", "%d%d", "gpu %d", "gpu%s", "%", ""] {
            assert!(NamePattern::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
