//! Modules by their purpose. Those that a kernel does not have are passed over.

/// Without them there is no view.
pub(super) const NEEDED: &[&str] = &["fuse"];

/// Without them a full system can't be mounted.
pub(super) const SYSTEM: &[&str] = &["loop", "overlay", "squashfs"];

/// Loaded on every node.
pub(super) const USEFUL: &[&str] = &["overlay", "af_packet"];

/// What network cards and disks are behind.
pub(super) const BUSES: &[&str] = &[
    "ehci_pci",
    "hv_vmbus",
    "ohci_pci",
    "uhci_hcd",
    "virtio_mmio",
    "virtio_pci",
    "xhci_pci",
];

/// Wired network cards: of virtual machines, of PCs since the nineties, of servers, and for USB.
/// Those with hundreds of kilobytes that only large servers have are left to `--module`.
pub(super) const NETWORK: &[&str] = &[
    "3c59x",
    "8139cp",
    "8139too",
    "alx",
    "asix",
    "atl1",
    "atl1c",
    "atl1e",
    "atl2",
    "atlantic",
    "ax88179_178a",
    "b44",
    "bcmgenet",
    "bnx2",
    "cdc_ether",
    "cdc_ncm",
    "dwmac_intel",
    "e100",
    "e1000",
    "e1000e",
    "ena",
    "epic100",
    "forcedeth",
    "genet",
    "gve",
    "hv_netvsc",
    "i40e",
    "igb",
    "igc",
    "ixgbe",
    "jme",
    "lan78xx",
    "macb",
    "natsemi",
    "ne2k_pci",
    "pcnet32",
    "r8152",
    "r8169",
    "sis190",
    "sis900",
    "skge",
    "sky2",
    "smsc75xx",
    "smsc95xx",
    "stmmac_pci",
    "sundance",
    "tg3",
    "tulip",
    "via_rhine",
    "via_velocity",
    "virtio_net",
    "vmxnet3",
    "xen_netfront",
];

/// A network card's driver may leave half of its work to another module, which the kernel would
/// ask modprobe for.
pub(super) const COMPANIONS: &[(&str, &str)] = &[
    ("asix", "ax88796b"),
    ("bcmgenet", "bcm7xxx"),
    ("forcedeth", "realtek"),
    ("lan78xx", "microchip"),
    ("smsc95xx", "smsc"),
    ("tg3", "broadcom"),
];

/// Cards that appear only while Linux starts: a virtual machine's hypervisor then takes away the one
/// that the firmware knew. So no card tells that they are needed.
pub(super) const UNFORESEEN: &[&str] = &["xen_netfront"];

/// A card that is a bus with another behind it: by which driver, and what drives the other.
pub(super) const BEHIND: &[(&str, &str)] = &[("virtio_pci", "virtio_net")];

/// What all of USB depends on.
pub(super) const USB: &str = "usbcore";

/// Loaded with `--disk`.
pub(super) const FILE_SYSTEMS: &[&str] = &["ext4", "loop", "sd_mod", "squashfs", "vfat"];

/// With `--disk`, for the devices that are there.
pub(super) const DISKS: &[&str] = &[
    "ahci",
    "ata_piix",
    "hv_storvsc",
    "mmc_block",
    "mptsas",
    "mptspi",
    "nvme",
    "sdhci_acpi",
    "sdhci_pci",
    "uas",
    "usb_storage",
    "virtio_blk",
    "virtio_scsi",
    "vmw_pvscsi",
    "xen_blkfront",
];

/// Whether the kernel gives a device such a name in sysfs, and not only a file system or a
/// protocol.
pub(super) fn is_of_a_device(alias: &str) -> bool {
    const BUSES: &[&str] = &[
        "acpi", "mmc", "nvme", "pci", "platform", "scsi", "usb", "virtio", "vmbus", "xen",
    ];
    let Some((bus, _)) = alias.split_once(':') else {
        return false;
    };
    // Device trees: not on PCs, where they would be half of the table.
    let is_device_tree = cfg!(not(target_arch = "x86_64")) && bus.starts_with("of");
    BUSES.contains(&bus.trim_end_matches('*')) || is_device_tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_without_hyphens() {
        for list in [BUSES, NETWORK, FILE_SYSTEMS, DISKS] {
            assert!(list.is_sorted());
            assert!(list.iter().all(|name| !name.contains('-')));
        }
        assert!(
            COMPANIONS
                .iter()
                .all(|(driver, _)| NETWORK.contains(driver))
        );
        assert!(UNFORESEEN.iter().all(|driver| NETWORK.contains(driver)));
        for (bus, driver) in BEHIND {
            assert!(BUSES.contains(bus) && NETWORK.contains(driver));
        }
    }

    #[test]
    fn only_devices_are_matched() {
        for alias in ["pci:v00008086d*", "acpi*:VMBUS:*", "usb:v0B95p*", "xen:vif"] {
            assert!(is_of_a_device(alias), "{alias}");
        }
        for alias in [
            "fs-fuse",
            "devname:fuse",
            "rtnl-link-bond",
            "char-major-10-229",
        ] {
            assert!(!is_of_a_device(alias), "{alias}");
        }
    }
}
