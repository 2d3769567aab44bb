//! The agent: joins the head, runs tasks for it, and answers for each of them until the head has
//! acknowledged its end.
//!
//! It is PID 1 of the PID namespace that its tasks live in: what they orphan becomes its child,
//! and nothing of theirs outlives it. One thread runs everything but the making of processes
//! (`spawner`), which waits until the program is read, perhaps by way of this very process.

mod beside;
mod clock;
pub mod core;
mod disk;
mod kept;
mod leavings;
mod link;
mod machine;
mod mains;
mod names;
mod pids;
mod private;
mod processes;
mod run;
mod spawner;
mod view;
mod watchdog;

pub(crate) use beside::start_apart;
pub(crate) use clock::step_clock;
pub(crate) use link::{HeadTls, dial, dial_as_root};
pub(crate) use run::{Departure, live};

pub use beside::{BesideError, run_beside};
pub use run::{AgentConfig, AgentError, Trust, run};
pub use view::NodeViewError;
