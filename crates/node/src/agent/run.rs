//! The agent's loop: sockets, clock and processes around [`super::core`]. Here it is made and
//! turns; the modules have what happens in a turn.

mod config;
mod disks;
mod effects;
mod head;
mod joining;
mod keeping;
mod names;
mod ready;
mod tasks;
mod wait;

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use rustls::ClientConfig;
use wiglaf_link::{Interest, Poll, Token, client_config};
use wiglaf_linux::namespace::{NamespaceFlags, setns, unshare};
use wiglaf_linux::process::set_process_title;
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};
use wiglaf_process::relay::node::NodeRelay;
use wiglaf_wire::agent::PowerAction;
use wiglaf_wire::frame::Compression;
use wiglaf_wire::id::Incarnation;

use super::clock::HeadClock;
use super::core::{Core, Event};
use super::disk::Disks;
use super::kept::SharedStore;
use super::link::HeadLink;
use super::machine;
use super::mains::Mains;
use super::names::Kind;
use super::pids::PidBlock;
use super::private::{Makers, Privates};
use super::spawner::Spawner;
use super::view::{NodeViewError, Views};
use super::watchdog::Watchdog;
use crate::root::{Files, NameFiles, OwnDirectories, TaskRoot};

use joining::{join_as_booted, join_at_last};
use keeping::{Keeping, Place};

pub(crate) use config::Departure;
pub use config::{AgentConfig, AgentError, Trust};

const LINK: Token = Token(0);
const SIGNALS: Token = Token(1);
const SPAWNER: Token = Token(2);
const WATCHDOG: Token = Token(3);
const EMPTIED: Token = Token(4);
const DISKS: Token = Token(5);
const KEPT: Token = Token(6);
const FIRST_RELAY_TOKEN: u64 = 16;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;

/// How often the PID cursor is looked at while tasks, which may fork, are alive.
const CURSOR_PERIOD: Duration = Duration::from_secs(2);

/// Runs an agent in this process, which is PID 1 of its namespace and has one thread, until the
/// head has it leave. When the process ends, so do all tasks.
///
/// # Errors
/// [`AgentError`]: it can't be an agent, or the head refuses it.
pub fn run(config: AgentConfig) -> Result<(), AgentError> {
    live(config, false).map(|_| ())
}

/// As [`run`]; with `may_be_asked`, SIGTERM and SIGINT make it leave in an orderly way.
pub(crate) fn live(config: AgentConfig, may_be_asked: bool) -> Result<Departure, AgentError> {
    let own_pid = std::process::id();
    if own_pid != 1 {
        return Err(AgentError::NotInit(own_pid));
    }
    let mut handled = SignalSet::of(&[SIGCHLD]);
    if may_be_asked {
        handled = handled.with(SIGTERM).with(SIGINT);
    }
    // Before the first thread, which inherits it.
    block_signals(handled);
    let signals = SignalFd::new(handled)?;
    let watchdog = match config.files {
        Files::View(_) => Some(Watchdog::start().map_err(AgentError::Watchdog)?),
        Files::Disk(_) => None,
    };
    let title = config
        .name
        .clone()
        .unwrap_or_else(|| config.address.clone());
    entitle(&title);
    let identity = match &config.trust {
        Trust::Identity(identity) => client_config(identity)?,
        Trust::Token(token) => match join_at_last(&config, token, &signals)? {
            Some(identity) => client_config(&identity)?,
            None => return Ok(Departure::Left),
        },
        Trust::Booted {
            authority,
            mac,
            boot,
        } => match join_as_booted(&config, *authority, *mac, *boot, &signals)? {
            Some(identity) => client_config(&identity)?,
            None => return Ok(Departure::Left),
        },
    };
    Agent::new(config, identity, signals, watchdog, title)?.run()
}

struct Agent {
    head: SocketAddr,
    identity: Arc<ClientConfig>,
    rootless: bool,
    files: Shown,
    names: names::NodeNames,
    name: String,
    poll: Poll,
    core: Core,
    link: Option<HeadLink>,
    signals: SignalFd,
    watchdog: Option<Watchdog>,
    spawner: Option<Spawner>,
    relay: NodeRelay,
    mains: Mains,
    privates: Privates,
    makers: Makers,
    pids: Option<PidBlock>,
    cursor_at: Option<Instant>,
    /// How many views each check of the head still waits for.
    checks: HashMap<u64, usize>,
    /// How often in a row something was left to be sent late.
    late_turns: u32,
    /// What the core has to hear, oldest first.
    events: Vec<Event>,
    /// Set when the agent is to end.
    exit: Option<Option<String>>,
    /// The last reason for which there is no connection, so that each is logged once.
    trouble: Option<String>,
    /// The clock of a machine that booted from the network.
    clock: Option<HeadClock>,
    /// Its disks.
    disks: Option<Disks>,
    keeping: Keeping,
    /// What becomes of such a machine when the agent has ended.
    power: Option<PowerAction>,
    /// Where the relay makes terminals.
    _terminals: Option<OwnedFd>,
}

/// What tasks see.
enum Shown {
    /// One root for all.
    Root(Arc<TaskRoot>),
    /// To each user what the deputy shows.
    Views(Box<Views>),
}

impl Agent {
    fn new(
        config: AgentConfig,
        identity: Arc<ClientConfig>,
        signals: SignalFd,
        watchdog: Option<Watchdog>,
        name: String,
    ) -> Result<Agent, AgentError> {
        let is_booted = matches!(config.trust, Trust::Booted { .. });
        let poll = Poll::new()?;
        poll.add(&signals, SIGNALS, Interest::Read)?;
        let mut mains = Mains::default();
        if let Some(watchdog) = &watchdog {
            watchdog.add_to(&poll, WATCHDOG)?;
            mains.watchdog = Some(watchdog.pid());
        }
        let mut relay = NodeRelay::new(FIRST_RELAY_TOKEN);
        relay.set_identity(config.head, identity.clone());
        relay.set_may_be_late();
        if config.is_virtual {
            relay.set_compression(Compression::Never);
        }
        let privates = Privates::new(config.rootless).map_err(AgentError::Spawner)?;
        poll.add(privates.bell(), EMPTIED, Interest::Read)?;
        let makers = Makers::default();
        let mut terminals = None;
        let mut disks = None;
        let store = SharedStore::default();
        let given = config.keep.map(Place::open).transpose()?;
        let mut scratch = None;
        let (files, name_files) = match config.files {
            Files::Disk(root) => {
                let directory = open_terminals(&root).map_err(AgentError::Terminals)?;
                relay.set_terminals(PathBuf::from(format!(
                    "/proc/self/fd/{}",
                    directory.as_raw_fd()
                )));
                terminals = Some(directory);
                let names = NameFiles::of_root(&root).map_err(NodeViewError::from)?;
                (Shown::Root(Arc::new(root)), names)
            }
            Files::View(options) => {
                let mut own = OwnDirectories::make(&options).map_err(NodeViewError::from)?;
                if let Trust::Booted {
                    authority, boot, ..
                } = &config.trust
                {
                    let began = disks::begin(authority, *boot, &mut own, &store, &poll)?;
                    began.lines.iter().for_each(|line| log(&name, line));
                    disks = Some(began.disks);
                    scratch = began.scratch;
                }
                let names = NameFiles::of_views(&own).map_err(NodeViewError::from)?;
                let views = Views::new(own, options.bounds, makers.clone())?;
                relay.set_serves_view();
                relay.set_terminals(views.terminals());
                (Shown::Views(Box::new(views)), names)
            }
        };
        let kind = match (is_booted, config.is_virtual) {
            (true, _) => Kind::Booted,
            (false, true) => Kind::Virtual,
            (false, false) => Kind::Beside,
        };
        let keeping = Keeping::new(store, scratch.as_deref(), given);
        let names = names::NodeNames::new(name_files, config.head.ip(), kind);
        let incarnation = draw_incarnation()?;
        let core = Core::new(incarnation, machine::describe(&config.address), &name);
        Ok(Agent {
            head: config.head,
            identity,
            rootless: config.rootless,
            files,
            names,
            name,
            poll,
            core,
            link: None,
            signals,
            watchdog,
            spawner: None,
            relay,
            mains,
            privates,
            makers,
            pids: None,
            cursor_at: None,
            checks: HashMap::new(),
            late_turns: 0,
            events: vec![Event::Tick],
            exit: None,
            trouble: None,
            clock: is_booted.then(HeadClock::default),
            disks,
            keeping,
            power: None,
            _terminals: terminals,
        })
    }

    fn run(mut self) -> Result<Departure, AgentError> {
        let mut ready = Vec::new();
        loop {
            self.decide()?;
            if let Some(reason) = self.exit.take() {
                self.say_farewell();
                return match (self.power, reason) {
                    (Some(action), _) => Ok(Departure::Power(action)),
                    (None, None) => Ok(Departure::Left),
                    (None, Some(reason)) => Err(AgentError::Refused(reason)),
                };
            }
            if !self.wait_busily(&mut ready)? && !self.look_for_more(&mut ready)? {
                self.poll.wait(&mut ready, self.time_to_wait())?;
            }
            for one in &ready {
                self.take(*one)?;
            }
            self.look_at_the_clock();
        }
    }

    /// Has the core hear all events and does what it says, until nothing is left to do.
    fn decide(&mut self) -> Result<(), AgentError> {
        let mut effects = Vec::new();
        loop {
            for event in std::mem::take(&mut self.events) {
                self.core.handle(now_ms(), event, &mut effects);
                for effect in effects.drain(..) {
                    self.perform(effect)?;
                }
            }
            if self.mains.is_collecting() {
                self.mains.collect(&mut self.events);
            }
            self.settle_views();
            if self.events.is_empty() {
                self.settle_link();
            }
            if self.events.is_empty() {
                return Ok(());
            }
        }
    }
}

/// The task root's terminals, by a descriptor: the agent itself never enters the root.
fn open_terminals(root: &TaskRoot) -> Result<OwnedFd, Errno> {
    let open = || {
        // A thread that shares its working directory with others may not change its mounts.
        unshare(NamespaceFlags::FS)?;
        setns(root.mount_ns.as_fd(), NamespaceFlags::NEWNS)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open("/dev/pts", flags, Mode::empty())
    };
    thread::scope(|scope| {
        scope
            .spawn(open)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn draw_incarnation() -> Result<Incarnation, Errno> {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(Incarnation(u64::from_ne_bytes(bytes)))
}

/// Milliseconds of a clock that goes on while the machine sleeps (P4).
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

fn entitle(name: &str) {
    // Whoever looks at a list of processes is helped by it; nothing depends on it.
    let _ = set_process_title(&format!("wiglaf: agent {name}"));
}

fn log(name: &str, what: &dyn Display) {
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(io::stderr(), "wiglaf agent {name}: {what}");
}
