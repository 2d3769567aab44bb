//! What goes wrong, and what users do, at times that the seed chooses.

use wiglaf_wire::id::NodeId;

use crate::command::Kind;
use crate::world::{Event, World};

/// Faults and commands come until then.
const TROUBLE_MS: u64 = 150_000;
/// After the last fault: redials, the resume wait, leases, tasks' own time.
const REST_MS: u64 = 240_000;
/// Between a gentle run's partitions: long enough for the leases to be renewed.
const GENTLE_GAP_MS: u64 = 40_000;
/// A gentle partition: with the silence and the redials after it, shorter than three quarters of
/// a lease, which is what a lease has left at least when a partition begins.
const GENTLE_PARTITION_MS: u64 = 15_000;
const GENTLE_LEASE_MS: u64 = 60_000;
const BURST_MS: u64 = 3_000;
const MAX_NODES: u64 = 4;
const MAX_COMMANDS: u64 = 10;
const MAX_FAULTS: u64 = 12;

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Crashes of the head, broken connections and partitions shorter than the lease: nothing may
    /// be lost.
    Gentle,
    /// Everything.
    Rough,
}

impl Profile {
    pub(crate) fn is_gentle(self) -> bool {
        self == Profile::Gentle
    }
}

/// A mistake that is made on purpose, to show that the simulator finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The head counts on leases this long, without a margin; the agents have longer ones.
    ShortLease(u64),
    /// An agent whose lease is over does not kill its tasks.
    Immortal,
    /// The keeper reaps a ghost that was killed without asking whether its task is over.
    EagerKeeper,
}

/// What a run is like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which faults there are.
    pub profile: Profile,
    /// How long an agent may let tasks live after an answered renewal.
    pub lease_ms: u64,
    /// What the head adds for clocks that differ.
    pub margin_ms: u64,
    /// Made on purpose.
    pub mistake: Option<Mistake>,
}

impl Setup {
    /// The cluster as it is delivered.
    pub fn new(profile: Profile) -> Setup {
        let lease_ms = GENTLE_LEASE_MS;
        Setup {
            profile,
            lease_ms,
            margin_ms: lease_ms / 12,
            mistake: None,
        }
    }

    /// The same with a mistake.
    pub fn with(mut self, mistake: Mistake) -> Setup {
        self.mistake = Some(mistake);
        self
    }
}

/// Something that the seed has planned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    HeadCrash {
        down_ms: u64,
    },
    KeeperCrash,
    DeputyCrash,
    /// The machine loses its power, or only the agent dies; it comes back, or not before the end.
    AgentCrash {
        node: NodeId,
        power: bool,
        down_ms: u64,
    },
    Break {
        node: NodeId,
    },
    Partition {
        node: NodeId,
        for_ms: u64,
    },
    Command,
    /// A user signals a ghost.
    Signal(u8),
    /// A user asks the head to signal one: `wiglaf kill`.
    AskSignal(u8),
    /// A user kills a command that is launching.
    KillCommand,
    List,
    /// No more trouble: all that is down comes back, all that is stopped goes on.
    Peace,
    /// Once more, all that is stopped goes on.
    Continue,
    /// All connections break once, so that each agent tells what it still has.
    Roll,
    End,
}

impl World {
    pub(crate) fn plan(&mut self) {
        if !self.setup.profile.is_gentle() && self.rng.chance(50) {
            let lease_ms = self.rng.pick(&[12_000, 24_000]).unwrap_or(12_000);
            self.setup.lease_ms = lease_ms;
            self.setup.margin_ms = lease_ms / 12;
        }
        let count = self.rng.between(1, MAX_NODES);
        for number in 1..=count {
            self.add_node(NodeId(u32::try_from(number).unwrap_or(1)));
        }
        self.plan_commands();
        if self.setup.profile.is_gentle() {
            self.plan_gentle_faults();
        } else {
            self.plan_rough_faults();
        }
        let mut at_ms = self.now_ms + TROUBLE_MS;
        // A stop may have waited for its node.
        self.at(at_ms + REST_MS / 2, Event::Fault(Fault::Continue));
        for last in [Fault::Peace, Fault::Roll, Fault::End] {
            self.at(at_ms, Event::Fault(last));
            at_ms += if matches!(last, Fault::Peace) {
                REST_MS
            } else {
                REST_MS / 8
            };
        }
    }

    fn plan_commands(&mut self) {
        // In some runs all at once, in some close to the faults.
        let spread_ms = self
            .rng
            .pick(&[500, 5_000, TROUBLE_MS])
            .unwrap_or(TROUBLE_MS);
        let first_ms = self.now_ms + self.rng.below(10_000);
        for _ in 0..self.rng.between(1, MAX_COMMANDS) {
            let at_ms = first_ms + self.rng.below(spread_ms.min(TROUBLE_MS - 20_000));
            self.at(at_ms, Event::Fault(Fault::Command));
            self.command_times.push(at_ms);
        }
    }

    /// Half of all faults strike while something is being launched.
    fn trouble_time(&mut self) -> u64 {
        let times = self.command_times.clone();
        match self.rng.pick(&times) {
            Some(launch) if self.rng.chance(60) => launch + self.rng.below(400),
            _ => self.now_ms + self.rng.below(TROUBLE_MS),
        }
    }

    fn plan_gentle_faults(&mut self) {
        for _ in 0..self.rng.below(MAX_FAULTS) {
            let at_ms = self.trouble_time();
            if self.rng.chance(60) {
                // A head that comes and goes must leave agents time to find it.
                let down_ms = self.rng.between(1, 3_000);
                self.at(at_ms, Event::Fault(Fault::HeadCrash { down_ms }));
            } else if let Some(node) = self.any_node() {
                self.at(at_ms, Event::Fault(Fault::Break { node }));
            }
        }
        let mut at_ms = self.now_ms + self.rng.below(GENTLE_GAP_MS);
        while at_ms < self.now_ms + TROUBLE_MS {
            if let Some(node) = self.any_node()
                && self.rng.chance(50)
            {
                let for_ms = self.rng.between(10, GENTLE_PARTITION_MS);
                self.at(at_ms, Event::Fault(Fault::Partition { node, for_ms }));
            }
            at_ms += GENTLE_PARTITION_MS + GENTLE_GAP_MS + self.rng.below(GENTLE_GAP_MS);
        }
    }

    fn plan_rough_faults(&mut self) {
        for _ in 0..self.rng.below(MAX_FAULTS) {
            let at_ms = self.trouble_time();
            let Some(node) = self.any_node() else {
                continue;
            };
            let fault = match self.rng.below(12) {
                0..=2 => Fault::HeadCrash {
                    down_ms: self.rng.between(1, 20_000),
                },
                3 => Fault::KeeperCrash,
                4 => Fault::DeputyCrash,
                5..=7 => {
                    let (power, down_ms) = (self.rng.chance(50), self.rng.between(1, 100_000));
                    Fault::AgentCrash {
                        node,
                        power,
                        down_ms,
                    }
                }
                8 => Fault::Break { node },
                _ => {
                    let longest = self.rng.pick(&[5_000, 30_000, 100_000]).unwrap_or(5_000);
                    Fault::Partition {
                        node,
                        for_ms: self.rng.between(10, longest),
                    }
                }
            };
            self.at(at_ms, Event::Fault(fault));
        }
        if self.rng.chance(40) {
            self.plan_burst();
        }
        for _ in 0..self.rng.below(6) {
            let at_ms = self.trouble_time();
            let signal = self
                .rng
                .pick(&[1, 2, 9, 9, 10, 15, 18, 19, 20])
                .unwrap_or(9);
            let fault = match self.rng.below(8) {
                0..=3 => Fault::Signal(signal),
                4..=5 => Fault::AskSignal(signal),
                6 => Fault::KillCommand,
                _ => Fault::List,
            };
            self.at(at_ms, Event::Fault(fault));
        }
    }

    /// One node has much trouble at once, and comes back while its last words are under way.
    fn plan_burst(&mut self) {
        let first_ms = self.trouble_time();
        let Some(node) = self.any_node() else { return };
        for _ in 0..self.rng.between(3, 8) {
            let fault = match self.rng.below(4) {
                0 => Fault::Break { node },
                1 | 2 => Fault::Partition {
                    node,
                    for_ms: self.rng.between(1, 2_000),
                },
                _ => Fault::AgentCrash {
                    node,
                    power: false,
                    down_ms: self.rng.between(1, 300),
                },
            };
            let at_ms = first_ms + self.rng.below(BURST_MS);
            self.at(at_ms, Event::Fault(fault));
        }
    }

    fn any_node(&mut self) -> Option<NodeId> {
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        self.rng.pick(&ids)
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::HeadCrash { down_ms } => {
                if self.head.is_some() {
                    self.summary.head_crashes += 1;
                    self.crash_head();
                    self.after(down_ms, Event::HeadStart);
                }
            }
            Fault::KeeperCrash => self.crash_keeper(),
            Fault::DeputyCrash => self.crash_deputy(),
            Fault::AgentCrash {
                node,
                power,
                down_ms,
            } => {
                self.crash_agent(node, power);
                self.after(down_ms, Event::AgentStart(node));
            }
            Fault::Break { node } => self.break_connections(node),
            Fault::Partition { node, for_ms } => {
                let until_ms = self.now_ms + for_ms;
                if let Some(machine) = self.nodes.get_mut(&node) {
                    machine.partition_until_ms = machine.partition_until_ms.max(until_ms);
                }
            }
            Fault::Command => {
                let kind = if self.rng.chance(70) {
                    Kind::Single
                } else {
                    Kind::Several
                };
                self.start_command(kind);
            }
            Fault::Signal(signal) => {
                let ghosts: Vec<_> = self.keeper.ghosts.values().map(|ghost| ghost.pid).collect();
                if let Some(pid) = self.rng.pick(&ghosts) {
                    self.signal_local(pid, signal);
                }
            }
            Fault::AskSignal(signal) => self.ask_signal(signal),
            Fault::KillCommand => self.kill_some_command(),
            Fault::List => self.ask_list(),
            Fault::Peace => self.peace(),
            Fault::Continue => {
                let ids: Vec<_> = self.nodes.keys().copied().collect();
                ids.into_iter().for_each(|node| self.continue_all(node));
            }
            Fault::Roll => {
                let ids: Vec<_> = self.nodes.keys().copied().collect();
                ids.into_iter()
                    .for_each(|node| self.break_connections(node));
            }
            Fault::End => self.ended = true,
        }
    }

    fn peace(&mut self) {
        self.peaceful = true;
        if self.head.is_none() {
            self.after(1, Event::HeadStart);
        }
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        for node in ids {
            if let Some(machine) = self.nodes.get_mut(&node) {
                machine.partition_until_ms = 0;
                if machine.life.is_none() {
                    self.after(1, Event::AgentStart(node));
                }
            }
            self.continue_all(node);
        }
    }
}
