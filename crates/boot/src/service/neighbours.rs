//! Who has which address on a wire, as the kernel has seen it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;

use wiglaf_wire::boot::Mac;

/// Of the table; the kernel itself forgets above some thousand entries.
const MAX_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 32 << 10;
/// `ATF_COM` of `<linux/if_arp.h>`: the Ethernet address is there.
const COMPLETE: u32 = 2;

/// The kernel's ARP table.
#[derive(Debug)]
pub(super) struct Neighbours(File);

impl Neighbours {
    /// Opens it.
    pub(super) fn open() -> std::io::Result<Neighbours> {
        File::open("/proc/net/arp").map(Neighbours)
    }

    /// The machine behind an address there.
    pub(super) fn mac_of(&self, interface: &str, address: Ipv4Addr) -> Option<Mac> {
        let mut text = Vec::new();
        let mut part = vec![0; READ_BYTES];
        while text.len() < MAX_BYTES {
            match self.0.read_at(&mut part, text.len() as u64) {
                Ok(0) | Err(_) => break,
                Ok(count) => text.extend_from_slice(&part[..count]),
            }
        }
        find(&String::from_utf8_lossy(&text), interface, address)
    }
}

fn find(table: &str, interface: &str, address: Ipv4Addr) -> Option<Mac> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_its = words.next()?.parse() == Ok(address);
        let flags = words.nth(1)?.strip_prefix("0x")?;
        let mac = words.next()?;
        let is_here = words.nth(1)? == interface;
        let is_complete = u32::from_str_radix(flags, 16).ok()? & COMPLETE != 0;
        (is_its && is_here && is_complete)
            .then(|| mac.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
10.9.0.17        0x1         0x2         52:54:00:12:34:56     *        eth1
10.9.0.18        0x1         0x0         00:00:00:00:00:00     *        eth1
10.9.0.17        0x1         0x2         52:54:00:00:00:01     *        eth2
10.9.0.19        0x1         0x6         52:54:00:00:00:02     *        eth1
";

    #[test]
    fn an_entry_counts_if_it_is_complete_and_of_this_wire() {
        let at = |interface, last| find(TABLE, interface, Ipv4Addr::new(10, 9, 0, last));
        assert_eq!(at("eth1", 17), Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        assert_eq!(at("eth2", 17), Some(Mac([0x52, 0x54, 0, 0, 0, 1])));
        assert_eq!(at("eth1", 18), None);
        assert_eq!(at("eth1", 19), Some(Mac([0x52, 0x54, 0, 0, 0, 2])));
        assert_eq!(at("eth3", 17), None);
        assert!(
            Neighbours::open()
                .unwrap()
                .mac_of("none", Ipv4Addr::LOCALHOST)
                .is_none()
        );
    }
}
