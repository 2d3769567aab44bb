//! The daemon around the reactor: one thread, one epoll loop. It owns the sockets, turns what
//! arrives into events and carries out effects. It decides nothing.
//!
//! `clients` serves commands, `agents` the nodes, `helpers` the keeper and the deputies, `boot`
//! machines that start, `power` their switches, `configured` what may be configured meanwhile; `beside` finds or starts what outlives the daemon.

mod agents;
mod beside;
mod boot;
mod clients;
mod configured;
mod disk;
mod gateway;
mod helpers;
mod names;
mod power;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::time::{ClockId, clock_gettime};
use wiglaf_link::{
    Authority, Channel, Interest, LinkError, Poll, Ready, Role, TlsLink, Token, TrustError,
    server_config,
};
use wiglaf_linux::namespace::Surroundings;
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::boot::ToBoot;
use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::deputy::{FromDeputy, ToDeputy};
use wiglaf_wire::id::{DeputyId, JobId, NodeId, TaskId};
use wiglaf_wire::keeper::{FromKeeper, ToKeeper};

use crate::config::{Config, Layout};
use crate::jobs::Caller;
use crate::reactor::{Effect, Event, Policy, Reactor};
use boot::Boot;

use crate::store::{ClusterSecrets, Store, StoreError};

/// Connections that have not yet proven to be an agent's, at most.
const MAX_UNPROVEN: usize = 256;
/// How long until a connection that has not said enough is looked at again.
const LOOK_AGAIN_MS: u64 = 20;
/// Connections that wait for one deputy which is being started, at most.
const MAX_WAITING_LINKS: usize = 64;
/// How long such a connection may take.
const PROOF_WAIT_MS: u64 = 10_000;
/// Commands connected at once, at most.
const MAX_CLIENTS: usize = 16_384;
/// How long the head waits for agents and keeper at its end.
const SHUTDOWN_WAIT_MS: u64 = 3_000;

/// The daemon can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A socket.
    #[error("{what}: {errno}")]
    Socket {
        /// Which.
        what: String,
        /// Why.
        errno: Errno,
    },
    /// Another head serves this cluster.
    #[error("a head is running already for {0}; `wiglaf down` ends it")]
    AlreadyRunning(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster's certificates.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The boot service can't be started.
    #[error("the boot service can't be started: {0}")]
    Boot(String),
    /// The keeper can't be started.
    #[error("the keeper can't be started: {0}")]
    Keeper(String),
    /// The loop itself.
    #[error("the head's event loop: {0}")]
    Poll(#[from] Errno),
}

/// Milliseconds since the machine booted, sleep included.
pub(crate) fn now_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Seconds since the Epoch.
pub(crate) fn wall_clock_s() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}

const KEEPER: Token = Token(1);
const COMMANDS: Token = Token(2);
const CONNECTIONS: Token = Token(3);
const BOOT: Token = Token(4);
/// Tokens of what comes and goes: kind in the top byte, number below.
const KIND_SHIFT: u32 = 56;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deputy = 1,
    Node,
    Client,
    Unproven,
    VirtualNode,
    Switch,
    SwitchOutput,
}

fn token(kind: Kind, number: u64) -> Token {
    Token((kind as u64) << KIND_SHIFT | number)
}

type ClientChannel = Channel<Request, Reply>;
type AgentLink = TlsLink<FromAgent, ToAgent>;

struct Client {
    channel: ClientChannel,
    caller: Caller,
    greeted: bool,
    awaits_room: bool,
    /// It holds virtual nodes: when it goes, nobody is left to prove their end.
    is_rack: bool,
}

enum Unproven {
    /// Its ClientHello has not been seen whole; looked at again at this time, because what is
    /// only looked at stays readable.
    Fresh(OwnedFd, Option<u64>),
    /// TLS is up or coming up; the first message decides.
    Handshake(Box<AgentLink>),
}

struct Deputy {
    channel: Channel<FromDeputy, ToDeputy>,
    awaits_room: bool,
}

/// A member's connection.
struct Agent {
    link: AgentLink,
    awaits_room: bool,
}

struct Keeper {
    channel: Channel<FromKeeper, ToKeeper>,
    awaits_room: bool,
}

/// The descriptors of a task on their way from its command to keeper and deputy.
struct Parcel {
    control: Option<OwnedFd>,
    stdio: Option<Vec<OwnedFd>>,
}

/// The head daemon.
pub struct Daemon {
    layout: Layout,
    config: Config,
    /// What callers must not see less than, unless they may be confined.
    outside: Option<Surroundings>,
    cluster: String,
    poll: Poll,
    reactor: Reactor,
    store: Store,
    authority: Authority,
    tls: Arc<rustls::ServerConfig>,
    commands: OwnedFd,
    /// Sockets that agents dial: the configured one, and the rack's with its client's number.
    listeners: Vec<(Option<u64>, OwnedFd)>,
    keeper: Option<Keeper>,
    boot: Boot,
    names: names::Told,
    power: power::Power,
    began_ms: u64,
    clients: HashMap<u64, Client>,
    unproven: HashMap<u64, (Unproven, u64)>,
    agents: HashMap<NodeId, Agent>,
    deputies: HashMap<DeputyId, Deputy>,
    /// For deputies whose channel has not arrived: messages that wait, in order.
    deputy_queues: HashMap<DeputyId, VecDeque<(ToDeputy, Vec<OwnedFd>)>>,
    virtual_nodes: HashMap<NodeId, OwnedFd>,
    parcels: BTreeMap<TaskId, Parcel>,
    dirty: BTreeSet<Token>,
    next_number: u64,
    job_limit: u64,
    ending_at_ms: Option<u64>,
}

impl Daemon {
    /// Opens the cluster's files and sockets, and finds the keeper of an earlier head or starts
    /// one.
    ///
    /// # Errors
    /// Whatever is missing.
    pub fn start(layout: Layout, config: Config) -> Result<Daemon, DaemonError> {
        let commands = listen_for_commands(&layout)?;
        let store = Store::open(&layout.database())?;
        let secrets = open_cluster(&store)?;
        let authority = Authority::load(secrets.certificate, secrets.key)?;
        let tls = server_config(&authority.issue(Role::Head)?, true)?;
        let (next_job, job_limit) = store.grant_jobs()?;
        let policy = Policy {
            lease_ms: config.lease_ms,
            margin_ms: config.lease_ms / 12,
            admin_gid: config.admin_gid,
            own_uid: rustix::process::geteuid().as_raw(),
            root_on_nodes: config.root_on_nodes,
        };
        let reactor = Reactor::new(policy, store.nodes()?, store.jobs()?, next_job);
        let mut machines = store.machines()?;
        machines.govern(config.boot.approve, config.boot.adopt.clone());
        if let Some(window) = store.window()? {
            machines.reopen(boot::now(), window);
        }
        let poll = Poll::new()?;
        poll.add(&commands, COMMANDS, Interest::Read)?;
        let mut daemon = Daemon {
            cluster: secrets.cluster,
            poll,
            reactor,
            store,
            authority,
            tls,
            commands,
            listeners: Vec::new(),
            keeper: None,
            boot: Boot::new(machines),
            names: names::Told::default(),
            power: power::Power::default(),
            began_ms: now_ms(),
            clients: HashMap::new(),
            unproven: HashMap::new(),
            agents: HashMap::new(),
            deputies: HashMap::new(),
            deputy_queues: HashMap::new(),
            virtual_nodes: HashMap::new(),
            parcels: BTreeMap::new(),
            dirty: BTreeSet::new(),
            next_number: 1,
            job_limit,
            ending_at_ms: None,
            layout,
            outside: if config.allow_confined_callers {
                None
            } else {
                Some(Surroundings::own()?)
            },
            config,
        };
        if let Some(address) = daemon.config.listen {
            daemon.listen_for_agents(address)?;
        }
        daemon.connect_keeper()?;
        if daemon.boot.machines.served().next().is_some() {
            daemon.arrange_boot();
        }
        Ok(daemon)
    }

    /// Serves until the cluster is ended.
    ///
    /// # Errors
    /// The loop itself fails.
    pub fn run(mut self) -> Result<(), DaemonError> {
        let mut ready = Vec::new();
        loop {
            self.flush_dirty();
            if self.ending_at_ms.is_some_and(|at| now_ms() >= at)
                || (self.ending_at_ms.is_some() && self.keeper.is_none())
            {
                let _ = std::fs::remove_file(self.layout.head_socket());
                return Ok(());
            }
            self.poll.wait(&mut ready, self.timeout())?;
            for event in &ready {
                self.ready(*event);
            }
            self.drop_late_unproven();
            self.look_again();
            if self.boot.retry_at_ms.is_some_and(|at| at <= now_ms()) {
                self.arrange_boot();
            }
            self.end_late_switches();
            self.look_at_names();
            self.event(Event::Tick);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let proofs = self.unproven.values().map(|(_, deadline)| *deadline);
        let looks = self
            .unproven
            .values()
            .filter_map(|(connection, _)| match connection {
                Unproven::Fresh(_, at) => *at,
                Unproven::Handshake(_) => None,
            });
        let next = proofs
            .chain(looks)
            .chain(self.reactor.next_deadline_ms())
            .chain(self.ending_at_ms)
            .chain(self.boot.retry_at_ms)
            .chain(self.names_due_ms())
            .chain(self.switch_deadline_ms())
            .min()?;
        // One more, because a deadline is passed when the clock has ticked beyond it.
        Some(Duration::from_millis(next.saturating_sub(now_ms()) + 1))
    }

    fn ready(&mut self, event: Ready) {
        match event.token {
            KEEPER => self.keeper_ready(event),
            COMMANDS => self.accept_commands(),
            CONNECTIONS => self.accept_connections(),
            BOOT => self.boot_ready(event),
            Token(number) => {
                let kind = number >> KIND_SHIFT;
                let number = number & ((1 << KIND_SHIFT) - 1);
                let narrow = u32::try_from(number).unwrap_or(u32::MAX);
                match kind {
                    kind if kind == Kind::Client as u64 => self.client_ready(number, event),
                    kind if kind == Kind::Unproven as u64 => self.unproven_ready(number),
                    kind if kind == Kind::Node as u64 => self.agent_ready(NodeId(narrow), event),
                    kind if kind == Kind::Deputy as u64 => {
                        self.deputy_ready(DeputyId(number), event);
                    }
                    kind if kind == Kind::Switch as u64 => self.switch_ready(number),
                    kind if kind == Kind::SwitchOutput as u64 => self.switch_output_ready(number),
                    _ => self.virtual_node_died(NodeId(narrow)),
                }
            }
        }
    }

    fn event(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.reactor.handle(now_ms(), event, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::ToNode(node, message) => {
                self.tell_agent(node, &message);
                if matches!(message, ToAgent::Renewed { .. }) {
                    self.tell_time(node);
                }
            }
            Effect::DropNode(node) => self.drop_agent(node),
            Effect::ToKeeper(message) => self.tell_keeper(&message),
            Effect::ToDeputy(deputy, message) => self.tell_deputy(deputy, message),
            Effect::Reply(client, reply) => self.reply(client, &reply, Vec::new()),
            Effect::ReplyLogs(client, task, running) => self.reply_logs(client, task, running),
            Effect::Forget(task) => {
                self.parcels.remove(&task);
            }
            Effect::StoreNode(node) => self.log_failure(self.store.put_node(&node)),
            Effect::StoreJob(job) => match self.store.put_job(&job) {
                Ok(old) => old.into_iter().for_each(|job| self.remove_logs(job)),
                Err(error) => self.log_failure(Err(error)),
            },
            Effect::MakeToken(client, valid_ms) => self.make_token(client, valid_ms),
            Effect::ReplyHeadStatus(client) => self.reply_head_status(client),
            Effect::Shutdown => self.shut_down(),
        }
        if self.reactor.next_job() >= self.job_limit {
            match self.store.grant_jobs() {
                Ok((_, end)) => self.job_limit = end,
                Err(error) => self.log_failure(Err(error)),
            }
        }
    }

    fn log_failure(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            log(&format!("{error}"));
        }
    }

    fn shut_down(&mut self) {
        self.ending_at_ms = Some(now_ms() + SHUTDOWN_WAIT_MS);
        let racks: Vec<_> = self
            .clients
            .values()
            .filter(|c| c.is_rack)
            .map(|c| c.caller.client)
            .collect();
        for rack in racks {
            self.reply(rack, &Reply::Ending, Vec::new());
        }
        self.tell_boot(&ToBoot::End);
        let text = "the cluster was ended (`wiglaf down`)".to_owned();
        self.tell_keeper(&ToKeeper::Shutdown { text });
    }

    fn remove_logs(&self, job: JobId) {
        let _ = std::fs::remove_dir_all(self.job_directory(job));
    }

    fn job_directory(&self, job: JobId) -> std::path::PathBuf {
        self.layout.state.join("jobs").join(job.to_string())
    }

    /// Writes what effects have queued; waits for room only where there is none.
    fn flush_dirty(&mut self) {
        // Deputies first: when a command hears `Go`, its streams must be held by its deputy, or a
        // crash between the two would lose them. Commands come last.
        let mut clients = Vec::new();
        for dirty in std::mem::take(&mut self.dirty) {
            let kind = dirty.0 >> KIND_SHIFT;
            let number = dirty.0 & ((1 << KIND_SHIFT) - 1);
            if kind == Kind::Client as u64 {
                clients.push(number);
            } else if kind == Kind::Node as u64 {
                self.flush_agent(NodeId(u32::try_from(number).unwrap_or(u32::MAX)));
            } else if kind == Kind::Deputy as u64 {
                self.flush_deputy(DeputyId(number));
            }
        }
        self.flush_keeper();
        clients
            .into_iter()
            .for_each(|client| self.flush_client(client));
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

/// One line to the daemon's log, which is its standard error.
pub(crate) fn log(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn open_cluster(store: &Store) -> Result<ClusterSecrets, DaemonError> {
    if let Some(secrets) = store.secrets()? {
        return Ok(secrets);
    }
    initialise(store)?;
    store
        .secrets()?
        .ok_or_else(|| DaemonError::Store(rusqlite::Error::QueryReturnedNoRows.into()))
}

/// Makes a new cluster: its identifier and its CA.
///
/// # Errors
/// The database, or no randomness.
pub fn initialise(store: &Store) -> Result<String, DaemonError> {
    let mut bytes = [0; 3];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let cluster: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let authority = Authority::create(&cluster)?;
    store.initialise(&ClusterSecrets {
        cluster: cluster.clone(),
        certificate: authority.certificate().to_vec(),
        key: authority.key().to_vec(),
    })?;
    Ok(cluster)
}

fn listen_for_commands(layout: &Layout) -> Result<OwnedFd, DaemonError> {
    let path = layout.head_socket();
    let failed = |errno| DaemonError::Socket {
        what: path.display().to_string(),
        errno,
    };
    let address = SocketAddrUnix::new(&path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::AGAIN) => {
            return Err(DaemonError::AlreadyRunning(
                layout.run.display().to_string(),
            ));
        }
        // What a head that was killed has left behind.
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(&path).map_err(failed)?,
        Err(_) => {}
    }
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    // Everybody may call; the kernel says who does.
    let open = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::chmod(&path, open).map_err(failed)?;
    rustix::net::listen(&socket, 1024).map_err(failed)?;
    Ok(socket)
}

/// Waits for room to write only where there is none; asks the kernel only when that changes.
fn await_room(poll: &Poll, fd: impl AsFd, token: Token, awaits: &mut bool, wanted: bool) {
    if *awaits != wanted {
        *awaits = wanted;
        // It is in the set as long as its connection is in the tables.
        let _ = poll.modify(fd, token, Interest::read_and(wanted));
    }
}

/// A process of ours that outlives the daemon, if it is there.
fn dial(path: &std::path::Path) -> Option<OwnedFd> {
    let address = SocketAddrUnix::new(path).ok()?;
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&socket, &address).ok()?;
    Some(socket)
}

fn accept(listener: impl AsFd) -> Option<OwnedFd> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()
}

fn is_over(result: Result<bool, LinkError>) -> (bool, Option<LinkError>) {
    match result {
        Ok(read) => (read, None),
        Err(error) => (false, Some(error)),
    }
}
