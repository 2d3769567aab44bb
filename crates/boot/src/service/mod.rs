//! The process that serves machines that start: sockets, files and clocks around the pure parts.
//!
//! It parses what anybody on the wire sends, so it is a process of its own with the rights of
//! nobody, and has one thread. It outlives the head that started it, and goes on with the settings
//! that it has; what it sees meanwhile the next head hears.

mod clients;
mod dns;
mod exchange;
mod files;
mod frame;
mod journal;
mod neighbours;
mod outlet;
mod start;
mod transfers;
mod wires;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use wiglaf_link::{Channel, Interest, Poll, Ready, Token};
use wiglaf_wire::boot::{BootSettings, FromBoot, ToBoot};

use self::clients::Clients;
use self::dns::Dns;
use self::exchange::Batch;
use self::files::Files;
use self::journal::Journal;
use self::neighbours::Neighbours;
use self::outlet::Outlet;
use self::start::log;
pub use self::start::{Prepared, ServiceConfig, ServiceError, prepare};
use self::transfers::Transfers;
use self::wires::{State, Use, Wire};
use crate::dhcp::{Port, Server};
use crate::http::site::Site;

/// Packets that one socket may have read in one turn.
const PACKETS_PER_TURN: usize = 64;
/// Interfaces that are not there, and ports that are taken, are tried again so often.
const ATTEND_MS: u64 = 2_000;
/// Connections that do nothing are looked for so often.
const SWEEP_MS: u64 = 1_000;
/// The same problem is told again after this.
const PROBLEM_MS: u64 = 60_000;
/// Problems that are remembered as told.
const MAX_PROBLEMS: usize = 256;
/// Messages of one head that are read when it is replaced.
const LAST_READS: usize = 64;

const LISTENER: Token = Token(0);
const HEAD: Token = Token(1);
const FIRST_DYNAMIC_TOKEN: u64 = 2;

/// What a dynamic token stands for; numbers are those of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    Wire(u64, Use),
    Probe(u64),
    Client,
    Transfer,
    Dns(dns::Watched),
}

struct Service {
    poll: Poll,
    listener: UnixListener,
    files: Files,
    journal: Journal,
    journal_directory: PathBuf,
    neighbours: Neighbours,
    loader_directories: Vec<PathBuf>,
    outlet: Outlet,
    awaits_room: bool,
    watched: HashMap<Token, Watched>,
    next_token: u64,
    next_wire: u64,
    wires: Vec<Wire>,
    http_port: u16,
    /// There is none until the first settings come.
    server: Option<Server>,
    site: Site,
    batch: Batch,
    clients: Clients,
    transfers: Transfers,
    dns: Dns,
    told: HashMap<String, u64>,
    started: Instant,
    /// Since the start, as of this turn.
    now_ms: u64,
    attend_at_ms: u64,
    sweep_at_ms: u64,
    /// The head is to hear where machines are served.
    announces: bool,
    is_ended: bool,
}

impl Prepared {
    /// Gives root up and serves, until a head sends [`ToBoot::End`].
    ///
    /// The process must have one thread, and must not need its terminal, its signals or its
    /// standard input and output any more; standard error is the log.
    ///
    /// # Errors
    /// It can't become a daemon, or its epoll set is broken.
    pub fn run(self) -> Result<(), ServiceError> {
        self.settle()?;
        Service::new(self)?.serve()
    }
}

impl Service {
    fn new(prepared: Prepared) -> Result<Service, ServiceError> {
        let setup = |errno| ServiceError::Setup {
            what: "make an epoll set",
            errno,
        };
        let poll = Poll::new().map_err(setup)?;
        poll.add(&prepared.listener, LISTENER, Interest::Read)
            .map_err(setup)?;
        let nothing = BootSettings {
            interfaces: Vec::new(),
            head_port: 0,
            http_port: 0,
            cluster: String::new(),
            machines: Vec::new(),
        };
        Ok(Service {
            poll,
            listener: prepared.listener,
            files: prepared.files,
            journal: prepared.journal,
            journal_directory: prepared.journal_directory,
            neighbours: prepared.neighbours,
            loader_directories: prepared.loaders,
            outlet: Outlet::default(),
            awaits_room: false,
            watched: HashMap::new(),
            next_token: FIRST_DYNAMIC_TOKEN,
            next_wire: 0,
            wires: Vec::new(),
            http_port: 0,
            server: None,
            site: Site::new(nothing),
            batch: Batch::default(),
            clients: Clients::default(),
            transfers: Transfers::default(),
            dns: Dns::default(),
            told: HashMap::new(),
            started: Instant::now(),
            now_ms: 0,
            attend_at_ms: 0,
            sweep_at_ms: 0,
            announces: false,
            is_ended: false,
        })
    }

    fn serve(&mut self) -> Result<(), ServiceError> {
        let mut ready = Vec::new();
        while !self.is_ended {
            let due_ms = self.do_what_is_due();
            self.flush_head();
            let left = due_ms.map(|due| due.saturating_sub(self.now_ms()));
            self.poll
                .wait(&mut ready, left.map(Duration::from_millis))
                .map_err(|errno| ServiceError::Setup {
                    what: "wait for events",
                    errno,
                })?;
            self.now_ms = self.now_ms();
            for one in &ready {
                self.dispatch(*one);
            }
            self.finish_batch();
        }
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn dispatch(&mut self, ready: Ready) {
        match ready.token {
            LISTENER => self.accept_head(),
            HEAD => self.read_head(),
            token => match self.watched.get(&token).copied() {
                Some(Watched::Wire(wire, Use::Dhcp)) => self.dhcp_packets(wire, Port::Server),
                Some(Watched::Wire(wire, Use::Proxy)) => self.dhcp_packets(wire, Port::Proxy),
                Some(Watched::Wire(wire, Use::Tftp)) => self.tftp_requests(wire),
                Some(Watched::Wire(wire, Use::Http)) => self.accept_clients(wire),
                Some(Watched::Wire(wire, Use::Router)) => {
                    if let Some(wire) = self.wire(wire) {
                        wire.answer_solicitations(PACKETS_PER_TURN);
                    }
                }
                Some(Watched::Probe(wire)) => self.probe_ready(wire),
                Some(Watched::Client) => self.client_ready(ready),
                Some(Watched::Transfer) => self.transfer_ready(token),
                Some(Watched::Dns(what)) => self.dns_ready(token, what, ready.readable),
                None => {}
            },
        }
    }

    /// Returns when there is something to do again.
    fn do_what_is_due(&mut self) -> Option<u64> {
        self.now_ms = self.now_ms();
        if self.attend_at_ms <= self.now_ms && !self.wires.is_empty() {
            self.attend_at_ms = self.now_ms + ATTEND_MS;
            for index in 0..self.wires.len() {
                self.attend(index);
            }
            self.attend_dns();
        }
        let probes = self.continue_probes();
        self.wake_transfers();
        if self.sweep_at_ms <= self.now_ms {
            self.sweep_at_ms = self.now_ms + SWEEP_MS;
            self.drop_late_clients();
        }
        self.announce();
        let attend = (!self.wires.is_empty()).then_some(self.attend_at_ms);
        let sweep = (!self.clients.is_empty()).then_some(self.sweep_at_ms);
        let names = self.dns_due();
        [attend, probes, self.transfers.due_ms(), sweep, names]
            .into_iter()
            .flatten()
            .min()
    }

    // --- the head -------------------------------------------------------------------------

    fn accept_head(&mut self) {
        let Ok((socket, _)) = self.listener.accept() else {
            return;
        };
        // What the old head had still sent counts, as if it had been read in time.
        for _ in 0..LAST_READS {
            let unread = self.outlet.head().map(Channel::receive);
            if !matches!(unread, Some(Ok(true))) {
                break;
            }
            self.obey();
        }
        self.drop_head();
        let welcomed = Channel::new(socket.into()).and_then(|channel| {
            self.poll.add(&channel, HEAD, Interest::Read)?;
            self.outlet.welcome(channel);
            Ok(())
        });
        match welcomed {
            Ok(()) => {
                self.told.clear();
                self.wires.iter_mut().for_each(Wire::forget_problems);
            }
            Err(error) => log(&format!("a head could not be served: {error}")),
        }
    }

    fn read_head(&mut self) {
        let Some(head) = self.outlet.head() else {
            return;
        };
        let is_over = head.receive().is_err();
        self.obey();
        if is_over {
            self.drop_head();
        }
    }

    fn obey(&mut self) {
        loop {
            let message = match self.outlet.head().map(Channel::next_message) {
                Some(Ok(Some(message))) => message,
                Some(Ok(None)) | None => return,
                Some(Err(error)) => {
                    log(&format!("the head: {error}"));
                    return self.drop_head();
                }
            };
            match message {
                ToBoot::Settings(settings) => self.configure(settings),
                ToBoot::Names(names) => self.name(names.as_deref()),
                ToBoot::End => self.is_ended = true,
            }
        }
    }

    fn drop_head(&mut self) {
        if let Some(head) = self.outlet.drop_head() {
            let _ = self.poll.remove(&head);
        }
        self.awaits_room = false;
    }

    fn flush_head(&mut self) {
        let Some(head) = self.outlet.head() else {
            return;
        };
        if let Err(error) = head.flush() {
            log(&format!("the head: {error}"));
            return self.drop_head();
        }
        let wants_room = head.wants_write();
        if wants_room != self.awaits_room {
            self.awaits_room = wants_room;
            let _ = self
                .poll
                .modify(&*head, HEAD, Interest::read_and(wants_room));
        }
    }

    // --- settings -------------------------------------------------------------------------

    fn configure(&mut self, settings: BootSettings) {
        // What came before is answered as things were.
        self.finish_batch();
        let mut old = std::mem::take(&mut self.wires);
        let is_new_port = self.http_port != settings.http_port;
        self.http_port = settings.http_port;
        for interface in &settings.interfaces {
            let found = old.iter().position(|wire| wire.fits(interface));
            let mut wire = match found {
                Some(index) => old.swap_remove(index),
                None => {
                    self.next_wire += 1;
                    Wire::new(self.next_wire, interface.clone())
                }
            };
            if wire.settings.service != interface.service {
                wire.state = State::New;
            } else if let State::Silent { again_ms, .. } = &mut wire.state {
                // Perhaps somebody has looked at it.
                *again_ms = 0;
            }
            wire.settings = interface.clone();
            if is_new_port {
                wire.close_http();
            }
            self.wires.push(wire);
        }
        // Their sockets first, so that others of the same name can be opened.
        drop(old);
        self.site.configure(settings.clone());
        let server = match &mut self.server {
            Some(server) => {
                server.configure(settings);
                server
            }
            none => none.insert(Server::new(settings, self.journal.leases())),
        };
        let loaders: Vec<_> = self.files.loaders().map(str::to_owned).collect();
        let is_without = loaders.is_empty();
        server.set_loaders(loaders);
        server.resolve_names(self.dns.resolves());
        if is_without {
            let places: Vec<_> = self
                .loader_directories
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            let text = format!(
                "there is no network boot program in {}, so only machines that bring iPXE with \
                 them can start: `apt install ipxe`",
                places.join(" or ")
            );
            self.problem_now_and_then(None, text);
        }
        for index in 0..self.wires.len() {
            self.attend(index);
        }
        self.attend_dns();
        self.attend_at_ms = self.now_ms + ATTEND_MS;
        self.forget_closed();
        self.announces = true;
    }

    /// Tokens of sockets that are closed.
    fn forget_closed(&mut self) {
        let wires = &self.wires;
        self.watched.retain(|_, watched| match watched {
            Watched::Wire(number, _) | Watched::Probe(number) => {
                wires.iter().any(|wire| wire.number == *number)
            }
            Watched::Client | Watched::Transfer | Watched::Dns(_) => true,
        });
    }

    /// Tells the head where machines are served, once it is decided everywhere.
    fn announce(&mut self) {
        let is_deciding = |wire: &Wire| matches!(wire.state, State::Probing(_));
        if !self.announces || self.wires.iter().any(is_deciding) || self.server.is_none() {
            return;
        }
        self.announces = false;
        let listeners = self.wires.iter().filter_map(|wire| wire.http.as_ref());
        let http = listeners
            .filter_map(|listener| match listener.local_addr() {
                Ok(std::net::SocketAddr::V4(address)) => Some(address),
                Ok(_) | Err(_) => None,
            })
            .collect();
        let silent = self
            .wires
            .iter()
            .filter_map(|wire| Some((wire.settings.name.clone(), wire.silent_for()?)))
            .collect();
        self.outlet.tell(FromBoot::Ready { http, silent });
    }

    // --- small things ---------------------------------------------------------------------

    fn wire(&self, number: u64) -> Option<&Wire> {
        self.wires.iter().find(|wire| wire.number == number)
    }

    fn watch(&mut self, fd: impl AsFd, watched: Watched) -> Result<Token, Errno> {
        let token = watch(&self.poll, &mut self.next_token, fd)?;
        self.watched.insert(token, watched);
        Ok(token)
    }

    /// Watches a socket of an interface that was just opened.
    fn watch_use(&mut self, number: u64, what: Use) {
        let Some(wire) = self.wires.iter().find(|wire| wire.number == number) else {
            return;
        };
        let fd = match what {
            Use::Dhcp => wire.dhcp.as_ref().map(AsFd::as_fd),
            Use::Proxy => wire.proxy.as_ref().map(AsFd::as_fd),
            Use::Tftp => wire.tftp.as_ref().map(AsFd::as_fd),
            Use::Http => wire.http.as_ref().map(AsFd::as_fd),
            Use::Router => wire.router.as_ref().map(AsFd::as_fd),
        };
        let Some(fd) = fd else {
            return;
        };
        match watch(&self.poll, &mut self.next_token, fd) {
            Ok(token) => {
                self.watched.insert(token, Watched::Wire(number, what));
            }
            Err(errno) => log(&format!("{}: can't watch: {errno}", wire.settings.name)),
        }
    }

    /// Something an administrator should know.
    fn problem(&mut self, interface: Option<usize>, text: String) {
        log(&text);
        let wire = interface.and_then(|index| self.wires.get(index));
        let interface = wire.map(|wire| wire.settings.name.clone());
        self.outlet.tell(FromBoot::Problem { interface, text });
    }

    /// Likewise, if it was not told just now.
    fn problem_now_and_then(&mut self, interface: Option<usize>, text: String) {
        let now_ms = self.now_ms;
        let last = self.told.get(&text);
        if last.is_some_and(|last| now_ms - last < PROBLEM_MS) {
            return;
        }
        if self.told.len() >= MAX_PROBLEMS {
            self.told.clear();
        }
        self.told.insert(text.clone(), now_ms);
        self.problem(interface, text);
    }
}

fn watch(poll: &Poll, next_token: &mut u64, fd: impl AsFd) -> Result<Token, Errno> {
    let token = Token(*next_token);
    poll.add(fd, token, Interest::Read)?;
    *next_token += 1;
    Ok(token)
}

/// The time of day.
fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn unix_ms() -> u64 {
    u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX)
}

fn unix_s() -> i64 {
    i64::try_from(unix_time().as_secs()).unwrap_or(i64::MAX)
}
