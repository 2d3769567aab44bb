//! The agent's loop: sockets, clock and processes around [`super::core`].

mod config;
mod head;
mod joining;
mod tasks;

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
use wiglaf_link::{Interest, Poll, Ready, Token, client_config};
use wiglaf_linux::namespace::{NamespaceFlags, setns, unshare};
use wiglaf_linux::process::{kill, set_process_title};
use wiglaf_linux::session::Leader;
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};
use wiglaf_process::relay::node::{NodeRelay, RelayEvent};
use wiglaf_wire::agent::{FromAgent, PowerAction};
use wiglaf_wire::frame::Compression;
use wiglaf_wire::id::{Incarnation, TaskId};

use super::clock::HeadClock;
use super::core::{Core, Effect, Event};
use super::link::HeadLink;
use super::mains::Mains;
use super::pids::PidBlock;
use super::private::{Makers, Privates};
use super::spawner::Spawner;
use super::view::{NodeViewError, Views};
use super::watchdog::Watchdog;
use super::{machine, processes};
use crate::root::{Files, OwnDirectories, TaskRoot};

use joining::{join_as_booted, join_at_last};

pub(crate) use config::Departure;
pub use config::{AgentConfig, AgentError, Trust};

const LINK: Token = Token(0);
const SIGNALS: Token = Token(1);
const SPAWNER: Token = Token(2);
const WATCHDOG: Token = Token(3);
const EMPTIED: Token = Token(4);
const FIRST_RELAY_TOKEN: u64 = 16;
/// With a PID in the lower bits: this session's leader reports, or has ended. The relay does not
/// count so far.
const LEADER_REPORTS: u64 = 1 << 62;
const LEADER_ENDS: u64 = 1 << 63;

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
/// `kill(2)`: all processes that the caller may signal, but itself and init.
const EVERYBODY: i32 = -1;

/// How often the PID cursor is looked at while tasks, which may fork, are alive.
const CURSOR_PERIOD: Duration = Duration::from_secs(2);
/// Waking a process costs about as much on a virtual machine.
const BUSY_WAIT: Duration = Duration::from_micros(40);
/// Turns of the loop that the end of an output may wait for another's: a process that ends closes
/// its outputs one after the other, and each message wakes the deputy.
const LATE_TURNS: u32 = 4;
/// Leftovers that were killed are looked for again at the latest after this time.
const COLLECT_PERIOD: Duration = Duration::from_millis(20);
/// Reads of the head's connection before others have their turn.
const READS_PER_TURN: usize = 8;
/// How long a farewell may take to leave.
const FAREWELL_WAIT: Duration = Duration::from_millis(500);

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
        let files = match config.files {
            Files::Disk(root) => {
                let directory = open_terminals(&root).map_err(AgentError::Terminals)?;
                relay.set_terminals(PathBuf::from(format!(
                    "/proc/self/fd/{}",
                    directory.as_raw_fd()
                )));
                terminals = Some(directory);
                Shown::Root(Arc::new(root))
            }
            Files::View(options) => {
                let own = OwnDirectories::make(&options).map_err(NodeViewError::from)?;
                let views = Views::new(own, options.bounds, makers.clone())?;
                relay.set_serves_view();
                relay.set_terminals(views.terminals());
                Shown::Views(Box::new(views))
            }
        };
        let incarnation = draw_incarnation()?;
        let core = Core::new(incarnation, machine::describe(&config.address), &name);
        Ok(Agent {
            head: config.head,
            identity,
            rootless: config.rootless,
            files,
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

    /// Before what may be sent late is sent, whether more of its kind is there to go with it.
    fn look_for_more(&mut self, ready: &mut Vec<Ready>) -> Result<bool, Errno> {
        if !self.relay.has_late() {
            return Ok(false);
        }
        self.late_turns += 1;
        if self.late_turns <= LATE_TURNS {
            self.poll.wait(ready, Some(Duration::ZERO))?;
            if !ready.is_empty() {
                return Ok(true);
            }
        }
        self.late_turns = 0;
        self.relay.send_late(&self.poll);
        Ok(false)
    }

    /// A program that asks one thing of the view after another is answered sooner if nobody has to
    /// be woken for it: where many requests came at once after the ones before, the next is
    /// waited for without sleeping. Returns whether something is ready.
    fn wait_busily(&mut self, ready: &mut Vec<Ready>) -> Result<bool, Errno> {
        let Shown::Views(views) = &mut self.files else {
            return Ok(false);
        };
        if !views.is_in_demand() {
            return Ok(false);
        }
        let began = Instant::now();
        while began.elapsed() < BUSY_WAIT {
            self.poll.wait(ready, Some(Duration::ZERO))?;
            if !ready.is_empty() {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        views.is_idle();
        Ok(false)
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

    fn time_to_wait(&self) -> Option<Duration> {
        let now = now_ms();
        let core = self
            .core
            .next_deadline()
            .map(|at| Duration::from_millis(at.saturating_sub(now)));
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        let collect = self.mains.is_collecting().then_some(COLLECT_PERIOD);
        let views = match &self.files {
            Shown::Views(views) => views.deadline(),
            Shown::Root(_) => None,
        };
        let link = self.link.as_ref().and_then(HeadLink::deadline);
        let others = [
            views.map(until),
            link.map(until),
            self.relay.deadline().map(until),
            self.cursor_at.map(until),
            self.watchdog
                .as_ref()
                .and_then(Watchdog::deadline)
                .map(until),
            collect,
        ];
        core.into_iter().chain(others.into_iter().flatten()).min()
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if self.relay.deadline().is_some_and(|at| at <= now) {
            let mut events = Vec::new();
            self.relay.tick(&self.poll, &mut events);
            self.hear_relay(events);
        }
        if self.cursor_at.is_some_and(|at| at <= now) {
            self.cursor_at = self.core.has_live_tasks().then_some(now + CURSOR_PERIOD);
            self.steer();
        }
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.deadline().is_some()
        {
            match watchdog.tick(&self.poll, WATCHDOG) {
                Ok(()) => self.mains.watchdog = Some(watchdog.pid()),
                Err(errno) => log(&self.name, &AgentError::Watchdog(errno)),
            }
        }
        self.events.push(Event::Tick);
    }

    fn take(&mut self, ready: Ready) -> Result<(), AgentError> {
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

    fn hear_relay(&mut self, events: Vec<RelayEvent>) {
        for event in events {
            match event {
                RelayEvent::Drained(task) => self.events.push(Event::Drained { task }),
                RelayEvent::Lost(task, reason) => {
                    self.events.push(Event::RelayLost { task, reason });
                }
                RelayEvent::Answered(deputy, answer) => {
                    if let Shown::Views(views) = &mut self.files {
                        views.answered(deputy, answer);
                    }
                }
                RelayEvent::Changed(deputy, changes) => {
                    if let Shown::Views(views) = &mut self.files {
                        views.changed(deputy, changes);
                    }
                }
                RelayEvent::Given(deputy, gifts) => {
                    if let Shown::Views(views) = &mut self.files {
                        views.given(deputy, gifts);
                    }
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Result<(), AgentError> {
        match effect {
            Effect::Dial => self.dial(),
            Effect::HangUp => self.close_link(),
            Effect::Send(message) => self.send(&message),
            Effect::Renew { sequence } => {
                if let Some(clock) = &mut self.clock {
                    clock.asked(sequence, Instant::now());
                }
                self.send(&FromAgent::Renew {
                    sequence,
                    load_centi: machine::load_centi(),
                    available_kib: machine::available_kib(),
                });
            }
            Effect::Welcomed {
                name,
                first_pid,
                end_pid,
                ..
            } => {
                self.welcomed(name, PidBlock::new(first_pid, end_pid))?;
            }
            Effect::Spawn {
                task,
                pid,
                credential,
                deputy,
                spec,
            } => {
                self.spawn(task, pid, credential, deputy, spec);
            }
            Effect::Signal {
                task,
                signal,
                scope,
                ..
            } => self.mains.signal(task, signal, scope),
            Effect::KillTree { task, .. } => self.mains.kill_tree(task),
            // Nobody there is fine.
            Effect::KillEverything => drop(kill(EVERYBODY, SIGKILL)),
            Effect::CutLinks => self.relay.cut_links(&self.poll),
            Effect::CollectLeftovers { task } => self.mains.collect_leftovers(task),
            Effect::WaitDrained { task, leave } => {
                if !self.is_emptying(task) {
                    self.wait_written(task, leave);
                }
            }
            Effect::CloseTask { task } => {
                self.relay.close(&self.poll, task);
                self.privates.close(task);
                self.makers.remove(task);
                if let Shown::Views(views) = &mut self.files
                    && let Some(gone) = views.dismiss(&self.poll, task)
                    && let Some(spawner) = &self.spawner
                {
                    spawner.forget(gone);
                }
                self.mains.forget(task);
            }
            Effect::ListProcesses { request } => self.list(request),
            Effect::SignalProcess {
                request,
                pid,
                signal,
                uid,
            } => {
                let result = processes::signal(pid, signal, uid, &self.mains);
                let errno = result.err().map_or(0, Errno::raw_os_error);
                self.send(&FromAgent::Signalled { request, errno });
            }
            Effect::ListViews { request } => self.list_views(request),
            Effect::CheckViews { request, uid } => self.check_views(request, uid),
            Effect::Exit { reason } => self.exit = Some(reason),
        }
        Ok(())
    }
}

fn leader_token(what: u64, leader: &Leader) -> Token {
    Token(what | u64::from(leader.pid.cast_unsigned()))
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
