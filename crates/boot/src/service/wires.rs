//! The sockets of one interface. Each hears and speaks there only (S2).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, sockopt};
use wiglaf_linux::raw_socket::{self, PacketSocket};
use wiglaf_wire::boot::{AddressService, BootInterface};

use super::frame;
use crate::dhcp::{self, Destination};
use crate::router;

/// TFTP's port.
const TFTP_PORT: u16 = 69;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Another DHCP server has so long to answer before we do. Firmware asks again after 4 s and more.
pub(super) const PROBE_MS: u64 = 1_000;
/// Answers are listened for so long: dnsmasq looks for 3 s whether an address is free.
pub(super) const LISTEN_MS: u64 = 6_000;
/// Whether another server is still there is asked this often.
pub(super) const SILENT_MS: u64 = 60_000;
/// Everybody's Ethernet address.
const ALL: [u8; 6] = [0xff; 6];

/// How far an interface is.
#[derive(Debug)]
pub(super) enum State {
    /// It is not known yet whether another DHCP server is there.
    New,
    /// Asked; nobody is answered.
    Probing(Probe),
    /// Machines are answered. Somebody else may still answer the question.
    Answering(Option<Probe>),
    /// Another DHCP server is there, and nobody has decided who is to answer. It is asked for
    /// again when that time has come.
    Silent { server: Ipv4Addr, again_ms: u64 },
}

/// A question for another DHCP server.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) socket: PacketSocket,
    pub(super) transaction: u32,
    pub(super) packet: Vec<u8>,
    pub(super) since_ms: u64,
    /// Who has not answered by then is not there.
    pub(super) wait_ms: u64,
    /// The server that was there when this was last asked.
    pub(super) known: Option<Ipv4Addr>,
    pub(super) is_repeated: bool,
}

/// A socket of an interface, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    Dhcp,
    Proxy,
    Tftp,
    Http,
    Router,
}

/// One that is open now and is to be watched.
pub(super) struct Opened(pub(super) Use);

/// An interface.
#[derive(Debug)]
pub(super) struct Wire {
    /// The same as long as the sockets are.
    pub(super) number: u64,
    pub(super) settings: BootInterface,
    pub(super) state: State,
    /// The kernel's index, 0 while there is none.
    pub(super) index: u32,
    /// Whether its cable led somewhere when that was last looked at.
    had_link: bool,
    packets: Option<PacketSocket>,
    pub(super) dhcp: Option<UdpSocket>,
    pub(super) proxy: Option<UdpSocket>,
    pub(super) tftp: Option<UdpSocket>,
    pub(super) http: Option<TcpListener>,
    pub(super) router: Option<OwnedFd>,
    /// What was told; not again until it was over.
    problems: BTreeSet<String>,
}

impl Wire {
    pub(super) fn new(number: u64, settings: BootInterface) -> Wire {
        Wire {
            number,
            settings,
            state: State::New,
            index: 0,
            had_link: false,
            packets: None,
            dhcp: None,
            proxy: None,
            tftp: None,
            http: None,
            router: None,
            problems: BTreeSet::new(),
        }
    }

    /// Whether its sockets serve for these settings, too.
    pub(super) fn fits(&self, settings: &BootInterface) -> bool {
        self.settings.name == settings.name && self.settings.address == settings.address
    }

    /// Whether nobody has to be asked before machines are answered.
    pub(super) fn is_proxy(&self) -> bool {
        self.settings.service == AddressService::Proxy
    }

    pub(super) fn is_answering(&self) -> bool {
        matches!(self.state, State::Answering(_))
    }

    /// Opens what is not open, and returns what is new, and problems that are. `known`: the index
    /// that the interface has now.
    pub(super) fn open(&mut self, http_port: u16) -> (Vec<Opened>, Vec<String>) {
        let name = self.settings.name.clone();
        let mut problems = Vec::new();
        let index = interface_index(&name);
        if index != Some(self.index) {
            // It is another one of the same name: sockets stay with the old one.
            self.close();
            self.index = index.unwrap_or(0);
        }
        if index.is_none() {
            problems.push(format!(
                "there is no interface {name}; `ip link` lists them"
            ));
            return (Vec::new(), self.fresh(problems));
        }
        let mut opened = Vec::new();
        if self.packets.is_none() {
            match PacketSocket::sending(self.index) {
                Ok(socket) => self.packets = Some(socket),
                Err(errno) => problems.push(format!("can't send packets on {name}: {errno}")),
            }
        }
        let any = Ipv4Addr::UNSPECIFIED;
        let own = self.settings.address;
        let prefix = self.settings.prefix;
        let explain = |protocol, port, errno| explain(&name, protocol, own, prefix, port, errno);
        for (slot, kind, address, port) in [
            (&mut self.dhcp, Use::Dhcp, any, dhcp::SERVER_PORT),
            (&mut self.proxy, Use::Proxy, any, dhcp::PROXY_PORT),
            (&mut self.tftp, Use::Tftp, own, TFTP_PORT),
        ] {
            if slot.is_some() {
                continue;
            }
            match udp_socket(&name, SocketAddrV4::new(address, port)) {
                Ok(socket) => {
                    *slot = Some(socket);
                    opened.push(Opened(kind));
                }
                Err(errno) => problems.push(explain("UDP", port, errno)),
            }
        }
        if self.http.is_none() {
            match tcp_listener(&name, SocketAddrV4::new(own, http_port)) {
                Ok(listener) => {
                    self.http = Some(listener);
                    opened.push(Opened(Use::Http));
                }
                Err(errno) => problems.push(explain("TCP", http_port, errno)),
            }
        }
        // Without IPv6 nobody asks for an IPv6 router; machines then only wait a little.
        if self.router.is_none()
            && let Ok(socket) = router_socket(&name, self.index)
        {
            self.router = Some(socket);
            opened.push(Opened(Use::Router));
        }
        (opened, self.fresh(problems))
    }

    /// Another HTTP port from now on.
    pub(super) fn close_http(&mut self) {
        self.http = None;
    }

    fn close(&mut self) {
        let settings = self.settings.clone();
        let problems = std::mem::take(&mut self.problems);
        *self = Wire {
            problems,
            ..Wire::new(self.number, settings)
        };
    }

    /// Those that were not told.
    fn fresh(&mut self, problems: Vec<String>) -> Vec<String> {
        let problems: BTreeSet<String> = problems.into_iter().collect();
        let fresh = problems.difference(&self.problems).cloned().collect();
        self.problems = problems;
        fresh
    }

    /// Forgets what was told: another head is to hear it.
    pub(super) fn forget_problems(&mut self) {
        self.problems.clear();
    }

    /// Everything that machines need.
    pub(super) fn is_open(&self) -> bool {
        self.packets.is_some() && self.dhcp.is_some() && self.proxy.is_some()
    }

    /// Whether its cable was put in since this was last asked.
    pub(super) fn was_plugged_in(&mut self) -> bool {
        let Some(socket) = &self.dhcp else {
            return false;
        };
        let has_link = raw_socket::has_link(socket, &self.settings.name) == Ok(true);
        let had_link = std::mem::replace(&mut self.had_link, has_link);
        has_link && !had_link
    }

    /// Whether its cable led somewhere when that was last asked.
    pub(super) fn has_link(&self) -> bool {
        self.had_link
    }

    /// The server for whose sake nobody is answered.
    pub(super) fn silent_for(&self) -> Option<Ipv4Addr> {
        match &self.state {
            State::Silent { server, .. } => Some(*server),
            State::Probing(probe) => probe.known,
            State::New | State::Answering(_) => None,
        }
    }

    /// Starts to ask for another DHCP server.
    pub(super) fn probe(
        &mut self,
        now_ms: u64,
        transaction: u32,
        packet: Vec<u8>,
    ) -> Result<(), Errno> {
        let socket = PacketSocket::hearing(self.index, dhcp::CLIENT_PORT)?;
        let known = self.silent_for();
        let probe = Probe {
            // A server that is slow to answer must not be taken for one that is gone.
            wait_ms: if known.is_some() { LISTEN_MS } else { PROBE_MS },
            known,
            socket,
            transaction,
            packet,
            since_ms: now_ms,
            is_repeated: false,
        };
        probe.send()?;
        self.state = match self.state {
            State::Answering(_) => State::Answering(Some(probe)),
            _ => State::Probing(probe),
        };
        Ok(())
    }

    /// Sends a DHCP packet.
    pub(super) fn send(
        &self,
        port: dhcp::Port,
        to: Destination,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let (socket, own_port) = match port {
            dhcp::Port::Server => (&self.dhcp, dhcp::SERVER_PORT),
            dhcp::Port::Proxy => (&self.proxy, dhcp::PROXY_PORT),
        };
        let (mac, address) = match to {
            Destination::Address(address) => {
                let socket = socket.as_ref().ok_or(Errno::NOTCONN)?;
                let sent = socket.send_to(bytes, address);
                return sent.map(|_| ()).map_err(|error| errno_of(&error));
            }
            Destination::Hardware { mac, address } => (mac.0, address),
            // Made by hand, too: the kernel would choose the source address.
            Destination::Broadcast => (ALL, Ipv4Addr::BROADCAST),
        };
        let from = SocketAddrV4::new(self.settings.address, own_port);
        let to = SocketAddrV4::new(address, dhcp::CLIENT_PORT);
        let packet = frame::udp(from, to, bytes).ok_or(Errno::MSGSIZE)?;
        let packets = self.packets.as_ref().ok_or(Errno::NOTCONN)?;
        packets.send(mac, &packet)
    }

    /// Answers who asks for an IPv6 router.
    pub(super) fn answer_solicitations(&self, most: usize) {
        let Some(socket) = &self.router else {
            return;
        };
        let mut buffer = [0; 512];
        for _ in 0..most {
            let Ok(message) = raw_socket::receive_with_hop_limit(socket, &mut buffer) else {
                return;
            };
            let bytes = &buffer[..message.length];
            let Some(asker) = router::asker(bytes, message.from, message.hop_limit) else {
                continue;
            };
            let to = SocketAddrV6::new(asker, 0, 0, self.index);
            let flags = rustix::net::SendFlags::DONTWAIT;
            // No address of the link yet, or a full queue: it asks again.
            let _ = rustix::net::sendto(socket, &router::advertisement(), flags, &to);
        }
    }
}

impl Probe {
    /// Asks once more, should the question have been lost.
    pub(super) fn repeat(&mut self) {
        if !self.is_repeated {
            self.is_repeated = true;
            let _ = self.send();
        }
    }

    pub(super) fn send(&self) -> Result<(), Errno> {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, dhcp::CLIENT_PORT);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, dhcp::SERVER_PORT);
        let packet = frame::udp(from, to, &self.packet).ok_or(Errno::MSGSIZE)?;
        self.socket.send(ALL, &packet)
    }

    /// The server that has answered, if one has. `judge` looks at what came.
    pub(super) fn heard(
        &self,
        most: usize,
        judge: impl Fn(u32, &[u8]) -> Option<Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        let mut buffer = [0; 2048];
        for _ in 0..most {
            let packet = self.socket.receive(&mut buffer).ok()?;
            let server = frame::payload(packet)
                .and_then(|(from, payload)| Some((from, judge(self.transaction, payload)?)));
            if let Some((from, server)) = server {
                return Some(if server.is_unspecified() {
                    from
                } else {
                    server
                });
            }
        }
        None
    }
}

fn interface_index(name: &str) -> Option<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::name_to_index(&socket, name).ok()
}

fn udp_socket(interface: &str, address: SocketAddrV4) -> Result<UdpSocket, Errno> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    raw_socket::bind_to_device(&socket, interface)?;
    sockopt::set_socket_broadcast(&socket, true)?;
    // As much as anybody may have: a flood of strangers' packets should not cost adopted machines
    // theirs.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, 4 << 20);
    rustix::net::bind(&socket, &address)?;
    Ok(socket.into())
}

/// A socket for one client of TFTP, whose port stands for the transfer.
pub(super) fn transfer_socket(
    interface: &str,
    own: Ipv4Addr,
    peer: SocketAddrV4,
) -> Result<UdpSocket, Errno> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    raw_socket::bind_to_device(&socket, interface)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(own, 0))?;
    rustix::net::connect(&socket, &peer)?;
    Ok(socket.into())
}

fn tcp_listener(interface: &str, address: SocketAddrV4) -> Result<TcpListener, Errno> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    raw_socket::bind_to_device(&socket, interface)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn router_socket(interface: &str, index: u32) -> Result<OwnedFd, Errno> {
    let protocol = Some(rustix::net::ipproto::ICMPV6);
    let socket = socket(AddressFamily::INET6, SocketType::RAW, protocol)?;
    raw_socket::bind_to_device(&socket, interface)?;
    raw_socket::hear_only_icmp6(&socket, router::SOLICITATION)?;
    // Nobody believes one that could have passed a router.
    sockopt::set_ipv6_unicast_hops(&socket, Some(u8::MAX))?;
    sockopt::set_ipv6_multicast_hops(&socket, u8::MAX.into())?;
    let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    sockopt::set_ipv6_add_membership(&socket, &all_routers, index)?;
    Ok(socket)
}

fn socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<Protocol>,
) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, kind, flags, protocol)
}

/// What is wrong with a port, and what to do.
fn explain(
    interface: &str,
    protocol: &str,
    address: Ipv4Addr,
    prefix: u8,
    port: u16,
    errno: Errno,
) -> String {
    let list = if protocol == "UDP" {
        "ss -ulnp"
    } else {
        "ss -tlnp"
    };
    match errno {
        Errno::ADDRINUSE => format!(
            "{protocol} port {port} on {interface} is taken by another program; as root, \
             `{list} 'sport = :{port}'` says which. If it is dnsmasq or another DHCP server, stop \
             it, or tell it to leave {interface} alone (dnsmasq: except-interface={interface} and \
             bind-interfaces)"
        ),
        Errno::ADDRNOTAVAIL => format!(
            "{interface} does not have the address {address}; add it: `ip address add \
             {address}/{prefix} dev {interface}`"
        ),
        errno => format!("can't listen on {protocol} port {port} of {interface}: {errno}"),
    }
}

pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl AsFd for Probe {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
