//! Questions by TCP: askers come that way when an answer does not fit into a packet. A client has
//! one question under way, and a connection of its own to the server that is asked.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};

use rustix::io::Errno;
use rustix::net::SocketType;
use wiglaf_link::{Interest, Token};

use super::{FLAGS, Watched, family_of, random};
use crate::dns::{Code, Question, Stream, Verdict, is_answer_to, judge, with_id};
use crate::service::{Service, Watched as Any};

/// Connections at once, of all and of one address.
const MAX_CLIENTS: usize = 128;
const MAX_CLIENTS_PER_ADDRESS: usize = 16;
const ACCEPTS_PER_TURN: usize = 16;
/// Who says nothing for so long is cut off (RFC 7766, 6.2.3, leaves it to us).
const IDLE_MS: u64 = 10_000;
/// A server has so long to answer by TCP.
const PATIENCE_MS: u64 = 3_000;
const MAX_TRIES: usize = 3;
const READ_BYTES: usize = 16 << 10;

/// All of them.
#[derive(Default)]
pub(super) struct Conversations {
    all: BTreeMap<Token, Client>,
}

struct Client {
    side: Side,
    peer: SocketAddrV4,
    wire: u64,
    until_ms: u64,
    upstream: Option<Upstream>,
}

/// A server that is asked.
struct Upstream {
    side: Side,
    token: Token,
    question: Question,
    message: Vec<u8>,
    id: u16,
    server: usize,
    tries: usize,
    until_ms: u64,
}

/// One connection.
struct Side {
    socket: TcpStream,
    heard: Stream,
    /// What is still to be sent.
    out: Vec<u8>,
    interest: Interest,
}

/// The connection is over.
struct Over;

impl Conversations {
    pub(super) fn due_ms(&self) -> Option<u64> {
        let clients = self.all.values().map(|client| client.until_ms);
        let upstreams = self
            .all
            .values()
            .filter_map(|client| client.upstream.as_ref());
        clients
            .chain(upstreams.map(|upstream| upstream.until_ms))
            .min()
    }

    fn has_room_for(&self, address: Ipv4Addr) -> bool {
        let of_address = self.all.values().filter(|one| *one.peer.ip() == address);
        self.all.len() < MAX_CLIENTS && of_address.count() < MAX_CLIENTS_PER_ADDRESS
    }
}

impl Side {
    fn new(socket: TcpStream, interest: Interest) -> Side {
        Side {
            socket,
            heard: Stream::default(),
            out: Vec::new(),
            interest,
        }
    }

    fn send(&mut self) -> Result<(), Over> {
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(0) => return Err(Over),
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }

    /// Reads once: what is left keeps the socket readable.
    fn read(&mut self) -> Result<(), Over> {
        if !self.heard.has_room() {
            return Ok(());
        }
        let mut bytes = [0; READ_BYTES];
        match self.socket.read(&mut bytes) {
            Ok(0) => Err(Over),
            Ok(count) => {
                self.heard.received(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(_) => Err(Over),
        }
    }

    fn await_more(
        &mut self,
        poll: &wiglaf_link::Poll,
        token: Token,
        reads: bool,
    ) -> Result<(), Over> {
        let wanted = Interest::of(reads, !self.out.is_empty());
        if wanted == self.interest {
            return Ok(());
        }
        self.interest = wanted;
        poll.modify(&self.socket, token, wanted).map_err(|_| Over)
    }
}

impl Service {
    pub(super) fn dns_connections(&mut self, wire: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            let heard = self.dns.wires.iter().find(|heard| heard.number == wire);
            let Some(listener) = heard.and_then(|heard| heard.tcp.as_ref()) else {
                return;
            };
            let (socket, peer) = match listener.accept() {
                Ok((socket, SocketAddr::V4(peer))) => (socket, peer),
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let is_welcome = self.may_ask(*peer.ip())
                && self.dns.conversations.has_room_for(*peer.ip())
                && socket.set_nonblocking(true).is_ok();
            if !is_welcome {
                continue;
            }
            let Ok(token) = self.watch(&socket, Any::Dns(Watched::Client)) else {
                return;
            };
            let client = Client {
                side: Side::new(socket, Interest::Read),
                peer,
                wire,
                until_ms: self.now_ms + IDLE_MS,
                upstream: None,
            };
            self.dns.conversations.all.insert(token, client);
        }
    }

    pub(super) fn dns_client_ready(&mut self, token: Token, readable: bool) {
        let Some(client) = self.dns.conversations.all.get_mut(&token) else {
            self.watched.remove(&token);
            return;
        };
        let heard = if readable { client.side.read() } else { Ok(()) };
        if heard.is_err() {
            return self.end_conversation(token);
        }
        self.converse(token);
    }

    /// Takes one question after the other.
    fn converse(&mut self, token: Token) {
        loop {
            let Some(client) = self.dns.conversations.all.get_mut(&token) else {
                return;
            };
            if client.side.send().is_err() {
                return self.end_conversation(token);
            }
            if client.upstream.is_some() || !client.side.out.is_empty() {
                break;
            }
            let wire = client.wire;
            let Some(message) = client.side.heard.take() else {
                break;
            };
            client.until_ms = self.now_ms + IDLE_MS;
            let own = self.wire(wire).map(|wire| wire.settings.address);
            let (Some(own), Some(names)) = (own, &self.dns.names) else {
                return self.end_conversation(token);
            };
            match judge(&message, names, own) {
                Verdict::Answer(answer) => self.say(token, &answer),
                Verdict::Ask(question) => self.ask_by_tcp(token, question, &message, 0, 1),
                Verdict::Nonsense => return self.end_conversation(token),
            }
        }
        let Some(client) = self.dns.conversations.all.get_mut(&token) else {
            return;
        };
        let reads = client.upstream.is_none() && client.side.heard.has_room();
        if client.side.await_more(&self.poll, token, reads).is_err() {
            self.end_conversation(token);
        }
    }

    fn say(&mut self, token: Token, answer: &[u8]) {
        if let Some(client) = self.dns.conversations.all.get_mut(&token) {
            client
                .side
                .out
                .extend(Stream::framed(answer).unwrap_or_default());
        }
    }

    fn ask_by_tcp(
        &mut self,
        client: Token,
        question: Question,
        message: &[u8],
        server: usize,
        tries: usize,
    ) {
        self.drop_upstream(client);
        let servers = self.dns_servers();
        let address = servers.get(server % servers.len().max(1));
        let Some(&address) = address.filter(|_| tries <= MAX_TRIES) else {
            let answer = question.refusal(Code::Failure);
            return self.say(client, &answer);
        };
        let connected = connect(address).and_then(|socket| {
            let token = self.watch(&socket, Any::Dns(Watched::Upstream(client)))?;
            self.poll.modify(&socket, token, Interest::Both)?;
            Ok((socket, token))
        });
        let Ok((socket, token)) = connected else {
            return self.ask_by_tcp(client, question, message, server + 1, tries + 1);
        };
        let id = random();
        let mut side = Side::new(socket, Interest::Both);
        side.out = Stream::framed(&with_id(message, id)).unwrap_or_default();
        if let Some(asker) = self.dns.conversations.all.get_mut(&client) {
            asker.until_ms = self.now_ms + IDLE_MS;
            asker.upstream = Some(Upstream {
                side,
                token,
                question,
                message: message.to_vec(),
                id,
                server,
                tries,
                until_ms: self.now_ms + PATIENCE_MS,
            });
        }
    }

    pub(super) fn dns_upstream_ready(&mut self, client: Token, readable: bool) {
        let conversation = self.dns.conversations.all.get_mut(&client);
        let Some(upstream) = conversation.and_then(|one| one.upstream.as_mut()) else {
            return;
        };
        let token = upstream.token;
        let went = upstream.side.send().and_then(|()| {
            if readable {
                upstream.side.read()?;
            }
            upstream.side.await_more(&self.poll, token, true)
        });
        while let Some(message) = upstream.side.heard.take() {
            if is_answer_to(&message, upstream.id, &upstream.question.bytes) {
                let answer = with_id(&message, upstream.question.id);
                self.drop_upstream(client);
                self.say(client, &answer);
                return self.converse(client);
            }
        }
        if went.is_err() {
            self.try_next_upstream(client);
        }
    }

    fn try_next_upstream(&mut self, client: Token) {
        let conversation = self.dns.conversations.all.get_mut(&client);
        let Some(upstream) = conversation.and_then(|one| one.upstream.take()) else {
            return;
        };
        self.watched.remove(&upstream.token);
        let Upstream {
            question,
            message,
            server,
            tries,
            ..
        } = upstream;
        self.ask_by_tcp(client, question, &message, server + 1, tries + 1);
        self.converse(client);
    }

    fn drop_upstream(&mut self, client: Token) {
        let conversation = self.dns.conversations.all.get_mut(&client);
        if let Some(upstream) = conversation.and_then(|one| one.upstream.take()) {
            self.watched.remove(&upstream.token);
        }
    }

    pub(super) fn end_late_conversations(&mut self) {
        let now_ms = self.now_ms;
        if self
            .dns
            .conversations
            .due_ms()
            .is_none_or(|due| due > now_ms)
        {
            return;
        }
        let all: Vec<Token> = self.dns.conversations.all.keys().copied().collect();
        for token in all {
            let Some(client) = self.dns.conversations.all.get(&token) else {
                continue;
            };
            if client.until_ms <= now_ms {
                self.end_conversation(token);
            } else if (client.upstream.as_ref()).is_some_and(|one| one.until_ms <= now_ms) {
                self.try_next_upstream(token);
            }
        }
    }

    fn end_conversation(&mut self, token: Token) {
        self.drop_upstream(token);
        self.watched.remove(&token);
        // Closing takes it out of the set: nobody else has the descriptor.
        drop(self.dns.conversations.all.remove(&token));
    }
}

fn connect(server: SocketAddr) -> Result<TcpStream, Errno> {
    let socket = rustix::net::socket_with(family_of(server), SocketType::STREAM, FLAGS, None)?;
    match rustix::net::connect(&socket, &server) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(errno) => Err(errno),
    }
}
