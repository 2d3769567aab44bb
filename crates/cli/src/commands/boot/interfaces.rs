//! This machine's network interfaces, and the address that the head gets on one of them.

use std::fs;
use std::net::Ipv4Addr;

use wiglaf_linux::interface;
use wiglaf_wire::boot::Mac;

use crate::error::CommandError;
use crate::output::{self, Align, Column};

/// Where the second byte of a network that we choose begins: the ones before are used most.
const FIRST_CHOICE: u8 = 77;
/// What we choose is that large: 250 machines are more than most have.
const CHOSEN_PREFIX: u8 = 24;
/// The default route's destination in `/proc/net/route`.
const DEFAULT_ROUTE: &str = "00000000";

struct Interface {
    name: String,
    mac: String,
    is_running: bool,
    address: Option<(Ipv4Addr, u8)>,
    has_default_route: bool,
}

/// Reads `10.77.0.1/24`.
pub(super) fn network(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let (address, bits) = text
        .split_once('/')
        .ok_or("an address and the bits of the network's part, for example 10.77.0.1/24")?;
    let address = address
        .parse()
        .map_err(|_| format!("{address:?} is no IPv4 address"))?;
    let bits = bits.parse().ok().filter(|bits| *bits <= 32);
    Ok((
        address,
        bits.ok_or("the bits of the network's part are a number up to 32")?,
    ))
}

fn all() -> Result<Vec<Interface>, CommandError> {
    let routes = routes();
    let mut all = Vec::new();
    for name in interface::names()? {
        let about = interface::about(&name)?;
        let Some(mac) = about.mac else {
            continue;
        };
        all.push(Interface {
            mac: Mac(mac).to_string(),
            is_running: about.is_running,
            address: interface::address(&name)?,
            has_default_route: routes
                .iter()
                .any(|(by, to, _)| *by == name && to == DEFAULT_ROUTE),
            name,
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Interface, destination and mask of each route, as the kernel writes them.
fn routes() -> Vec<(String, String, String)> {
    let text = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let fields = |line: &str| {
        let words: Vec<_> = line.split_whitespace().map(String::from).collect();
        Some((
            words.first()?.clone(),
            words.get(1)?.clone(),
            words.get(7)?.clone(),
        ))
    };
    text.lines().skip(1).filter_map(fields).collect()
}

/// The interface of the default route.
pub(crate) fn default_route() -> Option<String> {
    let mut routes = routes().into_iter();
    routes
        .find(|(_, to, _)| to == DEFAULT_ROUTE)
        .map(|(by, _, _)| by)
}

/// Shows them.
pub(super) fn print() -> Result<(), CommandError> {
    let columns = [
        Column("INTERFACE", Align::Left),
        Column("STATE", Align::Left),
        Column("MAC", Align::Left),
        Column("ADDRESS", Align::Left),
        Column("", Align::Left),
    ];
    let cells: Vec<_> = all()?
        .into_iter()
        .map(|each| {
            let note = if each.has_default_route {
                "the way to the outer world: not this one"
            } else {
                ""
            };
            let address = each
                .address
                .map(|(address, bits)| format!("{address}/{bits}"));
            let state = if each.is_running { "up" } else { "down" };
            vec![
                each.name,
                state.into(),
                each.mac,
                address.unwrap_or("-".into()),
                note.into(),
            ]
        })
        .collect();
    output::table(&columns, &cells)
}

/// The head's address on an interface, and whether the interface has to be given it.
pub(super) fn choose(
    name: &str,
    wished: Option<(Ipv4Addr, u8)>,
    on_default_route: bool,
) -> Result<((Ipv4Addr, u8), bool), CommandError> {
    let all = all()?;
    let Some(found) = all.iter().find(|each| each.name == name) else {
        print()?;
        return Err(
            CommandError::new(format!("there is no network interface {name}"))
                .hint("choose one of the above"),
        );
    };
    if found.has_default_route && !on_default_route {
        return Err(CommandError::new(format!(
            "this machine's way to the outer world goes by {name}: a second DHCP server there \
             would break other people's machines"
        ))
        .hint(
            "take the interface that your nodes are behind; if it is really this one, add \
             --on-default-route (and --proxy if that network has a DHCP server)",
        ));
    }
    match (found.address, wished) {
        (Some(has), None) => Ok((has, false)),
        (Some(has), Some(wish)) if has == wish => Ok((has, false)),
        (Some((has, bits)), Some(_)) => Err(CommandError::new(format!(
            "{name} has the address {has}/{bits} already"
        ))
        .hint("leave --address out, or take that address away first (`ip addr del`)")),
        (None, Some(wish)) => Ok((wish, true)),
        (None, None) => Ok((free_network(&routes())?, true)),
    }
}

/// A private network that nothing here leads to.
fn free_network(routes: &[(String, String, String)]) -> Result<(Ipv4Addr, u8), CommandError> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
    let is_free = |wish: Ipv4Addr| {
        let taken = |(_, to, mask): &(String, String, String)| {
            let (Some(to), Some(mask)) = (number(to), number(mask)) else {
                return false;
            };
            let ours = u32::MAX << (32 - u32::from(CHOSEN_PREFIX));
            mask != 0 && (u32::from(wish) & mask & ours) == (to & mask & ours)
        };
        !routes.iter().any(taken)
    };
    (FIRST_CHOICE..=254)
        .map(|second| Ipv4Addr::new(10, second, 0, 1))
        .find(|wish| is_free(*wish))
        .map(|address| (address, CHOSEN_PREFIX))
        .ok_or_else(|| {
            CommandError::new("no private network is free on this machine")
                .hint("say which: --address 10.77.0.1/24")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: &str, mask: &str) -> (String, String, String) {
        ("eth0".into(), to.into(), mask.into())
    }

    #[test]
    fn a_network_that_is_used_is_not_chosen() {
        let chosen = |routes: &[_]| free_network(routes).unwrap().0;
        assert_eq!(
            chosen(&[route("00000000", "00000000")]),
            Ipv4Addr::new(10, 77, 0, 1)
        );
        // 10.77.0.0/16, in the kernel's byte order.
        assert_eq!(
            chosen(&[route("00004D0A", "0000FFFF")]),
            Ipv4Addr::new(10, 78, 0, 1)
        );
        // 10.0.0.0/8 is everything that we would choose.
        assert!(free_network(&[route("0000000A", "000000FF")]).is_err());
    }

    #[test]
    fn an_address_without_bits_is_explained() {
        assert_eq!(network("10.1.0.1/16"), Ok((Ipv4Addr::new(10, 1, 0, 1), 16)));
        for text in ["10.1.0.1", "10.1/16", "10.1.0.1/33", ""] {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
