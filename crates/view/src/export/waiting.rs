//! Locks that have to wait. The kernel wakes nobody who does not block in it, so they are tried
//! again: at once when a lock is given up here, and now and then for the head's own processes.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use wiglaf_wire::view::Answer;

use super::locks::Wanted;
use super::{Export, LinkId, Told};

/// When a lock is tried again for the first time.
const FIRST_DELAY: Duration = Duration::from_millis(1);
/// The delay doubles up to this.
const LAST_DELAY: Duration = Duration::from_millis(50);
/// Most locks that wait.
const MAX_WAITING: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// In the order of their questions.
    locks: Vec<One>,
}

#[derive(Debug)]
struct One {
    link: LinkId,
    id: u64,
    wanted: Wanted,
    interrupted: bool,
    delay: Duration,
    next: Instant,
}

impl Waiting {
    pub(super) fn add(&mut self, link: LinkId, id: u64, wanted: Wanted) -> Result<(), Errno> {
        if self.locks.len() >= MAX_WAITING {
            return Err(Errno::NOLCK);
        }
        self.locks.push(One {
            link,
            id,
            wanted,
            interrupted: false,
            delay: FIRST_DELAY,
            next: Instant::now() + FIRST_DELAY,
        });
        Ok(())
    }

    /// The question is answered with an error when it is tried next.
    pub(super) fn interrupt(&mut self, link: LinkId, id: u64) {
        for one in &mut self.locks {
            if one.link == link && one.id == id {
                one.interrupted = true;
            }
        }
    }

    pub(super) fn close(&mut self, link: LinkId) {
        self.locks.retain(|one| one.link != link);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.locks.iter().map(|one| one.next).min()
    }

    /// All are to be tried at the next tick.
    pub(super) fn hurry(&mut self) {
        let now = Instant::now();
        for one in &mut self.locks {
            one.next = now;
            one.delay = FIRST_DELAY;
        }
    }
}

impl Export {
    /// Tries those locks whose time has come, or all of them.
    pub(super) fn try_waiting(&mut self, now: Option<Instant>, out: &mut Vec<(LinkId, Told)>) {
        let mut left = Vec::new();
        for mut one in std::mem::take(&mut self.waiting.locks) {
            let due = now.is_none_or(|now| one.next <= now);
            let result = match (one.interrupted, due) {
                (true, _) => Err(Errno::INTR),
                (false, true) => self.try_lock(one.link, &one.wanted),
                (false, false) => Err(Errno::AGAIN),
            };
            if result == Err(Errno::AGAIN) {
                if due {
                    one.delay = (one.delay * 2).min(LAST_DELAY);
                    one.next = now.unwrap_or_else(Instant::now) + one.delay;
                }
                left.push(one);
                continue;
            }
            let result = result.and_then(|()| self.locked(one.link, &one.wanted));
            self.tell_news(out);
            let answer = Answer {
                id: one.id,
                result: result.map_err(Errno::raw_os_error),
            };
            out.push((one.link, Told::Answer(answer)));
        }
        self.waiting.locks = left;
        if std::mem::take(&mut self.released) && !self.waiting.locks.is_empty() {
            self.waiting.hurry();
        }
    }
}
