//! Reports of one ghost that wait for a head: what the kernel would remember of pending signals,
//! and no more, so that a flood of signals can't bloat the keeper (S1).

use super::ghost::{Report, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};

/// In their order, each at most once: at most two for each of 64 signals, and one stop or
/// continue.
#[derive(Debug, Default)]
pub(super) struct HeldReports(Vec<Report>);

impl HeldReports {
    /// Keeps `report`. As in the kernel, a stop and a continue cancel each other.
    pub(super) fn hold(&mut self, report: Report) {
        match report {
            // The inventory tells these, by what it lists.
            Report::Seized | Report::Died(_) | Report::Gone => return,
            Report::Continued => self
                .0
                .retain(|held| !stops(*held) && *held != Report::Continued),
            _ if stops(report) => self.0.retain(|held| *held != Report::Continued),
            _ => {}
        }
        if let Report::Stopped(_) = report {
            self.0.retain(|held| !matches!(held, Report::Stopped(_)));
        }
        if !self.0.contains(&report) {
            self.0.push(report);
        }
    }

    /// Gives all of them, and is empty then.
    pub(super) fn release(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.0)
    }
}

fn stops(report: Report) -> bool {
    match report {
        Report::Stopped(_) => true,
        Report::Signal { signal, .. } => {
            debug_assert_ne!(signal, SIGCONT, "it is told as Continued");
            matches!(signal, SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn signal(signal: u8) -> Report {
        Report::Signal {
            signal,
            from_kernel: false,
        }
    }

    fn held(reports: &[Report]) -> Vec<Report> {
        let mut all = HeldReports::default();
        reports.iter().for_each(|report| all.hold(*report));
        all.release()
    }

    #[test]
    fn the_same_signal_is_held_once() {
        assert_eq!(
            held(&[signal(15), signal(2), signal(15)]),
            [signal(15), signal(2)]
        );
    }

    #[test]
    fn a_continue_cancels_the_stop_before_it() {
        let stop = [
            signal(SIGSTOP),
            Report::Stopped(SIGSTOP),
            signal(1),
            Report::Continued,
        ];
        assert_eq!(held(&stop), [signal(1), Report::Continued]);
    }

    #[test]
    fn a_stop_cancels_the_continue_before_it() {
        assert_eq!(
            held(&[Report::Continued, signal(SIGTSTP)]),
            [signal(SIGTSTP)]
        );
        assert_eq!(
            held(&[Report::Stopped(SIGTSTP), Report::Stopped(SIGSTOP)]),
            [Report::Stopped(SIGSTOP)]
        );
    }

    #[test]
    fn a_flood_stays_small() {
        let mut all = HeldReports::default();
        for round in 0..10_000_u32 {
            let number = u8::try_from(round % 64).unwrap() + 1;
            if number != SIGCONT {
                all.hold(Report::Signal {
                    signal: number,
                    from_kernel: round % 3 == 0,
                });
            }
            all.hold(if round % 2 == 0 {
                Report::Stopped(19)
            } else {
                Report::Continued
            });
        }
        assert!(all.release().len() <= 2 * 64 + 1);
    }
}
