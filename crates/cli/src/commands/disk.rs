//! `wiglaf disk …`

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::disk::{
    DiskAction, DiskInfo, DiskPart, DiskRequest, DiskStep, DiskVerdict, NodeDisks, Purpose,
};

use super::which::{Which, all_have_answered};
use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;
use crate::output::{self, Align, Column};

/// Exit code of a plan that was not carried out as a whole.
const EXIT_NOT_ALL: u8 = 1;

/// An answer that takes longer is one that people wonder about.
const SILENCE: Duration = Duration::from_secs(5);

/// Most images have no drivers for disks.
const NO_DISK: &str = "no disk, or no driver for it (see `wiglaf image build --disk`)";

const EXAMPLES: &str = "\
Examples:
  wiglaf disk show                   the disks of all nodes that have some, and what is on them
  wiglaf disk plan                   what the layout in the configuration means for each of them
  wiglaf disk apply -w n[1-4]        do it; a second time there is nothing to do
  wiglaf disk apply --erase n3:XY42  n3's disk with this serial number, too, whatever is on it";

/// Use nodes' own disks, for swap and for files that tasks see as /scratch and /data
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show nodes' disks, and what is on them
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Tell what `wiglaf disk apply` would do, and why it would leave a disk alone
    Plan {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        named: Named,
    },
    /// Divide and format nodes' disks as the layout in the configuration says
    ///
    /// A disk that is right already is left as it is, and so is one with anything on it, unless
    /// --erase names it. Exit code 0: all of it is as the layout says; 1: some of it is not.
    Apply {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        named: Named,
    },
}

#[derive(clap::Args)]
struct Named {
    /// A disk whose data may be lost, by its path, serial number or WWN; may be given several
    /// times
    #[arg(long, value_name = "NODE:DISK", value_parser = parse_erase)]
    erase: Vec<(String, String)>,
}

fn parse_erase(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((node, disk)) if !node.is_empty() && !disk.is_empty() => {
            Ok((node.to_owned(), disk.to_owned()))
        }
        _ => Err("a node and one of its disks, for example n1:/dev/sda".into()),
    }
}

pub(crate) fn run(args: Args) -> CommandResult {
    match args.action {
        Action::Show { which } => {
            let (list, silent) = ask(DiskAction::Show, &which, Vec::new())?;
            show(&list, which.json)?;
            all_have_answered(&silent)
        }
        Action::Plan { which, named } => {
            let (list, silent) = ask(DiskAction::Plan, &which, named.erase)?;
            tell(&list, "PLAN", which.json)?;
            all_have_answered(&silent)
        }
        Action::Apply { which, named } => {
            let asked = || ask(DiskAction::Apply, &which, named.erase);
            let (list, silent) = telling(
                "waiting for nodes that make file systems: big slow disks take minutes, and nodes \
                 give up after 13",
                asked,
            )?;
            tell(&list, "DONE", which.json)?;
            all_have_answered(&silent)?;
            Ok(exit_code(&list))
        }
    }
}

/// Says what is waited for, if it takes a while.
fn telling<T>(what: &'static str, ask: impl FnOnce() -> T) -> T {
    let (done, waits) = channel::<()>();
    let teller = thread::spawn(move || {
        if waits.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("wiglaf: {what}");
        }
    });
    let answer = ask();
    drop(done);
    // It has nothing else to do.
    let _ = teller.join();
    answer
}

fn ask(
    action: DiskAction,
    which: &Which,
    erase: Vec<(String, String)>,
) -> Result<(Vec<NodeDisks>, Vec<String>), CommandError> {
    let request = DiskRequest {
        action,
        nodes: which.nodes.clone(),
        erase,
    };
    match Head::connect()?.ask(&Request::Disk(request))? {
        Reply::Disks { list, silent } if list.is_empty() && silent.is_empty() => {
            Err(CommandError::new("no node that has disks of its own is up")
                .hint("virtual nodes have none; `wiglaf nodes` shows all nodes and their states"))
        }
        Reply::Disks { list, silent } => Ok((list, silent)),
        other => Err(CommandError::from_reply(other)),
    }
}

fn exit_code(list: &[NodeDisks]) -> u8 {
    let is_wrong =
        |step: &DiskStep| matches!(step.verdict, DiskVerdict::Refused | DiskVerdict::Failed);
    let is_wrong =
        |node: &NodeDisks| node.answer.refused.is_some() || node.answer.steps.iter().any(is_wrong);
    if list.iter().any(is_wrong) {
        EXIT_NOT_ALL
    } else {
        0
    }
}

fn show(list: &[NodeDisks], json: bool) -> Result<(), CommandError> {
    if json {
        return output::json(&list.iter().map(shown).collect::<Vec<_>>());
    }
    let columns = [
        Column("NODE", Align::Left),
        Column("DEVICE", Align::Left),
        Column("SIZE", Align::Right),
        Column("SERIAL", Align::Left),
        Column("MODEL", Align::Left),
        Column("CONTENT", Align::Left),
    ];
    let rows: Vec<_> = list.iter().flat_map(show_rows).collect();
    output::table(&columns, &rows)
}

fn show_rows(node: &NodeDisks) -> Vec<Vec<String>> {
    let row = |device: &str, size: String, serial: &str, model: &str, content: String| {
        let or_none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let cells = [device, serial, model].map(or_none);
        let [device, serial, model] = cells;
        vec![node.node.clone(), device, size, serial, model, content]
    };
    let answer = &node.answer;
    if let Some(why) = &answer.refused {
        return vec![row("", "-".into(), "", "", why.clone())];
    }
    if answer.disks.is_empty() {
        return vec![row("", "-".into(), "", "", NO_DISK.into())];
    }
    let mut rows = Vec::new();
    for disk in &answer.disks {
        let content = disk.content.clone();
        let size = output::bytes(disk.bytes);
        rows.push(row(&disk.device, size, &disk.serial, &disk.model, content));
        for part in &disk.parts {
            let size = output::bytes(part.bytes);
            rows.push(row(&part.device, size, "", "", part_text(part)));
        }
    }
    rows
}

fn part_text(part: &DiskPart) -> String {
    let what = match part.purpose {
        Some(purpose) if purpose.name() == part.content => format!("wiglaf {purpose}"),
        Some(purpose) => format!("wiglaf {purpose}: {}", part.content),
        None => part.content.clone(),
    };
    if part.state.is_empty() {
        what
    } else {
        format!("{what}, {}", part.state)
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    node: &'a str,
    /// Why nothing is said.
    refused: Option<&'a str>,
    disks: Vec<ShownDisk<'a>>,
}

#[derive(Serialize)]
struct ShownDisk<'a> {
    device: &'a str,
    model: &'a str,
    serial: &'a str,
    bytes: u64,
    content: &'a str,
    partitions: Vec<ShownPart<'a>>,
}

#[derive(Serialize)]
struct ShownPart<'a> {
    device: &'a str,
    bytes: u64,
    content: &'a str,
    purpose: Option<&'static str>,
    state: &'a str,
}

fn shown(node: &NodeDisks) -> Shown<'_> {
    Shown {
        node: &node.node,
        refused: node.answer.refused.as_deref(),
        disks: node.answer.disks.iter().map(shown_disk).collect(),
    }
}

fn shown_disk(disk: &DiskInfo) -> ShownDisk<'_> {
    ShownDisk {
        device: &disk.device,
        model: &disk.model,
        serial: &disk.serial,
        bytes: disk.bytes,
        content: &disk.content,
        partitions: disk.parts.iter().map(shown_part).collect(),
    }
}

fn shown_part(part: &DiskPart) -> ShownPart<'_> {
    ShownPart {
        device: &part.device,
        bytes: part.bytes,
        content: &part.content,
        purpose: part.purpose.map(Purpose::name),
        state: &part.state,
    }
}

/// A line of a plan, or of what came of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line {
    node: String,
    device: Option<String>,
    verdict: &'static str,
    text: String,
}

fn lines(node: &NodeDisks) -> Vec<Line> {
    let line = |device: Option<String>, verdict, text: String| Line {
        node: node.node.clone(),
        device,
        verdict,
        text,
    };
    let answer = &node.answer;
    if let Some(why) = &answer.refused {
        return vec![line(None, "refused", why.clone())];
    }
    if answer.steps.is_empty() {
        let text = "the layout has nothing for it";
        return vec![line(None, "right", text.into())];
    }
    let steps = answer.steps.iter().map(|step| {
        let verdict = match step.verdict {
            DiskVerdict::Right => "right",
            DiskVerdict::Planned => "planned",
            DiskVerdict::Done => "done",
            DiskVerdict::Refused => "refused",
            DiskVerdict::Failed => "failed",
        };
        // The node does not say its own name.
        let named = format!("--erase {}:", node.node);
        let text = step.text.replace("--erase NODE:", &named);
        line(step.device.clone(), verdict, text)
    });
    steps.collect()
}

fn tell(list: &[NodeDisks], title: &'static str, json: bool) -> Result<(), CommandError> {
    let lines: Vec<_> = list.iter().flat_map(lines).collect();
    if json {
        return output::json(&lines);
    }
    let columns = [
        Column("NODE", Align::Left),
        Column("DISK", Align::Left),
        Column(title, Align::Left),
    ];
    let rows: Vec<_> = lines
        .into_iter()
        .map(|line| {
            let text = match line.verdict {
                "failed" => format!("FAILED: {}", line.text),
                "done" => format!("done: {}", line.text),
                _ => line.text,
            };
            vec![line.node, line.device.unwrap_or_else(|| "-".into()), text]
        })
        .collect();
    output::table(&columns, &rows)
}

#[cfg(test)]
mod tests {
    use wiglaf_wire::disk::DiskAnswer;

    use super::*;

    fn node(answer: DiskAnswer) -> NodeDisks {
        NodeDisks {
            node: "n3".into(),
            answer,
        }
    }

    #[test]
    fn a_refusal_says_what_to_type() {
        let step = DiskStep {
            device: Some("/dev/sda".into()),
            verdict: DiskVerdict::Refused,
            text: "left alone: it has ext4; to lose all that is on it: --erase NODE:XY1".into(),
        };
        let steps = vec![step];
        let node = node(DiskAnswer {
            steps,
            ..DiskAnswer::default()
        });
        assert!(lines(&node)[0].text.ends_with("--erase n3:XY1"));
        assert_eq!(exit_code(std::slice::from_ref(&node)), EXIT_NOT_ALL);
        assert_eq!(exit_code(&[]), 0);
        assert!(parse_erase("n3:XY1").is_ok());
        assert!(parse_erase("n3").is_err() && parse_erase(":x").is_err());
    }

    #[test]
    fn partitions_stand_below_their_disk() {
        let part = |purpose, content: &str, state: &str| DiskPart {
            device: "/dev/sda1".into(),
            bytes: 2 << 30,
            content: content.into(),
            purpose,
            state: state.into(),
        };
        let disk = DiskInfo {
            device: "/dev/sda".into(),
            model: String::new(),
            serial: "XY1".into(),
            bytes: 3 << 30,
            content: "GPT".into(),
            parts: vec![
                part(Some(Purpose::Swap), "swap", "on"),
                part(Some(Purpose::Scratch), "ext4", "at /scratch"),
                part(None, "NTFS", ""),
            ],
        };
        let disks = vec![disk];
        let rows = show_rows(&node(DiskAnswer {
            disks,
            ..DiskAnswer::default()
        }));
        let content: Vec<_> = rows.iter().map(|row| row[5].as_str()).collect();
        let expected = [
            "GPT",
            "wiglaf swap, on",
            "wiglaf scratch: ext4, at /scratch",
            "NTFS",
        ];
        assert_eq!(content, expected);
        assert_eq!(rows[0][2..5], ["3.0G", "XY1", "-"]);
    }
}
