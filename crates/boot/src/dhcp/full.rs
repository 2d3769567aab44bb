//! The service where we give the addresses: DHCP (RFC 2131) and BOOTP (RFC 951).

use std::net::Ipv4Addr;

use wiglaf_wire::boot::{Mac, Stage};

use super::options::code;
use super::packet::Packet;
use super::reply::{self, Message, Term};
use super::server::{Asked, Server};
use super::told::Topic;
use super::{Effect, UNKNOWN_LEASE_S};

impl Server {
    pub(super) fn full(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let has_type = asked.packet.options.get(code::MESSAGE_TYPE).is_some();
        match Message::of(asked.packet) {
            Some(Message::Discover) => self.discover(asked, out),
            Some(Message::Request) => self.request(asked, out),
            Some(Message::Inform) => self.inform(asked, out),
            Some(Message::Decline) => self.decline(asked, out),
            Some(Message::Release) => self.release(asked, out),
            None if !has_type => self.bootp(asked, out),
            Some(Message::Offer | Message::Ack | Message::Nak) | None => {}
        }
    }

    fn discover(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let mut address = None;
        if asked.is_ours {
            address = self.fixed_address(asked, out);
        } else if asked.boots() {
            address = self.pool_address(asked, out);
        }
        if let Some(address) = address {
            self.grant(asked, Some(Message::Offer), address, out);
        }
        self.see(asked, Stage::Asked, address, out);
    }

    /// All four states of a client that asks for a certain address: selecting (it names the
    /// server), init-reboot (it names the address), renewing and rebinding (it has it).
    fn request(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let server = asked.packet.options.address(code::SERVER);
        if let Some(server) = server
            && server != asked.network.address
        {
            self.took_anothers(asked, server, out);
            return;
        }
        let is_selecting = server.is_some();
        let requested = asked.packet.options.address(code::REQUESTED);
        let wanted = requested.or(reply::own_address(asked.packet));
        if wanted.is_none() && !is_selecting {
            return;
        }
        let lent = self.lent_before(asked, is_selecting, wanted);
        let address = if asked.is_ours && lent.is_none() {
            let Some(address) = self.fixed_address(asked, out) else {
                return;
            };
            Some(address)
        } else if asked.boots() {
            let held = self.held_by(asked);
            // One that never had an address from us may have it from somebody else.
            if held.is_none() && !is_selecting {
                return;
            }
            held
        } else if wanted.is_some_and(|wanted| self.machines.had(asked.mac(), wanted)) {
            // It runs, and was forgotten meanwhile: its address may be another's by now.
            None
        } else {
            return;
        };
        match address {
            Some(address) if wanted.is_none_or(|wanted| wanted == address) => {
                if !asked.is_ours || lent.is_some() {
                    out.extend(
                        self.leases
                            .take(asked.now_ms, asked.mac())
                            .map(Effect::Keep),
                    );
                }
                self.grant(asked, Some(Message::Ack), address, out);
                if !asked.is_running() {
                    self.see(asked, Stage::Addressed, Some(address), out);
                }
            }
            _ => Server::refuse(asked, out),
        }
    }

    /// What a machine was offered that nobody knew then. UEFI's firmware takes no for a failure
    /// of the network, and tries no more. It has the address for as long as an unknown machine
    /// would, and what it boots asks for its own.
    fn lent_before(
        &self,
        asked: &Asked,
        is_selecting: bool,
        wanted: Option<Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        let may_be = asked.is_ours && asked.boots() && is_selecting;
        let held = may_be.then(|| self.held_by(asked))?;
        held.filter(|held| wanted == Some(*held))
    }

    /// It has chosen another server's offer: ours is free again.
    fn took_anothers(&mut self, asked: &Asked, server: Ipv4Addr, out: &mut Vec<Effect>) {
        self.machines.is_anothers(asked.mac());
        if asked.is_ours {
            let (name, wire) = (self.name_of(asked), &asked.network.name);
            let text = format!(
                "{name} takes its address from another DHCP server on {wire}, {server}: switch \
                 that off there, or let it give all addresses (ProxyDHCP)"
            );
            self.tell(asked, Topic::OtherServer, text, out);
        } else if let Some((_, false)) = self.leases.of(asked.mac()) {
            self.leases.release(asked.now_ms, asked.mac());
        }
    }

    /// It has an address and wants to know the rest.
    fn inform(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let own = reply::own_address(asked.packet).unwrap_or(*asked.from.ip());
        let may_ask = asked.is_ours || self.held_by(asked) == Some(own);
        if !may_ask || !asked.network.is_giveable(own) {
            return;
        }
        let mut ack = reply::answer(&asked.network, asked.packet, Some(Message::Ack));
        ack.client = own;
        let machine = self.machines.get(asked.mac());
        let name = machine.and_then(|machine| machine.host_name());
        reply::add_network(&mut ack, &asked.network, name);
        if machine.is_some() {
            reply::add_resolver(&mut ack, &asked.network, &self.head);
        }
        self.add_boot(asked, &mut ack, out);
        Server::send(asked, &ack, out);
        if !asked.is_running() {
            self.see(asked, Stage::Addressed, Some(own), out);
        }
    }

    /// It found somebody else at the address that it was given.
    fn decline(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let options = &asked.packet.options;
        let declined = options.address(code::REQUESTED);
        if options
            .address(code::SERVER)
            .is_some_and(|server| server != asked.network.address)
        {
            return;
        }
        let (name, wire) = (self.name_of(asked), &asked.network.name);
        if let Some(machine) = self.machines.get(asked.mac()) {
            // It keeps the address all the same: it has no other, and whoever knows a machine's
            // Ethernet address could else take it away by a packet (B1).
            if let Some(address) = declined.filter(|address| *address == machine.address) {
                let text = format!(
                    "{name} found somebody else at its address {address} on {wire}: find out who \
                     (ip neighbour show {address}), or give {name} another address"
                );
                self.tell(asked, Topic::Declined, text, out);
            }
        } else if let Some((address, _)) = self.leases.of(asked.mac())
            && declined == Some(address)
        {
            out.extend(
                self.leases
                    .decline(asked.now_ms, asked.mac())
                    .map(Effect::Keep),
            );
            let text = format!(
                "{name} found somebody else at {address} on {wire}, which is in the range for \
                 unknown machines: nobody is given it for 10 minutes"
            );
            self.tell(asked, Topic::Declined, text, out);
        }
    }

    fn release(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let held = self.leases.of(asked.mac()).map(|(address, _)| address);
        if !asked.is_ours && held.is_some() && held == reply::own_address(asked.packet) {
            out.extend(
                self.leases
                    .release(asked.now_ms, asked.mac())
                    .map(Effect::Keep),
            );
        }
    }

    /// Without DHCP an address is for ever, so only adopted machines get one.
    fn bootp(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        if !asked.is_ours {
            self.see(asked, Stage::Asked, None, out);
            return;
        }
        let Some(address) = self.fixed_address(asked, out) else {
            self.see(asked, Stage::Asked, None, out);
            return;
        };
        self.grant(asked, None, address, out);
        self.see(asked, Stage::Addressed, Some(address), out);
    }

    /// `None` is BOOTP's answer.
    fn grant(
        &mut self,
        asked: &Asked,
        message: Option<Message>,
        address: Ipv4Addr,
        out: &mut Vec<Effect>,
    ) {
        let mut answer = reply::answer(&asked.network, asked.packet, message);
        answer.your = address;
        // An address that it believes to have, but doesn't, is nowhere to answer to.
        if answer.client != address {
            answer.client = Ipv4Addr::UNSPECIFIED;
        }
        let machine = self.machines.get(asked.mac());
        let name = machine.and_then(|machine| machine.host_name());
        reply::add_network(&mut answer, &asked.network, name);
        if machine.is_some() {
            reply::add_resolver(&mut answer, &asked.network, &self.head);
        }
        if message.is_some() {
            let own = self
                .machines
                .get(asked.mac())
                .map(|machine| machine.address);
            let term = Term::of(asked.client.kind, own == Some(address));
            reply::add_lease(&mut answer, term);
        }
        self.add_boot(asked, &mut answer, out);
        Server::send(asked, &answer, out);
    }

    fn refuse(asked: &Asked, out: &mut Vec<Effect>) {
        let mut nak: Packet = reply::answer(&asked.network, asked.packet, Some(Message::Nak));
        nak.options
            .set(code::MESSAGE, *b"this address is not yours here");
        // The relay has to broadcast it: the client may be at an address of another network.
        nak.broadcast |= !nak.relay.is_unspecified();
        Server::send(asked, &nak, out);
    }

    /// An adopted machine's own address, if it can be given here.
    fn fixed_address(&mut self, asked: &Asked, out: &mut Vec<Effect>) -> Option<Ipv4Addr> {
        let machine = self.machines.get(asked.mac())?;
        let (name, address, mac) = (&machine.name, machine.address, asked.mac());
        let wire = &asked.network.name;
        let (topic, text) = if !asked.network.contains(address) {
            let text = format!(
                "{name} asks on {wire}, but its address {address} is not of the network there: \
                 plug it in elsewhere, or give it an address of {wire}'s"
            );
            (Topic::Elsewhere, text)
        } else if !asked.network.is_giveable(address) || machine.is_second {
            let text = format!(
                "{name} can't have the address {address}: it is the head's, the gateway's, or \
                 another machine's; give {name} another"
            );
            (Topic::AddressTaken, text)
        } else if self.leases.is_leased_to_another(address, mac) {
            let text = format!(
                "{name} has to wait for its address {address}: a machine that nobody knows has \
                 it for at most {UNKNOWN_LEASE_S} s more"
            );
            (Topic::AddressTaken, text)
        } else {
            return Some(address);
        };
        self.tell(asked, topic, text, out);
        None
    }

    /// An address of the pool for a machine that nobody knows, if there is something for it to
    /// boot, too.
    fn pool_address(&mut self, asked: &Asked, out: &mut Vec<Effect>) -> Option<Ipv4Addr> {
        let mut trial = reply::answer(&asked.network, asked.packet, Some(Message::Offer));
        if !self.add_boot(asked, &mut trial, out) {
            return None;
        }
        let (mac, had) = (asked.mac(), self.strangers.entry(asked.mac()).had);
        let (networks, machines) = (&self.networks, &self.machines);
        let is_giveable = super::server::giveable(networks, machines);
        let address = self
            .leases
            .offer(asked.now_ms, asked.interface, mac, had, is_giveable);
        match address {
            Some(address) => self.strangers.entry(mac).had = Some(address),
            None => {
                let wire = &asked.network.name;
                let text = format!(
                    "no address is left on {wire} for machines that nobody knows; adopted ones \
                     have theirs all the same"
                );
                self.tell(asked, Topic::PoolDry, text, out);
            }
        }
        address
    }

    /// What a machine that nobody knows holds of this interface's pool.
    fn held_by(&self, asked: &Asked) -> Option<Ipv4Addr> {
        let mac: Mac = asked.mac();
        let (address, _) = self.leases.of(mac)?;
        let is_here = self.leases.is_in(asked.interface, address);
        let is_free = asked.network.is_giveable(address) && !self.machines.have(address);
        (is_here && is_free).then_some(address)
    }
}
