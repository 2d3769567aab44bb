//! Machines that boot from the network: the service that answers them, what commands want of
//! them, and who of them may join. The decisions are `machines`'.

mod requests;

use std::collections::VecDeque;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use wiglaf_link::{Channel, Interest, LinkError, Ready, approval_code, public_key_digest};
use wiglaf_linux::interface;
use wiglaf_linux::raw_socket::bind_to_device;
use wiglaf_wire::agent::ToAgent;
use wiglaf_wire::boot::{BootInterface, FromBoot, Mac, Sighting, Stage, ToBoot};

use super::beside::Beside;
use super::configured::Stamp;
use super::gateway;
use super::{
    BOOT, CONNECTIONS, Daemon, DaemonError, await_room, is_over, log, now_ms, wall_clock_s,
};
use crate::machines::{Machines, Now, Seen, Served, Verdict};
use crate::node_table::Presence;
use crate::store::StoreError;

/// Where images are served, unless told otherwise: beside the agents' port, and unassigned.
const HTTP_PORT: u16 = 7495;
/// Where agents connect on an interface that machines boot by.
const AGENT_PORT: u16 = 7494;
/// How long until a service that has died, or an address that is not there, is tried again.
const RETRY_MS: u64 = 5_000;
/// Problems that are remembered.
const MAX_PROBLEMS: usize = 50;
/// A node's boot log, before it is put aside as `.old`.
const MAX_LOG_BYTES: u64 = 1 << 20;

/// What the daemon has of the boot service.
#[derive(Default)]
pub(super) struct Boot {
    pub(super) machines: Machines,
    channel: Option<BootChannel>,
    http: Vec<SocketAddrV4>,
    /// Where another DHCP server answers, and which.
    silent: Vec<(String, Ipv4Addr)>,
    problems: VecDeque<(i64, String)>,
    pub(super) retry_at_ms: Option<u64>,
    /// The configuration file that was last taken in.
    pub(super) configured: Option<Stamp>,
    /// Sockets that booted agents dial, by interface.
    listeners: Vec<(String, OwnedFd)>,
}

struct BootChannel {
    channel: Channel<FromBoot, ToBoot>,
    awaits_room: bool,
}

pub(super) fn now() -> Now {
    Now {
        ms: now_ms(),
        wall_s: wall_clock_s(),
    }
}

impl Boot {
    pub(super) fn new(machines: Machines) -> Boot {
        Boot {
            machines,
            ..Boot::default()
        }
    }

    pub(super) fn listeners(&self) -> impl Iterator<Item = &OwnedFd> {
        self.listeners.iter().map(|(_, socket)| socket)
    }

    pub(super) fn problem(&mut self, text: String) {
        match self.problems.iter().position(|(_, known)| *known == text) {
            Some(place) => {
                self.problems.remove(place);
            }
            // What comes again and again is in the log once.
            None => log(&text),
        }
        if self.problems.len() >= MAX_PROBLEMS {
            self.problems.pop_front();
        }
        self.problems.push_back((wall_clock_s(), text));
    }
}

impl Daemon {
    /// Brings everything that machines need into the state that is wanted: addresses, sockets, the
    /// service with its settings. What fails is told, and tried again.
    pub(super) fn arrange_boot(&mut self) {
        self.boot.retry_at_ms = None;
        self.boot.machines.follow_groups(self.reactor.nodes());
        let wanted: Vec<Served> = self.boot.machines.served().cloned().collect();
        let is_wanted = |name: &String| wanted.iter().any(|served| served.interface.name == *name);
        for (_, socket) in self
            .boot
            .listeners
            .extract_if(.., |(name, _)| !is_wanted(name))
        {
            let _ = self.poll.remove(&socket);
        }
        for served in &wanted {
            if let Err(text) = self.arrange_interface(served) {
                self.boot.problem(text);
                self.boot.retry_at_ms = Some(now_ms() + RETRY_MS);
            }
        }
        if self.boot.machines.outer().is_some()
            && let Err(text) = self.arrange_gateway()
        {
            self.boot.problem(text);
            self.boot.retry_at_ms = Some(now_ms() + RETRY_MS);
        }
        if wanted.is_empty() {
            self.tell_boot(&ToBoot::End);
            return;
        }
        if self.boot.channel.is_none()
            && let Err(error) = self.connect_boot()
        {
            self.boot.problem(error.to_string());
            self.boot.retry_at_ms = Some(now_ms() + RETRY_MS);
            return;
        }
        let settings = self.boot.machines.settings(
            &self.cluster,
            &self.config.boot.arguments,
            AGENT_PORT,
            HTTP_PORT,
        );
        self.tell_boot(&ToBoot::Settings(settings));
        self.tell_boot_names();
    }

    fn arrange_gateway(&self) -> Result<(), String> {
        let machines = &self.boot.machines;
        let wires: Vec<_> = machines
            .served()
            .map(|served| served.interface.clone())
            .collect();
        let run = &self.layout.run;
        gateway::apply(&self.cluster, machines.outer(), &wires, run)
    }

    fn arrange_interface(&mut self, served: &Served) -> Result<(), String> {
        let BootInterface {
            name,
            address,
            prefix,
            ..
        } = &served.interface;
        let has = interface::address(name)
            .map_err(|errno| format!("{name}: {errno}: is the interface there? `ip link` shows"))?;
        if has.map(|(has, _)| has) != Some(*address) {
            if !served.sets_address {
                return Err(format!(
                    "{name} does not have the address {address} any more: give it back, or \
                     `wiglaf boot enable --interface {name}` anew"
                ));
            }
            interface::set_address(name, *address, *prefix)
                .map_err(|errno| format!("{name} can't be given the address {address}: {errno}"))?;
        }
        if self.boot.listeners.iter().any(|(have, socket)| {
            have == name && local_address(socket) == Some(SocketAddr::from((*address, AGENT_PORT)))
        }) {
            return Ok(());
        }
        let at = SocketAddr::from((*address, AGENT_PORT));
        let has_it = |listen: SocketAddr| {
            listen == at || listen.ip().is_unspecified() && listen.port() == AGENT_PORT
        };
        if self.config.listen.is_some_and(has_it) {
            return Ok(());
        }
        let socket = listen_on(name, at).map_err(|errno| {
            format!(
                "agents can't be listened for at {at}: {errno}: `ss -tlnp` shows who has the port"
            )
        })?;
        self.poll
            .add(&socket, CONNECTIONS, Interest::Read)
            .map_err(|errno| errno.to_string())?;
        self.boot.listeners.retain(|(have, _)| have != name);
        self.boot.listeners.push((name.clone(), socket));
        Ok(())
    }

    /// It is a program of its own: it parses what anybody sends, and must hold nothing of the
    /// head's.
    fn connect_boot(&mut self) -> Result<(), DaemonError> {
        let failed = |error: std::io::Error| DaemonError::Boot(error.to_string());
        let images = self.layout.images();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&images)
            .map_err(failed)?;
        let service = Beside {
            name: "boot",
            socket: self.layout.boot_socket(),
            command: "boot-service",
            arguments: vec!["--images".into(), images.into()],
            is_dispensable: true,
        };
        let reached = service.reach(&self.layout).map_err(DaemonError::Boot)?;
        let channel =
            Channel::new(reached.socket).map_err(|error| DaemonError::Boot(error.to_string()))?;
        self.poll.add(&channel, BOOT, Interest::Read)?;
        self.boot.channel = Some(BootChannel {
            channel,
            awaits_room: false,
        });
        Ok(())
    }

    pub(super) fn boot_ready(&mut self, ready: Ready) {
        if ready.writable {
            self.flush_boot();
        }
        if !ready.readable {
            return;
        }
        let Some(boot) = &mut self.boot.channel else {
            return;
        };
        let (_, ended) = is_over(boot.channel.receive());
        loop {
            let Some(boot) = &mut self.boot.channel else {
                return;
            };
            match boot.channel.next_message() {
                Ok(Some(message)) => self.hear_boot(message),
                Ok(None) => break,
                Err(error) => return self.boot_lost(&error),
            }
        }
        if let Some(error) = ended {
            self.boot_lost(&error);
        }
    }

    fn boot_lost(&mut self, error: &LinkError) {
        if let Some(boot) = self.boot.channel.take() {
            let _ = self.poll.remove(&boot.channel);
        }
        self.boot.http.clear();
        self.boot.silent.clear();
        if self.boot.machines.served().next().is_some() && self.ending_at_ms.is_none() {
            let log = self.layout.log("boot");
            self.boot.problem(format!(
                "the boot service has ended ({error}); it is started again; see {}",
                log.display()
            ));
            self.boot.retry_at_ms = Some(now_ms() + RETRY_MS);
        }
    }

    pub(super) fn tell_boot(&mut self, message: &ToBoot) {
        let Some(boot) = &mut self.boot.channel else {
            return;
        };
        if let Err(error) = boot.channel.queue(message, Vec::new()) {
            return self.boot_lost(&error);
        }
        self.flush_boot();
    }

    fn flush_boot(&mut self) {
        let Some(boot) = &mut self.boot.channel else {
            return;
        };
        if let Err(error) = boot.channel.flush() {
            return self.boot_lost(&error);
        }
        let wanted = boot.channel.wants_write();
        await_room(
            &self.poll,
            &boot.channel,
            BOOT,
            &mut boot.awaits_room,
            wanted,
        );
    }

    fn hear_boot(&mut self, message: FromBoot) {
        match message {
            FromBoot::Seen(sighting) => self.machine_seen(&sighting),
            FromBoot::Lines { mac, lines } => {
                if let Ok(machine) = self.boot.machines.find(&mac.to_string()) {
                    let name = machine.name.clone();
                    self.log_lines(&name, &lines);
                }
            }
            FromBoot::Problem { interface, text } => {
                let text = match interface {
                    Some(interface) => format!("{interface}: {text}"),
                    None => text,
                };
                self.boot.problem(text);
            }
            FromBoot::Ready { http, silent } => (self.boot.http, self.boot.silent) = (http, silent),
        }
    }

    fn machine_seen(&mut self, sighting: &Sighting) {
        self.heed_configuration();
        if let Seen::Adopt { name, image } = self.boot.machines.seen(now(), sighting) {
            if let Err(refusal) = self.adopt_by_rule(sighting.mac, name.as_ref(), image.as_deref())
            {
                self.boot.problem(refusal.message);
                return;
            }
            self.boot.machines.seen(now(), sighting);
        }
        let info = self.boot.machines.info(sighting.mac);
        if let Some(name) = &info.name {
            if sighting.stage <= Stage::Script {
                let client = sighting.client.as_deref().unwrap_or("it");
                let line = format!(
                    "{client} on {}: {}",
                    sighting.interface,
                    sighting.stage.name()
                );
                self.log_lines(name, &[line]);
            }
            self.mark_booting(name);
        }
    }

    /// The node's state in lists follows its machine's.
    fn mark_booting(&mut self, name: &str) {
        let is_booting = self.boot.machines.is_booting(name);
        let id = self.reactor.nodes().by_name(name).map(|node| node.id);
        if let Some(node) = id.and_then(|id| self.reactor.nodes_mut().get_mut(id)) {
            node.is_booting = is_booting;
        }
    }

    /// What a machine that boots says, with the time, for `wiglaf node log`.
    fn log_lines(&self, name: &str, lines: &[String]) {
        let path = self.node_log(name);
        let append = || -> std::io::Result<()> {
            if let Some(directory) = path.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(directory)?;
            }
            if path
                .metadata()
                .is_ok_and(|about| about.len() > MAX_LOG_BYTES)
            {
                std::fs::rename(&path, path.with_extension("old"))?;
            }
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path)?;
            let seconds = wall_clock_s();
            let text: String = lines
                .iter()
                .map(|line| format!("{seconds} {line}\n"))
                .collect();
            file.write_all(text.as_bytes())
        };
        if let Err(error) = append() {
            log(&format!("{}: {error}", path.display()));
        }
    }

    fn node_log(&self, name: &str) -> PathBuf {
        self.layout.state.join("nodes").join(format!("{name}.log"))
    }

    /// A machine that booted from the network wants a certificate.
    pub(super) fn join_booted(
        &mut self,
        version: u32,
        mac: Mac,
        key: &[u8],
        from: Option<SocketAddr>,
    ) -> ToAgent {
        let refuse = |reason: String| ToAgent::Refused { reason };
        if version != wiglaf_wire::PROTOCOL_VERSION {
            return refuse(
                "its image is of another version than the head: `wiglaf image build` on the head, \
                 and boot again"
                    .into(),
            );
        }
        let Some(from) = from else {
            return refuse("its address is not known".into());
        };
        self.heed_configuration();
        // What runs there may live until the fence (P4); asked before the permit is used up.
        let name = self.boot.machines.info(mac).name;
        if let Some(node) = name.and_then(|name| self.reactor.nodes().by_name(&name))
            && node.presence != Presence::Absent
        {
            return refuse(format!(
                "the head still waits for the end of what ran on {} before; this takes up to {} s",
                node.name,
                self.reactor.policy().lease_ms.div_ceil(1000)
            ));
        }
        let code = approval_code(&self.authority.fingerprint(), key, mac.0);
        let digest = public_key_digest(key);
        match self.boot.machines.may_join(now(), mac, from, digest, &code) {
            Verdict::Accept { name } => self.certify(&name, key),
            Verdict::Await { code } => ToAgent::AwaitApproval { code },
            Verdict::Refuse { reason } => refuse(reason),
        }
    }

    /// A node that booted from the network keeps the head's clock.
    pub(super) fn tell_time(&mut self, node: wiglaf_wire::id::NodeId) {
        let name = self.reactor.nodes().name(node);
        if self.boot.machines.find(&name).is_err() {
            return;
        }
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let unix_ns = u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec).unwrap_or(0);
        self.tell_agent(node, &ToAgent::Time { unix_ns });
    }

    /// For the next head: whoever walks along the rack does not see that this one ends.
    fn keep_window(&self) -> Result<(), StoreError> {
        self.store.put_window(self.boot.machines.last_window())
    }

    pub(super) fn machine_is_up(&mut self, node: wiglaf_wire::id::NodeId) {
        let name = self.reactor.nodes().name(node);
        if self.boot.machines.find(&name).is_ok() {
            self.boot.machines.is_up(now(), &name);
            self.log_failure(self.keep_window());
            self.mark_booting(&name);
        }
    }
}

fn local_address(socket: impl AsFd) -> Option<SocketAddr> {
    let address = rustix::net::getsockname(socket).ok()?;
    SocketAddr::try_from(address).ok()
}

/// A socket for agents that takes nothing from any other interface (S2).
fn listen_on(interface: &str, at: SocketAddr) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    bind_to_device(&socket, interface)?;
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket)
}
