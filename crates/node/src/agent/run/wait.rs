//! How long the loop waits, how it does, and what is due then.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use wiglaf_link::Ready;

use super::super::core::Event;
use super::super::link::HeadLink;
use super::super::watchdog::Watchdog;
use super::{Agent, AgentError, CURSOR_PERIOD, Shown, WATCHDOG, log, now_ms};

/// Waking a process costs about as much on a virtual machine.
const BUSY_WAIT: Duration = Duration::from_micros(40);
/// Turns of the loop that the end of an output may wait for another's: a process that ends closes
/// its outputs one after the other, and each message wakes the deputy.
const LATE_TURNS: u32 = 4;
/// Leftovers that were killed are looked for again at the latest after this time.
const COLLECT_PERIOD: Duration = Duration::from_millis(20);

impl Agent {
    /// Before what may be sent late is sent, whether more of its kind is there to go with it.
    pub(super) fn look_for_more(&mut self, ready: &mut Vec<Ready>) -> Result<bool, Errno> {
        if !self.relay.has_late() {
            return Ok(false);
        }
        self.late_turns += 1;
        if self.late_turns <= LATE_TURNS {
            self.poll.wait(ready, Some(Duration::ZERO))?;
            if !ready.is_empty() {
                return Ok(true);
            }
        }
        self.late_turns = 0;
        self.relay.send_late(&self.poll);
        Ok(false)
    }

    /// A program that asks one thing of the view after another is answered sooner if nobody has to
    /// be woken for it: where many requests came at once after the ones before, the next is
    /// waited for without sleeping. Returns whether something is ready.
    pub(super) fn wait_busily(&mut self, ready: &mut Vec<Ready>) -> Result<bool, Errno> {
        let Shown::Views(views) = &mut self.files else {
            return Ok(false);
        };
        if !views.is_in_demand() {
            return Ok(false);
        }
        let began = Instant::now();
        while began.elapsed() < BUSY_WAIT {
            self.poll.wait(ready, Some(Duration::ZERO))?;
            if !ready.is_empty() {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        views.is_idle();
        Ok(false)
    }

    pub(super) fn time_to_wait(&self) -> Option<Duration> {
        let now = now_ms();
        let core = self
            .core
            .next_deadline()
            .map(|at| Duration::from_millis(at.saturating_sub(now)));
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let collect = self.mains.is_collecting().then_some(COLLECT_PERIOD);
        let views = match &self.files {
            Shown::Views(views) => views.deadline(),
            Shown::Root(_) => None,
        };
        let link = self.link.as_ref().and_then(HeadLink::deadline);
        let others = [
            views.map(until),
            link.map(until),
            self.relay.deadline().map(until),
            self.cursor_at.map(until),
            self.watchdog
                .as_ref()
                .and_then(Watchdog::deadline)
                .map(until),
            collect,
        ];
        core.into_iter().chain(others.into_iter().flatten()).min()
    }

    pub(super) fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if self.relay.deadline().is_some_and(|at| at <= now) {
            let mut events = Vec::new();
            self.relay.tick(&self.poll, &mut events);
            self.hear_relay(events);
        }
        if self.cursor_at.is_some_and(|at| at <= now) {
            self.cursor_at = self.core.has_live_tasks().then_some(now + CURSOR_PERIOD);
            self.steer();
        }
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.deadline().is_some()
        {
            match watchdog.tick(&self.poll, WATCHDOG) {
                Ok(()) => self.mains.watchdog = Some(watchdog.pid()),
                Err(errno) => log(&self.name, &AgentError::Watchdog(errno)),
            }
        }
        self.events.push(Event::Tick);
    }
}
