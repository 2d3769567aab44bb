//! The state machine: calls and what becomes of them in, orders out.
//!
//! A call that is not for a node runs here at once. The others wait in a queue, what is expected
//! to take longest first and what is not known before it; one at a time is asked for at the head,
//! which places it where a slot is free, and only then is the next one chosen. Lines that fail by
//! the cluster's fault go to another node, then here.

mod choice;
mod run;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod warmth;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use wiglaf_wire::status::{Status, Usage};

pub use settings::{Node, Settings};

use crate::call::Call;
use crate::learned::Learned;
use crate::record::Record;
use crate::{AttemptId, ShimId};
use state::{Attempt, Line, State};
use warmth::Warmth;

/// Launches of one line, before it runs here.
pub(crate) const MAX_ATTEMPTS: u32 = 2;
/// Refusals in a row after which the head is left alone for [`REFUSED_WAIT`].
pub(crate) const MAX_REFUSALS: u32 = 3;
/// See [`MAX_REFUSALS`].
pub(crate) const REFUSED_WAIT: Duration = Duration::from_secs(5);
/// When all nodes are gone, lines wait so long for one to return.
pub(crate) const NODES_RETURN_WAIT: Duration = Duration::from_secs(5);

/// What happens to a build.
#[derive(Clone, Debug)]
pub enum Event {
    /// The nodes that are up for this user, all of them.
    Nodes(Vec<Node>),
    /// CPU that the cluster's daemons use on the head, in thousandths of a core.
    HeadLoad {
        /// Thousandths.
        busy_millicores: u32,
    },
    /// A shim wants to know what to do.
    Called {
        /// Its number, never used before.
        shim: ShimId,
        /// What it was started as.
        call: Call,
    },
    /// A waiting shim was sent a signal that its caller does not ignore.
    ShimSignal {
        /// The shim.
        shim: ShimId,
        /// The signal.
        signal: u8,
        /// The terminal has sent it to the whole group, the ghost among them.
        by_terminal: bool,
    },
    /// A waiting shim's connection has closed: it was killed.
    ShimGone {
        /// The shim.
        shim: ShimId,
    },
    /// What a shim has become here has ended.
    LocalEnded {
        /// The shim.
        shim: ShimId,
    },
    /// The head has placed a line.
    Placed {
        /// Which.
        attempt: AttemptId,
        /// The node's name.
        node: String,
    },
    /// The head has no free slot for a line.
    Waiting {
        /// Which.
        attempt: AttemptId,
    },
    /// The head can't or won't launch a line; the last word on this attempt.
    Refused {
        /// Which.
        attempt: AttemptId,
        /// Why.
        message: String,
    },
    /// An attempt is over, a cancelled one too; the last word on it.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// How.
        status: Status,
        /// What it used, if the head could say.
        usage: Option<Usage>,
    },
    /// The time of [`Broker::due`] has come.
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell the shim to execute its program here: the last answer that it gets.
    RunHere {
        /// The shim.
        shim: ShimId,
    },
    /// Tell the shim to wait. Once at most, and not the last answer.
    Hold {
        /// The shim.
        shim: ShimId,
    },
    /// Launch the line on a node. Its standard input is `/dev/null`.
    Launch {
        /// The number of this try.
        attempt: AttemptId,
        /// The shim that waits for it.
        shim: ShimId,
        /// Nodes that must not be chosen.
        exclude: Vec<String>,
        /// Nodes that have what it needs, the best first, if they have a free slot.
        prefer: Vec<String>,
        /// Memory that it is expected to need.
        memory_kib: Option<u64>,
        /// It has a `/tmp` of its own there.
        private_tmp: bool,
    },
    /// Tell the shim how its line has ended: the last answer that it gets.
    Answer {
        /// The shim.
        shim: ShimId,
        /// How it ended.
        status: Status,
    },
    /// Send a signal to a launched line.
    Signal {
        /// Which.
        attempt: AttemptId,
        /// The signal.
        signal: u8,
    },
    /// Nobody waits for this attempt any more: end it.
    Cancel {
        /// Which.
        attempt: AttemptId,
    },
}

/// How a build is getting on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Lines on each node that has some.
    pub running: Vec<(String, u32)>,
    /// Lines here, but for those that only wait for others.
    pub here: u32,
    /// Lines that wait for a node.
    pub queued: u32,
    /// Asked for at the head and not placed yet: 0 or 1.
    pub waiting: u32,
    /// Lines that have ended.
    pub done: u64,
    /// Lines that were meant for nodes and had to run here.
    pub fallen_back: u64,
}

/// Decides where each line of a build runs.
pub struct Broker {
    settings: Settings,
    learned: Learned,
    record: Record,
    nodes: Vec<Node>,
    lines: HashMap<ShimId, Line>,
    attempts: HashMap<AttemptId, Attempt>,
    next_attempt: u64,
    next_number: u64,
    /// Lines for nodes; see [`state::Rank`].
    queue: BTreeSet<(state::Rank, ShimId)>,
    /// Lines that have to run here and wait for room.
    returned: VecDeque<ShimId>,
    /// The attempt that the head has not placed yet.
    unplaced: Option<AttemptId>,
    /// The head has said that no slot is free.
    is_full: bool,
    /// Short and returned lines that run here.
    room_taken: u32,
    /// Lines that run in the head's slots.
    slots_taken: u32,
    busy_millicores: u32,
    /// When the last node went away.
    nodes_gone: Option<Duration>,
    refusals: u32,
    refused_until: Option<Duration>,
    /// How fast lines are, against what was expected, in thousandths.
    paces: HashMap<String, u64>,
    own_pace: u64,
    warmth: Warmth,
}

/// The pace of what was never measured: as expected.
const EVEN_PACE: u64 = 1000;

impl Broker {
    /// For a build that begins now.
    pub fn new(settings: Settings, learned: Learned) -> Broker {
        Broker {
            record: Record::new(settings.jobs),
            settings,
            learned,
            nodes: Vec::new(),
            lines: HashMap::new(),
            attempts: HashMap::new(),
            next_attempt: 0,
            next_number: 0,
            queue: BTreeSet::new(),
            returned: VecDeque::new(),
            unplaced: None,
            is_full: false,
            room_taken: 0,
            slots_taken: 0,
            busy_millicores: 0,
            nodes_gone: None,
            refusals: 0,
            refused_until: None,
            paces: HashMap::new(),
            own_pace: EVEN_PACE,
            warmth: Warmth::default(),
        }
    }

    /// Takes what has happened at this time since the build's start, and says what is to be done.
    /// Numbers that are not known are ignored.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Nodes(nodes) => self.take_nodes(now, nodes),
            Event::HeadLoad { busy_millicores } => self.busy_millicores = busy_millicores,
            Event::Called { shim, call } => self.called(now, shim, &call, &mut effects),
            Event::ShimSignal {
                shim,
                signal,
                by_terminal,
            } => self.signalled(now, shim, signal, by_terminal, &mut effects),
            Event::ShimGone { shim } => self.shim_gone(now, shim, &mut effects),
            Event::LocalEnded { shim } => self.local_ended(now, shim),
            Event::Placed { attempt, node } => self.placed(now, attempt, node),
            Event::Waiting { attempt } => self.is_full |= self.unplaced == Some(attempt),
            Event::Refused { attempt, message } => {
                self.refused(now, attempt, &message, &mut effects);
            }
            Event::Ended {
                attempt,
                status,
                usage,
            } => self.ended(now, attempt, status, usage, &mut effects),
            Event::Tick => {}
        }
        self.schedule(now, &mut effects);
        effects
    }

    /// When [`Event::Tick`] is wanted, unless something else happens before.
    pub fn due(&self) -> Option<Duration> {
        if self.queue.is_empty() || !self.nodes.is_empty() {
            return None;
        }
        self.nodes_gone.map(|gone| gone + NODES_RETURN_WAIT)
    }

    /// Whether lines wait for a node: more of them would be of use.
    pub fn wants_nodes(&self) -> bool {
        !self.queue.is_empty() || self.unplaced.is_some()
    }

    /// How it is getting on.
    pub fn progress(&self) -> Progress {
        let mut progress = Progress {
            queued: u32::try_from(self.queue.len() + self.returned.len()).unwrap_or(u32::MAX),
            waiting: u32::from(self.unplaced.is_some()),
            done: self.record.line_count(),
            fallen_back: self.record.fallen_back_count(),
            ..Progress::default()
        };
        for line in self.lines.values() {
            match &line.state {
                State::OnNode(_, node) => {
                    match progress.running.iter_mut().find(|(name, _)| name == node) {
                        Some((_, count)) => *count += 1,
                        None => progress.running.push((node.clone(), 1)),
                    }
                }
                State::Here(_) if !line.only_waits() => progress.here += 1,
                _ => {}
            }
        }
        progress.running.sort();
        progress
    }

    /// One row of text for each line that has ended since this was asked last.
    pub fn take_ended(&mut self) -> Vec<String> {
        self.record.take_ended()
    }

    /// The build is over.
    pub fn finish(mut self, now: Duration) -> (Learned, Record) {
        let mut open: Vec<_> = self.lines.drain().map(|(_, line)| line).collect();
        open.sort_by_key(|line| line.row.number);
        for line in open.into_iter().filter(|line| line.is_recorded) {
            self.record.add(line.row);
        }
        self.record.finish(now);
        self.learned.end_build();
        (self.learned, self.record)
    }
}
