#![forbid(unsafe_code)]
//! A whole cluster in one thread, ruled by one seed: the head's reactor and the agents' cores run
//! unchanged, everything between and around them is a model that loses messages, crashes and
//! comes back. The invariants of docs/invariants.md are checked at every step.
//!
//! `head`, `node`, `keeper` and `command` model what stands around the pure cores, `network` what
//! is between them, `faults` what goes wrong, `truth` what really happened and must be told.

mod command;
mod faults;
mod head;
mod keeper;
mod network;
mod node;
mod rng;
mod truth;
mod world;

pub use faults::{Mistake, Profile, Setup};

use std::fmt;

use world::World;

/// An invariant that does not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The run that shows it.
    pub seed: u64,
    /// Its number in docs/invariants.md.
    pub invariant: &'static str,
    /// What is wrong.
    pub message: String,
    /// When, in the simulated head's milliseconds.
    pub at_ms: u64,
    /// What happened before.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let Violation {
            seed,
            invariant,
            message,
            at_ms,
            ..
        } = self;
        writeln!(f, "{invariant} at {at_ms} ms: {message}")?;
        write!(f, "again: WIGLAF_SIM_SEED={seed} cargo test -p wiglaf-sim")
    }
}

/// What a run that went well has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events.
    pub steps: u64,
    /// Tasks whose ghosts were seized.
    pub tasks: u64,
    /// Of these, how many ended with a status of their own.
    pub own_ends: u64,
    /// Of these, how many the cluster failed.
    pub failed: u64,
    /// Crashes of the head.
    pub head_crashes: u64,
    /// Nodes that lost their lease.
    pub leases_lost: u64,
}

/// Runs one cluster from its start to its rest.
///
/// # Errors
/// The invariant that was violated first, with what happened before.
pub fn run(seed: u64, setup: &Setup) -> Result<Summary, Box<Violation>> {
    World::new(seed, setup.clone(), false)
        .run()
        .map_err(|first| {
            // Once more, with a trace, which is too slow for runs that go well.
            World::new(seed, setup.clone(), true)
                .run()
                .err()
                .unwrap_or(first)
        })
}
