//! Problems are told once a minute, not once a packet.

use std::collections::BTreeMap;

use wiglaf_wire::boot::Mac;

/// How often the same problem is told.
const AGAIN_MS: u64 = 60_000;

/// What a problem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Twins,
    Declined,
    Elsewhere,
    AddressTaken,
    NoLoader,
    OtherServer,
    PoolDry,
}

/// What was told when. Only adopted machines have entries of their own, so that it is bounded.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<(Topic, usize, Option<Mac>), u64>);

impl Told {
    /// Whether to tell it now.
    pub(super) fn is_due(
        &mut self,
        now_ms: u64,
        topic: Topic,
        interface: usize,
        machine: Option<Mac>,
    ) -> bool {
        let key = (topic, interface, machine);
        let is_due = self
            .0
            .get(&key)
            .is_none_or(|told_ms| now_ms.abs_diff(*told_ms) >= AGAIN_MS);
        if is_due {
            self.0.insert(key, now_ms);
        }
        is_due
    }

    /// Forgets machines that are adopted no more.
    pub(super) fn retain(&mut self, is_adopted: impl Fn(Mac) -> bool) {
        self.0
            .retain(|(_, _, machine), _| machine.is_none_or(&is_adopted));
    }

    /// Interfaces have changed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
