//! Reading: from what is held, from what was given, or by asking.

use wiglaf_fuse::Reply;
use wiglaf_wire::view::{
    Ask, FileId, Filter, MAX_DATA_BYTES, MAX_LOST, MAX_SMALL_FILE_BYTES, PIECE_BYTES, PieceDigest,
    Reply as Told, Use,
};

use super::questions::{Waiting, unexpected};
use super::{Session, errno};

/// Pieces of a file of which the deputy hears, from its beginning.
const MAX_NOTED_PIECES: u32 = 1024;

/// Where pieces are kept, so much is widened to whole ones. Whoever asks for less reads here and
/// there, and the rest of the piece would be of no use.
const LEAST_WIDENED: u32 = 16 << 10;

/// A part of a file that a program reads through an open file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    who: (u32, u32),
    node: u64,
    handle: u64,
    offset: u64,
    size: u32,
}

/// What was asked for to have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Where what is wanted of it begins: what is before that was there, or is on its way.
    from: u64,
    first: u64,
    length: u32,
}

impl Range {
    fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.size))
    }
}

impl Asked {
    fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.length))
    }
}

impl Session {
    /// The node keeps pieces of files on a disk, of which the deputy is to know about these, or
    /// keeps none any more.
    pub fn keep(&mut self, filter: Filter) {
        self.is_keeping = filter.is_valid();
        self.say(Ask::Keeps(filter));
    }

    /// Pieces that the deputy named are not kept any more.
    pub fn lose_kept(&mut self, pieces: Vec<PieceDigest>) {
        let mut pieces = pieces;
        while !pieces.is_empty() {
            let rest = pieces.split_off(pieces.len().min(MAX_LOST));
            self.say(Ask::Lost(std::mem::replace(&mut pieces, rest)));
        }
    }

    pub(super) fn read(
        &mut self,
        unique: u64,
        who: (u32, u32),
        node: u64,
        handle: u64,
        (offset, size): (u64, u32),
    ) {
        let Some(open) = self.handles.get(&handle) else {
            return self.fail(unique, errno::BADF);
        };
        if open.shared
            && let Some(content) = self.files.get(&node).and_then(|file| file.content.clone())
        {
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(content.len());
            let to = from.saturating_add(size as usize).min(content.len());
            return self.reply(unique, Reply::Data(content[from..to].to_vec()));
        }
        let shared = open.shared;
        let wanted = Range {
            who,
            node,
            handle,
            offset,
            size,
        };
        if shared {
            self.note_pieces(&wanted);
            match self.find_pieces(node, offset, size) {
                Ok(data) => return self.reply_pieces(unique, &wanted, data),
                Err(from) => {
                    let from = from.unwrap_or(offset);
                    let from = self.end_of_asked(&wanted, from);
                    return self.ask_for_data(unique, wanted, from);
                }
            }
        }
        self.ask_for_data(unique, wanted, offset);
    }

    /// Where what is on its way ends, if that is some of what is wanted from here on: answers come
    /// in the order of the questions.
    fn end_of_asked(&self, wanted: &Range, from: u64) -> u64 {
        if !self.is_keeping {
            return from;
        }
        let on_their_way = self.waiting.values().filter_map(|waiting| match waiting {
            Waiting::Read {
                wanted: other,
                asked,
                ..
            } if other.node == wanted.node => Some(asked),
            _ => None,
        });
        let ends = on_their_way
            .filter(|asked| (asked.first..asked.end()).contains(&from))
            .map(Asked::end);
        ends.filter(|end| *end < wanted.end()).max().unwrap_or(from)
    }

    fn ask_for_data(&mut self, unique: u64, wanted: Range, from: u64) {
        let Some(open) = self.handles.get(&wanted.handle) else {
            return self.fail(unique, errno::BADF);
        };
        let before = u32::try_from(from - wanted.offset).unwrap_or(u32::MAX);
        let mut asked = Asked {
            from,
            first: from,
            length: wanted.size.saturating_sub(before),
        };
        if self.is_keeping && open.shared && wanted.size >= LEAST_WIDENED {
            asked.widen();
        }
        let what = Ask::Read {
            file: FileId(open.file),
            handle: Some(open.deputys),
            offset: asked.first,
            length: asked.length,
        };
        let waiting = Waiting::Read {
            unique,
            wanted,
            asked,
        };
        self.ask(wanted.who, what, waiting);
    }

    /// Notes which parts of a file that is not small are read. The kernel asks for each but once.
    fn note_pieces(&mut self, wanted: &Range) {
        let Some(size) = self.valid_attributes(wanted.node).map(|told| told.size) else {
            return;
        };
        let end = size.min(wanted.offset + u64::from(wanted.size));
        if size <= MAX_SMALL_FILE_BYTES || wanted.offset >= end {
            return;
        }
        let piece = |at: u64| u32::try_from(at / u64::from(PIECE_BYTES)).unwrap_or(u32::MAX);
        let last = piece(end - 1).min(MAX_NOTED_PIECES);
        for piece in piece(wanted.offset)..=last {
            self.note(Use::Piece(FileId(wanted.node), piece));
        }
    }

    fn reply_pieces(&mut self, unique: u64, wanted: &Range, data: Vec<u8>) {
        self.use_pieces(wanted.node, wanted.offset, data.len());
        self.reply(unique, Reply::Data(data));
    }

    pub(super) fn told_data(
        &mut self,
        unique: u64,
        wanted: Range,
        asked: Asked,
        result: Result<Told, i32>,
    ) {
        if unique == 0 {
            return;
        }
        let from = asked.from;
        match result {
            Ok(Told::Data(mut data)) => {
                self.take_surplus(&wanted, &asked, &data.0);
                let before = usize::try_from(from - asked.first).unwrap_or(usize::MAX);
                data.0.drain(..before.min(data.0.len()));
                data.0
                    .truncate(usize::try_from(wanted.end() - from).unwrap_or(usize::MAX));
                if from == wanted.offset {
                    self.use_pieces(wanted.node, wanted.offset, data.0.len());
                    return self.reply(unique, Reply::Data(data.0));
                }
                let size = u32::try_from(from - wanted.offset).unwrap_or(u32::MAX);
                let before = self.find_pieces(wanted.node, wanted.offset, size).ok();
                match before.filter(|found| found.len() == size as usize) {
                    Some(mut found) => {
                        found.extend(data.0);
                        self.use_pieces(wanted.node, wanted.offset, found.len());
                        self.reply(unique, Reply::Data(found));
                    }
                    None => self.ask_for_data(unique, wanted, wanted.offset),
                }
            }
            Ok(Told::Given) => match self.find_pieces(wanted.node, wanted.offset, wanted.size) {
                Ok(data) => self.reply_pieces(unique, &wanted, data),
                Err(_) => self.ask_for_data(unique, wanted, wanted.offset),
            },
            other => self.fail(unique, unexpected(other)),
        }
    }

    /// What came beyond what is wanted is at hand for the next who wants it.
    fn take_surplus(&mut self, wanted: &Range, asked: &Asked, data: &[u8]) {
        let is_wide = asked.first < asked.from || asked.end() > wanted.end();
        if !is_wide || self.is_disturbed(wanted.node) {
            return;
        }
        for (piece, at) in data
            .chunks(PIECE_BYTES as usize)
            .zip((0u64..).step_by(PIECE_BYTES as usize))
        {
            let first = asked.first + at;
            let is_used = first >= asked.from && first + u64::from(PIECE_BYTES) <= wanted.end();
            if !is_used && let Ok(number) = u32::try_from(first / u64::from(PIECE_BYTES)) {
                self.take_piece(wanted.node, number, piece.to_vec(), false);
            }
        }
    }
}

impl Asked {
    /// Whole pieces, as far as one question goes.
    fn widen(&mut self) {
        let piece = u64::from(PIECE_BYTES);
        let first = self.from - self.from % piece;
        let end = self.end().checked_next_multiple_of(piece);
        let length = end.and_then(|end| u32::try_from(end - first).ok());
        if let Some(length) = length.filter(|length| *length <= MAX_DATA_BYTES) {
            (self.first, self.length) = (first, length);
        }
    }
}
