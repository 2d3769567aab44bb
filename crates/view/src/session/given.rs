//! What the deputy gives unasked, taken as its answers are: it was told in the same order, and is
//! taken back in the same way.
//!
//! Only where the node itself is changing something is a gift worth less than an answer. Questions
//! that change say at once what is not so any more, and a gift that was made before one of them was
//! handled may come after that.

use std::collections::{HashMap, HashSet};

use wiglaf_wire::view::{
    Ask, Attributes, Entry, FileId, Gift, HandleId, MAX_UNSETTLED_BYTES, PIECE_BYTES,
};

use super::listing::Name;
use super::questions::Waiting;
use super::{OWN_FIRST, Session};

/// Pieces that nobody has used are thrown away by a launch after this time, in milliseconds.
const PIECES_KEPT_MS: u64 = 5000;
/// Most pieces of one file of which it is remembered that the kernel has them.
const MAX_HAD: usize = 1024;
/// So many bytes of pieces are settled before the deputy hears of it without another occasion.
const SETTLED_TOGETHER: u64 = 1 << 20;

/// What was named of gifts and is not kept any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// As of [`Gift::weight`].
    pub weight: u64,
    /// Bytes of [`Gift::Piece`].
    pub settled: u64,
}

/// Pieces of one file that have been given and are not used yet.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    by_number: HashMap<u32, Piece>,
    given_at: u64,
    /// Bytes of each that the kernel has read without.
    had: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Piece {
    data: Vec<u8>,
    /// Bytes that the kernel has not asked for.
    left: usize,
    /// The deputy waits to hear that it is settled.
    is_given: bool,
}

/// What all files' pieces amount to.
#[derive(Debug, Default)]
pub(super) struct Stock {
    files: HashSet<u64>,
    bytes: u64,
    /// Used or thrown away since the deputy was told.
    settled: u64,
}

impl Piece {
    /// Bytes of which the deputy hears that they are settled.
    fn settles(&self) -> u64 {
        if self.is_given {
            self.data.len() as u64
        } else {
            0
        }
    }
}

impl Session {
    /// The deputy gives. Of what it gave, some may be missing, with this weight and so many bytes of
    /// pieces.
    pub fn given(&mut self, now: u64, gifts: Vec<Gift>, missing: Missing) {
        self.now = now;
        if self.lost {
            return;
        }
        let weight = gifts.iter().map(Gift::weight).sum::<u64>() + missing.weight;
        self.stock.settled += missing.settled;
        let disturbed = self.disturbed();
        for gift in gifts {
            self.statistics.gifts += 1;
            self.take(gift, &disturbed);
        }
        let settled = std::mem::take(&mut self.stock.settled);
        self.say(Ask::Took { weight, settled });
    }

    /// Files and directories that the node is changing.
    fn disturbed(&self) -> HashSet<u64> {
        let mut files = HashSet::new();
        for waiting in self.waiting.values() {
            match waiting {
                Waiting::SetAttributes { file, .. }
                | Waiting::Written { file, .. }
                | Waiting::Changed { file, .. } => {
                    files.insert(*file);
                }
                Waiting::Count { changed, .. } => files.extend(*changed),
                Waiting::Made { parent, .. }
                | Waiting::Created { parent, .. }
                | Waiting::Removed { parent, .. } => {
                    files.insert(*parent);
                }
                Waiting::Renamed { from, to, .. } => {
                    files.extend([from.0, to.0]);
                }
                Waiting::Opened { handle, .. } => {
                    let handle = self.handles.get(handle);
                    let writes = handle.filter(|handle| !handle.for_reading);
                    files.extend(writes.map(|handle| handle.file));
                }
                _ => {}
            }
        }
        files
    }

    fn take(&mut self, gift: Gift, disturbed: &HashSet<u64>) {
        match gift {
            Gift::Name {
                parent,
                name,
                found,
            } => {
                let is_disturbed = |file: u64| disturbed.contains(&file);
                match found {
                    Some(found) if found.file.0 >= OWN_FIRST => {}
                    Some(found) if is_disturbed(parent.0) || is_disturbed(found.file.0) => {
                        self.give_back(found.file);
                    }
                    Some(found) => self.take_name(parent.0, &name, found),
                    None if is_disturbed(parent.0) => {}
                    None => {
                        if let Some(directory) = self.watched_directory(parent.0) {
                            directory.set(&name, Some(Name::Nothing));
                        }
                    }
                }
            }
            Gift::Opened {
                handle,
                attributes,
                content,
            } => {
                let content = content.map(|content| content.0);
                let is_disturbed = disturbed.contains(&attributes.file.0);
                if is_disturbed || !self.take_open(handle, attributes, content) {
                    self.say(Ask::Close { handle });
                }
            }
            Gift::Link { file, text } => {
                let is_good = self
                    .valid_attributes(file.0)
                    .is_some_and(|told| told.watched);
                if is_good
                    && !disturbed.contains(&file.0)
                    && let Some(file) = self.files.get_mut(&file.0)
                {
                    file.link = Some(text.0);
                }
            }
            Gift::Listing {
                directory,
                entries,
                end,
            } => self.take_listing(directory.0, entries, end, disturbed),
            Gift::Piece { file, piece, data } => {
                let length = data.0.len() as u64;
                if disturbed.contains(&file.0) || !self.take_piece(file.0, piece, data.0, true) {
                    self.stock.settled += length;
                }
            }
        }
    }

    fn take_name(&mut self, parent: u64, name: &[u8], found: Attributes) {
        if self.is_own(parent, name) {
            self.learn(found, true);
        } else {
            self.learn_name(parent, name, found);
        }
    }

    /// A telling that is not taken.
    fn give_back(&mut self, file: FileId) {
        self.say(Ask::Forget { file, count: 1 });
    }

    fn take_open(
        &mut self,
        handle: HandleId,
        attributes: Attributes,
        content: Option<Vec<u8>>,
    ) -> bool {
        let node = attributes.file.0;
        let (size, watched) = (attributes.size, attributes.watched);
        let is_wanted = |file: &super::File| file.held.is_none() && file.writing == 0;
        if !watched || !self.files.get(&node).is_some_and(is_wanted) {
            return false;
        }
        self.learn(attributes, false);
        let Some(file) = self.files.get_mut(&node) else {
            return false;
        };
        file.held = Some(handle);
        file.readers = 0;
        if let Some(content) = content
            && content.len() as u64 == size
        {
            self.keep_content(node, content);
        }
        true
    }

    fn take_listing(
        &mut self,
        node: u64,
        mut entries: Vec<Entry>,
        end: bool,
        disturbed: &HashSet<u64>,
    ) {
        let changing = |entry: &Entry| {
            let told = entry.attributes.as_ref();
            told.is_some_and(|told| disturbed.contains(&told.file.0))
        };
        if disturbed.contains(&node) || entries.iter().any(changing) {
            for told in entries.iter().filter_map(|entry| entry.attributes.as_ref()) {
                self.give_back(told.file);
            }
            return;
        }
        self.learn_entries(node, &mut entries);
        if let Some(directory) = self.directory(node) {
            let version = directory.version();
            self.keep_order(node, (0, version), entries, end);
        }
    }

    /// Whether the node is changing this file.
    pub(super) fn is_disturbed(&self, node: u64) -> bool {
        self.disturbed().contains(&node)
    }

    /// Keeps a piece until it is used; whether it did.
    pub(super) fn take_piece(
        &mut self,
        node: u64,
        number: u32,
        data: Vec<u8>,
        is_given: bool,
    ) -> bool {
        let length = data.len() as u64;
        let has_room = self.stock.bytes + length <= MAX_UNSETTLED_BYTES;
        let is_known = self.valid_attributes(node).is_some_and(|told| told.watched);
        let now = self.now;
        let Some(file) = self.files.get_mut(&node) else {
            return false;
        };
        let is_wanted = file.held.is_some() && file.content.is_none() && file.writing == 0;
        if !has_room || !is_known || !is_wanted {
            return false;
        }
        let pieces = file.pieces.get_or_insert_default();
        pieces.given_at = now;
        let had = pieces.had.get(&number).copied().unwrap_or(0);
        let left = data.len().saturating_sub(had);
        if left == 0 {
            return false;
        }
        let piece = Piece {
            data,
            left,
            is_given,
        };
        if let Some(before) = pieces.by_number.insert(number, piece) {
            self.stock.bytes -= before.data.len() as u64;
            self.stock.settled += before.settles();
        }
        self.stock.files.insert(node);
        self.stock.bytes += length;
        true
    }

    /// Given bytes of a file, from `offset` on, up to `size` or the end of the file. `Err` is
    /// where the first ones are that were not given, if some before it were.
    pub(super) fn find_pieces(
        &self,
        node: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, Option<u64>> {
        let pieces = self.files.get(&node).and_then(|file| file.pieces.as_ref());
        let pieces = pieces.ok_or(None)?;
        let length = u64::from(PIECE_BYTES);
        let end = offset.saturating_add(u64::from(size));
        let mut found = Vec::new();
        let mut at = offset;
        while at < end {
            let number = u32::try_from(at / length).map_err(|_| None)?;
            let Some(piece) = pieces.by_number.get(&number) else {
                return Err((at > offset).then_some(at));
            };
            let start = usize::try_from(at % length).unwrap_or(usize::MAX);
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
            let part = piece.data.get(start..).unwrap_or_default();
            let part = &part[..wanted.min(part.len())];
            found.extend_from_slice(part);
            at += part.len() as u64;
            if piece.data.len() < PIECE_BYTES as usize {
                break;
            }
        }
        Ok(found)
    }

    /// The kernel has these bytes, and keeps them.
    pub(super) fn use_pieces(&mut self, node: u64, offset: u64, size: usize) {
        let Some(file) = self.files.get_mut(&node) else {
            return;
        };
        if file.held.is_none() || file.content.is_some() {
            return;
        }
        let pieces = file.pieces.get_or_insert_default();
        let length = u64::from(PIECE_BYTES);
        let end = offset.saturating_add(size as u64);
        let mut at = offset;
        while at < end {
            let next = (at / length + 1) * length;
            let used = usize::try_from(end.min(next) - at).unwrap_or(usize::MAX);
            let Ok(number) = u32::try_from(at / length) else {
                break;
            };
            match pieces.by_number.get_mut(&number) {
                Some(piece) => piece.left = piece.left.saturating_sub(used),
                None if pieces.had.len() < MAX_HAD => {
                    *pieces.had.entry(number).or_default() += used;
                }
                None => {}
            }
            if pieces
                .by_number
                .get(&number)
                .is_some_and(|piece| piece.left == 0)
                && let Some(piece) = pieces.by_number.remove(&number)
            {
                self.stock.bytes -= piece.data.len() as u64;
                self.stock.settled += piece.settles();
                pieces.had.insert(number, piece.data.len());
            }
            at = next;
        }
        if pieces.by_number.is_empty() {
            self.stock.files.remove(&node);
        }
        if self.stock.settled >= SETTLED_TOGETHER {
            let settled = std::mem::take(&mut self.stock.settled);
            self.say(Ask::Took { weight: 0, settled });
        }
    }

    /// They may be wrong, or nobody wants them.
    pub(super) fn drop_pieces(&mut self, node: u64) {
        if let Some(file) = self.files.get_mut(&node)
            && let Some(pieces) = file.pieces.take()
        {
            for piece in pieces.by_number.values() {
                self.stock.bytes -= piece.data.len() as u64;
                self.stock.settled += piece.settles();
            }
            self.stock.files.remove(&node);
        }
    }

    /// Throws away all pieces that nobody has used: no task is left that would.
    pub fn drop_unused(&mut self) {
        for node in std::mem::take(&mut self.stock.files) {
            self.drop_pieces(node);
        }
    }

    /// Throws away what nobody has used for long.
    pub(super) fn drop_old_pieces(&mut self) {
        let is_old = |node: &u64| {
            let pieces = self.files.get(node).and_then(|file| file.pieces.as_ref());
            pieces.is_none_or(|pieces| self.now >= pieces.given_at + PIECES_KEPT_MS)
        };
        let old: Vec<_> = self.stock.files.iter().copied().filter(is_old).collect();
        for node in old {
            self.drop_pieces(node);
        }
    }
}
