//! Devices that appear while the machine runs, as the kernel tells of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// The kernel's own events; the other group is udev's.
const KERNEL_GROUP: u32 = 1;
const MAX_EVENT: usize = 8 << 10;
const EVENTS_PER_TURN: usize = 256;

/// The socket that they come by.
pub(super) struct Hotplug(OwnedFd);

impl Hotplug {
    pub(super) fn open() -> Result<Hotplug, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::DGRAM;
        let family = AddressFamily::NETLINK;
        let socket = rustix::net::socket_with(family, kind, flags, Some(KOBJECT_UEVENT))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Hotplug(socket))
    }

    /// The names for their drivers of devices that have come since the last call.
    pub(super) fn devices(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let mut buffer = vec![0; MAX_EVENT];
        for _ in 0..EVENTS_PER_TURN {
            match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => found.extend(added(&buffer[..length]).map(str::to_owned)),
                // The kernel has dropped some: they get no driver until they are plugged anew.
                Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        found
    }
}

impl AsFd for Hotplug {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `add@PATH`, then `KEY=VALUE`, each with a zero behind.
fn added(event: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(event).ok()?;
    let mut parts = text.split('\0');
    if !parts.next()?.starts_with("add@") {
        return None;
    }
    parts.find_map(|part| part.strip_prefix("MODALIAS="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_devices_name_their_drivers() {
        let event = |kind: &str| format!("{kind}@/devices/x\0ACTION={kind}\0MODALIAS=usb:v1p2\0");
        assert_eq!(added(event("add").as_bytes()), Some("usb:v1p2"));
        assert_eq!(added(event("remove").as_bytes()), None);
        assert_eq!(added(b"add@/devices/x\0ACTION=add\0"), None);
        assert_eq!(added(b"libudev\0\xfe\xed"), None);
    }
}
