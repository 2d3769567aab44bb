//! One build from its start to its end: the loop around the broker.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wiglaf_build::{Broker, Effect, Event, Learned, Progress, Record, Settings};
use wiglaf_link::{Interest, Poll};
use wiglaf_linux::process::{ChildState, ExitStatus, kill, wait_any_child};
use wiglaf_linux::shimmed::{PrivateSpace, SpaceCommand, SpaceError};
use wiglaf_linux::signal::{SignalFd, SignalSet, block_signals};
use wiglaf_linux::status::read_status;
use wiglaf_wire::client::{NodeSelection, RunRequest};
use wiglaf_wire::status::Status;

use super::caller::Home;
use super::cluster::Cluster;
use super::directory::Directory;
use super::launches::{Launches, Order};
use super::live::Live;
use super::load::HeadLoad;
use super::programs;
use super::shims::Shims;
use super::token::{Kind, parts, token};
use crate::error::CommandError;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;
const SIGWINCH: i32 = 28;
const HEARD: [i32; 8] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGCHLD, SIGCONT, SIGTSTP, SIGWINCH,
];
/// Sent by the kernel, here the terminal (sigaction(2), SI_KERNEL).
const SI_KERNEL: i32 = 0x80;

/// How long lines have to stop on their nodes.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// What to build, and how.
pub(super) struct Build {
    pub(super) command: Vec<OsString>,
    pub(super) settings: Settings,
    pub(super) learned: Learned,
    pub(super) with_live: bool,
    /// Says where each line ran as it ends.
    pub(super) verbose: bool,
}

/// What came of it.
pub(super) struct Built {
    pub(super) end: ExitStatus,
    pub(super) learned: Learned,
    pub(super) record: Record,
    /// Lines that ran here unseen, for want of descriptors.
    pub(super) turned_away: u64,
}

/// Why there is no build with the cluster; the command can still run here alone.
#[derive(thiserror::Error, Debug)]
pub(super) enum SessionError {
    /// Something around it.
    #[error("{}", .0.0)]
    Command((String, Option<String>)),
    /// Its private space.
    #[error(transparent)]
    Space(#[from] SpaceError),
}

impl From<CommandError> for SessionError {
    fn from(error: CommandError) -> SessionError {
        SessionError::Command(error.into_words())
    }
}

impl SessionError {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            SessionError::Command((_, hint)) => hint.clone(),
            SessionError::Space(error) => error.remedy().map(str::to_owned),
        }
    }
}

struct Session {
    poll: Poll,
    signals: SignalFd,
    cluster: Cluster,
    shims: Shims,
    launches: Launches,
    broker: Broker,
    live: Option<Live>,
    load: HeadLoad,
    verbose: bool,
    began: Instant,
    child: i32,
    end: Option<ExitStatus>,
    /// The terminal has stopped the build; this process stops when its lines have, at the latest
    /// then. Were it continued before, a line's stop could come after that.
    stopping: Option<Instant>,
}

/// Runs the command with its lines on the cluster's nodes.
pub(super) fn run(build: Build, cluster: Cluster) -> Result<Built, SessionError> {
    let home = Home::of_this_process().map_err(CommandError::from)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let (mut directory, listener) = Directory::make()?;
    let space = PrivateSpace::new(directory.path(), &programs::to_cover(&path))?;
    let command = Command::prepare(&build.command, &path)?;
    let poll = Poll::new().map_err(CommandError::from)?;
    let launches = Launches::new(cluster.layout.clone())?;
    let mut shims = Shims::new(&poll, listener, home).map_err(CommandError::from)?;
    cluster.watch(&poll)?;
    let has_head_slots = build.settings.head_slots(cluster.nodes()) > 0;
    let load = HeadLoad::new(if has_head_slots {
        cluster.daemons()
    } else {
        Vec::new()
    });
    let mut broker = Broker::new(build.settings, build.learned);
    let began = Instant::now();
    let nodes = cluster.nodes().to_vec();
    let first = broker.handle(Duration::ZERO, Event::Nodes(nodes));
    debug_assert!(first.is_empty(), "nothing has been asked for yet");
    // Before there are children whose end could be missed.
    let own = read_status(std::process::id().cast_signed()).map_err(CommandError::from)?;
    let heard: Vec<_> = HEARD
        .into_iter()
        .filter(|signal| !own.ignored.contains(*signal))
        .collect();
    let heard = SignalSet::of(&heard);
    let blocked = block_signals(heard);
    let signals = SignalFd::new(heard).map_err(CommandError::from)?;
    poll.add(&signals, token(Kind::Signals, 0), Interest::Read)
        .map_err(CommandError::from)?;
    let spawned = space.spawn(&SpaceCommand {
        program: &command.program,
        argv: &command.argv,
        env: &command.env,
        // Rust's start-up code ignores SIGPIPE; the command must not inherit that.
        ignored_signals: own.ignored.without(SIGPIPE),
        blocked_signals: blocked,
    });
    let spawned = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            wiglaf_linux::signal::set_signal_mask(blocked);
            return Err(error.into());
        }
    };
    directory.entered_by(spawned.pid);
    shims.entered_by(spawned.pid);
    // Now that the command has its limit, each shim may bring us three descriptors.
    raise_descriptor_limit();
    let mut session = Session {
        poll,
        signals,
        cluster,
        shims,
        launches,
        broker,
        live: build.with_live.then(Live::new).flatten(),
        load,
        verbose: build.verbose,
        began,
        child: spawned.pid,
        end: None,
        stopping: None,
    };
    let end = session.serve().map_err(SessionError::from)?;
    drop(session.live.take());
    let now = session.began.elapsed();
    let (learned, record) = session.broker.finish(now);
    wiglaf_linux::signal::set_signal_mask(blocked);
    Ok(Built {
        end,
        learned,
        record,
        turned_away: session.shims.turned_away(),
    })
}

impl Session {
    fn serve(&mut self) -> Result<ExitStatus, CommandError> {
        let mut ready = Vec::new();
        let mut events = Vec::new();
        loop {
            if let Some(end) = self.end
                && self.launches.is_empty()
                && !self.shims.some_wait()
            {
                return Ok(end);
            }
            self.poll.wait(&mut ready, self.timeout())?;
            for one in &ready {
                match parts(one.token) {
                    Some((Kind::Signals, _)) => self.take_signals(&mut events)?,
                    Some((Kind::Listener, _)) => self.shims.accept(&self.poll, &mut events),
                    Some((Kind::Shim, number)) => {
                        self.shims.ready(&self.poll, number, &mut events);
                    }
                    Some((Kind::Local, number)) => {
                        self.shims.local_ended(&self.poll, number, &mut events);
                    }
                    Some((Kind::Head, number)) => {
                        self.launches
                            .head_ready(&self.poll, number, *one, &mut events);
                    }
                    Some((Kind::Nodes, _)) => {
                        self.cluster.ready(&self.poll, *one, &mut events);
                    }
                    None => {}
                }
            }
            self.launches.tick(&self.poll, &mut events);
            self.shims.tick(&self.poll);
            if self
                .broker
                .due()
                .is_some_and(|due| due <= self.began.elapsed())
            {
                events.push(Event::Tick);
            }
            events.extend(self.load.measure());
            self.decide(&mut events);
            if self.broker.wants_nodes() {
                self.cluster.look_for_more(&self.poll);
            }
            self.stop_if_due()?;
            self.tell_ended();
            if let Some(live) = &mut self.live
                && self.stopping.is_none()
            {
                live.draw(&status_line(&self.broker.progress(), self.began.elapsed()));
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let drawing = self.live.as_ref().map(|live| {
            // What was not drawn a moment ago is due then.
            live.due_in().max(Duration::from_millis(1))
        });
        let now = self.began.elapsed();
        let stop = self
            .stopping
            .map(|at| at.saturating_duration_since(Instant::now()));
        let decision = self.broker.due().map(|due| due.saturating_sub(now));
        let more_nodes = self
            .broker
            .wants_nodes()
            .then(|| self.cluster.due_in().max(Duration::from_millis(1)));
        let all = [
            more_nodes,
            self.launches.timeout(),
            self.shims.timeout(),
            drawing,
            decision,
            self.load.due_in(),
            stop,
        ];
        all.into_iter().flatten().min()
    }

    /// Has the broker decide on all that has happened, and does it, until nothing more happens.
    fn decide(&mut self, events: &mut Vec<Event>) {
        while !events.is_empty() {
            for event in std::mem::take(events) {
                if is_failure(&event) {
                    self.cluster.ask_again(&self.poll);
                }
                let now = self.began.elapsed();
                for effect in self.broker.handle(now, event) {
                    self.perform(effect, events);
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect, events: &mut Vec<Event>) {
        match effect {
            Effect::RunHere { shim } => self.shims.run_here(&self.poll, shim, events),
            Effect::Hold { shim } => self.shims.hold(shim),
            Effect::Launch {
                attempt,
                shim,
                exclude,
                prefer,
                memory_kib,
                private_tmp,
            } => {
                let refused = |message: String| Event::Refused { attempt, message };
                match self.shims.order(shim, private_tmp) {
                    Ok(Some((spec, streams))) => {
                        let selection = NodeSelection {
                            nodes: None,
                            all: false,
                            exclude: self.cluster.excluded(&exclude),
                            prefer,
                            node_count: None,
                            task_count: None,
                            exclusive: false,
                            now: false,
                            memory_kib,
                        };
                        let order = Order {
                            attempt,
                            request: RunRequest {
                                selection,
                                spec,
                                timeout_ms: 0,
                                detach: false,
                                follow: true,
                            },
                            streams,
                        };
                        self.launches.launch(&self.poll, order, events);
                    }
                    Ok(None) => events.push(refused("its shim is gone".into())),
                    Err(errno) => events.push(refused(format!("its streams: {errno}"))),
                }
            }
            Effect::Answer { shim, status } => self.shims.end(&self.poll, shim, &status),
            Effect::Signal { attempt, signal } => {
                self.launches.signal(attempt, i32::from(signal));
            }
            Effect::Cancel { attempt } => self.launches.cancel(&self.poll, attempt, events),
        }
    }

    fn stop_if_due(&mut self) -> Result<(), CommandError> {
        if let Some(latest) = self.stopping
            && (!self.launches.some_run() || latest <= Instant::now())
        {
            self.stopping = None;
            kill(std::process::id().cast_signed(), SIGSTOP)?;
        }
        Ok(())
    }

    /// With `--verbose`: where each line ran.
    fn tell_ended(&mut self) {
        if self.verbose {
            for line in self.broker.take_ended() {
                let line = format!("wiglaf: {line}\n");
                // At once: make and its lines write there, too.
                eprint!("{line}");
            }
        }
    }

    fn take_signals(&mut self, events: &mut Vec<Event>) -> Result<(), CommandError> {
        while let Some(signal) = self.signals.read()? {
            match (signal.signo, signal.code) {
                // Children are seen to below.
                (SIGCHLD, _) => {}
                (SIGWINCH | SIGCONT, _) => {
                    if let Some(live) = &mut self.live {
                        live.hide();
                    }
                }
                // The build is in the same process group and has got it too.
                (SIGTSTP, _) => {
                    if let Some(live) = &mut self.live {
                        live.hide();
                    }
                    self.stopping = Some(Instant::now() + STOP_WAIT);
                }
                (_, SI_KERNEL) => {}
                (signo, _) => {
                    // One that has just ended is reaped below.
                    let _ = kill(self.child, signo);
                }
            }
        }
        while let Ok(Some(change)) = wait_any_child(true) {
            let ChildState::Ended(status) = change.state else {
                let is_stopped = matches!(change.state, ChildState::Stopped(_));
                self.launches.child_stopped(change.pid, is_stopped);
                continue;
            };
            if change.pid == self.child {
                self.end = Some(status);
            } else {
                self.launches
                    .child_ended(&self.poll, change.pid, status, events);
            }
        }
        Ok(())
    }
}

fn is_failure(event: &Event) -> bool {
    match event {
        Event::Refused { .. } => true,
        Event::Ended { status, .. } => matches!(status, Status::Failed { .. }),
        _ => false,
    }
}

/// The command as the kernel wants it.
struct Command {
    program: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    fn prepare(words: &[OsString], path: &std::ffi::OsStr) -> Result<Command, CommandError> {
        let name = words.first().map(OsString::as_os_str).unwrap_or_default();
        let program = programs::find(name, path).ok_or_else(|| {
            CommandError::new(format!("{}: not found", name.display()))
                .code(wiglaf_wire::status::EXIT_NOT_FOUND)
        })?;
        let argv = words
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<_, _>>()?;
        let env = std::env::vars_os()
            .map(|(mut name, value)| {
                // Shells put there what they start, which is this command.
                let value = if name == "_" {
                    program.clone().into_os_string()
                } else {
                    value
                };
                name.push("=");
                name.push(value);
                CString::new(name.as_bytes())
            })
            .collect::<Result<_, _>>()?;
        Ok(Command {
            program: CString::new(program.as_os_str().as_bytes())?,
            argv,
            env,
        })
    }
}

fn raise_descriptor_limit() {
    let found = getrlimit(Resource::Nofile);
    // Where it can't be raised, shims wait until others have gone.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: found.maximum,
            maximum: found.maximum,
        },
    );
}

/// For the terminal's last row.
fn status_line(progress: &Progress, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let mut parts = vec![format!("wiglaf {}:{:02}", seconds / 60, seconds % 60)];
    let on_nodes = progress.running.iter().filter(|(_, lines)| *lines > 0);
    parts.extend(on_nodes.map(|(node, lines)| format!("{node} {lines}")));
    let counts = [
        ("here", u64::from(progress.here)),
        ("queued", u64::from(progress.queued)),
        ("done", progress.done),
        ("fell back", progress.fallen_back),
    ];
    let told = counts.into_iter().filter(|(_, count)| *count > 0);
    parts.extend(told.map(|(what, count)| format!("{what} {count}")));
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_what_there_is() {
        let progress = Progress {
            running: vec![("n1".into(), 2), ("n2".into(), 0)],
            here: 1,
            queued: 0,
            done: 120,
            fallen_back: 0,
            ..Progress::default()
        };
        assert_eq!(
            status_line(&progress, Duration::from_secs(62)),
            "wiglaf 1:02  n1 2  here 1  done 120"
        );
    }
}
