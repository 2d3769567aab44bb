//! What became ready: who it is by its token, and what is heard from it. The head's connection
//! is in [`super::head`].

use wiglaf_link::{Interest, Ready, Token};
use wiglaf_linux::session::Leader;
use wiglaf_process::relay::node::RelayEvent;
use wiglaf_view::Missing;
use wiglaf_wire::id::{DeputyId, TaskId};

use super::super::core::Event;
use super::super::spawner::Spawner;
use super::super::view::{Heard, Views};
use super::{
    Agent, AgentError, DISKS, EMPTIED, KEPT, LINK, SIGCHLD, SIGNALS, SPAWNER, Shown, WATCHDOG,
};

/// With a PID in the lower bits: this session's leader reports, or has ended. The relay does not
/// count so far.
const LEADER_REPORTS: u64 = 1 << 62;
const LEADER_ENDS: u64 = 1 << 63;

impl Agent {
    pub(super) fn take(&mut self, ready: Ready) -> Result<(), AgentError> {
        match ready.token {
            LINK => self.hear_head(ready),
            SIGNALS => self.hear_signals()?,
            SPAWNER => {
                let answers = self
                    .spawner
                    .as_ref()
                    .map(Spawner::answers)
                    .unwrap_or_default();
                for mut answer in answers {
                    if let Some(lent) = answer.private.take() {
                        self.privates.has(answer.task, *lent);
                    }
                    self.mains.answered(answer, &mut self.events);
                }
                for leader in self.mains.fresh_leaders() {
                    let token = leader_token(LEADER_REPORTS, leader);
                    self.poll.add(leader, token, Interest::Read)?;
                }
            }
            EMPTIED => {
                for (task, failed) in self.privates.emptied() {
                    if let Some(reason) = failed {
                        self.events.push(Event::FilesLost { task, reason });
                    }
                    self.wait_written(task, false);
                }
            }
            WATCHDOG => {
                if let Some(watchdog) = &mut self.watchdog {
                    watchdog.ended(&self.poll);
                    self.mains.watchdog = None;
                }
            }
            DISKS => self.hear_disks(),
            KEPT => self.hear_kept(),
            token if Views::owns(token) => {
                if let Shown::Views(views) = &mut self.files {
                    views.ready(ready);
                }
            }
            Token(token) if token & (LEADER_REPORTS | LEADER_ENDS) != 0 => {
                let pid = i32::try_from(token & !(LEADER_REPORTS | LEADER_ENDS)).unwrap_or(0);
                if let Some(task) = self.mains.by_leader(pid) {
                    self.hear_leader(task, token & LEADER_ENDS != 0)?;
                }
            }
            token if self.relay.owns(token) => {
                let mut events = Vec::new();
                self.relay.handle(&self.poll, ready, &mut events);
                self.hear_relay(events);
            }
            _ => {}
        }
        Ok(())
    }

    fn hear_signals(&mut self) -> Result<(), AgentError> {
        while let Some(signal) = self.signals.read()? {
            if signal.signo != SIGCHLD {
                self.events.push(Event::LeaveAsked);
            }
        }
        Ok(self.mains.reap(&mut self.events)?)
    }

    fn hear_leader(&mut self, task: TaskId, has_ended: bool) -> Result<(), AgentError> {
        if has_ended {
            self.mains.leader_ended(task, &mut self.events);
        } else if !self.mains.hear_leader(task, &mut self.events)
            && let Some(leader) = self.mains.leader(task)
        {
            // Its last words, if it had time for any. What it leaves comes to us at its end.
            self.poll.remove(leader)?;
            self.poll.add(
                &leader.pidfd,
                leader_token(LEADER_ENDS, leader),
                Interest::Read,
            )?;
        }
        Ok(())
    }

    pub(super) fn hear_relay(&mut self, events: Vec<RelayEvent>) {
        for event in events {
            match event {
                RelayEvent::Drained(task) => self.events.push(Event::Drained { task }),
                RelayEvent::Lost(task, reason) => {
                    self.events.push(Event::RelayLost { task, reason });
                }
                RelayEvent::Answered(deputy, answer) => {
                    self.hear_deputy(deputy, Heard::Answer(answer));
                }
                RelayEvent::Changed(deputy, changes) => {
                    self.hear_deputy(deputy, Heard::Changes(changes));
                }
                RelayEvent::Given(deputy, gifts) => {
                    self.hear_deputy(deputy, Heard::Gifts(gifts, Missing::default()));
                }
                RelayEvent::Short(deputy, told, cuts) => {
                    if let Shown::Views(views) = &mut self.files {
                        views.heard_short(deputy, told, cuts);
                    }
                }
            }
        }
    }

    fn hear_deputy(&mut self, deputy: DeputyId, heard: Heard) {
        if let Shown::Views(views) = &mut self.files {
            views.heard(deputy, heard);
        }
    }
}

fn leader_token(what: u64, leader: &Leader) -> Token {
    Token(what | u64::from(leader.pid.cast_unsigned()))
}
