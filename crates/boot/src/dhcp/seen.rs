//! What is worth telling the head of machines that ask, bounded however often they do.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use wiglaf_wire::boot::{Mac, Stage};

/// A machine that gets no further is told of at most this often.
const AGAIN_MS: u64 = 10_000;
/// Machines that nobody knows are remembered up to so many; then those seen longest ago go.
pub(super) const MAX_STRANGERS: usize = 4_096;
/// Sightings of machines that nobody knows: at once, and per second thereafter. A flood of
/// made-up addresses must not become one of messages to the head.
const STRANGERS_AT_ONCE: u64 = 64;
const STRANGERS_PER_S: u64 = 32;

/// How far a machine has come, as the head was told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Track {
    /// When, what runs there by its rank, and its stage.
    told: Option<(u64, (u8, Stage))>,
}

impl Track {
    /// Whether to tell it, and remembers that it was told.
    pub(super) fn is_news(&mut self, now_ms: u64, progress: (u8, Stage)) -> bool {
        let is_news = self
            .told
            .is_none_or(|(told_ms, last)| progress > last || now_ms.abs_diff(told_ms) >= AGAIN_MS);
        if is_news {
            self.told = Some((now_ms, progress));
        }
        is_news
    }
}

/// One of the machines that nobody knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stranger {
    pub(super) track: Track,
    /// The address that it was last offered.
    pub(super) had: Option<Ipv4Addr>,
    last_use: u64,
}

/// Those seen lately.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    by_mac: BTreeMap<Mac, Stranger>,
    by_use: BTreeMap<u64, Mac>,
    uses: u64,
    /// Thousandths of sightings that may be told, and when they were counted.
    allowance: Option<(u64, u64)>,
}

impl Strangers {
    /// A machine's entry, now the last used.
    pub(super) fn entry(&mut self, mac: Mac) -> &mut Stranger {
        self.uses += 1;
        if let Some(known) = self.by_mac.get(&mac) {
            self.by_use.remove(&known.last_use);
        } else if self.by_mac.len() >= MAX_STRANGERS
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.by_mac.remove(&oldest);
        }
        self.by_use.insert(self.uses, mac);
        let stranger = self.by_mac.entry(mac).or_default();
        stranger.last_use = self.uses;
        stranger
    }

    /// Whether one more sighting may be told now.
    pub(super) fn may_tell(&mut self, now_ms: u64) -> bool {
        const COST: u64 = 1_000;
        const FULL: u64 = STRANGERS_AT_ONCE * COST;
        let (left, counted_ms) = self.allowance.unwrap_or((FULL, now_ms));
        let gained = now_ms
            .saturating_sub(counted_ms)
            .saturating_mul(STRANGERS_PER_S);
        let left = left.saturating_add(gained).min(FULL);
        let may = left >= COST;
        self.allowance = Some((if may { left - COST } else { left }, now_ms));
        may
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_mac.len().max(self.by_use.len())
    }
}
