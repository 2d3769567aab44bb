//! Head ↔ boot service: what it has to know to serve machines that start, and what it saw of them.
//!
//! The service is a process of its own with the rights of nobody: it parses what anybody on the
//! wire sends. The head decides who is known; the service holds a copy of that, so that machines
//! go on booting while a head is replaced.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::agent::PowerAction;
use crate::names::NameService;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// It is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address such as 52:54:00:12:34:56")]
pub struct NotAMac(pub String);

impl FromStr for Mac {
    type Err = NotAMac;

    /// Colons or hyphens between the bytes, or none.
    fn from_str(text: &str) -> Result<Mac, NotAMac> {
        let failed = || NotAMac(text.to_owned());
        let digits: String = match text.len() {
            17 => {
                let is_separated = text
                    .bytes()
                    .enumerate()
                    .all(|(i, byte)| (i % 3 == 2) == matches!(byte, b':' | b'-'));
                if !is_separated {
                    return Err(failed());
                }
                text.chars().filter(char::is_ascii_hexdigit).collect()
            }
            _ => text.to_owned(),
        };
        if digits.len() != 12 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(failed());
        }
        let mut bytes = [0; 6];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| failed())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| failed())?;
        }
        Ok(Mac(bytes))
    }
}

impl Mac {
    /// Whether one machine may have it: neither a group's nor all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// How far a machine has come; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Its firmware, or whatever runs there, asks for an address.
    Asked,
    /// It was offered one and took it.
    Addressed,
    /// It fetched a network boot program.
    Loader,
    /// It fetched the script that says what to boot.
    Script,
    /// It fetched the kernel.
    Kernel,
    /// It fetched the initramfs.
    Initramfs,
    /// The agent's first message from there: the kernel runs, with the network up.
    Init,
    /// It asks the head for a certificate.
    Joining,
    /// Somebody has to compare its code.
    AwaitsApproval,
    /// Its agent is connected.
    Up,
}

impl Stage {
    /// In a word or two, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Asked => "asked",
            Stage::Addressed => "addressed",
            Stage::Loader => "loader",
            Stage::Script => "script",
            Stage::Kernel => "kernel",
            Stage::Initramfs => "initramfs",
            Stage::Init => "init",
            Stage::Joining => "joining",
            Stage::AwaitsApproval => "approval",
            Stage::Up => "up",
        }
    }
}

/// Who gives addresses on a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressService {
    /// We do.
    Full,
    /// Another DHCP server does; we only add what to boot (ProxyDHCP, PXE 2.1 section 2.2.4).
    Proxy,
}

/// A wire with machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootInterface {
    /// The interface's name.
    pub name: String,
    /// The head's address there.
    pub address: Ipv4Addr,
    /// Bits of the network's part.
    pub prefix: u8,
    /// Who gives addresses there.
    pub service: AddressService,
    /// Addresses that machines which nobody knows get for a short while: first and last.
    pub unknown: (Ipv4Addr, Ipv4Addr),
    /// The way out that machines are told, if there is one.
    pub gateway: Option<Ipv4Addr>,
}

/// A machine that somebody has adopted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMachine {
    /// Its address on the wire.
    pub mac: Mac,
    /// Its node's name.
    pub name: String,
    /// Its own IP address, always the same.
    pub address: Ipv4Addr,
    /// What it boots: a folder below the images' directory.
    pub image: String,
    /// Added to the kernel's command line.
    pub arguments: String,
}

/// What the service has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSettings {
    /// Nothing answers on any other.
    pub interfaces: Vec<BootInterface>,
    /// Where the head listens for agents, on each of the interfaces' addresses.
    pub head_port: u16,
    /// Where images are served by HTTP.
    pub http_port: u16,
    /// The cluster's identifier, so that two heads can share a wire.
    pub cluster: String,
    /// Machines that somebody has adopted.
    pub machines: Vec<BootMachine>,
}

/// Head → boot service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBoot {
    /// Replaces all settings. The head adopted or forgot a machine, or chose another image.
    Settings(BootSettings),
    /// Replaces the names that are answered; `None`: no name is any more.
    Names(Option<Box<NameService>>),
    /// End, and answer nobody any more.
    End,
}

/// What was seen of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Which.
    pub mac: Mac,
    /// How far it has come.
    pub stage: Stage,
    /// The interface that it is behind.
    pub interface: String,
    /// What it says it is: for example `PXE BIOS`, `PXE UEFI x86_64`, `HTTP UEFI x86_64`, `iPXE`,
    /// `BOOTP`, `Linux (udhcp)`. Ours, from known words; never a peer's bytes as they are.
    pub client: Option<String>,
    /// The address that it has or was offered.
    pub address: Option<Ipv4Addr>,
}

/// Boot service → head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromBoot {
    /// A machine has come further, or started anew. At most some per second and machine.
    Seen(Sighting),
    /// Lines from a booting agent, for the node's log. Bounded; control characters are gone.
    Lines {
        /// Whose.
        mac: Mac,
        /// The lines.
        lines: Vec<String>,
    },
    /// Something an administrator should know: another DHCP server on the wire, an address that
    /// somebody else has, a port that is taken, a boot program that is missing.
    Problem {
        /// The interface concerned, if it is one's.
        interface: Option<String>,
        /// What, and what to do.
        text: String,
    },
    /// The settings are in force: it answers.
    Ready {
        /// Where the images are served.
        http: Vec<SocketAddrV4>,
        /// Interfaces where nobody is given an address, as another DHCP server answers: which.
        silent: Vec<(String, Ipv4Addr)>,
    },
}

/// Command → head, in [`crate::client::Request::Boot`]. All but the first two are for
/// administrators only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootRequest {
    /// How the service is.
    Status,
    /// All machines that were adopted, and those that nobody knows.
    Machines,
    /// Serve machines behind an interface from now on.
    Enable {
        /// Which, and how; `unknown` is chosen by the head.
        interface: BootInterface,
        /// The head gives the interface this address, now and whenever it starts.
        sets_address: bool,
    },
    /// Serve nobody there any more.
    Disable {
        /// The interface's name.
        interface: String,
    },
    /// Make a machine a node.
    Adopt {
        /// Which.
        mac: Mac,
        /// The node's name; `None`: the next that is free.
        name: Option<String>,
    },
    /// Adopt every machine that comes until then.
    AdoptAll {
        /// For how long; 0 ends it.
        window_ms: u64,
        /// What they are called, with `%d` for the next number; `None`: the next free names.
        names: Option<String>,
        /// One at a time: the next when the one before is up.
        is_ordered: bool,
    },
    /// The code that its console shows is this: let it join.
    Approve {
        /// The node's name, or its Ethernet address.
        machine: String,
        /// The code; only the digits count.
        code: String,
    },
    /// A machine is nobody's any more.
    Forget {
        /// The node's name, or its Ethernet address.
        machine: String,
    },
    /// What machines boot from their next start on.
    UseImage {
        /// The image's folder; `None`: what is said of others, as nothing is said of these any
        /// more.
        image: Option<String>,
        /// For whom.
        whom: Whom,
    },
    /// Forget nodes for good.
    Remove {
        /// Node set.
        nodes: String,
    },
    /// Put nodes into a group, or take them out of it.
    Group {
        /// Node set.
        nodes: String,
        /// The group's name.
        group: String,
        /// Into it.
        is_in: bool,
    },
    /// Have machines switched by what is configured for that, whatever they are doing.
    Switch {
        /// Node set.
        nodes: String,
        /// How.
        switch: Switch,
    },
    /// Have machines start anew, or end.
    Power {
        /// Node set.
        nodes: String,
        /// What.
        action: PowerAction,
    },
    /// Send machines the packet that switches them on.
    Wake {
        /// Node set.
        nodes: String,
    },
    /// The nodes' way to the outer world through the head, by this interface; `None` ends it.
    Gateway {
        /// The interface that leads outward.
        outer: Option<String>,
    },
    /// The boot log of a node.
    Log {
        /// The node's name, or its Ethernet address.
        machine: String,
    },
}

/// For whom an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whom {
    /// All for which nothing else is said.
    All,
    /// A node set.
    Nodes(String),
    /// A group's nodes, those that come into it later, too.
    Group(String),
}

/// What somebody who stands before a machine can do with its switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
    /// Off and on.
    Cycle,
}

impl Switch {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Switch::On => "on",
            Switch::Off => "off",
            Switch::Cycle => "cycle",
        }
    }
}

/// How the boot service is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStatus {
    /// Interfaces that are served.
    pub interfaces: Vec<BootInterface>,
    /// Whether the service runs.
    pub is_serving: bool,
    /// Where it serves images.
    pub http: Vec<SocketAddrV4>,
    /// Interfaces where nobody is given an address, as another DHCP server answers: which.
    pub silent: Vec<(String, Ipv4Addr)>,
    /// What machines boot for which nothing else is said.
    pub image: Option<String>,
    /// What the nodes of groups boot: the group, and its image.
    pub group_images: Vec<(String, String)>,
    /// The interface by which nodes reach the outer world through the head.
    pub gateway: Option<String>,
    /// Until when every machine is adopted, in seconds since the Epoch.
    pub adopts_until_s: Option<i64>,
    /// The node that has to be up before the next machine is adopted.
    pub adopts_after: Option<String>,
    /// What an administrator should know, newest last: when, in seconds since the Epoch, and what.
    pub problems: Vec<(i64, String)>,
}

/// A machine in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its node; `None`: nobody has adopted it.
    pub name: Option<String>,
    /// Its own address, or the one that it had last.
    pub address: Option<Ipv4Addr>,
    /// The interface that it was last seen behind.
    pub interface: Option<String>,
    /// What it said it is.
    pub client: Option<String>,
    /// How far it has come since it last started.
    pub stage: Option<Stage>,
    /// When it came there, in seconds since the Epoch.
    pub stage_s: Option<i64>,
    /// When it was first seen, in seconds since the Epoch.
    pub first_s: Option<i64>,
    /// What it boots.
    pub image: Option<String>,
    /// Whether somebody has compared its code.
    pub is_approved: bool,
    /// The code that its console should show now.
    pub code: Option<String>,
    /// Why it was refused last.
    pub refusal: Option<String>,
    /// How often it has fetched its boot program since that last ran.
    pub fruitless_loads: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_people_write_it() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0xab, 0xff]);
        for text in ["52:54:00:12:ab:ff", "52-54-00-12-AB-FF", "52540012abff"] {
            assert_eq!(text.parse(), Ok(mac));
        }
        assert_eq!(mac.to_string(), "52:54:00:12:ab:ff");
        for text in [
            "",
            "52:54:00:12:ab",
            "52:54:00:12:ab:fg",
            "5254:00:12:ab:ff0",
            "é2540012abf",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
