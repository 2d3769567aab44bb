//! `wiglaf run`
//!
//! `caller` describes this process for the node, `single` becomes the ghost of its one task,
//! `several` stays as the parent of several ghosts, `gather` labels and gathers their output.

mod caller;
mod gather;
mod several;
mod single;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use wiglaf_wire::client::{NodeSelection, Reply, Request, RunRequest};
use wiglaf_wire::id::{JobId, NodeId};
use wiglaf_wire::launch::LaunchSpec;

pub(crate) use self::gather::{Prefix, Show};
pub(crate) use self::single::dump_no_core;

use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;

const EXAMPLES: &str = "\
Examples:
  wiglaf run make test                   on the least loaded node
  wiglaf run -w n1,n3 -l uptime          on two nodes, lines labelled
  wiglaf run -a -b uname -r              on all, equal outputs once
  wiglaf run -n 8 -l sh -c 'echo $WIGLAF_RANK'   eight tasks where there is room
  wiglaf run --tty -w n2 vim notes.txt   with a terminal
  job=$(wiglaf run --detach ./long); wiglaf logs -f $job; wiglaf wait $job

Exit codes: the command's own, the largest of several; 128+N for signal N (a single
task dies by the signal itself); 124 --timeout, 125 the cluster failed, 126 not
executable, 127 not found.";

/// Run a command on nodes as if it ran here: same user, directory, environment, terminal and PID
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, trailing_var_arg = true)]
pub(crate) struct Args {
    /// On each node of this set: n1,n3 n[1-4] n[1-9]!n3
    #[arg(short = 'w', long, value_name = "NODESET")]
    nodes: Option<String>,
    /// On any one node; placement chooses (the default)
    #[arg(long, conflicts_with_all = ["nodes", "all"])]
    any: bool,
    /// On all nodes (of the set) that are up
    #[arg(short, long)]
    all: bool,
    /// Not on these
    #[arg(short = 'x', long, value_name = "NODESET")]
    exclude: Option<String>,
    /// On this many nodes
    #[arg(short = 'N', value_name = "NODES")]
    node_count: Option<u32>,
    /// This many tasks
    #[arg(short = 'n', value_name = "TASKS")]
    task_count: Option<u32>,
    /// Prefix each line with its node's name
    #[arg(short, long, conflicts_with = "tty")]
    labels: bool,
    /// Gather: print equal outputs once, when all have ended
    #[arg(short = 'b', long, conflicts_with_all = ["tty", "labels"])]
    gather: bool,
    /// With a terminal of its own on the node
    #[arg(short, long)]
    tty: bool,
    /// End it after this time: 10s, 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// Set a variable, or with a bare NAME remove it
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    chdir: Option<PathBuf>,
    /// Have the nodes for oneself; waits until they are empty
    #[arg(long)]
    exclusive: bool,
    /// Fail rather than wait for a free slot
    #[arg(long)]
    now: bool,
    /// Return at once with a job number for `logs`, `wait` and `jobs`
    #[arg(long, conflicts_with_all = ["tty", "labels", "gather"])]
    detach: bool,
    /// Keep what the command leaves running
    #[arg(long)]
    leave: bool,
    /// Keep what it puts into /tmp in the node's memory until it ends
    #[arg(long, conflicts_with = "leave")]
    private_tmp: bool,
    /// If the cluster fails it, remove the files that it has made
    #[arg(long)]
    undo: bool,
    /// Who gets standard input, of several tasks
    #[arg(long, value_name = "TASK|all|none", value_parser = parse_stdin, default_value = "0")]
    stdin: StdinFor,
    /// Standard input from this file
    #[arg(short = 'I', long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Standard output to this file; %n is the node's name, %t the task's number
    #[arg(short = 'O', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Standard error to this file
    #[arg(short = 'E', long, value_name = "FILE")]
    error: Option<PathBuf>,
    /// Say where it runs
    #[arg(short, long)]
    verbose: bool,
    /// Print how the tasks ended as JSON, their output gathered in it
    #[arg(long, conflicts_with_all = ["tty", "labels", "gather", "detach"])]
    json: bool,
    /// The command and its arguments
    #[arg(required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
    /// For bpsh: how output is shown, and its longest line.
    #[arg(skip)]
    show: Option<(Show, usize)>,
}

impl Args {
    /// What bpsh asks for.
    pub(crate) fn for_bpsh(
        nodes: String,
        command: Vec<std::ffi::OsString>,
        show: Show,
        longest_line: usize,
        with_stdin: bool,
    ) -> Args {
        Args {
            nodes: Some(nodes),
            any: false,
            all: false,
            exclude: None,
            node_count: None,
            task_count: None,
            labels: false,
            gather: false,
            tty: false,
            timeout: None,
            env: Vec::new(),
            chdir: None,
            exclusive: false,
            now: false,
            detach: false,
            leave: false,
            private_tmp: false,
            undo: false,
            stdin: if with_stdin {
                StdinFor::All
            } else {
                StdinFor::Nobody
            },
            input: None,
            output: None,
            error: None,
            verbose: false,
            json: false,
            command,
            show: Some((show, longest_line)),
        }
    }

    /// With output to the files `output` and `error`.
    pub(crate) fn discarding_output(mut self) -> Args {
        self.output = Some("/dev/null".into());
        self.error = Some("/dev/null".into());
        self
    }

    fn show(&self) -> Show {
        match (self.show, self.labels, self.gather, self.json) {
            (Some((show, _)), ..) => show,
            (None, true, ..) => Show::Lines(Prefix::Name),
            (None, _, true, _) => Show::Gathered,
            (None, .., true) => Show::Json,
            _ => Show::Plain,
        }
    }
}

/// How long a launch waits for a head that is being replaced.
const HEAD_RETURN_WAIT: Duration = Duration::from_secs(10);
const HEAD_RETURN_POLL: Duration = Duration::from_millis(20);

/// Who gets standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StdinFor {
    Task(u32),
    All,
    Nobody,
}

fn parse_stdin(text: &str) -> Result<StdinFor, String> {
    match text {
        "all" => Ok(StdinFor::All),
        "none" => Ok(StdinFor::Nobody),
        number => number
            .parse()
            .map(StdinFor::Task)
            .map_err(|_| "a task's number, all or none".into()),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "a number and s, m, h or d, as 90s")?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86400.0,
        _ => return Err("the unit is ms, s, m, h or d".into()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Where the job's tasks go.
struct Placed {
    job: JobId,
    nodes: Vec<(NodeId, String)>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let spec = caller::describe(&args)?;
    let request = request(&args, spec.clone());
    let (head, placed) = connect_and_place(&request)?;
    if args.verbose {
        for (index, (_, name)) in placed.nodes.iter().enumerate() {
            eprintln!("wiglaf: task {}.{index} on {name}", placed.job);
        }
    }
    // bpsh has to see how its processes end: it exits with 255 for some of these ends.
    let is_bpsh = args.show.is_some();
    if placed.nodes.len() == 1 && args.show() == Show::Plain && !args.detach && !is_bpsh {
        return single::run(&args, head, request, &spec, &placed);
    }
    if spec.has_terminal() {
        return Err(CommandError::new("--tty is for one task")
            .hint("name one node with -w, or leave --tty out"));
    }
    several::run(&args, head, &spec, &placed)
}

fn request(args: &Args, spec: LaunchSpec) -> RunRequest {
    let timeout_ms = args.timeout.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    });
    RunRequest {
        selection: NodeSelection {
            nodes: args.nodes.clone(),
            all: args.all,
            exclude: args.exclude.clone(),
            prefer: Vec::new(),
            node_count: args.node_count,
            task_count: args.task_count,
            exclusive: args.exclusive,
            now: args.now,
            memory_kib: None,
        },
        spec,
        timeout_ms,
        detach: args.detach,
        follow: false,
    }
}

/// Nothing has begun before the first ghost is named, so a head that dies until then is simply
/// replaced by its successor.
fn connect_and_place(request: &RunRequest) -> Result<(Head, Placed), CommandError> {
    let mut lost: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let placed = Head::connect().and_then(|mut head| {
            let placed = place(&mut head, request.clone())?;
            Ok((head, placed))
        });
        match placed {
            Err(error) if error.is_connection_lost() && Head::is_expected() => {
                // It may have waited for a slot for hours before its head died.
                let since = lost.filter(|_| began.elapsed() < HEAD_RETURN_WAIT);
                let since = since.unwrap_or_else(Instant::now);
                if since.elapsed() > HEAD_RETURN_WAIT {
                    return Err(error);
                }
                lost = Some(since);
                std::thread::sleep(HEAD_RETURN_POLL);
            }
            result => return result,
        }
    }
}

fn place(head: &mut Head, request: RunRequest) -> Result<Placed, CommandError> {
    let mut reply = head.ask(&Request::Run(Box::new(request)))?;
    loop {
        match reply {
            Reply::Placed { job, nodes } => return Ok(Placed { job, nodes }),
            Reply::Waiting { reason } => {
                eprintln!("wiglaf: waiting: {reason} (--now would fail instead)");
            }
            other => return Err(CommandError::from_reply(other)),
        }
        reply = head.next()?;
    }
}

/// What a file-like redirection is called for one task.
fn expand(pattern: &std::path::Path, node: &str, task: usize) -> PathBuf {
    let text = pattern.to_string_lossy();
    PathBuf::from(text.replace("%n", node).replace("%t", &task.to_string()))
}

fn relayed_count(spec: &LaunchSpec) -> usize {
    spec.stdio
        .iter()
        .filter(|kind| kind.has_descriptor())
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("20ms"), Ok(Duration::from_millis(20)));
        assert!(parse_time("5 parsecs").is_err());
        assert!(parse_time("-1s").is_err());
    }

    #[test]
    fn output_files_are_named_after_node_and_task() {
        let path = expand(std::path::Path::new("/tmp/%n.%t.log"), "n3", 7);
        assert_eq!(path, PathBuf::from("/tmp/n3.7.log"));
    }
}
