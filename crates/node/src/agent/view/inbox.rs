//! What a deputy says to a view, in its order. Where it names pieces that the node has kept, what
//! comes after waits with it: an answer that came late would be believed although a change that
//! was told since has made it wrong.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use wiglaf_view::{Missing, ViewMount};
use wiglaf_wire::id::DeputyId;
use wiglaf_wire::view::{
    Answer, Ask, Change, Cut, Filter, Gift, MAX_CUTS, PieceDigest, Question, Short, pieces_in,
};

use super::super::kept::Kept;

/// How long the disk may say nothing while it is waited for. Programs wait, and tasks start behind
/// them.
pub(in super::super) const DISK_WAIT: Duration = Duration::from_secs(2);
/// A disk that was given up so often is not tried again.
const MAX_GIVEN_UP: u32 = 3;
/// Most pieces that are waited for at once. Others are taken for lost.
const MAX_AWAITED: usize = 1024;
/// With more to wait behind the disk, it is given up.
const MAX_WAITING: usize = 4096;

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
    /// The first one waits for its pieces.
    waiting: VecDeque<Waiting>,
    /// Pieces that are waited for.
    awaited: usize,
    /// What the disk has been waited for since: a question, or its last answer.
    quiet_since: Instant,
    /// What the disk was asked last before it was given up: with that it is there again.
    given_up: Option<u64>,
    times_given_up: u32,
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
            awaited: 0,
            quiet_since: Instant::now(),
            given_up: None,
            times_given_up: 0,
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
        if self.given_up.is_none() {
            self.is_keeping = true;
            mount.keep(filter);
        }
    }

    /// The deputy's link is gone: nothing that was said counts any more.
    pub(super) fn lose(&mut self) {
        self.waiting.clear();
        self.awaited = 0;
        self.reads.clear();
        self.is_keeping = false;
    }

    /// This is to be sent to the deputy.
    pub(super) fn asked(&mut self, question: &Question) {
        if let Ask::Read { offset, length, .. } = question.what
            && self.is_keeping
        {
            self.reads.insert(question.id, (offset, length));
        }
    }

    /// It was not.
    pub(super) fn refused(&mut self, question: u64) {
        self.reads.remove(&question);
    }

    /// The deputy says this.
    pub(super) fn hear(&mut self, mut heard: Heard, mount: &mut ViewMount, kept: Option<&Kept>) {
        self.bytes_read += match &heard {
            Heard::Answer(answer) => answer.content_bytes() as u64,
            Heard::Changes(_) => 0,
            Heard::Gifts(gifts, _) => given_bytes(gifts),
        };
        if self.is_keeping {
            let read = match &heard {
                Heard::Answer(answer) => self.reads.remove(&answer.id),
                _ => None,
            };
            if let Some(kept) = kept {
                self.keep_rest(&mut heard, read, &[], kept);
            }
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
        let may_wait = self.given_up.is_none()
            && cuts.len() <= MAX_CUTS
            && self.awaited + cuts.len() <= MAX_AWAITED;
        let Some(kept) = kept.filter(|_| may_wait) else {
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
        if self.waiting.is_empty() {
            self.quiet_since = Instant::now();
        }
        self.awaited += cuts.len();
        let pieces = cuts.iter().map(|cut| cut.digest).collect();
        self.waiting.push_back(Waiting::ForPieces {
            ticket: kept.take(self.deputy, self.uid, pieces),
            told,
            cuts,
            read,
        });
    }

    /// Pieces have come from the disk. Returns whether it is there again after it was given up:
    /// then the deputy may hear anew of what it has.
    pub(super) fn taken(
        &mut self,
        taken: u64,
        pieces: &[Option<Vec<u8>>],
        mount: &mut ViewMount,
        kept: &Kept,
    ) -> bool {
        self.quiet_since = Instant::now();
        // What is asked for in order comes in order; what it was for may be lost with its link.
        let is_first = matches!(
            self.waiting.front(),
            Some(Waiting::ForPieces { ticket, .. }) if *ticket == taken
        );
        if !is_first {
            let is_back = self.given_up == Some(taken) && self.times_given_up < MAX_GIVEN_UP;
            if is_back {
                self.given_up = None;
            }
            return is_back;
        }
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting {
                Waiting::ForPieces {
                    ticket,
                    told,
                    cuts,
                    read,
                } if ticket == taken => {
                    self.awaited -= cuts.len();
                    // Where one is missing, the others are asked for again, too.
                    if pieces.iter().all(Option::is_some) {
                        let lengths = pieces.iter().flatten().map(Vec::len);
                        self.bytes_kept += lengths.sum::<usize>() as u64;
                    }
                    let mut heard = restored(mount, told, &cuts, pieces);
                    self.keep_rest(&mut heard, read, &cuts, kept);
                    deliver(mount, heard);
                }
                Waiting::Ready(heard) => deliver(mount, heard),
                waiting @ Waiting::ForPieces { .. } => {
                    self.waiting.push_front(waiting);
                    break;
                }
            }
        }
        false
    }

    /// When [`Inbox::look`] may have something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.quiet_since + DISK_WAIT)
    }

    /// Gives up a disk that hangs: the deputy is to send everything. Returns whether it did.
    pub(super) fn look(&mut self, now: Instant, mount: &mut ViewMount) -> bool {
        let hangs = self.deadline().is_some_and(|at| at <= now);
        if !hangs && self.waiting.len() <= MAX_WAITING {
            return false;
        }
        self.is_keeping = false;
        self.reads.clear();
        self.times_given_up += 1;
        self.awaited = 0;
        mount.keep(Filter::none());
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::ForPieces {
                    ticket, told, cuts, ..
                } => {
                    self.given_up = Some(ticket);
                    let heard = restored(mount, told, &cuts, &[]);
                    deliver(mount, heard);
                }
                Waiting::Ready(heard) => deliver(mount, heard),
            }
        }
        true
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use tempfile::TempDir;
    use wiglaf_view::{Bounds, Outcome, check_device};
    use wiglaf_wire::view::{Content, Reply};

    use super::super::super::kept::{Said, SharedStore};
    use super::*;

    const DEPUTY: DeputyId = DeputyId(3);

    /// Unmounted before its place is removed.
    fn mounted() -> Option<(TempDir, ViewMount)> {
        if !rustix::process::geteuid().is_root() || check_device().is_err() {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: a view needs root and /dev/fuse"
            );
            return None;
        }
        let place = TempDir::new().unwrap();
        let own = ["proc"];
        let mount = ViewMount::mount(place.path(), &own, Bounds::default(), |_| None);
        Some((place, mount.unwrap()))
    }

    fn short(count: usize) -> (Short, Vec<Cut>) {
        let told = Short::Answer(Answer {
            id: 1_000_000,
            result: Ok(Reply::Data(Content(Vec::new()))),
        });
        let cut = Cut {
            content: 0,
            offset: 0,
            length: 5000,
            digest: [7; 32],
        };
        (told, vec![cut; count])
    }

    fn filters(questions: &[Question]) -> Vec<bool> {
        let filters = questions
            .iter()
            .filter_map(|question| match &question.what {
                Ask::Keeps(filter) => Some(filter.is_valid()),
                _ => None,
            });
        filters.collect()
    }

    /// The answer to a barrier comes; whether it is passed by that.
    fn passes(inbox: &mut Inbox, mount: &mut ViewMount, kept: &Kept) -> bool {
        mount.barrier(0, 7);
        let questions = mount.take_questions();
        let asked = questions.iter().find(|one| one.what == Ask::Barrier);
        let answer = Answer {
            id: asked.unwrap().id,
            result: Ok(Reply::Done),
        };
        inbox.hear(Heard::Answer(answer), mount, Some(kept));
        is_passed(mount)
    }

    fn is_passed(mount: &mut ViewMount) -> bool {
        let outcomes = mount.take_outcomes();
        outcomes
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Passed { token: 7 }))
    }

    fn next_taken(kept: &Kept) -> (u64, Vec<Option<Vec<u8>>>) {
        for _ in 0..1000 {
            for said in kept.said() {
                if let Said::Taken(_, ticket, pieces) = said {
                    return (ticket, pieces);
                }
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the disk never answers");
    }

    #[test]
    fn a_disk_that_hangs_holds_nobody_for_long() {
        let Some((_place, mut mount)) = mounted() else {
            return;
        };
        let store = SharedStore::default();
        let hanging = store.lock();
        let mut kept = Kept::start(store.clone()).unwrap();
        let mut inbox = Inbox::new(DEPUTY, 0);
        inbox.keep(&mut mount, Filter::with_room(1));
        assert_eq!(filters(&mount.take_questions()), [true]);

        let (told, cuts) = short(1);
        inbox.hear_short(told, cuts, &mut mount, Some(&mut kept));
        assert!(!passes(&mut inbox, &mut mount, &kept), "it waits behind");
        let now = Instant::now();
        assert!(!inbox.look(now, &mut mount));
        assert!(inbox.look(now + DISK_WAIT, &mut mount));
        assert!(is_passed(&mut mount));
        assert_eq!(filters(&mount.take_questions()), [false]);
        assert_eq!(inbox.deadline(), None);

        // The deputy has said this before it heard.
        let (told, cuts) = short(1);
        inbox.hear_short(told, cuts, &mut mount, Some(&mut kept));
        assert!(passes(&mut inbox, &mut mount, &kept));

        drop(hanging);
        let (ticket, pieces) = next_taken(&kept);
        assert!(
            inbox.taken(ticket, &pieces, &mut mount, &kept),
            "it is back"
        );
        inbox.keep(&mut mount, Filter::with_room(1));
        assert_eq!(filters(&mount.take_questions()), [true]);
    }

    #[test]
    fn a_disk_that_hangs_again_and_again_is_not_tried_for_ever() {
        let Some((_place, mut mount)) = mounted() else {
            return;
        };
        let mut kept = Kept::start(SharedStore::default()).unwrap();
        let mut inbox = Inbox::new(DEPUTY, 0);
        for time in 1..=MAX_GIVEN_UP {
            inbox.keep(&mut mount, Filter::with_room(1));
            let (told, cuts) = short(1);
            inbox.hear_short(told, cuts, &mut mount, Some(&mut kept));
            assert!(inbox.look(Instant::now() + DISK_WAIT, &mut mount));
            let (ticket, pieces) = next_taken(&kept);
            let is_back = inbox.taken(ticket, &pieces, &mut mount, &kept);
            assert_eq!(is_back, time < MAX_GIVEN_UP);
        }
        mount.take_questions();
        inbox.keep(&mut mount, Filter::with_room(1));
        assert_eq!(filters(&mount.take_questions()), []);
    }

    #[test]
    fn s1_nobody_has_a_node_fetch_more_than_it_has_room_for() {
        let Some((_place, mut mount)) = mounted() else {
            return;
        };
        let store = SharedStore::default();
        let hanging = store.lock();
        let mut kept = Kept::start(store.clone()).unwrap();
        let mut inbox = Inbox::new(DEPUTY, 0);
        inbox.keep(&mut mount, Filter::with_room(1));
        let (told, cuts) = short(MAX_CUTS + 1);
        inbox.hear_short(told, cuts, &mut mount, Some(&mut kept));
        assert_eq!(inbox.deadline(), None, "nothing is waited for");
        for _ in 0..100 {
            let (told, cuts) = short(MAX_CUTS);
            inbox.hear_short(told, cuts, &mut mount, Some(&mut kept));
        }
        assert!(inbox.awaited <= MAX_AWAITED);
        assert_eq!(inbox.waiting.len(), 100, "they keep their order");
        while inbox.waiting.len() <= MAX_WAITING {
            inbox.hear(Heard::Changes(Vec::new()), &mut mount, Some(&kept));
        }
        assert!(inbox.look(Instant::now(), &mut mount));
        assert!(inbox.waiting.is_empty());
        drop(hanging);
    }
}
