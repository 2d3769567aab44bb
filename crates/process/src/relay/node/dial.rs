//! Links to deputies: dialled without waiting, again with back-off when they break.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use wiglaf_link::{Interest, Poll, Role, TlsLink, Token, server_name};
use wiglaf_wire::id::{DeputyId, TaskId};

use super::view::Questions;
use super::{LINK_LINGER, NodeRelay, RELINK_LIMIT, RelayEvent, Target, attach};
use crate::relay::carrier::Carrier;

/// First and longest pause before a link is dialled again.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// A connection and its handshake take no longer, or are tried anew.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A link to one deputy, or the wish for one.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) state: State,
    pub(super) token: Option<Token>,
    pub(super) tasks: BTreeSet<TaskId>,
    pub(super) idle_since: Option<Instant>,
    back_off: Duration,
    retry_at: Option<Instant>,
    /// Since when tasks want the link and the deputy has said nothing.
    unheard_since: Option<Instant>,
    why: String,
    /// The deputy has said something on this connection.
    pub(super) is_heard: bool,
    pub(super) questions: Questions,
}

#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Down,
    Connecting(OwnedFd),
    Up(Box<Carrier>),
}

impl Link {
    pub(super) fn carrier(&mut self) -> Option<&mut Carrier> {
        match &mut self.state {
            State::Up(carrier) => Some(carrier),
            State::Down | State::Connecting(_) => None,
        }
    }

    /// The deputy speaks: the link is good.
    pub(super) fn heard(&mut self) {
        self.is_heard = true;
        self.unheard_since = None;
        self.retry_at = None;
        self.back_off = BACK_OFF_MIN;
    }

    pub(super) fn deadline(&self, can_dial: bool) -> Option<Instant> {
        if self.tasks.is_empty() {
            return self.idle_since.map(|since| since + LINK_LINGER);
        }
        let give_up = self.unheard_since.map(|since| since + RELINK_LIMIT);
        let retry = self.retry_at.filter(|_| can_dial);
        give_up.into_iter().chain(retry).min()
    }
}

impl NodeRelay {
    /// Starts a connection to the deputy; what can't be done now is tried again.
    pub(super) fn dial(&mut self, poll: &Poll, deputy: DeputyId) {
        let Some(link) = self.links.get_mut(&deputy) else {
            return;
        };
        let now = Instant::now();
        link.unheard_since.get_or_insert(now);
        let Some((head, _)) = &self.identity else {
            link.retry_at = Some(now);
            return;
        };
        link.retry_at = Some(now + CONNECT_LIMIT);
        match connect(*head) {
            Ok(socket) => {
                let token = self.tokens.give(Target::Link(deputy));
                match poll.add(&socket, token, Interest::Write) {
                    Ok(()) => {
                        link.state = State::Connecting(socket);
                        link.token = Some(token);
                    }
                    Err(errno) => {
                        self.tokens.forget(token);
                        self.link_broken(poll, deputy, errno.to_string());
                    }
                }
            }
            Err(errno) => self.link_broken(poll, deputy, errno.to_string()),
        }
    }

    /// The connection stands, or has failed.
    pub(super) fn connected(&mut self, poll: &Poll, deputy: DeputyId) {
        if let Err(reason) = self.start_link(poll, deputy) {
            self.link_broken(poll, deputy, reason);
        }
    }

    fn start_link(&mut self, poll: &Poll, deputy: DeputyId) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&deputy) else {
            return Ok(());
        };
        let State::Connecting(socket) = std::mem::take(&mut link.state) else {
            return Ok(());
        };
        // It comes back with what the link itself waits for.
        let _ = poll.remove(&socket);
        let (Some(token), Some((_, config))) = (link.token, &self.identity) else {
            return Err("the agent has no certificate".into());
        };
        let result = sockopt::socket_error(&socket).unwrap_or_else(Err);
        result.map_err(|errno| errno.to_string())?;
        let name = server_name(Role::Deputy(deputy));
        let tls = TlsLink::client(socket, config.clone(), name).map_err(|e| e.to_string())?;
        let mut carrier = Carrier::new(poll, tls, token).map_err(|errno| errno.to_string())?;
        carrier.offer_compression(self.compression);
        for task in &link.tasks {
            attach(self.tasks.get_mut(task), &mut carrier);
        }
        link.state = State::Up(Box::new(carrier));
        self.settle(poll, deputy);
        Ok(())
    }

    /// Takes all links down, so that nobody waits for an answer any more; those that tasks need
    /// are dialled again. What comes late by the old ones the deputy refuses: tasks entitle the
    /// link that they are attached to (S3).
    pub fn cut_links(&mut self, poll: &Poll) {
        let deputies: Vec<DeputyId> = self.links.keys().copied().collect();
        for deputy in deputies {
            if let Some(link) = self.links.get_mut(&deputy) {
                // Not even questions that nobody has seen go to the next one.
                link.is_heard = true;
            }
            self.link_broken(poll, deputy, "the lease is over".to_owned());
        }
    }

    /// Takes a link down; it is dialled again if a task needs it.
    pub(super) fn link_broken(&mut self, poll: &Poll, deputy: DeputyId, why: String) {
        let Some(link) = self.links.get_mut(&deputy) else {
            return;
        };
        match std::mem::take(&mut link.state) {
            State::Up(carrier) => carrier.close(poll),
            State::Connecting(socket) => drop(poll.remove(&socket)),
            State::Down => {}
        }
        if let Some(token) = link.token.take() {
            self.tokens.forget(token);
        }
        if link.lose_questions() {
            self.unlinked.push(deputy);
        }
        for task in &link.tasks {
            if let Some(entry) = self.tasks.get_mut(task) {
                entry.streams.unlink(poll);
            }
        }
        if link.tasks.is_empty() {
            self.links.remove(&deputy);
            return;
        }
        let now = Instant::now();
        link.unheard_since.get_or_insert(now);
        link.why = why;
        link.retry_at = Some(now + link.back_off.max(BACK_OFF_MIN));
        link.back_off = (link.back_off.max(BACK_OFF_MIN) * 2).min(BACK_OFF_MAX);
    }

    /// A link's time has come.
    pub(super) fn link_due(
        &mut self,
        poll: &Poll,
        deputy: DeputyId,
        now: Instant,
        events: &mut Vec<RelayEvent>,
    ) {
        let Some(link) = self.links.get_mut(&deputy) else {
            return;
        };
        if link.tasks.is_empty() {
            return self.link_broken(poll, deputy, String::new());
        }
        if link
            .unheard_since
            .is_some_and(|since| since + RELINK_LIMIT <= now)
        {
            let reason = format!(
                "its deputy on the head could not be reached for {} s: {}",
                RELINK_LIMIT.as_secs(),
                link.why
            );
            for task in std::mem::take(&mut link.tasks) {
                if let Some(entry) = self.tasks.get_mut(&task) {
                    entry.lose(poll, &reason, events);
                }
            }
            return self.link_broken(poll, deputy, reason);
        }
        match link.state {
            State::Down => self.dial(poll, deputy),
            State::Connecting(_) | State::Up(_) => {
                let reason = "the head did not answer".to_owned();
                self.link_broken(poll, deputy, reason);
            }
        }
    }
}

fn connect(head: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match head {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &head) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}
