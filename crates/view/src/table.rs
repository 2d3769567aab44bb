//! The numbers by which the node's kernel knows files, and what each deputy calls them.
//!
//! Pure: it decides and remembers, it never asks. A file is known by the deputies' numbers, so
//! that hard links are one file and a replaced file is another; by directory and name it is
//! found again for a user whose deputy has not been asked for it yet.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;
use wiglaf_wire::stream::ViewAttributes;

/// The root, for the kernel and for every deputy.
pub(crate) const ROOT: u64 = 1;
/// Numbers of the node's own directories start here.
pub(crate) const OWN_FIRST: u64 = 1 << 62;
/// Numbers for files whose inode number another file has taken start here.
const SPARE_FIRST: u64 = 1 << 40;
/// Longest way from a file to the root: as many names as fit in `PATH_MAX`.
const MAX_DEPTH: usize = 2048;
/// The part of `st_mode` that is the file's type.
const FORMAT: u32 = 0o170_000;

/// All files that the kernel has not forgotten.
#[derive(Debug)]
pub(crate) struct Table {
    nodes: HashMap<u64, Node>,
    names: HashMap<(u64, Vec<u8>), u64>,
    given: HashMap<(u32, u64), u64>,
    spare: u64,
}

#[derive(Debug, Default)]
struct Node {
    parent: u64,
    name: Vec<u8>,
    /// What the kernel was last told of it.
    told: Option<ViewAttributes>,
    /// How often the kernel was told of it and has not forgotten it.
    lookups: u64,
    /// Nodes whose way to the root leads through this one.
    children: u32,
    numbers: BTreeMap<u32, Given>,
    last_opened: Option<Version>,
}

/// A deputy's number and how many of its lookups are to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Given {
    number: u64,
    count: u64,
}

/// What a file's contents are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// What a deputy is to be told: it may forget `number` after `count` lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GivenBack {
    /// The deputy's user.
    pub(crate) uid: u32,
    /// The deputy's number.
    pub(crate) number: u64,
    /// Lookups.
    pub(crate) count: u64,
}

/// The way to a file from the nearest directory that a deputy has a number for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// That directory's number, or the file's own when `steps` is empty.
    pub(crate) number: u64,
    /// What is still to be looked up, the last first.
    pub(crate) steps: Vec<(u64, Vec<u8>)>,
}

impl Table {
    pub(crate) fn new() -> Table {
        let root = Node {
            lookups: 1,
            ..Node::default()
        };
        Table {
            nodes: HashMap::from([(ROOT, root)]),
            names: HashMap::new(),
            given: HashMap::new(),
            spare: SPARE_FIRST,
        }
    }

    /// The deputy of `uid` found this file; the kernel is about to be told. Returns its number
    /// for the kernel.
    pub(crate) fn enter(
        &mut self,
        uid: u32,
        parent: u64,
        name: &[u8],
        found: &ViewAttributes,
    ) -> Result<u64, Errno> {
        if !self.nodes.contains_key(&parent) {
            return Err(Errno::STALE);
        }
        let known = self.given.get(&(uid, found.node)).copied();
        let known = known.or_else(|| self.by_name(uid, parent, name, found));
        let node = known.unwrap_or_else(|| self.create(parent, name, found));
        if known.is_some() {
            self.rename(node, parent, name);
        }
        self.give(uid, node, found.node);
        if let Some(node) = self.nodes.get_mut(&node) {
            node.lookups += 1;
            node.told = Some(found.clone());
        }
        Ok(node)
    }

    /// What the kernel was last told of a name that it knows; it is about to be told again.
    pub(crate) fn enter_as_told(
        &mut self,
        parent: u64,
        name: &[u8],
    ) -> Option<(u64, ViewAttributes)> {
        let number = *self.names.get(&(parent, name.to_vec()))?;
        let node = self.nodes.get_mut(&number)?;
        let told = node.told.clone()?;
        node.lookups += 1;
        Some((number, told))
    }

    /// The deputy of `uid` was asked again for a file that the kernel knows, and found this.
    pub(crate) fn attach(
        &mut self,
        uid: u32,
        node: u64,
        found: &ViewAttributes,
    ) -> Result<u64, Errno> {
        let known = self.nodes.get(&node).ok_or(Errno::STALE)?;
        let other = known
            .numbers
            .get(&uid)
            .is_some_and(|given| given.number != found.node);
        if other || !known.is(found) {
            return Err(Errno::STALE);
        }
        self.give(uid, node, found.node);
        Ok(found.node)
    }

    /// How the deputy of `uid` gets to `node`.
    pub(crate) fn walk(&self, uid: u32, node: u64) -> Result<Walk, Errno> {
        let mut steps = Vec::new();
        let mut at = node;
        while steps.len() < MAX_DEPTH {
            if at == ROOT {
                return Ok(Walk {
                    number: ROOT,
                    steps,
                });
            }
            let known = self.nodes.get(&at).ok_or(Errno::STALE)?;
            if let Some(given) = known.numbers.get(&uid) {
                let number = given.number;
                return Ok(Walk { number, steps });
            }
            steps.push((at, known.name.clone()));
            at = known.parent;
        }
        Err(Errno::STALE)
    }

    /// Whether what the kernel has cached of the file is still it. Remembers this version.
    pub(crate) fn unchanged_since_last_open(&mut self, node: u64, now: &ViewAttributes) -> bool {
        let version = Some(Version {
            size: now.size,
            modified: now.times[1],
            changed: now.times[2],
        });
        self.nodes.get_mut(&node).is_some_and(|node| {
            let unchanged = node.last_opened == version;
            node.last_opened = version;
            unchanged
        })
    }

    /// The kernel gives back `count` lookups. Returns what the deputies give back then.
    pub(crate) fn forget(&mut self, node: u64, count: u64) -> Vec<GivenBack> {
        let mut back = Vec::new();
        if let Some(known) = self.nodes.get_mut(&node) {
            known.lookups = known.lookups.saturating_sub(count);
            self.prune(node, &mut back);
        }
        back
    }

    /// The deputy of `uid` is gone with its numbers.
    pub(crate) fn lose(&mut self, uid: u32) {
        self.given.retain(|&(owner, _), _| owner != uid);
        for node in self.nodes.values_mut() {
            node.numbers.remove(&uid);
        }
    }

    /// The file last found by this name, if a deputy that has no number for it means the same.
    fn by_name(&self, uid: u32, parent: u64, name: &[u8], found: &ViewAttributes) -> Option<u64> {
        let node = *self.names.get(&(parent, name.to_vec()))?;
        let known = self.nodes.get(&node)?;
        (known.is(found) && !known.numbers.contains_key(&uid)).then_some(node)
    }

    fn create(&mut self, parent: u64, name: &[u8], found: &ViewAttributes) -> u64 {
        let number = self.free_number(found.ino);
        let node = Node {
            parent,
            name: name.to_vec(),
            told: Some(found.clone()),
            ..Node::default()
        };
        self.nodes.insert(number, node);
        self.names.insert((parent, name.to_vec()), number);
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children += 1;
        }
        number
    }

    /// The head's inode number where it is free, since programs see the kernel's number of a
    /// file as its inode number.
    fn free_number(&mut self, ino: u64) -> u64 {
        let usual = ino > ROOT && ino < OWN_FIRST && !self.nodes.contains_key(&ino);
        if usual {
            return ino;
        }
        while self.nodes.contains_key(&self.spare) {
            self.spare += 1;
        }
        self.spare += 1;
        self.spare - 1
    }

    /// A file was found under another name than before, which may be the only one left.
    fn rename(&mut self, node: u64, parent: u64, name: &[u8]) {
        let Some(known) = self.nodes.get(&node) else {
            return;
        };
        let (old_parent, same_name) = (known.parent, known.name == name);
        if (old_parent == parent && same_name) || self.leads_through(parent, node) {
            return;
        }
        if let Some(known) = self.nodes.get_mut(&node) {
            let old_name = std::mem::replace(&mut known.name, name.to_vec());
            known.parent = parent;
            self.forget_name(old_parent, old_name, node);
        }
        self.names.insert((parent, name.to_vec()), node);
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children += 1;
        }
        if let Some(old) = self.nodes.get_mut(&old_parent) {
            // It is not pruned here: the kernel, which knew the file by its old name, holds the
            // directory of that name.
            old.children -= 1;
        }
    }

    /// Whether the way from `from` to the root leads through `node`.
    fn leads_through(&self, from: u64, node: u64) -> bool {
        let mut at = from;
        for _ in 0..MAX_DEPTH {
            if at == node {
                return true;
            }
            match self.nodes.get(&at) {
                Some(known) if at != ROOT => at = known.parent,
                _ => return false,
            }
        }
        true
    }

    fn give(&mut self, uid: u32, node: u64, number: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            let given = known
                .numbers
                .entry(uid)
                .or_insert(Given { number, count: 0 });
            given.count += 1;
            self.given.insert((uid, number), node);
        }
    }

    fn forget_name(&mut self, parent: u64, name: Vec<u8>, node: u64) {
        let key = (parent, name);
        if self.names.get(&key) == Some(&node) {
            self.names.remove(&key);
        }
    }

    /// Removes a node that nothing needs any more, and then perhaps its parents.
    fn prune(&mut self, node: u64, back: &mut Vec<GivenBack>) {
        let mut at = node;
        while at != ROOT {
            let unneeded = |node: &Node| node.lookups == 0 && node.children == 0;
            if !self.nodes.get(&at).is_some_and(unneeded) {
                return;
            }
            let Some(gone) = self.nodes.remove(&at) else {
                return;
            };
            self.forget_name(gone.parent, gone.name, at);
            for (uid, Given { number, count }) in gone.numbers {
                self.given.remove(&(uid, number));
                back.push(GivenBack { uid, number, count });
            }
            if let Some(parent) = self.nodes.get_mut(&gone.parent) {
                parent.children -= 1;
            }
            at = gone.parent;
        }
    }
}

impl Node {
    fn is(&self, found: &ViewAttributes) -> bool {
        let same = |told: &ViewAttributes| {
            told.ino == found.ino && told.mode & FORMAT == found.mode & FORMAT
        };
        self.told.as_ref().is_some_and(same)
    }
}

#[cfg(test)]
mod tests;
