//! What a deputy says to a view, in its order. Where it names pieces that the node has kept, what
//! comes after waits with it: an answer that came late would be believed although a change that
//! was told since has made it wrong.

use std::collections::{HashMap, VecDeque};

use wiglaf_view::{Missing, ViewMount};
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::view::{
    Answer, Ask, Change, Cut, Filter, Gift, PieceDigest, Question, Short, pieces_in,
};

use super::super::kept::Kept;

/// One thing that a deputy says.
#[derive(Debug)]
pub(in super::super) enum Heard {
    /// An answer.
    Answer(Answer),
    /// What is not so any more.
    Changes(Vec<Change>),
    /// What it gives, and what of that is missing.
    Gifts(Vec<Gift>, Missing),
}

/// Something that waits for its pieces, or behind something that does.
#[derive(Debug)]
enum Waiting {
    Ready(Heard),
    ForPieces {
        ticket: u64,
        told: Short,
        cuts: Vec<Cut>,
        read: Option<(u64, u32)>,
    },
}

/// What a deputy has said, and which parts of files it was asked for.
#[derive(Debug)]
pub(super) struct Inbox {
    deputy: DeputyId,
    uid: u32,
    waiting: VecDeque<Waiting>,
    /// Whether the deputy knows that the node keeps pieces.
    is_keeping: bool,
    /// Parts of files by the questions for them.
    reads: HashMap<u64, (u64, u32)>,
    bytes_read: u64,
    bytes_kept: u64,
}

impl Inbox {
    pub(super) fn new(deputy: DeputyId, uid: u32) -> Inbox {
        Inbox {
            deputy,
            uid,
            waiting: VecDeque::new(),
            is_keeping: false,
            reads: HashMap::new(),
            bytes_read: 0,
            bytes_kept: 0,
        }
    }

    /// Bytes of files that the deputy sent.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Bytes that the deputy only had to name.
    pub(super) fn bytes_kept(&self) -> u64 {
        self.bytes_kept
    }

    /// From now on the deputy knows what is kept.
    pub(super) fn keep(&mut self, mount: &mut ViewMount, filter: Filter) {
        self.is_keeping = true;
        mount.keep(filter);
    }

    /// The deputy's link is gone: nothing that was said counts any more.
    pub(super) fn lose(&mut self) {
        self.waiting.clear();
        self.reads.clear();
        self.is_keeping = false;
    }

    /// This is sent to the deputy.
    pub(super) fn asked(&mut self, question: &Question) {
        if let Ask::Read { offset, length, .. } = question.what
            && self.is_keeping
        {
            self.reads.insert(question.id, (offset, length));
        }
    }

    /// The deputy says this.
    pub(super) fn hear(&mut self, mut heard: Heard, mount: &mut ViewMount, kept: Option<&Kept>) {
        self.bytes_read += match &heard {
            Heard::Answer(answer) => answer.content_bytes() as u64,
            Heard::Changes(_) => 0,
            Heard::Gifts(gifts, _) => given_bytes(gifts),
        };
        if let Some(kept) = kept.filter(|_| self.is_keeping) {
            let read = match &heard {
                Heard::Answer(answer) => self.reads.remove(&answer.id),
                _ => None,
            };
            self.keep_rest(&mut heard, read, &[], kept);
        }
        if self.waiting.is_empty() {
            deliver(mount, heard);
        } else {
            self.waiting.push_back(Waiting::Ready(heard));
        }
    }

    /// The deputy says this, without pieces that were kept.
    pub(super) fn hear_short(
        &mut self,
        told: Short,
        cuts: Vec<Cut>,
        mount: &mut ViewMount,
        kept: Option<&mut Kept>,
    ) {
        let Some(kept) = kept else {
            // It was never told that there are any.
            let heard = restored(mount, told, &cuts, &[]);
            return self.hear(heard, mount, None);
        };
        self.bytes_read += match &told {
            Short::Answer(answer) => answer.content_bytes() as u64,
            Short::Given(gifts) => given_bytes(gifts),
        };
        let read = match &told {
            Short::Answer(answer) => self.reads.remove(&answer.id),
            Short::Given(_) => None,
        };
        let pieces = cuts.iter().map(|cut| cut.digest).collect();
        self.waiting.push_back(Waiting::ForPieces {
            ticket: kept.take(self.deputy, self.uid, pieces),
            told,
            cuts,
            read,
        });
    }

    /// Pieces have come from the disk.
    pub(super) fn taken(
        &mut self,
        taken: u64,
        pieces: &[Option<Vec<u8>>],
        mount: &mut ViewMount,
        kept: &Kept,
    ) {
        // What is asked for in order comes in order; what it was for may be lost with its link.
        let is_first = matches!(
            self.waiting.front(),
            Some(Waiting::ForPieces { ticket, .. }) if *ticket == taken
        );
        if !is_first {
            return;
        }
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting {
                Waiting::ForPieces {
                    ticket,
                    told,
                    cuts,
                    read,
                } if ticket == taken => {
                    // Where one is missing, the others are asked for again, too.
                    if pieces.iter().all(Option::is_some) {
                        let lengths = cuts.iter().map(|cut| u64::from(cut.length));
                        self.bytes_kept += lengths.sum::<u64>();
                    }
                    let mut heard = restored(mount, told, &cuts, pieces);
                    self.keep_rest(&mut heard, read, &cuts, kept);
                    deliver(mount, heard);
                }
                Waiting::Ready(heard) => deliver(mount, heard),
                waiting @ Waiting::ForPieces { .. } => {
                    self.waiting.push_front(waiting);
                    return;
                }
            }
        }
    }

    /// Keeps the pieces that came, without those that were kept.
    fn keep_rest(&self, heard: &mut Heard, read: Option<(u64, u32)>, cuts: &[Cut], kept: &Kept) {
        let (mut told, missing) = match std::mem::replace(heard, Heard::Changes(Vec::new())) {
            Heard::Answer(answer) => (Short::Answer(answer), Missing::default()),
            Heard::Gifts(gifts, missing) => (Short::Given(gifts), missing),
            other => {
                *heard = other;
                return;
            }
        };
        for (number, (data, offset, asked)) in (0..).zip(told.contents(read)) {
            let is_cut = |from: usize| {
                let mut cuts = cuts.iter();
                cuts.any(|cut| cut.content == number && cut.offset as usize == from)
            };
            for piece in pieces_in(offset, asked, data.len()) {
                if !is_cut(piece.start) {
                    kept.put(self.uid, &data[piece]);
                }
            }
        }
        *heard = whole(told, missing);
    }
}

fn whole(told: Short, missing: Missing) -> Heard {
    match told {
        Short::Answer(answer) => Heard::Answer(answer),
        Short::Given(gifts) => Heard::Gifts(gifts, missing),
    }
}

/// With its pieces. What is not there is asked for again, after the deputy has heard that.
fn restored(
    mount: &mut ViewMount,
    mut told: Short,
    cuts: &[Cut],
    pieces: &[Option<Vec<u8>>],
) -> Heard {
    let lengths: u64 = cuts.iter().map(|cut| u64::from(cut.length)).sum();
    let weight = weight(&told) + lengths;
    let settled = told.restore(cuts, pieces);
    let length = |at: usize| pieces.get(at)?.as_ref().map(Vec::len);
    let lost = (0..).zip(cuts);
    let lost = lost.filter(|(at, cut)| length(*at) != Some(cut.length as usize));
    let lost: Vec<PieceDigest> = lost.map(|(_, cut)| cut.digest).collect();
    if !lost.is_empty() {
        mount.lose_kept(lost);
    }
    let weight = weight.saturating_sub(self::weight(&told));
    whole(told, Missing { weight, settled })
}

fn given_bytes(gifts: &[Gift]) -> u64 {
    let bytes = gifts.iter().map(Gift::content_bytes);
    bytes.sum::<usize>() as u64
}

fn weight(told: &Short) -> u64 {
    match told {
        Short::Answer(_) => 0,
        Short::Given(gifts) => gifts.iter().map(Gift::weight).sum(),
    }
}

fn deliver(mount: &mut ViewMount, heard: Heard) {
    let now = super::now_ms();
    match heard {
        Heard::Answer(answer) => mount.answer(now, answer),
        Heard::Changes(changes) => mount.changed(now, changes),
        Heard::Gifts(gifts, missing) => mount.given(now, gifts, missing),
    }
}
