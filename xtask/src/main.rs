//! The only tool runner: what CI runs, and the benchmarks.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod arrows;
mod bench;
mod binary;
mod ci;
mod debootstrap;
mod debs;
mod dist;
mod inputs;
mod packages;
mod recording;
mod run;
mod sources;
mod testing;
mod tools;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Runs Wiglaf's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Everything that must hold before a change goes in
    Ci,
    /// Measure something: `cargo xtask bench NAME [ARGS]`
    Bench(bench::Args),
    /// Fetch real programs to build into target/inputs
    Inputs(inputs::Args),
    /// Build inputs here and over a cluster, and compare all files to the byte
    Compare(inputs::compare::Args),
    /// Boot guests in QEMU from a head: `cargo xtask vm-test [NAMES]`
    VmTest(vm::Args),
    /// Make what a user installs: a tarball and a .deb, in target/dist
    Dist(dist::Args),
    /// Play the README's session at a terminal and write docs/recordings/make.svg
    Recording,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        None => Cli::command().print_help().map_err(Into::into),
        Some(Task::Ci) => ci::run(),
        Some(Task::Bench(args)) => bench::run(&args),
        Some(Task::Inputs(args)) => inputs::run(&args),
        Some(Task::Compare(args)) => inputs::compare::run(&args),
        Some(Task::VmTest(args)) => vm::run(&args),
        Some(Task::Dist(args)) => dist::run(&args),
        Some(Task::Recording) => recording::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
