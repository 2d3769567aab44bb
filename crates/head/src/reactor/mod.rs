//! The head's decisions: events in, effects out. No sockets, no clock, no randomness, so that the
//! simulator can run it against lost messages and crashes of either side.
//!
//! `tasks` holds the life of a task and `signals` what is sent to it; `keeper` and `deputies` hear
//! those, and `nodes` has membership and fencing. `requests` is what commands ask, `processes` what
//! they ask of the processes on all nodes and `views` of the views there, both by way of `lists`.

mod deputies;
mod disks;
mod keeper;
mod lists;
mod nodes;
mod processes;
mod requests;
mod signals;
mod tasks;
#[cfg(test)]
mod tests;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::client::{JobInfo, Reply, Request, RunRequest};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, JobId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostMode, ToKeeper};
use wiglaf_wire::launch::Credential;

use crate::jobs::{Caller, ClientId, Job};
use crate::node_table::{Node, NodeTable};
use lists::Listing;
pub(crate) use requests::refuse;

/// How the cluster is run.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How long an agent may let tasks live after an answered renewal.
    pub lease_ms: u64,
    /// Added to the lease before a silent node counts as dead: for clocks that differ in rate.
    pub margin_ms: u64,
    /// Members may do what root may.
    pub admin_gid: Option<u32>,
    /// The user that the head runs as.
    pub own_uid: u32,
    /// Whether root's tasks may run on nodes that are not virtual: such a node is trusted as the
    /// head is.
    pub root_on_nodes: bool,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            lease_ms: 60_000,
            margin_ms: 5_000,
            admin_gid: None,
            own_uid: 0,
            root_on_nodes: false,
        }
    }
}

/// How long `ps` and `view status` wait for a node's list.
const LIST_WAIT_MS: u64 = 2_000;
/// How long a restarted head waits for a command that was in the middle of a launch.
const RESUME_WAIT_MS: u64 = 10_000;
/// How long jobs wait for nodes that have not come back yet to a restarted head.
const RETURN_WAIT_MS: u64 = 10_000;
/// Ended jobs that are remembered for `wait` and `jobs`.
const KEPT_JOBS: usize = 1_000;
/// Jobs that may wait for a slot.
const MAX_WAITING_JOBS: usize = 10_000;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A verified node says hello: the agent's certificate names it.
    NodeHello {
        /// Which.
        node: NodeId,
        /// The first message.
        hello: FromAgent,
    },
    /// A later message.
    FromNode(NodeId, FromAgent),
    /// The connection to the node is lost.
    NodeLost(NodeId),
    /// The kernel has shown that a virtual node's agent, and with it all its tasks, is dead.
    NodeProvenDead(NodeId),
    /// The keeper says.
    FromKeeper(FromKeeper),
    /// The keeper has died: so have all ghosts' tracers and deputies.
    KeeperLost,
    /// A deputy says.
    FromDeputy(DeputyId, FromDeputy),
    /// A command asks.
    Request(Caller, Request),
    /// A command names a ghost: itself, or a child, as the daemon has checked.
    Ghost {
        /// Who.
        caller: Caller,
        /// Place of its task in the job.
        index: u32,
        /// Its PID.
        pid: Pid,
        /// When it started, in clock ticks since boot.
        start_time: u64,
        /// Its terminal.
        mode: GhostMode,
    },
    /// A command has gone.
    ClientGone(ClientId),
    /// This head takes over from one that has died: its nodes may all still work (P4).
    TakenOver,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell an agent.
    ToNode(NodeId, ToAgent),
    /// Close its connection.
    DropNode(NodeId),
    /// Tell the keeper. With `Seize` goes the control socket that the ghost's request brought.
    ToKeeper(ToKeeper),
    /// Tell a deputy. With `Attach` go the descriptors that the ghost's request brought; where
    /// there are none any more (the head was restarted), it is not sent.
    ToDeputy(DeputyId, ToDeputy),
    /// Answer a command.
    Reply(ClientId, Reply),
    /// Answer with the log files of a detached job's task.
    ReplyLogs(ClientId, TaskId, bool),
    /// The descriptors of a task are no longer needed.
    Forget(TaskId),
    /// Remember a node.
    StoreNode(Box<Node>),
    /// Remember a detached job.
    StoreJob(JobInfo),
    /// Make a token and send it.
    MakeToken(ClientId, u64),
    /// Answer with what only the daemon knows.
    ReplyHeadStatus(ClientId),
    /// End the cluster.
    Shutdown,
}

/// The head's state.
#[derive(Debug)]
pub struct Reactor {
    policy: Policy,
    nodes: NodeTable,
    jobs: BTreeMap<JobId, Job>,
    kept: VecDeque<JobInfo>,
    waiting: VecDeque<Waiting>,
    deputies: BTreeMap<Credential, DeputyId>,
    /// Those that listen.
    ready_deputies: BTreeSet<DeputyId>,
    next_job: u64,
    next_deputy: u64,
    next_list: u64,
    lists: BTreeMap<u64, Listing>,
    signal_requests: BTreeMap<u64, ClientId>,
    job_waiters: Vec<(ClientId, JobId)>,
    node_waiters: Vec<(ClientId, u32)>,
    resume_until_ms: u64,
    /// Until then nodes of the head before this one are expected back.
    return_until_ms: u64,
    /// The keeper has told what it holds. Before that nothing is known, so no node is let in (its
    /// tasks would be taken for strangers') and no job is placed (it may have been before).
    has_inventory: bool,
    shutting_down: bool,
}

/// A job that waits for slots.
#[derive(Debug)]
struct Waiting {
    caller: Caller,
    request: RunRequest,
    told: bool,
}

impl Reactor {
    /// With what the store remembers. `next_job` is beyond every job that ever was.
    pub fn new(policy: Policy, nodes: NodeTable, kept: Vec<JobInfo>, next_job: u64) -> Reactor {
        Reactor {
            policy,
            nodes,
            jobs: BTreeMap::new(),
            kept: kept.into(),
            waiting: VecDeque::new(),
            deputies: BTreeMap::new(),
            ready_deputies: BTreeSet::new(),
            next_job,
            next_deputy: next_job,
            next_list: 1,
            lists: BTreeMap::new(),
            signal_requests: BTreeMap::new(),
            job_waiters: Vec::new(),
            node_waiters: Vec::new(),
            resume_until_ms: 0,
            return_until_ms: 0,
            has_inventory: false,
            shutting_down: false,
        }
    }

    /// Takes one event at `now_ms` (CLOCK_BOOTTIME) and appends what is to be done.
    pub fn handle(&mut self, now_ms: u64, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::NodeHello { node, hello } => self.node_hello(now_ms, node, hello, effects),
            Event::FromNode(node, message) => self.hear_node(now_ms, node, message, effects),
            Event::NodeLost(node) => self.node_lost(now_ms, node, effects),
            Event::NodeProvenDead(node) => self.node_proven_dead(now_ms, node, effects),
            Event::FromKeeper(message) => self.hear_keeper(now_ms, message, effects),
            Event::KeeperLost => self.keeper_lost(now_ms, effects),
            Event::FromDeputy(deputy, message) => self.hear_deputy(deputy, message, effects),
            Event::Request(caller, request) => self.request(now_ms, caller, request, effects),
            Event::Ghost {
                caller,
                index,
                pid,
                start_time,
                mode,
            } => {
                self.ghost(&caller, index, (pid, start_time), mode, effects);
            }
            Event::ClientGone(client) => self.client_gone(client, effects),
            Event::TakenOver => self.take_over(now_ms),
            Event::Tick => {}
        }
        self.check_fences(now_ms, effects);
        self.check_deadlines(now_ms, effects);
        self.place_waiting(now_ms, effects);
    }

    /// When `Event::Tick` is next needed.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let fences = self
            .nodes
            .iter()
            .filter_map(|node| self.node_deadline(node));
        let jobs = self
            .jobs
            .values()
            .filter(|job| !job.timed_out)
            .filter_map(|j| j.deadline_ms);
        let lists = self.lists.values().map(|list| list.deadline_ms);
        let resume = self
            .jobs
            .values()
            .flat_map(|job| job.tasks.values())
            .any(|task| task.uncertain)
            .then_some(self.resume_until_ms)
            // Once that is over, what is uncertain waits for its node.
            .filter(|at| *at != 0);
        let returning =
            (!self.waiting.is_empty() && self.return_until_ms > 0).then_some(self.return_until_ms);
        fences
            .chain(returning)
            .chain(jobs)
            .chain(lists)
            .chain(resume)
            .min()
    }

    /// The node table.
    pub fn nodes(&self) -> &NodeTable {
        &self.nodes
    }

    /// The same, for enrolling machines that have shown a token.
    pub fn nodes_mut(&mut self) -> &mut NodeTable {
        &mut self.nodes
    }

    /// All jobs with tasks that are not over.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The job that a command is about to launch.
    pub fn job_of(&self, client: ClientId) -> Option<&Job> {
        self.jobs
            .values()
            .rev()
            .find(|job| job.client == Some(client))
    }

    /// How the cluster is run.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The number that the next job gets: to be stored before it is given out.
    pub fn next_job(&self) -> u64 {
        self.next_job
    }

    /// Whether this caller may change the cluster.
    pub fn is_admin(&self, credential: &Credential) -> bool {
        credential.uid == 0
            || credential.uid == self.policy.own_uid
            || self
                .policy
                .admin_gid
                .is_some_and(|gid| credential.gid == gid || credential.groups.contains(&gid))
    }
}
