//! TFTP's sockets: one that hears requests, and one for each transfer.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use wiglaf_link::Token;
use wiglaf_wire::boot::Stage;

use super::wires::transfer_socket;
use super::{PACKETS_PER_TURN, Service, Watched};
use crate::http::site::Asker;
use crate::tftp::{self, Code, Outcome, Packet, Request, Transfer};

/// Transfers at once, of all and to one address.
const MAX_TRANSFERS: usize = 1024;
const MAX_TRANSFERS_PER_ADDRESS: usize = 8;
/// More than any packet that is served.
const PACKET_BYTES: usize = 2048;

/// A transfer and its socket.
pub(super) struct Carried {
    socket: UdpSocket,
    peer: SocketAddrV4,
    wire: u64,
    since_ms: u64,
    transfer: Transfer,
}

/// All of them.
#[derive(Default)]
pub(super) struct Transfers {
    all: BTreeMap<Token, Carried>,
    /// Not later than the first that wants to be woken.
    due_ms: Option<u64>,
}

impl Transfers {
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.due_ms
    }

    fn wake_at(&mut self, due_ms: u64) {
        self.due_ms = Some(self.due_ms.map_or(due_ms, |known| known.min(due_ms)));
    }
}

impl Service {
    pub(super) fn tftp_requests(&mut self, wire: u64) {
        let mut buffer = [0; PACKET_BYTES];
        for _ in 0..PACKETS_PER_TURN {
            let Some(socket) = self.wire(wire).and_then(|wire| wire.tftp.as_ref()) else {
                return;
            };
            let Ok((count, SocketAddr::V4(peer))) = socket.recv_from(&mut buffer) else {
                return;
            };
            let refusal = match tftp::parse(&buffer[..count]) {
                Ok(Packet::Read(request)) => self.start_transfer(wire, peer, &request),
                Ok(Packet::Write) => Some((Code::NotAllowed, "nothing can be written here")),
                // Errors are never answered (RFC 1350, section 7).
                Ok(Packet::Acknowledge(_) | Packet::Error) => None,
                Err(_) => Some((Code::Illegal, "that is no request")),
            };
            if let Some((code, text)) = refusal
                && let Some(socket) = self.wire(wire).and_then(|wire| wire.tftp.as_ref())
            {
                let _ = socket.send_to(&tftp::error(code, text), peer);
            }
        }
    }

    fn start_transfer(
        &mut self,
        wire: u64,
        peer: SocketAddrV4,
        request: &Request,
    ) -> Option<(Code, &'static str)> {
        let program = tftp::loader_named(&request.name).map(|name| self.files.program(name));
        let Some(Ok(program)) = program else {
            return Some((Code::NotFound, "there is no such boot program"));
        };
        if !self.make_room(peer) {
            // It asks again.
            return None;
        }
        let (name, own) = {
            let settings = &self.wire(wire)?.settings;
            (settings.name.clone(), settings.address)
        };
        let socket = transfer_socket(&name, own, peer).ok()?;
        let token = self.watch(&socket, Watched::Transfer).ok()?;
        let (transfer, packets) = Transfer::new(self.now_ms, request, program);
        self.transfers.wake_at(transfer.due_ms());
        send_all(&socket, &packets);
        self.transfers.all.insert(
            token,
            Carried {
                socket,
                peer,
                wire,
                since_ms: self.now_ms,
                transfer,
            },
        );
        None
    }

    /// Whether another transfer may start.
    fn make_room(&mut self, peer: SocketAddrV4) -> bool {
        let all = &self.transfers.all;
        let same = all.iter().find(|(_, carried)| carried.peer == peer);
        if let Some((token, carried)) = same {
            if carried.transfer.is_new() {
                // It was asked for twice, and is sent again by its own clock.
                return false;
            }
            // Firmware that has started anew uses the same port again.
            let token = *token;
            self.drop_transfer(token);
            return true;
        }
        let of_address = |address: Ipv4Addr| {
            let all = &self.transfers.all;
            let its = all.iter().filter(move |(_, c)| *c.peer.ip() == address);
            its.map(|(token, carried)| (carried.since_ms, *token))
        };
        if of_address(*peer.ip()).count() >= MAX_TRANSFERS_PER_ADDRESS {
            // Left over from before it was switched off and on.
            if let Some((_, oldest)) = of_address(*peer.ip()).min() {
                self.drop_transfer(oldest);
            }
            return true;
        }
        if self.transfers.all.len() < MAX_TRANSFERS {
            return true;
        }
        if !self.site.is_machines(*peer.ip()) {
            return false;
        }
        let all = self.transfers.all.iter();
        let strangers = all.filter(|(_, carried)| !self.site.is_machines(*carried.peer.ip()));
        let oldest = strangers.map(|(token, c)| (c.since_ms, *token)).min();
        oldest.is_some_and(|(_, token)| {
            self.drop_transfer(token);
            true
        })
    }

    pub(super) fn transfer_ready(&mut self, token: Token) {
        let mut buffer = [0; PACKET_BYTES];
        for _ in 0..PACKETS_PER_TURN {
            let Some(carried) = self.transfers.all.get_mut(&token) else {
                return;
            };
            let packets = match carried.socket.recv(&mut buffer) {
                Ok(count) => carried.transfer.packet(self.now_ms, &buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // Its port is closed now: it goes on by itself or asks anew.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    return self.drop_transfer(token);
                }
                Err(_) => return,
            };
            send_all(&carried.socket, &packets);
            let due_ms = carried.transfer.due_ms();
            self.transfers.wake_at(due_ms);
            self.finish_transfer(token);
        }
    }

    pub(super) fn wake_transfers(&mut self) {
        if self.transfers.due_ms.is_none_or(|due| due > self.now_ms) {
            return;
        }
        self.transfers.due_ms = None;
        let tokens: Vec<Token> = self.transfers.all.keys().copied().collect();
        for token in tokens {
            let Some(carried) = self.transfers.all.get_mut(&token) else {
                continue;
            };
            let packets = carried.transfer.wake(self.now_ms);
            send_all(&carried.socket, &packets);
            let due_ms = carried.transfer.due_ms();
            self.finish_transfer(token);
            if self.transfers.all.contains_key(&token) {
                self.transfers.wake_at(due_ms);
            }
        }
    }

    fn finish_transfer(&mut self, token: Token) {
        let Some(carried) = self.transfers.all.get(&token) else {
            return;
        };
        let Some(outcome) = carried.transfer.outcome() else {
            return;
        };
        let (wire, address) = (carried.wire, *carried.peer.ip());
        self.drop_transfer(token);
        let interface = self.wires.iter().position(|one| one.number == wire);
        if let (Outcome::Done, Some(interface)) = (outcome, interface) {
            let name = &self.wires[interface].settings.name;
            let asker = Asker {
                interface,
                address,
                hardware: self.neighbours.mac_of(name, address),
            };
            if let Some(mac) = self.site.mac_at(asker) {
                let now_ms = self.now_ms;
                self.outlet.seen(now_ms, mac, Stage::Loader, name, address);
            }
        }
    }

    fn drop_transfer(&mut self, token: Token) {
        self.watched.remove(&token);
        drop(self.transfers.all.remove(&token));
    }
}

/// What does not go out now is lost, as on any wire; it is sent again.
fn send_all(socket: &UdpSocket, packets: &[Vec<u8>]) {
    for packet in packets {
        let _ = socket.send(packet);
    }
}
