//! Jobs and their tasks: what the head knows of each process that it has launched.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wiglaf_wire::agent::SignalScope;
use wiglaf_wire::client::{JobInfo, JobTask};
use wiglaf_wire::id::{DeputyId, Incarnation, JobId, NodeId, Pid, TaskId};
use wiglaf_wire::keeper::{GhostEnd, GhostMode};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::{Status, Usage};

/// A connected command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// A caller, as the kernel told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its connection.
    pub client: ClientId,
    /// Its process.
    pub pid: Pid,
    /// When that started, in clock ticks since boot.
    pub start_time: u64,
    /// Whose it is.
    pub credential: Credential,
}

/// Where a task is in its life. `docs/semantics.md` draws the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Has a node; its ghost has not been named yet.
    Placed,
    /// The keeper is asked to trace the ghost.
    Seizing,
    /// The node is asked to start it.
    Launching,
    /// The node has started it.
    Running,
    /// Over on its node, or never to run there; `Say` is under way to its deputy.
    Telling(Status),
    /// The keeper is asked to end the ghost.
    Finishing(Status),
}

impl Phase {
    /// Nothing of the task lives on its node any more, or ever did.
    pub fn is_over_on_node(&self) -> bool {
        matches!(
            self,
            Phase::Telling(_) | Phase::Finishing(_) | Phase::Placed | Phase::Seizing
        )
    }
}

/// A task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which.
    pub id: TaskId,
    /// Where.
    pub node: NodeId,
    /// Its PID, here and there.
    pub pid: Pid,
    /// When its ghost started: a PID may be another's by and by.
    pub start_time: u64,
    /// The life of its node's agent that may have been asked to start it. Another life must not
    /// be: the command would run twice (P4).
    pub incarnation: Option<Incarnation>,
    /// Its ghost is there, but its deputy does not listen yet.
    pub awaits_deputy: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// The ghost's end, when it died unasked: the node is told to kill the task, and the ghost's
    /// parent is told this end.
    pub ghost_died: Option<GhostEnd>,
    /// What the cluster has decided of it: told instead of the end that its node reports.
    pub verdict: Option<Status>,
    /// Who relays its stdio.
    pub deputy: DeputyId,
    /// Its deputy is gone: the ghost itself tells the user what the cluster has to say.
    pub deputy_gone: bool,
    /// Its ghost's terminal.
    pub mode: GhostMode,
    /// Signals to be told once the node is back.
    pub pending_signals: Vec<(u8, SignalScope)>,
    /// What it used, once it has ended.
    pub usage: Usage,
    /// The head has been restarted and does not know whether the launch reached the node.
    pub uncertain: bool,
}

/// How many signals wait for a silent node, per task.
pub const MAX_PENDING_SIGNALS: usize = 64;

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which.
    pub id: JobId,
    /// Whose.
    pub credential: Credential,
    /// What.
    pub spec: LaunchSpec,
    /// Its tasks that are not over.
    pub tasks: BTreeMap<u32, Task>,
    /// Those that are, with their nodes' names.
    pub ended: BTreeMap<u32, JobTask>,
    /// How many it has in all.
    pub size: u32,
    /// The command that waits for it to be launched.
    pub client: Option<ClientId>,
    /// When it is ended with 124.
    pub deadline_ms: Option<u64>,
    /// Its time was up.
    pub timed_out: bool,
    /// Its output goes to log files, its result is kept.
    pub detached: bool,
    /// It has its nodes for itself.
    pub exclusive: bool,
    /// Its client wants to be told how each task ends.
    pub follow: bool,
}

impl Job {
    /// For lists. `name` tells a node's name.
    pub fn info(&self, name: impl Fn(NodeId) -> String) -> JobInfo {
        let running = self.tasks.values().map(|task| JobTask {
            index: task.id.index,
            node: name(task.node),
            pid: task.pid,
            ended: None,
        });
        let mut tasks: Vec<_> = self.ended.values().cloned().chain(running).collect();
        tasks.sort_by_key(|task| task.index);
        JobInfo {
            job: self.id,
            uid: self.credential.uid,
            command: self.spec.command_line(),
            tasks,
        }
    }

    /// The environment that tells a task where it is in its job.
    pub fn spec_for(&self, task: &Task, node: &str) -> LaunchSpec {
        let mut spec = self.spec.clone();
        if self.follow {
            return spec;
        }
        let facts = [
            ("WIGLAF_NODE", node.to_owned()),
            ("WIGLAF_JOB", self.id.to_string()),
            ("WIGLAF_RANK", task.id.index.to_string()),
            ("WIGLAF_SIZE", self.size.to_string()),
        ];
        for (name, value) in facts {
            let prefix = format!("{name}=");
            spec.env
                .retain(|entry| !entry.starts_with(prefix.as_bytes()));
            spec.env.push(format!("{prefix}{value}").into_bytes());
        }
        spec
    }
}

/// What the keeper holds of a task for a restarted head: everything that can't be asked of the
/// node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Which.
    pub task: TaskId,
    /// Where.
    pub node: NodeId,
    /// Its PID.
    pub pid: Pid,
    /// When its ghost started.
    pub start_time: u64,
    /// The life of its node's agent when its ghost was seized.
    pub incarnation: Option<Incarnation>,
    /// Who relays its stdio.
    pub deputy: DeputyId,
    /// Its ghost's terminal.
    pub mode: GhostMode,
    /// Whose.
    pub credential: Credential,
    /// What.
    pub spec: LaunchSpec,
    /// Tasks in its job.
    pub size: u32,
    /// When it is ended with 124.
    pub deadline_ms: Option<u64>,
    /// Its job is detached.
    pub detached: bool,
    /// Its job has its nodes for itself.
    pub exclusive: bool,
    /// Its client wanted to be told how it ends.
    pub follow: bool,
}

impl TaskRecord {
    /// Of a task of a job.
    pub fn of(job: &Job, task: &Task) -> TaskRecord {
        TaskRecord {
            task: task.id,
            node: task.node,
            pid: task.pid,
            start_time: task.start_time,
            incarnation: task.incarnation,
            deputy: task.deputy,
            mode: task.mode,
            credential: job.credential.clone(),
            spec: job.spec.clone(),
            size: job.size,
            deadline_ms: job.deadline_ms,
            detached: job.detached,
            exclusive: job.exclusive,
            follow: job.follow,
        }
    }

    /// As the keeper holds it.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// From the keeper; `None` for what another version wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<TaskRecord> {
        postcard::from_bytes(bytes).ok()
    }

    /// The job that it is of, without tasks.
    pub fn to_job(&self) -> Job {
        Job {
            id: self.task.job,
            credential: self.credential.clone(),
            spec: self.spec.clone(),
            tasks: BTreeMap::new(),
            ended: BTreeMap::new(),
            size: self.size,
            client: None,
            deadline_ms: self.deadline_ms,
            timed_out: false,
            detached: self.detached,
            exclusive: self.exclusive,
            follow: self.follow,
        }
    }

    /// The task, as far as it is known before its node has rejoined.
    pub fn to_task(&self) -> Task {
        Task {
            id: self.task,
            node: self.node,
            pid: self.pid,
            start_time: self.start_time,
            incarnation: self.incarnation,
            awaits_deputy: false,
            phase: Phase::Launching,
            ghost_died: None,
            verdict: None,
            deputy: self.deputy,
            deputy_gone: false,
            mode: self.mode,
            pending_signals: Vec::new(),
            usage: Usage::default(),
            uncertain: true,
        }
    }
}

/// How a ghost ends when its task has ended so.
pub fn ghost_end(status: &Status) -> GhostEnd {
    match status {
        Status::Signaled(signal) => GhostEnd::Signal(*signal),
        other => GhostEnd::Exit(other.exit_code()),
    }
}
