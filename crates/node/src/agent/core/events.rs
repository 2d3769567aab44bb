//! What goes into the core and what comes out of it.

use wiglaf_wire::agent::{FromAgent, SignalScope, ToAgent};
use wiglaf_wire::id::{DeputyId, NodeId, Pid, TaskId};
use wiglaf_wire::launch::{Credential, LaunchSpec};
use wiglaf_wire::status::{Status, Usage};

/// What happens to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The dialled connection takes messages.
    Connected,
    /// The connection, or the attempt at one, is over.
    Disconnected,
    /// From the head.
    Message(ToAgent),
    /// The main process runs.
    Spawned {
        /// The task.
        task: TaskId,
    },
    /// There is no main process.
    SpawnFailed {
        /// The task.
        task: TaskId,
        /// What the user is told.
        status: Status,
    },
    /// A signal stopped the main process.
    MainStopped {
        /// The task.
        task: TaskId,
        /// The signal's number.
        signal: u8,
    },
    /// The main process goes on after a stop.
    MainContinued {
        /// The task.
        task: TaskId,
    },
    /// The main process has ended and is reaped.
    MainExited {
        /// The task.
        task: TaskId,
        /// How.
        status: Status,
        /// What it used.
        usage: Usage,
    },
    /// No process of the task is left.
    TaskGone {
        /// The task.
        task: TaskId,
        /// How many had to be killed.
        leftovers: u32,
    },
    /// All that the task wrote is on the head.
    Drained {
        /// The task.
        task: TaskId,
    },
    /// The task's streams are lost for good.
    RelayLost {
        /// The task.
        task: TaskId,
        /// Why.
        reason: String,
    },
    /// Something that the task wrote did not reach the head, and no program was told.
    FilesLost {
        /// The task.
        task: TaskId,
        /// What, and why, in words.
        reason: String,
    },
    /// Somebody on the node asks the agent to leave.
    LeaveAsked,
    /// Time has passed.
    Tick,
}

/// What the agent is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect to the head; answered by [`Event::Connected`] or [`Event::Disconnected`].
    Dial,
    /// Close the connection; not answered.
    HangUp,
    /// Send a message.
    Send(FromAgent),
    /// Send a [`FromAgent::Renew`], with the machine's load measured now.
    Renew {
        /// Its sequence number.
        sequence: u64,
    },
    /// The head has let us in.
    Welcomed {
        /// Our number.
        node: NodeId,
        /// Our name.
        name: String,
        /// First PID that descendants may have.
        first_pid: Pid,
        /// One more than the last.
        end_pid: Pid,
    },
    /// Start a task; answered by [`Event::Spawned`] or [`Event::SpawnFailed`].
    Spawn {
        /// The task.
        task: TaskId,
        /// Its PID.
        pid: Pid,
        /// As whom.
        credential: Credential,
        /// Who relays its streams.
        deputy: DeputyId,
        /// What.
        spec: Box<LaunchSpec>,
    },
    /// Signal a task whose main process runs.
    Signal {
        /// The task.
        task: TaskId,
        /// Its main process.
        pid: Pid,
        /// The signal's number.
        signal: u8,
        /// To whom.
        scope: SignalScope,
    },
    /// Kill a task whose main process runs; its end is reported as always.
    KillTree {
        /// The task.
        task: TaskId,
        /// Its main process.
        pid: Pid,
    },
    /// Kill every process on the node but the agent.
    KillEverything,
    /// Take all links to deputies down: killed processes that wait for the head's files end only
    /// when they are answered, and have to be gone before the head says so (P4).
    CutLinks,
    /// End what the main process has left; answered by [`Event::TaskGone`].
    CollectLeftovers {
        /// The task.
        task: TaskId,
    },
    /// Tell when the output is on the head; answered by [`Event::Drained`].
    WaitDrained {
        /// The task.
        task: TaskId,
        /// Leftovers live on and may hold the streams open: only what is written by now counts.
        leave: bool,
    },
    /// Forget the task's streams.
    CloseTask {
        /// The task.
        task: TaskId,
    },
    /// Answer [`ToAgent::ListProcesses`].
    ListProcesses {
        /// The request's.
        request: u64,
    },
    /// Answer [`ToAgent::SignalProcess`].
    SignalProcess {
        /// The request's.
        request: u64,
        /// Which process.
        pid: Pid,
        /// The signal's number.
        signal: u8,
        /// Whose it must be, if not anybody's.
        uid: Option<u32>,
    },
    /// Answer [`ToAgent::ListViews`].
    ListViews {
        /// The request's.
        request: u64,
    },
    /// Answer [`ToAgent::CheckViews`].
    CheckViews {
        /// The request's.
        request: u64,
        /// Whose views, if not everybody's.
        uid: Option<u32>,
    },
    /// End the agent.
    Exit {
        /// Why, when it is not as it was asked to.
        reason: Option<String>,
    },
}
