//! HTTP's sockets. Each client that is ready gets one slice of its file, then it is the next one's
//! turn: the kernel hands ready sockets out in a circle.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::SendFlags;
use wiglaf_link::{Interest, Ready, Token};
use wiglaf_wire::boot::{FromBoot, Mac, Stage};

use super::{Service, Watched};
use crate::http::connection::{Answer, Body, Connection, Next, length_of};
use crate::http::request::{Method, Request};
use crate::http::site::{Asker, Decision};

/// Connections at once, of all and of one address.
const MAX_CLIENTS: usize = 4096;
const MAX_CLIENTS_PER_ADDRESS: usize = 16;
/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Bytes of a file that one client is sent in one turn.
const SLICE_BYTES: usize = 256 << 10;
const READ_BYTES: usize = 16 << 10;
/// Requests of one client that are answered in one turn.
const REQUESTS_PER_TURN: usize = 16;

/// A connected client.
pub(super) struct Client {
    socket: TcpStream,
    peer: SocketAddrV4,
    wire: u64,
    connection: Connection,
    interest: Interest,
    /// How far its machine is when the answer is out.
    reaches: Option<(Mac, Stage)>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Clients {
    all: BTreeMap<Token, Client>,
    by_address: HashMap<Ipv4Addr, usize>,
}

impl Clients {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn has_room_for(&self, address: Ipv4Addr) -> bool {
        self.by_address
            .get(&address)
            .is_none_or(|count| *count < MAX_CLIENTS_PER_ADDRESS)
    }

    fn insert(&mut self, token: Token, client: Client) {
        *self.by_address.entry(*client.peer.ip()).or_default() += 1;
        self.all.insert(token, client);
    }

    fn remove(&mut self, token: Token) -> Option<Client> {
        let client = self.all.remove(&token)?;
        if let Some(count) = self.by_address.get_mut(client.peer.ip()) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(client.peer.ip());
            }
        }
        Some(client)
    }
}

impl Service {
    pub(super) fn accept_clients(&mut self, wire: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = self.wire(wire).and_then(|wire| wire.http.as_ref()) else {
                return;
            };
            match listener.accept() {
                Ok((socket, SocketAddr::V4(peer))) => self.welcome_client(wire, socket, peer),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn welcome_client(&mut self, wire: u64, socket: TcpStream, peer: SocketAddrV4) {
        if !self.clients.has_room_for(*peer.ip()) {
            return;
        }
        if self.clients.all.len() >= MAX_CLIENTS && !self.displace_client(*peer.ip()) {
            return;
        }
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        // What is left of an answer goes at once; its head waits for the file by MSG_MORE.
        let _ = socket.set_nodelay(true);
        let Ok(token) = self.watch(&socket, Watched::Client) else {
            return;
        };
        self.clients.insert(
            token,
            Client {
                socket,
                peer,
                wire,
                connection: Connection::new(self.now_ms),
                interest: Interest::Read,
                reaches: None,
            },
        );
    }

    /// Makes room for a machine that was adopted, at the cost of a stranger that only holds a
    /// connection (B1).
    fn displace_client(&mut self, for_whom: Ipv4Addr) -> bool {
        if !self.site.is_machines(for_whom) {
            return false;
        }
        let strangers = self.clients.all.iter().filter_map(|(token, client)| {
            let since = client.connection.idle_since()?;
            (!self.site.is_machines(*client.peer.ip())).then_some((since, *token))
        });
        match strangers.min() {
            Some((_, token)) => {
                self.drop_client(token);
                true
            }
            None => false,
        }
    }

    pub(super) fn client_ready(&mut self, ready: Ready) {
        let token = ready.token;
        if ready.writable {
            self.send_to_client(token);
        }
        let Some(client) = self.clients.all.get_mut(&token) else {
            return;
        };
        if ready.readable && client.connection.wants_bytes() {
            let mut bytes = [0; READ_BYTES];
            match client.socket.read(&mut bytes) {
                Ok(0) => return self.drop_client(token),
                Ok(count) => client.connection.received(self.now_ms, &bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.drop_client(token),
            }
        }
        let has_more = (0..REQUESTS_PER_TURN).all(|_| self.serve_client(token));
        self.await_client(token, has_more);
    }

    /// Answers a request, if there is one, and sends what goes at once. Returns whether there was
    /// one and all of its answer is out.
    fn serve_client(&mut self, token: Token) -> bool {
        let Some(client) = self.clients.all.get_mut(&token) else {
            return false;
        };
        let (method, answer, reaches) = match client.connection.next_request(self.now_ms) {
            Ok(Some((request, body))) => {
                let (wire, peer) = (client.wire, *client.peer.ip());
                let (answer, reaches) = self.answer(wire, peer, &request, &body);
                (request.method, answer, reaches)
            }
            Ok(None) => {
                // It may be told to go on.
                if client.connection.is_sending() {
                    self.send_to_client(token);
                }
                return false;
            }
            Err(refusal) => {
                let answer = Answer::text(refusal.status(), &refusal.to_string());
                (Method::Get, answer, None)
            }
        };
        let Some(client) = self.clients.all.get_mut(&token) else {
            return false;
        };
        client.reaches = reaches.filter(|_| method == Method::Get);
        let unix_ns = super::unix_time().as_nanos();
        client
            .connection
            .answer(self.now_ms, unix_ns, method, answer);
        self.send_to_client(token);
        let client = self.clients.all.get(&token);
        client.is_some_and(|client| !client.connection.is_sending())
    }

    fn answer(
        &mut self,
        wire: u64,
        peer: Ipv4Addr,
        request: &Request,
        body: &[u8],
    ) -> (Answer, Option<(Mac, Stage)>) {
        let Some(interface) = self.wires.iter().position(|one| one.number == wire) else {
            let text = "nobody is served here any more";
            return (Answer::text(404, text), None);
        };
        let name = self.wires[interface].settings.name.clone();
        let asker = Asker {
            interface,
            address: peer,
            hardware: self.neighbours.mac_of(&name, peer),
        };
        let files = &mut self.files;
        let mut initramfs_for = |image: &str, card| files.initramfs_for(image, card);
        let now_ms = self.now_ms;
        match self
            .site
            .decide(now_ms, asker, request, body, &mut initramfs_for)
        {
            Decision::Script { text, seen } => {
                if let Some(mac) = seen {
                    self.renew_lease(mac);
                }
                let body = Body::Bytes(text.into_bytes());
                let answer = Answer {
                    status: 200,
                    kind: "text/plain",
                    body,
                };
                (answer, seen.map(|mac| (mac, Stage::Script)))
            }
            Decision::Loader(loader) => match self.files.loader(loader) {
                Ok((file, length)) => {
                    let seen = self.site.mac_at(asker).map(|mac| (mac, Stage::Loader));
                    let whole = std::iter::once(0..length).collect();
                    of_file(request, (file, whole), kind_of(loader), seen)
                }
                Err(errno) => (missing(errno), None),
            },
            Decision::Image { image, file, seen } => match self.files.image(&image, &file) {
                Ok(found) => of_file(request, found, kind_of(&file), seen),
                Err(errno) => {
                    // Of what every image has; who asks for other names would fill the log.
                    if seen.is_some() {
                        self.image_missing(&image, &file, errno);
                    }
                    (missing(errno), None)
                }
            },
            Decision::Lines {
                mac,
                lines,
                is_first,
            } => {
                if is_first {
                    self.outlet.seen(now_ms, mac, Stage::Init, &name, peer);
                }
                if !lines.is_empty() {
                    self.outlet.tell(FromBoot::Lines { mac, lines });
                }
                (Answer::text(200, "taken"), None)
            }
            Decision::Refused(status, why) => (Answer::text(status, why), None),
        }
    }

    fn image_missing(&mut self, image: &str, file: &str, errno: Errno) {
        let text = format!(
            "a machine asks for {file} of image {image}, which can't be opened: {errno}; \
             `wiglaf image list` shows what is there"
        );
        self.problem_now_and_then(None, text);
    }

    fn send_to_client(&mut self, token: Token) {
        let mut slice = SLICE_BYTES;
        while slice > 0 {
            let Some(client) = self.clients.all.get_mut(&token) else {
                return;
            };
            let sent = match client.connection.next() {
                Next::Bytes(bytes, has_more) => {
                    let mut flags = SendFlags::NOSIGNAL;
                    flags.set(SendFlags::MORE, has_more);
                    rustix::net::send(&client.socket, bytes, flags)
                }
                Next::File(file, part) => {
                    let left = usize::try_from(part.end - part.start).unwrap_or(usize::MAX);
                    let mut offset = part.start;
                    let count = left.min(slice);
                    match rustix::fs::sendfile(&client.socket, file, Some(&mut offset), count) {
                        // It has become shorter: what was promised can't be sent.
                        Ok(0) => Err(Errno::PIPE),
                        sent => sent,
                    }
                }
                Next::Nothing => return,
            };
            match sent {
                Ok(count) => {
                    slice = slice.saturating_sub(count);
                    if client.connection.sent(self.now_ms, count) {
                        return self.answer_is_out(token);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => return self.drop_client(token),
            }
        }
    }

    fn answer_is_out(&mut self, token: Token) {
        let Some(client) = self.clients.all.get_mut(&token) else {
            return;
        };
        let (wire, peer) = (client.wire, *client.peer.ip());
        let reaches = client.reaches.take();
        if client.connection.is_over() {
            // Without this a request that was not read would make the kernel reset the connection,
            // and the client might not see its answer.
            let _ = client.socket.shutdown(std::net::Shutdown::Write);
            let mut rest = [0; READ_BYTES];
            let _ = client.socket.read(&mut rest);
            self.drop_client(token);
        }
        if let Some((mac, stage)) = reaches
            && let Some(wire) = self.wires.iter().find(|one| one.number == wire)
        {
            let name = &wire.settings.name;
            self.outlet.seen(self.now_ms, mac, stage, name, peer);
        }
    }

    /// Waits for what can happen next. What has come already makes nobody ready: there is always
    /// room to write, so that its turn comes again.
    fn await_client(&mut self, token: Token, has_more: bool) {
        let Some(client) = self.clients.all.get_mut(&token) else {
            return;
        };
        let wanted = if client.connection.is_sending() || has_more {
            Interest::Write
        } else {
            Interest::Read
        };
        if wanted != client.interest {
            client.interest = wanted;
            if self.poll.modify(&client.socket, token, wanted).is_err() {
                self.drop_client(token);
            }
        }
    }

    /// Cuts off those that are idle, slow or dead.
    pub(super) fn drop_late_clients(&mut self) {
        let now_ms = self.now_ms;
        let late: Vec<Token> = self
            .clients
            .all
            .iter()
            .filter(|(_, client)| client.connection.deadline_ms() <= now_ms)
            .map(|(token, _)| *token)
            .collect();
        late.into_iter().for_each(|token| self.drop_client(token));
    }

    fn drop_client(&mut self, token: Token) {
        self.watched.remove(&token);
        // Closing takes it out of the set: nobody else has the descriptor.
        drop(self.clients.remove(token));
    }
}

fn of_file(
    request: &Request,
    (file, parts): (Rc<OwnedFd>, Vec<Range<u64>>),
    kind: &'static str,
    seen: Option<(Mac, Stage)>,
) -> (Answer, Option<(Mac, Stage)>) {
    let whole = length_of(&parts);
    let (status, part) = match request.range.map(|range| range.of(whole)) {
        None => (200, 0..whole),
        Some(Some(part)) => (206, part),
        Some(None) => (416, 0..0),
    };
    // Who has the end has all, as far as anybody can tell.
    let seen = seen.filter(|_| status != 416 && part.end == whole);
    let body = Body::File { file, parts, part };
    (Answer { status, kind, body }, seen)
}

fn missing(errno: Errno) -> Answer {
    match errno {
        Errno::NOENT => Answer::text(404, "it is not there"),
        _ => Answer::text(500, "it can't be read"),
    }
}

/// OVMF believes either this or the name's end.
fn kind_of(name: &str) -> &'static str {
    if name.ends_with(".efi") {
        "application/efi"
    } else {
        "application/octet-stream"
    }
}
