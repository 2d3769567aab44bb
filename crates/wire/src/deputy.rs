//! Head ↔ deputy, over a socket pair that the keeper made.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, TaskId};
use crate::launch::StdioKind;

/// Head → deputy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDeputy {
    /// The deputy's own certificate, key and the cluster's CA (DER), once after its start and
    /// after each restart of the head.
    Identity {
        /// Certificate.
        certificate: Vec<u8>,
        /// PKCS #8 key.
        key: Vec<u8>,
        /// The cluster's CA.
        authority: Vec<u8>,
    },
    /// This task of mine runs on `node`: its agent may attach (S3). As many descriptors come
    /// along as there are streams that are not null, in the order stdin, stdout, stderr.
    Attach {
        /// The task.
        task: TaskId,
        /// Its node.
        node: NodeId,
        /// What its streams are. A terminal's stdin descriptor is the pipe that the ghost fills.
        stdio: [StdioKind; 3],
    },
    /// A connection of a node's agent, as accepted: one descriptor comes along, a TCP socket
    /// whose TLS handshake has not begun.
    Link,
    /// Writes a sentence of the cluster's to the task's standard error, after all its output.
    Say {
        /// The task.
        task: TaskId,
        /// Text, without a newline.
        text: String,
    },
    /// The cluster has failed the task, of which nothing lives any more: what it made anew is
    /// removed, if its launch asked for that.
    Undo {
        /// The task.
        task: TaskId,
    },
    /// The task is over, or the node is fenced: its descriptors are closed.
    Detach {
        /// The task.
        task: TaskId,
    },
    /// The user has a node's view compared with the truth: for a while the node may ask for
    /// attributes and names even if it runs nothing of the user's (S3).
    AllowCheck {
        /// The node.
        node: NodeId,
        /// For how long.
        for_ms: u64,
    },
    /// The user's terminal may have changed its size: look, and tell the agent.
    WindowChanged {
        /// The task.
        task: TaskId,
    },
    /// Nothing of what was on this node is alive any more: its links end, with all locks that
    /// they hold.
    Fenced {
        /// The node.
        node: NodeId,
    },
}

/// Deputy → head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDeputy {
    /// First message on a new channel: the tasks that it has.
    Ready {
        /// Attached tasks.
        tasks: Vec<TaskId>,
    },
    /// [`ToDeputy::Say`] is done.
    Said {
        /// The task.
        task: TaskId,
    },
}
