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
pub(super) enum Show {
    /// As it comes.
    Plain,
    /// Each line with its node's name.
    Labels,
    /// Equal outputs once, at the end.
    Gathered,
    /// In JSON, at the end.
    Json,
}

/// One task's output so far.
#[derive(Debug, Default)]
pub(super) struct TaskOutput {
    pub(super) node: String,
    streams: [Vec<u8>; 2],
}

impl TaskOutput {
    pub(super) fn new(node: String) -> TaskOutput {
        TaskOutput { node, streams: Default::default() }
    }

    /// Takes bytes of stdout (0) or stderr (1); prints whole lines when they are labelled.
    pub(super) fn take(&mut self, show: Show, stream: usize, bytes: &[u8]) -> io::Result<()> {
        self.streams[stream].extend_from_slice(bytes);
        if show == Show::Labels {
            let held = &self.streams[stream];
            let whole = match held.iter().rposition(|byte| *byte == b'\n') {
                Some(at) => at + 1,
                None if held.len() > MAX_LINE_BYTES => held.len(),
                None => return Ok(()),
            };
            let lines: Vec<u8> = self.streams[stream].drain(..whole).collect();
            self.print_labelled(stream, &lines)?;
        }
        Ok(())
    }

    /// Prints a last line that has no end.
    pub(super) fn finish(&mut self, show: Show, stream: usize) -> io::Result<()> {
        if show == Show::Labels && !self.streams[stream].is_empty() {
            let lines = std::mem::take(&mut self.streams[stream]);
            self.print_labelled(stream, &lines)?;
        }
        Ok(())
    }

    fn print_labelled(&self, stream: usize, lines: &[u8]) -> io::Result<()> {
        let mut text = Vec::with_capacity(lines.len() + 16);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            text.extend_from_slice(self.node.as_bytes());
            text.extend_from_slice(b": ");
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

/// Prints equal outputs once, under the nodes that they came from.
pub(super) fn print_gathered(tasks: &[TaskOutput]) -> Result<(), CommandError> {
    let mut groups: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for task in tasks {
        let first = tasks.iter().position(|other| other.streams == task.streams).unwrap_or(0);
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
