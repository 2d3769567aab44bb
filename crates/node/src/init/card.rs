//! Which network card a machine was started by, as its iPXE would tell the boot service, so that
//! the next initramfs has what that card needs.

use std::fs;
use std::path::Path;

const CARDS: &str = "/sys/class/net";
/// A virtual card stands below the one that its bus shows.
const MAX_ABOVE: usize = 4;

/// The vendor's and the device's number of an interface's card; nothing if it is not PCI's.
pub(super) fn of(interface: &str) -> Option<String> {
    below(Path::new(CARDS), interface)
}

fn below(cards: &Path, interface: &str) -> Option<String> {
    let device = fs::canonicalize(cards.join(interface).join("device")).ok()?;
    let is_pci = |path: &&Path| {
        let bus = fs::read_link(path.join("subsystem"));
        bus.is_ok_and(|bus| bus.ends_with("pci"))
    };
    let card = device.ancestors().take(MAX_ABOVE).find(is_pci)?;
    let number = |name: &str| {
        let text = fs::read_to_string(card.join(name)).ok()?;
        let digits = text.trim_end().strip_prefix("0x")?.to_owned();
        let is_number = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_number.then_some(digits)
    };
    Some(format!("{}-{}", number("vendor")?, number("device")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_card_is_its_own_device_or_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let device = |path: &str, bus: &str, numbers: [&str; 2]| {
            let path = root.join("devices").join(path);
            fs::create_dir_all(&path).unwrap();
            symlink(format!("/sys/bus/{bus}"), path.join("subsystem")).unwrap();
            fs::write(path.join("vendor"), format!("{}\n", numbers[0])).unwrap();
            fs::write(path.join("device"), format!("{}\n", numbers[1])).unwrap();
        };
        device("pci/a", "pci", ["0x8086", "0x100e"]);
        device("pci/b", "pci", ["0x1af4", "0x1000"]);
        device("pci/b/virtio0", "virtio", ["0x1af4", "0x0001"]);
        device("usb/c", "usb", ["0x0bda", "0x8153"]);
        device("pci/d", "pci", ["0x8086", "0x"]);
        for (name, path) in [
            ("eth0", "pci/a"),
            ("eth1", "pci/b/virtio0"),
            ("eth2", "usb/c"),
            ("eth3", "pci/d"),
        ] {
            let card = root.join("net").join(name);
            fs::create_dir_all(&card).unwrap();
            symlink(root.join("devices").join(path), card.join("device")).unwrap();
        }
        let of = |name| below(&root.join("net"), name);
        assert_eq!(of("eth0").as_deref(), Some("8086-100e"));
        assert_eq!(of("eth1").as_deref(), Some("1af4-1000"));
        for name in ["eth2", "eth3", "eth4"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
