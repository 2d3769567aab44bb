//! Who made a network card, by the first half of its address (IEEE's OUI).

use std::fs;

use wiglaf_wire::boot::Mac;

/// Where Debian's ieee-data and others put IEEE's list.
const LISTS: [&str; 2] = ["/usr/share/ieee-data/oui.txt", "/var/lib/ieee-data/oui.txt"];

/// What people try this with, for machines without the list.
const COMMON: [([u8; 3], &str); 12] = [
    ([0x52, 0x54, 0x00], "QEMU"),
    ([0x08, 0x00, 0x27], "VirtualBox"),
    ([0x00, 0x0c, 0x29], "VMware"),
    ([0x00, 0x50, 0x56], "VMware"),
    ([0x00, 0x15, 0x5d], "Hyper-V"),
    ([0x00, 0x16, 0x3e], "Xen"),
    ([0xb8, 0x27, 0xeb], "Raspberry Pi"),
    ([0xdc, 0xa6, 0x32], "Raspberry Pi"),
    ([0xe4, 0x5f, 0x01], "Raspberry Pi"),
    ([0xd8, 0x3a, 0xdd], "Raspberry Pi"),
    ([0x2c, 0xcf, 0x67], "Raspberry Pi"),
    ([0x28, 0xcd, 0xc1], "Raspberry Pi"),
];

/// The maker's name, if it is known here.
pub(super) fn name(mac: Mac) -> Option<String> {
    let [a, b, c, ..] = mac.0;
    let common = COMMON.iter().find(|(prefix, _)| *prefix == [a, b, c]);
    if let Some((_, name)) = common {
        return Some((*name).to_owned());
    }
    let list = LISTS.iter().find_map(|path| fs::read(path).ok())?;
    in_list(&String::from_utf8_lossy(&list), [a, b, c])
}

/// Lines such as `00-22-72   (hex)  American Micro-Fuel Device Corp.`
fn in_list(list: &str, [a, b, c]: [u8; 3]) -> Option<String> {
    let prefix = format!("{a:02X}-{b:02X}-{c:02X}");
    let line = list.lines().find(|line| line.starts_with(&prefix))?;
    let name = line.split_once("(hex)")?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maker_is_found_in_the_list() {
        let list = "OUI\n00-22-72   (hex)\t\tAmerican Micro-Fuel\n002272     (base 16)\tAmerican\n";
        assert_eq!(
            in_list(list, [0, 0x22, 0x72]).as_deref(),
            Some("American Micro-Fuel")
        );
        assert_eq!(in_list(list, [0, 0x22, 0x73]), None);
        assert_eq!(name(Mac([0x52, 0x54, 0, 1, 2, 3])).as_deref(), Some("QEMU"));
    }
}
