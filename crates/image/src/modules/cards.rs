//! Which modules a machine needs for its network card, by the card's two numbers.
//!
//! That is all that a machine's iPXE says of it. Patterns that ask for more are taken as if they
//! asked for these only: a module too many does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// PCI's numbers for a vendor and its device; `None`: all of that vendor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CardId {
    pub(crate) vendor: u16,
    pub(crate) device: Option<u16>,
}

impl fmt::Display for CardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            Some(device) => write!(f, "{:04x}-{device:04x}", self.vendor),
            None => write!(f, "{:04x}-*", self.vendor),
        }
    }
}

impl CardId {
    /// From what a module answers to, such as `pci:v00008086d0000100Esv*sd*bc*sc*i*`.
    fn of(pattern: &str) -> Option<CardId> {
        let rest = pattern.strip_prefix("pci:v")?;
        let (vendor, rest) = number(rest)?;
        let rest = rest.strip_prefix('d')?;
        let device = match rest.strip_prefix('*') {
            Some(_) => None,
            None => Some(number(rest)?.0),
        };
        Some(CardId { vendor, device })
    }
}

/// Eight hexadecimal digits, of which PCI uses four.
fn number(text: &str) -> Option<(u16, &str)> {
    let (digits, rest) = text.split_at_checked(8)?;
    Some((u16::from_str_radix(digits, 16).ok()?, rest))
}

/// A card's driver.
#[derive(Debug)]
pub(super) struct Driver {
    cards: Vec<CardId>,
    /// With all that it depends on.
    modules: Vec<String>,
}

impl Driver {
    pub(super) fn new(name: &str, patterns: &[String], closure: &[String]) -> Driver {
        let mut modules = closure.to_vec();
        modules.push(name.to_owned());
        Driver {
            cards: patterns
                .iter()
                .filter_map(|text| CardId::of(text))
                .collect(),
            modules,
        }
    }
}

/// What each card needs beside what every machine gets. Several drivers may answer to one: then it
/// needs them all.
pub(super) fn by_card(
    drivers: &[Driver],
    base: &BTreeSet<String>,
) -> BTreeMap<CardId, BTreeSet<String>> {
    let mut cards: BTreeMap<CardId, BTreeSet<String>> = BTreeMap::new();
    for driver in drivers {
        let modules = driver.modules.iter().filter(|name| !base.contains(*name));
        for card in &driver.cards {
            cards
                .entry(*card)
                .or_default()
                .extend(modules.clone().cloned());
        }
    }
    let vendors: Vec<_> = cards
        .iter()
        .filter(|(card, _)| card.device.is_none())
        .map(|(card, modules)| (card.vendor, modules.clone()))
        .collect();
    for (vendor, modules) in vendors {
        let same = cards.iter_mut().filter(|(card, _)| card.vendor == vendor);
        same.for_each(|(_, needs)| needs.extend(modules.iter().cloned()));
    }
    cards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_tell_vendor_and_device() {
        let of = |text| CardId::of(text).map(|card| card.to_string());
        let known = Some("8086-100e".to_owned());
        assert_eq!(of("pci:v00008086d0000100Esv*sd*bc*sc*i*"), known);
        assert_eq!(of("pci:v00008086d0000100Esv00001028sd*bc02sc00i*"), known);
        let all = Some("1af4-*".to_owned());
        assert_eq!(of("pci:v00001AF4d*sv*sd*bc*sc*i*"), all);
        for text in [
            "pci:v*d*sv*sd*bc0Csc03i30*",
            "usb:v0BDAp8153d*",
            "pci:v0001",
            "pci:v00018086d0000100Esv*",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn a_card_needs_all_that_answer_to_it_but_what_everybody_has() {
        let driver = |name: &str, patterns: &[&str], closure: &[&str]| {
            let owned =
                |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            Driver::new(name, &owned(patterns), &owned(closure))
        };
        let drivers = [
            driver(
                "cp",
                &["pci:v000010ECd00008139sv*", "pci:v000010ECd00000001sv*"],
                &["mii", "libphy"],
            ),
            driver("too", &["pci:v000010ECd00008139sv*"], &["mii"]),
            driver("any", &["pci:v000010ECd*sv*"], &[]),
            driver("base", &["pci:v00000001d00000002sv*"], &["libphy"]),
        ];
        let base = ["base", "libphy"].map(str::to_owned).into();
        let cards = by_card(&drivers, &base);
        let lines: Vec<_> = cards
            .iter()
            .map(|(card, modules)| {
                let names: Vec<_> = modules.iter().map(String::as_str).collect();
                format!("{card} {}", names.join(" "))
            })
            .collect();
        assert_eq!(
            lines,
            [
                "0001-0002 ",
                "10ec-* any",
                "10ec-0001 any cp mii",
                "10ec-8139 any cp mii too",
            ]
        );
    }
}
