//! The private ground on which benchmarks run, and how they tell of it.
//!
//! `stage` is a folder, cgroups (`groups`) and a watchdog (`child`), `sweeper` the process that
//! clears all away however we end; `invocation` is what comes before and after, `packages` installs
//! what is compared with, `statistics` and `report` make the table.

pub(in crate::bench) mod child;
pub(in crate::bench) mod groups;
pub(in crate::bench) mod invocation;
pub(in crate::bench) mod packages;
pub(in crate::bench) mod report;
pub(in crate::bench) mod stage;
pub(in crate::bench) mod statistics;
pub(crate) mod sweeper;

use crate::run;

/// What this command is called in a table.
pub(in crate::bench) fn text_of(command: &std::process::Command) -> String {
    run::text_of(command)
}
