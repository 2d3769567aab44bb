//! The names that are answered here.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wiglaf_wire::names::NameService;

use super::message::Question;

/// How long an answer may be believed: a node that comes with another address is found soon.
pub(super) const TTL_S: u32 = 5;
/// More than there can be nodes.
const MAX_NAMES: usize = 4096;
const MAX_DOMAINS: usize = 32;
const MAX_SERVERS: usize = 8;
const REVERSE: &str = ".in-addr.arpa";

/// Nodes by their names, and names by addresses.
#[derive(Clone, Debug, Default)]
pub struct Names {
    by_name: HashMap<String, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, String>,
    head: Option<String>,
    domains: Vec<String>,
    servers: Vec<SocketAddr>,
}

impl Names {
    /// As the head tells it.
    pub fn new(told: &NameService) -> Names {
        let mut names = Names {
            domains: told.domains.iter().take(MAX_DOMAINS).cloned().collect(),
            servers: told.servers.iter().take(MAX_SERVERS).copied().collect(),
            ..Names::default()
        };
        let head = told.head.to_ascii_lowercase();
        names.head = (!head.is_empty()).then_some(head);
        for (name, address) in told.nodes.iter().take(MAX_NAMES) {
            let name = name.to_ascii_lowercase();
            names
                .by_address
                .entry(*address)
                .or_insert_with(|| name.clone());
            // Another who is called so is not the same.
            names.by_name.entry(name).or_insert_with(|| vec![*address]);
        }
        names
    }

    /// Who is asked for all other names. `own` are addresses of ours: asking ourselves would never
    /// end.
    pub fn servers(&self, own: &HashSet<IpAddr>) -> Vec<SocketAddr> {
        let others = self.servers.iter().filter(|it| !own.contains(&it.ip()));
        others.copied().collect()
    }

    /// Whether a node has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// The answer, if it is for us to give. `own` is the head's address on the asker's wire.
    pub fn answer(&self, question: &Question, own: Ipv4Addr) -> Option<Vec<u8>> {
        if !question.is_internet {
            return None;
        }
        let name = question.name.as_deref()?;
        if let Some(address) = reversed(name) {
            let name = if address == own {
                self.head.as_ref()
            } else {
                self.by_address.get(&IpAddr::V4(address))
            };
            return question.name_of(name?, TTL_S);
        }
        let addresses = self.addresses(name, own).or_else(|| {
            let mut bare = self.domains.iter().filter_map(|domain| {
                let bare = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
                self.addresses(bare, own)
            });
            bare.next()
        });
        Some(question.addresses(&addresses?, TTL_S))
    }

    fn addresses(&self, name: &str, own: Ipv4Addr) -> Option<Vec<IpAddr>> {
        // A node of the head's name is that node.
        let head = || (self.head.as_deref() == Some(name)).then(|| vec![IpAddr::V4(own)]);
        self.by_name.get(name).cloned().or_else(head)
    }
}

/// The address whose name is asked for by this one (RFC 1035, 3.5).
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(REVERSE)?;
    let backward: Ipv4Addr = digits.parse().ok()?;
    let [a, b, c, d] = backward.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}
