//! The lease (P4): what extends it, and what happens when it is over.

use std::collections::VecDeque;

use wiglaf_wire::status::Status;

use super::{Core, Effect};

/// A renewal is sent this many times in a lease, so that some may be lost.
pub(super) const RENEWALS_PER_LEASE: u64 = 4;
/// Renewals whose answers are waited for; an older one is not worth remembering.
const MAX_OPEN_RENEWALS: usize = 16;

/// The right to let tasks live. It runs from when the renewal that was answered was *sent*.
#[derive(Debug, Default)]
pub(super) struct Lease {
    pub(super) length_ms: u64,
    pub(super) until: Option<u64>,
    /// Work is forbidden until a later renewal is answered.
    pub(super) over: bool,
    /// Renewals without an answer: sequence and when it was sent.
    open: VecDeque<(u64, u64)>,
    next_sequence: u64,
}

impl Lease {
    pub(super) fn renewal_ms(&self) -> u64 {
        (self.length_ms / RENEWALS_PER_LEASE).max(1)
    }

    pub(super) fn renew(&mut self, now_ms: u64) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        if self.open.len() == MAX_OPEN_RENEWALS {
            self.open.pop_front();
        }
        self.open.push_back((sequence, now_ms));
        sequence
    }

    pub(super) fn renewed(&mut self, now_ms: u64, sequence: u64) {
        let Some(at) = self.open.iter().position(|(open, _)| *open == sequence) else {
            return;
        };
        let sent = self.open[at].1;
        self.open.drain(..=at);
        self.extend(now_ms, sent);
    }

    pub(super) fn extend(&mut self, now_ms: u64, sent: u64) {
        let until = sent + self.length_ms;
        self.until = Some(self.until.map_or(until, |old| old.max(until)));
        self.over = self.until <= Some(now_ms);
    }

    /// Answers to what an earlier connection sent will not come.
    pub(super) fn forget_open(&mut self) {
        self.open.clear();
    }
}

impl Core {
    pub(super) fn check_lease(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let is_over = self.lease.until.is_some_and(|until| until <= now_ms);
        if !is_over || self.lease.over {
            return;
        }
        self.lease.over = true;
        let reason = self.lease_reason();
        effects.push(Effect::KillEverything);
        effects.push(Effect::CutLinks);
        let live: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.is_live())
            .map(|(id, _)| *id)
            .collect();
        for id in live {
            let Some(task) = self.tasks.get_mut(&id) else {
                continue;
            };
            task.killed = true;
            // An earlier verdict knows better why.
            task.verdict
                .get_or_insert(Status::cluster_failed(reason.clone()));
            task.undrainable = true;
            self.end_if_drained(id, effects);
        }
    }

    pub(super) fn lease_reason(&self) -> String {
        format!(
            "{} heard nothing from the head for {} s and ended its tasks, so that none runs twice; \
             check the network between them and run the command again",
            self.name,
            self.lease.length_ms.div_ceil(1000)
        )
    }
}
