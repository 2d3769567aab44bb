//! What a node believes of what it was told.

use std::collections::{BTreeSet, HashMap};

use wiglaf_wire::view::{Attributes, Change, FileId, HandleId};

/// What one node believes.
#[derive(Default)]
pub(super) struct Node {
    pub(super) attributes: HashMap<FileId, Attributes>,
    pub(super) contents: HashMap<FileId, Vec<u8>>,
    pub(super) xattrs: HashMap<FileId, Option<Vec<u8>>>,
    pub(super) names: HashMap<Vec<u8>, Option<FileId>>,
    pub(super) listing: Option<BTreeSet<Vec<u8>>>,
    pub(super) told: HashMap<FileId, u64>,
    pub(super) handles: Vec<(HandleId, FileId, u32)>,
    pub(super) here_is_watched: bool,
}

impl Node {
    pub(super) fn hear(&mut self, here: FileId, change: &Change) {
        match change {
            Change::File { file, content } => {
                self.attributes.remove(file);
                self.xattrs.remove(file);
                if *content {
                    self.contents.remove(file);
                }
                if *file == here && *content {
                    self.listing = None;
                }
            }
            Change::Name { directory, name } => {
                assert_eq!(*directory, here);
                self.names.remove(name);
                self.listing = None;
            }
            Change::Doubtful { file } => {
                self.attributes.remove(file);
                self.xattrs.remove(file);
                self.contents.remove(file);
                if *file == here {
                    self.names.clear();
                    self.listing = None;
                }
            }
            Change::Everything => {
                let told = std::mem::take(&mut self.told);
                let handles = std::mem::take(&mut self.handles);
                *self = Node {
                    told,
                    handles,
                    ..Node::default()
                };
            }
        }
    }

    pub(super) fn learn(&mut self, attributes: Attributes) {
        self.attributes.insert(attributes.file, attributes);
    }

    pub(super) fn learn_name(&mut self, name: &str, file: Option<FileId>) {
        self.names.insert(name.into(), file);
    }

    pub(super) fn known(&self, which: usize) -> Option<FileId> {
        let mut known: Vec<_> = self.told.keys().copied().collect();
        known.sort();
        (!known.is_empty()).then(|| known[which % known.len()])
    }

    pub(super) fn handle(&self, which: usize) -> Option<(HandleId, FileId, u32)> {
        let some = !self.handles.is_empty();
        some.then(|| self.handles[which % self.handles.len()])
    }
}
