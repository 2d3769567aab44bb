//! The links of a deputy: one for each node that runs something of its user's.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use wiglaf_link::{Ready, Role, TlsLink};
use wiglaf_wire::id::{NodeId, TaskId};
use wiglaf_wire::stream::{Relay, Stream};

use super::kept::Kept;
use super::task::Task;
use super::view::Questions;
use super::{ATTACH_WAIT, Deputy, Target};
use crate::relay::carrier::Carrier;

/// A peer that has not shown who it is after this long is cut off (S1).
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Most links; a node has one, or two while it replaces a broken one.
const MAX_LINKS: usize = 4096;
/// Most tasks of one link that wait for the head's word (S1).
const MAX_WAITING: usize = 4096;

/// Most messages of a task that is not attached yet: where its input goes on, and that nobody
/// reads it.
const MAX_EARLY_MESSAGES: usize = 4;

/// The number of a link, which no other gets after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) carrier: Carrier,
    /// Known when the handshake is over.
    pub(super) node: Option<NodeId>,
    accepted_at: Instant,
    waiting: Vec<Waiting>,
    pub(super) questions: Questions,
    pub(super) kept: Kept,
}

/// A task that the agent asked for and the head has not named yet.
#[derive(Debug)]
struct Waiting {
    task: TaskId,
    until: Instant,
    /// What the agent said of its streams meanwhile.
    messages: Vec<Relay>,
}

impl Deputy {
    /// An agent's connection, handed over by the head.
    pub(super) fn accept(&mut self, socket: OwnedFd) {
        let Some(config) = self.identity.clone() else {
            return;
        };
        if self.links.len() >= MAX_LINKS {
            return;
        }
        let token = self.tokens.give(|number| Target::Link(LinkId(number)));
        // A connection that can't be served is dropped: its agent dials again.
        let carrier = TlsLink::server(socket, config)
            .ok()
            .and_then(|tls| Carrier::new(&self.poll, tls, token).ok());
        match carrier {
            Some(mut carrier) => {
                carrier.heed_compression();
                let accepted_at = Instant::now();
                let link = Link {
                    carrier,
                    node: None,
                    accepted_at,
                    waiting: Vec::new(),
                    questions: Questions::default(),
                    kept: Kept::default(),
                };
                self.links.insert(LinkId(token.0), link);
            }
            None => self.tokens.forget(token),
        }
    }

    pub(super) fn link_ready(&mut self, id: LinkId, ready: Ready) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.carrier.settle(&self.poll);
        // A paused one is ready only when it is over.
        if ready.readable {
            link.carrier.receive();
        }
        if link.node.is_none()
            && let Some(certificates) = link.carrier.tls().peer_certificates()
        {
            match certificates.first().and_then(Role::of_certificate) {
                Some(Role::Node(node)) => link.node = Some(node),
                _ => return self.drop_link(id),
            }
        }
        let touched = self.take_frames(id);
        self.unstall(id);
        self.settle(id);
        for task in touched {
            self.go_on(task);
        }
    }

    /// Handles all frames that have arrived; returns the tasks that were written to.
    fn take_frames(&mut self, id: LinkId) -> Vec<TaskId> {
        let mut reports: Vec<(TaskId, Stream)> = Vec::new();
        let mut touched = Vec::new();
        let Some(link) = self.links.get_mut(&id) else {
            return touched;
        };
        let carrier = &mut link.carrier;
        while let Some(message) = carrier.next_message(&mut reports, |header, bytes| {
            let entry = self.tasks.get_mut(&header.task);
            match entry.filter(|entry| entry.link == Some(id)) {
                Some(entry) => entry.streams.data(&self.poll, header, bytes).map(|()| true),
                // Late bytes of a task that is over, or has moved to another link.
                None => Ok(false),
            }
        }) {
            if let Relay::Ask(question) = message {
                link.questions.take(question);
                continue;
            }
            let Some(task) = task_of(&message) else {
                continue;
            };
            let entry = self.tasks.get_mut(&task);
            if let Relay::Attach { .. } = message {
                match entry {
                    Some(entry) if link.node == Some(entry.node) => {
                        entry.link = Some(id);
                        welcome(entry, carrier);
                    }
                    // The head named another node for it (S3).
                    Some(_) => carrier.say(&Relay::Refused { task }),
                    None if link.waiting.len() >= MAX_WAITING => {
                        carrier.say(&Relay::Refused { task });
                    }
                    None => {
                        let until = Instant::now() + ATTACH_WAIT;
                        link.waiting.push(Waiting {
                            task,
                            until,
                            messages: Vec::new(),
                        });
                    }
                }
            } else if let Some(entry) = entry.filter(|entry| entry.link == Some(id)) {
                if let Err(error) = entry.take(&self.poll, message, carrier, &mut self.buffers) {
                    carrier.fail(error);
                }
                touched.push(task);
            } else if let Some(waiting) = link.waiting.iter_mut().find(|one| one.task == task)
                && waiting.messages.len() < MAX_EARLY_MESSAGES
            {
                waiting.messages.push(message);
            }
        }
        for (task, stream) in reports {
            if let Some(entry) = self.tasks.get_mut(&task) {
                entry.streams.report(stream, carrier);
                touched.push(task);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// The head has named a task: its agent may have asked for it already.
    pub(super) fn bind_waiting(&mut self, task: TaskId) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let mut bound = None;
        for (&id, link) in &mut self.links {
            let Some(at) = link.waiting.iter().position(|one| one.task == task) else {
                continue;
            };
            let waiting = link.waiting.swap_remove(at);
            if link.node == Some(entry.node) {
                entry.link = Some(id);
                bound = Some(id);
                welcome(entry, &mut link.carrier);
                for message in waiting.messages {
                    let carrier = &mut link.carrier;
                    if let Err(error) = entry.take(&self.poll, message, carrier, &mut self.buffers)
                    {
                        carrier.fail(error);
                    }
                }
            } else {
                link.carrier.say(&Relay::Refused { task });
                link.carrier.settle(&self.poll);
            }
        }
        if let Some(id) = bound {
            self.settle(id);
        }
    }

    fn unstall(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        while !link.carrier.is_congested()
            && let Some((task, stream)) = link.carrier.stalled.pop_front()
        {
            if let Some(entry) = self.tasks.get_mut(&task)
                && entry.link == Some(id)
            {
                let carrier = &mut link.carrier;
                entry
                    .streams
                    .unstall(&self.poll, stream, carrier, &mut self.buffers);
            }
        }
    }

    /// Sends what is queued, and looks whether the link still stands.
    pub(super) fn settle(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.carrier.pause(link.questions.are_many());
        link.carrier.settle(&self.poll);
        if link.carrier.failure().is_some() {
            self.drop_link(id);
        }
    }

    /// A link may not have noticed yet that the other machine is gone.
    pub(super) fn drop_links_of(&mut self, node: NodeId) {
        let links = self.links.iter();
        let of_node = links.filter(|(_, link)| link.node == Some(node));
        let ids: Vec<_> = of_node.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.drop_link(id));
    }

    fn drop_link(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else {
            return;
        };
        self.tokens.forget(link.carrier.token());
        link.carrier.close(&self.poll);
        self.files.close(id);
        // The agent dials again, and the streams go on.
        for entry in self
            .tasks
            .values_mut()
            .filter(|entry| entry.link == Some(id))
        {
            entry.link = None;
            entry.streams.unlink(&self.poll);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.links.values().filter_map(Link::deadline).min()
    }

    /// Refuses who waited too long, and cuts off who never said who it is.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        let due = |link: &Link| link.deadline().is_some_and(|at| at <= now);
        let ids: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| due(link))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else {
                continue;
            };
            if link.node.is_none() {
                self.drop_link(id);
                continue;
            }
            let carrier = &mut link.carrier;
            link.waiting.retain(|waiting| {
                if waiting.until <= now {
                    carrier.say(&Relay::Refused { task: waiting.task });
                }
                waiting.until > now
            });
            self.settle(id);
        }
    }
}

impl Link {
    /// Whether the head may yet name a task of this node.
    pub(super) fn is_undecided(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        match self.node {
            None => Some(self.accepted_at + HANDSHAKE_LIMIT),
            Some(_) => self.waiting.iter().map(|one| one.until).min(),
        }
    }
}

fn task_of(message: &Relay) -> Option<TaskId> {
    match message {
        Relay::Attach { task }
        | Relay::Passed { task, .. }
        | Relay::End { task, .. }
        | Relay::Broken { task, .. } => Some(*task),
        _ => None,
    }
}

/// A task's agent is there: it learns where the streams go on, and the terminal's size.
fn welcome(entry: &mut Task, carrier: &mut Carrier) {
    entry.streams.link(carrier);
    let task = entry.streams.task;
    if entry.streams.sinks.iter().all(Option::is_none) {
        // The agent waits for an answer; a task that only reads has no other yet.
        let stream = Stream::Output;
        carrier.say(&Relay::Passed {
            task,
            stream,
            offset: 0,
        });
    }
    if entry.has_terminal
        && let Some(window) = entry.window()
    {
        carrier.say(&Relay::Resize {
            task: entry.streams.task,
            window,
        });
    }
}
