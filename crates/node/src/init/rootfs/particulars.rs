//! What one machine of many that have the same system has of its own: its name, its identity, and
//! that its network is taken care of.

use std::fs;
use std::io;
use std::path::Path;

use ring::digest::{SHA256, digest};
use wiglaf_wire::boot::Mac;

use crate::init::journal::Journal;
use crate::init::network::Home;

/// Writes all of it. What can't be written the system does without.
pub(super) fn write(root: &Path, home: &Home, journal: &mut Journal) {
    let mut files = vec![("etc/machine-id", machine_id(home.mac))];
    if let Some(name) = &home.host_name {
        // An image's own would be the same on all machines, mostly that of who made it.
        files.push(("etc/hostname", format!("{name}\n")));
    }
    if !home.name_servers.is_empty() && !is_there(&root.join("etc/resolv.conf")) {
        let lines = home.name_servers.iter();
        let lines = lines.map(|server| format!("nameserver {server}\n"));
        files.push(("etc/resolv.conf", lines.collect()));
    }
    for (name, text) in files {
        if let Err(error) = replace(&root.join(name), &text) {
            journal.say(format_args!("can't write the system's /{name}: {error}"));
        }
    }
}

/// What keeps others' hands off the card by which the machine was booted: for systemd's udev,
/// which would give it another name, for its networkd, and for NetworkManager. `run` is the
/// system's.
pub(super) fn keep_card(run: &Path, home: &Home) -> io::Result<()> {
    let (mac, card) = (home.mac, &home.card);
    let made = "# By wiglaf: this card's address is that of the node.\n";
    let matched = format!("{made}[Match]\nMACAddress={mac}\n\n");
    let files = [
        (
            "systemd/network/00-wiglaf.link",
            format!("{matched}[Link]\nName={card}\n"),
        ),
        (
            "systemd/network/00-wiglaf.network",
            format!("{matched}[Link]\nUnmanaged=yes\n"),
        ),
        (
            "NetworkManager/conf.d/00-wiglaf.conf",
            format!("{made}[keyfile]\nunmanaged-devices=mac:{mac}\n"),
        ),
    ];
    for (name, text) in files {
        let path = run.join(name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

/// The same each time that the machine starts, and no other's (machine-id(5)).
fn machine_id(mac: Mac) -> String {
    let digest = digest(&SHA256, format!("wiglaf machine {mac}").as_bytes());
    let mut bytes: Vec<u8> = digest.as_ref().iter().take(16).copied().collect();
    // As a random UUID has it.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits + "\n"
}

/// A link that leads nowhere yet is there, too: systemd-resolved makes what it leads to.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Not through a link, which would lead out of that root.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn home() -> Home {
        Home {
            card: "eth0".into(),
            mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
            address: "10.7.0.11".parse().unwrap(),
            head: "10.7.0.1:7494".parse().unwrap(),
            boot: None,
            host_name: Some("n7".into()),
            name_servers: vec!["10.7.0.1".parse().unwrap()],
        }
    }

    #[test]
    fn a_machine_has_its_own_name_and_identity() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("etc")).unwrap();
        fs::write(at("etc/hostname"), "builder\n").unwrap();
        fs::write(at("elsewhere"), "kept").unwrap();
        symlink(at("elsewhere"), at("etc/machine-id")).unwrap();
        let mut journal = Journal::default();
        write(root.path(), &home(), &mut journal);
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!(read("etc/hostname"), "n7\n");
        assert_eq!(read("etc/resolv.conf"), "nameserver 10.7.0.1\n");
        assert_eq!(read("elsewhere"), "kept");
        let id = read("etc/machine-id");
        assert!(id.len() == 33 && id.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(id, machine_id(Mac([0x52, 0x54, 0, 0, 0, 2])));

        fs::write(at("etc/resolv.conf"), "nameserver 9.9.9.9\n").unwrap();
        write(root.path(), &home(), &mut journal);
        assert_eq!(read("etc/resolv.conf"), "nameserver 9.9.9.9\n");
        assert_eq!(read("etc/machine-id"), id);
    }

    #[test]
    fn the_card_is_left_to_us() {
        let run = tempfile::tempdir().unwrap();
        keep_card(run.path(), &home()).unwrap();
        let path = run.path().join("systemd/network/00-wiglaf.network");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("MACAddress=52:54:00:00:00:01\n") && text.contains("Unmanaged=yes"));
    }
}
