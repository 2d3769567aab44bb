//! Reading: from what is held, from what was given, or by asking.

use wiglaf_fuse::Reply;
use wiglaf_wire::view::{Ask, FileId, MAX_SMALL_FILE_BYTES, PIECE_BYTES, Reply as Told, Use};

use super::questions::{Waiting, unexpected};
use super::{Session, errno};

/// Pieces of a file of which the deputy hears, from its beginning.
const MAX_NOTED_PIECES: u32 = 1024;

/// A part of a file that a program reads through an open file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    who: (u32, u32),
    node: u64,
    handle: u64,
    offset: u64,
    size: u32,
}

impl Session {
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
                Err(Some(from)) => return self.ask_for_data(unique, wanted, from),
                Err(None) => {}
            }
        }
        self.ask_for_data(unique, wanted, offset);
    }

    fn ask_for_data(&mut self, unique: u64, wanted: Range, from: u64) {
        let Some(open) = self.handles.get(&wanted.handle) else {
            return self.fail(unique, errno::BADF);
        };
        let before = u32::try_from(from - wanted.offset).unwrap_or(u32::MAX);
        let what = Ask::Read {
            file: FileId(open.file),
            handle: Some(open.deputys),
            offset: from,
            length: wanted.size.saturating_sub(before),
        };
        let waiting = Waiting::Read {
            unique,
            wanted,
            from,
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
        from: u64,
        result: Result<Told, i32>,
    ) {
        if unique == 0 {
            return;
        }
        match result {
            Ok(Told::Data(data)) => {
                self.statistics.bytes_read += data.0.len() as u64;
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
}
