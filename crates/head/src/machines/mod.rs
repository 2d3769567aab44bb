//! Machines that boot from the network: who was adopted, who has only knocked, and who of them
//! may join. Pure: times come in, nothing goes out.
//!
//! A machine without a disk has nothing to prove who it is. What lets it join is that the boot
//! service has just seen it boot, that it asks from its own address by a port that only root
//! there can have, and, the first time, that somebody has compared a code (`docs/security.md`).

mod adopting;
mod joining;
mod rules;
mod subnet;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use wiglaf_wire::boot::{
    AddressService, BootInterface, BootMachine, BootSettings, Mac, MachineInfo, Sighting, Stage,
};
use wiglaf_wire::nodeset::is_node_name;

use crate::node_table::{Node, NodeTable};
use crate::placement::Refusal;
pub use adopting::Window;
use joining::PERMIT_MS;
pub use joining::{Key, Verdict};
pub use rules::{Approve, MacPattern, NamePattern, NotAPattern, Rule};

/// Machines that nobody knows and that are remembered.
const MAX_STRANGERS: usize = 1_000;

/// A moment, by two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// What is known of a machine's present life.
#[derive(Clone, Debug)]
struct Life {
    interface: String,
    client: Option<String>,
    address: Option<Ipv4Addr>,
    stage: Stage,
    stage_s: i64,
    first_s: i64,
    first_ms: u64,
    seen_ms: u64,
    /// Until when it may join; taken away when it has.
    permit_until_ms: u64,
    /// The keys that ask, by the code that stands for each.
    asking: Vec<(String, Key)>,
    /// The key that somebody has confirmed: it and no other may join.
    confirmed: Option<Key>,
    refusal: Option<String>,
    /// How often it has fetched its boot program since that last ran.
    fruitless_loads: u32,
    /// Its first process was heard of since it fetched its script.
    is_greeted: bool,
}

/// What a sighting means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing for anybody else.
    Noted,
    /// It is to be adopted: it came while every machine is, or a rule says so.
    Adopt {
        /// What it is called; `None`: the next free name.
        name: Option<NamePattern>,
        /// What it boots, if not what all do: an image's ID or name.
        image: Option<String>,
    },
}

/// All machines that boot from the network, and where.
#[derive(Debug, Default)]
pub struct Machines {
    served: BTreeMap<String, Served>,
    known: BTreeMap<Mac, Machine>,
    lives: BTreeMap<Mac, Life>,
    image: Option<String>,
    /// What the nodes of a group boot for which nothing else is said.
    group_images: BTreeMap<String, String>,
    /// Which groups nodes are in, as the node table has it.
    groups: BTreeMap<String, BTreeSet<String>>,
    /// The interface that leads to the outer world, if nodes may go there.
    outer: Option<String>,
    /// While it is open, every machine that comes is adopted.
    window: Option<Window>,
    rules: Vec<Rule>,
    approve: Approve,
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

    /// What is configured.
    pub fn govern(&mut self, approve: Approve, rules: Vec<Rule>) {
        (self.approve, self.rules) = (approve, rules);
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
        self.readdress(&served.interface, &ranges);
        self.served.insert(name.clone(), served);
        Ok(&self.served[&name])
    }

    /// Gives the machines behind an interface addresses that fit what it is to be now: who has one
    /// that is the head's, the pool's or of another network gets another, and where another DHCP
    /// server gives them, none.
    fn readdress(&mut self, new: &BootInterface, ranges: &subnet::Ranges) {
        let old = self.served.get(&new.name).map(|old| old.interface.clone());
        let is_only = self.served.keys().all(|name| *name == new.name);
        let was_proxy = old
            .as_ref()
            .is_some_and(|old| old.service == AddressService::Proxy);
        let lives = &self.lives;
        let is_there = |machine: &Machine| match machine.address {
            Some(address) => {
                subnet::is_behind(new, address)
                    || old
                        .as_ref()
                        .is_some_and(|old| subnet::is_behind(old, address))
            }
            None => {
                let life = lives.get(&machine.mac);
                was_proxy && (is_only || life.is_some_and(|life| life.interface == new.name))
            }
        };
        let mut taken: Vec<Ipv4Addr> = self.known.values().filter_map(|m| m.address).collect();
        for machine in self.known.values_mut().filter(|machine| is_there(machine)) {
            let fits = |address: Ipv4Addr| {
                (ranges.first..=ranges.last).contains(&u32::from(address)) && address != new.address
            };
            if new.service == AddressService::Proxy {
                machine.address = None;
            } else if !machine.address.is_some_and(fits) {
                machine.address =
                    subnet::free_address(new, &machine.name, |free| taken.contains(&free));
                taken.extend(machine.address);
            }
        }
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
        if let Some(window) = &mut self.window {
            window.last = Some(mac);
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

    /// What all machines boot for which nothing else is said.
    pub fn use_image(&mut self, image: &str) {
        self.image = Some(image.to_owned());
    }

    /// What the nodes of a group boot, now and whoever comes into it later.
    pub fn use_group_image(&mut self, group: &str, image: &str) {
        self.group_images.insert(group.to_owned(), image.to_owned());
    }

    /// Nothing is said of a group any more. Whether something was.
    pub fn drop_group_image(&mut self, group: &str) -> bool {
        self.group_images.remove(group).is_some()
    }

    /// What the nodes of each group boot.
    pub fn group_images(&self) -> Vec<(String, String)> {
        let images = self.group_images.iter();
        images
            .map(|(group, image)| (group.clone(), image.clone()))
            .collect()
    }

    /// Takes in which groups nodes are in.
    pub fn follow_groups(&mut self, nodes: &NodeTable) {
        let groups = |node: &Node| (node.name.clone(), node.groups.clone());
        self.groups = nodes.iter().map(groups).collect();
    }

    /// What a machine boots: what was said of itself, else of one of its groups (the first in the
    /// alphabet), else of all.
    fn image_of<'a>(&'a self, machine: &'a Machine) -> Option<&'a String> {
        let groups = self.groups.get(&machine.name).into_iter().flatten();
        let of_group = || groups.flat_map(|group| self.group_images.get(group)).next();
        machine
            .image
            .as_ref()
            .or_else(of_group)
            .or(self.image.as_ref())
    }

    /// What these machines boot; `None`: what their group or all do. Returns what the store has to
    /// keep.
    pub fn use_image_for(&mut self, image: Option<&str>, names: &[String]) -> Vec<Machine> {
        let chosen = self.known.values_mut().filter(|m| names.contains(&m.name));
        chosen
            .map(|machine| {
                machine.image = image.map(str::to_owned);
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
            first_ms: now.ms,
            seen_ms: now.ms,
            permit_until_ms: 0,
            asking: Vec::new(),
            confirmed: None,
            refusal: None,
            fruitless_loads: 0,
            is_greeted: false,
        });
        match sighting.stage {
            Stage::Loader if life.stage != Stage::Loader || life.fruitless_loads == 0 => {
                life.fruitless_loads = life.fruitless_loads.saturating_add(1);
            }
            Stage::Asked | Stage::Addressed | Stage::Loader => {}
            _ => life.fruitless_loads = 0,
        }
        let was_greeted = life.is_greeted;
        match sighting.stage {
            Stage::Script => life.is_greeted = false,
            Stage::Init => life.is_greeted = true,
            _ => {}
        }
        if sighting.stage == Stage::Init && life.stage > Stage::Init && !was_greeted {
            // Its agent was faster than its log, which comes by another process.
            life.seen_ms = now.ms;
            return Seen::Noted;
        }
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
            return self.may_adopt(now, sighting.mac);
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
            image: self.image_of(machine).cloned().unwrap_or_default(),
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
            image: machine.and_then(|machine| self.image_of(machine).cloned()),
            is_approved: machine.is_some_and(|machine| machine.is_approved)
                && self.approve == Approve::Once,
            code: life.and_then(|life| life.asking.last().map(|(code, _)| code.clone())),
            refusal: life.and_then(|life| life.refusal.clone()),
            fruitless_loads: life.map_or(0, |life| life.fruitless_loads),
        }
    }
}
