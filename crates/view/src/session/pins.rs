//! Names that lead to something that the driver has mounted deeper in the view: the kernel would
//! unmount it if it was told that one of them has changed.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use wiglaf_wire::view::FileId;

use super::Session;
use super::names::Found;

/// The names of a path.
#[derive(Debug)]
pub(super) struct Pin {
    names: Vec<Vec<u8>>,
    /// The directories that the names are in, as far as they are known; `/` is first.
    directories: Vec<u64>,
}

impl Pin {
    pub(super) fn new(path: &Path) -> Pin {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_bytes().to_vec()),
            _ => None,
        });
        Pin {
            names: names.collect(),
            directories: vec![FileId::ROOT.0],
        }
    }

    fn place(&self, parent: u64, name: &[u8]) -> Option<usize> {
        let mut steps = self.directories.iter().zip(&self.names);
        steps.position(|(directory, one)| *directory == parent && one == name)
    }

    /// Whether it is one of the same path.
    pub(super) fn is_of(&self, other: &Pin) -> bool {
        self.names == other.names
    }

    /// Its last name and the directory that this is in, if that is known.
    pub(super) fn last(&self) -> Option<(u64, &[u8])> {
        let name = self.names.last()?;
        let directory = self.directories.get(self.names.len() - 1)?;
        Some((*directory, name))
    }

    /// Nothing but its names is known.
    fn unlearn(&mut self) {
        self.directories.truncate(1);
    }

    /// A name was found to mean this file.
    pub(super) fn learn(&mut self, parent: u64, name: &[u8], node: u64) {
        let Some(place) = self.place(parent, name) else {
            return;
        };
        if self.directories.get(place + 1) != Some(&node) {
            self.directories.truncate(place + 1);
            self.directories.push(node);
        }
    }
}

impl Session {
    /// Has the kernel keep the names of this path whatever becomes of them on the head, so that
    /// what is mounted there stays. Only the loss of the deputy ends it: its numbers mean nothing
    /// to the next one.
    pub fn pin(&mut self, path: &Path) {
        let mut pin = Pin::new(path);
        self.follow(&mut pin);
        self.pins.push(pin);
    }

    /// Tells it which directories are known already.
    pub(super) fn follow(&self, pin: &mut Pin) {
        let mut parent = FileId::ROOT.0;
        for name in pin.names.clone() {
            let Found::File(node) = self.find(parent, &name) else {
                break;
            };
            pin.learn(parent, &name, node);
            parent = node;
        }
    }

    /// Whether a mount would go if the kernel was told that this name has changed.
    pub(super) fn is_mounted_on(&self, parent: u64, name: &[u8]) -> bool {
        let is_pinned = || {
            self.pins
                .iter()
                .any(|pin| pin.place(parent, name).is_some())
        };
        self.is_own(parent, name) || (!self.lost && is_pinned())
    }

    /// The numbers of directories mean others from now on.
    pub(super) fn unlearn_pins(&mut self) {
        let links = self.links.iter_mut().map(|link| &mut link.pin);
        self.pins.iter_mut().chain(links).for_each(Pin::unlearn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_known_by_the_directories_on_its_way() {
        let root = FileId::ROOT.0;
        let mut pin = Pin::new(Path::new("/mnt/nfs/home"));
        let is_pinned =
            |pin: &Pin, parent, name: &str| pin.place(parent, name.as_bytes()).is_some();
        assert!(is_pinned(&pin, root, "mnt"));
        assert!(!is_pinned(&pin, root, "nfs") && !is_pinned(&pin, 7, "nfs"));
        pin.learn(7, b"nfs", 8);
        pin.learn(root, b"mnt", 7);
        pin.learn(root, b"usr", 9);
        assert!(is_pinned(&pin, 7, "nfs") && !is_pinned(&pin, 8, "home"));
        pin.learn(7, b"nfs", 8);
        pin.learn(8, b"home", 10);
        assert!(is_pinned(&pin, 8, "home") && !is_pinned(&pin, 10, "home"));
        // Another directory there leads to others.
        pin.learn(root, b"mnt", 11);
        assert!(is_pinned(&pin, 11, "nfs"));
        assert!(!is_pinned(&pin, 7, "nfs") && !is_pinned(&pin, 8, "home"));
    }
}
