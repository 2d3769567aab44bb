//! Who is next, and where.

use std::time::Duration;

use super::state::{Attempt, Room};
use super::{Broker, EVEN_PACE, Effect, NODES_RETURN_WAIT, Node};
use crate::ShimId;
use crate::policy::Wish;
use crate::record::to_us;

/// Expected of a line of which nothing is known.
const UNKNOWN_US: u64 = 500_000;
/// What a launch on a node takes more than a start here.
const LAUNCH_US: u64 = 20_000;

impl Broker {
    /// Begins what can begin.
    pub(super) fn schedule(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.run_returned(now, effects);
        self.run_short(now, effects);
        while let Some((rank, shim)) = self.queue.first().copied() {
            if let Some(why) = self.why_no_node(now, shim) {
                self.queue.remove(&(rank, shim));
                self.give_back(shim, &why);
                continue;
            }
            // They may return.
            let has_nodes = !self.nodes.is_empty();
            if self.has_free_slot() && (!has_nodes || self.is_sooner_here(now, shim)) {
                self.queue.remove(&(rank, shim));
                self.run_here(now, shim, Room::Slot, effects);
                continue;
            }
            if !has_nodes || self.unplaced.is_some() {
                break;
            }
            self.queue.remove(&(rank, shim));
            self.launch(now, shim, effects);
        }
        self.run_returned(now, effects);
        self.hold(effects);
    }

    fn has_room(&self) -> bool {
        self.room_taken + self.slots_taken < self.settings.head_cores.max(1)
    }

    fn has_free_slot(&self) -> bool {
        let busy = self.busy_millicores.div_ceil(1000);
        let slots = self.settings.head_slots(&self.nodes);
        self.slots_taken < slots.saturating_sub(busy)
    }

    fn run_returned(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while self.has_room()
            && let Some(shim) = self.returned.pop_front()
        {
            self.run_here(now, shim, Room::Processor, effects);
        }
    }

    fn run_short(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if !self.has_room() {
            return;
        }
        let is_short = |shim: &ShimId| {
            let line = self.lines.get(shim);
            line.is_some_and(|line| line.judgement.wish == Wish::HereIfRoom)
        };
        let short: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, shim)| is_short(shim))
            .copied()
            .collect();
        for entry in short {
            if !self.has_room() {
                return;
            }
            self.queue.remove(&entry);
            self.run_here(now, entry.1, Room::Processor, effects);
        }
    }

    /// Why no node will take this line; `None` while one may.
    fn why_no_node(&self, now: Duration, shim: ShimId) -> Option<String> {
        if self.nodes.is_empty() {
            let is_over = self
                .nodes_gone
                .is_none_or(|gone| now >= gone + NODES_RETURN_WAIT);
            return is_over.then(|| "no node is up".to_owned());
        }
        if self.refused_until.is_some_and(|until| now < until) {
            return Some("the head has refused the lines before".to_owned());
        }
        let line = self.lines.get(&shim)?;
        let is_left = |node: &Node| !line.failed_on.contains(&node.name);
        if self.nodes.iter().any(is_left) {
            return None;
        }
        let last = line.row.failures.last();
        Some(
            last.map_or("no other node is up", String::as_str)
                .to_owned(),
        )
    }

    /// Whether a line would end here before it ended on a node.
    fn is_sooner_here(&self, now: Duration, shim: ShimId) -> bool {
        let estimate = self
            .lines
            .get(&shim)
            .and_then(|line| line.judgement.estimate);
        let expected = estimate.map_or(UNKNOWN_US, |found| found.wall_us);
        let on_nodes = |name: &str| {
            let is_there = |attempt: &&Attempt| attempt.node.as_deref() == Some(name);
            self.attempts.values().filter(is_there).count()
        };
        let pace = |name: &str| self.paces.get(name).copied().unwrap_or(EVEN_PACE);
        let ends = self.nodes.iter().filter_map(|node| {
            let is_free = on_nodes(&node.name) < node.slots as usize && !self.is_full;
            let wait_us = if is_free {
                0
            } else {
                self.first_end_us(now, &node.name)?
            };
            let run_us = scaled(expected, pace(&node.name));
            Some(wait_us.saturating_add(LAUNCH_US).saturating_add(run_us))
        });
        ends.min()
            .is_none_or(|there| scaled(expected, self.own_pace) <= there)
    }

    /// When the first line on a node is expected to end.
    fn first_end_us(&self, now: Duration, name: &str) -> Option<u64> {
        let there = self
            .attempts
            .values()
            .filter(|attempt| attempt.node.as_deref() == Some(name));
        let left = there.map(|attempt| {
            let gone = to_us(now.saturating_sub(attempt.began));
            attempt
                .expected_us
                .unwrap_or(UNKNOWN_US)
                .saturating_sub(gone)
        });
        left.min()
    }

    /// Tells those that have to wait, once.
    fn hold(&mut self, effects: &mut Vec<Effect>) {
        let queued = self.queue.iter().map(|(_, shim)| shim);
        for shim in queued.chain(&self.returned) {
            if let Some(line) = self.lines.get_mut(shim)
                && !line.is_held
            {
                line.is_held = true;
                effects.push(Effect::Hold { shim: *shim });
            }
        }
    }
}

fn scaled(us: u64, pace: u64) -> u64 {
    us.saturating_mul(pace) / EVEN_PACE
}
