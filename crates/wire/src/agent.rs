//! Head ↔ agent: membership, leases and the life of tasks. Over TLS, both sides with
//! certificates of the cluster's CA; only [`FromAgent::Join`] comes from a peer without one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::boot::Mac;
use crate::disk::{DiskAnswer, DiskOrder};
use crate::id::{DeputyId, Incarnation, NodeId, Pid, TaskId};
use crate::launch::{Credential, LaunchSpec};
use crate::names::Names;
use crate::status::{Status, Usage};
use crate::view::{ViewCheck, ViewState};

/// Most processes in one [`FromAgent::Processes`] message; a longer list comes in several.
pub const MAX_PROCESSES_PER_MESSAGE: usize = 2048;
/// Most views in one [`FromAgent::Views`] message; a longer list comes in several.
pub const MAX_VIEWS_PER_MESSAGE: usize = 2048;

/// What an agent knows of its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -m`.
    pub arch: String,
    /// `uname -r`.
    pub kernel: String,
    /// Processors that it may use.
    pub cpus: u32,
    /// Memory.
    pub memory_kib: u64,
    /// Its address on the cluster's network, as text.
    pub address: String,
}

/// A task as its agent knows it, told when the agent (re)joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// The task.
    pub task: TaskId,
    /// Its PID, equal to its ghost's.
    pub pid: Pid,
    /// `None` while it runs; else the end that the head has not acknowledged yet.
    pub ended: Option<(Status, Usage)>,
    /// Whether it is stopped by a signal.
    pub stopped: Option<u8>,
}

/// Which processes of a task a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalScope {
    /// The main process alone: somebody signalled the ghost's PID.
    Process,
    /// The main process's group: the terminal did, or the ghost leads its group (P5).
    Group,
    /// Every process of the task.
    Tree,
}

/// Agent → head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// From a machine without a certificate: the token that proves it may have one.
    Join {
        /// [`crate::PROTOCOL_VERSION`].
        version: u32,
        /// The token's secret part.
        token: Vec<u8>,
        /// The name that it would like, if any.
        name: Option<String>,
        /// DER of a certificate signing request (RFC 2986).
        request: Vec<u8>,
    },
    /// From a machine that booted from the network, without a certificate: the head looks whether
    /// it is one that it has just helped to boot.
    JoinBooted {
        /// [`crate::PROTOCOL_VERSION`].
        version: u32,
        /// The Ethernet address that it booted by.
        mac: Mac,
        /// Its public key: an uncompressed point of P-256.
        request: Vec<u8>,
    },
    /// First message with a certificate.
    Hello {
        /// [`crate::PROTOCOL_VERSION`].
        version: u32,
        /// This life of the agent.
        incarnation: Incarnation,
        /// What it runs on.
        machine: Machine,
        /// Everything that it still has to account for.
        tasks: Vec<TaskReport>,
    },
    /// Asks for the lease to be renewed from the moment that this was sent (P4).
    Renew {
        /// Comes back in [`ToAgent::Renewed`].
        sequence: u64,
        /// 1-minute load average × 100.
        load_centi: u32,
        /// Memory that is available.
        available_kib: u64,
    },
    /// The main process runs.
    Started {
        /// The task.
        task: TaskId,
    },
    /// The main process is stopped by a signal.
    Stopped {
        /// The task.
        task: TaskId,
        /// SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
        signal: u8,
    },
    /// The main process runs again after a stop.
    Continued {
        /// The task.
        task: TaskId,
    },
    /// The task is over: its processes are gone and its output is on the head (P2). Told again
    /// until [`ToAgent::Acknowledge`].
    Ended {
        /// The task.
        task: TaskId,
        /// How.
        status: Status,
        /// What it used.
        usage: Usage,
        /// Leftover processes that were ended with it.
        leftovers: u32,
    },
    /// Answer to [`ToAgent::ListProcesses`].
    Processes {
        /// The request's.
        request: u64,
        /// Part of the list.
        list: Vec<Process>,
        /// No further part comes.
        last: bool,
    },
    /// Answer to [`ToAgent::SignalProcess`]: an errno, or 0.
    Signalled {
        /// The request's.
        request: u64,
        /// 0 or an errno.
        errno: i32,
    },
    /// Answer to [`ToAgent::ListViews`].
    Views {
        /// The request's.
        request: u64,
        /// Part of the list.
        list: Vec<ViewState>,
        /// No further part comes.
        last: bool,
    },
    /// Answer to [`ToAgent::CheckViews`].
    ViewsChecked {
        /// The request's.
        request: u64,
        /// What has been compared since the part before.
        list: Vec<ViewCheck>,
        /// No further part comes.
        last: bool,
    },
    /// Answer to [`ToAgent::Disk`].
    Disk {
        /// The request's.
        request: u64,
        /// What it says of its disks.
        answer: Box<DiskAnswer>,
    },
    /// The last message: the agent ends, and none of its tasks lives any more.
    Leaving,
}

/// What seals the pieces of files that a node keeps.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepingKey(pub [u8; 32]);

impl fmt::Debug for KeepingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeepingKey")
    }
}

/// Head → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The answer to [`FromAgent::Join`]: DER of the certificate and of the cluster's CA.
    Certificate {
        /// The node's certificate.
        certificate: Vec<u8>,
        /// The CA's.
        authority: Vec<u8>,
    },
    /// The answer to [`FromAgent::JoinBooted`] until somebody has compared this code with the one
    /// on the machine's console. It asks again, with the same key.
    AwaitApproval {
        /// Eight digits, in two groups.
        code: String,
    },
    /// The peer is refused, with the sentence for its operator; the connection is closed.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The node is a member.
    Welcome {
        /// Its number.
        node: NodeId,
        /// Its name.
        name: String,
        /// First PID that its descendants may have.
        first_pid: Pid,
        /// One more than the last.
        end_pid: Pid,
        /// How long after an answered renewal the agent may let tasks live.
        lease_ms: u64,
    },
    /// Renews the lease.
    Renewed {
        /// Of the request.
        sequence: u64,
    },
    /// Follows [`ToAgent::Renewed`] on nodes that booted from the network: the head's clock.
    Time {
        /// Nanoseconds since the Epoch when this was sent.
        unix_ns: u64,
    },
    /// How names are resolved on the node, after the welcome and whenever it changes; `None`: as
    /// the head's files say.
    Names {
        /// All of it.
        names: Option<Box<Names>>,
    },
    /// The node may keep what it reads of the head's files on a disk of its own, sealed with this
    /// key. It is the same in every life of the node, and known to nobody else.
    Keep {
        /// Nothing else opens it.
        key: KeepingKey,
    },
    /// Starts a task. Told again after a lost connection; an agent that knows the task ignores it.
    Launch {
        /// The task.
        task: TaskId,
        /// PID that its main process must have.
        pid: Pid,
        /// As whom.
        credential: Credential,
        /// Who relays its stdio.
        deputy: DeputyId,
        /// What.
        spec: Box<LaunchSpec>,
    },
    /// Sends a signal to a task.
    Signal {
        /// The task.
        task: TaskId,
        /// The signal's number.
        signal: u8,
        /// To whom.
        scope: SignalScope,
    },
    /// Kills all processes of the task; its end is reported as always.
    Kill {
        /// The task.
        task: TaskId,
    },
    /// The head has recorded the task's end: the agent forgets it.
    Acknowledge {
        /// The task.
        task: TaskId,
    },
    /// Asks for the processes of all tasks.
    ListProcesses {
        /// Comes back in the answer.
        request: u64,
    },
    /// Signals one process by PID, checked to belong to one of this user's tasks.
    SignalProcess {
        /// Comes back in the answer.
        request: u64,
        /// PID in the node's namespace.
        pid: Pid,
        /// The signal's number.
        signal: u8,
        /// Only processes of this user, unless `None` (root and the admin group).
        uid: Option<u32>,
    },
    /// Asks what the node's views have done and know.
    ListViews {
        /// Comes back in the answer.
        request: u64,
    },
    /// Has views compare what they believe with the truth.
    CheckViews {
        /// Comes back in the answers.
        request: u64,
        /// Only those of this user, unless `None` (root and the admin group).
        uid: Option<u32>,
    },
    /// About the node's disks: only one that booted from the network obeys.
    Disk {
        /// Comes back in the answer.
        request: u64,
        /// What is wanted.
        order: Box<DiskOrder>,
    },
    /// Kills all tasks and ends the agent.
    Leave,
    /// The same, and then this with the machine: only one that booted from the network obeys.
    Power {
        /// What.
        action: PowerAction,
    },
}

/// What becomes of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerAction {
    /// It starts anew, firmware and all.
    Reboot,
    /// It starts its next kernel without the firmware.
    Kexec,
    /// It stops and stays on.
    Halt,
    /// It is switched off.
    PowerOff,
}

/// One process on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The task that it belongs to, where that can be told.
    pub task: Option<TaskId>,
    /// PID.
    pub pid: Pid,
    /// Parent's PID.
    pub parent: Pid,
    /// Real user.
    pub uid: u32,
    /// State letter of `proc_pid_stat(5)`.
    pub state: char,
    /// CPU time, user and system.
    pub cpu_ms: u64,
    /// Resident set.
    pub rss_kib: u64,
    /// Wall clock time of its start, by the node's clock, since the Epoch.
    pub started_ms: u64,
    /// Command line, words joined by spaces; `[comm]` when it has none.
    pub command: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_a_key_is_not_shown() {
        let key = KeepingKey([123; 32]);
        assert!(!format!("{:?}", ToAgent::Keep { key }).contains("123"));
    }
}
