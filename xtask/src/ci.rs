//! `cargo xtask ci`: the steps in order, stopping at the first that fails.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::testing::{self, Totals};
use crate::{arrows, binary, inputs, packages, run, sources, tools, vm};

pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .context("can't read the workspace")?;
    std::env::set_current_dir(&metadata.workspace_root)
        .with_context(|| format!("can't enter {}", metadata.workspace_root))?;

    let mut steps = Steps::default();
    steps.run("system packages", packages::install_missing)?;
    steps.run("format", || {
        run::check(run::cargo().args(["fmt", "--all", "--check"]))
    })?;
    steps.run("crate arrows", || arrows::check(&metadata))?;
    steps.run("unsafe", || sources::check(&metadata))?;
    steps.run("clippy", clippy)?;
    steps.run("dependencies", || check_dependencies(&metadata))?;
    steps.run("release build", release_build)?;
    steps.run("test tools", || {
        tools::install(&metadata, "pjdfstest").map(|_| ())
    })?;
    // The dev profile: optimising every test program costs more than the tests do.
    let totals = steps.run("tests", testing::run)?;
    steps.run("real builds over four nodes", || {
        inputs::compare::run(&inputs::compare::Args::over_nodes(REAL_BUILDS))
    })?;
    steps.run("machines that boot from the network", || {
        vm::run(&vm::Args::in_ci())
    })?;
    steps.report(&totals);
    Ok(())
}

/// GNU make with recursion, autotools, and ninja by CMake.
const REAL_BUILDS: &[&str] = &["redis-deps", "hello", "zopfli"];

fn clippy() -> Result<()> {
    run::check(run::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Licences, sources and bans by deny.toml. Advisories are left out: they come over the
/// network and would make yesterday's commit fail today.
fn check_dependencies(metadata: &Metadata) -> Result<()> {
    let program = tools::install(metadata, "cargo-deny")?;
    run::check(Command::new(&program).args([
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

fn release_build() -> Result<()> {
    binary::check_static(&binary::build()?)
}

#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn run<T>(&mut self, title: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n=== {title}");
        let started = Instant::now();
        let result = step();
        let took = started.elapsed();
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("=== {title}: {word} after {:.1} s", took.as_secs_f64());
        self.done.push((title, took));
        result.map_err(|error| anyhow!("CI stopped at the step `{title}`: {error:#}"))
    }

    /// The durations, what was skipped, and the sum as the very last line.
    fn report(&self, totals: &Totals) {
        println!();
        for (title, took) in &self.done {
            println!("{:>8.1} s  {title}", took.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, took)| *took).sum();
        println!("{:>8.1} s  in all\n", total.as_secs_f64());
        for line in &totals.skip_lines {
            println!("{line}");
        }
        println!("{totals}");
    }
}
