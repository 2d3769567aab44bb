//! Names in directories: finding, making, removing.

use wiglaf_fuse::{Entry, Notification, Reply, Valid};
use wiglaf_wire::view::{Ask, Attributes, FileId, NewFile, Reply as Told, Use};

use super::listing::{Asked, Name};
use super::questions::{Waiting, unexpected};
use super::{Effect, HandleId, OWN_FIRST, Session, convert, errno};

const RENAME_EXCHANGE: u32 = 2;
/// Longest name on any of Linux's file systems.
const MAX_NAME_BYTES: usize = 255;

/// What the session knows about a name.
pub(super) enum Found {
    File(u64),
    Nothing { watched: bool },
    Unknown,
}

impl Session {
    pub(super) fn lookup(&mut self, unique: u64, who: (u32, u32), parent: u64, name: &[u8]) {
        // The node's kernel lets longer ones pass; that such a name does not exist would be wrong.
        if name.len() > MAX_NAME_BYTES {
            return self.fail(unique, errno::NAMETOOLONG);
        }
        if parent == FileId::ROOT.0
            && let Some(&(_, node)) = self.own.iter().find(|(own, _)| own == name)
        {
            let entry = Entry {
                node,
                generation: 0,
                attributes: convert::own_directory(node),
                entry_valid: Valid::Always,
                attributes_valid: Valid::Always,
            };
            return self.reply(unique, Reply::Entry(entry));
        }
        if self.reply_own_link(unique, parent, name) {
            return;
        }
        if self.files.get(&parent).is_some_and(|file| file.watched) {
            let name = name.to_vec();
            let parent = FileId(parent);
            self.note(Use::Name { parent, name });
        }
        match self.find(parent, name) {
            Found::File(node) => return self.reply_entry(unique, node),
            Found::Nothing { watched } => {
                return self.reply_nothing(unique, parent, name, watched);
            }
            Found::Unknown => {}
        }
        // A listing that is on its way will know.
        if self.wait_for_listing(parent, unique, who, name) {
            return;
        }
        self.ask_for_name(unique, who, parent, name.to_vec());
        self.ask_for_neighbours(who, parent);
    }

    pub(super) fn ask_for_name(
        &mut self,
        unique: u64,
        who: (u32, u32),
        parent: u64,
        name: Vec<u8>,
    ) {
        let what = Ask::Lookup {
            parent: FileId(parent),
            name: name.clone(),
        };
        let waiting = Waiting::Lookup {
            unique,
            parent,
            name,
        };
        self.ask(who, what, waiting);
    }

    /// What is known of a name, without asking anybody.
    pub(super) fn find(&self, parent: u64, name: &[u8]) -> Found {
        let Some(directory) = self.files.get(&parent) else {
            return Found::Unknown;
        };
        let watched = directory.watched;
        let Some(names) = &directory.directory else {
            return Found::Unknown;
        };
        match names.name(name) {
            Some(Name::File(node)) if self.valid_attributes(node).is_some() => Found::File(node),
            Some(Name::Nothing) if watched => Found::Nothing { watched },
            _ => Found::Unknown,
        }
    }

    /// Tells the kernel of a file that is known.
    pub(super) fn reply_entry(&mut self, unique: u64, node: u64) {
        let Some(entry) = self.entry(node) else {
            return self.fail(unique, errno::STALE);
        };
        if unique != 0 {
            self.count(node);
        }
        self.reply(unique, Reply::Entry(entry));
    }

    /// Tells the kernel that there is no such name, and remembers which one it was told of: it has
    /// to hear of it when the listing that says so is not sure any more.
    pub(super) fn reply_nothing(&mut self, unique: u64, parent: u64, name: &[u8], watched: bool) {
        if watched {
            self.set_name(parent, name, Some(Name::Nothing));
        }
        let valid = Self::validity(watched);
        self.reply(unique, Reply::NoEntry { valid });
    }

    /// What the kernel is told of a file that is known.
    pub(super) fn entry(&self, node: u64) -> Option<Entry> {
        let attributes = self.valid_attributes(node)?;
        let valid = Self::validity(attributes.watched);
        Some(Entry {
            node,
            generation: 0,
            attributes: self.shown(attributes),
            entry_valid: valid,
            attributes_valid: valid,
        })
    }

    /// Takes in a name's file.
    pub(super) fn learn_name(&mut self, parent: u64, name: &[u8], attributes: Attributes) -> u64 {
        let node = self.learn(attributes, true);
        if let Some(file) = self.files.get_mut(&node) {
            file.name = Some((parent, name.to_vec()));
        }
        self.set_name(parent, name, Some(Name::File(node)));
        let links = self.links.iter_mut().map(|link| &mut link.pin);
        for pin in self.pins.iter_mut().chain(links) {
            pin.learn(parent, name, node);
        }
        node
    }

    pub(super) fn set_name(&mut self, parent: u64, name: &[u8], known: Option<Name>) {
        if let Some(directory) = self.directory(parent) {
            directory.set(name, known);
        }
    }

    /// Nobody says any more what a name means, of which the kernel may have been told.
    fn unlearn_name(&mut self, parent: u64, name: &[u8]) {
        self.set_name(parent, name, None);
        let in_kernel = self.files.get(&parent).is_some_and(|file| file.kernel > 0);
        if in_kernel && !self.is_mounted_on(parent, name) {
            let name = name.to_vec();
            let notice = Notification::Expire { parent, name };
            self.effects.push(Effect::Notice(notice));
        }
    }

    pub(super) fn looked_up(
        &mut self,
        unique: u64,
        parent: u64,
        name: Vec<u8>,
        result: Result<Told, i32>,
    ) {
        match result {
            Ok(Told::Entry(Some(attributes))) if attributes.file.0 < OWN_FIRST => {
                let node = self.learn_name(parent, &name, attributes);
                self.reply_entry(unique, node);
            }
            Ok(Told::Entry(None)) => {
                let watched = self.files.get(&parent).is_some_and(|file| file.watched);
                self.set_name(parent, &name, None);
                self.reply_nothing(unique, parent, &name, watched);
            }
            other => {
                self.set_name(parent, &name, None);
                self.fail(unique, unexpected(other));
            }
        }
    }

    pub(super) fn make(
        &mut self,
        unique: u64,
        who: (u32, u32),
        (parent, name): (u64, &[u8]),
        what: NewFile,
        (mode, umask): (u32, u32),
    ) {
        if self.is_own(parent, name) {
            return self.fail(unique, errno::ROFS);
        }
        let name = name.to_vec();
        let what = Ask::Make {
            parent: FileId(parent),
            name: name.clone(),
            what,
            mode,
            umask,
        };
        let waiting = Waiting::Made {
            unique,
            parent,
            name,
        };
        self.say_maker();
        self.ask(who, what, waiting);
    }

    pub(super) fn link(
        &mut self,
        unique: u64,
        who: (u32, u32),
        file: u64,
        (parent, name): (u64, &[u8]),
    ) {
        if file >= OWN_FIRST || self.is_own(parent, name) {
            return self.fail(unique, errno::ROFS);
        }
        let name = name.to_vec();
        let what = Ask::Link {
            file: FileId(file),
            parent: FileId(parent),
            name: name.clone(),
        };
        let waiting = Waiting::Made {
            unique,
            parent,
            name,
        };
        self.say_maker();
        self.ask(who, what, waiting);
    }

    pub(super) fn made(
        &mut self,
        unique: u64,
        parent: u64,
        name: Vec<u8>,
        result: Result<Told, i32>,
    ) {
        self.directory_changed_by_us(parent);
        match result {
            Ok(Told::Entry(Some(attributes))) if attributes.file.0 < OWN_FIRST => {
                let is_fresh_directory = attributes.links == 2 || attributes.links == 1;
                let node = self.learn_name(parent, &name, attributes);
                // Nobody else can have put anything there that we would not be told of.
                if is_fresh_directory && let Some(directory) = self.watched_directory(node) {
                    directory.begin_empty();
                }
                // A link changed its file.
                self.refresh(node);
                self.reply_entry(unique, node);
            }
            other => {
                self.unlearn_name(parent, &name);
                self.fail(unique, unexpected(other));
            }
        }
    }

    pub(super) fn create(
        &mut self,
        unique: u64,
        who: (u32, u32),
        parent: u64,
        name: Option<&[u8]>,
        (mode, umask): (u32, u32),
        flags: u32,
    ) {
        if name.is_some_and(|name| self.is_own(parent, name)) {
            return self.fail(unique, errno::ROFS);
        }
        let name = name.map(<[u8]>::to_vec);
        let number = HandleId(self.next_handle);
        let handle = self.new_handle(0, number, flags);
        let what = match &name {
            Some(name) => Ask::Create {
                parent: FileId(parent),
                name: name.clone(),
                mode,
                umask,
                flags,
                handle: number,
            },
            None => Ask::Temporary {
                parent: FileId(parent),
                mode,
                umask,
                flags,
                handle: number,
            },
        };
        let waiting = Waiting::Created {
            unique,
            parent,
            name,
            handle,
        };
        self.say_maker();
        self.ask(who, what, waiting);
    }

    pub(super) fn created(
        &mut self,
        unique: u64,
        (parent, name): (u64, Option<Vec<u8>>),
        handle: u64,
        result: Result<Told, i32>,
    ) {
        if name.is_some() {
            self.directory_changed_by_us(parent);
        }
        match result {
            Ok(Told::Opened {
                attributes,
                content: _,
                unkept,
            }) if attributes.file.0 < OWN_FIRST => {
                let node = match &name {
                    Some(name) => self.learn_name(parent, name, attributes),
                    None => self.learn(attributes, true),
                };
                self.drop_content(node);
                self.begin_handle(handle, node);
                self.reply_created(unique, node, handle, unkept);
            }
            other => {
                self.handles.remove(&handle);
                if let Some(name) = &name {
                    self.unlearn_name(parent, name);
                }
                self.fail(unique, unexpected(other));
            }
        }
    }

    pub(super) fn remove(
        &mut self,
        unique: u64,
        who: (u32, u32),
        (parent, name): (u64, &[u8]),
        directory: bool,
    ) {
        if self.is_own(parent, name) {
            return self.fail(unique, errno::ROFS);
        }
        let name = name.to_vec();
        let what = Ask::Remove {
            parent: FileId(parent),
            name: name.clone(),
            directory,
        };
        let waiting = Waiting::Removed {
            unique,
            parent,
            name,
        };
        self.ask(who, what, waiting);
    }

    pub(super) fn removed(
        &mut self,
        unique: u64,
        parent: u64,
        name: Vec<u8>,
        result: Result<Told, i32>,
    ) {
        self.directory_changed_by_us(parent);
        match result {
            Ok(Told::Done) => {
                self.set_name(parent, &name, Some(Name::Nothing));
                self.reply(unique, Reply::Empty);
            }
            other => {
                self.unlearn_name(parent, &name);
                self.fail(unique, unexpected(other));
            }
        }
    }

    pub(super) fn rename(
        &mut self,
        unique: u64,
        who: (u32, u32),
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: u32,
    ) {
        if self.is_own(from.0, from.1) || self.is_own(to.0, to.1) {
            return self.fail(unique, errno::ROFS);
        }
        let what = Ask::Rename {
            from_parent: FileId(from.0),
            from: from.1.to_vec(),
            to_parent: FileId(to.0),
            to: to.1.to_vec(),
            flags,
        };
        let waiting = Waiting::Renamed {
            unique,
            from: (from.0, from.1.to_vec()),
            to: (to.0, to.1.to_vec()),
            exchange: flags & RENAME_EXCHANGE != 0,
        };
        self.ask(who, what, waiting);
    }

    pub(super) fn renamed(
        &mut self,
        unique: u64,
        from: (u64, Vec<u8>),
        to: (u64, Vec<u8>),
        exchange: bool,
        result: Result<Told, i32>,
    ) {
        let old = self.name_of(from.0, &from.1);
        let new = self.name_of(to.0, &to.1);
        self.directory_changed_by_us(from.0);
        self.directory_changed_by_us(to.0);
        match result {
            Ok(Told::Done) => {
                self.move_name(&to, old);
                if exchange {
                    self.move_name(&from, new);
                } else if from != to && old != new {
                    self.set_name(from.0, &from.1, Some(Name::Nothing));
                } else {
                    // Two names of one file: rename(2) leaves both.
                    self.set_name(from.0, &from.1, None);
                }
                self.reply(unique, Reply::Empty);
            }
            other => {
                self.unlearn_name(from.0, &from.1);
                self.unlearn_name(to.0, &to.1);
                self.fail(unique, unexpected(other));
            }
        }
    }

    fn name_of(&self, parent: u64, name: &[u8]) -> Option<Name> {
        self.files.get(&parent)?.directory.as_ref()?.name(name)
    }

    fn move_name(&mut self, (parent, name): &(u64, Vec<u8>), known: Option<Name>) {
        if let Some(Name::File(node)) = known
            && let Some(file) = self.files.get_mut(&node)
        {
            file.name = Some((*parent, name.clone()));
        }
        // A name that we had not asked for was moved nevertheless.
        let known = known.filter(|known| matches!(known, Name::File(_)));
        self.set_name(*parent, name, known);
    }

    pub(super) fn is_own(&self, parent: u64, name: &[u8]) -> bool {
        let is_directory =
            || parent == FileId::ROOT.0 && self.own.iter().any(|(own, _)| own == name);
        is_directory() || self.own_link(parent, name).is_some()
    }

    /// Its times and links are not what they were, nor is its order.
    pub(super) fn directory_changed_by_us(&mut self, parent: u64) {
        self.unlearn_attributes(parent);
        if let Some(directory) = self.directory(parent) {
            directory.changed();
        }
    }

    /// Names of a directory that is looked at more than once are worth fetching together.
    fn ask_for_neighbours(&mut self, who: (u32, u32), parent: u64) {
        let Some(file) = self.files.get_mut(&parent) else {
            return;
        };
        let watched = file.watched;
        if let Some(directory) = &mut file.directory
            && watched
            && let Some(Asked { offset, most }) = directory.missed()
        {
            self.ask_for_listing(who, parent, (offset, most, true), None);
        }
    }
}
