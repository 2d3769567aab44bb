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
        let last = self.0.entry((topic, interface, machine));
        match last {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(now_ms);
                true
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let is_due = now_ms.abs_diff(*entry.get()) >= AGAIN_MS;
                if is_due {
                    entry.insert(now_ms);
                }
                is_due
            }
        }
    }

    /// Interfaces and machines have changed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
