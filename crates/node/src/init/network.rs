//! The way to the head: network cards, cables, an address.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{set_socket_broadcast, set_socket_reuseaddr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use wiglaf_linux::raw_socket::bind_to_device;
use wiglaf_wire::boot::Mac;

use super::cmdline::CommandLine;
use super::dhcp::{Client, Lease, Output};
use super::journal::Journal;
use crate::rack::network::{NetworkError, RouteSocket};

const CARDS: &str = "/sys/class/net";
const PCI: &str = "/sys/bus/pci/devices";
/// `ARPHRD_ETHER`.
const ETHERNET: &str = "1";
/// The class of network controllers.
const PCI_NETWORK: &str = "0x02";

/// `RTMGRP_LINK`.
const LINK_GROUP: u32 = 1;
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
const MAX_PACKET: usize = 2048;
/// Packets taken before others have their turn.
const PACKETS_PER_TURN: usize = 64;

/// The card that the machine was booted by is the only one that is used for so long.
const BOOT_CARD_MS: u64 = 30_000;
/// Before that, slow hardware is no reason to worry anybody.
const WORRY_MS: u64 = 5_000;
/// How often the same trouble is told again.
const TROUBLE_PERIOD_MS: u64 = 60_000;

/// A network card with a driver.
#[derive(Debug)]
struct Card {
    name: String,
    mac: Mac,
    socket: OwnedFd,
    client: Client,
    /// Since when the other end of its cable shows.
    linked_ms: Option<u64>,
    /// What the kernel was told.
    address: Option<(Ipv4Addr, u8)>,
    router: Option<Ipv4Addr>,
    /// A server that says nothing of a head.
    stranger: Option<Ipv4Addr>,
}

/// Where this machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// The card that it has come by.
    pub(super) card: String,
    pub(super) mac: Mac,
    pub(super) address: Ipv4Addr,
    pub(super) head: SocketAddrV4,
    pub(super) boot: Option<SocketAddrV4>,
    pub(super) host_name: Option<String>,
    pub(super) name_servers: Vec<Ipv4Addr>,
}

/// All cards, until one has led to the head.
pub(super) struct Network {
    route: RouteSocket,
    /// Wakes whoever waits when a cable is plugged in; without it, that is looked for.
    links: Option<OwnedFd>,
    cards: Vec<Card>,
    /// Names that no socket can be had for, so that this is told once.
    broken: Vec<String>,
    line: CommandLine,
    began_ms: u64,
    trouble: Option<(String, u64)>,
}

impl Network {
    /// Takes the machine's own device up, too.
    pub(super) fn open(line: CommandLine, now_ms: u64) -> Result<Network, NetworkError> {
        let mut route = RouteSocket::open()?;
        route.set_up("lo")?;
        Ok(Network {
            route,
            links: open_links().ok(),
            cards: Vec::new(),
            broken: Vec::new(),
            line,
            began_ms: now_ms,
            trouble: None,
        })
    }

    /// What the kernel's command line says.
    pub(super) fn line(&self) -> &CommandLine {
        &self.line
    }

    /// Asks for an address anew: the one that the machine has is not the one that it should have.
    pub(super) fn ask_anew(&mut self, now_ms: u64) {
        for card in &mut self.cards {
            card.client.ask_anew(now_ms);
        }
    }

    /// Takes cards into use that were not there before.
    pub(super) fn find_cards(&mut self, now_ms: u64, journal: &mut Journal) {
        for (name, mac) in ethernet_cards(Path::new(CARDS)) {
            let is_known = self.cards.iter().any(|card| card.name == name);
            if is_known || self.broken.contains(&name) {
                continue;
            }
            let opened = self
                .route
                .set_up(&name)
                .map_err(|error| error.to_string())
                .and_then(|()| {
                    open_socket(&name).map_err(|errno| format!("can't use {name}: {errno}"))
                });
            match opened {
                Ok(socket) => {
                    journal.say(format_args!("{name} is {mac}"));
                    let knows_head = self.line.head.is_some();
                    self.cards.push(Card {
                        client: Client::new(mac, seed(mac, now_ms), knows_head, now_ms),
                        name,
                        mac,
                        socket,
                        linked_ms: None,
                        address: None,
                        router: None,
                        stranger: None,
                    });
                }
                Err(text) => {
                    journal.say(text);
                    self.broken.push(name);
                }
            }
        }
    }

    /// What may have packets.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let cards = self.cards.iter().map(|card| card.socket.as_fd());
        cards.chain(self.links.as_ref().map(AsFd::as_fd))
    }

    /// When [`Network::step`] is due.
    pub(super) fn deadline(&self) -> Option<u64> {
        let linked = self.cards.iter().filter(|card| card.linked_ms.is_some());
        linked.filter_map(|card| card.client.deadline()).min()
    }

    /// Takes packets, sends some. Returns where the machine is when that is known or new.
    pub(super) fn step(&mut self, now_ms: u64, journal: &mut Journal) -> Option<Home> {
        if let Some(links) = &self.links {
            empty(links);
        }
        let mut home = None;
        for index in 0..self.cards.len() {
            if !self.may_use(index, now_ms) {
                continue;
            }
            let card = &mut self.cards[index];
            if card.linked_ms.is_none() {
                if !has_link(&card.name) {
                    continue;
                }
                card.linked_ms = Some(now_ms);
                journal.say(format_args!("{} has a link", card.name));
            }
            let mut outputs = Vec::new();
            receive(card, now_ms, &mut outputs);
            card.client.tick(now_ms, &mut outputs);
            for output in outputs {
                home = self.perform(index, output, journal).or(home);
            }
        }
        home
    }

    fn may_use(&self, index: usize, now_ms: u64) -> bool {
        let Some(boot_card) = self.line.boot_card else {
            return true;
        };
        self.cards[index].mac == boot_card || now_ms >= self.began_ms + BOOT_CARD_MS
    }

    fn perform(&mut self, index: usize, output: Output, journal: &mut Journal) -> Option<Home> {
        let card = &mut self.cards[index];
        match output {
            Output::Send(bytes, to) => {
                let to = SocketAddrV4::new(to.unwrap_or(Ipv4Addr::BROADCAST), SERVER_PORT);
                // It is sent again.
                let _ = rustix::net::sendto(&card.socket, &bytes, SendFlags::empty(), &to);
                None
            }
            Output::Stranger(server) => {
                card.stranger = Some(server);
                None
            }
            Output::Lost => {
                journal.say(format_args!(
                    "{}: its address is not its own any more; asking anew",
                    card.name
                ));
                card.router = None;
                if let Some((old, prefix)) = card.address.take()
                    && let Err(error) = self.route.remove_address(&card.name, old, prefix)
                {
                    journal.say(error);
                }
                None
            }
            Output::Bound(lease) => match self.settle(index, &lease, journal) {
                Ok(home) => home,
                Err(error) => {
                    journal.say(error);
                    None
                }
            },
        }
    }

    fn settle(
        &mut self,
        index: usize,
        lease: &Lease,
        journal: &mut Journal,
    ) -> Result<Option<Home>, NetworkError> {
        let card = &mut self.cards[index];
        let address = (lease.address, lease.prefix);
        if card.address != Some(address) {
            if let Some((old, prefix)) = card.address.take() {
                self.route.remove_address(&card.name, old, prefix)?;
            }
            match self
                .route
                .add_address(&card.name, lease.address, lease.prefix)
            {
                Err(NetworkError::Refused {
                    errno: Errno::EXIST,
                    ..
                }) => {}
                result => result?,
            }
            card.address = Some(address);
            // The kernel has dropped it with the address.
            card.router = None;
            journal.say(format_args!(
                "{} has the address {}/{} from {}",
                card.name, lease.address, lease.prefix, lease.server
            ));
        }
        if card.router != lease.router {
            let changed = match (lease.router, card.router) {
                (Some(new), _) => self.route.add_default_route(&card.name, new),
                (None, Some(old)) => self.route.remove_default_route(&card.name, old),
                (None, None) => Ok(()),
            };
            match (changed, lease.router) {
                (Err(error), _) => journal.say(error),
                (Ok(()), Some(new)) => journal.say(format_args!("the way out is by {new}")),
                (Ok(()), None) => journal.say("there is no way out any more"),
            }
            card.router = lease.router;
        }
        let told = lease.cluster.as_ref();
        let head = self.line.head.or(told.map(|cluster| cluster.head));
        Ok(head.map(|head| Home {
            card: card.name.clone(),
            mac: card.mac,
            address: lease.address,
            head,
            boot: self.line.boot.or(told.and_then(|cluster| cluster.boot)),
            host_name: lease.host_name.clone(),
            name_servers: lease.name_servers.clone(),
        }))
    }

    /// Only this card matters from now on.
    pub(super) fn keep(&mut self, name: &str) {
        self.cards.retain(|card| card.name == name);
    }

    /// Says what is missing, when that has lasted.
    pub(super) fn explain(&mut self, now_ms: u64, journal: &mut Journal) {
        let Some(text) = self.what_is_missing(now_ms) else {
            return;
        };
        let is_told = matches!(&self.trouble, Some((old, at))
            if *old == text && now_ms < at + TROUBLE_PERIOD_MS);
        if !is_told {
            journal.say(&text);
            self.trouble = Some((text, now_ms));
        }
    }

    fn what_is_missing(&self, now_ms: u64) -> Option<String> {
        let waited = now_ms.saturating_sub(self.began_ms);
        if waited < WORRY_MS {
            return None;
        }
        let usable = |index: &usize| self.may_use(*index, now_ms);
        let cards: Vec<&Card> = (0..self.cards.len())
            .filter(usable)
            .map(|index| &self.cards[index])
            .collect();
        if self.cards.is_empty() {
            return Some(no_card(&cards_without_driver(Path::new(PCI))));
        }
        if cards.is_empty() {
            let mac = self.line.boot_card?;
            return Some(format!(
                "the card {mac}, which this machine was booted by, has no driver in this image or \
                 is gone; others are tried in a moment"
            ));
        }
        let names = |cards: &[&Card]| {
            let names: Vec<_> = cards
                .iter()
                .map(|card| format!("{} ({})", card.name, card.mac))
                .collect();
            names.join(", ")
        };
        let linked: Vec<&Card> = cards
            .iter()
            .copied()
            .filter(|card| card.linked_ms.is_some())
            .collect();
        if linked.is_empty() {
            return Some(format!(
                "no link on {}: is the cable plugged in, and the switch on?",
                names(&cards)
            ));
        }
        let is_fresh = |card: &&Card| card.linked_ms.is_some_and(|at| now_ms < at + WORRY_MS);
        if linked.iter().all(is_fresh) {
            return None;
        }
        if let Some((card, server)) = linked.iter().find_map(|card| Some((card, card.stranger?))) {
            return Some(format!(
                "{}: the DHCP server {server} offers an address but says of no Wiglaf head; asking \
                 on. If this machine is new, type on the head: wiglaf node adopt {}\n\
                 If not, see there: wiglaf boot status",
                card.name, card.mac
            ));
        }
        Some(format!(
            "nobody gives this machine an address on {}; asking on. If it is new, type on the \
             head: wiglaf node adopt {}\nIf not, see there: wiglaf boot status",
            names(&linked),
            linked
                .first()
                .map(|card| card.mac.to_string())
                .unwrap_or_default()
        ))
    }
}

fn no_card(without_driver: &[String]) -> String {
    if without_driver.is_empty() {
        return "this machine has no network card that shows: is it switched off in the firmware's \
                setup?"
            .into();
    }
    format!(
        "no network card that this image has a driver for; there is PCI {}. On the head: find its \
         driver (modinfo, or a search for that number), run wiglaf image build --module DRIVER, \
         and start this machine anew",
        without_driver.join(", PCI ")
    )
}

/// Vendors and devices of network cards that no driver has taken.
fn cards_without_driver(bus: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(bus).into_iter().flatten().flatten() {
        let read = |name: &str| read_word(&entry.path().join(name)).unwrap_or_default();
        if read("class").starts_with(PCI_NETWORK) && !entry.path().join("driver").exists() {
            let number = |name| read(name).trim_start_matches("0x").to_owned();
            found.push(format!("{}:{}", number("vendor"), number("device")));
        }
    }
    found.sort();
    found
}

/// Cards that a cable goes into, by name.
fn ethernet_cards(class: &Path) -> Vec<(String, Mac)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(class).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_hardware = path.join("device").exists() && !path.join("phy80211").exists();
        if !is_hardware || read_word(&path.join("type")).as_deref() != Some(ETHERNET) {
            continue;
        }
        let mac = read_word(&path.join("address")).and_then(|text| text.parse().ok());
        let name = entry.file_name().into_string();
        if let (Some(mac), Ok(name)) = (mac, name) {
            found.push((name, mac));
        }
    }
    found.sort();
    found
}

fn has_link(name: &str) -> bool {
    read_word(&Path::new(CARDS).join(name).join("carrier")).as_deref() == Some("1")
}

fn read_word(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Machines that are switched on together must not ask in one voice.
fn seed(mac: Mac, now_ms: u64) -> u32 {
    let [.., a, b, c, d] = mac.0;
    let time = u32::try_from(now_ms & u64::from(u32::MAX)).unwrap_or(0);
    u32::from_be_bytes([a, b, c, d]) ^ time.rotate_left(16)
}

fn open_socket(name: &str) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    bind_to_device(&socket, name)?;
    set_socket_broadcast(&socket, true)?;
    set_socket_reuseaddr(&socket, true)?;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
    rustix::net::bind(&socket, &any)?;
    Ok(socket)
}

/// The kernel tells there what becomes of network devices.
fn open_links() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINK_GROUP))?;
    Ok(socket)
}

/// What it says is looked up where it is.
fn empty(links: &OwnedFd) {
    let mut buffer = [0; MAX_PACKET];
    for _ in 0..PACKETS_PER_TURN {
        match rustix::net::recv(links, &mut buffer[..], RecvFlags::empty()) {
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn receive(card: &mut Card, now_ms: u64, outputs: &mut Vec<Output>) {
    let mut buffer = [0; MAX_PACKET];
    for _ in 0..PACKETS_PER_TURN {
        match rustix::net::recv(&card.socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => card.client.packet(now_ms, &buffer[..length], outputs),
            // Nothing more, or an error that was about an earlier packet.
            Err(_) => return,
        }
    }
}

/// How long to wait at most, so that cables and cards are noticed.
pub(super) const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// The kernel takes 64 bytes; more is cut off at a dot or a letter, which is still a name.
pub(super) fn set_host_name(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn only_cards_with_a_cable_are_used() {
        let class = tempfile::tempdir().unwrap();
        for (name, kind, address, hardware) in [
            ("eth1", "1\n", "52:54:00:00:00:02\n", Some("device/x")),
            ("eth0", "1\n", "52:54:00:00:00:01\n", Some("device/x")),
            ("lo", "772\n", "00:00:00:00:00:00\n", None),
            ("br0", "1\n", "52:54:00:00:00:03\n", None),
            ("wlan0", "1\n", "52:54:00:00:00:04\n", Some("phy80211/x")),
            ("ib0", "32\n", "80:00:02:08:fe:80\n", Some("device/x")),
        ] {
            let card = class.path().join(name);
            file(&card.join("type"), kind);
            file(&card.join("address"), address);
            if let Some(hardware) = hardware {
                file(&card.join(hardware), "");
                file(&card.join("device/x"), "");
            }
        }
        let found = ethernet_cards(class.path());
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
    }

    #[test]
    fn a_card_without_a_driver_is_named() {
        let bus = tempfile::tempdir().unwrap();
        for (slot, class, device) in [("0", "0x020000", "0x100e"), ("1", "0x030000", "0x1111")] {
            let at = bus.path().join(slot);
            file(&at.join("class"), class);
            file(&at.join("vendor"), "0x8086\n");
            file(&at.join("device"), device);
        }
        let found = cards_without_driver(bus.path());
        assert_eq!(found, ["8086:100e"]);
        assert!(no_card(&found).contains("PCI 8086:100e"));
        file(&bus.path().join("0/driver/x"), "");
        assert!(cards_without_driver(bus.path()).is_empty());
    }
}
