//! Any events in any order, against a model of what the shims and the head see.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use wiglaf_wire::status::Status;

use super::super::*;
use super::{ms, node, shell, taught, used};

const LINES: &[&str] = &[
    "gcc -c short.c",
    "gcc -c a.c",
    "gcc -c b.c",
    "gcc -c c.c",
    "gcc -c unknown.c",
    "ld -o unknown x.o",
    "make -C sub",
    "echo x",
    "./unknown",
];
const NODES: &[&str] = &["n1", "n2", "n3"];

#[derive(Clone, Debug)]
enum Op {
    Call {
        line: usize,
        inside: Option<usize>,
    },
    Signal {
        shim: usize,
        signal: u8,
        by_terminal: bool,
    },
    Gone {
        shim: usize,
    },
    LocalEnded {
        shim: usize,
    },
    Placed {
        attempt: usize,
        node: usize,
    },
    Waiting {
        attempt: usize,
    },
    Refused {
        attempt: usize,
    },
    Ended {
        attempt: usize,
        failed: bool,
    },
    Nodes {
        count: usize,
    },
    Load {
        busy_millicores: u32,
    },
    Tick {
        ms: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let number = 0..12_usize;
    let node = 0..NODES.len();
    prop_oneof![
        8 => (0..LINES.len(), proptest::option::weighted(0.2, number.clone()))
            .prop_map(|(line, inside)| Op::Call { line, inside }),
        1 => (number.clone(), proptest::sample::select(vec![2, 10, 15]), any::<bool>())
            .prop_map(|(shim, signal, by_terminal)| Op::Signal { shim, signal, by_terminal }),
        1 => number.clone().prop_map(|shim| Op::Gone { shim }),
        4 => number.clone().prop_map(|shim| Op::LocalEnded { shim }),
        6 => (number.clone(), node).prop_map(|(attempt, node)| Op::Placed { attempt, node }),
        1 => number.clone().prop_map(|attempt| Op::Waiting { attempt }),
        1 => number.clone().prop_map(|attempt| Op::Refused { attempt }),
        6 => (number, proptest::bool::weighted(0.3))
            .prop_map(|(attempt, failed)| Op::Ended { attempt, failed }),
        1 => (0..=NODES.len()).prop_map(|count| Op::Nodes { count }),
        1 => (0..4000_u32).prop_map(|busy_millicores| Op::Load { busy_millicores }),
        2 => (0..4000_u64).prop_map(|ms| Op::Tick { ms }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shim {
    New,
    Held,
    Here,
    Answered,
    Gone,
}

#[derive(Default)]
struct Model {
    shims: HashMap<ShimId, Shim>,
    /// Attempts without a last word, the oldest first, with whether they were cancelled.
    attempts: Vec<(AttemptId, ShimId, bool)>,
    unplaced: HashSet<AttemptId>,
    /// Nodes on which a line has failed.
    failed: HashMap<ShimId, Vec<String>>,
    places: HashMap<AttemptId, String>,
    refused: u32,
    has_nodes: bool,
    fallen_back: u64,
}

struct Rig {
    broker: Broker,
    model: Model,
    now: u64,
    next: u64,
    cores: u32,
    head_slots: u32,
}

impl Rig {
    fn new(cores: u32, head_slots: u32) -> Rig {
        let lines = [
            (LINES[0], 10),
            (LINES[1], 100),
            (LINES[2], 200),
            (LINES[3], 300),
        ];
        let settings = Settings {
            head_slots: Some(head_slots),
            ..Settings::new("/src".into(), cores)
        };
        Rig {
            broker: Broker::new(settings, taught(&lines)),
            model: Model::default(),
            now: 0,
            next: 0,
            cores,
            head_slots,
        }
    }

    fn shim(&self, number: usize, states: &[Shim]) -> Option<ShimId> {
        let mut found: Vec<_> = self
            .model
            .shims
            .iter()
            .filter(|(_, state)| states.contains(state))
            .map(|(shim, _)| *shim)
            .collect();
        found.sort();
        (!found.is_empty()).then(|| found[number % found.len()])
    }

    fn attempt(&self, number: usize) -> Option<(AttemptId, ShimId, bool)> {
        let attempts = &self.model.attempts;
        (!attempts.is_empty()).then(|| attempts[number % attempts.len()])
    }

    /// The attempt gets its last word.
    fn forget(&mut self, id: AttemptId) {
        self.model.attempts.retain(|(other, ..)| *other != id);
        self.model.unplaced.remove(&id);
    }

    fn apply(&mut self, op: Op) {
        let event = match op {
            Op::Call { line, inside } => {
                let mut call = shell(LINES[line]);
                call.inside = inside.and_then(|number| self.shim(number, &[Shim::Here]));
                let shim = ShimId(self.next);
                self.next += 1;
                self.model.shims.insert(shim, Shim::New);
                Event::Called { shim, call }
            }
            Op::Signal {
                shim,
                signal,
                by_terminal,
            } => {
                let Some(shim) = self.shim(shim, &[Shim::Held]) else {
                    return;
                };
                Event::ShimSignal {
                    shim,
                    signal,
                    by_terminal,
                }
            }
            Op::Gone { shim } => {
                let Some(shim) = self.shim(shim, &[Shim::Held]) else {
                    return;
                };
                self.model.shims.insert(shim, Shim::Gone);
                Event::ShimGone { shim }
            }
            Op::LocalEnded { shim } => {
                let Some(shim) = self.shim(shim, &[Shim::Here]) else {
                    return;
                };
                self.model.shims.insert(shim, Shim::Answered);
                Event::LocalEnded { shim }
            }
            Op::Placed { attempt, node } => {
                let Some((attempt, ..)) = self.attempt(attempt) else {
                    return;
                };
                if !self.model.unplaced.remove(&attempt) {
                    return;
                }
                let node = NODES[node].to_owned();
                self.model.places.insert(attempt, node.clone());
                self.model.refused = 0;
                Event::Placed { attempt, node }
            }
            Op::Waiting { attempt } => match self.attempt(attempt) {
                Some((attempt, ..)) => Event::Waiting { attempt },
                None => return,
            },
            Op::Refused { attempt } => {
                let Some((attempt, shim, _)) = self.attempt(attempt) else {
                    return;
                };
                if !self.model.unplaced.contains(&attempt) {
                    return;
                }
                self.forget(attempt);
                self.model.refused += 1;
                self.model.failed.entry(shim).or_default();
                let message = "no".to_owned();
                Event::Refused { attempt, message }
            }
            Op::Ended { attempt, failed } => {
                let Some((attempt, shim, _)) = self.attempt(attempt) else {
                    return;
                };
                self.forget(attempt);
                let status = if failed {
                    let place = self.model.places.get(&attempt).cloned();
                    self.model.failed.entry(shim).or_default().extend(place);
                    Status::cluster_failed("lost")
                } else {
                    Status::Exited(3)
                };
                let usage = used(1);
                Event::Ended {
                    attempt,
                    status,
                    usage,
                }
            }
            Op::Nodes { count } => {
                self.model.has_nodes = count > 0;
                if count > 0 {
                    self.model.refused = 0;
                }
                Event::Nodes(NODES[..count].iter().map(|name| node(name, 2)).collect())
            }
            Op::Load { busy_millicores } => Event::HeadLoad { busy_millicores },
            Op::Tick { ms } => {
                self.now += ms;
                Event::Tick
            }
        };
        self.now += 1;
        let effects = self.broker.handle(ms(self.now), event);
        self.check(&effects);
    }

    fn check(&mut self, effects: &[Effect]) {
        let fallen_back = self.broker.progress().fallen_back;
        let newly = fallen_back - self.model.fallen_back;
        self.model.fallen_back = fallen_back;
        if newly > 0 {
            let has_cause = !self.model.has_nodes
                || self.model.refused >= MAX_REFUSALS
                || !self.model.failed.is_empty();
            assert!(has_cause, "nothing had failed");
        }
        for effect in effects {
            match effect {
                Effect::Hold { shim } => {
                    assert_eq!(self.model.shims.insert(*shim, Shim::Held), Some(Shim::New));
                }
                Effect::RunHere { shim } => {
                    let before = self.model.shims.insert(*shim, Shim::Here);
                    assert!(matches!(before, Some(Shim::New | Shim::Held)), "{before:?}");
                    self.is_free(*shim);
                    self.is_rightly_here(*shim);
                }
                Effect::Answer { shim, .. } => {
                    let before = self.model.shims.insert(*shim, Shim::Answered);
                    assert_eq!(before, Some(Shim::Held));
                    self.is_free(*shim);
                }
                Effect::Launch {
                    attempt,
                    shim,
                    exclude,
                    ..
                } => {
                    assert_eq!(self.model.shims[shim], Shim::Held, "it waits");
                    let others = &self.model.attempts;
                    assert!(
                        others.iter().all(|(_, other, _)| other != shim),
                        "one at a time"
                    );
                    let failed = self.model.failed.get(shim).cloned().unwrap_or_default();
                    assert_eq!(*exclude, failed);
                    self.model.attempts.push((*attempt, *shim, false));
                    self.model.unplaced.insert(*attempt);
                    self.is_longest(*shim);
                }
                Effect::Signal { attempt, .. } => {
                    let is_live = |one: &(AttemptId, ShimId, bool)| one.0 == *attempt && !one.2;
                    assert!(self.model.attempts.iter().any(is_live));
                }
                Effect::Cancel { attempt } => {
                    let mut attempts = self.model.attempts.iter_mut();
                    let found = attempts
                        .find(|(id, ..)| id == attempt)
                        .expect("a live attempt");
                    assert!(!std::mem::replace(&mut found.2, true), "cancelled once");
                }
            }
        }
        let asked = self
            .model
            .attempts
            .iter()
            .filter(|(id, _, cancelled)| !cancelled && self.model.unplaced.contains(id));
        assert!(asked.count() <= 1, "one waits at the head");
        assert!(self.broker.room_taken <= self.cores);
        assert!(self.broker.slots_taken <= self.head_slots);
    }

    /// A line that has got its last answer has no attempt that could still do something.
    fn is_free(&self, shim: ShimId) {
        let is_live = |one: &(AttemptId, ShimId, bool)| one.1 == shim && !one.2;
        assert!(
            !self.model.attempts.iter().any(is_live),
            "it would run twice"
        );
    }

    /// A line for nodes runs here only for a reason that stands in its row.
    fn is_rightly_here(&self, shim: ShimId) {
        let line = &self.broker.lines[&shim];
        if !line.is_recorded || line.judgement.wish == crate::policy::Wish::Here {
            return;
        }
        let is_short = line.judgement.wish == crate::policy::Wish::HereIfRoom;
        let has_reason = line.row.fell_back.is_some() || line.row.in_head_slot || is_short;
        assert!(has_reason, "{:?}", line.row);
        if self.model.failed.contains_key(&shim) && !line.row.in_head_slot && !is_short {
            assert!(line.row.fell_back.is_some());
        }
    }

    /// Nothing in the queue was expected to take longer.
    fn is_longest(&self, shim: ShimId) {
        let length = |shim: &ShimId| {
            let row = &self.broker.lines[shim].row;
            row.expected_us.unwrap_or(u64::MAX)
        };
        if self.broker.lines[&shim].row.attempts > 1 {
            return;
        }
        for (_, other) in &self.broker.queue {
            assert!(length(other) <= length(&shim), "longest first");
        }
    }

    /// Whatever has happened: when everything ends, every shim has its answer.
    fn drain(&mut self) {
        self.apply(Op::Load { busy_millicores: 0 });
        for _ in 0..10_000 {
            let open = [Shim::New, Shim::Held, Shim::Here];
            if self.shim(0, &open).is_none() && self.model.attempts.is_empty() {
                assert!(self.broker.lines.is_empty());
                assert!(self.broker.attempts.is_empty());
                assert!(self.broker.queue.is_empty() && self.broker.returned.is_empty());
                assert_eq!((self.broker.room_taken, self.broker.slots_taken), (0, 0));
                return;
            }
            self.apply(Op::Tick { ms: 1_000 });
            self.apply(Op::LocalEnded { shim: 0 });
            self.apply(Op::Placed {
                attempt: 0,
                node: 0,
            });
            self.apply(Op::Ended {
                attempt: 0,
                failed: false,
            });
        }
        panic!("{:?} wait for ever", self.model.shims);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn p4_each_line_ends_once_and_runs_in_one_place(
        ops in proptest::collection::vec(op(), 0..120),
        cores in 1..4_u32,
        head_slots in 0..3_u32,
    ) {
        let mut rig = Rig::new(cores, head_slots);
        let calls = ops.iter().filter(|op| matches!(op, Op::Call { .. })).count();
        ops.into_iter().for_each(|op| rig.apply(op));
        rig.drain();
        let fallen_back = rig.model.fallen_back;
        let record = rig.broker.finish(ms(rig.now)).1;
        // Those that died before their turn count as well, and parts have no row.
        let told = record.rows().iter().filter(|row| row.fell_back.is_some()).count();
        prop_assert_eq!(told as u64, fallen_back);
        prop_assert!(record.rows().len() <= calls);
    }
}
