//! Sockets that belong to one network interface, and those below UDP and TCP.

use crate::arch::{checked, int};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `ICMP6_FILTER` of `<linux/icmpv6.h>`.
const ICMP6_FILTER: c_int = 1;
/// `<linux/sockios.h>`.
const SIOCGIFFLAGS: usize = 0x8913;
/// Room for one hop limit beside a packet, aligned as the kernel wants it.
const CONTROL_WORDS: usize = 8;

/// Has a socket receive from, and send by, this interface only. A socket that is bound already
/// needs CAP_NET_RAW for another one.
///
/// # Errors
/// `ENODEV`: there is no such interface.
pub fn bind_to_device(socket: impl AsFd, interface: &str) -> Result<(), Errno> {
    let bytes = interface.as_bytes();
    // SAFETY: the kernel reads as many bytes as said.
    unsafe {
        set(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            bytes,
        )
    }
}

/// Whether an interface is up and its cable leads somewhere.
///
/// # Errors
/// `ENODEV`: there is no such interface.
pub fn has_link(socket: impl AsFd, interface: &str) -> Result<bool, Errno> {
    // SAFETY: zero is a value of each of its fields.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    if interface.len() > room {
        return Err(Errno::NODEV);
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = c_char::from_ne_bytes([byte]);
    }
    let args = [
        int(socket.as_fd().as_raw_fd()),
        SIOCGIFFLAGS,
        (&raw mut request).expose_provenance(),
    ];
    // SAFETY: the kernel reads the name, and writes the flags beside it.
    unsafe { checked(libc::SYS_ioctl, args) }?;
    // SAFETY: the kernel has written the flags; any bits are a value of theirs.
    let flags = unsafe { std::ptr::read_volatile(&raw const request.ifr_ifru.ifru_flags) };
    let wanted = libc::IFF_UP | libc::IFF_RUNNING;
    Ok(c_int::from(flags) & wanted == wanted)
}

/// Speaks IPv4 by Ethernet address: to machines that have no address yet, so that nobody would
/// answer for it.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    index: u32,
}

impl PacketSocket {
    /// One that only sends.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn sending(index: u32) -> Result<PacketSocket, Errno> {
        // Protocol 0: nothing is received, so that nothing piles up.
        let socket = packet_socket()?;
        Ok(PacketSocket { socket, index })
    }

    /// One that receives IPv4 packets with this UDP destination port, too.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW; `ENODEV`.
    pub fn hearing(index: u32, port: u16) -> Result<PacketSocket, Errno> {
        let socket = packet_socket()?;
        only_udp_to(socket.as_fd(), port)?;
        let address = link_address(index, [0xff; 6])?;
        let args = [
            int(socket.as_raw_fd()),
            (&raw const address).expose_provenance(),
            size_of::<libc::sockaddr_ll>(),
        ];
        // SAFETY: the kernel reads one sockaddr_ll.
        unsafe { checked(libc::SYS_bind, args) }?;
        Ok(PacketSocket { socket, index })
    }

    /// Sends a packet, which starts with its IPv4 header.
    ///
    /// # Errors
    /// The interface's.
    pub fn send(&self, to: [u8; 6], packet: &[u8]) -> Result<(), Errno> {
        let address = link_address(self.index, to)?;
        let args = [
            int(self.socket.as_raw_fd()),
            packet.as_ptr().expose_provenance(),
            packet.len(),
            int(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT),
            (&raw const address).expose_provenance(),
            size_of::<libc::sockaddr_ll>(),
        ];
        // SAFETY: the kernel reads the packet's bytes and one sockaddr_ll.
        unsafe { checked(libc::SYS_sendto, args) }.map(|_| ())
    }

    /// The next packet that came, from its IPv4 header on.
    ///
    /// # Errors
    /// `EAGAIN`: there is none.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let (length, _) = rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT)?;
        Ok(&buffer[..length])
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn packet_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

fn link_address(index: u32, to: [u8; 6]) -> Result<libc::sockaddr_ll, Errno> {
    let mut address = libc::sockaddr_ll {
        sll_family: short(libc::AF_PACKET)?,
        sll_protocol: short(libc::ETH_P_IP)?.to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_| Errno::INVAL)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    address.sll_addr[..6].copy_from_slice(&to);
    Ok(address)
}

fn short(number: impl TryInto<u16>) -> Result<u16, Errno> {
    number.try_into().map_err(|_| Errno::INVAL)
}

/// A classic BPF program over the IPv4 header, so that a busy wire does not fill the socket.
fn only_udp_to(socket: BorrowedFd<'_>, port: u16) -> Result<(), Errno> {
    let op = |code: u32, jt, jf, k| {
        let code = short(code)?;
        Ok::<_, Errno>(libc::sock_filter { code, jt, jf, k })
    };
    let byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let half = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    let header = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let program = [
        op(byte, 0, 0, 9)?,
        op(equal, 0, 4, libc::IPPROTO_UDP.cast_unsigned())?,
        op(header, 0, 0, 0)?,
        op(half, 0, 0, 2)?,
        op(equal, 0, 1, port.into())?,
        op(libc::BPF_RET, 0, 0, u32::from(u16::MAX))?,
        op(libc::BPF_RET, 0, 0, 0)?,
    ];
    let block = libc::sock_fprog {
        len: short(program.len())?,
        filter: program.as_ptr().cast_mut(),
    };
    let args = [
        int(socket.as_raw_fd()),
        int(libc::SOL_SOCKET),
        int(libc::SO_ATTACH_FILTER),
        (&raw const block).expose_provenance(),
        size_of::<libc::sock_fprog>(),
    ];
    let _ = program.as_ptr().expose_provenance();
    // SAFETY: the kernel reads the block and the program that it points to.
    unsafe { checked(libc::SYS_setsockopt, args) }.map(|_| ())
}

/// Has a raw ICMPv6 socket hear one type only, and tell the hop limit of each message.
///
/// # Errors
/// It is another kind of socket.
pub fn hear_only_icmp6(socket: impl AsFd, kind: u8) -> Result<(), Errno> {
    // A bit that is set is a type that is blocked.
    let mut filter = [u32::MAX; 8];
    filter[usize::from(kind >> 5)] &= !(1 << (kind & 31));
    let bytes: Vec<u8> = filter.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let socket = socket.as_fd();
    // SAFETY: the kernel reads as many bytes as said.
    unsafe { set(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &bytes) }?;
    let on = c_int::to_ne_bytes(1);
    // SAFETY: the kernel reads one int.
    unsafe { set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &on) }
}

/// An IPv6 message and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes of the buffer that are filled.
    pub length: usize,
    /// Who sent it.
    pub from: Ipv6Addr,
    /// How many routers it might have passed still; 255: it has passed none.
    pub hop_limit: Option<u8>,
}

/// The next message of an IPv6 socket.
///
/// # Errors
/// `EAGAIN`: there is none.
pub fn receive_with_hop_limit(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut address = MaybeUninit::<libc::sockaddr_in6>::zeroed();
    let mut control = [0_u64; CONTROL_WORDS];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut message = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: zero is a value of each of its fields.
    let header = unsafe { message.assume_init_mut() };
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = u32::try_from(size_of::<libc::sockaddr_in6>()).unwrap_or(0);
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let args = [
        int(socket.as_fd().as_raw_fd()),
        std::ptr::from_mut(header).expose_provenance(),
        int(libc::MSG_DONTWAIT),
    ];
    // SAFETY: the header points to an address, a buffer and control space that outlive the call.
    let length = unsafe { checked(libc::SYS_recvmsg, args) }?;
    let mut hop_limit = None;
    // SAFETY: the kernel has filled the control space and said how much of it.
    let mut one = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !one.is_null() {
        // SAFETY: libc's walk returns only headers that lie within the control space.
        let found = unsafe { one.read_unaligned() };
        if found.cmsg_level == libc::IPPROTO_IPV6 && found.cmsg_type == libc::IPV6_HOPLIMIT {
            // SAFETY: its data is one int.
            let value = unsafe { libc::CMSG_DATA(one).cast::<c_int>().read_unaligned() };
            hop_limit = u8::try_from(value).ok();
        }
        // SAFETY: as above.
        one = unsafe { libc::CMSG_NXTHDR(header, one) };
    }
    // SAFETY: zeroed, and perhaps written by the kernel.
    let address = unsafe { address.assume_init() };
    Ok(Received {
        length,
        from: Ipv6Addr::from(address.sin6_addr.s6_addr),
        hop_limit,
    })
}

/// # Safety
/// The option's value must be what the bytes are.
unsafe fn set(
    socket: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    bytes: &[u8],
) -> Result<(), Errno> {
    let args = [
        int(socket.as_raw_fd()),
        int(level),
        int(option),
        bytes.as_ptr().expose_provenance(),
        bytes.len(),
    ];
    // SAFETY: the kernel reads as many bytes as said; the rest is the caller's promise.
    unsafe { checked(libc::SYS_setsockopt, args) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_socket_hears_only_its_device() {
        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(bind_to_device(&bound, "wiglaf-none"), Err(Errno::NODEV));
        bind_to_device(&bound, "lo").unwrap();
        bound.send_to(b"x", bound.local_addr().unwrap()).unwrap();
        let mut byte = [0];
        assert_eq!(bound.recv(&mut byte).unwrap(), 1);
    }

    #[test]
    fn an_interface_has_a_link_or_is_not_there() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(has_link(&socket, "lo"), Ok(true));
        assert_eq!(has_link(&socket, "wiglaf-none"), Err(Errno::NODEV));
        assert_eq!(has_link(&socket, &"x".repeat(16)), Err(Errno::NODEV));
    }

    #[test]
    fn only_the_port_that_was_asked_for_is_heard() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIPPED: packet sockets need root");
        }
        let heard = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let index = rustix::net::netdevice::name_to_index(&heard, "lo").unwrap();
        let port = heard.local_addr().unwrap().port();
        let packets = PacketSocket::hearing(index, port).unwrap();
        other.send_to(b"no", other.local_addr().unwrap()).unwrap();
        other.send_to(b"yes", heard.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 100];
        let packet = packets.receive(&mut buffer).unwrap();
        assert_eq!(packet[0], 0x45);
        assert_eq!(&packet[28..], b"yes");
        // The loopback shows it twice: as sent and as received.
        while let Ok(packet) = packets.receive(&mut buffer) {
            assert_eq!(&packet[28..], b"yes");
        }
    }

    #[test]
    fn hop_limits_are_told() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIPPED: raw sockets need root");
        }
        let socket = rustix::net::socket(
            AddressFamily::INET6,
            SocketType::RAW,
            Some(rustix::net::ipproto::ICMPV6),
        );
        let Ok(socket) = socket else {
            return println!("SKIPPED: no IPv6 here");
        };
        hear_only_icmp6(&socket, 133).unwrap();
        rustix::net::sockopt::set_ipv6_unicast_hops(&socket, Some(255)).unwrap();
        let to = std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0);
        let sent = rustix::net::sendto(
            &socket,
            &[133, 0, 0, 0, 0, 0, 0, 0],
            rustix::net::SendFlags::empty(),
            &to,
        );
        if sent.is_err() {
            return println!("SKIPPED: no IPv6 on the loopback");
        }
        let mut buffer = [0; 64];
        let received = receive_with_hop_limit(&socket, &mut buffer).unwrap();
        assert_eq!((received.length, received.hop_limit), (8, Some(255)));
        assert_eq!(received.from, Ipv6Addr::LOCALHOST);
    }
}
