//! Being a member: the connection to the head from the dial to the welcome, its silence and its
//! loss, and the agent's leaving. What the head orders over it is in [`super`].

use wiglaf_wire::PROTOCOL_VERSION;
use wiglaf_wire::agent::FromAgent;
use wiglaf_wire::status::Status;

use super::{Core, Effect};

/// A head that has said nothing for this part of a lease is dialled anew.
const SILENT_LEASE_PARTS: u64 = 2;
/// How long a connection may take from the dial to the welcome.
pub(super) const WELCOME_WAIT_MS: u64 = 10_000;
/// Wait before the first new dial; it doubles with each one that fails.
pub(super) const FIRST_REDIAL_MS: u64 = 100;
/// Longest wait between dials.
pub(super) const LAST_REDIAL_MS: u64 = 5_000;
/// How long a leaving agent waits until the head knows of its tasks' ends.
pub(super) const LEAVE_WAIT_MS: u64 = 3_000;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Link {
    Down {
        dial_at: u64,
    },
    Dialling,
    /// The hello is sent.
    Greeting {
        since: u64,
    },
    Welcomed {
        heard: u64,
        renew_at: u64,
    },
}

impl Core {
    pub(super) fn connected(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.link != Link::Dialling {
            return;
        }
        self.link = Link::Greeting { since: now_ms };
        let tasks = self
            .tasks
            .iter()
            .map(|(id, task)| task.report(*id))
            .collect();
        effects.push(Effect::Send(FromAgent::Hello {
            version: PROTOCOL_VERSION,
            incarnation: self.incarnation,
            machine: self.machine.clone(),
            tasks,
        }));
    }

    pub(super) fn disconnected(&mut self, now_ms: u64) {
        if matches!(self.link, Link::Down { .. }) {
            return;
        }
        self.lease.forget_open();
        // A thousand agents whose head comes back don't all dial in the same millisecond.
        let spread = self.incarnation.0.rotate_right(self.dials * 8) & 0xff;
        self.dials = self.dials.wrapping_add(1) % 8;
        let wait = self.redial_ms * 3 / 4 + self.redial_ms * spread / 512;
        self.redial_ms = (self.redial_ms * 2).min(LAST_REDIAL_MS);
        self.link = Link::Down {
            dial_at: now_ms + wait,
        };
    }

    /// Takes the welcome. Returns whether this was waiting for it.
    pub(super) fn welcomed(&mut self, now_ms: u64, name: &str, lease_ms: u64) -> bool {
        let Link::Greeting { since } = self.link else {
            return false;
        };
        name.clone_into(&mut self.name);
        self.redial_ms = FIRST_REDIAL_MS;
        self.lease.length_ms = lease_ms;
        // The hello was a renewal too.
        self.lease.extend(now_ms, since);
        let renew_at = now_ms + self.lease.renewal_ms();
        self.link = Link::Welcomed {
            heard: now_ms,
            renew_at,
        };
        true
    }

    /// What the time makes of the connection.
    pub(super) fn check_link(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        match self.link {
            Link::Greeting { since } if since + WELCOME_WAIT_MS <= now_ms => {
                effects.push(Effect::HangUp);
                self.disconnected(now_ms);
            }
            Link::Welcomed { heard, .. } if self.silent_at(heard) <= now_ms => {
                effects.push(Effect::HangUp);
                self.disconnected(now_ms);
            }
            Link::Welcomed {
                ref mut renew_at, ..
            } if *renew_at <= now_ms => {
                *renew_at = now_ms + self.lease.renewal_ms();
                let sequence = self.lease.renew(now_ms);
                effects.push(Effect::Renew { sequence });
            }
            Link::Down { dial_at } if dial_at <= now_ms => {
                self.link = Link::Dialling;
                effects.push(Effect::Dial);
            }
            _ => {}
        }
    }

    /// When the connection, or the want of one, has to be looked at again.
    pub(super) fn link_deadline(&self) -> Option<u64> {
        match self.link {
            Link::Down { dial_at } => Some(dial_at),
            Link::Dialling => None,
            Link::Greeting { since } => Some(since + WELCOME_WAIT_MS),
            Link::Welcomed { heard, renew_at } => Some(renew_at.min(self.silent_at(heard))),
        }
    }

    fn silent_at(&self, heard: u64) -> u64 {
        heard + self.lease.length_ms / SILENT_LEASE_PARTS
    }

    fn is_linked(&self) -> bool {
        matches!(self.link, Link::Greeting { .. } | Link::Welcomed { .. })
    }

    pub(super) fn send(&self, message: FromAgent, effects: &mut Vec<Effect>) {
        // What is not said now, the next hello says.
        if self.is_linked() {
            effects.push(Effect::Send(message));
        }
    }

    pub(super) fn leave(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.leaving_until.is_some() {
            return;
        }
        self.leaving_until = Some(now_ms + LEAVE_WAIT_MS);
        if self.has_live_tasks() {
            effects.push(Effect::KillEverything);
        }
        let reason = format!(
            "{} was asked to leave the cluster and ended its tasks; run the command again",
            self.name
        );
        for task in self.tasks.values_mut().filter(|task| task.is_live()) {
            task.killed = true;
            task.verdict
                .get_or_insert(Status::cluster_failed(reason.clone()));
        }
    }

    pub(super) fn check_leaving(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self
            .leaving_until
            .is_some_and(|until| self.tasks.is_empty() || until <= now_ms)
        {
            // Whatever is still alive when the wait is over goes with its init, but only the
            // fence proves that to the head.
            if !self.has_live_tasks() {
                self.send(FromAgent::Leaving, effects);
            }
            self.exit(None, effects);
        }
    }

    pub(super) fn exit(&mut self, reason: Option<String>, effects: &mut Vec<Effect>) {
        self.exited = true;
        effects.push(Effect::Exit { reason });
    }
}
