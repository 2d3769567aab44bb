//! Bridges, veth pairs and addresses, asked of the kernel by rtnetlink (rtnetlink(7)).

use super::subnet::Network;
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

/// Holds the longest piece of an answer: the kernel makes pieces of at most 32 KiB.
const RECEIVE_BYTES: usize = 64 << 10;
/// A list that changes while it is read is read again, this often.
const LIST_TRIES: u32 = 8;
/// The kernel's mark on such a list (linux/netlink.h).
const NLM_F_DUMP_INTR: u16 = 0x10;
/// A netlink message's header (RFC 3549, section 2.3.2).
const HEADER_BYTES: usize = 16;

/// Why the kernel's network was not changed or read.
#[derive(thiserror::Error, Debug)]
pub enum NetworkError {
    /// The kernel refused.
    #[error("can't {action}: {errno}{}", reason(*.errno))]
    Refused {
        /// What was asked.
        action: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The answer makes no sense.
    #[error("can't understand the kernel's answer to \"{action}\": {source}")]
    Answer {
        /// What was asked.
        action: String,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// The errors whose names say too little here.
fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::OPNOTSUPP => {
            " (the running kernel lacks this kind of device: CONFIG_BRIDGE, CONFIG_VETH)"
        }
        Errno::PERM => " (it takes CAP_NET_ADMIN: be root outside a container, or run rootless)",
        _ => "",
    }
}

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<InfoKind>,
}

/// A conversation with the network namespace that it was opened in.
pub(crate) struct RouteSocket {
    socket: OwnedFd,
    sequence: u32,
    /// The last list changed while it was read.
    interrupted: bool,
}

impl RouteSocket {
    pub(crate) fn open() -> Result<RouteSocket, NetworkError> {
        let refused = |errno| NetworkError::Refused {
            action: "open a netlink socket".into(),
            errno,
        };
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(refused)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(refused)?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0)).map_err(refused)?;
        Ok(RouteSocket {
            socket,
            sequence: 0,
            interrupted: false,
        })
    }

    /// Makes a bridge, up and without an address, and returns its index. EEXIST if there is
    /// a device of that name.
    pub(crate) fn add_bridge(&mut self, name: &str) -> Result<u32, NetworkError> {
        let mut link = up(LinkMessage::default());
        link.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        let new = RouteNetlinkMessage::NewLink(link);
        self.change(
            new,
            NLM_F_CREATE | NLM_F_EXCL,
            format!("make the bridge {name}"),
        )?;
        self.index_of(name)
    }

    /// Makes a pair of devices: `name` here, a port of `bridge`, and `peer` in the network
    /// namespace of the process `peer_pid`.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        bridge: u32,
        peer: &str,
        peer_pid: i32,
    ) -> Result<(), NetworkError> {
        // The kernel takes no end up that does not have its other end yet (ENOTCONN).
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(peer.into()),
            LinkAttribute::NetNsPid(peer_pid.cast_unsigned()),
        ];
        let mut near = up(LinkMessage::default());
        near.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]),
        ];
        let new = RouteNetlinkMessage::NewLink(near);
        let action = format!("make the veth pair {name} of process {peer_pid}");
        self.change(new, NLM_F_CREATE | NLM_F_EXCL, action)
    }

    /// Takes a device up.
    pub(crate) fn set_up(&mut self, name: &str) -> Result<(), NetworkError> {
        let mut link = up(LinkMessage::default());
        link.header.index = self.index_of(name)?;
        let set = RouteNetlinkMessage::SetLink(link);
        self.change(set, 0, format!("take the device {name} up"))
    }

    /// Gives a device an address.
    pub(crate) fn add_address(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetworkError> {
        let host_bits = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        let mut message = own_address(self.index_of(name)?, address, prefix_len);
        message.attributes.extend([
            AddressAttribute::Address(address.into()),
            AddressAttribute::Broadcast(Ipv4Addr::from_bits(address.to_bits() | host_bits)),
        ]);
        let new = RouteNetlinkMessage::NewAddress(message);
        let action = format!("give the device {name} the address {address}/{prefix_len}");
        self.change(new, NLM_F_CREATE | NLM_F_EXCL, action)
    }

    /// Takes an address from a device.
    pub(crate) fn remove_address(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetworkError> {
        let message = own_address(self.index_of(name)?, address, prefix_len);
        let delete = RouteNetlinkMessage::DelAddress(message);
        let action = format!("take the address {address}/{prefix_len} from the device {name}");
        self.change(delete, 0, action)
    }

    /// Sends what is for other networks to this router, on the wire behind a device.
    pub(crate) fn add_default_route(
        &mut self,
        name: &str,
        router: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let mut message = default_route(self.index_of(name)?, router);
        message.header.protocol = RouteProtocol::Dhcp;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        let new = RouteNetlinkMessage::NewRoute(message);
        let action = format!("send what is for others to the router {router}");
        self.change(new, NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Takes that back.
    pub(crate) fn remove_default_route(
        &mut self,
        name: &str,
        router: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let message = default_route(self.index_of(name)?, router);
        let delete = RouteNetlinkMessage::DelRoute(message);
        let action = format!("send nothing to the router {router} any more");
        self.change(delete, 0, action)
    }

    /// Removes a device; fine if there is none any more.
    pub(crate) fn delete(&mut self, link: &Link) -> Result<(), NetworkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let delete = RouteNetlinkMessage::DelLink(message);
        match self.change(delete, 0, format!("remove the device {}", link.name)) {
            Err(NetworkError::Refused {
                errno: Errno::NODEV,
                ..
            }) => Ok(()),
            result => result,
        }
    }

    /// All devices.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetworkError> {
        let get = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let found = self.list(get, "list the network devices")?;
        Ok(found.into_iter().filter_map(link).collect())
    }

    /// Every IPv4 network that this machine has an address in or a route to, each with the
    /// device's index.
    pub(crate) fn networks(&mut self) -> Result<Vec<(u32, Network)>, NetworkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let get = RouteNetlinkMessage::GetAddress(message);
        let mut found = self.list(get, "list the addresses")?;
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let get = RouteNetlinkMessage::GetRoute(message);
        found.extend(self.list(get, "list the routes")?);
        Ok(found.into_iter().filter_map(network).collect())
    }

    fn index_of(&self, name: &str) -> Result<u32, NetworkError> {
        rustix::net::netdevice::name_to_index(&self.socket, name).map_err(|errno| {
            NetworkError::Refused {
                action: format!("find the device {name}"),
                errno,
            }
        })
    }

    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: String,
    ) -> Result<(), NetworkError> {
        self.ask(message, NLM_F_ACK | flags, action).map(|_| ())
    }

    fn list(
        &mut self,
        message: RouteNetlinkMessage,
        action: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        for _ in 1..LIST_TRIES {
            let found = self.ask(message.clone(), NLM_F_DUMP, action.into())?;
            // Something changed meanwhile, and entries may be missing (linux/netlink.h).
            if !self.interrupted {
                return Ok(found);
            }
        }
        self.ask(message, NLM_F_DUMP, action.into())
    }

    /// Sends one request and collects what comes until its acknowledgement or its end.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        match self.exchange(&bytes) {
            Ok(found) => Ok(found),
            Err(Failure::Errno(errno)) => Err(NetworkError::Refused { action, errno }),
            Err(Failure::Decode(source)) => Err(NetworkError::Answer { action, source }),
        }
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        rustix::net::send(&self.socket, request, SendFlags::empty())?;
        let mut found = Vec::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        self.interrupted = false;
        loop {
            let (received, _) =
                rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..received];
            while rest.len() >= HEADER_BYTES {
                let frame = NetlinkBuffer::new_checked(rest)?;
                let length = usize::try_from(frame.length()).unwrap_or(usize::MAX);
                let (flags, sequence) = (frame.flags(), frame.sequence_number());
                let message = &rest[..length];
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if sequence != self.sequence {
                    continue;
                }
                self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload)
                {
                    Ok(NetlinkPayload::Done(_)) => return Ok(found),
                    Ok(NetlinkPayload::Error(error)) => match error.code {
                        None => return Ok(found),
                        Some(code) => return Err(Errno::from_raw_os_error(-code.get()).into()),
                    },
                    Ok(NetlinkPayload::InnerMessage(message)) => found.push(message),
                    // A device or route of a kind that the decoder is too old for is none
                    // of ours.
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }
}

enum Failure {
    Errno(Errno),
    Decode(DecodeError),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Errno(errno)
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Failure {
        Failure::Decode(error)
    }
}

fn up(mut link: LinkMessage) -> LinkMessage {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn own_address(device: u32, address: Ipv4Addr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.index = device;
    message.attributes = vec![AddressAttribute::Local(address.into())];
    message
}

fn default_route(device: u32, router: Ipv4Addr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::Inet(router)),
        RouteAttribute::Oif(device),
    ];
    message
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

fn network(message: RouteNetlinkMessage) -> Option<(u32, Network)> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => {
            let address = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                })?;
            let network = Network::new(address, message.header.prefix_len);
            Some((message.header.index, network))
        }
        RouteNetlinkMessage::NewRoute(message) => {
            let destination = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
                    _ => None,
                })?;
            let device = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
            let prefix_len = message.header.destination_prefix_length;
            Some((device.unwrap_or(0), Network::new(destination, prefix_len)))
        }
        _ => None,
    }
}
