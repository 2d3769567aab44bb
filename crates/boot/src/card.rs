//! What a machine's network card is, and what of an image's initramfs it needs.
//!
//! iPXE tells the card's numbers when it asks for an address. They come back in the address of its
//! script, so that nothing has to be remembered.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// iPXE's own option with its card: which bus, vendor and device.
const BUS_ID: u8 = 177;
const BUS_ID_BYTES: usize = 5;
const BUS_PCI: u8 = 1;
const PAD: u8 = 0;
const END: u8 = 255;

/// Larger lists are none of ours: one has some 25 kB.
pub const MAX_LIST_BYTES: u64 = 1 << 20;
/// Parts of one file.
const MAX_PARTS: usize = 64;

/// A network card by PCI's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Card {
    vendor: u16,
    device: u16,
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}-{:04x}", self.vendor, self.device)
    }
}

/// It is not two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("that is no network card such as 8086-100e")]
pub struct NotACard;

impl FromStr for Card {
    type Err = NotACard;

    fn from_str(text: &str) -> Result<Card, NotACard> {
        let (vendor, device) = text.split_once('-').ok_or(NotACard)?;
        Ok(Card {
            vendor: number(vendor).ok_or(NotACard)?,
            device: number(device).ok_or(NotACard)?,
        })
    }
}

fn number(text: &str) -> Option<u16> {
    let is_number = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| u16::from_str_radix(text, 16).ok())?
}

impl Card {
    /// From iPXE's own options. Nothing if the card is not PCI's.
    pub(crate) fn in_options(mut options: &[u8]) -> Option<Card> {
        while let Some((&code, rest)) = options.split_first() {
            options = match code {
                PAD => rest,
                END => return None,
                _ => {
                    let (&length, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(usize::from(length))?;
                    if code == BUS_ID {
                        return Card::of_bus_id(value);
                    }
                    rest
                }
            };
        }
        None
    }

    fn of_bus_id(value: &[u8]) -> Option<Card> {
        let [BUS_PCI, a, b, c, d] = *<&[u8; BUS_ID_BYTES]>::try_from(value).ok()? else {
            return None;
        };
        Some(Card {
            vendor: u16::from_be_bytes([a, b]),
            device: u16::from_be_bytes([c, d]),
        })
    }
}

/// Which files an image's initramfs gives, and for which cards. `wiglaf image build` writes it.
#[derive(Debug, Default)]
pub struct Cards {
    files: HashMap<String, Vec<Range<u64>>>,
    /// By vendor and device; no device: all of that vendor's.
    cards: HashMap<(u16, Option<u16>), String>,
}

impl Cards {
    /// Reads lines of `file NAME START-END…` and `card VENDOR-DEVICE NAME`. Nothing if it is
    /// damaged: the whole initramfs is for every machine.
    pub fn parse(text: &str) -> Option<Cards> {
        let mut list = Cards::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next()? {
                "file" => {
                    let name = words.next()?.to_owned();
                    let parts: Option<Vec<_>> = words.map(range).collect();
                    let parts = parts.filter(|parts| parts.len() <= MAX_PARTS)?;
                    list.files.insert(name, parts);
                }
                "card" => {
                    let (vendor, device) = words.next()?.split_once('-')?;
                    let device = match device {
                        "*" => None,
                        device => Some(number(device)?),
                    };
                    let name = words.next()?;
                    list.files.get(name)?;
                    list.cards
                        .insert((number(vendor)?, device), name.to_owned());
                }
                _ => return None,
            }
        }
        Some(list)
    }

    /// The file for this card.
    pub fn file_for(&self, card: Card) -> Option<&str> {
        let exactly = self.cards.get(&(card.vendor, Some(card.device)));
        let found = exactly.or_else(|| self.cards.get(&(card.vendor, None)));
        found.map(String::as_str)
    }

    /// What a file is of the whole initramfs, which has so many bytes.
    pub fn parts_of(&self, file: &str, whole: u64) -> Option<&[Range<u64>]> {
        let parts = self.files.get(file)?;
        let is_there = parts.iter().all(|part| part.end <= whole);
        is_there.then_some(parts)
    }
}

fn range(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "file initramfs-0a 0-100 120-130\nfile initramfs-0b 0-100\n\
                        card 8086-100e initramfs-0a\ncard 1af4-* initramfs-0b\n\
                        card 1af4-1000 initramfs-0a\n";

    fn card(text: &str) -> Card {
        text.parse().unwrap()
    }

    #[test]
    fn ipxe_tells_its_card() {
        // As a real one sent it.
        let sent = [
            0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0x00, 0x18, 1, 1, 0x23, 1, 1, 0x15, 1, 1,
        ];
        assert_eq!(Card::in_options(&sent), Some(card("1af4-1000")));
        let later = [&[0x18, 1, 1, 0][..], &sent].concat();
        assert_eq!(Card::in_options(&later), Some(card("1af4-1000")));
        // Another bus, too short, ended before, cut off.
        assert_eq!(Card::in_options(&[0xb1, 5, 10, 0x1a, 0xf4, 0, 1]), None);
        assert_eq!(Card::in_options(&[0xb1, 3, 1, 0x1a, 0xf4]), None);
        assert_eq!(Card::in_options(&[&[END][..], &sent].concat()), None);
        assert_eq!(Card::in_options(&sent[..4]), None);
    }

    #[test]
    fn cards_are_written_as_they_are_read() {
        assert_eq!(card("8086-100E").to_string(), "8086-100e");
        for text in ["", "8086", "8086-", "8086-100", "8086-+00e", "8086-100e0"] {
            assert_eq!(text.parse::<Card>(), Err(NotACard), "{text}");
        }
    }

    #[test]
    fn a_card_has_its_file_or_its_vendors() {
        let list = Cards::parse(LIST).unwrap();
        assert_eq!(list.file_for(card("8086-100e")), Some("initramfs-0a"));
        assert_eq!(list.file_for(card("1af4-1000")), Some("initramfs-0a"));
        assert_eq!(list.file_for(card("1af4-1041")), Some("initramfs-0b"));
        assert_eq!(list.file_for(card("8086-100f")), None);
        let parts = list.parts_of("initramfs-0a", 130).unwrap();
        assert_eq!(parts, [0..100, 120..130]);
        assert_eq!(list.parts_of("initramfs-0a", 129), None);
        assert_eq!(list.parts_of("initramfs", 130), None);
    }

    #[test]
    fn a_damaged_list_is_none() {
        for line in [
            "else\n",
            "file\n",
            "file a 5-5\n",
            "file a 9-5\n",
            "file a 1\n",
            "card 8086-100e none\n",
            "card 8086 initramfs-0a\n",
            "card 8086-1 initramfs-0a\n",
            "\n",
        ] {
            assert!(Cards::parse(&format!("{LIST}{line}")).is_none(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in "[a-f0-9 *\n-]{0,60}") {
            let _ = Card::in_options(&bytes);
            let _ = Cards::parse(&text);
            let _ = text.parse::<Card>();
        }
    }
}
