//! Machines that boot from the network: who was adopted, who has only knocked, and who of them
//! may join. Pure: times come in, nothing goes out.
//!
//! A machine without a disk has nothing to prove who it is. What lets it join is that the boot
//! service has just seen it boot, that it asks from its own address by a port that only root
//! there can have, and, the first time, that somebody has compared a code (`docs/security.md`).

mod subnet;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wiglaf_wire::boot::{
    AddressService, BootInterface, BootMachine, BootSettings, Mac, MachineInfo, Sighting, Stage,
};
use wiglaf_wire::nodeset::is_node_name;

use crate::placement::Refusal;

/// How long after it was last seen booting a machine may join.
const PERMIT_MS: u64 = 10 * 60_000;
/// Machines that nobody knows and that are remembered.
const MAX_STRANGERS: usize = 1_000;
/// Ports below this are given to root only (`IPPORT_RESERVED`, netinet/in.h).
const FIRST_ORDINARY_PORT: u16 = 1_024;
/// Keys that wait at once for one machine: more than one only if somebody else asks in its name.
const MAX_KEYS: usize = 4;

/// A moment, by two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Milliseconds since the head's machine booted.
    pub ms: u64,
    /// Seconds since the Epoch.
    pub wall_s: i64,
}

/// A machine that was adopted, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its node.
    pub name: String,
    /// Its own address; `None`: another DHCP server gives it one.
    pub address: Option<Ipv4Addr>,
    /// What it boots, if not what all do.
    pub image: Option<String>,
    /// Somebody has compared its code once.
    pub is_approved: bool,
}

/// An interface that is served, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The interface.
    pub interface: BootInterface,
    /// The head gives it its address.
    pub sets_address: bool,
}

/// The digest of a public key (SHA-256). A code is too short to stand for a key by itself:
/// another key with the same code is found in minutes.
pub type Key = [u8; 32];

/// What is known of a machine's present life.
#[derive(Clone, Debug)]
struct Life {
    interface: String,
    client: Option<String>,
    address: Option<Ipv4Addr>,
    stage: Stage,
    stage_s: i64,
    first_s: i64,
    seen_ms: u64,
    /// Until when it may join; taken away when it has.
    permit_until_ms: u64,
    /// The keys that ask, by the code that stands for each.
    asking: Vec<(String, Key)>,
    /// The key that somebody has confirmed: it and no other may join.
    confirmed: Option<Key>,
    refusal: Option<String>,
}

/// The answer to a machine that asks to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It becomes the node of this name. What the store keeps may have changed.
    Accept {
        /// The name.
        name: String,
    },
    /// Somebody has to compare this code first.
    Await {
        /// The code.
        code: String,
    },
    /// No, with the sentence for its console.
    Refuse {
        /// Why, and what to do.
        reason: String,
    },
}

/// What a sighting means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing for anybody else.
    Noted,
    /// It came while every machine is adopted.
    Adopt,
}

/// All machines that boot from the network, and where.
#[derive(Debug, Default)]
pub struct Machines {
    served: BTreeMap<String, Served>,
    known: BTreeMap<Mac, Machine>,
    lives: BTreeMap<Mac, Life>,
    image: Option<String>,
    /// The interface that leads to the outer world, if nodes may go there.
    outer: Option<String>,
    adopts_until: Option<Now>,
}

impl Machines {
    /// With what the store remembers; interfaces follow by [`Machines::enable`].
    pub fn new(known: Vec<Machine>, image: Option<String>) -> Machines {
        Machines {
            known: known.into_iter().map(|each| (each.mac, each)).collect(),
            image,
            ..Machines::default()
        }
    }

    /// Interfaces that are served.
    pub fn served(&self) -> impl Iterator<Item = &Served> {
        self.served.values()
    }

    /// All that were adopted.
    pub fn known(&self) -> impl Iterator<Item = &Machine> {
        self.known.values()
    }

    /// What machines boot for which nothing else is said.
    pub fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// The interface by which nodes reach the outer world.
    pub fn outer(&self) -> Option<&str> {
        self.outer.as_deref()
    }

    /// Lets nodes reach the outer world by this interface, or no longer.
    ///
    /// # Errors
    /// It is one that nodes are behind.
    pub fn lead_outward(&mut self, outer: Option<String>) -> Result<(), Refusal> {
        if let Some(outer) = outer
            .as_ref()
            .filter(|outer| self.served.contains_key(*outer))
        {
            return Err(Refusal::new(
                format!("{outer} leads to the nodes, not outward"),
                "name the interface of the default route: `ip route` shows it",
            ));
        }
        self.outer = outer;
        Ok(())
    }

    /// Until when every machine is adopted.
    pub fn adopts_until(&self) -> Option<Now> {
        self.adopts_until
    }

    /// Serves an interface from now on. Returns what the store has to keep.
    ///
    /// # Errors
    /// Its network does not do, or is another interface's, too.
    pub fn enable(
        &mut self,
        mut interface: BootInterface,
        sets_address: bool,
    ) -> Result<&Served, Refusal> {
        let ranges = subnet::ranges(interface.address, interface.prefix)
            .map_err(|why| Refusal::new(why, "for example: --address 10.77.0.1/24"))?;
        let network = (interface.address, interface.prefix);
        let clash = self.served.values().find(|other| {
            let other = &other.interface;
            other.name != interface.name && subnet::overlap(network, (other.address, other.prefix))
        });
        if let Some(other) = clash {
            let other = &other.interface;
            return Err(Refusal::new(
                format!(
                    "{} is in the network {}/{} of {}, which is served already",
                    interface.address, other.address, other.prefix, other.name
                ),
                "each interface needs a network of its own: give another --address",
            ));
        }
        let (first, last) = ranges.unknown;
        interface.unknown = (Ipv4Addr::from(first), Ipv4Addr::from(last));
        let name = interface.name.clone();
        let served = Served {
            interface,
            sets_address,
        };
        let outside = |machine: &&mut Machine| match machine.address {
            Some(address) => subnet::is_behind(&served.interface, address),
            None => false,
        };
        // Who had an address there that is the head's now, or the pool's, gets another.
        let mut taken: Vec<Ipv4Addr> = self.known.values().filter_map(|m| m.address).collect();
        for machine in self.known.values_mut().filter(outside) {
            let number = machine.address.map_or(0, u32::from);
            if number < ranges.first
                || number > ranges.last
                || machine.address == Some(served.interface.address)
            {
                machine.address = subnet::free_address(&served.interface, &machine.name, |free| {
                    taken.contains(&free)
                });
                taken.extend(machine.address);
            }
        }
        self.served.insert(name.clone(), served);
        Ok(&self.served[&name])
    }

    /// Serves it no longer. Whether it was served.
    pub fn disable(&mut self, name: &str) -> bool {
        self.served.remove(name).is_some()
    }

    /// Makes a machine a node. `address` is chosen where we give addresses.
    ///
    /// # Errors
    /// It is one already, the name does not do, or no address is left.
    pub fn adopt(&mut self, mac: Mac, name: &str) -> Result<&Machine, Refusal> {
        if let Some(machine) = self.known.get(&mac) {
            return Err(Refusal::new(
                format!("{mac} is adopted already, as {}", machine.name),
                format!("`wiglaf node forget {}` undoes that", machine.name),
            ));
        }
        if !mac.is_unicast() {
            return Err(Refusal::new(
                format!("{mac} is no single machine's address"),
                "`wiglaf nodes --unknown` shows the machines that have asked",
            ));
        }
        if !is_node_name(name) {
            return Err(Refusal::new(
                format!("{name:?} can't be a node's name"),
                "letters, digits, - and . are allowed",
            ));
        }
        if let Some(other) = self.known.values().find(|other| other.name == name) {
            return Err(Refusal::new(
                format!("{name} is the machine {} already", other.mac),
                format!("give another name, or `wiglaf node forget {name}` first"),
            ));
        }
        let served = self.wire_of(mac)?;
        let address = match served.interface.service {
            AddressService::Proxy => None,
            AddressService::Full => {
                let interface = served.interface.clone();
                let is_taken = |address| self.known.values().any(|m| m.address == Some(address));
                let free = subnet::free_address(&interface, name, is_taken);
                Some(free.ok_or_else(|| {
                    Refusal::new(
                        format!("no address is left behind {}", interface.name),
                        "`wiglaf boot enable` it with a larger network (a smaller number after the /)",
                    )
                })?)
            }
        };
        let machine = Machine {
            mac,
            name: name.to_owned(),
            address,
            image: None,
            is_approved: false,
        };
        if let Some(life) = self.lives.get_mut(&mac) {
            // The address that it had as a stranger is not the one that it will join from.
            life.address = None;
        }
        Ok(self.known.entry(mac).or_insert(machine))
    }

    /// The wire that a machine is on: where it was seen, or the only one that there is.
    fn wire_of(&self, mac: Mac) -> Result<&Served, Refusal> {
        let seen = self.lives.get(&mac);
        if let Some(served) = seen.and_then(|life| self.served.get(&life.interface)) {
            return Ok(served);
        }
        let mut all = self.served.values();
        match (all.next(), all.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Refusal::new(
                "no interface is served yet, so no machine can boot",
                "`wiglaf boot enable --interface NAME` first",
            )),
            _ => Err(Refusal::new(
                format!("{mac} has not been seen yet, and there are several interfaces"),
                "switch it on first: then it is known which one it is behind",
            )),
        }
    }

    /// Adopts every machine that comes until then; `None` ends it.
    pub fn adopt_all(&mut self, until: Option<Now>) {
        self.adopts_until = until;
    }

    /// The machine of this node, or with this Ethernet address.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, text: &str) -> Result<&Machine, Refusal> {
        let by_mac = text.parse().ok().and_then(|mac: Mac| self.known.get(&mac));
        by_mac
            .or_else(|| self.known.values().find(|machine| machine.name == text))
            .ok_or_else(|| {
                Refusal::new(
                    format!("{text} is no machine that was adopted"),
                    "`wiglaf nodes --unknown` shows those that have asked, `wiglaf node adopt` adopts one",
                )
            })
    }

    /// Undoes an adoption. Returns what the store has to drop.
    ///
    /// # Errors
    /// There is none.
    pub fn forget(&mut self, text: &str) -> Result<Machine, Refusal> {
        let mac = self.find(text)?.mac;
        self.lives.remove(&mac);
        let machine = self.known.remove(&mac);
        machine
            .ok_or_else(|| Refusal::new(format!("{text} is gone already"), "nothing is left to do"))
    }

    /// What machines boot: these, or all for which nothing else is said.
    pub fn use_image(&mut self, image: &str, names: Option<&[String]>) -> Vec<Machine> {
        let Some(names) = names else {
            self.image = Some(image.to_owned());
            return Vec::new();
        };
        let chosen = self.known.values_mut().filter(|m| names.contains(&m.name));
        chosen
            .map(|machine| {
                machine.image = Some(image.to_owned());
                machine.clone()
            })
            .collect()
    }

    /// Takes in what the boot service saw.
    pub fn seen(&mut self, now: Now, sighting: &Sighting) -> Seen {
        let is_known = self.known.contains_key(&sighting.mac);
        if !is_known && !self.lives.contains_key(&sighting.mac) {
            self.make_room();
        }
        let life = self.lives.entry(sighting.mac).or_insert_with(|| Life {
            interface: sighting.interface.clone(),
            client: None,
            address: None,
            stage: sighting.stage,
            stage_s: now.wall_s,
            first_s: now.wall_s,
            seen_ms: now.ms,
            permit_until_ms: 0,
            asking: Vec::new(),
            confirmed: None,
            refusal: None,
        });
        if sighting.stage != life.stage {
            life.stage_s = now.wall_s;
        }
        if sighting.stage < life.stage && matches!(sighting.stage, Stage::Script | Stage::Init) {
            // It started anew: what was confirmed was another key. Only what comes by HTTP says so,
            // as anybody on the wire can ask for an address in its name.
            life.asking.clear();
            life.confirmed = None;
            life.refusal = None;
        }
        life.interface.clone_from(&sighting.interface);
        life.stage = sighting.stage;
        life.seen_ms = now.ms;
        if sighting.client.is_some() {
            life.client.clone_from(&sighting.client);
        }
        let is_own = self
            .known
            .get(&sighting.mac)
            .is_none_or(|machine| machine.address.is_some());
        if is_own || sighting.stage >= Stage::Script {
            life.address = sighting.address.or(life.address);
        }
        if !is_known {
            // What only asks for an address may be a switch or a telephone.
            let is_open = self.adopts_until.is_some_and(|until| now.ms < until.ms)
                && sighting.stage >= Stage::Addressed;
            return if is_open { Seen::Adopt } else { Seen::Noted };
        }
        life.permit_until_ms = now.ms + PERMIT_MS;
        Seen::Noted
    }

    /// The machine that has been silent longest makes room, if it is nobody's.
    fn make_room(&mut self) {
        let strangers = || {
            self.lives
                .iter()
                .filter(|(mac, _)| !self.known.contains_key(mac))
        };
        if strangers().count() < MAX_STRANGERS {
            return;
        }
        let oldest = strangers().min_by_key(|(_, life)| life.seen_ms);
        if let Some(mac) = oldest.map(|(mac, _)| *mac) {
            self.lives.remove(&mac);
        }
    }

    /// A machine asks to join from there, with this key, for which that code stands.
    pub fn may_join(
        &mut self,
        now: Now,
        mac: Mac,
        from: SocketAddr,
        key: Key,
        code: &str,
    ) -> Verdict {
        let refuse = |reason: String| Verdict::Refuse { reason };
        let Some(machine) = self.known.get_mut(&mac) else {
            return refuse(format!(
                "nobody has adopted {mac}: `wiglaf node adopt {mac}` on the head does"
            ));
        };
        let Some(life) = self.lives.get_mut(&mac) else {
            return refuse(format!(
                "the head has not seen {mac} boot: start it from the network"
            ));
        };
        let wire = self.served.get(&life.interface);
        let own = machine
            .address
            .or(life.address)
            .filter(|own| wire.is_some_and(|served| subnet::is_behind(&served.interface, *own)));
        // What somebody else says in its name is not kept: it would hide what the machine says.
        if own.is_none_or(|own| canonical(from.ip()) != IpAddr::V4(own)) {
            return refuse(format!("{} is not the address of {mac}", from.ip()));
        }
        if from.port() >= FIRST_ORDINARY_PORT {
            return refuse(format!("port {} is not one of root's", from.port()));
        }
        if life.permit_until_ms <= now.ms {
            let reason =
                format!("{mac} has joined already since it booted, or too long ago: boot it again");
            life.refusal = Some(reason.clone());
            return refuse(reason);
        }
        life.seen_ms = now.ms;
        if machine.is_approved && life.confirmed.is_none_or(|only| only == key) {
            life.permit_until_ms = 0;
            life.asking.clear();
            life.refusal = None;
            if life.stage != Stage::Joining {
                (life.stage, life.stage_s) = (Stage::Joining, now.wall_s);
            }
            return Verdict::Accept {
                name: machine.name.clone(),
            };
        }
        if life.stage != Stage::AwaitsApproval {
            (life.stage, life.stage_s) = (Stage::AwaitsApproval, now.wall_s);
        }
        life.refusal = None;
        if !life.asking.iter().any(|(_, known)| *known == key) {
            if life.asking.len() >= MAX_KEYS {
                life.asking.remove(0);
            }
            life.asking.push((code.to_owned(), key));
        }
        // While somebody waits, the permit does not run out.
        life.permit_until_ms = now.ms + PERMIT_MS;
        Verdict::Await {
            code: code.to_owned(),
        }
    }

    /// Somebody has read this code on the machine's console. Returns what the store has to keep.
    ///
    /// # Errors
    /// No machine shows such a code.
    pub fn approve(&mut self, text: &str, code: &str) -> Result<&Machine, Refusal> {
        let mac = self.find(text)?.mac;
        let digits = |text: &str| {
            text.chars()
                .filter(char::is_ascii_digit)
                .collect::<String>()
        };
        let waiting = self
            .lives
            .get_mut(&mac)
            .filter(|life| !life.asking.is_empty());
        let Some(life) = waiting else {
            return Err(Refusal::new(
                format!("{text} does not wait for approval now"),
                format!("`wiglaf node why {text}` tells how far it is"),
            ));
        };
        let typed = digits(code);
        let shown: Vec<Key> = life
            .asking
            .iter()
            .filter(|(shown, _)| digits(shown) == typed)
            .map(|(_, key)| *key)
            .collect();
        match shown.as_slice() {
            [only] => life.confirmed = Some(*only),
            [] => {
                return Err(Refusal::new(
                    format!("{text} asks with another code than {code}"),
                    "compare it with the machine's console: if it shows this one, somebody else \
                     asks in its name",
                ));
            }
            _ => {
                return Err(Refusal::new(
                    format!("two machines ask as {text} with this code: one of them is forged"),
                    "find out who else is on that wire, and start the machine again",
                ));
            }
        }
        let machine = self.known.get_mut(&mac);
        let machine = machine.ok_or_else(|| Refusal::new("it is gone", "adopt it again"))?;
        machine.is_approved = true;
        Ok(machine)
    }

    /// The node has joined.
    pub fn is_up(&mut self, now: Now, name: &str) {
        let mac = self.known.values().find(|m| m.name == name).map(|m| m.mac);
        if let Some(life) = mac.and_then(|mac| self.lives.get_mut(&mac)) {
            (life.stage, life.stage_s) = (Stage::Up, now.wall_s);
            (life.refusal, life.confirmed) = (None, None);
        }
    }

    /// Whether the machine of this node is on its way: seen, and not up.
    pub fn is_booting(&self, name: &str) -> bool {
        let machine = self.known.values().find(|machine| machine.name == name);
        let life = machine.and_then(|machine| self.lives.get(&machine.mac));
        life.is_some_and(|life| life.stage < Stage::Up)
    }

    /// What the boot service has to know.
    pub fn settings(
        &self,
        cluster: &str,
        arguments: &str,
        head_port: u16,
        http_port: u16,
    ) -> BootSettings {
        let machines = self.known.values().map(|machine| BootMachine {
            mac: machine.mac,
            name: machine.name.clone(),
            address: machine.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            image: machine
                .image
                .clone()
                .or_else(|| self.image.clone())
                .unwrap_or_default(),
            arguments: arguments.to_owned(),
        });
        BootSettings {
            interfaces: self
                .served
                .values()
                .map(|served| self.told(served))
                .collect(),
            head_port,
            http_port,
            cluster: cluster.to_owned(),
            machines: machines.collect(),
        }
    }

    /// An interface, with the head as the way out where it is that.
    fn told(&self, served: &Served) -> BootInterface {
        let mut interface = served.interface.clone();
        if self.outer.is_some() && interface.gateway.is_none() {
            interface.gateway = Some(interface.address);
        }
        interface
    }

    /// All machines, the adopted ones first.
    pub fn list(&self) -> Vec<MachineInfo> {
        let known = self.known.keys();
        let strangers = self
            .lives
            .keys()
            .filter(|mac| !self.known.contains_key(mac));
        known.chain(strangers).map(|mac| self.info(*mac)).collect()
    }

    /// One of them.
    pub fn info(&self, mac: Mac) -> MachineInfo {
        let machine = self.known.get(&mac);
        let life = self.lives.get(&mac);
        MachineInfo {
            mac,
            name: machine.map(|machine| machine.name.clone()),
            address: machine
                .and_then(|machine| machine.address)
                .or_else(|| life.and_then(|life| life.address)),
            interface: life.map(|life| life.interface.clone()),
            client: life.and_then(|life| life.client.clone()),
            stage: life.map(|life| life.stage),
            stage_s: life.map(|life| life.stage_s),
            first_s: life.map(|life| life.first_s),
            image: machine.and_then(|machine| machine.image.clone().or_else(|| self.image.clone())),
            is_approved: machine.is_some_and(|machine| machine.is_approved),
            code: life.and_then(|life| life.asking.last().map(|(code, _)| code.clone())),
            refusal: life.and_then(|life| life.refusal.clone()),
        }
    }
}

/// An IPv4 address that came by an IPv6 socket is the IPv4 address.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
