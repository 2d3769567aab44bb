//! The nodes' way to the outer world through the head: masquerade, and nothing inward (nft(8)).

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use wiglaf_wire::boot::BootInterface;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Is there while the kernel forwards because of us. The kernel forgets it at its next start, as
/// does the directory of what runs.
const OURS: &str = "forwarding";

/// What nft is told: our own table only, in place of what it was before.
fn rules(cluster: &str, outer: Option<&str>, wires: &[BootInterface]) -> String {
    let table = format!("inet wiglaf_{cluster}");
    let mut text = format!("table {table}\ndelete table {table}\n");
    let Some(outer) = outer else {
        return text;
    };
    let names: Vec<_> = wires
        .iter()
        .map(|wire| format!("\"{}\"", wire.name))
        .collect();
    if names.is_empty() {
        return text;
    }
    let names = names.join(", ");
    let networks: Vec<_> = wires.iter().map(network).collect();
    let networks = networks.join(", ");
    let _ = write!(
        text,
        "table {table} {{\n\
         chain forward {{ type filter hook forward priority 0; policy accept;\n\
         iifname {{ {names} }} oifname \"{outer}\" accept\n\
         oifname {{ {names} }} ct state established,related accept\n\
         iifname {{ {names} }} drop\n\
         oifname {{ {names} }} drop\n\
         }}\n\
         chain postrouting {{ type nat hook postrouting priority 100;\n\
         ip saddr {{ {networks} }} oifname \"{outer}\" masquerade\n\
         }}\n}}\n"
    );
    text
}

fn network(wire: &BootInterface) -> String {
    let size = u32::MAX
        .checked_shl(32 - u32::from(wire.prefix))
        .unwrap_or(0);
    let network = Ipv4Addr::from(u32::from(wire.address) & size);
    format!("{network}/{}", wire.prefix)
}

/// Brings the kernel's rules into the state that is wanted. `run` is the directory of what runs.
pub(super) fn apply(
    cluster: &str,
    outer: Option<&str>,
    wires: &[BootInterface],
    run: &Path,
) -> Result<(), String> {
    let ours = run.join(OURS);
    if outer.is_none() && ours.exists() {
        // Before the rules go: without them it would lead everywhere.
        forward("0")?;
        fs::remove_file(&ours).map_err(|error| format!("{}: {error}", ours.display()))?;
    }
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut nft = spawned.map_err(|error| {
        format!("nft can't be run ({error}): the gateway needs it; `apt-get install nftables`")
    })?;
    if let Some(mut input) = nft.stdin.take() {
        // If it does not read, its own words say why.
        let _ = input.write_all(rules(cluster, outer, wires).as_bytes());
    }
    let output = nft.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().next().unwrap_or("it says nothing");
        return Err(format!("nft did not take the gateway's rules: {first}"));
    }
    let is_off = fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "0");
    if outer.is_some() && is_off {
        fs::write(&ours, "").map_err(|error| format!("{}: {error}", ours.display()))?;
        // Only now: before, it would lead everywhere.
        forward("1")?;
    }
    Ok(())
}

fn forward(how: &str) -> Result<(), String> {
    fs::write(FORWARDING, how).map_err(|error| format!("{FORWARDING}: {error}"))
}

#[cfg(test)]
mod tests {
    use wiglaf_wire::boot::AddressService;

    use super::*;

    #[test]
    fn nothing_goes_inward_and_an_old_table_is_replaced() {
        let address = Ipv4Addr::new(10, 77, 0, 1);
        let wire = BootInterface {
            name: "eth1".into(),
            address,
            prefix: 24,
            service: AddressService::Full,
            unknown: (address, address),
            gateway: None,
        };
        let text = rules("ab12cd", Some("eth0"), std::slice::from_ref(&wire));
        assert!(text.starts_with("table inet wiglaf_ab12cd\ndelete table inet wiglaf_ab12cd\n"));
        assert!(text.contains("ip saddr { 10.77.0.0/24 } oifname \"eth0\" masquerade"));
        assert!(text.contains("oifname { \"eth1\" } drop"));
        assert!(!rules("ab12cd", None, &[wire]).contains("masquerade"));
    }
}
