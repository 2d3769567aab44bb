//! DHCP's sockets: what came in one turn is answered together, after one write to the disk.

use std::net::SocketAddr;

use wiglaf_wire::boot::{FromBoot, Mac};

use super::wires::{LISTEN_MS, SILENT_MS, State, Wire};
use super::{PACKETS_PER_TURN, Service, Watched};
use crate::dhcp::{Effect, Lease, Port};

/// As much as an Ethernet frame holds, and some; longer packets are no DHCP.
const PACKET_BYTES: usize = 2048;

/// What is to be done when the turn ends.
#[derive(Default)]
pub(super) struct Batch {
    leases: Vec<Lease>,
    effects: Vec<(Port, Effect)>,
}

impl Service {
    pub(super) fn dhcp_packets(&mut self, wire: u64, port: Port) {
        let mut buffer = [0; PACKET_BYTES];
        let Some(interface) = self.wires.iter().position(|one| one.number == wire) else {
            return;
        };
        let now_ms = super::unix_ms();
        for _ in 0..PACKETS_PER_TURN {
            let wire = &self.wires[interface];
            let socket = match port {
                Port::Server => &wire.dhcp,
                Port::Proxy => &wire.proxy,
            };
            let Some(socket) = socket else {
                return;
            };
            let Ok((count, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) else {
                return;
            };
            // Read all the same, so that it is not answered when it is old.
            if !wire.is_answering() {
                continue;
            }
            let Some(server) = &mut self.server else {
                return;
            };
            for effect in server.packet(now_ms, interface, from, port, &buffer[..count]) {
                match effect {
                    Effect::Keep(lease) => self.batch.leases.push(lease),
                    effect => self.batch.effects.push((port, effect)),
                }
            }
        }
    }

    /// A machine that nobody knows waits with its address.
    pub(super) fn renew_lease(&mut self, mac: Mac) {
        let lease = self
            .server
            .as_mut()
            .and_then(|server| server.renew(super::unix_ms(), mac));
        self.batch.leases.extend(lease);
    }

    /// Makes durable what was promised, and only then answers.
    pub(super) fn finish_batch(&mut self) {
        let Batch { leases, effects } = std::mem::take(&mut self.batch);
        if !leases.is_empty()
            && let Err(error) = self.journal.keep(super::unix_s(), &leases)
        {
            // Adopted machines need no journal; for the others two minutes are at stake.
            let text = format!(
                "can't keep leases in {}: {error}; after a crash an address of a machine that \
                 nobody knows might be given twice",
                self.journal_directory.display()
            );
            self.problem_now_and_then(None, text);
        }
        for (port, effect) in effects {
            match effect {
                Effect::Send {
                    interface,
                    to,
                    bytes,
                } => {
                    let Some(wire) = self.wires.get(interface) else {
                        continue;
                    };
                    if let Err(errno) = wire.send(port, to, &bytes) {
                        let name = wire.settings.name.clone();
                        let text = format!("can't answer on {name}: {errno}");
                        self.problem_now_and_then(Some(interface), text);
                    }
                }
                Effect::Seen(sighting) => self.outlet.tell(FromBoot::Seen(sighting)),
                Effect::Problem { interface, text } => self.problem(Some(interface), text),
                Effect::Keep(_) => {}
            }
        }
    }

    /// Brings an interface further towards being served.
    pub(super) fn attend(&mut self, index: usize) {
        let http_port = self.http_port;
        let wire = &mut self.wires[index];
        let number = wire.number;
        let (opened, problems) = wire.open(http_port);
        let is_changed = !opened.is_empty();
        for one in opened {
            self.watch_use(number, one.0);
        }
        for text in problems {
            self.problem(Some(index), text);
        }
        self.announces |= is_changed;
        let wire = &mut self.wires[index];
        let was_plugged_in = wire.was_plugged_in();
        let is_due = match &wire.state {
            State::New => wire.is_open(),
            // It may be another wire now. Machines are answered meanwhile: one at the other end of
            // the cable makes the link come and go while it starts.
            State::Answering(_) => was_plugged_in && !wire.is_proxy(),
            State::Silent { again_ms, .. } => {
                wire.is_open() && wire.has_link() && (was_plugged_in || *again_ms <= self.now_ms)
            }
            State::Probing(_) => false,
        };
        if !is_due {
            return;
        }
        if wire.is_proxy() {
            wire.state = State::Answering(None);
            self.announces = true;
            return;
        }
        let transaction = random_transaction();
        let Some(server) = &mut self.server else {
            return;
        };
        let packet = server.probe(index, transaction);
        match wire.probe(self.now_ms, transaction, packet) {
            Ok(()) => self.watch_probe(index),
            Err(errno) => {
                let name = &wire.settings.name;
                let text = format!(
                    "can't send on {name}: {errno}; is it up, and its cable in? `ip link set \
                     {name} up`"
                );
                self.problem_now_and_then(Some(index), text);
            }
        }
    }

    fn watch_probe(&mut self, index: usize) {
        let wire = &self.wires[index];
        if let State::Probing(probe) | State::Answering(Some(probe)) = &wire.state {
            let token = super::watch(&self.poll, &mut self.next_token, probe);
            if let Ok(token) = token {
                self.watched.insert(token, Watched::Probe(wire.number));
            }
        }
    }

    /// Something came that may be another server's answer.
    pub(super) fn probe_ready(&mut self, wire: u64) {
        let Some(index) = self.wires.iter().position(|one| one.number == wire) else {
            return;
        };
        let Some(server) = &self.server else {
            return;
        };
        let Wire {
            state, settings, ..
        } = &mut self.wires[index];
        let (State::Probing(probe) | State::Answering(Some(probe))) = state else {
            return;
        };
        let judge = |transaction, bytes: &[u8]| server.other_server(index, transaction, bytes);
        let Some(server) = probe.heard(PACKETS_PER_TURN, judge) else {
            return;
        };
        let known = probe.known;
        *state = State::Silent {
            server,
            again_ms: self.now_ms + SILENT_MS,
        };
        self.announces = true;
        if known == Some(server) {
            return;
        }
        let name = &settings.name;
        let text = format!(
            "another DHCP server answers on {name}: {server}. Nobody is given an address by us \
             there. Switch it off, then we answer within a minute or so; or let it give the \
             addresses: `wiglaf boot enable --interface {name} --proxy`"
        );
        self.problem(Some(index), text);
    }

    /// What is due of the probes. Returns when the next is.
    pub(super) fn continue_probes(&mut self) -> Option<u64> {
        let now_ms = self.now_ms;
        let mut next = None;
        let mut gone = Vec::new();
        for (index, wire) in self.wires.iter_mut().enumerate() {
            let (due, state) = match std::mem::replace(&mut wire.state, State::New) {
                State::Probing(probe) if now_ms >= probe.since_ms + probe.wait_ms => {
                    self.announces = true;
                    gone.extend(probe.known.map(|server| (index, server)));
                    let due = probe.since_ms + LISTEN_MS;
                    (Some(due), State::Answering(Some(probe)))
                }
                State::Probing(mut probe) => {
                    // Once more, should the first be lost.
                    let again_ms = probe.since_ms + probe.wait_ms / 2;
                    if now_ms >= again_ms {
                        probe.repeat();
                    }
                    let due = if probe.is_repeated {
                        probe.since_ms + probe.wait_ms
                    } else {
                        again_ms
                    };
                    (Some(due), State::Probing(probe))
                }
                State::Answering(Some(mut probe)) if now_ms < probe.since_ms + LISTEN_MS => {
                    // A switch may take a while until it lets anything pass.
                    let again_ms = probe.since_ms + LISTEN_MS / 2;
                    if now_ms >= again_ms {
                        probe.repeat();
                    }
                    let due = if probe.is_repeated {
                        probe.since_ms + LISTEN_MS
                    } else {
                        again_ms
                    };
                    (Some(due), State::Answering(Some(probe)))
                }
                State::Answering(_) => (None, State::Answering(None)),
                state @ (State::New | State::Silent { .. }) => (None, state),
            };
            wire.state = state;
            next = [next, due].into_iter().flatten().min();
        }
        for (index, server) in gone {
            let name = &self.wires[index].settings.name;
            let text = format!(
                "the other DHCP server on {name}, {server}, answers no more: machines are given \
                 addresses by us there again"
            );
            self.problem(Some(index), text);
        }
        next
    }
}

fn random_transaction() -> u32 {
    let mut bytes = [0; 4];
    // If there is no randomness yet, the time of day will do: nobody has to guess it.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    match filled {
        Ok(4) => u32::from_ne_bytes(bytes),
        _ => super::unix_time().subsec_nanos(),
    }
}
