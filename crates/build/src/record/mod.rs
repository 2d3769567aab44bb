//! What became of each line of a build, for `--plan` and `--report`.

mod critical;
mod report;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

pub use critical::{Chain, Step};
pub use report::{Report, Share};

use crate::policy::Judgement;

/// Lines that are told one by one; of those beyond there are only sums.
pub(crate) const MAX_ROWS: usize = 100_000;
/// Reasons for falling back that are told apart.
const MAX_FALLBACK_REASONS: usize = 8;
/// Of a program's or a target's name.
const MAX_NAME_CHARS: usize = 200;

/// Where a line ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On the head, executed by its shim.
    Here,
    /// On this node.
    Node(String),
}

/// One line. Times are since the build's start.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// In the order of calls.
    pub number: u64,
    /// The directory, relative to the tree.
    pub directory: String,
    /// The program that says most of the line.
    pub program: String,
    /// What it makes, if that could be seen.
    pub target: Option<String>,
    /// Where it ran at last; `None` if it never began.
    pub place: Option<Place>,
    /// Why there, in words.
    pub reason: String,
    /// How long it was expected to take.
    pub expected_us: Option<u64>,
    /// When its shim called.
    pub called_us: u64,
    /// When it began where it ran at last.
    pub started_us: Option<u64>,
    /// When it ended.
    pub ended_us: Option<u64>,
    /// Processor time, known of what ran on a node.
    pub cpu_us: Option<u64>,
    /// Its largest process.
    pub rss_kib: Option<u64>,
    /// Launches on nodes.
    pub attempts: u32,
    /// Why those that failed did.
    pub failures: Vec<String>,
    /// Meant for a node, it had to run here, because of this.
    pub fell_back: Option<String>,
    /// What it names of the head's `/tmp`, which it sees on nodes then in place of its own.
    pub shares_tmp: Option<String>,
    /// It ran in one of the head's slots, because it ended sooner there.
    pub in_head_slot: bool,
    /// How it ended, if that is known and was not well.
    pub status: String,
    /// Its time is its own: it started no other lines and is not a part of one that counts.
    pub counts: bool,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Record {
    rows: Vec<Row>,
    /// Lines beyond [`MAX_ROWS`], and their time.
    omitted: u64,
    omitted_us: u64,
    told: usize,
    fallbacks: BTreeMap<String, u64>,
    fallback_count: u64,
    wall_us: u64,
    jobs: Option<u32>,
}

impl Row {
    pub(crate) fn new(number: u64, judgement: &Judgement, now: Duration) -> Row {
        let text = |bytes: &[u8]| -> String {
            let text = String::from_utf8_lossy(bytes);
            // A terminal must not be told what to do by a file's name.
            let is_plain = |letter: char| if letter.is_control() { '?' } else { letter };
            text.chars().take(MAX_NAME_CHARS).map(is_plain).collect()
        };
        Row {
            number,
            directory: text(&judgement.directory),
            program: text(judgement.program.as_bytes()),
            target: judgement.target.as_deref().map(text),
            place: None,
            reason: text(judgement.reason.to_string().as_bytes()),
            expected_us: judgement.estimate.map(|found| found.wall_us),
            called_us: to_us(now),
            started_us: None,
            ended_us: None,
            cpu_us: None,
            rss_kib: None,
            attempts: 0,
            failures: Vec::new(),
            fell_back: None,
            shares_tmp: judgement.shares_tmp.as_deref().map(text),
            in_head_slot: false,
            status: String::new(),
            counts: true,
        }
    }

    pub(crate) fn begin(&mut self, now: Duration, place: Place) {
        self.started_us = Some(to_us(now));
        self.place = Some(place);
    }

    pub(crate) fn end(&mut self, now: Duration, status: &str) {
        self.ended_us = Some(to_us(now));
        status.clone_into(&mut self.status);
    }

    /// How long it ran, at last.
    pub fn wall_us(&self) -> u64 {
        match (self.started_us, self.ended_us) {
            (Some(started), Some(ended)) => ended.saturating_sub(started),
            _ => 0,
        }
    }

    /// How long it waited before.
    pub fn queued_us(&self) -> u64 {
        let end = self.started_us.or(self.ended_us);
        end.map_or(0, |end| end.saturating_sub(self.called_us))
    }
}

impl Record {
    pub(crate) fn new(jobs: Option<u32>) -> Record {
        Record {
            jobs,
            ..Record::default()
        }
    }

    pub(crate) fn add(&mut self, row: Row) {
        if self.rows.len() < MAX_ROWS {
            self.rows.push(row);
            return;
        }
        self.omitted += 1;
        if row.counts {
            self.omitted_us = self.omitted_us.saturating_add(row.wall_us());
        }
    }

    pub(crate) fn fell_back(&mut self, reason: &str) {
        self.fallback_count += 1;
        let reason: String = reason.chars().take(MAX_NAME_CHARS).collect();
        let is_room = self.fallbacks.len() < MAX_FALLBACK_REASONS;
        let reason = if is_room || self.fallbacks.contains_key(&reason) {
            reason
        } else {
            "other reasons".to_owned()
        };
        *self.fallbacks.entry(reason).or_default() += 1;
    }

    pub(crate) fn finish(&mut self, now: Duration) {
        self.wall_us = to_us(now);
    }

    pub(crate) fn line_count(&self) -> u64 {
        self.rows.len() as u64 + self.omitted
    }

    /// How many lines were meant for nodes and ran here.
    pub fn fallen_back_count(&self) -> u64 {
        self.fallback_count
    }

    pub(crate) fn take_ended(&mut self) -> Vec<String> {
        let new = self.rows.get(self.told..).unwrap_or_default();
        let rows = new.iter().map(text::one_row).collect();
        self.told = self.rows.len();
        rows
    }

    /// All lines in the order in which they ended; at most [`MAX_ROWS`].
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Where each line ran, why, and how long: one row a line in the order of calls, or gathered
    /// by reasons where that would be long.
    pub fn plan(&self) -> String {
        text::plan(self)
    }

    /// Where the time went, and what bounds it, as text.
    pub fn report(&self) -> String {
        text::report(&self.figures())
    }

    /// The same as figures.
    pub fn figures(&self) -> Report {
        report::of(self)
    }

    /// One sentence, if lines that were meant for nodes had to run here.
    pub fn fallen_back(&self) -> Option<String> {
        text::fallen_back(self)
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = serializer.serialize_struct("Record", 3)?;
        record.serialize_field("lines", &self.rows)?;
        record.serialize_field("omitted_lines", &self.omitted)?;
        record.serialize_field("report", &self.figures())?;
        record.end()
    }
}

pub(crate) fn to_us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
