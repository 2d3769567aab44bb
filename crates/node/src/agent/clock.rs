//! The clock of a machine that booted from the network follows the head's: it has none that
//! survives, and files have the head's times.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_settime};
use wiglaf_linux::clock::slew_clock;

/// An answer that took longer tells too little of when it was sent.
const LONGEST_TRIP: Duration = Duration::from_millis(200);
/// Nobody minds less than that.
const TOLERANCE: Duration = Duration::from_millis(2);
/// More than that is set at once: made up slowly it would take a quarter of an hour.
const LARGEST_SLEW: Duration = Duration::from_millis(500);

/// What is known of the head's clock.
#[derive(Debug, Default)]
pub(super) struct HeadClock {
    /// The last renewal, and when it was sent.
    asked: Option<(u64, Instant)>,
    /// How long the answer took that came last.
    trip: Option<Duration>,
}

/// What is to be done about a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Correction {
    Nothing,
    /// Make up so much while it goes on; negative: it is fast.
    Slew {
        microseconds: i32,
    },
    /// Set it by so much.
    Step {
        nanoseconds: i128,
    },
}

impl HeadClock {
    /// A renewal is sent, which will tell how far away the head is.
    pub(super) fn asked(&mut self, sequence: u64, now: Instant) {
        self.asked = Some((sequence, now));
    }

    /// It is answered.
    pub(super) fn answered(&mut self, sequence: u64, now: Instant) {
        self.trip = self
            .asked
            .filter(|(asked, _)| *asked == sequence)
            .map(|(_, at)| now.saturating_duration_since(at));
    }

    /// The head's time came, right after that answer.
    pub(super) fn heard(&mut self, unix_ns: u64) -> Result<(), Errno> {
        match self.trip.take() {
            Some(trip) => follow(unix_ns, trip),
            None => Ok(()),
        }
    }
}

/// Corrects this machine's clock by the head's time, which came by a trip to there and back.
fn follow(unix_ns: u64, trip: Duration) -> Result<(), Errno> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    match correction(now.as_nanos(), unix_ns, trip) {
        Correction::Nothing => Ok(()),
        Correction::Slew { microseconds } => slew_clock(microseconds),
        Correction::Step { nanoseconds } => step_clock(nanoseconds),
    }
}

fn correction(own_ns: u128, head_ns: u64, trip: Duration) -> Correction {
    if trip > LONGEST_TRIP {
        return Correction::Nothing;
    }
    let head_now = i128::from(head_ns) + nanoseconds(trip / 2);
    let offset = head_now - i128::try_from(own_ns).unwrap_or(i128::MAX);
    let size = offset.unsigned_abs();
    if size <= TOLERANCE.max(trip / 2).as_nanos() {
        return Correction::Nothing;
    }
    match i32::try_from(offset / 1000) {
        Ok(microseconds) if size < LARGEST_SLEW.as_nanos() => Correction::Slew { microseconds },
        _ => Correction::Step {
            nanoseconds: offset,
        },
    }
}

fn nanoseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

/// Sets the clock by so much.
pub(crate) fn step_clock(offset_ns: i128) -> Result<(), Errno> {
    const NANOSECONDS: i128 = 1_000_000_000;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let then = nanoseconds(now) + offset_ns;
    let whole = |value: i128| i64::try_from(value).map_err(|_| Errno::INVAL);
    let then = Timespec {
        tv_sec: whole(then.div_euclid(NANOSECONDS))?,
        tv_nsec: whole(then.rem_euclid(NANOSECONDS))?,
    };
    clock_settime(ClockId::Realtime, then)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000_000_000;

    fn corrected(ahead_ms: i64, trip_ms: u64) -> Correction {
        let head = NOW.wrapping_add_signed(ahead_ms * 1_000_000);
        correction(NOW.into(), head, Duration::from_millis(trip_ms))
    }

    #[test]
    fn a_clock_is_slewed_when_near_and_set_when_far() {
        assert_eq!(corrected(1, 0), Correction::Nothing);
        let slew = |microseconds| Correction::Slew { microseconds };
        assert_eq!(corrected(40, 0), slew(40_000));
        assert_eq!(corrected(-40, 0), slew(-40_000));
        // Half of the trip is the way here.
        assert_eq!(corrected(40, 20), slew(50_000));
        let nanoseconds = -3_600_000_000_000;
        assert_eq!(corrected(-3_600_000, 0), Correction::Step { nanoseconds });
    }

    #[test]
    fn what_a_slow_answer_can_not_tell_is_not_believed() {
        assert_eq!(corrected(3_600_000, 500), Correction::Nothing);
        assert_eq!(
            corrected(5, 100),
            Correction::Slew {
                microseconds: 55_000
            }
        );
        assert_eq!(corrected(-50, 100), Correction::Nothing);
    }

    #[test]
    fn only_the_answer_to_the_last_question_counts() {
        let mut clock = HeadClock::default();
        let start = Instant::now();
        clock.asked(1, start);
        clock.asked(2, start);
        clock.answered(1, start);
        assert_eq!(clock.trip, None);
        clock.answered(2, start + Duration::from_millis(7));
        assert_eq!(clock.trip, Some(Duration::from_millis(7)));
    }
}
