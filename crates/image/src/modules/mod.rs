//! Which modules an image needs, in which order they are loaded, and for which devices.
//!
//! All of it is read from the modules themselves, so that a package that was only unpacked will
//! do: depmod's files are not in it.

mod cards;
mod drivers;
mod info;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

pub(crate) use cards::CardId;
use cards::Driver;
pub(crate) use tree::Tree;

/// A module can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// There is none of that name.
    #[error("{dir} has no module {name}{}", .wanted_by.as_ref().map(|by| format!(", which {by} needs")).unwrap_or_default())]
    Missing {
        /// Which.
        name: String,
        /// Where it was sought.
        dir: PathBuf,
        /// Another module.
        wanted_by: Option<String>,
    },
    /// It can't be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else, or damaged.
    #[error("{0} is not a kernel module")]
    NotAModule(PathBuf),
}

/// What goes into the image.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Loaded as the node starts, in this order.
    pub(crate) always: Vec<String>,
    /// Loaded for a device that answers to the pattern. Of one pattern, what a module depends on
    /// comes before it.
    pub(crate) aliases: Vec<(String, String)>,
    /// All of them with their bytes, uncompressed: together they become smaller.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// What they ask for: module and file.
    pub(crate) firmware: Vec<(String, String)>,
    /// Those that every machine gets, whatever its card is.
    pub(crate) base: BTreeSet<String>,
    /// What a machine with this card needs beside them.
    pub(crate) cards: BTreeMap<CardId, BTreeSet<String>>,
}

/// What somebody wants beside the network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// By name; they are loaded in any case.
    pub(crate) named: Vec<String>,
    /// The node's own disks.
    pub(crate) disk: bool,
    /// A full system.
    pub(crate) system: bool,
}

/// Chooses.
pub(crate) fn select(tree: &mut Tree, wanted: &Wanted) -> Result<Selection, ModuleError> {
    let mut always = Vec::new();
    for name in drivers::NEEDED {
        tree.close(name, &mut always)?;
    }
    let system = drivers::SYSTEM.iter().filter(|_| wanted.system);
    for name in system {
        tree.close(name, &mut always)?;
    }
    let mut optional = drivers::USEFUL.to_vec();
    let mut on_demand: Vec<&str> = [drivers::BUSES, drivers::NETWORK].concat();
    if wanted.disk {
        optional.extend(drivers::FILE_SYSTEMS);
        on_demand.extend(drivers::DISKS);
    }
    optional.retain(|name| tree.has(name));
    for name in optional {
        tree.close(name, &mut always)?;
    }
    for name in &wanted.named {
        tree.close(name, &mut always)?;
    }
    let mut selection = Selection::default();
    let mut all: BTreeSet<String> = always.iter().cloned().collect();
    let mut devices: BTreeSet<String> = on_demand.into_iter().map(info::plain).collect();
    devices.retain(|name| tree.has(name));
    selection.base = base(tree, wanted, &all)?;
    let mut candidates = Vec::new();
    for name in &devices {
        let mut closure = Vec::new();
        tree.close(name, &mut closure)?;
        let mut patterns: Vec<_> = tree.info(name)?.aliases.clone();
        if drivers::NETWORK.contains(&name.as_str()) {
            candidates.push(Driver::new(name, &patterns, &closure));
        }
        patterns.retain(|pattern| drivers::is_of_a_device(pattern));
        patterns.sort();
        patterns.dedup();
        for pattern in patterns {
            // A space ends the pattern in the file; there, any character matches one.
            let pattern = pattern.replace(' ', "?");
            // With what is loaded in any case: that may come later.
            let lines = closure.iter().map(|name| (pattern.clone(), name.clone()));
            selection.aliases.extend(lines);
        }
        all.extend(closure);
    }
    for name in &wanted.named {
        let name = info::plain(name);
        if tree.has(&name) {
            candidates.push(Driver::new(&name, &tree.info(&name)?.aliases, &[]));
        }
    }
    for (bus, name) in drivers::BEHIND {
        if tree.has(bus) && tree.has(name) {
            let mut closure = Vec::new();
            tree.close(bus, &mut closure)?;
            tree.close(name, &mut closure)?;
            candidates.push(Driver::new(bus, &tree.info(bus)?.aliases, &closure));
        }
    }
    selection.cards = cards::by_card(&candidates, &selection.base);
    for name in all {
        let firmware = tree.info(&name)?.firmware.iter();
        let firmware = firmware.map(|file| (name.clone(), file.clone()));
        selection.firmware.extend(firmware);
        let bytes = tree.bytes(&name)?;
        selection.files.insert(name, bytes);
    }
    selection.always = always;
    Ok(selection)
}

/// What every machine gets: what is loaded in any case, and what its card does not tell of.
fn base(
    tree: &mut Tree,
    wanted: &Wanted,
    always: &BTreeSet<String>,
) -> Result<BTreeSet<String>, ModuleError> {
    let mut base: Vec<String> = always.iter().cloned().collect();
    let mut names = drivers::UNFORESEEN.to_vec();
    if wanted.disk {
        names.extend(drivers::DISKS);
    }
    for name in names {
        if tree.has(name) {
            tree.close(name, &mut base)?;
        }
    }
    // A driver for USB is of no use without the rest of it.
    if wanted.disk || base.iter().any(|name| name == drivers::USB) {
        for name in drivers::BUSES {
            if tree.has(name) {
                tree.close(name, &mut base)?;
            }
        }
    }
    Ok(base.into_iter().collect())
}

#[cfg(test)]
mod tests;
