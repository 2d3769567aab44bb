//! The private ground on which benchmarks run, and how they tell of it.
//!
//! `stage` is a folder, cgroups (`groups`) and a watchdog (`child`), `sweeper` the process that
//! clears all away however we end; `packages` installs what is compared with, `statistics` and
//! `report` make the table.

pub(in crate::bench) mod child;
pub(in crate::bench) mod groups;
pub(in crate::bench) mod packages;
pub(in crate::bench) mod report;
pub(in crate::bench) mod stage;
pub(in crate::bench) mod statistics;
pub(crate) mod sweeper;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run;

/// What this command is called in a table.
pub(in crate::bench) fn text_of(command: &std::process::Command) -> String {
    run::text_of(command)
}

/// The released binary.
pub(crate) fn build_wiglaf() -> Result<PathBuf> {
    let mut command = run::cargo();
    command.args(["build", "--release", "--locked", "--package", "wiglaf"]);
    run::check(&mut command)?;
    command.args(["--quiet", "--message-format", "json"]);
    let messages = run::output(&mut command)?;
    let executable = cargo_metadata::Message::parse_stream(messages.as_bytes())
        .filter_map(|message| match message {
            Ok(cargo_metadata::Message::CompilerArtifact(artifact)) => artifact.executable,
            _ => None,
        })
        .last()
        .context("cargo named no executable of the package `wiglaf`")?;
    Ok(executable.into_std_path_buf())
}
