//! How names are resolved: what the head tells agents and the boot service of it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// DNS's port.
pub const DNS_PORT: u16 = 53;
/// As many as the C library asks.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHED: usize = 32;

/// For an agent: everything that its tasks' `/etc/hosts` and `/etc/resolv.conf` are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The nodes and their addresses.
    pub nodes: Vec<(String, IpAddr)>,
    /// What the head calls itself.
    pub head: String,
    /// The head's `/etc/hosts`.
    pub hosts: Vec<u8>,
    /// The head's `/etc/resolv.conf`.
    pub resolver: Vec<u8>,
}

/// For the boot service: what it answers by itself, and whom it asks for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameService {
    /// The nodes and their addresses.
    pub nodes: Vec<(String, IpAddr)>,
    /// What the head calls itself: its address is the one that it has on the asker's wire.
    pub head: String,
    /// Domains in which these names are, too.
    pub domains: Vec<String>,
    /// Who knows all other names, in this order.
    pub servers: Vec<SocketAddr>,
}

/// What a `resolv.conf(5)` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Who is asked.
    pub servers: Vec<IpAddr>,
    /// Where single names are looked for.
    pub search: Vec<String>,
    /// All other lines that say something, such as `options`.
    pub others: Vec<String>,
}

impl Resolver {
    /// Reads what the C library would read.
    pub fn parse(text: &[u8]) -> Resolver {
        let text = String::from_utf8_lossy(text);
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // An interface after it means something on the head only.
                    let server: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
                    resolver.servers.extend(server);
                }
                // The last one counts.
                Some("search" | "domain") => {
                    resolver.search = words.take(MAX_SEARCHED).map(str::to_owned).collect();
                }
                Some(_) => resolver.others.push(line.to_owned()),
                None => {}
            }
        }
        resolver.servers.truncate(MAX_SERVERS);
        resolver
    }

    /// Whether only programs on the same machine can ask any of its servers.
    pub fn is_for_itself(&self) -> bool {
        self.servers.iter().all(is_loopback)
    }

    /// The domains of [`Resolver::search`] that names can be in.
    pub fn domains(&self) -> Vec<String> {
        let domains = self.search.iter().map(|name| name.trim_matches('.'));
        let domains = domains.filter(|name| !name.is_empty());
        domains.map(str::to_ascii_lowercase).collect()
    }
}

/// Whether an address leads to the machine that names it.
pub fn is_loopback(address: &IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_read_as_the_c_library_does() {
        let text = "# systemd-resolved's\nnameserver 127.0.0.53\n options edns0 trust-ad\n\
                    domain one.example\nsearch lab.example. example\n; end\nnameserver\n\
                    nameserver nonsense\n";
        let resolver = Resolver::parse(text.as_bytes());
        assert_eq!(resolver.servers, ["127.0.0.53".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolver.search, ["lab.example.", "example"]);
        assert_eq!(resolver.domains(), ["lab.example", "example"]);
        assert_eq!(resolver.others, ["options edns0 trust-ad"]);
        assert!(resolver.is_for_itself());
        assert!(!Resolver::parse(b"nameserver ::1\nnameserver 10.0.0.1").is_for_itself());
        assert!(Resolver::parse(b"\xff\nnameserver ::ffff:127.0.0.1").is_for_itself());
        let many = "nameserver 10.0.0.1\n".repeat(9);
        assert_eq!(Resolver::parse(many.as_bytes()).servers.len(), MAX_SERVERS);
    }
}
