//! The shims that have called: what each wants, and what it is told.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Resource, getrlimit};
use wiglaf_build::{Event, ShimId};
use wiglaf_link::{Interest, Poll};
use wiglaf_linux::process::{pidfd_open, process_group};
use wiglaf_linux::shim::{FromShim, ShimCall, Verdict, answer, open_real, receive};
use wiglaf_wire::launch::LaunchSpec;
use wiglaf_wire::status::Status;

use super::caller::{Caller, Home, stream_kinds, window_of};
use super::token::{Kind, token};

/// Connections taken before others get their turn.
const MAX_TAKEN: usize = 64;
/// Descriptors that are kept for lines on nodes and for looking at callers. A shim whose descriptors
/// can't be taken would run its line here with nobody knowing.
const RESERVE: u64 = 24;
/// Descriptors that a shim's call brings.
const STDIO: u64 = 3;
/// How long the listener is left alone when the machine is out of something.
const DEAF_TIME: Duration = Duration::from_millis(50);

pub(super) struct Shims {
    listener: OwnedFd,
    /// Given up to take a connection that there is no other descriptor for.
    spare: Option<OwnedFd>,
    /// Connections can't be taken at the moment.
    deaf_since: Option<Instant>,
    turned_away: u64,
    home: Home,
    next: u64,
    shims: HashMap<u64, Shim>,
    /// The processes of those that run their commands here.
    locals: HashMap<u64, Local>,
    /// The same by PID.
    local_pids: HashMap<i32, ShimId>,
    programs: HashMap<PathBuf, OwnedFd>,
    group: i32,
}

fn open_spare() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty()).ok()
}

struct Shim {
    socket: OwnedFd,
    pid: i32,
    caller: Option<(Caller, ShimCall)>,
    /// It has been told to wait.
    waits: bool,
}

struct Local {
    pid: i32,
    process: OwnedFd,
}

impl Shims {
    pub(super) fn new(poll: &Poll, listener: OwnedFd, home: Home) -> Result<Shims, Errno> {
        poll.add(&listener, token(Kind::Listener, 0), Interest::Read)?;
        Ok(Shims {
            listener,
            spare: open_spare(),
            deaf_since: None,
            turned_away: 0,
            home,
            next: 0,
            shims: HashMap::new(),
            locals: HashMap::new(),
            local_pids: HashMap::new(),
            programs: HashMap::new(),
            group: process_group(0).unwrap_or(0),
        })
    }

    /// The build runs as this process.
    pub(super) fn entered_by(&mut self, pid: i32) {
        self.home.entered_by(pid);
    }

    /// Whether some wait for their lines to end.
    pub(super) fn some_wait(&self) -> bool {
        self.shims.values().any(|shim| shim.waits)
    }

    /// Takes new connections; their calls are mostly there already.
    pub(super) fn accept(&mut self, poll: &Poll, events: &mut Vec<Event>) {
        for _ in 0..MAX_TAKEN {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                // We are out of descriptors, and lines may wait for this one.
                Err(Errno::MFILE) if self.spare.take().is_some() => {
                    if rustix::net::accept_with(&self.listener, flags).is_ok() {
                        self.turned_away += 1;
                    }
                    self.spare = open_spare();
                    continue;
                }
                Err(Errno::AGAIN) => return,
                // It would be ready for ever. The callers wait until something is free again.
                Err(_) => {
                    let _ = poll.modify(&self.listener, token(Kind::Listener, 0), Interest::None);
                    self.deaf_since = Some(Instant::now());
                    return;
                }
            };
            // Lines that wait may wait for this one: it must not wait for them.
            if !self.has_room() {
                self.turned_away += 1;
                continue;
            }
            let Ok(peer) = rustix::net::sockopt::socket_peercred(&socket) else {
                continue;
            };
            let number = self.next;
            self.next += 1;
            let shim = Shim {
                socket,
                pid: peer.pid.as_raw_nonzero().get(),
                caller: None,
                waits: false,
            };
            if poll
                .add(&shim.socket, token(Kind::Shim, number), Interest::Read)
                .is_err()
            {
                // It executes its command when the connection closes.
                continue;
            }
            self.shims.insert(number, shim);
            self.ready(poll, number, events);
        }
    }

    /// When [`Shims::tick`] is needed next.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let since = self.deaf_since?;
        Some(DEAF_TIME.saturating_sub(since.elapsed()))
    }

    /// Listens again, if it is time.
    pub(super) fn tick(&mut self, poll: &Poll) {
        if self.timeout() == Some(Duration::ZERO) {
            self.deaf_since = None;
            self.spare = self.spare.take().or_else(open_spare);
            let _ = poll.modify(&self.listener, token(Kind::Listener, 0), Interest::Read);
        }
    }

    /// Descriptors are given out by the lowest number.
    fn has_room(&self) -> bool {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let Ok(next) = rustix::io::fcntl_dupfd_cloexec(&self.listener, 0) else {
            return false;
        };
        let silent = self.shims.values().filter(|shim| shim.caller.is_none());
        let to_come = silent.count() as u64 * STDIO;
        u64::from(next.as_raw_fd().unsigned_abs()) + to_come + RESERVE < limit
    }

    /// How many lines run here without having been looked at, because descriptors were short.
    pub(super) fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// A shim says something, or is gone.
    pub(super) fn ready(&mut self, poll: &Poll, number: u64, events: &mut Vec<Event>) {
        loop {
            let Some(shim) = self.shims.get_mut(&number) else {
                return;
            };
            match receive(&shim.socket) {
                Ok(Some(FromShim::Call(call))) if shim.caller.is_none() => {
                    match Caller::read(shim.pid, &call, &self.home) {
                        Ok(caller) => {
                            let local = |pid| self.local_pids.get(&pid).copied();
                            events.push(Event::Called {
                                shim: ShimId(number),
                                call: caller.call(&call, &self.home, local),
                            });
                            shim.caller = Some((caller, call));
                        }
                        // It can't be looked at, so it is left to itself.
                        Err(_) => return self.dismiss(poll, number, Verdict::Here(None)),
                    }
                }
                Ok(Some(FromShim::Signal { signal, by_kernel })) => {
                    let caller = shim.caller.as_ref().map(|(caller, _)| caller);
                    if caller.is_some_and(|caller| caller.ignores(signal)) {
                        continue;
                    }
                    // The ghost has heard the terminal too, if it is in the same group.
                    let group = caller.map(|caller| caller.group);
                    events.push(Event::ShimSignal {
                        shim: ShimId(number),
                        signal,
                        by_terminal: by_kernel && group == Some(self.group),
                    });
                }
                Err(wiglaf_linux::shim::ShimError::Socket(Errno::AGAIN)) => return,
                Ok(None | Some(FromShim::Call(_))) | Err(_) => {
                    let had_called = shim.caller.is_some();
                    self.drop_shim(poll, number);
                    if had_called {
                        events.push(Event::ShimGone {
                            shim: ShimId(number),
                        });
                    }
                    return;
                }
            }
        }
    }

    /// Has it wait for its line's end.
    pub(super) fn hold(&mut self, id: ShimId) {
        if let Some(shim) = self.shims.get_mut(&id.0) {
            shim.waits = true;
            // One that is gone is seen by its socket.
            let _ = answer(&shim.socket, Verdict::Wait);
        }
    }

    /// Has it run its command here, and watches for the end.
    pub(super) fn run_here(&mut self, poll: &Poll, id: ShimId, events: &mut Vec<Event>) {
        let Some(shim) = self.shims.get(&id.0) else {
            return;
        };
        let program = shim
            .caller
            .as_ref()
            .map(|(caller, _)| caller.program.clone());
        let watched = pidfd_open(shim.pid).and_then(|process| {
            poll.add(&process, token(Kind::Local, id.0), Interest::Read)?;
            Ok(process)
        });
        match watched {
            Ok(process) => {
                let pid = shim.pid;
                self.locals.insert(id.0, Local { pid, process });
                self.local_pids.insert(pid, id);
            }
            Err(_) => events.push(Event::LocalEnded { shim: id }),
        }
        if let Some(program) = &program {
            self.open(program);
        }
        let program = program.and_then(|program| self.programs.get(&program));
        if let Some(shim) = self.shims.remove(&id.0) {
            let _ = answer(&shim.socket, Verdict::Here(program.map(AsFd::as_fd)));
            let _ = poll.remove(&shim.socket);
        }
    }

    /// A descriptor for what the shim covers in the build's space; made once.
    fn open(&mut self, program: &Path) {
        if !self.programs.contains_key(program)
            && let Ok(fd) = open_real(program)
        {
            self.programs.insert(program.to_owned(), fd);
        }
    }

    /// A command that ran here has ended.
    pub(super) fn local_ended(&mut self, poll: &Poll, number: u64, events: &mut Vec<Event>) {
        if let Some(local) = self.locals.remove(&number) {
            let _ = poll.remove(&local.process);
            self.local_pids.remove(&local.pid);
            events.push(Event::LocalEnded {
                shim: ShimId(number),
            });
        }
    }

    /// Ends it as its line has ended.
    pub(super) fn end(&mut self, poll: &Poll, id: ShimId, status: &Status) {
        let verdict = match status {
            Status::Signaled(signal) => Verdict::Signal(*signal),
            other => Verdict::Exit(other.exit_code()),
        };
        self.dismiss(poll, id.0, verdict);
    }

    fn dismiss(&mut self, poll: &Poll, number: u64, verdict: Verdict<'_>) {
        if let Some(shim) = self.shims.get(&number) {
            let _ = answer(&shim.socket, verdict);
        }
        self.drop_shim(poll, number);
    }

    fn drop_shim(&mut self, poll: &Poll, number: u64) {
        if let Some(shim) = self.shims.remove(&number) {
            let _ = poll.remove(&shim.socket);
        }
    }

    /// The line for a node, and the streams that its deputy relays.
    pub(super) fn order(
        &self,
        id: ShimId,
        private_tmp: bool,
    ) -> Result<Option<(LaunchSpec, Vec<OwnedFd>)>, Errno> {
        let Some((caller, call)) = self.shims.get(&id.0).and_then(|shim| shim.caller.as_ref())
        else {
            return Ok(None);
        };
        let kinds = stream_kinds(&call.stdio);
        let relayed = call.stdio.iter().zip(kinds);
        let streams = relayed
            .filter(|(_, kind)| kind.has_descriptor())
            .filter_map(|(fd, _)| fd.as_ref())
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 10))
            .collect::<Result<Vec<_>, _>>()?;
        let window = window_of(&call.stdio);
        Ok(Some((
            caller.spec(kinds, window, private_tmp, &self.home),
            streams,
        )))
    }
}
