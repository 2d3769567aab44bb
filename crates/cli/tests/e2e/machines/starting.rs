//! Machines that start from the network, as far as a few packets show.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::{Machine, ip, refused, start_head};
use crate::cluster::{Cluster, output_of, text, wait_for};

/// After a file has changed it is left alone for so long.
const SETTLE: Duration = Duration::from_millis(2_100);

/// A client: `start MAC` asks for an address as iPXE does and takes it, `renew MAC ADDRESS` asks
/// as a running node's `/init` whether it still has it. Prints the answers' types and addresses.
const CLIENT: &str = r#"
import socket, struct, sys
what, mac = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", ""))
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"far0")
wire.bind(("", 68))
wire.settimeout(2)

def ask(kind, options, client="0.0.0.0"):
    packet = struct.pack(">BBBBIHH4s12s16s192s", 1, 1, 6, 0, 4711, 0, 0x8000,
                         socket.inet_aton(client), b"", mac, b"")
    packet += bytes([99, 130, 83, 99, 53, 1, kind]) + options + bytes([255])
    # Nobody is answered before other servers have been looked for.
    for attempt in range(10):
        wire.sendto(packet.ljust(300, b"\0"), ("255.255.255.255", 67))
        try:
            answer = wire.recv(2048)
            break
        except socket.timeout:
            pass
    else:
        sys.exit("no answer")
    at, kind, server = 240, 0, b""
    while answer[at] != 255:
        if answer[at] == 53: kind = answer[at + 2]
        if answer[at] == 54: server = answer[at + 2:at + 6]
        at += 2 + answer[at + 1] if answer[at] else 1
    address = answer[16:20]
    print(kind, socket.inet_ntoa(address))
    return address, server

if what == "start":
    ipxe = bytes([175, 0])
    address, server = ask(1, ipxe)
    ask(3, ipxe + bytes([50, 4]) + address + bytes([54, 4]) + server)
else:
    ask(3, bytes([60, 6]) + b"wiglaf", sys.argv[3])
"#;

const ACK: &str = "5";
const NAK: &str = "6";

impl Machine {
    /// Its last answer.
    fn asks(&self, words: &[&str]) -> (String, Ipv4Addr) {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.space, "python3", "-c", CLIENT])
            .args(words)
            .stdin(Stdio::null());
        let output = output_of(command);
        let said = text(&output.stdout);
        let last = said.lines().last();
        let (kind, address) = last
            .and_then(|line| line.split_once(' '))
            .unwrap_or_else(|| panic!("{words:?}: {said}{}", text(&output.stderr)));
        (kind.to_owned(), address.parse().unwrap())
    }
}

fn names(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.json(&["nodes", "--json"]);
    let nodes = nodes.as_array().unwrap().iter();
    nodes
        .map(|node| node["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn rules_may_change_while_machines_start_and_who_is_forgotten_loses_its_address() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let (_head, cluster) = start_head(&machine, "");
    // No machine that starts has an address, and the head gives its interface another.
    ip(&format!("-n {} address flush dev far0", machine.space));
    ip(&format!("address flush dev {}", machine.cable));
    let [_, _, a, b] = machine.head.octets();
    let address = format!("10.{}.{b}.1/24", 100 + a % 100);
    let cable = &machine.cable;
    cluster.ok(&[
        "boot",
        "enable",
        "--interface",
        cable,
        "--address",
        &address,
    ]);
    let is_serving = || cluster.json(&["boot", "status", "--json"])["serving"] == true;
    wait_for("the boot service", is_serving, || {
        cluster.ok(&["boot", "status"])
    });

    let [first, second, third] = [
        "52:54:00:00:00:01",
        "52:54:00:00:00:02",
        "52:54:00:00:00:03",
    ];
    machine.asks(&["start", first]);
    assert!(names(&cluster).is_empty(), "nobody has said so");
    let path = cluster.dir.join("state/wiglaf.toml");
    let before = fs::read_to_string(&path).unwrap();
    let configure = |more: &str| {
        fs::write(&path, format!("{before}{more}")).unwrap();
        sleep(SETTLE);
    };
    let image = cluster.dir.join("state/images/gpu-abc1");
    fs::create_dir_all(&image).unwrap();
    fs::write(image.join("kernel"), "").unwrap();
    configure("[[boot.adopt]]\nmac = \"52:54:00:*\"\nname = \"gpu%d\"\nimage = \"gpu\"\n");
    machine.asks(&["start", second]);
    wait_for(
        "its adoption",
        || names(&cluster) == ["gpu1"],
        || cluster.ok(&["boot", "status"]),
    );
    let boots = || cluster.json(&["node", "why", "gpu1", "--json"])["image"].clone();
    assert_eq!(boots(), "gpu-abc1");
    cluster.ok(&["image", "use", "--unset", "--nodes", "gpu1"]);
    assert!(
        boots().is_null(),
        "it has no group, and nothing is said of all"
    );
    let unset = cluster.wiglaf(&["image", "use", "--unset", "--group", "gpu"]);
    refused(&unset, "no image was chosen for the group gpu");
    // Whatever somebody does to the file, machines go on starting.
    configure("[boot]\nadopt = 3\n");
    machine.asks(&["start", third]);
    let both = ["gpu1", "gpu2"];
    wait_for("its adoption", || names(&cluster).len() == 2, String::new);
    let mut found = names(&cluster);
    found.sort();
    assert_eq!(found, both);
    let status = cluster.ok(&["boot", "status"]);
    assert!(status.contains("Until that is put right"), "{status}");
    fs::remove_file(&path).unwrap();
    sleep(SETTLE);
    cluster.ok(&["boot", "status"]);
    configure("");

    let (kind, own) = machine.asks(&["start", second]);
    assert_eq!(kind, ACK);
    let add = |own: Ipv4Addr| {
        ip(&format!(
            "-n {} address add {own}/24 dev far0",
            machine.space
        ));
    };
    add(own);
    let renew = ["renew", second, &own.to_string()];
    assert_eq!(machine.asks(&renew), (ACK.to_owned(), own));
    cluster.ok(&["node", "forget", "gpu1"]);
    wait_for("its refusal", || machine.asks(&renew).0 == NAK, String::new);
    // Others keep theirs.
    let (kind, own) = machine.asks(&["start", third]);
    add(own);
    let renew = ["renew", third, &own.to_string()];
    assert_eq!((kind.as_str(), machine.asks(&renew).0.as_str()), (ACK, ACK));
    cluster.ok(&["boot", "disable", "--interface", cable]);
    cluster.down();
}
