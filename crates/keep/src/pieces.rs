//! Which pieces there are, where, and whose. 60 to 120 bytes of memory for each.

use std::collections::HashMap;

use crate::Digest;
use crate::segment::{Kind, Placed, Row};

#[derive(Default)]
pub(crate) struct Pieces {
    known: HashMap<Digest, Piece>,
    /// Users but the one in the piece's own record.
    others: HashMap<Digest, Vec<u32>>,
    others_count: usize,
}

#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) segment: u32,
    offset: u32,
    length: u32,
    user: u32,
    /// Since the store was opened, or the piece moved.
    is_used: bool,
}

impl Piece {
    pub(crate) fn placed(&self, digest: Digest) -> Placed {
        let row = Row {
            kind: Kind::Piece,
            length: self.length,
            user: self.user,
            digest,
        };
        let offset = self.offset;
        Placed { offset, row }
    }
}

impl Pieces {
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.known.contains_key(digest)
    }

    pub(crate) fn of(&self, user: u32, digest: &Digest) -> Option<Piece> {
        let piece = self.known.get(digest)?;
        let is_users = piece.user == user || self.others(digest).contains(&user);
        is_users.then_some(*piece)
    }

    pub(crate) fn others(&self, digest: &Digest) -> &[u32] {
        self.others.get(digest).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn used(&mut self, digest: &Digest) {
        if let Some(piece) = self.known.get_mut(digest) {
            piece.is_used = true;
        }
    }

    /// The later record of the same piece counts. A user of a piece that is gone has none.
    pub(crate) fn add(&mut self, segment: u32, placed: &Placed) {
        let Row {
            kind,
            length,
            user,
            digest,
        } = placed.row;
        let piece = Piece {
            segment,
            offset: placed.offset,
            length,
            user,
            is_used: false,
        };
        let other = match (kind, self.known.get_mut(&digest)) {
            (Kind::Piece, Some(known)) => std::mem::replace(known, piece).user,
            (Kind::Piece, None) => {
                self.known.insert(digest, piece);
                return;
            }
            (Kind::User, Some(_)) => user,
            (Kind::User, None) => return,
        };
        if self.of(other, &digest).is_none() {
            self.others.entry(digest).or_default().push(other);
            self.others_count += 1;
        }
    }

    pub(crate) fn forget(&mut self, digest: &Digest) {
        self.known.remove(digest);
        self.forget_others(digest);
    }

    pub(crate) fn forget_segment(&mut self, segment: u32) {
        let gone = self.known.extract_if(|_, piece| piece.segment == segment);
        let gone: Vec<_> = gone.map(|(digest, _)| digest).collect();
        for digest in &gone {
            self.forget_others(digest);
        }
    }

    fn forget_others(&mut self, digest: &Digest) {
        if let Some(others) = self.others.remove(digest) {
            self.others_count -= others.len();
        }
    }

    /// In the order of their places.
    pub(crate) fn used_in(&self, segment: u32) -> Vec<Placed> {
        let here = |piece: &&Piece| piece.is_used && piece.segment == segment;
        let all = self.known.iter().filter(|(_, piece)| here(piece));
        let mut used: Vec<_> = all.map(|(digest, piece)| piece.placed(*digest)).collect();
        used.sort_unstable_by_key(|placed| placed.offset);
        used
    }

    pub(crate) fn digests(&self, user: u32) -> impl Iterator<Item = Digest> + '_ {
        let is_users = move |digest: &Digest, piece: &Piece| {
            piece.user == user || self.others(digest).contains(&user)
        };
        let all = self.known.iter();
        all.filter_map(move |(digest, piece)| is_users(digest, piece).then_some(*digest))
    }

    /// Pieces, and users of pieces besides the first.
    pub(crate) fn records(&self) -> usize {
        self.known.len() + self.others_count
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}
