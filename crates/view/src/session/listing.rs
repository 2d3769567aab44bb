//! What a directory holds: single names, and whole listings in the head's order.

use std::collections::HashMap;

use wiglaf_fuse::{DirectoryBuffer, Reply};
use wiglaf_wire::view::{Ask, Entry, FileId, MAX_ENTRIES, Reply as Told, Use};

use super::names::Found;
use super::questions::{Waiting, unexpected};
use super::{OWN_FIRST, PARKED, Session};

/// Looked-up names of a directory after which its first entries are fetched together.
const MISSES_BEFORE_LISTING: u32 = 2;
/// Those first entries. One costs the head some 5 µs.
const FIRST_ENTRIES: u32 = 256;
/// More looked-up names, before the rest of a large directory is fetched.
const MISSES_BEFORE_REST: u32 = 16;
/// Subdirectories that are listed ahead of somebody who walks a tree.
const MAX_WALKED_AHEAD: usize = 64;
const DT_DIRECTORY: u8 = 4;
const DT_LINK: u8 = 10;
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const MOST: u32 = MAX_ENTRIES as u32;

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    File(u64),
    Nothing,
}

/// What is known of a directory's names.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// `None`: it is one of those that the listing had, and nothing more is known.
    names: HashMap<Vec<u8>, Option<Name>>,
    /// Names that are not above do not exist.
    complete: bool,
    /// The beginning of the listing, as long as nothing changes.
    order: Vec<Entry>,
    order_ended: bool,
    version: u64,
    /// Where readers stopped last.
    marks: Vec<(u64, usize)>,
    misses: u32,
    next_fetch: u32,
    /// Listings under way that will tell names with their files.
    coming: u32,
    parked: Vec<Parked>,
    was_read: bool,
    was_walked: bool,
}

/// Who waits for a listing that is on its way.
#[derive(Debug)]
pub(super) enum Parked {
    Name {
        unique: u64,
        who: (u32, u32),
        name: Vec<u8>,
    },
    Reader(Reader),
}

impl Parked {
    fn unique(&self) -> u64 {
        match self {
            Parked::Name { unique, .. } => *unique,
            Parked::Reader(reader) => reader.unique,
        }
    }
}

/// The kernel reads a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) unique: u64,
    pub(super) who: (u32, u32),
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) plus: bool,
}

/// A part of a listing that is worth fetching.
pub(super) struct Asked {
    pub(super) offset: u64,
    pub(super) most: u32,
}

impl Directory {
    pub(super) fn name(&self, name: &[u8]) -> Option<Name> {
        match self.names.get(name) {
            Some(known) => *known,
            None => self.complete.then_some(Name::Nothing),
        }
    }

    pub(super) fn set(&mut self, name: &[u8], known: Option<Name>) {
        if known.is_some() || self.complete {
            self.names.insert(name.to_vec(), known);
        } else {
            self.names.remove(name);
        }
    }

    /// The order is not what it was.
    pub(super) fn changed(&mut self) {
        self.version += 1;
        self.order = Vec::new();
        self.order_ended = false;
        self.marks.clear();
    }

    /// Nothing is known any more.
    pub(super) fn unlearn(&mut self) {
        self.changed();
        self.names.clear();
        self.complete = false;
        self.misses = 0;
        self.next_fetch = 0;
    }

    /// Whether nothing has been learnt since [`Directory::unlearn`], and nothing is coming.
    pub(super) fn is_blank(&self) -> bool {
        self.names.is_empty() && !self.complete && self.order.is_empty() && self.coming == 0
    }

    /// Our own new directory.
    pub(super) fn begin_empty(&mut self) {
        self.complete = true;
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&Vec<u8>, &Option<Name>)> {
        self.names.iter()
    }

    /// One more name had to be asked for.
    pub(super) fn missed(&mut self) -> Option<Asked> {
        self.misses += 1;
        if self.complete || self.coming > 0 {
            return None;
        }
        if self.order.is_empty() {
            let due = self.misses >= self.next_fetch.max(MISSES_BEFORE_LISTING);
            return due.then_some(Asked {
                offset: 0,
                most: FIRST_ENTRIES,
            });
        }
        (self.misses >= self.next_fetch).then_some(Asked {
            offset: self.order_next(),
            most: MOST,
        })
    }

    fn order_next(&self) -> u64 {
        self.order.last().map_or(0, |entry| entry.next)
    }

    /// Index of the entry after `offset`, if the order is known that far.
    fn index(&self, offset: u64) -> Option<usize> {
        let index = if offset == 0 {
            0
        } else if let Some((_, index)) = self.marks.iter().find(|(at, _)| *at == offset) {
            *index
        } else {
            1 + self.order.iter().position(|entry| entry.next == offset)?
        };
        (index < self.order.len() || self.order_ended).then_some(index)
    }

    fn mark(&mut self, offset: u64, index: usize) {
        const MAX_MARKS: usize = 16;
        if self.marks.len() == MAX_MARKS {
            self.marks.remove(0);
        }
        self.marks.push((offset, index));
    }
}

impl Session {
    pub(super) fn directory(&mut self, node: u64) -> Option<&mut Directory> {
        self.files.get_mut(&node)?.directory.as_deref_mut()
    }

    pub(super) fn watched_directory(&mut self, node: u64) -> Option<&mut Directory> {
        let file = self.files.get_mut(&node)?;
        file.watched.then_some(file.directory.as_deref_mut()?)
    }

    /// Forgets a request that waits for a listing.
    pub(super) fn unpark(&mut self, unique: u64) {
        let directories = self.files.values_mut();
        for directory in directories.filter_map(|file| file.directory.as_mut()) {
            directory.parked.retain(|one| one.unique() != unique);
        }
    }

    /// Waits with a name for a listing that is on its way.
    pub(super) fn wait_for_listing(
        &mut self,
        parent: u64,
        unique: u64,
        who: (u32, u32),
        name: &[u8],
    ) -> bool {
        let asker = self.asker;
        match self.directory(parent) {
            Some(directory) if directory.coming > 0 => {
                let name = name.to_vec();
                directory.parked.push(Parked::Name { unique, who, name });
                self.by_request.insert(unique, (PARKED, asker));
                true
            }
            _ => false,
        }
    }

    pub(super) fn ask_for_listing(
        &mut self,
        who: (u32, u32),
        node: u64,
        (offset, most, attributes): (u64, u32, bool),
        reader: Option<Reader>,
    ) {
        let Some(directory) = self.directory(node) else {
            return;
        };
        if attributes {
            directory.coming += 1;
        }
        let waiting = Waiting::Listing {
            directory: node,
            from: offset,
            version: directory.version,
            reader,
        };
        let what = Ask::List {
            directory: FileId(node),
            offset,
            most,
            attributes,
        };
        self.ask(who, what, waiting);
    }

    pub(super) fn read_directory(&mut self, node: u64, reader: Reader) {
        self.note_once(node, Use::Listed(FileId(node)));
        if let Some(directory) = self.watched_directory(node) {
            directory.was_read = true;
            if directory.index(reader.offset).is_some() {
                self.serve(node, reader);
                return self.walk_ahead(reader.who, node);
            }
            if directory.coming > 0 && reader.offset == 0 {
                directory.parked.push(Parked::Reader(reader));
                let asker = self.asker;
                self.by_request.insert(reader.unique, (PARKED, asker));
                return;
            }
        } else {
            // It may never have been looked up by name: the root.
            let file = self.files.entry(node).or_default();
            file.directory.get_or_insert_default();
        }
        let part = (reader.offset, MOST, reader.plus);
        self.ask_for_listing(reader.who, node, part, Some(reader));
    }

    pub(super) fn listed(
        &mut self,
        node: u64,
        (from, version): (u64, u64),
        reader: Option<Reader>,
        result: Result<Told, i32>,
    ) {
        let mut parked = Vec::new();
        if let Some(directory) = self.directory(node)
            && directory.coming > 0
        {
            directory.coming -= 1;
            parked = std::mem::take(&mut directory.parked);
        }
        match result {
            Ok(Told::Entries { mut entries, end }) => {
                self.learn_entries(node, &mut entries);
                if let Some(reader) = reader {
                    self.serve_entries(node, reader, &entries);
                }
                self.keep_order(node, (from, version), entries, end);
                if let Some(reader) = reader {
                    self.walk_ahead(reader.who, node);
                }
            }
            other => {
                if let Some(reader) = reader {
                    self.fail(reader.unique, unexpected(other));
                }
            }
        }
        for one in parked {
            self.by_request.remove(&one.unique());
            match one {
                Parked::Name { unique, who, name } => match self.find(node, &name) {
                    Found::File(file) => self.reply_entry(unique, file),
                    Found::Nothing { watched } => {
                        self.reply_nothing(unique, node, &name, watched);
                    }
                    Found::Unknown => self.ask_for_name(unique, who, node, name),
                },
                Parked::Reader(reader) => self.read_directory(node, reader),
            }
        }
    }

    /// Takes in the files that a listing told of; entries lose their attributes.
    pub(super) fn learn_entries(&mut self, node: u64, entries: &mut [Entry]) {
        let has_own = node == FileId::ROOT.0 || self.has_links_in(node);
        for entry in entries {
            let own = has_own && self.is_own(node, &entry.name);
            if has_own && self.own_link(node, &entry.name).is_some() {
                entry.kind = DT_LINK;
            }
            let known = entry
                .attributes
                .take()
                .filter(|told| told.file.0 < OWN_FIRST);
            match known {
                Some(attributes) if !own => {
                    self.learn_name(node, &entry.name, attributes);
                }
                Some(attributes) => {
                    self.learn(attributes, true);
                }
                None => {}
            }
        }
    }

    /// Keeps what comes after what is kept already, if nothing has changed since it was asked.
    pub(super) fn keep_order(
        &mut self,
        node: u64,
        (from, version): (u64, u64),
        entries: Vec<Entry>,
        end: bool,
    ) {
        let Some(directory) = self.watched_directory(node) else {
            return;
        };
        directory.next_fetch = directory.misses + MISSES_BEFORE_REST;
        if directory.version != version || directory.order_ended || directory.order_next() != from {
            return;
        }
        directory.order.extend(entries);
        if end {
            directory.order_ended = true;
            if !directory.complete {
                directory.complete = true;
                let order = std::mem::take(&mut directory.order);
                for entry in &order {
                    if !directory.names.contains_key(&entry.name) {
                        directory.names.insert(entry.name.clone(), None);
                    }
                }
                directory.order = order;
            }
        }
    }

    fn serve(&mut self, node: u64, reader: Reader) {
        let Some(directory) = self.directory(node) else {
            return;
        };
        let Some(index) = directory.index(reader.offset) else {
            return;
        };
        // Put back below: filling needs the rest of the session.
        let order = std::mem::take(&mut directory.order);
        let taken = self.serve_entries(node, reader, &order[index..]);
        if let Some(directory) = self.directory(node) {
            let reached = index + taken;
            if taken > 0 {
                directory.mark(order[reached - 1].next, reached);
            }
            directory.order = order;
        }
    }

    /// Returns how many entries the kernel took.
    fn serve_entries(&mut self, directory: u64, reader: Reader, entries: &[Entry]) -> usize {
        if reader.unique == 0 {
            return 0;
        }
        let mut buffer = DirectoryBuffer::new(reader.size as usize);
        let mut taken = 0;
        for entry in entries {
            let added = if reader.plus {
                let known = self.known_entry(directory, entry);
                let Entry {
                    ino,
                    next,
                    kind,
                    ref name,
                    ..
                } = *entry;
                let added = buffer.add_plus(ino, next, kind, name, known.as_ref());
                if added && let Some(known) = known {
                    self.count(known.node);
                }
                added
            } else {
                buffer.add(entry.ino, entry.next, entry.kind, &entry.name)
            };
            if !added {
                break;
            }
            taken += 1;
        }
        self.reply(reader.unique, Reply::Directory(buffer));
        taken
    }

    fn known_entry(&self, directory: u64, entry: &Entry) -> Option<wiglaf_fuse::Entry> {
        let names = self.files.get(&directory)?.directory.as_ref()?;
        match names.name(&entry.name) {
            Some(Name::File(node)) => self.entry(node),
            _ => None,
        }
    }

    /// Whoever reads a directory after its parent is walking a tree: what comes next is fetched
    /// while the program is busy with this.
    fn walk_ahead(&mut self, who: (u32, u32), node: u64) {
        let Some(file) = self.files.get(&node) else {
            return;
        };
        let parent_read = file.name.as_ref().is_some_and(|(parent, _)| {
            let parent = self
                .files
                .get(parent)
                .and_then(|file| file.directory.as_ref());
            parent.is_some_and(|directory| directory.was_read)
        });
        let Some(directory) = &file.directory else {
            return;
        };
        if !parent_read || directory.was_walked || !directory.order_ended {
            return;
        }
        let below: Vec<u64> = directory
            .order
            .iter()
            .filter(|entry| entry.kind == DT_DIRECTORY && entry.name != b"." && entry.name != b"..")
            .filter_map(|entry| match directory.name(&entry.name) {
                Some(Name::File(child)) => Some(child),
                _ => None,
            })
            .take(MAX_WALKED_AHEAD)
            .collect();
        if let Some(directory) = self.directory(node) {
            directory.was_walked = true;
        }
        for child in below {
            if let Some(directory) = self.watched_directory(child)
                && !directory.order_ended
                && directory.order.is_empty()
                && directory.coming == 0
            {
                self.ask_for_listing(who, child, (0, MOST, true), None);
            }
        }
    }
}
