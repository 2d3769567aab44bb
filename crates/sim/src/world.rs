//! Time, the queue of what is to happen, and everything that there is.

use std::collections::{BTreeMap, VecDeque};

use wiglaf_head::jobs::ClientId;
use wiglaf_head::node_table::NodeTable;
use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::ToKeeper;

use crate::command::Command;
use crate::faults::{Fault, Setup};
use crate::head::Head;
use crate::keeper::{Keeper, KeeperSays};
use crate::network::{Conn, ConnId};
use crate::node::{Machine, ProcessEvent};
use crate::rng::Rng;
use crate::truth::Truth;
use crate::{Summary, Violation};

/// Events that a report shows.
const TRACE_LENGTH: usize = 200;
/// A run that takes more goes round in circles.
const MAX_STEPS: u64 = 100_000;
/// So that a clock that runs slow is not below zero.
const START_MS: u64 = 1_000_000;

/// Something that is to happen. A number named `life` says for which life of the receiver: what
/// is meant for an earlier one is void.
#[derive(Debug)]
pub(crate) enum Event {
    Fault(Fault),
    HeadStart,
    HeadTick {
        life: u64,
    },
    AgentStart(NodeId),
    AgentTick {
        node: NodeId,
        life: u64,
    },
    /// The next message of a connection, towards the head if `up`.
    Net {
        conn: ConnId,
        up: bool,
    },
    DialTimeout(ConnId),
    /// The agent's shell tells its core.
    Agent {
        node: NodeId,
        life: u64,
        event: wiglaf_node::agent::core::Event,
    },
    Process {
        node: NodeId,
        life: u64,
        task: TaskId,
        event: ProcessEvent,
    },
    HeadToKeeper {
        life: u64,
        message: ToKeeper,
    },
    HeadMeetsKeeper {
        head: u64,
        keeper: u64,
    },
    KeeperToHead {
        life: u64,
        message: KeeperSays,
    },
    HeadToDeputy {
        keeper: u64,
        deputy: DeputyId,
        message: ToDeputy,
    },
    DeputyToHead {
        life: u64,
        deputy: DeputyId,
        message: FromDeputy,
    },
    DeputyStarts {
        keeper: u64,
        deputy: DeputyId,
    },
    GhostEnds {
        keeper: u64,
        task: TaskId,
        overdue: bool,
    },
    CommandToHead {
        life: u64,
        client: ClientId,
        request: Option<Request>,
    },
    HeadToCommand {
        command: usize,
        client: ClientId,
        reply: Option<Reply>,
    },
    CommandRetries {
        command: usize,
    },
}

/// What survives the head: its store.
pub(crate) struct Store {
    pub(crate) next_job: u64,
    pub(crate) nodes: NodeTable,
}

/// All of it.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) setup: Setup,
    pub(crate) rng: Rng,
    pub(crate) now_ms: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub(crate) order: u64,
    /// Per ordered channel: when the last message that is under way arrives.
    clocks: BTreeMap<Wire, u64>,
    pub(crate) store: Store,
    pub(crate) head: Option<Head>,
    pub(crate) head_lives: u64,
    pub(crate) keeper: Keeper,
    pub(crate) nodes: BTreeMap<NodeId, Machine>,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) conn_count: u64,
    pub(crate) client_count: u64,
    pub(crate) commands: Vec<Command>,
    pub(crate) command_times: Vec<u64>,
    /// The head machine's PIDs that are taken, and when their processes started.
    pub(crate) pids: BTreeMap<Pid, u64>,
    pub(crate) truths: BTreeMap<TaskId, Truth>,
    pub(crate) summary: Summary,
    pub(crate) peaceful: bool,
    pub(crate) ended: bool,
    violation: Option<Box<Violation>>,
    trace: Option<VecDeque<String>>,
}

/// An ordered channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wire {
    HeadToKeeper,
    KeeperToHead,
    HeadToDeputy(DeputyId),
    DeputyToHead(DeputyId),
    CommandToHead(ClientId),
    HeadToCommand(ClientId),
    Up(ConnId),
    Down(ConnId),
    Shell(NodeId),
}

impl World {
    pub(crate) fn new(seed: u64, setup: Setup, traced: bool) -> World {
        let mut world = World {
            seed,
            setup,
            rng: Rng::new(seed),
            now_ms: START_MS,
            queue: BTreeMap::new(),
            order: 0,
            clocks: BTreeMap::new(),
            store: Store {
                next_job: 1,
                nodes: NodeTable::default(),
            },
            head: None,
            head_lives: 0,
            keeper: Keeper::default(),
            nodes: BTreeMap::new(),
            conns: BTreeMap::new(),
            conn_count: 0,
            client_count: 1,
            commands: Vec::new(),
            command_times: Vec::new(),
            pids: BTreeMap::new(),
            truths: BTreeMap::new(),
            summary: Summary::default(),
            peaceful: false,
            ended: false,
            violation: None,
            trace: traced.then(VecDeque::new),
        };
        world.plan();
        world.at(START_MS, Event::HeadStart);
        world
    }

    pub(crate) fn run(mut self) -> Result<Summary, Box<Violation>> {
        while !self.ended && self.violation.is_none() {
            let Some(((at_ms, _), event)) = self.queue.pop_first() else {
                break;
            };
            self.now_ms = at_ms;
            self.summary.steps += 1;
            if self.summary.steps > MAX_STEPS {
                self.violated("P1", "the cluster does not come to rest".into());
                break;
            }
            self.note(|_| format!("{event:?}"));
            self.happen(event);
            self.check_step();
        }
        if self.violation.is_none() {
            self.check_rest();
        }
        match self.violation {
            Some(violation) => Err(violation),
            None => Ok(self.summary),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Fault(fault) => self.strike(fault),
            Event::HeadStart => self.start_head(),
            Event::HeadTick { life } => self.head_tick(life),
            Event::AgentStart(node) => self.start_agent(node),
            Event::AgentTick { node, life } => self.agent_tick(node, life),
            Event::Net { conn, up } => self.net(conn, up),
            Event::DialTimeout(conn) => self.dial_timeout(conn),
            Event::Agent { node, life, event } => self.shell_tells(node, life, event),
            Event::Process {
                node,
                life,
                task,
                event,
            } => {
                self.process_event(node, life, task, event);
            }
            Event::HeadToKeeper { life, message } => self.keeper_obeys(life, message),
            Event::HeadMeetsKeeper { head, keeper } => self.keeper_greets(head, keeper),
            Event::KeeperToHead { life, message } => self.head_hears_keeper(life, message),
            Event::HeadToDeputy {
                keeper,
                deputy,
                message,
            } => {
                self.deputy_obeys(keeper, deputy, message);
            }
            Event::DeputyToHead {
                life,
                deputy,
                message,
            } => {
                self.head_hears_deputy(life, deputy, message);
            }
            Event::DeputyStarts { keeper, deputy } => self.deputy_starts(keeper, deputy),
            Event::GhostEnds {
                keeper,
                task,
                overdue,
            } => self.ghost_ends(keeper, task, overdue),
            Event::CommandToHead {
                life,
                client,
                request,
            } => {
                self.head_hears_command(life, client, request);
            }
            Event::HeadToCommand {
                command,
                client,
                reply,
            } => {
                self.command_hears(command, client, reply);
            }
            Event::CommandRetries { command } => self.command_retries(command),
        }
    }

    pub(crate) fn at(&mut self, at_ms: u64, event: Event) {
        self.order += 1;
        self.queue
            .insert((at_ms.max(self.now_ms), self.order), event);
    }

    pub(crate) fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now_ms + delay_ms, event);
    }

    /// Puts an event behind all that is under way on the same channel.
    pub(crate) fn send(&mut self, wire: Wire, delay_ms: u64, event: Event) {
        let clock = self.clocks.entry(wire).or_default();
        *clock = (*clock).max(self.now_ms + delay_ms);
        let at_ms = *clock;
        self.at(at_ms, event);
    }

    /// Between processes of the head's machine: fast, but not always.
    pub(crate) fn local_ms(&mut self) -> u64 {
        match self.rng.below(20) {
            0 => self.rng.between(1, 300),
            1..=5 => self.rng.between(1, 10),
            _ => self.rng.below(2),
        }
    }

    /// Between machines.
    pub(crate) fn network_ms(&mut self) -> u64 {
        let slow = !self.setup.profile.is_gentle();
        match self.rng.below(20) {
            0 if slow => self.rng.between(100, 3_000),
            0..=3 => self.rng.between(5, 100),
            _ => self.rng.between(1, 5),
        }
    }

    pub(crate) fn violated(&mut self, invariant: &'static str, message: String) {
        if self.violation.is_none() {
            let trace = self.trace.take().map(Vec::from).unwrap_or_default();
            let (seed, at_ms) = (self.seed, self.now_ms);
            self.violation = Some(Box::new(Violation {
                seed,
                invariant,
                message,
                at_ms,
                trace,
            }));
        }
    }

    /// Adds a line to the trace, if there is one.
    pub(crate) fn note(&mut self, line: impl FnOnce(&World) -> String) {
        if self.trace.is_none() {
            return;
        }
        let text = format!("{:>9} {}", self.now_ms, line(self));
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LENGTH {
                trace.pop_front();
            }
            trace.push_back(text);
        }
    }
}
