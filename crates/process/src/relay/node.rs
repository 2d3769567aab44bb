//! The agent's end: the node's pipes and terminals of tasks, and the links to their deputies.
//!
//! It lives in the agent's loop. A link that breaks is dialled again, and its streams go on where
//! they were; the programs notice nothing but a pause.

mod dial;
mod incoming;
mod stdio;
mod task;
mod view;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use wiglaf_link::{Poll, Ready, Token, Traffic};
use wiglaf_wire::frame::Compression;
use wiglaf_wire::id::{DeputyId, TaskId};
use wiglaf_wire::launch::{StdioKind, WindowSize};
use wiglaf_wire::stream::{Relay, Stream};
use wiglaf_wire::view::{Answer, Change, Cut, Gift, Short};

use super::buffers::Buffers;
use dial::{Link, State};
pub use stdio::ChildStdio;
use task::Task;

/// How long a link is kept after its last task: the next command of the same user finds it, and
/// what the node knows of the head's files stays right meanwhile.
pub const LINK_LINGER: Duration = Duration::from_secs(600);
/// A link that can't be had again for so long is given up, and its tasks with it.
pub const RELINK_LIMIT: Duration = Duration::from_secs(60);

/// Where terminals are made, unless told otherwise.
const TERMINALS: &str = "/dev/pts";
/// Bytes of a terminal's output that nobody wants, read at once.
const DISCARD_BYTES: usize = 4096;

/// Why a task's streams can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Out of descriptors or memory, most likely.
    #[error("can't make the pipes of task {task}: {errno}")]
    Pipe {
        /// The task.
        task: TaskId,
        /// The operating system's word.
        errno: Errno,
    },
    /// No terminal to be had.
    #[error("can't make a terminal for task {task} in {}: {errno}", path.display())]
    Terminal {
        /// The task.
        task: TaskId,
        /// The file system of terminals.
        path: PathBuf,
        /// The operating system's word.
        errno: Errno,
    },
    /// It is open already.
    #[error("the streams of task {0} are open already")]
    Twice(TaskId),
}

/// What the agent has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// The main process has ended, and all that was written is on the head (P2).
    Drained(TaskId),
    /// The task can't be served: its deputy refuses it, or can't be reached.
    Lost(TaskId, String),
    /// A deputy answers a question of the view.
    Answered(DeputyId, Answer),
    /// A deputy says what has changed of what it told, in its place among the answers.
    Changed(DeputyId, Vec<Change>),
    /// A deputy tells what was not asked for, likewise.
    Given(DeputyId, Vec<Gift>),
    /// One of these, without pieces that this node has kept.
    Short(DeputyId, Short, Vec<Cut>),
}

/// The agent's end of all relays.
#[derive(Debug)]
pub struct NodeRelay {
    tokens: Tokens,
    tasks: HashMap<TaskId, Task>,
    links: HashMap<DeputyId, Link>,
    identity: Option<(SocketAddr, Arc<rustls::ClientConfig>)>,
    terminals: PathBuf,
    buffers: Buffers,
    serves_view: bool,
    compression: Compression,
    /// Whose links have something queued that may be sent late, if that is allowed.
    late: Vec<DeputyId>,
    may_be_late: bool,
    /// Not told yet: see [`NodeRelay::take_unlinked`].
    unlinked: Vec<DeputyId>,
}

/// Whose descriptor a token is.
#[derive(Clone, Copy, Debug)]
enum Target {
    Link(DeputyId),
    Stream(TaskId, Stream),
    Discard(TaskId),
}

#[derive(Debug)]
struct Tokens {
    first: u64,
    next: u64,
    targets: HashMap<u64, Target>,
}

impl Tokens {
    fn give(&mut self, target: Target) -> Token {
        let token = self.next;
        self.next += 1;
        self.targets.insert(token, target);
        Token(token)
    }

    fn forget(&mut self, token: Token) {
        self.targets.remove(&token.0);
    }
}

impl NodeRelay {
    /// None yet; epoll tokens from `first_token` on are its own.
    pub fn new(first_token: u64) -> NodeRelay {
        NodeRelay {
            tokens: Tokens {
                first: first_token,
                next: first_token,
                targets: HashMap::new(),
            },
            tasks: HashMap::new(),
            links: HashMap::new(),
            identity: None,
            terminals: TERMINALS.into(),
            buffers: Buffers::default(),
            serves_view: false,
            late: Vec::new(),
            may_be_late: false,
            compression: Compression::Adaptive,
            unlinked: Vec::new(),
        }
    }

    /// Whether [`NodeRelay::handle`] wants this token's readiness.
    pub fn owns(&self, token: Token) -> bool {
        token.0 >= self.tokens.first
    }

    /// Where deputies are dialled, and as whom.
    pub fn set_identity(&mut self, head: SocketAddr, config: Arc<rustls::ClientConfig>) {
        self.identity = Some((head, config));
    }

    /// When links that are dialled from now on compress what they carry, at both ends. Without a
    /// word: when that is sooner there.
    pub fn set_compression(&mut self, compression: Compression) {
        self.compression = compression;
    }

    /// What has gone over the link to a deputy since it was dialled, if it is up.
    pub fn traffic(&self, deputy: DeputyId) -> Option<Traffic> {
        match &self.links.get(&deputy)?.state {
            State::Up(carrier) => Some(carrier.tls().traffic()),
            State::Connecting(_) | State::Down => None,
        }
    }

    /// Where the tasks' `devpts` is mounted, as the agent sees it.
    pub fn set_terminals(&mut self, path: PathBuf) {
        self.terminals = path;
    }

    /// Makes a task's streams. Data flows when the link to the deputy is up; the pipes hold it
    /// meanwhile.
    ///
    /// # Errors
    /// [`RelayError`]: nothing is left behind.
    pub fn open(
        &mut self,
        poll: &Poll,
        task: TaskId,
        deputy: DeputyId,
        stdio: [StdioKind; 3],
        window: WindowSize,
    ) -> Result<ChildStdio, RelayError> {
        if self.tasks.contains_key(&task) {
            return Err(RelayError::Twice(task));
        }
        let (child, ends) = stdio::make(task, stdio, window, &self.terminals)?;
        let entry = ends.into_task(poll, task, deputy, &mut self.tokens);
        let wants_link = self.serves_view || stdio.iter().any(|kind| kind.has_descriptor());
        self.tasks.insert(task, entry);
        if wants_link {
            let link = self.links.entry(deputy).or_default();
            link.tasks.insert(task);
            link.idle_since = None;
            match &mut link.state {
                State::Up(carrier) => {
                    attach(self.tasks.get_mut(&task), carrier);
                    // With a view a question follows at once, which takes it along.
                    if !self.serves_view {
                        self.settle(poll, deputy);
                    }
                }
                State::Connecting(_) => {}
                State::Down => self.dial(poll, deputy),
            }
        }
        Ok(child)
    }

    /// Something of ours is ready.
    pub fn handle(&mut self, poll: &Poll, ready: Ready, events: &mut Vec<RelayEvent>) {
        match self.tokens.targets.get(&ready.token.0).copied() {
            Some(Target::Link(deputy)) => self.link_ready(poll, deputy, ready, events),
            Some(Target::Stream(task, stream)) => self.stream_ready(poll, task, stream, events),
            Some(Target::Discard(task)) => self.discard(poll, task),
            // Closed by what was handled before in the same round.
            None => {}
        }
    }

    /// When [`NodeRelay::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.links
            .values()
            .filter_map(|link| link.deadline(self.identity.is_some()))
            .min()
    }

    /// Does what is due: dials again, gives up, lets idle links go.
    pub fn tick(&mut self, poll: &Poll, events: &mut Vec<RelayEvent>) {
        let now = Instant::now();
        let can_dial = self.identity.is_some();
        let due = |link: &Link| link.deadline(can_dial).is_some_and(|at| at <= now);
        let links: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| due(link))
            .map(|(id, _)| *id)
            .collect();
        for deputy in links {
            self.link_due(poll, deputy, now, events);
        }
    }

    /// The main process has ended. Nobody reads its standard input any more; when all outputs are
    /// at their end and passed on, [`RelayEvent::Drained`] follows, perhaps at once.
    pub fn main_ended(&mut self, poll: &Poll, task: TaskId, events: &mut Vec<RelayEvent>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        entry.main_ended = true;
        let deputy = entry.deputy;
        let carrier = self.links.get_mut(&deputy).and_then(Link::carrier);
        entry.streams.break_sink(poll, Stream::Input, carrier);
        self.settle(poll, deputy);
        self.check_drained(task, events);
    }

    /// Takes what the outputs hold now for their end: what the task left running may go on, and
    /// keep them open, but is not relayed any more.
    pub fn cut_outputs(&mut self, poll: &Poll, task: TaskId, events: &mut Vec<RelayEvent>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let deputy = entry.deputy;
        let carrier = self.links.get_mut(&deputy).and_then(Link::carrier);
        entry.streams.cut_sources(poll, carrier, &mut self.buffers);
        self.settle(poll, deputy);
        self.check_drained(task, events);
    }

    /// Forgets a task and closes its descriptors.
    pub fn close(&mut self, poll: &Poll, task: TaskId) {
        let Some(mut entry) = self.tasks.remove(&task) else {
            return;
        };
        self.forget_descriptors(poll, &mut entry);
        if let Some(link) = self.links.get_mut(&entry.deputy) {
            link.tasks.remove(&task);
            if link.tasks.is_empty() {
                link.idle_since = Some(Instant::now());
            }
        }
        if self.tasks.is_empty() {
            self.buffers.clear();
        }
    }

    /// The tasks whose streams are open.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.keys().copied()
    }

    fn forget_descriptors(&mut self, poll: &Poll, entry: &mut Task) {
        entry
            .streams
            .tokens()
            .for_each(|token| self.tokens.forget(token));
        entry.streams.close(poll);
        entry.terminal = None;
        if let Some((fd, token)) = entry.discard.take() {
            let _ = poll.remove(fd);
            self.tokens.forget(token);
        }
    }

    fn stream_ready(
        &mut self,
        poll: &Poll,
        task: TaskId,
        stream: Stream,
        events: &mut Vec<RelayEvent>,
    ) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let deputy = entry.deputy;
        let carrier = self.links.get_mut(&deputy).and_then(Link::carrier);
        entry
            .streams
            .ready(poll, stream, carrier, &mut self.buffers);
        if self.may_be_late && entry.streams.is_closed(stream) {
            // The other output ends in a moment, most likely.
            self.late.push(deputy);
        } else {
            self.settle(poll, deputy);
        }
        self.check_drained(task, events);
    }

    /// From now on the end of an output waits a moment for another's: [`NodeRelay::send_late`] is
    /// called.
    pub fn set_may_be_late(&mut self) {
        self.may_be_late = true;
    }

    /// Whether there is something for [`NodeRelay::send_late`].
    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Sends what was worth waiting a moment with, for others to go with it. To be called before
    /// the loop sleeps.
    pub fn send_late(&mut self, poll: &Poll) {
        for deputy in std::mem::take(&mut self.late) {
            self.settle(poll, deputy);
        }
    }

    fn discard(&mut self, poll: &Poll, task: TaskId) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some((fd, token)) = &entry.discard else {
            return;
        };
        match rustix::io::read(fd, &mut [0; DISCARD_BYTES]) {
            Ok(read) if read > 0 => {}
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                let _ = poll.remove(fd);
                self.tokens.forget(*token);
                entry.discard = None;
            }
        }
    }

    fn check_drained(&mut self, task: TaskId, events: &mut Vec<RelayEvent>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        if entry.main_ended && !entry.settled && entry.streams.sources_are_done() {
            entry.settled = true;
            events.push(RelayEvent::Drained(task));
        }
    }
}

fn attach(entry: Option<&mut Task>, carrier: &mut super::carrier::Carrier) {
    if let Some(entry) = entry {
        carrier.say(&Relay::Attach {
            task: entry.streams.task,
        });
        entry.streams.link(carrier);
    }
}
