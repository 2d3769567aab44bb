//! Network interfaces: their IPv4 address, and setting it (netdevice(7)).

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::arch::{checked, int};

/// `struct ifreq` (net/if.h): a name, and a union of which we use two members.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl Request {
    fn new(name: &str) -> Result<Request, Errno> {
        // One byte is for the end.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(Errno::NODEV);
        }
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            value: [0; 24],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    /// As `struct sockaddr_in` (ip(7)).
    fn with_address(name: &str, address: Ipv4Addr) -> Result<Request, Errno> {
        let mut request = Request::new(name)?;
        let family = u16::try_from(libc::AF_INET).unwrap_or(2);
        request.value[..2].copy_from_slice(&family.to_ne_bytes());
        request.value[4..8].copy_from_slice(&address.octets());
        Ok(request)
    }

    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.value[4], self.value[5], self.value[6], self.value[7])
    }

    fn ask(&mut self, socket: impl AsFd, number: libc::Ioctl) -> Result<(), Errno> {
        let args = [
            int(socket.as_fd().as_raw_fd()),
            usize::try_from(number).unwrap_or(usize::MAX),
            std::ptr::from_mut(self).expose_provenance(),
        ];
        // SAFETY: the kernel reads and writes no more than a `struct ifreq`, which `Request` is
        // as long as on all 64-bit machines.
        unsafe { checked(libc::SYS_ioctl, args) }.map(|_| ())
    }
}

const _: () = assert!(size_of::<Request>() == 40);

fn socket() -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// The interface's first IPv4 address and the bits of its network's part, if it has one.
///
/// # Errors
/// `ENODEV`: there is no such interface.
pub fn address(name: &str) -> Result<Option<(Ipv4Addr, u8)>, Errno> {
    let socket = socket()?;
    let mut request = Request::new(name)?;
    match request.ask(&socket, libc::SIOCGIFADDR) {
        Ok(()) => {}
        Err(Errno::ADDRNOTAVAIL) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let address = request.address();
    let mut request = Request::new(name)?;
    request.ask(&socket, libc::SIOCGIFNETMASK)?;
    let bits = u32::from(request.address()).leading_ones();
    Ok(Some((address, u8::try_from(bits).unwrap_or(32))))
}

/// Gives the interface this address in place of its first one, and brings it up.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`; `ENODEV`.
pub fn set_address(name: &str, address: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
    let socket = socket()?;
    Request::with_address(name, address)?.ask(&socket, libc::SIOCSIFADDR)?;
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    Request::with_address(name, Ipv4Addr::from(mask))?.ask(&socket, libc::SIOCSIFNETMASK)?;
    bring_up(name)
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Its Ethernet address; `None`: it is no Ethernet.
    pub mac: Option<[u8; 6]>,
    /// It is up, and its cable leads somewhere.
    pub is_running: bool,
}

/// The names of all interfaces of the caller's network namespace (`/proc/net/dev`; `/sys` may
/// show another's).
///
/// # Errors
/// `/proc` is not there.
pub fn names() -> std::io::Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/net/dev")?;
    let name = |line: &str| Some(line.split_once(':')?.0.trim().to_owned());
    Ok(text.lines().filter_map(name).collect())
}

/// What the interface is.
///
/// # Errors
/// `ENODEV`: there is no such interface.
pub fn about(name: &str) -> Result<About, Errno> {
    let socket = socket()?;
    let mut request = Request::new(name)?;
    request.ask(&socket, libc::SIOCGIFFLAGS)?;
    let flags = u16::from_ne_bytes([request.value[0], request.value[1]]);
    let running = u16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0x41);
    let mut request = Request::new(name)?;
    request.ask(&socket, libc::SIOCGIFHWADDR)?;
    let kind = u16::from_ne_bytes([request.value[0], request.value[1]]);
    let mut mac = [0; 6];
    mac.copy_from_slice(&request.value[2..8]);
    Ok(About {
        mac: (kind == libc::ARPHRD_ETHER).then_some(mac),
        is_running: flags & running == running,
    })
}

/// Brings the interface up.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`; `ENODEV`.
pub fn bring_up(name: &str) -> Result<(), Errno> {
    let socket = socket()?;
    let mut request = Request::new(name)?;
    request.ask(&socket, libc::SIOCGIFFLAGS)?;
    let flags = u16::from_ne_bytes([request.value[0], request.value[1]]);
    let up = u16::try_from(libc::IFF_UP).unwrap_or(1);
    request.value[..2].copy_from_slice(&(flags | up).to_ne_bytes());
    request.ask(&socket, libc::SIOCSIFFLAGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address() {
        assert_eq!(address("lo"), Ok(Some((Ipv4Addr::LOCALHOST, 8))));
        assert!(names().unwrap().contains(&"lo".to_owned()));
        assert_eq!(about("lo").unwrap().mac, None);
        assert_eq!(address("none such"), Err(Errno::NODEV));
        assert_eq!(address("a name that is far too long"), Err(Errno::NODEV));
    }
}
