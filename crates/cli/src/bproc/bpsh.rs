//! `bpsh`

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use wiglaf_wire::client::NodeState;

use super::{HEAD_NUMBER, select};
use crate::CommandResult;
use crate::commands::nodes;
use crate::commands::run::{self, Prefix, Show};
use crate::error::CommandError;

/// What bpsh exits with when a process or the cluster ended abnormally.
const ABNORMAL: u8 = 255;

/// Run a command on nodes, as BProc's bpsh did: bpsh [options] NODES COMMAND, or -a, -A COMMAND
#[derive(clap::Parser)]
#[command(name = "bpsh", version, disable_version_flag = true)]
pub(crate) struct Args {
    /// On all nodes that are up
    #[arg(short = 'a')]
    all_up: bool,
    /// On all nodes that are not down
    #[arg(short = 'A')]
    all_not_down: bool,
    /// Standard input from /dev/null
    #[arg(short = 'n')]
    no_stdin: bool,
    /// No input and no output
    #[arg(short = 'N')]
    no_io: bool,
    /// Output line by line
    #[arg(short = 'L')]
    line_buffer: bool,
    /// Each line with its node's number
    #[arg(short = 'p')]
    prefix: bool,
    /// The output of each node in its turn
    #[arg(short = 's')]
    sequential: bool,
    /// A divider before each node's output
    #[arg(short = 'd')]
    divider: bool,
    /// Longest line that is kept together, in bytes
    #[arg(short = 'b', value_name = "BYTES", default_value_t = 4096)]
    buffer: usize,
    /// Standard input from this file on the node
    #[arg(short = 'I', long = "stdin", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Standard output to this file on the node
    #[arg(short = 'O', long = "stdout", value_name = "FILE")]
    output: Option<PathBuf>,
    /// Standard error to this file on the node
    #[arg(short = 'E', long = "stderr", value_name = "FILE")]
    error: Option<PathBuf>,
    /// NODES (unless -a or -A), the command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let mut words = args.words.clone();
    let set = if args.all_up || args.all_not_down {
        None
    } else {
        Some(words.remove(0).to_string_lossy().into_owned())
    };
    if words.is_empty() {
        return Err(CommandError::new("no command is given")
            .hint("bpsh 1 uname -a")
            .code(ABNORMAL));
    }
    let command = redirected(&args, words);
    if set.as_deref() == Some(&HEAD_NUMBER.to_string()) {
        let error = Command::new(&command[0]).args(&command[1..]).exec();
        return Err(CommandError::new(format!("{}: {error}", command[0].display())).code(ABNORMAL));
    }
    let list = nodes::list(None)?;
    let chosen = match &set {
        Some(text) => select(&list, text).map_err(|error| error.code(ABNORMAL))?,
        None => list
            .iter()
            .filter(|node| match node.state {
                NodeState::Up => true,
                NodeState::Down | NodeState::Suspect => false,
                _ => args.all_not_down,
            })
            .collect(),
    };
    if chosen.is_empty() {
        return Err(CommandError::new("no node is up")
            .hint("`bpstat` shows them")
            .code(ABNORMAL));
    }
    let prefix = if args.prefix {
        Prefix::Number
    } else {
        Prefix::None
    };
    let show = if args.sequential || args.divider {
        Show::InTurn {
            prefix,
            dividers: args.divider,
        }
    } else if args.prefix || args.line_buffer {
        Show::Lines(prefix)
    } else {
        Show::Plain
    };
    let names: Vec<_> = chosen.iter().map(|node| node.name.clone()).collect();
    let with_stdin = !(args.no_stdin || args.no_io);
    let request = run::Args::for_bpsh(names.join(","), command, show, args.buffer, with_stdin);
    let request = if args.no_io {
        request.discarding_output()
    } else {
        request
    };
    match run::run(request) {
        Ok(code) if code > 128 => Ok(ABNORMAL),
        Ok(code) => Ok(code),
        Err(error) => Err(error.code(ABNORMAL)),
    }
}

/// Files are opened on the node, by a shell there.
fn redirected(args: &Args, words: Vec<OsString>) -> Vec<OsString> {
    let mut script = String::from("exec \"$@\"");
    let mut files = Vec::new();
    let streams = [("<", &args.input), (">", &args.output), ("2>", &args.error)];
    for (operator, file) in streams {
        if let Some(file) = file {
            files.push(file.as_os_str().to_owned());
            script = format!("{script} {operator}\"$WIGLAF_FILE_{}\"", files.len());
        }
    }
    if files.is_empty() {
        return words;
    }
    let mut command: Vec<OsString> = vec!["env".into()];
    for (index, file) in files.into_iter().enumerate() {
        let mut assignment = OsString::from(format!("WIGLAF_FILE_{}=", index + 1));
        assignment.push(file);
        command.push(assignment);
    }
    command.extend(["/bin/sh".into(), "-c".into(), script.into(), "bpsh".into()]);
    command.extend(words);
    command
}
