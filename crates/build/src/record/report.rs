//! Where the time went.

use std::collections::HashMap;

use serde::Serialize;

use super::critical::{Chain, chain};
use super::{Place, Record, Row};

/// Targets and nodes that are told.
const MAX_TARGETS: usize = 1_000;
/// Directories are gathered at the first depth that tells so many apart.
const ENOUGH_DIRECTORIES: usize = 3;
/// Deeper than this they are not told apart.
const MAX_DIRECTORY_DEPTH: usize = 4;

/// The figures of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// From start to end.
    pub wall_us: u64,
    /// The times of all lines, each as it was beside the others: alone it would be shorter where
    /// they share processors.
    pub sum_us: u64,
    /// Of this, of lines on nodes.
    pub on_nodes_us: u64,
    /// Processor time of the lines on nodes.
    pub cpu_us: u64,
    /// How many lines ran at once on average, in thousandths.
    pub parallel_milli: u64,
    /// All lines.
    pub lines: u64,
    /// Lines that ran on the head.
    pub here: u64,
    /// Of those, the ones that were meant for nodes and had to.
    pub fallen_back: u64,
    /// Lines that were launched more than once.
    pub tried_again: u64,
    /// By node.
    pub nodes: Vec<Share>,
    /// By directory of what the lines make, or where they ran if that could not be seen.
    pub directories: Vec<Share>,
    /// By target; the longest thousand.
    pub targets: Vec<Share>,
    /// What bounds the time.
    pub chain: Chain,
    /// The chain's lines in words.
    pub chain_names: Vec<String>,
}

/// What one name has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The directory, the target or the node.
    pub name: String,
    /// The time of its lines.
    pub time_us: u64,
    /// How many there are.
    pub lines: u64,
}

pub(super) fn of(record: &Record) -> Report {
    let rows = &record.rows;
    let mut report = Report {
        wall_us: record.wall_us,
        sum_us: record.omitted_us,
        lines: rows.len() as u64 + record.omitted,
        fallen_back: record.fallback_count,
        chain: chain(rows, record.jobs),
        ..Report::default()
    };
    let mut nodes = Shares::default();
    let mut targets = Shares::default();
    for row in rows {
        report.tried_again += u64::from(row.attempts > 1);
        report.here += u64::from(row.place == Some(Place::Here));
        let time_us = if row.counts { row.wall_us() } else { 0 };
        report.sum_us = report.sum_us.saturating_add(time_us);
        if let Some(Place::Node(name)) = &row.place {
            nodes.add(name, time_us);
            report.on_nodes_us = report.on_nodes_us.saturating_add(time_us);
            report.cpu_us = report.cpu_us.saturating_add(row.cpu_us.unwrap_or_default());
        }
        if row.counts && row.target.is_some() {
            targets.add(&made(row), time_us);
        }
    }
    report.parallel_milli = report.sum_us.saturating_mul(1000) / report.wall_us.max(1);
    report.nodes = nodes.sorted();
    report.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    report.targets = targets.sorted();
    report.targets.truncate(MAX_TARGETS);
    report.directories = directories(rows);
    let by_number: HashMap<u64, &Row> = rows.iter().map(|row| (row.number, row)).collect();
    let names = report
        .chain
        .steps
        .iter()
        .filter_map(|step| by_number.get(&step.number));
    report.chain_names = names.map(|row| described(row)).collect();
    report
}

/// A line in a few words.
pub(super) fn described(row: &Row) -> String {
    match &row.target {
        Some(_) => format!("{} {}", row.program, made(row)),
        None => format!("{} in {}", row.program, row.directory),
    }
}

/// The target relative to the tree.
pub(super) fn made(row: &Row) -> String {
    let target = row.target.as_deref().unwrap_or_default();
    if target.starts_with('/') || row.directory == "." {
        return tidied(target);
    }
    tidied(&format!("{}/{target}", row.directory))
}

/// Without `.` and with `..` taken away where it can be.
fn tidied(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." if parts
                .last()
                .is_some_and(|last| !last.is_empty() && *last != "..") =>
            {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn directories(rows: &[Row]) -> Vec<Share> {
    let mut shares = Vec::new();
    for depth in 1..=MAX_DIRECTORY_DEPTH {
        let mut found = Shares::default();
        for row in rows.iter().filter(|row| row.counts) {
            found.add(&directory(row, depth), row.wall_us());
        }
        shares = found.sorted();
        if shares.len() >= ENOUGH_DIRECTORIES {
            break;
        }
    }
    shares
}

/// The directory of what a line makes, its first parts.
fn directory(row: &Row, depth: usize) -> String {
    let path = match &row.target {
        Some(_) => made(row)
            .rsplit_once('/')
            .map_or(String::new(), |(before, _)| before.to_owned()),
        None => row.directory.clone(),
    };
    let is_absolute = path.starts_with('/');
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    let parts: Vec<&str> = parts.take(depth).collect();
    match (parts.is_empty(), is_absolute) {
        (true, _) => ".".to_owned(),
        (false, true) => format!("/{}", parts.join("/")),
        (false, false) => parts.join("/"),
    }
}

#[derive(Default)]
struct Shares(HashMap<String, (u64, u64)>);

impl Shares {
    fn add(&mut self, name: &str, time_us: u64) {
        let share = match self.0.get_mut(name) {
            Some(share) => share,
            None => self.0.entry(name.to_owned()).or_default(),
        };
        share.0 = share.0.saturating_add(time_us);
        share.1 += 1;
    }

    /// The longest first.
    fn sorted(self) -> Vec<Share> {
        let share = |(name, (time_us, lines))| Share {
            name,
            time_us,
            lines,
        };
        let mut shares: Vec<Share> = self.0.into_iter().map(share).collect();
        shares.sort_by(|a, b| b.time_us.cmp(&a.time_us).then_with(|| a.name.cmp(&b.name)));
        shares
    }
}
