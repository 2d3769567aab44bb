//! Nodes' own disks: what is wanted of them, what is on them, and what was done about it.
//!
//! The head knows the layout, the agent its disks: it is the agent that plans, so that a plan is
//! never about a disk that has changed meanwhile.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most entries of a layout that one node is told.
pub const MAX_DISK_RULES: usize = 64;
/// Most disks of one node in a message.
pub const MAX_DISKS: usize = 32;
/// Most partitions of a disk in a message.
pub const MAX_DISK_PARTS: usize = 64;
/// Most lines about what is done.
pub const MAX_DISK_STEPS: usize = 256;
/// Longest text in these messages.
pub const MAX_DISK_TEXT: usize = 256;

const MIB: u64 = 1 << 20;

/// What a partition is for. In this order they lie on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// More memory for tasks.
    Swap,
    /// Files of tasks, for a while.
    Scratch,
    /// Files that are kept.
    Data,
}

impl Purpose {
    /// All of them, in their order on a disk.
    pub const ALL: [Purpose; 3] = [Purpose::Swap, Purpose::Scratch, Purpose::Data];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Swap => "swap",
            Purpose::Scratch => "scratch",
            Purpose::Data => "data",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// So many MiB.
    Mib(u64),
    /// So many hundredths of the disk.
    Percent(u8),
    /// What the others leave.
    Rest,
}

/// Not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: write it as 2G, 512M, 50% or rest")]
pub struct AmountError(String);

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Amount, AmountError> {
        let wrong = || AmountError(text.to_owned());
        if text == "rest" {
            return Ok(Amount::Rest);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let mib = |unit: u64| number.checked_mul(unit).map(|bytes| bytes / MIB);
        let amount = match unit {
            "%" => Amount::Percent(u8::try_from(number).map_err(|_| wrong())?),
            "M" => Amount::Mib(number),
            "G" => Amount::Mib(mib(1 << 30).ok_or_else(wrong)?),
            "T" => Amount::Mib(mib(1 << 40).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        match amount {
            Amount::Mib(0) | Amount::Percent(0 | 101..) => Err(wrong()),
            amount => Ok(amount),
        }
    }
}

/// One entry of a layout, as it concerns one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRule {
    /// `first`, a device's path, or a serial number or WWN.
    pub device: String,
    /// What is to be on it, each purpose once.
    pub parts: Vec<(Purpose, Amount)>,
}

/// A medium that the head's boot service offers to nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediumFile {
    /// What the service knows it by.
    pub number: u32,
    /// Its size.
    pub bytes: u64,
    /// The digest of what it holds.
    pub sha256: [u8; 32],
}

/// A disk that a medium is to be written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMedium {
    /// Which: by device, serial number or WWN.
    pub device: String,
    /// Data on it may be lost.
    pub overwrite: bool,
    /// What is written to it; without it, the answer only says whether it would be.
    pub file: Option<MediumFile>,
}

/// What an agent is to do with its disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOrder {
    /// Say what there is.
    Look,
    /// Say what would be done.
    Plan {
        /// The layout.
        rules: Vec<DiskRule>,
        /// Disks whose data may be lost: by device, serial number or WWN.
        erase: Vec<String>,
    },
    /// Do it.
    Apply {
        /// The layout.
        rules: Vec<DiskRule>,
        /// Disks whose data may be lost: by device, serial number or WWN.
        erase: Vec<String>,
    },
    /// Make its machine start from one of them.
    Write(DiskMedium),
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPart {
    /// Its path.
    pub device: String,
    /// Its size.
    pub bytes: u64,
    /// What is on it.
    pub content: String,
    /// What it is for, if it is this cluster's.
    pub purpose: Option<Purpose>,
    /// What it is used for now, or why it can't be.
    pub state: String,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its path.
    pub device: String,
    /// What its maker calls it, if it says so.
    pub model: String,
    /// Its serial number or WWN, if it has one.
    pub serial: String,
    /// Its size.
    pub bytes: u64,
    /// What is on it as a whole.
    pub content: String,
    /// Its partitions.
    pub parts: Vec<DiskPart>,
}

/// What came, or would come, of a part of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskVerdict {
    /// It is as it should be.
    Right,
    /// This would be done.
    Planned,
    /// This was done.
    Done,
    /// It will not be done as things are.
    Refused,
    /// It was tried.
    Failed,
}

/// A line about a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStep {
    /// The disk, if it is about one.
    pub device: Option<String>,
    /// What it amounts to.
    pub verdict: DiskVerdict,
    /// In words.
    pub text: String,
}

/// What an agent says of its disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAnswer {
    /// Why nothing is said of its disks.
    pub refused: Option<String>,
    /// The disks, if they were asked for.
    pub disks: Vec<DiskInfo>,
    /// What is, or would be, done.
    pub steps: Vec<DiskStep>,
}

impl DiskAnswer {
    /// Why a node says nothing of its disks.
    pub fn refused(reason: impl Into<String>) -> DiskAnswer {
        DiskAnswer {
            refused: Some(reason.into()),
            ..DiskAnswer::default()
        }
    }

    /// How much of a message it is, about.
    pub fn weight(&self) -> usize {
        const EACH: usize = 32;
        let part =
            |part: &DiskPart| part.device.len() + part.content.len() + part.state.len() + EACH;
        let disk = |disk: &DiskInfo| {
            let texts = [&disk.device, &disk.model, &disk.serial, &disk.content];
            let texts: usize = texts.iter().map(|text| text.len()).sum();
            texts + disk.parts.iter().map(part).sum::<usize>() + EACH
        };
        let step =
            |step: &DiskStep| step.text.len() + step.device.as_ref().map_or(0, String::len) + EACH;
        self.disks.iter().map(disk).sum::<usize>()
            + self.steps.iter().map(step).sum::<usize>()
            + self.refused.as_ref().map_or(0, String::len)
            + EACH
    }

    /// Cuts what is longer than it may be, and makes characters that a terminal would obey visible:
    /// names on disks were written by anybody.
    pub fn bound(&mut self) {
        self.disks.truncate(MAX_DISKS);
        self.steps.truncate(MAX_DISK_STEPS);
        let disks = self.disks.iter_mut().flat_map(|disk| {
            disk.parts.truncate(MAX_DISK_PARTS);
            let parts = disk.parts.iter_mut();
            let parts =
                parts.flat_map(|part| [&mut part.device, &mut part.content, &mut part.state]);
            [
                &mut disk.device,
                &mut disk.model,
                &mut disk.serial,
                &mut disk.content,
            ]
            .into_iter()
            .chain(parts)
        });
        let steps = self.steps.iter_mut();
        let steps = steps.flat_map(|step| [Some(&mut step.text), step.device.as_mut()]);
        let texts = disks.chain(steps.flatten()).chain(self.refused.as_mut());
        for text in texts {
            let is_plain = |c: char| !c.is_control();
            if text.len() > MAX_DISK_TEXT || !text.chars().all(is_plain) {
                let shown = text.chars().map(|c| if is_plain(c) { c } else { '?' });
                *text = shown.take(MAX_DISK_TEXT / 4).collect();
            }
        }
    }
}

/// What a command wants of nodes' disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskAction {
    /// [`DiskOrder::Look`].
    Show,
    /// [`DiskOrder::Plan`].
    Plan,
    /// [`DiskOrder::Apply`].
    Apply,
    /// [`DiskOrder::Write`], of one node.
    Write(DiskMedium),
}

/// What a command asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// What for.
    pub action: DiskAction,
    /// Node set; `None` is all that are connected.
    pub nodes: Option<String>,
    /// Nodes' names, and disks of theirs whose data may be lost.
    pub erase: Vec<(String, String)>,
}

/// What one node has answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDisks {
    /// Its name.
    pub node: String,
    /// Its answer.
    pub answer: DiskAnswer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_what_people_write() {
        let read = |text: &str| text.parse::<Amount>().ok();
        assert_eq!(read("2G"), Some(Amount::Mib(2048)));
        assert_eq!(read("512M"), Some(Amount::Mib(512)));
        assert_eq!(read("1T"), Some(Amount::Mib(1 << 20)));
        assert_eq!(read("50%"), Some(Amount::Percent(50)));
        assert_eq!(read("rest"), Some(Amount::Rest));
        for wrong in [
            "",
            "G",
            "2",
            "0G",
            "-1G",
            "2 G",
            "101%",
            "0%",
            "99999999999999999999G",
            "18446744073709551615T",
            "é",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_bounded_and_plain() {
        let mut answer = DiskAnswer::refused("a\u{1b}[2Jb");
        answer.disks = vec![
            DiskInfo {
                device: "/dev/vda".into(),
                model: "é".repeat(4096),
                serial: "x\ny".into(),
                bytes: 1,
                content: String::new(),
                parts: vec![],
            };
            1000
        ];
        answer.bound();
        assert_eq!(answer.refused.as_deref(), Some("a?[2Jb"));
        assert_eq!(answer.disks.len(), MAX_DISKS);
        assert!(answer.disks[0].model.len() <= MAX_DISK_TEXT);
        assert_eq!(answer.disks[0].serial, "x?y");
        assert!(answer.weight() < crate::frame::MAX_FRAME_BYTES / 2);
    }
}
