//! Command ↔ head, over the head's Unix socket. The kernel says who the caller is; nothing in a
//! message does.

use serde::{Deserialize, Serialize};

use crate::agent::{Machine, Process};
use crate::boot::{BootRequest, BootStatus, MachineInfo};
use crate::disk::{DiskRequest, NodeDisks};
use crate::id::{JobId, NodeId, Pid, TaskId};
use crate::keeper::GhostMode;
use crate::launch::LaunchSpec;
use crate::status::{Status, Usage};
use crate::view::{ViewCheck, ViewState};

/// Most tasks in one job.
pub const MAX_TASKS_PER_JOB: u32 = 65_536;

/// Command → head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First message.
    Hello {
        /// [`crate::PROTOCOL_VERSION`].
        version: u32,
    },
    /// Wants tasks placed and launched; one [`Request::Ghost`] for each follows.
    Run(Box<RunRequest>),
    /// The ghost of the job's task number `index`. Descriptors: the keeper's end of its control
    /// socket, then those of [`crate::deputy::ToDeputy::Attach`].
    Ghost {
        /// Which task.
        index: u32,
        /// The caller itself, or a child of the caller.
        pid: Pid,
        /// Its terminal.
        mode: GhostMode,
    },
    /// All nodes.
    Nodes,
    /// Answered when `count` nodes are up.
    WaitNodes {
        /// How many.
        count: u32,
    },
    /// Changes a node, or several.
    SetNodes {
        /// Node set.
        nodes: String,
        /// What.
        change: NodeChange,
    },
    /// All processes of all tasks.
    Processes,
    /// The nodes' views: the caller's own, or all for root and the administrators.
    Views {
        /// Node set; `None` is all that are connected.
        nodes: Option<String>,
    },
    /// Has those views compare what they believe with the truth.
    CheckViews {
        /// Node set; `None` is all that are connected.
        nodes: Option<String>,
    },
    /// Signals a process: a ghost's PID or that of a descendant.
    Signal {
        /// PID.
        pid: Pid,
        /// The signal's number.
        signal: u8,
    },
    /// Jobs, running and ended.
    Jobs,
    /// Answered when the job has ended.
    WaitJob {
        /// The job.
        job: JobId,
    },
    /// The output files of a detached job: descriptors come with the answer.
    Logs {
        /// The job.
        job: JobId,
        /// The task's place in it.
        index: u32,
    },
    /// Makes a token with which machines can join (root or the head's own user).
    MakeToken {
        /// How long it may be used.
        valid_ms: u64,
    },
    /// About machines that boot from the network.
    Boot(BootRequest),
    /// About nodes' own disks (root or the administrators).
    Disk(DiskRequest),
    /// From the rack: a virtual node's agent has been started. Descriptors: its pidfd, whose
    /// end proves that the node's tasks are gone.
    VirtualNode {
        /// The node's name.
        name: String,
    },
    /// From the rack: the socket that agents dial, one descriptor.
    Listener,
    /// About the head itself.
    HeadStatus,
    /// Ends all tasks, the rack, the keeper and the head.
    Shutdown,
}

/// Which nodes a job may use. Without any wish: one task, on any node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSelection {
    /// A node set; `None`: placement chooses among all.
    pub nodes: Option<String>,
    /// All nodes of the set that are up, one task each (`-a`); else the best ones.
    pub all: bool,
    /// Nodes that are left out.
    pub exclude: Option<String>,
    /// Nodes to take before others for a task that is placed alone, the first of them that has a
    /// free slot. Names that the cluster does not have say nothing.
    pub prefer: Vec<String>,
    /// Number of nodes to use (`-N`).
    pub node_count: Option<u32>,
    /// Number of tasks (`-n`); default one per node.
    pub task_count: Option<u32>,
    /// Nobody else's tasks on these nodes meanwhile.
    pub exclusive: bool,
    /// Fail rather than wait for a free slot.
    pub now: bool,
    /// Memory that a task is expected to need: nodes with less available are left out while
    /// others could have it.
    pub memory_kib: Option<u64>,
}

/// What `wiglaf run` wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// Where.
    pub selection: NodeSelection,
    /// What; the same for all tasks but for their rank in the environment.
    pub spec: LaunchSpec,
    /// Ended with 124 after this time; 0 is never.
    pub timeout_ms: u64,
    /// The caller does not wait: the job's result is kept for `wait`, its output in log files.
    pub detach: bool,
    /// The caller stays connected and wants [`Reply::Ended`] for each task. What the cluster has
    /// to say of a failure goes there rather than to the user's standard error, and nothing is
    /// added to the environment.
    pub follow: bool,
}

/// A change of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeChange {
    /// No new tasks; the node stays up.
    Drain,
    /// Takes work again.
    Resume,
    /// The state that an administrator wants, BProc's names.
    State(NodeState),
    /// Owner of the node.
    Owner(u32),
    /// Group of the node.
    Group(u32),
    /// Execute permissions: bits 0o100, 0o010 and 0o001, as BProc has them.
    Mode(u32),
    /// How many tasks it takes at once.
    Slots(u32),
}

/// A node's state; BProc's names first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Not connected; nothing of it is alive.
    Down,
    /// Joining.
    Boot,
    /// Connected, but not for users.
    Unavailable,
    /// Takes work.
    Up,
    /// Connected, but broken.
    Error,
    /// Silent: its tasks may still live; nothing is decided before the fence.
    Suspect,
    /// Finishes what it has, takes nothing new.
    Drain,
}

impl NodeState {
    /// The state's name.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Down => "down",
            NodeState::Boot => "boot",
            NodeState::Unavailable => "unavailable",
            NodeState::Up => "up",
            NodeState::Error => "error",
            NodeState::Suspect => "suspect",
            NodeState::Drain => "drain",
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<NodeState> {
        [
            NodeState::Down,
            NodeState::Boot,
            NodeState::Unavailable,
            NodeState::Up,
            NodeState::Error,
            NodeState::Suspect,
            NodeState::Drain,
        ]
        .into_iter()
        .find(|state| state.name() == name)
    }
}

/// A node in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Number.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// State.
    pub state: NodeState,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Execute permissions.
    pub mode: u32,
    /// Tasks that it takes at once.
    pub slots: u32,
    /// Tasks that it has.
    pub tasks: u32,
    /// 1-minute load average × 100.
    pub load_centi: u32,
    /// Available memory.
    pub available_kib: u64,
    /// Its machine.
    pub machine: Machine,
    /// A virtual node of this head.
    pub is_virtual: bool,
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Number.
    pub job: JobId,
    /// Whose.
    pub uid: u32,
    /// Command line.
    pub command: String,
    /// Its tasks.
    pub tasks: Vec<JobTask>,
}

/// A task of a job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTask {
    /// Place in the job.
    pub index: u32,
    /// Node's name.
    pub node: String,
    /// PID.
    pub pid: Pid,
    /// `None` while it runs.
    pub ended: Option<(Status, Usage)>,
}

/// A process on the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Node's name.
    pub node: String,
    /// The process.
    pub process: Process,
}

/// A view of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewInfo {
    /// Node's name.
    pub node: String,
    /// The view.
    pub view: ViewState,
}

/// A node's comparison of its views with the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCheck {
    /// Node's name.
    pub node: String,
    /// One for each of its views; a node that has none has nothing to compare.
    pub views: Vec<ViewCheck>,
}

/// Head → command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The request can't be fulfilled.
    Refused {
        /// Exit code for the command.
        code: u8,
        /// What is wrong, naming the thing.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// No slot is free: the job waits. A line for the user.
    Waiting {
        /// What for.
        reason: String,
    },
    /// Where the job's tasks go, in the order of their index.
    Placed {
        /// Its number.
        job: JobId,
        /// Node of each task.
        nodes: Vec<(NodeId, String)>,
    },
    /// The ghost is seized: it may exec.
    Go {
        /// Its task.
        task: TaskId,
    },
    /// A task of a caller that follows has ended; its ghost ends next.
    Ended {
        /// Which.
        task: TaskId,
        /// How.
        status: Status,
        /// What it used.
        usage: Usage,
    },
    /// Answer to [`Request::Nodes`] and [`Request::WaitNodes`].
    Nodes(Vec<NodeInfo>),
    /// Answer to [`Request::Processes`]; nodes that did not answer in time are named.
    Processes {
        /// The processes.
        list: Vec<ProcessInfo>,
        /// Nodes that did not answer.
        silent: Vec<String>,
    },
    /// Answer to [`Request::Views`].
    Views {
        /// The views.
        list: Vec<ViewInfo>,
        /// Nodes that did not answer.
        silent: Vec<String>,
    },
    /// Answer to [`Request::CheckViews`].
    ViewsChecked {
        /// Nodes that answered.
        list: Vec<NodeCheck>,
        /// Nodes that did not.
        silent: Vec<String>,
    },
    /// Answer to [`Request::Disk`].
    Disks {
        /// What the nodes say.
        list: Vec<NodeDisks>,
        /// Nodes that did not answer.
        silent: Vec<String>,
    },
    /// Answer to [`Request::Jobs`].
    Jobs(Vec<JobInfo>),
    /// Answer to [`Request::WaitJob`].
    JobEnded(JobInfo),
    /// Answer to [`Request::Logs`]: two descriptors, stdout and stderr.
    Logs {
        /// Whether the task still runs.
        running: bool,
    },
    /// Answer to [`Request::MakeToken`]: the token's text.
    Token(String),
    /// Answer to [`BootRequest::Status`].
    Boot(BootStatus),
    /// Answer to [`BootRequest::Machines`], and to what changes some: those.
    Machines(Vec<MachineInfo>),
    /// Answer to [`BootRequest::Log`]: one descriptor.
    NodeLog,
    /// Answer to [`Request::HeadStatus`].
    HeadStatus(HeadStatus),
    /// Done.
    Done,
    /// To the rack, unasked: the cluster is being ended, so the head will not come back.
    Ending,
}

/// About the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadStatus {
    /// Version of the program.
    pub version: String,
    /// PID of the head daemon.
    pub pid: i32,
    /// PID of the keeper.
    pub keeper_pid: i32,
    /// PID of the rack, if virtual nodes are held.
    pub rack_pid: Option<i32>,
    /// PIDs of the deputies.
    pub deputy_pids: Vec<i32>,
    /// Where agents connect.
    pub listening: Option<String>,
    /// The cluster's identifier.
    pub cluster: String,
}
