//! What a node's tasks find in `/etc/hosts` and `/etc/resolv.conf`: made of what the head says, so
//! that each name leads from here to where it leads from the head.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use wiglaf_wire::names::{Names, Resolver, is_loopback};

/// What kind of node it is, as far as names go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its machine booted from the network: the head's boot service answers.
    Booted,
    /// It is beside another system, which has a resolver of its own.
    Beside,
    /// It is on the head's machine, in a network of its own.
    Virtual,
}

/// What every machine is to itself.
const ITSELF: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The text of `/etc/hosts`, on a node to which the head has this address.
pub(super) fn hosts(names: &Names, head: IpAddr) -> String {
    let mut text = format!("# The head's names, as they are seen from here (Wiglaf).\n{ITSELF}");
    let mut taken: HashSet<String> = HashSet::new();
    for (name, address) in &names.nodes {
        taken.insert(name.to_ascii_lowercase());
        let _ = writeln!(text, "{address}\t{name}");
    }
    let is_free = |name: &&str, taken: &HashSet<String>| {
        !is_itself(name) && !taken.contains(&name.to_ascii_lowercase())
    };
    // `boss.lab.example boss`, as hosts(5) wants it.
    let short = names.head.split('.').next().unwrap_or_default();
    let mut own: Vec<&str> = vec![&names.head];
    own.extend((short != names.head).then_some(short));
    own.retain(|name| !name.is_empty() && is_free(name, &taken));
    if !own.is_empty() {
        let _ = writeln!(text, "{head}\t{}", own.join(" "));
        taken.extend(own.iter().map(|name| name.to_ascii_lowercase()));
    }
    for line in String::from_utf8_lossy(&names.hosts).lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        let others: Vec<&str> = words.filter(|name| is_free(name, &taken)).collect();
        if others.is_empty() {
            continue;
        }
        // What is the head itself there is the head here.
        let address = if is_loopback(&address) { head } else { address };
        let _ = writeln!(text, "{address}\t{}", others.join(" "));
    }
    text
}

/// Whether a name means whoever uses it.
fn is_itself(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name.starts_with("localhost.")
        || name.starts_with("localhost4")
        || name.starts_with("localhost6")
        || matches!(name.as_str(), "ip6-localhost" | "ip6-loopback")
}

/// The text of `/etc/resolv.conf`; `own` is that of the node's own machine.
pub(super) fn resolver(names: &Names, head: IpAddr, kind: Kind, own: &[u8]) -> Vec<u8> {
    let heads = Resolver::parse(&names.resolver);
    match kind {
        Kind::Booted => {
            let mut text = format!("nameserver {head}\n");
            if !heads.search.is_empty() {
                let _ = writeln!(text, "search {}", heads.search.join(" "));
            }
            for line in heads.others {
                // The head may trust what its own resolver says of signatures: from here that is
                // a wire away.
                let words = line.split_ascii_whitespace();
                let words: Vec<_> = words.filter(|word| *word != "trust-ad").collect();
                if words.len() > 1 {
                    let _ = writeln!(text, "{}", words.join(" "));
                }
            }
            text.into_bytes()
        }
        // Where the head asks itself, nobody is there to be asked from here.
        Kind::Beside if heads.is_for_itself() => own.to_vec(),
        Kind::Beside | Kind::Virtual => names.resolver.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1));

    fn names(hosts: &str, resolver: &str) -> Names {
        Names {
            nodes: vec![
                ("n1".to_owned(), "10.77.0.2".parse().unwrap()),
                ("n2".to_owned(), "10.77.0.3".parse().unwrap()),
            ],
            head: "boss.lab.example".to_owned(),
            hosts: hosts.as_bytes().to_vec(),
            resolver: resolver.as_bytes().to_vec(),
        }
    }

    /// Without what every one has.
    fn lines(hosts_text: &str) -> Vec<String> {
        let all = hosts(&names(hosts_text, ""), HEAD);
        assert!(all.contains(ITSELF));
        let lines = all.lines().skip(3).map(|line| line.replace('\t', " "));
        lines.collect()
    }

    #[test]
    fn each_name_leads_where_it_leads_on_the_head() {
        let nodes = ["10.77.0.2 n1", "10.77.0.3 n2"];
        let own = "10.77.0.1 boss.lab.example boss";
        assert_eq!(lines(""), [nodes[0], nodes[1], own]);
        // As Debian has it, with a name of its own for what runs there, and a printer.
        let debians = "127.0.0.1\tlocalhost\n127.0.1.1 boss.lab.example boss wiki\n\
                       ::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\n\
                       192.0.2.9 printer # upstairs\nnonsense\n0.0.0.0 tracker.example\n";
        let expected = [
            nodes[0],
            nodes[1],
            own,
            "10.77.0.1 wiki",
            "ff02::1 ip6-allnodes",
            "192.0.2.9 printer",
            "0.0.0.0 tracker.example",
        ];
        assert_eq!(lines(debians), expected);
        // Nodes' names are nodes'.
        assert_eq!(
            lines("192.0.2.1 N1 one\n192.0.2.2 n2"),
            [nodes[0], nodes[1], own, "192.0.2.1 one"]
        );
    }

    #[test]
    fn who_is_asked_depends_on_the_node() {
        let stub = names(
            "",
            "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lab.example\n",
        );
        let text = |names: &Names, kind| {
            String::from_utf8(resolver(names, HEAD, kind, b"nameserver 192.0.2.5\n")).unwrap()
        };
        assert_eq!(
            text(&stub, Kind::Booted),
            "nameserver 10.77.0.1\nsearch lab.example\noptions edns0\n"
        );
        assert_eq!(text(&stub, Kind::Beside), "nameserver 192.0.2.5\n");
        assert!(text(&stub, Kind::Virtual).contains("127.0.0.53"));
        let plain = names("", "nameserver 9.9.9.9\n");
        assert_eq!(text(&plain, Kind::Beside), "nameserver 9.9.9.9\n");
        assert_eq!(text(&plain, Kind::Virtual), "nameserver 9.9.9.9\n");
    }
}
