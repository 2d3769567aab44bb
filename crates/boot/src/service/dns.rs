//! DNS's sockets: on each wire one that hears questions and one for those by TCP, and one for each
//! question that is passed on, so that nobody but the server that was asked can answer.

mod tcp;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use wiglaf_link::Token;
use wiglaf_linux::raw_socket;
use wiglaf_wire::names::{DNS_PORT, NameService};

use self::tcp::Conversations;
use super::{PACKETS_PER_TURN, Service, Watched as Any, log, watch};
use crate::dns::{Asker, Effect, Key, Names, Relay};

/// Longest message that is read over UDP: what askers say that they take is 4096 at most.
const PACKET_BYTES: usize = 4096;
const BACKLOG: i32 = 64;

/// What a token of DNS stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Questions on a wire.
    Questions(u64),
    /// Connections on a wire.
    Connections(u64),
    /// The server that was asked.
    Server(Key),
    /// Who asks by TCP; the token is its own.
    Client,
    /// The server that is asked for the client of this token.
    Upstream(Token),
}

/// Names, and who asks for them.
#[derive(Default)]
pub(super) struct Dns {
    /// `None`: nobody is answered.
    names: Option<Names>,
    wires: Vec<Heard>,
    relay: Relay,
    asked: HashMap<Key, UdpSocket>,
    conversations: Conversations,
}

/// The sockets on one wire.
struct Heard {
    number: u64,
    index: u32,
    udp: Option<UdpSocket>,
    tcp: Option<TcpListener>,
    /// What was told already.
    problem: Option<String>,
}

impl Dns {
    /// Whether names are answered.
    pub(super) fn resolves(&self) -> bool {
        self.names.is_some()
    }
}

impl Service {
    /// The head says what names there are.
    pub(super) fn name(&mut self, told: Option<&NameService>) {
        self.dns.names = told.map(Names::new);
        if let Some(server) = &mut self.server {
            server.resolve_names(told.is_some());
        }
        if self.dns.names.is_none() {
            self.dns.wires.clear();
        }
        // It may be another head, which has heard nothing yet.
        for wire in &mut self.dns.wires {
            wire.problem = None;
        }
        self.attend_dns();
    }

    /// Opens what is not open.
    pub(super) fn attend_dns(&mut self) {
        if self.dns.names.is_none() {
            return;
        }
        let wires = &self.wires;
        let is_there = |heard: &Heard| {
            let mut wires = wires.iter();
            wires.any(|wire| (wire.number, wire.index) == (heard.number, heard.index))
        };
        self.dns.wires.retain(is_there);
        let heard = &self.dns.wires;
        self.watched.retain(|_, watched| match watched {
            Any::Dns(Watched::Questions(wire) | Watched::Connections(wire)) => {
                heard.iter().any(|heard| heard.number == *wire)
            }
            _ => true,
        });
        for place in 0..self.wires.len() {
            let wire = &self.wires[place];
            let (number, index) = (wire.number, wire.index);
            if index == 0 {
                continue;
            }
            let (name, own) = (wire.settings.name.clone(), wire.settings.address);
            let found = self
                .dns
                .wires
                .iter()
                .position(|heard| heard.number == number);
            let at = found.unwrap_or_else(|| {
                self.dns.wires.push(Heard {
                    number,
                    index,
                    udp: None,
                    tcp: None,
                    problem: None,
                });
                self.dns.wires.len() - 1
            });
            let heard = &mut self.dns.wires[at];
            let problem = heard.open(
                &self.poll,
                &mut self.next_token,
                &mut self.watched,
                &name,
                own,
            );
            let text = problem
                .err()
                .map(|(protocol, errno)| explain(&name, protocol, own, errno));
            if let Some(text) = text.clone()
                && heard.problem.as_ref() != Some(&text)
            {
                self.problem(Some(place), text);
            }
            self.dns.wires[at].problem = text;
        }
    }

    pub(super) fn dns_ready(&mut self, token: Token, watched: Watched, readable: bool) {
        match watched {
            Watched::Questions(wire) => self.dns_questions(wire),
            Watched::Connections(wire) => self.dns_connections(wire),
            Watched::Server(key) => self.dns_server_ready(token, key),
            Watched::Client => self.dns_client_ready(token, readable),
            Watched::Upstream(client) => self.dns_upstream_ready(client, readable),
        }
    }

    /// Returns when there is something to do again.
    pub(super) fn dns_due(&mut self) -> Option<u64> {
        let now_ms = self.now_ms;
        if self.dns.relay.due_ms().is_some_and(|due| due <= now_ms) {
            let servers = self.dns_servers();
            let effects = self.dns.relay.tick(now_ms, &servers);
            self.carry_out_dns(effects);
        }
        self.end_late_conversations();
        let conversations = self.dns.conversations.due_ms();
        [self.dns.relay.due_ms(), conversations]
            .into_iter()
            .flatten()
            .min()
    }

    fn dns_questions(&mut self, wire: u64) {
        let mut buffer = [0; PACKET_BYTES];
        for _ in 0..PACKETS_PER_TURN {
            let heard = self.dns.wires.iter().find(|heard| heard.number == wire);
            let Some(socket) = heard.and_then(|heard| heard.udp.as_ref()) else {
                return;
            };
            let Ok((count, SocketAddr::V4(peer))) = socket.recv_from(&mut buffer) else {
                return;
            };
            if !self.may_ask(*peer.ip()) {
                continue;
            }
            let Some(own) = self.wire(wire).map(|wire| wire.settings.address) else {
                return;
            };
            let servers = self.dns_servers();
            let Some(names) = &self.dns.names else {
                return;
            };
            let asker = Asker { wire, peer };
            let known = (names, servers.as_slice(), own);
            let (now_ms, message) = (self.now_ms, &buffer[..count]);
            let effect = self
                .dns
                .relay
                .query(now_ms, asker, message, known, random());
            self.carry_out_dns(effect);
        }
    }

    /// Machines that somebody has adopted, and nodes: this is nobody else's resolver (B2).
    fn may_ask(&self, address: Ipv4Addr) -> bool {
        let names = self.dns.names.as_ref();
        self.site.is_machines(address) || names.is_some_and(|names| names.has(address.into()))
    }

    fn dns_servers(&self) -> Vec<SocketAddr> {
        let own: HashSet<IpAddr> = (self.wires.iter())
            .map(|wire| wire.settings.address.into())
            .collect();
        let names = self.dns.names.as_ref();
        names.map(|names| names.servers(&own)).unwrap_or_default()
    }

    fn carry_out_dns(&mut self, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            match effect {
                Effect::Answer(asker, bytes) => {
                    let mut wires = self.dns.wires.iter();
                    let heard = wires.find(|heard| heard.number == asker.wire);
                    if let Some(socket) = heard.and_then(|heard| heard.udp.as_ref()) {
                        // What does not go out is asked for again.
                        let _ = socket.send_to(&bytes, asker.peer);
                    }
                }
                Effect::Ask(key, server, bytes) => {
                    self.close_asked(key);
                    let asked = ask(server, &bytes).and_then(|socket| {
                        self.watch(&socket, Any::Dns(Watched::Server(key)))?;
                        Ok(socket)
                    });
                    match asked {
                        Ok(socket) => {
                            self.dns.asked.insert(key, socket);
                        }
                        Err(errno) => {
                            let text = format!("can't ask the name server {server}: {errno}");
                            self.problem_now_and_then(None, text);
                            // Its time runs; then another is asked.
                        }
                    }
                }
                Effect::Close(key) => self.close_asked(key),
            }
        }
    }

    fn close_asked(&mut self, key: Key) {
        if self.dns.asked.remove(&key).is_some() {
            let its = Any::Dns(Watched::Server(key));
            self.watched.retain(|_, watched| *watched != its);
        }
    }

    fn dns_server_ready(&mut self, token: Token, key: Key) {
        let mut buffer = [0; PACKET_BYTES];
        for _ in 0..PACKETS_PER_TURN {
            let Some(socket) = self.dns.asked.get(&key) else {
                self.watched.remove(&token);
                return;
            };
            let servers = self.dns_servers();
            let now_ms = self.now_ms;
            let effects = match socket.recv(&mut buffer) {
                Ok(count) => {
                    let message = &buffer[..count];
                    self.dns.relay.reply(now_ms, key, message, &servers)
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // Nobody listens there, or no way leads there.
                Err(_) => self.dns.relay.failed(now_ms, key, &servers),
            };
            self.carry_out_dns(effects);
        }
    }
}

impl Heard {
    fn open(
        &mut self,
        poll: &wiglaf_link::Poll,
        next_token: &mut u64,
        watched: &mut HashMap<Token, Any>,
        interface: &str,
        own: Ipv4Addr,
    ) -> Result<(), (&'static str, Errno)> {
        let address = SocketAddrV4::new(own, DNS_PORT);
        if self.udp.is_none() {
            let socket: UdpSocket = bound(interface, SocketType::DGRAM, address)
                .map_err(|errno| ("UDP", errno))?
                .into();
            let token = watch(poll, next_token, &socket).map_err(|errno| ("UDP", errno))?;
            watched.insert(token, Any::Dns(Watched::Questions(self.number)));
            self.udp = Some(socket);
        }
        if self.tcp.is_none() {
            let listener: TcpListener = bound(interface, SocketType::STREAM, address)
                .and_then(|socket| {
                    rustix::net::listen(&socket, BACKLOG)?;
                    Ok(socket.into())
                })
                .map_err(|errno| ("TCP", errno))?;
            let token = watch(poll, next_token, &listener).map_err(|errno| ("TCP", errno))?;
            watched.insert(token, Any::Dns(Watched::Connections(self.number)));
            self.tcp = Some(listener);
        }
        Ok(())
    }
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A socket that hears and speaks on one wire only (S2).
fn bound(interface: &str, kind: SocketType, address: SocketAddrV4) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, FLAGS, None)?;
    raw_socket::bind_to_device(&socket, interface)?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// The kernel chooses the port, at random, and lets nobody but the server answer.
fn ask(server: SocketAddr, bytes: &[u8]) -> Result<UdpSocket, Errno> {
    let family = family_of(server);
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, FLAGS, None)?;
    rustix::net::connect(&socket, &server)?;
    rustix::net::send(&socket, bytes, rustix::net::SendFlags::NOSIGNAL)?;
    Ok(socket.into())
}

fn family_of(server: SocketAddr) -> AddressFamily {
    match server {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

fn explain(interface: &str, protocol: &str, own: Ipv4Addr, errno: Errno) -> String {
    let list = if protocol == "UDP" { "-ulnp" } else { "-tlnp" };
    match errno {
        Errno::ADDRINUSE => format!(
            "{protocol} port {DNS_PORT} of {own} is taken by another program, which is asked for \
             names now by the nodes there; as root, `ss {list} 'sport = :{DNS_PORT}'` says which. \
             If it is not to be, tell it to leave {interface} alone (dnsmasq: \
             except-interface={interface} and bind-interfaces; bind9: listen-on)"
        ),
        errno => format!(
            "can't answer DNS by {protocol} on {interface}: {errno}; nodes there know each \
             other's names only"
        ),
    }
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    if filled != Ok(bytes.len()) {
        // No machine has booted by us so early that there is none yet.
        log("there is no randomness for questions to name servers");
    }
    u16::from_ne_bytes(bytes)
}
