//! The agent's connection to the head.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wiglaf_link::{Interest, LinkError, Ready};
use wiglaf_wire::agent::{FromAgent, ToAgent};

use super::super::core::Event;
use super::super::link::HeadLink;
use super::super::pids::PidBlock;
use super::super::spawner::Spawner;
use super::{Agent, AgentError, LINK, SPAWNER, entitle, log};

/// Reads of the head's connection before others have their turn.
const READS_PER_TURN: usize = 8;
/// How long a farewell may take to leave.
const FAREWELL_WAIT: Duration = Duration::from_millis(500);

impl Agent {
    pub(super) fn dial(&mut self) {
        match HeadLink::open(&self.poll, LINK, self.head, self.identity.clone()) {
            Ok(link) => {
                self.link = Some(link);
                // What is sent before the connection stands is queued, in its order.
                self.events.push(Event::Connected);
            }
            Err(error) => self.lost(&error),
        }
    }

    pub(super) fn send(&mut self, message: &FromAgent) {
        if let Some(link) = &mut self.link
            && let Err(error) = match message {
                // Nobody waits for it, and what is over soon says so itself.
                FromAgent::Started { .. } => link.queue_patiently(message),
                _ => link.queue(message),
            }
        {
            self.lost(&error);
        }
    }

    pub(super) fn settle_link(&mut self) {
        if let Some(link) = &mut self.link
            && let Err(error) = link.settle(&self.poll)
        {
            self.lost(&error);
        }
    }

    pub(super) fn hear_head(&mut self, ready: Ready) {
        for _ in 0..READS_PER_TURN {
            let Some(link) = &mut self.link else { return };
            let received = if ready.readable {
                link.receive()
            } else {
                Ok(())
            };
            let mut heard = false;
            loop {
                let Some(link) = &mut self.link else { return };
                match link.next_message() {
                    Ok(Some(message)) => {
                        heard = true;
                        self.hear(message);
                    }
                    Ok(None) => break,
                    Err(error) => return self.lost(&error),
                }
            }
            if let Err(error) = received {
                return self.lost(&error);
            }
            // What is more than one read, the set tells again.
            let may_have_more = self.link.as_ref().is_some_and(HeadLink::may_have_more);
            if !heard || !may_have_more {
                return;
            }
        }
    }

    /// What concerns the machine is not the core's.
    fn hear(&mut self, message: ToAgent) {
        match (&message, &mut self.clock) {
            (ToAgent::Names { names }, _) => return self.hear_names(names.clone()),
            (ToAgent::Keep { key }, _) => return self.hear_key(*key),
            (ToAgent::Renewed { .. }, None) => self.look_at_own_resolver(),
            (ToAgent::Renewed { sequence }, Some(clock)) => {
                clock.answered(*sequence, Instant::now());
            }
            (ToAgent::Time { unix_ns }, Some(clock)) => {
                if let Err(errno) = clock.heard(*unix_ns) {
                    log(&self.name, &format_args!("can't set the clock: {errno}"));
                }
                return;
            }
            (ToAgent::Power { action }, Some(_)) => {
                self.power = Some(*action);
                self.events.push(Event::LeaveAsked);
                return;
            }
            (ToAgent::Disk { request, order }, _) => {
                return self.order_disks(*request, (**order).clone());
            }
            (ToAgent::Power { .. }, None) => {
                log(
                    &self.name,
                    &"the head wants this machine to start anew or to end, but it has a system of \
                      its own: that has to do it",
                );
                return;
            }
            _ => {}
        }
        self.events.push(Event::Message(message));
    }

    pub(super) fn lost(&mut self, error: &LinkError) {
        self.close_link();
        let trouble = format!("no connection to the head at {}: {error}", self.head);
        if self.trouble.as_ref() != Some(&trouble) {
            log(&self.name, &trouble);
            self.trouble = Some(trouble);
        }
        self.events.push(Event::Disconnected);
    }

    pub(super) fn close_link(&mut self) {
        // Another head may give their numbers to other questions.
        self.checks.clear();
        if let Some(disks) = &mut self.disks {
            disks.forget_questions();
        }
        if let Some(link) = self.link.take() {
            // Fails only for a set that is broken itself.
            let _ = self.poll.remove(&link);
        }
    }

    pub(super) fn welcomed(&mut self, name: String, pids: PidBlock) -> Result<(), AgentError> {
        let was_lost = self.trouble.take().is_some();
        if self.clock.is_some() && (self.spawner.is_none() || was_lost) {
            // Its console is where somebody waits for this.
            log(
                &name,
                &format_args!("this machine is {name}: it takes tasks now"),
            );
        }
        // Where another DHCP server gives the addresses, only the head knows the name.
        if self.clock.is_some() {
            rustix::system::sethostname(name.as_bytes())?;
        }
        if self.name != name {
            entitle(&name);
            self.name = name;
        }
        if self.pids.replace(pids) != Some(pids) {
            if let Err(error) = pids.make_room() {
                log(&self.name, &error);
            }
            self.steer();
        }
        if self.spawner.is_none() {
            // Only now, so that its thread's number is of the node's block too, and can't be that
            // of a ghost.
            let spawner = Spawner::start(self.rootless, &self.name, self.makers.clone())
                .map_err(AgentError::Spawner)?;
            self.poll.add(spawner.bell(), SPAWNER, Interest::Read)?;
            self.spawner = Some(spawner);
            self.start_disks();
            self.keep();
        }
        Ok(())
    }

    pub(super) fn say_farewell(&mut self) {
        let until = Instant::now() + FAREWELL_WAIT;
        // Flushed by `decide` already, as far as the socket took it; the kernel sends the rest if
        // the other side reads at all.
        while let Some(link) = &mut self.link
            && link.flush(&self.poll).is_ok()
            && link.is_sending()
            && Instant::now() < until
        {
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 10_000_000,
            };
            let _ = poll(&mut [PollFd::new(link, PollFlags::OUT)], Some(&wait));
        }
    }
}
