//! Which machines are adopted by themselves: those of the rules, and all while a window is open.

use wiglaf_wire::boot::{Mac, Stage};

use super::{Machines, NamePattern, Now, Seen};

/// A machine that was not seen for so long is not waited for by those that came after it. It asks
/// every few seconds.
const WAITING_MS: u64 = 60_000;

/// Longest that a window is open.
const MAX_WINDOW_MS: u64 = 24 * 3_600_000;

/// While it is open, every machine that comes is adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Until then.
    pub until: Now,
    /// What they are called; `None`: the next free names.
    pub names: Option<NamePattern>,
    /// One at a time: the next when the one before is up.
    pub is_ordered: bool,
    /// The one that was adopted last, until it is up.
    pub last: Option<Mac>,
}

impl Now {
    fn after(self, window_ms: u64) -> Now {
        let window_ms = window_ms.min(MAX_WINDOW_MS);
        Now {
            ms: self.ms + window_ms,
            wall_s: self.wall_s + i64::try_from(window_ms / 1_000).unwrap_or(0),
        }
    }
}

impl Machines {
    /// Adopts every machine that comes within so many milliseconds.
    pub fn adopt_all(
        &mut self,
        now: Now,
        window_ms: u64,
        names: Option<NamePattern>,
        is_ordered: bool,
    ) {
        self.window = Some(Window {
            until: now.after(window_ms),
            names,
            is_ordered,
            last: None,
        });
    }

    /// Goes on with a window that an earlier head has opened. That one's other clock may have been
    /// of an earlier start of its machine.
    pub fn reopen(&mut self, now: Now, window: Window) {
        let left_s = window.until.wall_s.saturating_sub(now.wall_s);
        let left_ms = u64::try_from(left_s).unwrap_or(0).saturating_mul(1_000);
        let until = now.after(left_ms);
        self.window = (left_ms > 0).then_some(Window { until, ..window });
    }

    /// Ends that.
    pub fn adopt_no_more(&mut self) {
        self.window = None;
    }

    /// The window as it was opened last, for the store.
    pub fn last_window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// The window, if it is open.
    pub fn window(&self, now: Now) -> Option<&Window> {
        self.window
            .as_ref()
            .filter(|window| now.ms < window.until.ms)
    }

    /// The machine that the others wait for.
    pub fn waited_for(&self, now: Now) -> Option<&str> {
        let window = self.window(now).filter(|window| window.is_ordered)?;
        // One that was forgotten meanwhile nobody waits for.
        let machine = self.known.get(&window.last?)?;
        Some(&machine.name)
    }

    /// Whether a machine that nobody knows and that was just seen becomes a node.
    pub(super) fn may_adopt(&self, now: Now, mac: Mac) -> Seen {
        // What only asks for an address may be a switch or a telephone.
        let is_starting = |stage| stage >= Stage::Addressed;
        if !self
            .lives
            .get(&mac)
            .is_some_and(|life| is_starting(life.stage))
        {
            return Seen::Noted;
        }
        if let Some(rule) = self.rules.iter().find(|rule| rule.mac.matches(mac)) {
            return Seen::Adopt {
                name: rule.name.clone(),
                image: rule.image.clone(),
            };
        }
        let Some(window) = self.window(now) else {
            return Seen::Noted;
        };
        if window.is_ordered && (self.waited_for(now).is_some() || self.has_earlier(now, mac)) {
            return Seen::Noted;
        }
        Seen::Adopt {
            name: window.names.clone(),
            image: None,
        }
    }

    /// Whether another machine that nobody knows came before this one and still waits.
    fn has_earlier(&self, now: Now, mac: Mac) -> bool {
        let Some(own) = self.lives.get(&mac) else {
            return false;
        };
        self.lives.iter().any(|(other, life)| {
            !self.known.contains_key(other)
                && life.stage >= Stage::Addressed
                && now.ms.saturating_sub(life.seen_ms) < WAITING_MS
                && (life.first_ms, *other) < (own.first_ms, mac)
        })
    }
}
