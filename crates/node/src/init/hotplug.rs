//! Devices that appear while the machine runs, as the kernel tells of them.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::modules::{Loaded, Modules};

/// The kernel's own events; the other group is udev's.
const KERNEL_GROUP: u32 = 1;
const MAX_EVENT: usize = 8 << 10;
const EVENTS_PER_TURN: usize = 256;

/// The socket that they come by.
pub(super) struct Hotplug {
    socket: OwnedFd,
    /// The kernel has dropped some.
    has_lost: bool,
}

impl Hotplug {
    pub(super) fn open() -> Result<Hotplug, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::DGRAM;
        let family = AddressFamily::NETLINK;
        let socket = rustix::net::socket_with(family, kind, flags, Some(KOBJECT_UEVENT))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Hotplug {
            socket,
            has_lost: false,
        })
    }

    /// Loads what devices ask for that have come since the last call, and those that come of that.
    pub(super) fn load(&mut self, modules: &mut Modules, loaded: &mut Loaded) {
        loop {
            let devices = self.devices();
            for device in &devices {
                modules.load_for(device, loaded);
            }
            if mem::take(&mut self.has_lost) {
                modules.load_for_devices(loaded);
            } else if devices.is_empty() {
                return;
            }
        }
    }

    /// The names for their drivers of devices that have come since the last call.
    fn devices(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let mut buffer = vec![0; MAX_EVENT];
        for _ in 0..EVENTS_PER_TURN {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => found.extend(added(&buffer[..length]).map(str::to_owned)),
                Err(Errno::NOBUFS) => self.has_lost = true,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        found
    }
}

impl AsFd for Hotplug {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
