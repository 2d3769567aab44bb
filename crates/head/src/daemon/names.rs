//! Names: agents and the boot service are told the nodes' names, and what the head's own resolver
//! knows, whenever something of it changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use wiglaf_wire::agent::{KeepingKey, ToAgent};
use wiglaf_wire::boot::ToBoot;
use wiglaf_wire::id::NodeId;
use wiglaf_wire::names::{DNS_PORT, NameService, Names, Resolver, is_loopback};

use super::{Daemon, log, now_ms};
use crate::node_table::Presence;

const HOSTS: &str = "/etc/hosts";
const RESOLVER: &str = "/etc/resolv.conf";
/// What counts of the head's files.
const MAX_HOSTS_BYTES: u64 = 256 << 10;
const MAX_RESOLVER_BYTES: u64 = 16 << 10;
/// How often is looked whether something has changed.
const LOOK_MS: u64 = 2_000;
/// Nodes that come together are told together.
const TOGETHER_MS: u64 = 300;
/// All are told at most so often.
const TELL_MS: u64 = 1_000;

/// What was told.
#[derive(Default)]
pub(super) struct Told {
    names: Names,
    hosts: Watched,
    resolver: Watched,
    look_at_ms: u64,
    told_at_ms: u64,
    /// Some node was told what not all were.
    is_uneven: bool,
}

/// A file that is read again when it is another.
#[derive(Default)]
struct Watched {
    stamp: Option<(u64, u64, i64, i64, u64)>,
    content: Vec<u8>,
}

impl Watched {
    fn look(&mut self, path: &str, most: u64) -> Vec<u8> {
        // A link may lead elsewhere now: what is there is looked at.
        let stamp = fs::metadata(path).ok().filter(fs::Metadata::is_file);
        let stamp = stamp.map(|it| (it.dev(), it.ino(), it.mtime(), it.mtime_nsec(), it.size()));
        if self.stamp != stamp {
            self.stamp = stamp;
            self.content.clear();
            // What can't be read says nothing.
            let read = File::open(path).map(|file| file.take(most));
            let _ = read.and_then(|mut file| file.read_to_end(&mut self.content));
            if self.content.len() as u64 == most {
                // A line that is cut off may say something else.
                let end = self.content.iter().rposition(|byte| *byte == b'\n');
                self.content.truncate(end.map_or(0, |at| at + 1));
                log(&format!(
                    "{path} is too long: nodes hear its first {most} bytes"
                ));
            }
        }
        self.content.clone()
    }
}

impl Daemon {
    /// When [`Daemon::look_at_names`] has something to do.
    pub(super) fn names_due_ms(&self) -> Option<u64> {
        let has_hearers = !self.agents.is_empty() || self.boot.machines.served().next().is_some();
        (self.config.nodes.names && has_hearers).then_some(self.names.look_at_ms)
    }

    /// Tells all what has changed.
    pub(super) fn look_at_names(&mut self) {
        let now_ms = now_ms();
        if self.names_due_ms().is_none_or(|due| due > now_ms) {
            return;
        }
        self.names.look_at_ms = now_ms + LOOK_MS;
        let names = self.collect_names();
        if names == self.names.names && !self.names.is_uneven {
            return;
        }
        self.names.is_uneven = false;
        self.names.names = names.clone();
        self.names.told_at_ms = now_ms;
        let message = ToAgent::Names {
            names: Some(Box::new(names)),
        };
        let agents: Vec<NodeId> = self.agents.keys().copied().collect();
        for node in agents {
            self.tell_agent(node, &message);
        }
        self.tell_boot_names();
    }

    /// A node has said hello: before it is given any task it hears all names; the others hear of
    /// it soon.
    pub(super) fn tell_names(&mut self, node: NodeId) {
        let names = (self.config.nodes.names).then(|| Box::new(self.collect_names()));
        self.names.is_uneven |= names.as_deref().is_some_and(|it| *it != self.names.names);
        self.tell_agent(node, &ToAgent::Names { names });
        let soon_ms = (now_ms() + TOGETHER_MS).max(self.names.told_at_ms + TELL_MS);
        self.names.look_at_ms = self.names.look_at_ms.min(soon_ms);
    }

    /// The same node hears with which key it may keep what it reads.
    pub(super) fn tell_keeping_key(&mut self, node: NodeId, name: &str) {
        if self.config.nodes.keep {
            let key = KeepingKey(self.authority.keeping_key(name));
            self.tell_agent(node, &ToAgent::Keep { key });
        }
    }

    /// A boot service has got its settings.
    pub(super) fn tell_boot_names(&mut self) {
        let service = (self.config.nodes.names).then(|| {
            if self.names.told_at_ms == 0 {
                // Not kept: no agent has heard it.
                Box::new(service(&self.collect_names()))
            } else {
                Box::new(service(&self.names.names))
            }
        });
        self.tell_boot(&ToBoot::Names(service));
    }

    fn collect_names(&mut self) -> Names {
        let head = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let hosts = self.names.hosts.look(HOSTS, MAX_HOSTS_BYTES);
        let resolver = self.names.resolver.look(RESOLVER, MAX_RESOLVER_BYTES);
        let (host, domains) = placed(&head, &resolver);
        // By what resolvers take for the same.
        let mut nodes: BTreeMap<String, (String, IpAddr)> = BTreeMap::new();
        let mut machines: Vec<IpAddr> = Vec::new();
        // Machines have theirs whether they are up or not.
        for machine in self.boot.machines.list() {
            if let (Some(name), Some(address)) = (machine.name, machine.address) {
                machines.push(IpAddr::V4(address));
                nodes.insert(name.to_ascii_lowercase(), (name, IpAddr::V4(address)));
            }
        }
        for node in self.reactor.nodes().iter() {
            if node.presence != Presence::Absent
                && let Ok(address) = node.machine.address.parse::<IpAddr>()
                && is_anothers(address)
                && !machines.contains(&address)
                && may_be_called(&node.name, &host, &domains)
            {
                let name = node.name.to_ascii_lowercase();
                nodes.entry(name).or_insert((node.name.clone(), address));
            }
        }
        Names {
            nodes: nodes.into_values().collect(),
            head,
            hosts,
            resolver,
        }
    }
}

/// Whether a node can have it, as far as others are concerned: it is the node's own word.
fn is_anothers(address: IpAddr) -> bool {
    !is_loopback(&address) && !address.is_unspecified() && !address.is_multicast()
}

/// Whether others are to find a node by the name that it has chosen itself when it joined: not if
/// that is another's.
fn may_be_called(name: &str, head: &str, domains: &[String]) -> bool {
    let name = name.to_ascii_lowercase();
    let is_ours = |domain: &String| {
        let rest = name.strip_suffix(domain.as_str());
        rest.is_some_and(|rest| rest.ends_with('.'))
    };
    !name.starts_with("localhost")
        && name != head
        && name.parse::<IpAddr>().is_err()
        && (!name.contains('.') || domains.iter().any(is_ours))
}

/// The head's name without its domain, and the domains that are its own.
fn placed(head: &str, resolver: &[u8]) -> (String, Vec<String>) {
    let mut domains = Resolver::parse(resolver).domains();
    let (head, domain) = head.split_once('.').unwrap_or((head, ""));
    if !domain.is_empty() {
        domains.push(domain.to_ascii_lowercase());
    }
    (head.to_ascii_lowercase(), domains)
}

/// What the boot service has to know of that.
fn service(names: &Names) -> NameService {
    let resolver = Resolver::parse(&names.resolver);
    let (head, domains) = placed(&names.head, &names.resolver);
    let mut servers = resolver.servers;
    if servers.is_empty() {
        // As resolv.conf(5) has it.
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    let servers = servers.into_iter();
    NameService {
        nodes: names.nodes.clone(),
        head,
        domains,
        servers: servers
            .map(|address| SocketAddr::new(address, DNS_PORT))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_when_it_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let path = path.to_str().unwrap();
        let mut watched = Watched::default();
        assert!(watched.look(path, 100).is_empty());
        fs::write(path, "1.2.3.4 a\n").unwrap();
        assert_eq!(watched.look(path, 100), b"1.2.3.4 a\n");
        assert_eq!(watched.look(path, 3), b"1.2.3.4 a\n", "it is the same");
        let new = directory.path().join("new");
        fs::write(&new, "1.2.3.5 b\n").unwrap();
        fs::rename(&new, path).unwrap();
        assert_eq!(watched.look(path, 100), b"1.2.3.5 b\n");
        fs::write(path, "1.2.3.5 b\n1.2.3.6 c\n").unwrap();
        assert_eq!(watched.look(path, 12), b"1.2.3.5 b\n", "whole lines");
        fs::remove_file(path).unwrap();
        assert!(watched.look(path, 100).is_empty());
        assert!(watched.look("/dev/zero", 100).is_empty(), "only files");
    }

    #[test]
    fn a_node_does_not_choose_anothers_name() {
        let domains = ["lab.example".to_owned()];
        let may = |name| may_be_called(name, "boss", &domains);
        assert!(may("n1") && may("n1.Lab.example"));
        for name in [
            "localhost",
            "LocalHost4",
            "Boss",
            "deb.debian.org",
            "10.77.0.1",
            "xlab.example",
        ] {
            assert!(!may(name), "{name}");
        }
    }

    #[test]
    fn the_boot_service_asks_whom_the_head_asks() {
        let mut names = Names {
            head: "boss.Lab.example".to_owned(),
            resolver: b"nameserver 127.0.0.53\nsearch example. .\n".to_vec(),
            ..Names::default()
        };
        let told = service(&names);
        assert_eq!((told.head.as_str(), told.servers.len()), ("boss", 1));
        assert_eq!(told.servers[0].to_string(), "127.0.0.53:53");
        assert_eq!(told.domains, ["example", "lab.example"]);
        names.resolver.clear();
        assert_eq!(service(&names).servers[0].to_string(), "127.0.0.1:53");
    }
}
