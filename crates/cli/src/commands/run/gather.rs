//! What is done with the output of several tasks: labelled line by line, or gathered.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use wiglaf_linux::process::ExitStatus;
use wiglaf_wire::nodeset::NodeSet;

use crate::error::CommandError;
use crate::output;

/// Longest unfinished line that is held back for its label.
const MAX_LINE_BYTES: usize = 1 << 20;

/// How output is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// As it comes.
    Plain,
    /// Whole lines as they come.
    Lines(Prefix),
    /// Each task's at the end, in their order.
    InTurn {
        /// Before each line.
        prefix: Prefix,
        /// A line of dashes before each task.
        dividers: bool,
    },
    /// Equal outputs once, at the end.
    Gathered,
    /// In JSON, at the end.
    Json,
}

/// What stands before each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// Nothing.
    None,
    /// The node's name.
    Name,
    /// The node's number, as BProc's bpsh prints it.
    Number,
}

impl Prefix {
    fn text(self, number: u32, name: &str) -> String {
        match self {
            Prefix::None => String::new(),
            Prefix::Name => format!("{name}: "),
            Prefix::Number => format!("{number:3}: "),
        }
    }
}

/// One task's output so far.
#[derive(Debug)]
pub(super) struct TaskOutput {
    number: u32,
    node: String,
    streams: [Vec<u8>; 2],
    longest_line: usize,
}

impl TaskOutput {
    pub(super) fn new(number: u32, node: String, longest_line: Option<usize>) -> TaskOutput {
        let longest_line = longest_line.unwrap_or(MAX_LINE_BYTES);
        TaskOutput {
            number,
            node,
            streams: Default::default(),
            longest_line,
        }
    }

    /// Takes bytes of stdout (0) or stderr (1); prints whole lines when they are shown so.
    pub(super) fn take(&mut self, show: Show, stream: usize, bytes: &[u8]) -> io::Result<()> {
        self.streams[stream].extend_from_slice(bytes);
        let Show::Lines(prefix) = show else {
            return Ok(());
        };
        let held = &self.streams[stream];
        let whole = match held.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => at + 1,
            None if held.len() > self.longest_line => held.len(),
            None => return Ok(()),
        };
        let lines: Vec<u8> = self.streams[stream].drain(..whole).collect();
        self.print(prefix, stream, &lines)
    }

    /// Prints a last line that has no end.
    pub(super) fn finish(&mut self, show: Show, stream: usize) -> io::Result<()> {
        let Show::Lines(prefix) = show else {
            return Ok(());
        };
        let lines = std::mem::take(&mut self.streams[stream]);
        self.print(prefix, stream, &lines)
    }

    fn print(&self, prefix: Prefix, stream: usize, lines: &[u8]) -> io::Result<()> {
        let prefix = prefix.text(self.number, &self.node);
        let mut text = Vec::with_capacity(lines.len() + 16);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            text.extend_from_slice(prefix.as_bytes());
            text.extend_from_slice(line);
            if !line.ends_with(b"\n") {
                text.push(b'\n');
            }
        }
        // One write for each piece, so that lines of different tasks never mix.
        if stream == 0 {
            let mut out = io::stdout().lock();
            out.write_all(&text)?;
            out.flush()
        } else {
            io::stderr().lock().write_all(&text)
        }
    }
}

/// Prints each task's output in its turn.
pub(super) fn print_in_turn(
    tasks: &[TaskOutput],
    prefix: Prefix,
    dividers: bool,
) -> Result<(), CommandError> {
    for task in tasks {
        if dividers {
            output::print(&format!("{}\t{}\n", task.number, "-".repeat(69)))?;
        }
        task.print(prefix, 0, &task.streams[0])?;
        task.print(prefix, 1, &task.streams[1])?;
    }
    Ok(())
}

/// Prints equal outputs once, under the nodes that they came from.
pub(super) fn print_gathered(tasks: &[TaskOutput]) -> Result<(), CommandError> {
    let mut groups: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for task in tasks {
        let first = tasks
            .iter()
            .position(|other| other.streams == task.streams)
            .unwrap_or(0);
        groups.entry(first).or_default().push(&task.node);
    }
    for (first, names) in groups {
        let [out, err] = &tasks[first].streams;
        if out.is_empty() && err.is_empty() {
            continue;
        }
        let names = NodeSet::from_names(names.iter().copied()).map(|set| set.fold())?;
        let mut text = format!("---- {names} ----\n").into_bytes();
        text.extend_from_slice(out);
        if !out.is_empty() && !out.ends_with(b"\n") {
            text.push(b'\n');
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&text)?;
        stdout.flush()?;
        io::stderr().lock().write_all(err)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct JsonTask<'a> {
    task: usize,
    node: &'a str,
    pid: i32,
    exit_code: i32,
    signal: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Prints all tasks as JSON.
pub(super) fn print_json(
    tasks: &[TaskOutput],
    ends: &[(i32, Option<ExitStatus>)],
) -> Result<(), CommandError> {
    let rows: Vec<_> = tasks
        .iter()
        .zip(ends)
        .enumerate()
        .map(|(index, (task, (pid, end)))| JsonTask {
            task: index,
            node: &task.node,
            pid: *pid,
            exit_code: end.map_or(i32::from(wiglaf_wire::status::EXIT_CLUSTER_FAILED), |end| {
                end.shell_code()
            }),
            signal: match end {
                Some(ExitStatus::Signaled { signal, .. }) => Some(*signal),
                _ => None,
            },
            stdout: String::from_utf8_lossy(&task.streams[0]).into_owned(),
            stderr: String::from_utf8_lossy(&task.streams[1]).into_owned(),
        })
        .collect();
    output::json(&rows)
}
