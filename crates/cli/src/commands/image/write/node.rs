//! `wiglaf image write --disk`: the node fetches the medium from the head's boot service, and
//! writes it.

use std::fs;
use std::path::PathBuf;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use wiglaf_image::{Images, Medium, MediumTools};
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};
use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::disk::{DiskAction, DiskMedium, DiskRequest, DiskStep, DiskVerdict, MediumFile};

use super::medium_error;
use crate::error::CommandError;
use crate::head::Head;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// A disk of a node that has said that it would write to it.
pub(super) struct NodeDisk<'a> {
    node: &'a str,
    device: &'a str,
    overwrite: bool,
    /// What it has said about that.
    planned: Option<DiskStep>,
}

impl<'a> NodeDisk<'a> {
    /// Asks the node whether it would.
    pub(super) fn plan(
        node: &'a str,
        device: &'a str,
        overwrite: bool,
    ) -> Result<NodeDisk<'a>, CommandError> {
        let disk = NodeDisk {
            node,
            device,
            overwrite,
            planned: None,
        };
        let planned = Some(disk.ask(None)?);
        Ok(NodeDisk { planned, ..disk })
    }

    /// Writes it. Returns the device, as the node calls it, and how much was written.
    pub(super) fn write(
        &self,
        medium: &Medium<'_>,
        images: &Images,
        tools: &MediumTools,
    ) -> Result<(PathBuf, u64), CommandError> {
        if let Some(planned) = &self.planned {
            eprintln!(
                "wiglaf: writing {} to {} of {} ({})",
                medium.image.id,
                self.device_of(planned),
                self.node,
                planned.text
            );
        }
        let offered = medium.offer(images, tools).map_err(medium_error)?;
        remove_when_ended(offered.path().to_owned())?;
        let done = self.ask(Some(MediumFile {
            number: offered.number(),
            bytes: offered.size(),
            sha256: offered.sha256(),
        }))?;
        Ok((self.device_of(&done).into(), offered.size()))
    }

    fn device_of<'s>(&'s self, step: &'s DiskStep) -> &'s str {
        step.device.as_deref().unwrap_or(self.device)
    }

    fn ask(&self, file: Option<MediumFile>) -> Result<DiskStep, CommandError> {
        let request = DiskRequest {
            action: DiskAction::Write(DiskMedium {
                device: self.device.to_owned(),
                overwrite: self.overwrite,
                file,
            }),
            nodes: Some(self.node.to_owned()),
            erase: Vec::new(),
        };
        let list = match Head::connect()?.ask(&Request::Disk(request))? {
            Reply::Disks { list, .. } => list,
            other => return Err(CommandError::from_reply(other)),
        };
        let Some(node) = list.into_iter().next() else {
            return Err(CommandError::new(format!("no answer from {}", self.node))
                .hint("it has to be up; `wiglaf nodes` shows the nodes and their states"));
        };
        self.step(node.answer.refused, node.answer.steps)
    }

    fn step(
        &self,
        refused: Option<String>,
        steps: Vec<DiskStep>,
    ) -> Result<DiskStep, CommandError> {
        let (node, device) = (self.node, self.device);
        if let Some(why) = refused {
            return Err(CommandError::new(format!("{node}: {why}"))
                .hint("`wiglaf disk show` shows which nodes have disks of their own"));
        }
        let Some(step) = steps.into_iter().next() else {
            return Err(
                CommandError::new(format!("{node} says nothing of {device}"))
                    .hint("`wiglaf disk show` shows its disks"),
            );
        };
        let (text, named) = (&step.text, self.device_of(&step));
        match step.verdict {
            DiskVerdict::Planned | DiskVerdict::Done | DiskVerdict::Right => Ok(step),
            DiskVerdict::Refused => Err(CommandError::new(format!(
                "{named} of {node} is left alone: {text}"
            ))
            .hint("`wiglaf disk show` shows its disks, and what is on them")),
            DiskVerdict::Failed => Err(CommandError::new(format!(
                "{named} of {node} was not written: {text}"
            ))
            .hint(format!(
                "see `wiglaf boot status` and `wiglaf node log {node}`, and try again"
            ))),
        }
    }
}

/// Nobody else would, if this process is ended while the node writes.
fn remove_when_ended(path: PathBuf) -> Result<(), CommandError> {
    let ends = SignalSet::of(&[SIGHUP, SIGINT, SIGTERM]);
    let failed = |error: &dyn std::fmt::Display| {
        CommandError::new(format!("can't watch for signals: {error}"))
            .hint("see `ulimit -n` and `ulimit -u`")
    };
    let signals = SignalFd::new(ends).map_err(|errno| failed(&errno))?;
    block_signals(ends);
    let watch = move || {
        let mut waited = [PollFd::new(&signals, PollFlags::IN)];
        while poll(&mut waited, None).is_err() {}
        let _ = fs::remove_dir_all(&path);
        let signal = signals.read().ok().flatten().map_or(SIGTERM, |it| it.signo);
        std::process::exit(128 + signal);
    };
    let watcher = thread::Builder::new().name("signals".into()).spawn(watch);
    watcher.map(|_| ()).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_becomes_an_error_that_names_it() {
        let disk = NodeDisk {
            node: "n1",
            device: "vda",
            overwrite: false,
            planned: None,
        };
        let step = |verdict| DiskStep {
            device: Some("/dev/vda".into()),
            verdict,
            text: "it has ext4".into(),
        };
        let words = |refused: Option<&str>, steps| {
            let error = disk.step(refused.map(str::to_owned), steps).unwrap_err();
            error.into_words().0
        };
        assert_eq!(
            words(None, vec![step(DiskVerdict::Refused)]),
            "/dev/vda of n1 is left alone: it has ext4"
        );
        assert_eq!(
            words(None, vec![step(DiskVerdict::Failed)]),
            "/dev/vda of n1 was not written: it has ext4"
        );
        assert_eq!(words(Some("not ours"), vec![]), "n1: not ours");
        assert!(disk.step(None, vec![step(DiskVerdict::Done)]).is_ok());
    }
}
