//! Identifiers: newtypes, so that a PID is never taken for a task.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

identifier! {
    /// A node's number, from 0 up, as BProc counts them. Stays with the node's name.
    NodeId(u32)
}
identifier! {
    /// A job: what one `wiglaf run` asked for. Never used twice in a cluster's life.
    JobId(u64)
}
identifier! {
    /// A process number: of a ghost on the head and of the task's main process on its node (P1).
    Pid(i32)
}
identifier! {
    /// One life of an agent, drawn at random when it starts. All tasks of an earlier incarnation
    /// are dead, because the agent is the init of their PID namespace.
    Incarnation(u64)
}
identifier! {
    /// A deputy: one per exact credential.
    DeputyId(u64)
}

/// A task: one process of a job, with its ghost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The job that the task belongs to.
    pub job: JobId,
    /// The task's place in its job, from 0 up.
    pub index: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.index)
    }
}
