//! What one node is being given, has been given, and has asked for itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use wiglaf_wire::view::{
    FIRST_GIVEN_HANDLE, FileId, Gift, MAX_DATA_BYTES, MAX_UNSETTLED_BYTES, PIECE_BYTES, Program,
};

use super::learned::{Path, Plan, Wish};

/// Gifts on their way to one node; answers stand behind them. Where they take long there is less.
const FIRST_WINDOW: u64 = 128 << 10;
const LEAST_WINDOW: u64 = 64 << 10;
const LARGEST_WINDOW: u64 = 1 << 20;
/// How long an answer may stand behind gifts.
const LONG: Duration = Duration::from_millis(4);
/// Most wishes that wait.
const MAX_QUEUE: usize = 1 << 16;
/// Pieces of which it is known how much a node has been sent.
const MAX_SENT: usize = 1 << 14;
/// A piece of which so much has been sent is not given.
pub(super) const MOSTLY: u32 = PIECE_BYTES / 2;
/// Pieces that are given for a program before it is executed. More would hardly arrive by then.
const FORESEEN_PIECES: usize = 16;

/// What one node is being given.
pub(super) struct Giving {
    pub(super) expected: VecDeque<Program>,
    /// Programs of which everything has been given or is queued, but for pieces of those that are
    /// only foreseen.
    pub(super) begun: HashSet<Path>,
    foreseen: HashSet<Path>,
    /// Those of them that have been executed, so that what they execute is queued, too.
    pub(super) executed: HashSet<Path>,
    pub(super) wishes: VecDeque<(Path, Path, Wish)>,
    pub(super) pieces: VecDeque<(Path, Path, u32)>,
    /// Where the paths lead, for this node.
    pub(super) directories: HashMap<Path, FileId>,
    /// How many bytes of each piece have been sent, asked for or not.
    pub(super) sent: HashMap<(FileId, u32), u32>,
    /// Messages that have not arrived, oldest first.
    under_way: VecDeque<Batch>,
    under_way_weight: u64,
    window: u64,
    /// Bytes of pieces that the node has neither used nor thrown away, as far as is known.
    pub(super) unsettled: u64,
    pub(super) next_handle: u64,
    pub(super) handles: usize,
}

struct Batch {
    weight: u64,
    sent: Instant,
    /// With their lengths.
    pieces: Vec<(FileId, u32, usize)>,
}

impl Default for Giving {
    fn default() -> Giving {
        Giving {
            expected: VecDeque::new(),
            begun: HashSet::new(),
            foreseen: HashSet::new(),
            executed: HashSet::new(),
            wishes: VecDeque::new(),
            pieces: VecDeque::new(),
            directories: HashMap::new(),
            sent: HashMap::new(),
            under_way: VecDeque::new(),
            under_way_weight: 0,
            window: FIRST_WINDOW,
            unsettled: 0,
            next_handle: FIRST_GIVEN_HANDLE,
            handles: 0,
        }
    }
}

impl Giving {
    pub(super) fn has_gifts(&self) -> bool {
        let has_pieces = !self.pieces.is_empty() && self.has_room();
        self.under_way_weight < self.window
            && (!self.expected.is_empty() || !self.wishes.is_empty() || has_pieces)
    }

    /// Whether the node has room for one more piece; it would throw it away else.
    pub(super) fn has_room(&self) -> bool {
        self.unsettled + u64::from(PIECE_BYTES) <= MAX_UNSETTLED_BYTES
    }

    /// Nothing that is queued is needed any more.
    pub(super) fn stop(&mut self) {
        self.expected.clear();
        // What was not given may be when the program is run again.
        if !self.wishes.is_empty() || !self.pieces.is_empty() {
            self.begun.clear();
            self.foreseen.clear();
            self.executed.clear();
        }
        self.wishes.clear();
        self.pieces.clear();
        self.directories.clear();
    }

    /// The node believes nothing any more.
    pub(super) fn start_over(&mut self) {
        self.begun.clear();
        self.foreseen.clear();
        self.executed.clear();
        self.directories.clear();
        self.sent.clear();
    }

    /// Before what is queued already, which belongs to programs that have run for longer. What
    /// is not the program's own is foreseen.
    pub(super) fn queue(&mut self, program: &Path, plan: Plan) {
        let begun = &self.begun;
        let is_new = |of: &Path| !begun.contains(of);
        let room = MAX_QUEUE.saturating_sub(self.wishes.len());
        let first = plan.first.into_iter().filter(|(of, ..)| is_new(of));
        let first: Vec<_> = first.take(room).collect();
        // Those that were given when it was foreseen.
        let mut skipped = if self.foreseen.remove(program) {
            FORESEEN_PIECES
        } else if is_new(program) {
            0
        } else {
            usize::MAX
        };
        let mut foreseen: HashMap<Path, usize> = HashMap::new();
        let then = plan.then.into_iter().filter(|(of, ..)| {
            if of == program {
                let is_left = skipped == 0;
                skipped = skipped.saturating_sub(usize::from(skipped != usize::MAX));
                return is_left;
            }
            let count = foreseen.entry(Rc::clone(of)).or_default();
            *count += 1;
            is_new(of) && *count <= FORESEEN_PIECES
        });
        let room = MAX_QUEUE.saturating_sub(self.pieces.len());
        let then: Vec<_> = then.take(room).collect();
        for (of, ..) in &first {
            if of != program && self.begun.insert(Rc::clone(of)) {
                self.foreseen.insert(Rc::clone(of));
            }
        }
        self.begun.insert(Rc::clone(program));
        for wish in first.into_iter().rev() {
            self.wishes.push_front(wish);
        }
        for piece in then.into_iter().rev() {
            self.pieces.push_front(piece);
        }
    }

    /// A program runs. If that was not foreseen, what was foreseen instead will hardly be.
    pub(super) fn runs(&mut self, program: &Path) {
        self.executed.insert(Rc::clone(program));
        if !self.begun.contains(program) {
            let executed = &self.executed;
            let begun = &mut self.begun;
            let foreseen = &mut self.foreseen;
            let mut runs = |program: &Path| {
                let runs = program.is_empty() || executed.contains(program);
                if !runs {
                    // Not all of it has been given.
                    begun.remove(program);
                    foreseen.remove(program);
                }
                runs
            };
            self.wishes.retain(|(program, ..)| runs(program));
            self.pieces.retain(|(program, ..)| runs(program));
        }
    }

    pub(super) fn sent(&mut self, gifts: &[Gift]) {
        let weight = gifts.iter().map(Gift::weight).sum();
        let pieces = gifts.iter().filter_map(|gift| match gift {
            Gift::Piece { file, piece, data } => Some((*file, *piece, data.0.len())),
            _ => None,
        });
        self.under_way.push_back(Batch {
            weight,
            sent: Instant::now(),
            pieces: pieces.collect(),
        });
        self.under_way_weight += weight;
    }

    pub(super) fn took(&mut self, mut weight: u64, settled: u64) {
        self.unsettled = self.unsettled.saturating_sub(settled);
        while weight > 0
            && let Some(batch) = self.under_way.pop_front()
        {
            weight = weight.saturating_sub(batch.weight);
            self.under_way_weight -= batch.weight;
            self.window = if batch.sent.elapsed() < LONG {
                (self.window + batch.weight).min(LARGEST_WINDOW)
            } else {
                (self.window / 4 * 3).max(LEAST_WINDOW)
            };
        }
    }

    /// The node asks for a range itself.
    pub(super) fn asked(&mut self, file: FileId, offset: u64, length: u32) {
        if self.sent.len() >= MAX_SENT {
            self.sent.clear();
        }
        let length = length.min(MAX_DATA_BYTES);
        let end = offset.saturating_add(u64::from(length));
        for piece in pieces_of(offset, length) {
            let first = u64::from(piece) * u64::from(PIECE_BYTES);
            let last = end.min(first + u64::from(PIECE_BYTES));
            let part = last.saturating_sub(offset.max(first));
            let bytes = self.sent.entry((file, piece)).or_default();
            *bytes = bytes.saturating_add(u32::try_from(part).unwrap_or(u32::MAX));
        }
    }

    /// Whether all of a range is on its way in pieces.
    pub(super) fn has_under_way(&self, file: FileId, offset: u64, length: u32) -> bool {
        if self.under_way.is_empty() || length == 0 {
            return false;
        }
        let length_of = |piece: u32| {
            let mut batches = self.under_way.iter().flat_map(|batch| &batch.pieces);
            let found = batches.find(|(of, number, _)| *of == file && *number == piece);
            found.map(|(_, _, length)| *length)
        };
        for piece in pieces_of(offset, length) {
            match length_of(piece) {
                Some(length) if length < PIECE_BYTES as usize => return true,
                Some(_) => {}
                None => return false,
            }
        }
        true
    }
}

/// The pieces that a range has a part in.
fn pieces_of(offset: u64, length: u32) -> std::ops::RangeInclusive<u32> {
    let number = |at: u64| u32::try_from(at / u64::from(PIECE_BYTES)).unwrap_or(u32::MAX);
    let last = offset.saturating_add(u64::from(length).saturating_sub(1));
    number(offset)..=number(last)
}
