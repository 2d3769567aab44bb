//! The deputy: the process on the head that acts with exactly one user's rights. It relays the
//! standard streams that the launcher passed to it, and answers the questions of the view.
//!
//! It trusts the head, which names tasks and nodes, and nobody else: a node gets the streams of a
//! task only if the head said that the task runs there (S3). It outlives the head daemon; when
//! the keeper dies, its tasks are over, and so is it.

mod kept;
mod links;
mod task;
mod view;

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use wiglaf_link::{Channel, Interest, LinkError, NodeIdentity, Poll, Ready, Token, TrustError};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{NodeId, TaskId};
use wiglaf_wire::stream::Stream;

use crate::relay::buffers::Buffers;
use links::Link;
pub use links::LinkId;
use task::Task;
pub use view::{Files, NoFiles, Told};

/// The byte on the control socket that comes with a new channel to the head.
pub const CONTROL_CHANNEL: u8 = b'C';
/// The byte on the control socket that ends the deputy without a word (an orderly shutdown).
pub const CONTROL_END: u8 = b'E';

/// How long an agent's `Attach` waits for the head's: the two come by different ways.
pub const ATTACH_WAIT: Duration = Duration::from_secs(5);
/// Longest time for which a node without tasks may compare what it believes with the truth.
const MAX_CHECK: Duration = Duration::from_secs(600);
/// How long the last words to the tasks' users may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// Descriptors that come with one byte on the control socket.
const CONTROL_DESCRIPTORS: usize = 1;

const CONTROL_TOKEN: Token = Token(0);
const HEAD_TOKEN: Token = Token(1);
const WATCH_TOKEN: Token = Token(2);
const FIRST_OWN_TOKEN: u64 = 3;

const KEEPER_DIED: &str = "the keeper has died; this task was ended";

/// Why a deputy can't go on.
#[derive(Debug, thiserror::Error)]
pub enum DeputyError {
    /// Its epoll set or control socket is unusable.
    #[error("the deputy's event loop failed: {0}")]
    Loop(#[from] Errno),
}

/// Runs the deputy in this process, which is its own and has the user's rights, until the keeper
/// ends it or dies. It serves `files`.
pub fn run_with(control: OwnedFd, files: Box<dyn Files>) -> ! {
    let code = match serve_with(control, files) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    std::process::exit(code)
}

/// As [`run_with`], without files.
pub fn run(control: OwnedFd) -> ! {
    run_with(control, Box::new(NoFiles(Errno::NOSYS)))
}

/// As [`run`], but returns: for tests, in a thread.
///
/// # Errors
/// [`DeputyError`].
pub fn serve(control: OwnedFd) -> Result<(), DeputyError> {
    serve_with(control, Box::new(NoFiles(Errno::NOSYS)))
}

/// As [`run_with`], but returns: for tests, in a thread.
///
/// # Errors
/// [`DeputyError`].
pub fn serve_with(control: OwnedFd, files: Box<dyn Files>) -> Result<(), DeputyError> {
    let mut deputy = Deputy::new(control, files)?;
    let mut ready = Vec::new();
    loop {
        let timeout = if deputy.has_questions() || deputy.has_gifts() {
            Some(Duration::ZERO)
        } else {
            [deputy.deadline(), deputy.files.deadline()]
                .into_iter()
                .flatten()
                .min()
                .map(|at| at.saturating_duration_since(Instant::now()))
        };
        deputy.poll.wait(&mut ready, timeout)?;
        for &event in &ready {
            if event.token == CONTROL_TOKEN {
                match deputy.take_control() {
                    Control::Go => {}
                    Control::End => return Ok(()),
                    Control::KeeperDied => return deputy.farewell(),
                }
            } else {
                deputy.handle(event);
            }
        }
        if std::mem::take(&mut deputy.has_written_files) {
            deputy.tell_changes();
        }
        deputy.answer_questions();
        deputy.give();
        deputy.tick();
        deputy.tick_files();
    }
}

/// What the control socket said.
enum Control {
    Go,
    End,
    KeeperDied,
}

type HeadChannel = Channel<ToDeputy, FromDeputy>;

#[derive(Debug)]
struct Deputy {
    poll: Poll,
    control: OwnedFd,
    head: Option<HeadChannel>,
    head_waits_for_room: bool,
    identity: Option<Arc<rustls::ServerConfig>>,
    tasks: HashMap<TaskId, Task>,
    links: HashMap<LinkId, Link>,
    tokens: Tokens,
    buffers: Buffers,
    files: Box<dyn Files>,
    /// Until when nodes may check their views.
    checks: HashMap<NodeId, Instant>,
    /// [`Files::wrote`] was called.
    has_written_files: bool,
}

/// Whose descriptor a token is.
#[derive(Clone, Copy, Debug)]
enum Target {
    Link(LinkId),
    Stream(TaskId, Stream),
}

#[derive(Debug)]
struct Tokens {
    next: u64,
    targets: HashMap<u64, Target>,
}

impl Tokens {
    fn give(&mut self, target: impl FnOnce(u64) -> Target) -> Token {
        let token = self.next;
        self.next += 1;
        self.targets.insert(token, target(token));
        Token(token)
    }

    fn forget(&mut self, token: Token) {
        self.targets.remove(&token.0);
    }
}

impl Deputy {
    fn new(control: OwnedFd, files: Box<dyn Files>) -> Result<Deputy, Errno> {
        rustix::io::ioctl_fionbio(&control, true)?;
        let poll = Poll::new()?;
        poll.add(&control, CONTROL_TOKEN, Interest::Read)?;
        if let Some(watch) = files.watch_fd() {
            poll.add(watch, WATCH_TOKEN, Interest::Read)?;
        }
        Ok(Deputy {
            poll,
            control,
            head: None,
            head_waits_for_room: false,
            identity: None,
            tasks: HashMap::new(),
            links: HashMap::new(),
            tokens: Tokens {
                next: FIRST_OWN_TOKEN,
                targets: HashMap::new(),
            },
            buffers: Buffers::default(),
            files,
            checks: HashMap::new(),
            has_written_files: false,
        })
    }

    fn handle(&mut self, ready: Ready) {
        if ready.token == HEAD_TOKEN {
            return self.head_ready(ready);
        }
        if ready.token == WATCH_TOKEN {
            return self.tell_changes();
        }
        match self.tokens.targets.get(&ready.token.0).copied() {
            Some(Target::Link(link)) => self.link_ready(link, ready),
            Some(Target::Stream(task, stream)) => self.stream_ready(task, stream),
            // Closed by what was handled before in the same round.
            None => {}
        }
    }

    fn take_control(&mut self) -> Control {
        let mut byte = [0];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CONTROL_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut into = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(&self.control, &mut into, &mut ancillary, flags) {
            Ok(message) if message.bytes == 0 => return Control::KeeperDied,
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Control::Go,
            Err(_) => return Control::KeeperDied,
        }
        let mut channel = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                channel = rights.last().or(channel);
            }
        }
        match (byte[0], channel) {
            (_, Some(socket)) => self.set_head(socket),
            (CONTROL_END, None) => return Control::End,
            (_, None) => {}
        }
        Control::Go
    }

    /// A new head, or the first: it is told what there is, and replaces the one before.
    fn set_head(&mut self, socket: OwnedFd) {
        self.drop_head();
        let Ok(mut head) = HeadChannel::new(socket) else {
            return;
        };
        if self.poll.add(&head, HEAD_TOKEN, Interest::Read).is_err() {
            return;
        }
        let tasks = self.tasks.keys().copied().collect();
        // A failure is seen when the loop reads.
        let _ = head.send(&FromDeputy::Ready { tasks }, vec![]);
        self.head = Some(head);
        self.settle_head();
    }

    fn drop_head(&mut self) {
        if let Some(head) = self.head.take() {
            let _ = self.poll.remove(&head);
        }
        self.head_waits_for_room = false;
    }

    /// Takes what the head has said, without waiting.
    fn hear_head(&mut self) {
        self.head_ready(Ready {
            token: HEAD_TOKEN,
            readable: true,
            writable: false,
            hung_up: false,
        });
    }

    fn head_ready(&mut self, ready: Ready) {
        let Some(head) = &mut self.head else { return };
        let mut received = head.flush();
        if ready.readable && received.is_ok() {
            received = head.receive().map(|_| ());
        }
        let mut taken = self.take_messages();
        if taken.is_ok() {
            taken = received;
        }
        match taken {
            Ok(()) => self.settle_head(),
            // A restarted head comes by a new channel; the tasks go on meanwhile.
            Err(_) => self.drop_head(),
        }
    }

    fn take_messages(&mut self) -> Result<(), LinkError> {
        while let Some(head) = &mut self.head {
            let Some(message) = head.next_message()? else {
                break;
            };
            self.obey(message)?;
        }
        Ok(())
    }

    fn settle_head(&mut self) {
        let Some(head) = &mut self.head else { return };
        let waits = head.wants_write();
        if waits != self.head_waits_for_room {
            self.head_waits_for_room = waits;
            // Fails only for a set that is broken itself.
            let _ = self
                .poll
                .modify(&*head, HEAD_TOKEN, Interest::read_and(waits));
        }
    }

    fn tell_head(&mut self, message: &FromDeputy) {
        if let Some(head) = &mut self.head {
            // A failure is seen when the loop reads.
            let _ = head.send(message, vec![]);
            self.settle_head();
        }
    }

    fn obey(&mut self, message: ToDeputy) -> Result<(), LinkError> {
        match message {
            ToDeputy::Identity {
                certificate,
                key,
                authority,
            } => {
                let identity = NodeIdentity {
                    certificate: certificate.into(),
                    key,
                    authority: authority.into(),
                };
                // Without a usable identity every link is refused, and the agents say so.
                let config: Result<_, TrustError> = wiglaf_link::server_config(&identity, false);
                self.identity = config.ok().or(self.identity.take());
            }
            ToDeputy::Attach { task, node, stdio } => {
                let mut fds = [const { None }; 3];
                for stream in Stream::ALL {
                    if stdio[stream.index()].has_descriptor()
                        && let Some(head) = &mut self.head
                    {
                        fds[stream.index()] = Some(head.descriptors().take()?);
                    }
                }
                self.attach(task, node, stdio, fds);
            }
            ToDeputy::Link => {
                if let Some(head) = &mut self.head {
                    let socket = head.descriptors().take()?;
                    self.accept(socket);
                }
            }
            ToDeputy::Say { task, text } => self.say(task, &text),
            ToDeputy::Undo { task } => self.undo(task),
            ToDeputy::Detach { task } => self.detach(task),
            ToDeputy::AllowCheck { node, for_ms } => {
                let until = Instant::now() + Duration::from_millis(for_ms).min(MAX_CHECK);
                self.checks.insert(node, until);
            }
            ToDeputy::WindowChanged { task } => self.window_changed(task),
            ToDeputy::Fenced { node } => self.drop_links_of(node),
        }
        Ok(())
    }

    fn detach(&mut self, task: TaskId) {
        let Some(mut entry) = self.tasks.remove(&task) else {
            return;
        };
        self.files.keep(task);
        entry
            .streams
            .tokens()
            .for_each(|token| self.tokens.forget(token));
        entry.streams.close(&self.poll);
        if self.tasks.is_empty() {
            self.buffers.clear();
        }
    }

    /// The keeper is dead, and with it the ghosts: what has arrived is written, and why it ends.
    fn farewell(&mut self) -> Result<(), DeputyError> {
        let tasks: Vec<_> = self.tasks.keys().copied().collect();
        self.drop_head();
        for task in tasks {
            self.say(task, KEEPER_DIED);
        }
        self.poll.remove(self.control.as_fd())?;
        let until = Instant::now() + FAREWELL_LIMIT;
        let mut ready = Vec::new();
        while self.tasks.values().any(Task::is_speaking) && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            self.poll.wait(&mut ready, Some(left))?;
            for &event in &ready {
                self.handle(event);
            }
        }
        Ok(())
    }
}
