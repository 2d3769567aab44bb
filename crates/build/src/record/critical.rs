//! The chain of lines that no number of nodes could have made shorter.
//!
//! make tells nobody which line waits for which, so that the chain is read from the clock. It is
//! walked back from the line that ended last. A line's *predecessor* is the one that ended last
//! of those that ended at most [`NEAR_US`] before it was called: make called it because that one
//! had ended. This is so only if a slot was free before: if as many lines were open as there are
//! slots (make's `-j`; where that is not known, the most that ever were open at once), make may
//! have waited for a slot and not for that line, and the chain is followed no further. Nor is it
//! where nothing had ended.
//!
//! The *length* is the sum of the times that the chain's lines ran, without waiting for slots.
//! However many nodes there are, the build takes that long; if the chain could not be followed to
//! the start, perhaps longer.

use serde::Serialize;

use super::Row;

/// A line that begins so soon after another has ended was waiting for it, or for its slot.
const NEAR_US: u64 = 50_000;
/// Lines of a chain that are told.
const MAX_STEPS: usize = 1_000;

/// The chain, its first line first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Its lines.
    pub steps: Vec<Step>,
    /// How many there are; [`Chain::steps`] has the last thousand.
    pub step_count: u64,
    /// The time that they ran.
    pub length_us: u64,
    /// When the first of them was called.
    pub from_us: u64,
    /// Before, all slots were taken: there may be more of it.
    pub is_cut: bool,
}

/// A line of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The line's number.
    pub number: u64,
    /// How long it ran.
    pub took_us: u64,
}

pub(super) fn chain(rows: &[Row], jobs: Option<u32>) -> Chain {
    let mut lines: Vec<&Row> = rows
        .iter()
        .filter(|row| row.counts && row.started_us.is_some() && row.ended_us.is_some())
        .collect();
    let end = |row: &Row| row.ended_us.unwrap_or_default();
    lines.sort_by_key(|row| (end(row), row.called_us, row.number));
    let ends: Vec<u64> = lines.iter().map(|row| end(row)).collect();
    let mut calls: Vec<u64> = lines.iter().map(|row| row.called_us).collect();
    calls.sort_unstable();
    let slots = jobs.map_or_else(|| most_open(&calls, &ends), |jobs| jobs as usize);
    // Open when a line ended, that line among them.
    let open_at = |time: u64| {
        let called = calls.partition_point(|call| *call < time);
        called.saturating_sub(ends.partition_point(|end| *end < time))
    };
    let mut chain = Chain::default();
    let mut next = lines.len().checked_sub(1);
    while let Some(at) = next {
        let line = lines[at];
        chain.steps.push(Step {
            number: line.number,
            took_us: line.wall_us(),
        });
        chain.length_us += line.wall_us();
        chain.from_us = line.called_us;
        // Lines before `at` only, so that the walk ends.
        let before = ends[..at].partition_point(|end| *end <= line.called_us);
        next = before
            .checked_sub(1)
            .filter(|before| line.called_us - ends[*before] <= NEAR_US);
        if let Some(before) = next
            && open_at(ends[before]) >= slots
            && slots > 1
        {
            chain.is_cut = true;
            next = None;
        }
    }
    chain.step_count = chain.steps.len() as u64;
    chain.steps.truncate(MAX_STEPS);
    chain.steps.reverse();
    chain
}

/// The most lines that were open at once; both sorted.
fn most_open(calls: &[u64], ends: &[u64]) -> usize {
    let mut ended = 0;
    let mut most = 0;
    for (called, time) in calls.iter().enumerate() {
        while ends.get(ended).is_some_and(|end| end <= time) {
            ended += 1;
        }
        // Lines without a duration end as they are called.
        most = most.max((called + 1).saturating_sub(ended));
    }
    most
}
