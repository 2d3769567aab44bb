//! Who may fetch what.
//!
//! Boot programs are everybody's. A script says what its machine boots, or that nobody knows it.
//! Images are for machines that somebody has adopted (B2). None of it is a secret (S4); the rules
//! keep strangers from costing anything.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use wiglaf_wire::boot::{AddressService, BootMachine, BootSettings, Mac, Stage};

use super::request::{Method, Request};
use crate::card::Card;
use crate::script::{self, Asked};
use crate::tftp;

/// A machine that fetched its script may fetch its image for so long, where its address is not
/// ours to give.
const GRANT_MS: u64 = 30 * 60 * 1000;
/// Grants that are remembered.
const MAX_GRANTS: usize = 8192;
/// Lines of one message, and characters of a line, that are kept.
const MAX_LINES: usize = 2000;
const MAX_LINE_CHARS: usize = 400;
/// Bytes of lines that a machine may send at once, and each second for ever.
const LINES_BURST_BYTES: u64 = 256 << 10;
const LINES_BYTES_PER_S: u64 = 4 << 10;
/// The first line of an agent's first message.
const INIT_LINE: &str = "stage init";
/// The line after that, of a machine with another network card than the one that it says.
const WHOLE_LINE: &str = "stage whole";
/// What begins so is some machine's initramfs.
const INITRAMFS: &str = "initramfs";

/// Where a medium is among the images: in a folder of its own, with its number.
const MEDIUM_FOLDER: &str = ".medium-";
const MEDIUM_FILE: &str = "medium";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Behind which interface, by its place in the settings.
    pub interface: usize,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its Ethernet address, if the kernel has seen it.
    pub hardware: Option<Mac>,
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send this script.
    Script {
        /// The script.
        text: String,
        /// Whose; `None`: it is not certain.
        seen: Option<Mac>,
    },
    /// Send a boot program.
    Loader(&'static str),
    /// Send a file of an image.
    Image {
        /// The image's folder.
        image: String,
        /// The file.
        file: String,
        /// How far its machine has come when it has all of it.
        seen: Option<(Mac, Stage)>,
    },
    /// Take these lines.
    Lines {
        /// Whose.
        mac: Mac,
        /// The lines.
        lines: Vec<String>,
        /// Its kernel has just started.
        is_first: bool,
    },
    /// Nothing of that.
    Refused(u16, &'static str),
}

/// The settings, by what requests name.
#[derive(Debug)]
pub struct Site {
    settings: BootSettings,
    by_mac: HashMap<Mac, usize>,
    by_address: HashMap<Ipv4Addr, usize>,
    granted: HashMap<Ipv4Addr, Grant>,
    buckets: HashMap<Mac, Bucket>,
    /// Machines for which the drivers of one network card are not enough. Who is forgotten here
    /// says it again.
    whole: HashSet<Mac>,
}

#[derive(Debug)]
struct Grant {
    mac: Mac,
    until_ms: u64,
}

/// What a machine has left of its lines.
#[derive(Debug)]
struct Bucket {
    bytes: u64,
    at_ms: u64,
}

impl Site {
    /// A site with these settings.
    pub fn new(settings: BootSettings) -> Site {
        let mut site = Site {
            settings,
            by_mac: HashMap::new(),
            by_address: HashMap::new(),
            granted: HashMap::new(),
            buckets: HashMap::new(),
            whole: HashSet::new(),
        };
        site.index();
        site
    }

    /// Others from now on.
    pub fn configure(&mut self, settings: BootSettings) {
        self.settings = settings;
        self.index();
        let known = &self.by_mac;
        self.granted
            .retain(|_, grant| known.contains_key(&grant.mac));
        self.buckets.retain(|mac, _| known.contains_key(mac));
        self.whole.retain(|mac| known.contains_key(mac));
    }

    fn index(&mut self) {
        let machines = self.settings.machines.iter().enumerate();
        self.by_address = machines.clone().map(|(i, m)| (m.address, i)).collect();
        self.by_mac = machines.map(|(i, m)| (m.mac, i)).collect();
    }

    /// Whether an address is one of an adopted machine.
    pub fn is_machines(&self, address: Ipv4Addr) -> bool {
        self.by_address.contains_key(&address) || self.granted.contains_key(&address)
    }

    /// Which machine is behind an address.
    pub fn mac_at(&self, asker: Asker) -> Option<Mac> {
        let by_address = || self.machine_at(asker.address).map(|machine| machine.mac);
        asker.hardware.or_else(by_address)
    }

    fn machine_at(&self, address: Ipv4Addr) -> Option<&BootMachine> {
        let index = self.by_address.get(&address)?;
        self.settings.machines.get(*index)
    }

    fn machine(&self, mac: Mac) -> Option<&BootMachine> {
        self.settings.machines.get(*self.by_mac.get(&mac)?)
    }

    fn is_proxy(&self, asker: Asker) -> bool {
        let interface = self.settings.interfaces.get(asker.interface);
        interface.is_none_or(|interface| interface.service == AddressService::Proxy)
    }

    /// The adopted machine that asks.
    fn owner(&self, now_ms: u64, asker: Asker) -> Option<&BootMachine> {
        if self.is_proxy(asker) {
            let granted = || {
                let grant = self.granted.get(&asker.address)?;
                (grant.until_ms > now_ms).then_some(grant.mac)
            };
            return self.machine(asker.hardware.or_else(granted)?);
        }
        let machine = self.machine_at(asker.address)?;
        let is_other = asker.hardware.is_some_and(|mac| mac != machine.mac);
        (!is_other).then_some(machine)
    }

    /// Decides about a request. `initramfs_for`: the file of an image that a machine with this
    /// card needs, if it need not be the whole one.
    pub fn decide(
        &mut self,
        now_ms: u64,
        asker: Asker,
        request: &Request,
        body: &[u8],
        initramfs_for: &mut dyn FnMut(&str, Card) -> Option<String>,
    ) -> Decision {
        let mut parts = request.path.split('/').skip(1);
        let place = parts.next();
        let (first, second, rest) = (parts.next(), parts.next(), parts.next());
        let is_post = request.method == Method::Post;
        match (place, first, second, rest) {
            (Some("lines"), Some(mac), None, None) if is_post => {
                self.lines(now_ms, asker, mac, body)
            }
            _ if is_post => Decision::Refused(405, "nothing can be posted there"),
            (Some("script"), Some(mac), None, None) => {
                let asked = Asked::parse(&request.query);
                self.script(now_ms, asker, mac, asked, initramfs_for)
            }
            (Some("loader"), Some(name), None, None) => match tftp::loader_named(name) {
                Some(loader) => Decision::Loader(loader),
                None => Decision::Refused(404, "there is no such boot program"),
            },
            (Some("image"), Some(image), Some(file), None) => {
                self.image(now_ms, asker, image, file)
            }
            (Some("medium"), Some(number), None, None) => self.medium(now_ms, asker, number),
            _ => Decision::Refused(404, "there is nothing of that name"),
        }
    }

    fn script(
        &mut self,
        now_ms: u64,
        asker: Asker,
        mac: &str,
        asked: Asked,
        initramfs_for: &mut dyn FnMut(&str, Card) -> Option<String>,
    ) -> Decision {
        let Ok(mac) = mac.parse::<Mac>() else {
            return Decision::Refused(404, "that is no Ethernet address");
        };
        if !mac.is_unicast() || asker.hardware.is_some_and(|hardware| hardware != mac) {
            return Decision::Refused(403, "that is another machine's script");
        }
        let Some(interface) = self.settings.interfaces.get(asker.interface) else {
            return Decision::Refused(404, "nobody is served here any more");
        };
        let from = SocketAddrV4::new(interface.address, self.settings.http_port);
        let seen = asker.hardware;
        let Some(machine) = self.machine(mac) else {
            let text = script::unknown(from, mac, asked);
            return Decision::Script { text, seen };
        };
        let is_proxy = self.is_proxy(asker);
        // Its address becomes the machine's by this: whoever asks from afar has no Ethernet
        // address here.
        if is_proxy && asker.hardware != Some(mac) {
            return Decision::Refused(403, "that is another machine's script");
        }
        let text = if !is_proxy && machine.address != asker.address {
            script::readdress(from, machine, asked)
        } else {
            let card = asked.card.filter(|_| !self.whole.contains(&mac));
            let initramfs = card.and_then(|card| initramfs_for(&machine.image, card));
            script::boot(from, machine, asked, initramfs.as_deref()).unwrap_or_else(|| {
                let why = "there is no image yet: wiglaf image build";
                script::wait(from, mac, asked, why)
            })
        };
        if is_proxy && (self.granted.len() < MAX_GRANTS || self.forget_grants(now_ms)) {
            let until_ms = now_ms + GRANT_MS;
            self.granted.insert(asker.address, Grant { mac, until_ms });
        }
        let seen = Some(mac);
        Decision::Script { text, seen }
    }

    /// Whether there is room now.
    fn forget_grants(&mut self, now_ms: u64) -> bool {
        self.granted.retain(|_, grant| grant.until_ms > now_ms);
        self.granted.len() < MAX_GRANTS
    }

    fn image(&self, now_ms: u64, asker: Asker, image: &str, file: &str) -> Decision {
        let Some(machine) = self.owner(now_ms, asker) else {
            return Decision::Refused(403, "images are for machines that were adopted");
        };
        if !script::is_plain(image) || !script::is_plain(file) {
            return Decision::Refused(404, "there is nothing of that name");
        }
        // What it may ask for is what it was told: another name is no problem worth telling.
        if image != machine.image {
            return Decision::Refused(404, "that is not what this machine boots");
        }
        let stage = match file {
            "kernel" => Some(Stage::Kernel),
            file if file.starts_with(INITRAMFS) => Some(Stage::Initramfs),
            _ => None,
        };
        Decision::Image {
            image: image.to_owned(),
            file: file.to_owned(),
            seen: stage.map(|stage| (machine.mac, stage)),
        }
    }

    /// A medium that some node is to write to its disk. Like images, it has no secrets.
    fn medium(&self, now_ms: u64, asker: Asker, number: &str) -> Decision {
        if self.owner(now_ms, asker).is_none() {
            return Decision::Refused(403, "media are for machines that were adopted");
        }
        match number.parse::<u32>() {
            Ok(number) => Decision::Image {
                image: format!("{MEDIUM_FOLDER}{number}"),
                file: MEDIUM_FILE.to_owned(),
                seen: None,
            },
            Err(_) => Decision::Refused(404, "there is nothing of that name"),
        }
    }

    fn lines(&mut self, now_ms: u64, asker: Asker, mac: &str, body: &[u8]) -> Decision {
        let owner = self.owner(now_ms, asker).map(|machine| machine.mac);
        let Some(mac) = owner.filter(|owner| mac.parse() == Ok(*owner)) else {
            return Decision::Refused(403, "lines are taken from the machine itself");
        };
        let bucket = self.buckets.entry(mac).or_insert(Bucket {
            bytes: LINES_BURST_BYTES,
            at_ms: now_ms,
        });
        let gained = (now_ms - bucket.at_ms) * LINES_BYTES_PER_S / 1000;
        if gained > 0 {
            bucket.bytes = (bucket.bytes + gained).min(LINES_BURST_BYTES);
            bucket.at_ms = now_ms;
        }
        match bucket.bytes.checked_sub(body.len() as u64) {
            Some(left) => bucket.bytes = left,
            None => return Decision::Refused(429, "too many lines"),
        }
        let text = String::from_utf8_lossy(body);
        let mut lines = text.lines().peekable();
        let is_first = lines.next_if(|line| line.trim() == INIT_LINE).is_some();
        if is_first && lines.next_if(|line| line.trim() == WHOLE_LINE).is_some() {
            self.whole.insert(mac);
        }
        let lines = lines.take(MAX_LINES).map(shown).collect();
        Decision::Lines {
            mac,
            lines,
            is_first,
        }
    }
}

/// A line without what a terminal would obey.
fn shown(line: &str) -> String {
    line.chars()
        .filter(|c| !c.is_control())
        .take(MAX_LINE_CHARS)
        .collect()
}

#[cfg(test)]
mod tests;
