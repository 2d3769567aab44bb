#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "a command's notes and errors go there")]
//! The `wiglaf` command: one file per command, and nothing but their arguments and output. What
//! they do is done by the head, the agents, the keeper and the deputies.

mod bproc;
mod commands;
mod daemons;
mod deputy;
mod error;
mod head;
mod output;
mod view_args;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::CommandError;

const EXAMPLES: &str = "\
Examples:
  wiglaf demo                        a guided tour on virtual nodes; leaves nothing behind
  wiglaf up -n 4                     four virtual nodes on this machine, until `wiglaf down`
  wiglaf run uname -a                on the least loaded node
  wiglaf run -w n[1-3] -l hostname   on three nodes, each line with its node's name
  wiglaf run -a -b cat /proc/loadavg on all nodes that are up, equal outputs once
  wiglaf run --tty -w n2 htop        a terminal on n2
  wiglaf make -j                     an unmodified build, its lines on all nodes
  wiglaf ps                          the processes on all nodes; `wiglaf kill PID` signals one
  wiglaf nodes                       the nodes and their states
  wiglaf boot enable --interface eth1 machines that start from the network join
  wiglaf doctor                      whether this machine can be a head, and what to do about it";

/// Turns a pile of Linux machines into one computer: commands run on any node as if they ran here.
#[derive(Parser)]
#[command(name = "wiglaf", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(commands::demo::Args),
    Up(commands::up::Args),
    Down(commands::down::Args),
    Run(commands::run::Args),
    Make(commands::make::MakeArgs),
    Build(commands::make::BuildArgs),
    Ps(commands::ps::Args),
    Kill(commands::kill::Args),
    Jobs(commands::jobs::Args),
    Wait(commands::wait::Args),
    Logs(commands::logs::Args),
    Cp(commands::cp::Args),
    Nodes(commands::nodes::Args),
    Node(commands::node::Args),
    Boot(commands::boot::Args),
    Image(commands::image::Args),
    Disk(commands::disk::Args),
    Net(commands::net::Args),
    View(commands::view::Args),
    Doctor(commands::doctor::Args),
    Init(commands::init::Args),
    Head(commands::head::Args),
    #[command(hide = true)]
    BootService(commands::boot_service::Args),
    #[command(hide = true)]
    Keeper(commands::keeper::Args),
    #[command(hide = true)]
    Rack(commands::rack::Args),
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let name = words
        .first()
        .map(std::path::Path::new)
        .and_then(std::path::Path::file_name);
    // Only the kernel starts a program as process 1 by this name: a container may start `wiglaf`.
    if std::process::id() == 1 && name.is_some_and(|name| name == "init") {
        wiglaf_node::init::run();
    }
    if let Some(result) = name.and_then(|name| bproc::run(&name.to_string_lossy(), &words)) {
        return end(result);
    }
    let cli = Cli::parse_from(words);
    let result = match cli.command {
        Command::Demo(args) => commands::demo::run(&args),
        Command::Up(args) => commands::up::run(&args),
        Command::Down(args) => commands::down::run(&args),
        Command::Run(args) => commands::run::run(args),
        Command::Make(args) => commands::make::run_make(args),
        Command::Build(args) => commands::make::run_build(args),
        Command::Ps(args) => commands::ps::run(&args),
        Command::Kill(args) => commands::kill::run(&args),
        Command::Jobs(args) => commands::jobs::run(&args),
        Command::Wait(args) => commands::wait::run(&args),
        Command::Logs(args) => commands::logs::run(&args),
        Command::Cp(args) => commands::cp::run(&args),
        Command::Nodes(args) => commands::nodes::run(&args),
        Command::Node(args) => commands::node::run(args),
        Command::Boot(args) => commands::boot::run(args),
        Command::Image(args) => commands::image::run(args),
        Command::Disk(args) => commands::disk::run(args),
        Command::Net(args) => commands::net::run(args),
        Command::View(args) => commands::view::run(args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Init(args) => commands::init::run(&args),
        Command::Head(args) => commands::head::run(&args),
        Command::BootService(args) => commands::boot_service::run(args),
        Command::Keeper(args) => commands::keeper::run(&args),
        Command::Rack(args) => commands::rack::run(&args),
    };
    end(result)
}

fn end(result: CommandResult) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(error.report()),
    }
}

type CommandResult = Result<u8, CommandError>;
