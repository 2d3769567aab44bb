//! The keeper: a small process that outlives the head daemon. It traces the ghosts, is the
//! parent of the deputies, and gives both back to a restarted head.
//!
//! It is single-threaded, because ptrace is per thread and because it forks. `ghost` decides
//! (pure), `traced` does what it decided, `deputies`, `marks` and `daemon` are the rest of the
//! shell.

mod daemon;
mod deputies;
mod ghost;
mod held;
mod marking;
mod marks;
mod seize;
mod traced;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use wiglaf_link::{Channel, Interest, LinkError, Poll, Ready, Token};
use wiglaf_linux::detach::DetachError;
use wiglaf_linux::signal::SignalFd;
use wiglaf_linux::trace::Tracer;
use wiglaf_wire::id::{DeputyId, TaskId};
use wiglaf_wire::keeper::{FromKeeper, GhostEnd, GhostReport, ToKeeper};
use wiglaf_wire::launch::Credential;
use wiglaf_wire::status::EXIT_CLUSTER_FAILED;

use self::daemon::log;
pub use self::deputies::Outfit;
use self::deputies::{Deputies, Newborn};
use self::ghost::Event;
use self::marking::Marking;
pub use self::marks::{Marks, Unwatched, mark_all, unwatched};
use self::traced::{Asked, Traced};

/// A ghost that was told to end has this long; then it is killed.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
/// A keeper that was told to shut down is gone after this, whatever hangs.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Deputies that were asked to end have this long; then they are killed.
const DEPUTY_END_TIMEOUT: Duration = Duration::from_secs(1);
/// Stops that are looked at before other descriptors get their turn.
const STOPS_PER_TURN: usize = 256;
/// Messages of one head are read this many at a time when it is replaced or has hung up.
const LAST_READS: usize = 1024;

/// Records in one part of an inventory; one record is at most half a frame, so both fit.
const INVENTORY_PART_BYTES: usize = 1 << 20;

/// What a keeper is started with.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// Where the head connects, `<run>/keeper.sock`. Made with mode 0600.
    pub socket: PathBuf,
    /// User and group that deputies run as while they have a caller's rights. `None` when the
    /// cluster is rootless: then they are ordinary processes of its one user.
    pub service: Option<(u32, u32)>,
    /// A deputy's life: what a forked child does once it has its rights.
    pub deputy: fn(Outfit) -> !,
    /// Directories that no node may see.
    pub hidden: Vec<PathBuf>,
}

/// Why a keeper does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another one answers on the socket.
    #[error("a keeper is already running: something listens on {}", .0.display())]
    AlreadyRunning(PathBuf),
    /// The socket can't be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something that a daemon needs of the kernel.
    #[error("cannot {what}: {errno}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// It can't become a daemon of its own.
    #[error(transparent)]
    Detach(#[from] DetachError),
}

/// Makes this process the keeper, until a head sends [`ToKeeper::Shutdown`].
///
/// The process must have one thread, and must not need its terminal, its signals or its standard
/// input and output any more; standard error is the log.
///
/// # Errors
/// It can't start, or its epoll set is broken.
pub fn run(config: KeeperConfig) -> Result<(), KeeperError> {
    let signals = daemon::detach_from_starter()?;
    let listener = daemon::listen(&config.socket)?;
    let (service, deputy, hidden) = (config.service, config.deputy, config.hidden.clone());
    let mut keeper = Keeper::new(config, listener, signals)?;
    match keeper.serve()? {
        Outcome::Shutdown => {
            keeper.leave();
            Ok(())
        }
        Outcome::Child(child) => {
            // Closes all that is the keeper's. A ghost would not see the keeper's end while its
            // control socket lived on in a deputy.
            drop(keeper);
            match child {
                ForkedChild::Deputy(newborn) => newborn.live(service, deputy, hidden),
                ForkedChild::Marking(marking) => marking.mark(),
            }
        }
    }
}

const LISTENER: Token = Token(0);
const SIGNALS: Token = Token(1);
const FIRST_DYNAMIC_TOKEN: u64 = 2;

/// What a dynamic token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    Head,
    Ghost(TaskId),
    /// Seized by mistake, and dead before it could be let go.
    Released(i32),
    Deputy(DeputyId),
    /// A deputy's questions about the mount table.
    Looks(DeputyId),
    /// A fork that looks at the mount table for a deputy.
    Marking(DeputyId, i32),
}

/// How [`Keeper::serve`] returns, and in which process.
enum Outcome {
    /// The keeper has done its work.
    Shutdown,
    /// This is a fork of the keeper.
    Child(ForkedChild),
}

/// What a fork of the keeper is to be.
enum ForkedChild {
    Deputy(Newborn),
    Marking(Marking),
}

type HeadChannel = Channel<ToKeeper, FromKeeper>;

struct Head {
    channel: HeadChannel,
    token: Token,
    waits_for_room: bool,
    /// It does not take what it is sent. It is dropped at the end of the turn, since what it sent
    /// before is still to be obeyed.
    deaf: bool,
}

struct Keeper {
    config: KeeperConfig,
    poll: Poll,
    listener: UnixListener,
    signals: SignalFd,
    tracer: Tracer,
    head: Option<Head>,
    ghosts: BTreeMap<TaskId, Traced>,
    tasks: BTreeMap<i32, TaskId>,
    released: BTreeMap<i32, OwnedFd>,
    deputies: Deputies,
    /// Asked for, and forked at the top of the loop: a child must not find itself in mid-message.
    wanted_deputies: VecDeque<(DeputyId, Credential)>,
    /// The deputies for which the mount table is to be looked at, likewise.
    wanted_marks: VecDeque<DeputyId>,
    /// The forks that look now.
    markings: BTreeMap<i32, OwnedFd>,
    watched: BTreeMap<Token, Watched>,
    next_token: u64,
    /// When `Shutdown` came.
    shutdown: Option<Instant>,
}

impl Keeper {
    fn new(
        config: KeeperConfig,
        listener: UnixListener,
        signals: SignalFd,
    ) -> Result<Keeper, KeeperError> {
        let setup = |errno| KeeperError::Setup {
            what: "make an epoll set",
            errno,
        };
        let poll = Poll::new().map_err(setup)?;
        poll.add(&listener, LISTENER, Interest::Read)
            .map_err(setup)?;
        poll.add(&signals, SIGNALS, Interest::Read).map_err(setup)?;
        Ok(Keeper {
            config,
            poll,
            listener,
            signals,
            tracer: Tracer::new(),
            head: None,
            ghosts: BTreeMap::new(),
            tasks: BTreeMap::new(),
            released: BTreeMap::new(),
            deputies: Deputies::default(),
            wanted_deputies: VecDeque::new(),
            wanted_marks: VecDeque::new(),
            markings: BTreeMap::new(),
            watched: BTreeMap::new(),
            next_token: FIRST_DYNAMIC_TOKEN,
            shutdown: None,
        })
    }

    fn serve(&mut self) -> Result<Outcome, KeeperError> {
        let mut ready = Vec::new();
        let mut more_stops = false;
        while !self.is_over() {
            let timeout = if more_stops {
                Some(Duration::ZERO)
            } else {
                self.next_deadline()
            };
            self.poll
                .wait(&mut ready, timeout)
                .map_err(|errno| KeeperError::Setup {
                    what: "wait for events",
                    errno,
                })?;
            for one in &ready {
                self.dispatch(*one);
            }
            more_stops = self.look_at_stops();
            while let Some((number, credential)) = self.wanted_deputies.pop_front() {
                if let Some(newborn) = self.start_deputy(number, credential) {
                    return Ok(Outcome::Child(ForkedChild::Deputy(newborn)));
                }
            }
            while let Some(number) = self.wanted_marks.pop_front() {
                if let Some(marking) = self.start_marking(number) {
                    return Ok(Outcome::Child(ForkedChild::Marking(marking)));
                }
            }
            self.kill_overdue();
            self.flush_head();
        }
        Ok(Outcome::Shutdown)
    }

    fn dispatch(&mut self, ready: Ready) {
        match ready.token {
            LISTENER => self.accept_head(),
            SIGNALS => daemon::drain(&self.signals),
            token => match self.watched.get(&token).copied() {
                Some(Watched::Head) => self.read_head(),
                Some(Watched::Ghost(task)) => self.ghost_died(task),
                Some(Watched::Released(pid)) => self.forget_released(pid),
                Some(Watched::Deputy(deputy)) => self.deputy_ended(deputy),
                Some(Watched::Looks(deputy)) => self.deputy_asks_to_look(deputy),
                Some(Watched::Marking(deputy, pid)) => self.marking_ended(token, deputy, pid),
                None => {}
            },
        }
    }

    fn watch(&mut self, fd: impl AsFd, watched: Watched) -> Result<Token, Errno> {
        let token = Token(self.next_token);
        self.poll.add(fd, token, Interest::Read)?;
        self.next_token += 1;
        self.watched.insert(token, watched);
        Ok(token)
    }

    // --- the head -------------------------------------------------------------------------

    fn accept_head(&mut self) {
        let Ok((socket, _)) = self.listener.accept() else {
            return;
        };
        match daemon::peer_is_trusted(&socket) {
            Ok(true) => {}
            Ok(false) => return log("refused a connection of another user"),
            Err(errno) => return log(&format!("a connection has no credentials: {errno}")),
        }
        // What the old head had still sent counts, as if it had been read in time.
        self.read_head_to_end();
        self.drop_head();
        let welcomed = Channel::new(socket.into()).and_then(|channel| {
            let token = self.watch(&channel, Watched::Head)?;
            self.head = Some(Head {
                channel,
                token,
                waits_for_room: false,
                deaf: false,
            });
            Ok(())
        });
        if let Err(error) = welcomed {
            return log(&format!("a head could not be served: {error}"));
        }
        self.tell_all();
    }

    /// The inventory, then what was held while no head was there, then the deputies' channels.
    fn tell_all(&mut self) {
        // In parts, because thousands of records do not fit into one frame.
        let mut part = Vec::new();
        let mut parts = Vec::new();
        let mut bytes = 0;
        for (task, traced) in &self.ghosts {
            bytes += traced.record.len();
            part.push(GhostReport {
                task: *task,
                pid: traced.pid,
                record: traced.record.clone(),
                died: traced.died(),
            });
            if bytes > INVENTORY_PART_BYTES {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
        }
        parts.push(part);
        let count = parts.len();
        for (number, ghosts) in (1..).zip(parts) {
            let (deputies, last) = (self.deputies.list(), number == count);
            let inventory = FromKeeper::Inventory {
                ghosts,
                deputies,
                last,
            };
            self.tell(&inventory, vec![]);
        }
        for task in self.ghosts.keys().copied().collect::<Vec<_>>() {
            let held = self
                .ghosts
                .get_mut(&task)
                .map(|traced| traced.held.release());
            for report in held.into_iter().flatten() {
                self.report(task, report);
            }
        }
        for deputy in self.deputies.numbers() {
            self.give_channel(deputy);
        }
    }

    fn read_head(&mut self) {
        let Some(head) = &mut self.head else { return };
        let token = head.token;
        let mut outcome = head.channel.receive().map(|_| ());
        loop {
            let Some(head) = self.head.as_mut().filter(|head| head.token == token) else {
                return;
            };
            match head.channel.next_message() {
                Ok(Some(message)) => {
                    if let Err(error) = self.obey(message) {
                        outcome = Err(error);
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        match outcome {
            Ok(()) => {}
            Err(LinkError::Closed) => self.drop_head(),
            Err(error) => {
                log(&format!("the head's connection is given up: {error}"));
                self.drop_head();
            }
        }
    }

    /// Reads until nothing is there; a head that keeps sending is cut off.
    fn read_head_to_end(&mut self) {
        for _ in 0..LAST_READS {
            let Some(head) = &self.head else { return };
            let mut poll = [rustix::event::PollFd::new(
                &head.channel,
                rustix::event::PollFlags::IN,
            )];
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if !matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(1..)) {
                return;
            }
            self.read_head();
        }
    }

    fn drop_head(&mut self) {
        if let Some(head) = self.head.take() {
            self.watched.remove(&head.token);
            let _ = self.poll.remove(&head.channel);
        }
    }

    fn flush_head(&mut self) {
        let Some(head) = &mut self.head else { return };
        let mut is_lost = head.deaf || head.channel.flush().is_err();
        let waits = head.channel.wants_write();
        if waits != head.waits_for_room {
            head.waits_for_room = waits;
            let interest = Interest::read_and(waits);
            let modified = self.poll.modify(&head.channel, head.token, interest);
            is_lost |= modified.is_err();
        }
        if is_lost {
            self.read_head_to_end();
            self.drop_head();
        }
    }

    /// Whether the message is on its way.
    fn tell(&mut self, message: &FromKeeper, descriptors: Vec<OwnedFd>) -> bool {
        let Some(head) = self.head.as_mut().filter(|head| !head.deaf) else {
            return false;
        };
        match head.channel.send(message, descriptors) {
            Ok(()) => true,
            Err(error) => {
                head.deaf = true;
                log(&format!("the head can't be told: {error}"));
                false
            }
        }
    }

    // --- what the head asks for -----------------------------------------------------------

    fn obey(&mut self, message: ToKeeper) -> Result<(), LinkError> {
        match message {
            ToKeeper::Seize {
                task,
                pid,
                uid,
                start_time,
                mode,
                record,
            } => {
                let control = self
                    .head
                    .as_mut()
                    .ok_or(LinkError::Closed)?
                    .channel
                    .descriptors()
                    .take()?;
                self.seize(
                    Asked {
                        task,
                        pid,
                        uid,
                        start_time,
                        mode,
                        record,
                    },
                    control,
                );
            }
            ToKeeper::Record { task, record } => {
                if let Some(traced) = self.ghosts.get_mut(&task) {
                    traced.record = record;
                }
            }
            ToKeeper::Finish { task, end, text } => self.finish(task, end, text),
            ToKeeper::Stop { task, signal } => self.apply(task, Event::Stop(signal)),
            ToKeeper::Continue { task } => self.apply(task, Event::Continue),
            ToKeeper::StartDeputy { deputy, credential } => {
                self.wanted_deputies.push_back((deputy, credential));
            }
            ToKeeper::Shutdown { text } => self.begin_shutdown(&text),
        }
        Ok(())
    }

    fn finish(&mut self, task: TaskId, end: GhostEnd, text: Option<String>) {
        if let Some(traced) = self.ghosts.get_mut(&task) {
            traced
                .deadline
                .get_or_insert(Instant::now() + FINISH_TIMEOUT);
        }
        self.apply(task, Event::Finish(end, text));
    }

    fn begin_shutdown(&mut self, text: &str) {
        self.shutdown.get_or_insert(Instant::now());
        for task in self.ghosts.keys().copied().collect::<Vec<_>>() {
            self.finish(
                task,
                GhostEnd::Exit(EXIT_CLUSTER_FAILED),
                Some(text.to_owned()),
            );
        }
    }

    // --- time -----------------------------------------------------------------------------

    fn next_deadline(&self) -> Option<Duration> {
        let ghosts = self.ghosts.values().filter_map(|traced| traced.deadline);
        let shutdown = self.shutdown.map(|since| since + SHUTDOWN_TIMEOUT);
        let next = ghosts.chain(shutdown).min()?;
        // A millisecond more, since epoll's clock may be coarser than ours.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn kill_overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<_> = self
            .ghosts
            .iter_mut()
            .filter(|(_, traced)| traced.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(task, traced)| {
                // SIGKILL needs no second try; its death will be seen.
                traced.deadline = None;
                *task
            })
            .collect();
        for task in overdue {
            log(&format!(
                "the ghost of task {task} did not end by itself and is killed"
            ));
            self.apply(task, Event::Overdue);
        }
    }

    fn is_over(&self) -> bool {
        self.shutdown
            .is_some_and(|since| self.ghosts.is_empty() || since.elapsed() > SHUTDOWN_TIMEOUT)
    }

    /// After the last ghost.
    fn leave(&mut self) {
        self.kill_markings();
        self.deputies.end_all(DEPUTY_END_TIMEOUT);
        let _ = std::fs::remove_file(&self.config.socket);
        if let Some(head) = &mut self.head {
            // Best effort: the head learns of the end by the hang-up in any case.
            let _ = head.channel.flush();
        }
    }
}
