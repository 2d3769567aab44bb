//! What a node was told of a file and may believe until it hears otherwise.
//!
//! A belief that is broken is told once; there is silence until the node asks again.

use std::collections::HashSet;

use crate::watch::Points;

/// Names of one directory that are remembered one by one; beyond, all of them matter.
const MAX_NAMES: usize = 1024;

/// One node's belief about one file.
#[derive(Debug, Default)]
pub(super) struct Belief {
    attributes: bool,
    content: bool,
    names: Names,
}

#[derive(Debug, Default)]
#[expect(
    clippy::box_collection,
    reason = "few of very many files are directories"
)]
enum Names {
    #[default]
    None,
    /// These were told, as there or as absent.
    Some(Box<HashSet<Box<[u8]>>>),
    /// The directory was listed: all but these, which it has heard of since.
    AllBut(Box<HashSet<Box<[u8]>>>),
}

impl Belief {
    /// Something of the file is told: whoever keeps a file's content compares it by attributes,
    /// so these are believed together, though they are broken apart.
    pub(super) fn tell(&mut self) {
        self.attributes = true;
        self.content = true;
    }

    /// What a name means is told.
    pub(super) fn tell_name(&mut self, name: &[u8]) {
        match &mut self.names {
            Names::None => self.names = Names::Some(Box::new(HashSet::from([name.into()]))),
            Names::Some(names) if names.len() >= MAX_NAMES => {
                self.names = Names::AllBut(Box::default());
            }
            Names::Some(names) => {
                names.insert(name.into());
            }
            Names::AllBut(names) => {
                names.remove(name);
            }
        }
    }

    /// Whether the node is known to know a name by itself. Of a listed directory it may have heard
    /// only a part.
    pub(super) fn knows(&self, name: &[u8]) -> bool {
        matches!(&self.names, Names::Some(names) if names.contains(name))
    }

    /// Whether anything is believed.
    pub(super) fn is_any(&self) -> bool {
        self.attributes || self.content || !matches!(self.names, Names::None)
    }

    /// Whether anything is believed of a name that is mounted on.
    pub(super) fn is_about_any(&self, points: &Points) -> bool {
        match &self.names {
            Names::None => false,
            Names::Some(names) if names.len() < points.len() => {
                names.iter().any(|name| points.has_name(name))
            }
            Names::Some(names) => points.names().any(|name| names.contains(name)),
            Names::AllBut(names) => points.names().any(|name| !names.contains(name)),
        }
    }

    /// A listing is told; one that starts is told anew.
    pub(super) fn tell_listing(&mut self, from_start: bool) {
        if from_start || !matches!(self.names, Names::AllBut(_)) {
            self.names = Names::AllBut(Box::default());
        }
    }

    /// The file changed; whether that breaks anything believed.
    pub(super) fn break_file(&mut self, content: bool) -> bool {
        if content {
            let breaks = self.attributes || self.content;
            self.content = false;
            self.attributes = false;
            return breaks;
        }
        std::mem::take(&mut self.attributes)
    }

    /// A name changed; whether anything was believed of it.
    pub(super) fn break_name(&mut self, name: &[u8]) -> bool {
        match &mut self.names {
            Names::None => false,
            Names::Some(names) => names.remove(name),
            Names::AllBut(names) => {
                // To say one too often is harmless.
                if names.len() >= MAX_NAMES {
                    names.clear();
                }
                names.insert(name.into())
            }
        }
    }
}
