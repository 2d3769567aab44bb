//! Lines on nodes: a connection to the head and a ghost for each.
//!
//! A connection serves one line after another. The ghost is our child, in our process group, so
//! that the terminal's signals reach it; a line is over when its ghost has ended, and how it ended
//! the head has told before.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use wiglaf_build::{AttemptId, Event};
use wiglaf_head::config::Layout;
use wiglaf_link::{Channel, Interest, Poll, Ready};
use wiglaf_linux::ghost::{GhostRequest, spawn_ghost};
use wiglaf_linux::process::{ExitStatus, kill};
use wiglaf_wire::client::{Reply, Request, RunRequest};
use wiglaf_wire::id::Pid;
use wiglaf_wire::keeper::GhostMode;
use wiglaf_wire::status::{EXIT_CLUSTER_FAILED, Status, Usage};

use super::token::{Kind, token};
use super::words::Words;
use crate::error::CommandError;
use crate::head::Head;

const SIGKILL: i32 = 9;
/// How long a line waits for a head that is being replaced.
const HEAD_RETURN_WAIT: Duration = Duration::from_secs(10);
const HEAD_RETURN_POLL: Duration = Duration::from_millis(50);
/// How long the head's word may come after the ghost's end.
const WORD_WAIT: Duration = Duration::from_millis(500);

/// All lines that are on nodes, or on their way there.
pub(super) struct Launches {
    layout: Layout,
    attempts: BTreeMap<AttemptId, Attempt>,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    /// By PID, which stays theirs until they are reaped.
    ghosts: HashMap<i32, AttemptId>,
    words: Words,
}

/// What is launched.
pub(super) struct Order {
    pub(super) attempt: AttemptId,
    pub(super) request: RunRequest,
    /// Those that the deputy relays, in their order.
    pub(super) streams: Vec<OwnedFd>,
}

struct Attempt {
    order: Order,
    connection: Option<u64>,
    /// There is no head at the moment.
    head_wanted_since: Option<Instant>,
    ghost: Option<Ghost>,
    /// What the head has said.
    word: Option<(Status, Usage)>,
}

struct Ghost {
    pid: i32,
    /// The keeper has it.
    is_seized: bool,
    is_stopped: bool,
    ended: Option<(ExitStatus, Instant)>,
    /// Why it was killed by us.
    failure: Option<String>,
}

struct Connection {
    channel: Channel<Reply, Request>,
    attempt: Option<AttemptId>,
    waits_for_room: bool,
}

impl Launches {
    /// By the head that has been found there.
    pub(super) fn new(layout: Layout) -> Result<Launches, CommandError> {
        Ok(Launches {
            layout,
            attempts: BTreeMap::new(),
            connections: HashMap::new(),
            next_connection: 0,
            ghosts: HashMap::new(),
            words: Words::new()?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Asks for a node.
    pub(super) fn launch(&mut self, poll: &Poll, order: Order, events: &mut Vec<Event>) {
        let id = order.attempt;
        let attempt = Attempt {
            order,
            connection: None,
            head_wanted_since: None,
            ghost: None,
            word: None,
        };
        self.attempts.insert(id, attempt);
        self.ask(poll, id, events);
    }

    fn ask(&mut self, poll: &Poll, id: AttemptId, events: &mut Vec<Event>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        let run = Request::Run(Box::new(attempt.order.request.clone()));
        let idle = self
            .connections
            .iter()
            .find(|(_, connection)| connection.attempt.is_none())
            .map(|(number, _)| *number);
        let number = match idle {
            Some(number) => Ok(number),
            None => connect(&self.layout, poll, self.next_connection).map(|connection| {
                let number = self.next_connection;
                self.next_connection += 1;
                self.connections.insert(number, connection);
                number
            }),
        };
        let sent = number.and_then(|number| {
            let connection = self
                .connections
                .get_mut(&number)
                .ok_or_else(|| CommandError::new("a connection is gone"))?;
            let sent = connection.channel.send(&run, Vec::new());
            sent.map_err(|error| crate::error::connection_lost(&error))?;
            connection.attempt = Some(id);
            connection.watch_room(poll, number);
            Ok(number)
        });
        match sent {
            Ok(number) => {
                attempt.connection = Some(number);
                attempt.head_wanted_since = None;
            }
            Err(error) => {
                if let Some(number) = idle {
                    self.connections.remove(&number);
                }
                self.without_head(id, error, events);
            }
        }
    }

    /// Waits for the head's successor, for a while.
    fn without_head(&mut self, id: AttemptId, error: CommandError, events: &mut Vec<Event>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        attempt.connection = None;
        let since = *attempt.head_wanted_since.get_or_insert_with(Instant::now);
        let may_return = error.is_connection_lost() && self.layout.keeper_socket().exists();
        if !may_return || since.elapsed() > HEAD_RETURN_WAIT {
            self.attempts.remove(&id);
            let (message, _) = error.into_words();
            events.push(Event::Refused {
                attempt: id,
                message,
            });
        }
    }

    /// What is due by time: heads that come back, words that don't.
    pub(super) fn tick(&mut self, poll: &Poll, events: &mut Vec<Event>) {
        let wanting: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.connection.is_none() && attempt.ghost.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in wanting {
            self.ask(poll, id, events);
        }
        let all: Vec<_> = self.attempts.keys().copied().collect();
        for id in all {
            self.settle(id, events);
        }
    }

    /// When [`Launches::tick`] is needed next.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let waits = self.attempts.values().filter_map(|attempt| {
            if attempt.head_wanted_since.is_some() {
                return Some(HEAD_RETURN_POLL);
            }
            let (_, since) = attempt.ghost.as_ref()?.ended.as_ref()?;
            Some(WORD_WAIT.saturating_sub(since.elapsed()))
        });
        waits.min()
    }

    /// Passes a signal on to the line.
    pub(super) fn signal(&self, id: AttemptId, signal: i32) {
        if let Some(ghost) = self.attempts.get(&id).and_then(|a| a.ghost.as_ref())
            && ghost.ended.is_none()
        {
            // It may just have ended.
            let _ = kill(ghost.pid, signal);
        }
    }

    /// Nobody wants the line any more.
    pub(super) fn cancel(&mut self, poll: &Poll, id: AttemptId, events: &mut Vec<Event>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        if attempt.ghost.is_some() {
            return self.signal(id, SIGKILL);
        }
        if let Some(number) = attempt.connection
            && let Some(connection) = self.connections.remove(&number)
        {
            // Closing it takes the request back.
            let _ = poll.remove(&connection.channel);
        }
        self.attempts.remove(&id);
        events.push(Event::Ended {
            attempt: id,
            status: Status::Signaled(u8::try_from(SIGKILL).unwrap_or(0)),
            usage: None,
        });
    }

    /// The head says something, or takes what is queued for it.
    pub(super) fn head_ready(
        &mut self,
        poll: &Poll,
        number: u64,
        ready: Ready,
        events: &mut Vec<Event>,
    ) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let mut over = ready.writable && connection.channel.flush().is_err();
        connection.watch_room(poll, number);
        if ready.readable {
            over |= connection.channel.receive().is_err();
        }
        self.take_replies(poll, number, events);
        if !over {
            return;
        }
        let Some(connection) = self.connections.remove(&number) else {
            return;
        };
        let _ = poll.remove(&connection.channel);
        if let Some(id) = connection.attempt {
            self.head_lost(id, events);
        }
    }

    fn take_replies(&mut self, poll: &Poll, number: u64, events: &mut Vec<Event>) {
        while let Some(connection) = self.connections.get_mut(&number) {
            let Ok(Some(reply)) = connection.channel.next_message() else {
                return;
            };
            if let Some(id) = connection.attempt {
                self.hear(poll, id, reply, events);
            }
        }
    }

    fn hear(&mut self, poll: &Poll, id: AttemptId, reply: Reply, events: &mut Vec<Event>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        match reply {
            // To the greeting.
            Reply::Done => {}
            Reply::Waiting { .. } => events.push(Event::Waiting { attempt: id }),
            Reply::Placed { nodes, .. } => {
                let node = nodes.into_iter().next().map_or_else(String::new, |n| n.1);
                match self.name_ghost(poll, id) {
                    Ok(()) => events.push(Event::Placed { attempt: id, node }),
                    Err(error) => {
                        let (message, _) = error.into_words();
                        self.refused(poll, id, message, events);
                    }
                }
            }
            Reply::Go { .. } => {
                if let Some(ghost) = &mut attempt.ghost {
                    ghost.is_seized = true;
                }
                // The deputy has them.
                attempt.order.streams.clear();
            }
            Reply::Ended { status, usage, .. } => {
                attempt.word = Some((status, usage));
                self.settle(id, events);
            }
            Reply::Refused { message, .. } => self.refused(poll, id, message, events),
            other => {
                let (message, _) = CommandError::from_reply(other).into_words();
                self.refused(poll, id, message, events);
            }
        }
    }

    /// The head won't, or can't.
    fn refused(&mut self, poll: &Poll, id: AttemptId, message: String, events: &mut Vec<Event>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        if let Some(ghost) = &mut attempt.ghost {
            ghost.failure = Some(message);
            // What it stands for must be dead before the line is begun again (P4): that is so
            // when the ghost can be reaped.
            let _ = kill(ghost.pid, SIGKILL);
            return self.settle(id, events);
        }
        let connection = attempt.connection;
        self.attempts.remove(&id);
        if let Some(number) = connection
            && let Some(connection) = self.connections.remove(&number)
        {
            // It may hold a place for this line.
            let _ = poll.remove(&connection.channel);
        }
        events.push(Event::Refused {
            attempt: id,
            message,
        });
    }

    /// The connection is over. A line whose ghost is seized goes on.
    fn head_lost(&mut self, id: AttemptId, events: &mut Vec<Event>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        attempt.connection = None;
        match &mut attempt.ghost {
            Some(ghost) if ghost.is_seized => self.settle(id, events),
            Some(ghost) => {
                ghost.failure = Some("the head went away while the line was launched".into());
                let _ = kill(ghost.pid, SIGKILL);
                self.settle(id, events);
            }
            None => {
                let error = CommandError::new("the head went away").lost();
                self.without_head(id, error, events);
            }
        }
    }

    fn name_ghost(&mut self, poll: &Poll, id: AttemptId) -> Result<(), CommandError> {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return Ok(());
        };
        let (control, keepers) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let words = &attempt.order.request.spec.argv;
        let argv = words
            .iter()
            .map(|word| CString::new(word.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let spawned = spawn_ghost(&GhostRequest {
            argv: &argv,
            // Its environment is the task's, on the node; here it would only take memory.
            env: &[],
            control: control.as_fd(),
            stdin: None,
            stdin_pipe: None,
            // What the cluster has to say comes to us.
            stderr: Some(self.words.descriptor()),
            group: None,
            // When this process disappears the shims run their lines here.
            dies_with_parent: true,
        })?;
        self.ghosts.insert(spawned.pid, id);
        attempt.ghost = Some(Ghost {
            pid: spawned.pid,
            is_seized: false,
            is_stopped: false,
            ended: None,
            failure: None,
        });
        let mut parcel = vec![keepers];
        for stream in &attempt.order.streams {
            parcel.push(rustix::io::fcntl_dupfd_cloexec(stream, 10)?);
        }
        let request = Request::Ghost {
            index: 0,
            pid: Pid(spawned.pid),
            mode: GhostMode::default(),
        };
        let number = attempt.connection.unwrap_or(u64::MAX);
        let connection = self
            .connections
            .get_mut(&number)
            .ok_or_else(|| CommandError::new("the head went away"))?;
        connection
            .channel
            .send(&request, parcel)
            .map_err(|error| crate::error::connection_lost(&error))?;
        connection.watch_room(poll, number);
        Ok(())
    }

    /// A child has stopped, or goes on.
    pub(super) fn child_stopped(&mut self, pid: i32, is_stopped: bool) {
        let id = self.ghosts.get(&pid);
        if let Some(ghost) = id
            .and_then(|id| self.attempts.get_mut(id))
            .and_then(|attempt| attempt.ghost.as_mut())
        {
            ghost.is_stopped = is_stopped;
        }
    }

    /// Whether some line runs and is not stopped. (A ghost stops when its line has.)
    pub(super) fn some_run(&self) -> bool {
        let mut ghosts = self.attempts.values().filter_map(|a| a.ghost.as_ref());
        ghosts.any(|ghost| ghost.is_seized && !ghost.is_stopped && ghost.ended.is_none())
    }

    /// A child has ended and is reaped. (A ghost's end shows only when its line is over.)
    pub(super) fn child_ended(
        &mut self,
        poll: &Poll,
        pid: i32,
        status: ExitStatus,
        events: &mut Vec<Event>,
    ) {
        let Some(id) = self.ghosts.remove(&pid) else {
            return;
        };
        self.words.take();
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        let connection = attempt.connection;
        if let Some(ghost) = &mut attempt.ghost {
            ghost.ended = Some((status, Instant::now()));
        }
        // The head's word may lie there already.
        if let Some(number) = connection
            && let Some(connection) = self.connections.get_mut(&number)
        {
            // A connection that is over is seen by the loop as well.
            let _ = connection.channel.receive();
            self.take_replies(poll, number, events);
        }
        self.settle(id, events);
    }

    /// Tells of a line that is over: its ghost has ended, and the head has said how, or can't.
    fn settle(&mut self, id: AttemptId, events: &mut Vec<Event>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        let Some(ghost) = &attempt.ghost else {
            return;
        };
        let Some((exit, since)) = &ghost.ended else {
            return;
        };
        let is_told = attempt.word.is_some()
            || ghost.failure.is_some()
            || attempt.connection.is_none()
            || since.elapsed() >= WORD_WAIT;
        if !is_told {
            return;
        }
        let (exit, pid) = (*exit, ghost.pid);
        let failure = ghost.failure.clone();
        let is_own = exit == ExitStatus::Exited(i32::from(EXIT_CLUSTER_FAILED))
            && self.words.tell_own_failure(pid);
        let Some(attempt) = self.attempts.remove(&id) else {
            return;
        };
        if let Some(connection) = attempt
            .connection
            .and_then(|number| self.connections.get_mut(&number))
        {
            connection.attempt = None;
        }
        let (status, usage) = match (attempt.word, failure) {
            (_, Some(reason)) => (Status::cluster_failed(reason), None),
            (Some((status, usage)), None) => (status, Some(usage)),
            (None, None) => (status_of(exit, is_own), None),
        };
        events.push(Event::Ended {
            attempt: id,
            status,
            usage,
        });
    }
}

impl Connection {
    fn watch_room(&mut self, poll: &Poll, number: u64) {
        let wants = self.channel.wants_write();
        if wants != self.waits_for_room {
            self.waits_for_room = wants;
            let interest = Interest::read_and(wants);
            // Can only fail for a connection that is not in the set.
            let _ = poll.modify(&self.channel, token(Kind::Head, number), interest);
        }
    }
}

fn connect(layout: &Layout, poll: &Poll, number: u64) -> Result<Connection, CommandError> {
    let channel = Head::connect_to(layout)?.into_ungreeted_channel();
    poll.add(&channel, token(Kind::Head, number), Interest::Read)?;
    let mut connection = Connection {
        channel,
        attempt: None,
        waits_for_room: false,
    };
    connection.watch_room(poll, number);
    Ok(connection)
}

/// What a ghost's end says without the head's word. 125 is the cluster's, unless the line's own.
fn status_of(exit: ExitStatus, is_own: bool) -> Status {
    match exit {
        ExitStatus::Exited(code) => match u8::try_from(code).unwrap_or(u8::MAX) {
            EXIT_CLUSTER_FAILED if !is_own => {
                Status::cluster_failed("the cluster failed while it ran")
            }
            code => Status::Exited(code),
        },
        ExitStatus::Signaled { signal, .. } => {
            Status::Signaled(u8::try_from(signal).unwrap_or(u8::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_alone_tells_what_its_line_did() {
        assert_eq!(status_of(ExitStatus::Exited(2), false), Status::Exited(2));
        let own = status_of(ExitStatus::Exited(125), true);
        assert_eq!(own, Status::Exited(125));
        let killed = ExitStatus::Signaled {
            signal: 9,
            core: false,
        };
        assert_eq!(status_of(killed, false), Status::Signaled(9));
        assert!(matches!(
            status_of(ExitStatus::Exited(125), false),
            Status::Failed { code: 125, .. }
        ));
    }
}
