//! A node's disk and its deputy's part in that: pieces that the node has kept are cut out of what
//! it is told, some of them are lost, and what is told after them waits until they are read.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use wiglaf_view::export::Told;
use wiglaf_view::session::Missing;
use wiglaf_wire::view::{Ask, Change, Cut, Gift, PieceDigest, Question, Short, pieces_in};

use super::kernel::Kernel;

#[derive(Debug, Default)]
pub(crate) struct Disk {
    kept: HashMap<PieceDigest, Vec<u8>>,
    /// What the deputy thinks of it.
    told: HashSet<PieceDigest>,
    lost: HashSet<PieceDigest>,
    reads: HashMap<u64, (u64, u32)>,
    waiting: VecDeque<Waiting>,
    /// Pieces that were put back, and that were not there any more.
    pub(crate) counts: (usize, usize),
}

#[derive(Debug)]
enum Waiting {
    Changes(Vec<Change>),
    Short(Short, Vec<Cut>),
}

impl Disk {
    pub(crate) fn asked(&mut self, question: &Question) {
        match &question.what {
            Ask::Read { offset, length, .. } => {
                self.reads.insert(question.id, (*offset, *length));
            }
            Ask::Lost(pieces) => self.lost.extend(pieces),
            _ => {}
        }
    }

    pub(crate) fn relink(&mut self) {
        self.waiting.clear();
        self.reads.clear();
        self.lost.clear();
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The deputy says this.
    pub(crate) fn hear(&mut self, told: Told) {
        let (mut short, read) = match told {
            Told::Changes(changes) => return self.waiting.push_back(Waiting::Changes(changes)),
            Told::Answer(answer) => {
                let read = self.reads.remove(&answer.id);
                (Short::Answer(answer), read)
            }
            Told::Gifts(gifts) => (Short::Given(gifts), None),
        };
        for (data, offset, asked) in short.contents(read) {
            for piece in pieces_in(offset, asked, data.len()) {
                self.kept
                    .insert(name(&data[piece.clone()]), data[piece].to_vec());
            }
        }
        let known =
            |digest: &PieceDigest| self.told.contains(digest) && !self.lost.contains(digest);
        let mut sent = Vec::new();
        let cuts = short.cut(read, |piece| {
            let digest = name(piece);
            sent.push(digest);
            known(&digest).then_some(digest)
        });
        self.told.extend(sent);
        self.waiting.push_back(Waiting::Short(short, cuts));
    }

    /// The node hears the next thing, if there is one. `is_lost` is asked for each piece of it.
    pub(crate) fn deliver(&mut self, node: &mut Kernel, mut is_lost: impl FnMut() -> bool) {
        let (mut short, cuts) = match self.waiting.pop_front() {
            None => return,
            Some(Waiting::Changes(changes)) => return node.changed(changes),
            Some(Waiting::Short(short, cuts)) => (short, cuts),
        };
        let take = |cut: &Cut| self.kept.get(&cut.digest).filter(|_| !is_lost()).cloned();
        let pieces: Vec<_> = cuts.iter().map(take).collect();
        let full = weight(&short) + cuts.iter().map(|cut| u64::from(cut.length)).sum::<u64>();
        let settled = short.restore(&cuts, &pieces);
        let lost = cuts
            .iter()
            .zip(&pieces)
            .filter(|(_, piece)| piece.is_none());
        let lost: Vec<_> = lost.map(|(cut, _)| cut.digest).collect();
        self.counts.0 += cuts.len() - lost.len();
        self.counts.1 += lost.len();
        if !lost.is_empty() {
            node.lose_kept(lost);
        }
        let weight = full - weight(&short);
        match short {
            Short::Answer(answer) => node.answer(answer),
            Short::Given(gifts) => node.given(gifts, Missing { weight, settled }),
        }
    }
}

fn weight(short: &Short) -> u64 {
    match short {
        Short::Answer(_) => 0,
        Short::Given(gifts) => gifts.iter().map(Gift::weight).sum(),
    }
}

fn name(piece: &[u8]) -> PieceDigest {
    let mut hasher = DefaultHasher::new();
    piece.hash(&mut hasher);
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&hasher.finish().to_ne_bytes());
    digest
}
