//! `wiglaf make` and `wiglaf build`: an unmodified build, its lines on all nodes (ADR 10).
//!
//! `session` is the loop around the broker (`wiglaf-build`), which decides; `shims` are the shells
//! and compilers of the build, `caller` reads what they are called for, `launches` are the lines
//! on nodes and `cluster` the nodes; `programs` and `directory` are what the private space is
//! made of, `words` what ghosts say, `live` the status on a terminal, `arguments` what is changed of make's own.

mod arguments;
mod caller;
mod cluster;
mod directory;
mod ending;
mod launches;
mod live;
mod load;
mod memory;
mod programs;
mod session;
mod shims;
mod token;
mod words;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use clap::Parser;
use wiglaf_build::Settings;
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};

use self::cluster::Cluster;
use self::session::Build;
use crate::CommandResult;
use crate::error::CommandError;

const MAKE_EXAMPLES: &str = "\
All else, and all that follows `--`, is make's own: `wiglaf make -j -k all`.
A -j without a number is as many jobs as the cluster has slots.

Examples:
  wiglaf make -j                         on all nodes, as many lines as they have slots
  wiglaf make -j16 --report all          and afterwards where the time went
  wiglaf make --nodes n[1-4] -C src -j8  on these nodes

The files, the messages and the exit code are make's own. Without a head the build runs here, with a
word about it.";

const BUILD_EXAMPLES: &str = "\
Examples:
  wiglaf build -- ninja -j8
  wiglaf build -- sh -c './configure && make -j8'
  wiglaf build --report -- cargo build --release

Shells and compilers that the command finds in PATH run their lines on nodes. It tells them how many
to start at once: give it the number of slots in the cluster (`wiglaf nodes`).";

/// Run make with its lines on all nodes; the Makefile needs to know nothing of it
#[derive(clap::Args)]
#[command(after_help = MAKE_EXAMPLES, trailing_var_arg = true, disable_help_flag = true)]
pub(crate) struct MakeArgs {
    #[command(flatten)]
    options: Options,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// make's own options and targets
    #[arg(value_name = "MAKE-ARGUMENTS", allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Run any command that builds with its lines on all nodes: ninja, cargo, cmake, ./configure
#[derive(clap::Args)]
#[command(after_help = BUILD_EXAMPLES, trailing_var_arg = true)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    options: Options,
    /// The command and its arguments
    #[arg(required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(clap::Args)]
struct Options {
    /// Say afterwards where each line ran, why, and how long
    #[arg(long)]
    plan: bool,
    /// Say afterwards where the time went: by directory, by target, and what bounds it
    #[arg(long)]
    report: bool,
    /// Both as one line of JSON, the last of standard output
    #[arg(long)]
    json: bool,
    /// Say of each line where it ran when it ends
    #[arg(long)]
    verbose: bool,
    /// Fail rather than build here when no head answers
    #[arg(long)]
    require_cluster: bool,
    /// Only on these nodes: n1,n3 n[1-4] n[1-9]!n3
    #[arg(long, value_name = "NODESET")]
    nodes: Option<String>,
    /// Lines that run here at once, besides the short ones [default: 0 where all nodes are
    /// virtual, else all processors but one]
    #[arg(long, value_name = "N")]
    head_slots: Option<u32>,
}

/// Our options by themselves.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Own {
    #[command(flatten)]
    options: Options,
}

impl Options {
    /// These and those that stood among make's own.
    fn and(self, words: Vec<OsString>) -> Options {
        let more = Own::try_parse_from(words)
            .unwrap_or_else(|error| error.exit())
            .options;
        Options {
            plan: self.plan || more.plan,
            report: self.report || more.report,
            json: self.json || more.json,
            verbose: self.verbose || more.verbose,
            require_cluster: self.require_cluster || more.require_cluster,
            nodes: more.nodes.or(self.nodes),
            head_slots: more.head_slots.or(self.head_slots),
        }
    }
}

pub(crate) fn run_make(args: MakeArgs) -> CommandResult {
    debug_assert!(args.help.is_none(), "clap prints it and ends");
    let (own, makes) = arguments::part(args.arguments);
    let options = args.options.and(own);
    let command = |jobs: u32| {
        let make = std::iter::once(OsString::from("make"));
        make.chain(arguments::with_job_count(&makes, jobs))
            .collect()
    };
    run(&options, command, arguments::job_count)
}

pub(crate) fn run_build(args: BuildArgs) -> CommandResult {
    let BuildArgs { options, command } = args;
    run(&options, |_| command.clone(), |_| None)
}

/// `command` is told how many lines can run at once; `jobs` tells how many it starts at once.
fn run(
    options: &Options,
    command: impl Fn(u32) -> Vec<OsString>,
    jobs: impl Fn(&[OsString]) -> Option<u32>,
) -> CommandResult {
    let cores = processors();
    match directory::build_around() {
        // The shims of the build around this one see to its lines.
        Some(true) => return execute(&command(cores)),
        Some(false) => {
            let error = CommandError::new("this is left over from a build that has ended")
                .hint("its shells and compilers are no longer run on nodes: start it elsewhere");
            return without_cluster(options, error, &command(cores));
        }
        None => {}
    }
    let cluster = match Cluster::reach(options.nodes.as_deref()) {
        Ok(cluster) => cluster,
        Err(error) => return without_cluster(options, error, &command(cores)),
    };
    let tree = std::env::current_dir()?;
    let settings = Settings {
        head_slots: options.head_slots,
        ..Settings::new(tree, cores)
    };
    let slots = cluster.slots() + settings.head_slots(cluster.nodes());
    let command = command(slots.max(1));
    let settings = Settings {
        jobs: jobs(&command),
        ..settings
    };
    let mut memory = memory::Memory::of(&settings.tree);
    let build = Build {
        command: command.clone(),
        settings,
        learned: memory.load(),
        with_live: !options.json,
        verbose: options.verbose,
    };
    match session::run(build, cluster) {
        Ok(built) => {
            memory.store(&built.learned);
            ending::tell(options, &built.record, built.turned_away)?;
            ending::end_as(built.end)
        }
        Err(error) => {
            let hint = error.hint().unwrap_or_default();
            let error = CommandError::new(error.to_string()).hint(hint);
            without_cluster(options, error, &command)
        }
    }
}

fn processors() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Never silently: whoever asked for a cluster wants to know that there is none.
fn without_cluster(options: &Options, error: CommandError, command: &[OsString]) -> CommandResult {
    if options.require_cluster {
        return Err(error.code(EXIT_CLUSTER_FAILED));
    }
    let (message, hint) = error.into_words();
    eprintln!("wiglaf: building here alone: {message}");
    if let Some(hint) = hint.filter(|hint| !hint.is_empty()) {
        eprintln!("        {hint}");
    }
    execute(command)
}

/// Becomes the command.
fn execute(command: &[OsString]) -> CommandResult {
    let Some((program, arguments)) = command.split_first() else {
        return Err(CommandError::new("there is no command"));
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => EXIT_NOT_FOUND,
        _ => EXIT_NOT_EXECUTABLE,
    };
    Err(CommandError::new(format!("{}: {error}", program.display())).code(code))
}
