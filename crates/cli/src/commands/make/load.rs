//! How busy the head's daemons are with serving the nodes.

use std::time::{Duration, Instant};

use wiglaf_build::Event;

/// How often it is looked at, while lines may run here.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) struct HeadLoad {
    daemons: Vec<i32>,
    measured: Instant,
    ticks: u64,
    ticks_per_second: u64,
}

impl HeadLoad {
    /// Of these processes; of none, nothing is measured.
    pub(super) fn new(daemons: Vec<i32>) -> HeadLoad {
        HeadLoad {
            ticks: ticks(&daemons),
            daemons,
            measured: Instant::now(),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
        }
    }

    pub(super) fn due_in(&self) -> Option<Duration> {
        (!self.daemons.is_empty()).then(|| PERIOD.saturating_sub(self.measured.elapsed()))
    }

    /// The event, when it is time.
    pub(super) fn measure(&mut self) -> Option<Event> {
        let due = self.due_in()?;
        if !due.is_zero() {
            return None;
        }
        let ticks = ticks(&self.daemons);
        let elapsed = u64::try_from(self.measured.elapsed().as_millis()).unwrap_or(u64::MAX);
        // A daemon that was replaced has used less than the one before.
        let used = ticks.saturating_sub(self.ticks);
        self.ticks = ticks;
        self.measured = Instant::now();
        let millicores = used.saturating_mul(1_000_000) / self.ticks_per_second / elapsed.max(1);
        Some(Event::HeadLoad {
            busy_millicores: u32::try_from(millicores).unwrap_or(u32::MAX),
        })
    }
}

/// User and system time of all (`proc_pid_stat(5)`, fields 14 and 15).
fn ticks(daemons: &[i32]) -> u64 {
    let all = daemons.iter().filter_map(|pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = text.rsplit_once(')')?;
        let times = fields.split_ascii_whitespace().skip(11).take(2);
        Some(
            times
                .filter_map(|time| time.parse::<u64>().ok())
                .sum::<u64>(),
        )
    });
    all.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_time_is_seen() {
        let own = std::process::id().cast_signed();
        let mut load = HeadLoad::new(vec![own]);
        let began = Instant::now();
        while began.elapsed() < PERIOD + Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let Some(Event::HeadLoad { busy_millicores }) = load.measure() else {
            panic!("it is time");
        };
        assert!(busy_millicores > 0);
        assert!(HeadLoad::new(Vec::new()).due_in().is_none());
    }
}
