//! The scenarios: each says what it shows while it does.

mod boot;
mod delay;
mod disk;
mod disks_of_pcs;
mod forgotten;
mod gateway;
mod generic;
mod guide;
mod harness;
mod medium;
mod moved;
mod names;
mod parts;
mod power;
mod rootfs;
mod trouble;

use anyhow::Result;

pub(super) use names::fetch_resolved;

use super::stage::Stage;

/// What not every scenario needs from Debian, and is fetched before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Busybox,
    /// The kernel for all kinds of machines.
    GenericKernel,
    /// A full system in a directory.
    System,
    /// systemd-resolved.
    Resolved,
}

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) needs: &'static [Need],
    pub(super) play: fn(&Stage<'_>) -> Result<()>,
}

/// The short form: both kinds of firmware, what nodes are for, and names.
pub(super) const SMOKE: &[&str] = &["nodes", "uefi", "names"];

/// What CI has time for: the guide to the first node, all ways to boot from a network, and what
/// goes wrong on one.
pub(super) const IN_CI: &[&str] = &[
    "guide",
    "nodes",
    "bios",
    "old-card",
    "uefi",
    "uefi-http",
    "proxy",
    "head-killed",
    "loss",
    "twins",
    "kexec",
    "names",
];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "harness",
        about: "the harness by itself: dnsmasq boots busybox",
        needs: &[Need::Busybox],
        play: harness::harness,
    },
    Scenario {
        name: "nodes",
        about: "two unknown machines are adopted, become nodes, and compile something together",
        needs: &[],
        play: boot::nodes,
    },
    Scenario {
        name: "bios",
        about: "a small machine with a BIOS and iPXE becomes a node",
        needs: &[],
        play: boot::bios,
    },
    Scenario {
        name: "old-card",
        about: "the same with a network card that knows no HTTP: TFTP, then iPXE",
        needs: &[],
        play: boot::old_card,
    },
    Scenario {
        name: "uefi",
        about: "a machine with UEFI becomes a node by PXE",
        needs: &[],
        play: boot::uefi,
    },
    Scenario {
        name: "uefi-http",
        about: "a machine with UEFI becomes a node by HTTP alone",
        needs: &[],
        play: boot::uefi_http,
    },
    Scenario {
        name: "delay",
        about: "how many instructions a machine needs from its first process until it takes tasks",
        needs: &[],
        play: delay::delay,
    },
    Scenario {
        name: "cd",
        about: "a machine that can't boot from its network starts from a CD",
        needs: &[],
        play: medium::cd,
    },
    Scenario {
        name: "cd-proxy",
        about: "the same where dnsmasq gives the addresses",
        needs: &[],
        play: medium::cd_proxy,
    },
    Scenario {
        name: "stick",
        about: "machines with a BIOS and with UEFI start from one stick",
        needs: &[],
        play: medium::stick,
    },
    Scenario {
        name: "install",
        about: "a node's own disk is made one that its machine starts from",
        needs: &[],
        play: medium::install,
    },
    Scenario {
        name: "generic",
        about: "Debian's kernel for all machines, on network cards that PCs have",
        needs: &[Need::GenericKernel],
        play: generic::generic,
    },
    Scenario {
        name: "unknown",
        about: "an unknown machine gets a place in the list; adopted, it goes on by itself",
        needs: &[],
        play: boot::unknown,
    },
    Scenario {
        name: "make",
        about: "two nodes compile something, with the bytes of a build on the head",
        needs: &[],
        play: boot::make,
    },
    Scenario {
        name: "proxy",
        about: "dnsmasq gives the addresses, and we say what to boot",
        needs: &[],
        play: boot::proxy,
    },
    Scenario {
        name: "head-killed",
        about: "the head and its boot service are killed while a machine boots",
        needs: &[],
        play: trouble::head_killed,
    },
    Scenario {
        name: "loss",
        about: "2 % of all frames are lost",
        needs: &[],
        play: trouble::loss,
    },
    Scenario {
        name: "twins",
        about: "two machines with one Ethernet address are reported",
        needs: &[],
        play: trouble::twins,
    },
    Scenario {
        name: "disks-of-pcs",
        about: "NVMe, SATA, SCSI and USB, by Debian's kernel for all machines",
        needs: &[Need::GenericKernel],
        play: disks_of_pcs::disks_of_pcs,
    },
    Scenario {
        name: "names",
        about: "a node finds nodes and the outer world by name, by systemd-resolved on the head",
        needs: &[Need::Resolved],
        play: names::names,
    },
    Scenario {
        name: "moved",
        about: "a running node hears of another way out and of another address of the head",
        needs: &[],
        play: moved::moved,
    },
    Scenario {
        name: "gateway",
        about: "a node reaches the outer network by the head, and is not reached; a packet wakes it",
        needs: &[],
        play: gateway::gateway,
    },
    Scenario {
        name: "forgotten",
        about: "a machine that is forgotten while it runs is nobody's when it comes back",
        needs: &[],
        play: forgotten::forgotten,
    },
    Scenario {
        name: "reboot",
        about: "a node starts anew, and needs nobody's approval",
        needs: &[],
        play: power::reboot,
    },
    Scenario {
        name: "kexec",
        about: "a node starts anew without its firmware",
        needs: &[],
        play: power::kexec,
    },
    Scenario {
        name: "power-off",
        about: "a node is switched off from the head",
        needs: &[],
        play: power::power_off,
    },
    Scenario {
        name: "rootfs",
        about: "a node boots a full Debian, whose own init runs; its tasks see either's files",
        needs: &[Need::System],
        play: rootfs::rootfs,
    },
    Scenario {
        name: "rootfs-memory",
        about: "a machine without the memory for its full system says so",
        needs: &[],
        play: rootfs::too_small,
    },
    Scenario {
        name: "rootfs-damaged",
        about: "a machine refuses a full system that is not its image's, and says so",
        needs: &[],
        play: rootfs::damaged,
    },
    Scenario {
        name: "disk",
        about: "a node's disks are divided, used and found again; what has data is left alone",
        needs: &[],
        play: disk::disk,
    },
    Scenario {
        name: "guide",
        about: "the commands of docs/guide/first-node.md, as they stand there",
        needs: &[],
        play: guide::guide,
    },
];
