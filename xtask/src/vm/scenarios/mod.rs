//! The scenarios: each says what it shows while it does.

mod boot;
mod guide;
mod harness;
mod parts;
mod power;
mod trouble;

use anyhow::Result;

use super::stage::Stage;

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) needs_busybox: bool,
    pub(super) play: fn(&Stage<'_>) -> Result<()>,
}

/// What CI has time for: both kinds of firmware, and what nodes are for.
pub(super) const SMOKE: &[&str] = &["nodes", "uefi"];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "harness",
        about: "the harness by itself: dnsmasq boots busybox",
        needs_busybox: true,
        play: harness::harness,
    },
    Scenario {
        name: "nodes",
        about: "two unknown machines are adopted, become nodes, and compile something together",
        needs_busybox: false,
        play: boot::nodes,
    },
    Scenario {
        name: "bios",
        about: "a small machine with a BIOS and iPXE becomes a node",
        needs_busybox: false,
        play: boot::bios,
    },
    Scenario {
        name: "old-card",
        about: "the same with a network card that knows no HTTP: TFTP, then iPXE",
        needs_busybox: false,
        play: boot::old_card,
    },
    Scenario {
        name: "uefi",
        about: "a machine with UEFI becomes a node by PXE",
        needs_busybox: false,
        play: boot::uefi,
    },
    Scenario {
        name: "uefi-http",
        about: "a machine with UEFI becomes a node by HTTP alone",
        needs_busybox: false,
        play: boot::uefi_http,
    },
    Scenario {
        name: "cd",
        about: "a machine that can't boot from its network, with iPXE on a CD",
        needs_busybox: false,
        play: boot::cd,
    },
    Scenario {
        name: "medium",
        about: "kernel and initramfs come from a medium, and the rest from the head",
        needs_busybox: false,
        play: boot::medium,
    },
    Scenario {
        name: "unknown",
        about: "an unknown machine gets a place in the list; adopted, it goes on by itself",
        needs_busybox: false,
        play: boot::unknown,
    },
    Scenario {
        name: "make",
        about: "two nodes compile something, with the bytes of a build on the head",
        needs_busybox: false,
        play: boot::make,
    },
    Scenario {
        name: "proxy",
        about: "dnsmasq gives the addresses, and we say what to boot",
        needs_busybox: false,
        play: boot::proxy,
    },
    Scenario {
        name: "head-killed",
        about: "the head and its boot service are killed while a machine boots",
        needs_busybox: false,
        play: trouble::head_killed,
    },
    Scenario {
        name: "loss",
        about: "2 % of all frames are lost",
        needs_busybox: false,
        play: trouble::loss,
    },
    Scenario {
        name: "twins",
        about: "two machines with one Ethernet address are reported",
        needs_busybox: false,
        play: trouble::twins,
    },
    Scenario {
        name: "reboot",
        about: "a node starts anew, and needs nobody's approval",
        needs_busybox: false,
        play: power::reboot,
    },
    Scenario {
        name: "kexec",
        about: "a node starts anew without its firmware",
        needs_busybox: false,
        play: power::kexec,
    },
    Scenario {
        name: "power-off",
        about: "a node is switched off from the head",
        needs_busybox: false,
        play: power::power_off,
    },
    Scenario {
        name: "guide",
        about: "the commands of docs/guide/first-node.md, as they stand there",
        needs_busybox: false,
        play: guide::guide,
    },
];
