//! The machine as a whole: what comes in, who it is from, and who answers it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use wiglaf_wire::boot::{AddressService, BootSettings, Mac, Sighting, Stage};

use super::client::{Client, Kind};
use super::leases::Leases;
use super::loaders::{Loaders, candidates};
use super::machines::Machines;
use super::network::Network;
use super::options::code;
use super::packet::{Operation, Packet};
use super::reply::{self, Head, Message};
use super::seen::Strangers;
use super::told::{Told, Topic};
use super::twins::{Sign, uuid_text};
use super::{CLIENT_PORT, Effect, Lease, PROXY_PORT, Port, SERVER_PORT, UNKNOWN_LEASE_S};

/// Relays count to 16 (RFC 1542, section 4.1.1).
const MAX_HOPS: u8 = 16;
/// Ports below this are given to root only (`IPPORT_RESERVED`, netinet/in.h).
const FIRST_ORDINARY_PORT: u16 = 1_024;

/// Answers everybody on the wires that it was told of.
#[derive(Debug)]
pub struct Server {
    pub(super) networks: Vec<Arc<Network>>,
    pub(super) machines: Machines,
    pub(super) leases: Leases,
    pub(super) strangers: Strangers,
    pub(super) loaders: Loaders,
    pub(super) head: Head,
    told: Told,
}

/// A packet that is worth an answer, perhaps.
pub(super) struct Asked<'a> {
    pub(super) now_ms: u64,
    pub(super) interface: usize,
    pub(super) network: Arc<Network>,
    pub(super) from: SocketAddrV4,
    pub(super) packet: &'a Packet,
    pub(super) client: Client,
    /// It is an adopted machine's.
    pub(super) is_ours: bool,
}

impl Asked<'_> {
    pub(super) fn mac(&self) -> Mac {
        self.packet.hardware
    }

    /// Of a machine that nobody knows these are answered; others find us silent (B2).
    pub(super) fn boots(&self) -> bool {
        matches!(self.client.kind, Kind::Firmware(..) | Kind::Ipxe)
    }

    /// It is a node's `/init`, or another system, that has its address already and asks whether all
    /// is as it was. No machine boots: a permit to join must not come of that.
    pub(super) fn is_running(&self) -> bool {
        !self.boots() && reply::own_address(self.packet).is_some()
    }

    /// The same, and it is our `/init`.
    pub(super) fn is_running_agent(&self) -> bool {
        self.client.kind == Kind::Agent && self.is_running()
    }

    fn machine(&self) -> Option<Mac> {
        self.is_ours.then_some(self.mac())
    }
}

impl Server {
    /// With the leases that were kept. All times are UNIX time in milliseconds: leases outlive
    /// the process.
    pub fn new(settings: BootSettings, leases: Vec<Lease>) -> Server {
        let mut server = Server {
            networks: Vec::new(),
            machines: Machines::default(),
            leases: Leases::default(),
            strangers: Strangers::default(),
            loaders: Loaders::default(),
            head: Head {
                port: 0,
                http_port: 0,
                cluster: String::new(),
                resolves: false,
            },
            told: Told::default(),
        };
        server.leases.restore(&leases);
        server.configure(settings);
        server
    }

    /// Whether machines that were adopted can ask us for names from now on.
    pub fn resolve_names(&mut self, resolves: bool) {
        self.head.resolves = resolves;
    }

    /// Replaces the settings. What is leased stays leased.
    pub fn configure(&mut self, settings: BootSettings) {
        let names = settings.interfaces.iter().map(|interface| &interface.name);
        if !names.eq(self.networks.iter().map(|network| &network.name)) {
            self.told.clear();
        }
        self.networks = settings
            .interfaces
            .iter()
            .map(|wire| Arc::new(Network::new(wire)))
            .collect();
        self.machines.configure(&settings.machines);
        let machines = &self.machines;
        self.told.retain(|mac| machines.get(mac).is_some());
        self.head = Head {
            port: settings.head_port,
            http_port: settings.http_port,
            cluster: settings.cluster,
            resolves: self.head.resolves,
        };
        for address in self.machines.addresses() {
            self.leases.withdraw(address);
        }
        let pools = self.networks.iter().map(|network| match network.service {
            AddressService::Full => network.unknown,
            // From the last to the first: none.
            AddressService::Proxy => (Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED),
        });
        self.leases
            .configure(pools, giveable(&self.networks, &self.machines));
    }

    /// The boot programs that there are, by their names. Until it is told: `undionly.kpxe` and
    /// `snponly.efi`.
    pub fn set_loaders(&mut self, files: impl IntoIterator<Item = String>) {
        self.loaders = Loaders::new(files);
    }

    /// `interface` is an index into the settings' interfaces, `port` the one that it arrived at.
    pub fn packet(
        &mut self,
        now_ms: u64,
        interface: usize,
        from: SocketAddrV4,
        port: Port,
        bytes: &[u8],
    ) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(network) = self.networks.get(interface).cloned() else {
            return out;
        };
        let Ok(packet) = Packet::parse(bytes) else {
            return out;
        };
        let is_ours = self.machines.get(packet.hardware).is_some();
        if !is_for_us(&network, from, port, &packet, is_ours) {
            return out;
        }
        self.leases
            .expire(now_ms, giveable(&self.networks, &self.machines));
        let asked = Asked {
            now_ms,
            interface,
            network,
            from,
            client: Client::of(&packet),
            is_ours,
            packet: &packet,
        };
        self.look_for_twins(&asked, &mut out);
        match (port, asked.network.service) {
            (Port::Proxy, _) => self.boot_server(&asked, &mut out),
            (Port::Server, AddressService::Full) => self.full(&asked, &mut out),
            (Port::Server, AddressService::Proxy) => self.proxy(&asked, &mut out),
        }
        out
    }

    /// A DISCOVER to send on an interface before answering anybody.
    pub fn probe(&mut self, _interface: usize, transaction: u32) -> Vec<u8> {
        let mac = probe_mac(transaction);
        let mut probe = Packet::new(Operation::Request, transaction, mac);
        probe.broadcast = true;
        probe
            .options
            .set(code::MESSAGE_TYPE, [Message::Discover.number()]);
        probe
            .options
            .set(code::WANTED, [code::SUBNET_MASK, code::ROUTER]);
        probe.emit(usize::MAX)
    }

    /// Another server's address, if this is its answer to a probe. Answers come to port 68.
    pub fn other_server(
        &self,
        interface: usize,
        transaction: u32,
        bytes: &[u8],
    ) -> Option<Ipv4Addr> {
        let network = self.networks.get(interface)?;
        let packet = Packet::parse(bytes).ok()?;
        let is_answer = packet.operation == Operation::Reply
            && packet.transaction == transaction
            && packet.hardware == probe_mac(transaction);
        let server = packet
            .options
            .address(code::SERVER)
            .unwrap_or(packet.next_server);
        (is_answer && server != network.address).then_some(server)
    }

    /// A machine that nobody knows goes on using its address: it fetched its script, for
    /// example. iPXE doesn't renew; its address would come to somebody else while it waits.
    pub fn renew(&mut self, now_ms: u64, mac: Mac) -> Option<Lease> {
        self.leases
            .expire(now_ms, giveable(&self.networks, &self.machines));
        let left_ms = self.leases.ends_ms(mac)?.saturating_sub(now_ms);
        let (address, _) = self.leases.of(mac)?;
        let is_due = left_ms < u64::from(UNKNOWN_LEASE_S) * 1_000 / 2;
        let is_anothers = self.machines.have(address);
        (is_due && !is_anothers).then(|| self.leases.take(now_ms, mac))?
    }

    /// Sends an answer to wherever its client listens.
    pub(super) fn send(asked: &Asked, reply: &Packet, out: &mut Vec<Effect>) {
        out.push(Effect::Send {
            interface: asked.interface,
            to: reply::destination(reply),
            bytes: reply::emit(reply, asked.packet),
        });
    }

    /// Adds what to boot, or tells that there is nothing to.
    pub(super) fn add_boot(
        &mut self,
        asked: &Asked,
        reply: &mut Packet,
        out: &mut Vec<Effect>,
    ) -> bool {
        let (packet, client) = (asked.packet, &asked.client);
        let network = &asked.network;
        let is_there = reply::add_boot(reply, network, &self.head, &self.loaders, packet, client);
        if !is_there {
            let (who, what) = (self.name_of(asked), client.words);
            let files = match client.kind {
                Kind::Firmware(_, architecture) => candidates(architecture),
                _ => candidates(super::client::Architecture::Bios),
            };
            let files = match files {
                [] => "and none is known for its kind".to_owned(),
                _ => format!("put {} beside the others", files.join(" or ")),
            };
            let text = format!("there is no boot program for {who}, which is {what}: {files}");
            self.tell(asked, Topic::NoLoader, text, out);
        }
        is_there
    }

    /// Tells the head how far a machine has come, if that is news.
    pub(super) fn see(
        &mut self,
        asked: &Asked,
        stage: Stage,
        address: Option<Ipv4Addr>,
        out: &mut Vec<Effect>,
    ) {
        let progress = (asked.client.kind.rank(), stage);
        let is_news = match self.machines.get_mut(asked.mac()) {
            Some(machine) => machine.track.is_news(asked.now_ms, progress),
            None => {
                let stranger = self.strangers.entry(asked.mac());
                stranger.track.is_news(asked.now_ms, progress)
                    && self.strangers.may_tell(asked.now_ms)
            }
        };
        if is_news {
            out.push(Effect::Seen(Sighting {
                mac: asked.mac(),
                stage,
                interface: asked.network.name.clone(),
                client: Some(asked.client.words.to_owned()),
                address,
            }));
        }
    }

    /// Tells a problem, once a minute.
    pub(super) fn tell(
        &mut self,
        asked: &Asked,
        topic: Topic,
        text: String,
        out: &mut Vec<Effect>,
    ) {
        if self
            .told
            .is_due(asked.now_ms, topic, asked.interface, asked.machine())
        {
            out.push(Effect::Problem {
                interface: asked.interface,
                text,
            });
        }
    }

    /// A machine's name, or its Ethernet address.
    pub(super) fn name_of(&self, asked: &Asked) -> String {
        match self.machines.get(asked.mac()) {
            Some(machine) => machine.name.clone(),
            None => asked.mac().to_string(),
        }
    }

    fn look_for_twins(&mut self, asked: &Asked, out: &mut Vec<Effect>) {
        let Some(machine) = self.machines.get_mut(asked.mac()) else {
            return;
        };
        let client = &asked.client;
        let identifier = client.identifier.as_deref();
        let sign = machine
            .twins
            .heard(asked.now_ms, client.words, client.uuid, identifier);
        let differ = match sign {
            None => return,
            Some(Sign::Uuids(one, other)) => {
                format!(
                    "their UUIDs are {} and {}",
                    uuid_text(one),
                    uuid_text(other)
                )
            }
            Some(Sign::Identifiers) => "their client identifiers differ".to_owned(),
        };
        let (mac, name, wire) = (asked.mac(), self.name_of(asked), &asked.network.name);
        let text = format!(
            "two machines on {wire} have the Ethernet address {mac}, which is {name}'s: {differ}; \
             give one of them another (a copied virtual machine has its original's)"
        );
        self.tell(asked, Topic::Twins, text, out);
    }
}

/// Which addresses of an interface's network a pool may give.
pub(super) fn giveable(
    networks: &[Arc<Network>],
    machines: &Machines,
) -> impl Fn(usize, Ipv4Addr) -> bool {
    move |interface, address| {
        let network = networks.get(interface);
        network.is_some_and(|network| network.is_giveable(address)) && !machines.have(address)
    }
}

/// Whether it is a client's, and from here: no answer of ours leaves the interface's network.
fn is_for_us(
    network: &Network,
    from: SocketAddrV4,
    port: Port,
    packet: &Packet,
    is_ours: bool,
) -> bool {
    if packet.operation != Operation::Request
        || !packet.hardware.is_unicast()
        || packet.hardware == probe_mac(packet.transaction)
    {
        return false;
    }
    // Users of a node can send from its address, but not from the ports of DHCP.
    let is_roots = match port {
        Port::Server => [CLIENT_PORT, SERVER_PORT].contains(&from.port()),
        Port::Proxy => from.port() < FIRST_ORDINARY_PORT || from.port() == PROXY_PORT,
    };
    if !is_roots {
        return false;
    }
    let is_local = |address: Ipv4Addr| {
        let is_host = address != network.address && Some(address) != network.broadcast();
        is_host && network.contains(address)
    };
    if !packet.relay.is_unspecified() {
        return port == Port::Server && packet.hops <= MAX_HOPS && is_local(packet.relay);
    }
    // An adopted machine with an address of the network that was here before is told that it has
    // none any more; that goes to everybody on the wire.
    let is_outdated = is_ours && Message::of(packet) == Some(Message::Request);
    from.ip().is_unspecified() || is_local(*from.ip()) || is_outdated
}

/// A probe's own Ethernet address: a local one that nobody has, and that tells which probe.
fn probe_mac(transaction: u32) -> Mac {
    let [a, b, c, d] = transaction.to_be_bytes();
    Mac([0x02, b'w', a, b, c, d])
}
