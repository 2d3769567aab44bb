//! DHCP by the clients that Linux machines have, and by hand where it is firmware's.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use wiglaf_boot::dhcp::packet::{Operation, Packet};
use wiglaf_linux::raw_socket::bind_to_device;
use wiglaf_wire::boot::{FromBoot, Mac, Stage};

use super::Test;
use super::scene::{HEAD, ITS, MAC, Scene, proxy, settings, text};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "udhcpc_gets_the_machines_address",
        needs: &["udhcpc"],
        run: udhcpc_gets_the_machines_address,
    },
    Test {
        name: "dhclient_gets_the_machines_address",
        needs: &["dhclient"],
        run: dhclient_gets_the_machines_address,
    },
    Test {
        name: "a_bootp_client_gets_the_machines_address_and_what_to_boot",
        needs: &["bootpc"],
        run: a_bootp_client_gets_the_machines_address_and_what_to_boot,
    },
    Test {
        name: "a_stranger_that_does_not_boot_gets_nothing",
        needs: &["udhcpc"],
        run: a_stranger_that_does_not_boot_gets_nothing,
    },
    Test {
        name: "a_strangers_address_is_its_own_after_a_crash",
        needs: &[],
        run: a_strangers_address_is_its_own_after_a_crash,
    },
    Test {
        name: "another_server_is_noticed_and_left_alone",
        needs: &["dnsmasq"],
        run: another_server_is_noticed_and_left_alone,
    },
    Test {
        name: "another_server_is_noticed_when_the_cable_is_put_in",
        needs: &["dnsmasq"],
        run: another_server_is_noticed_when_the_cable_is_put_in,
    },
    Test {
        name: "beside_another_server_we_only_say_what_to_boot",
        needs: &["udhcpc"],
        run: beside_another_server_we_only_say_what_to_boot,
    },
];

/// What a client's script was told.
fn write_script(scene: &Scene, variables: &str) {
    let path = scene.path("script");
    let log = scene.path("log");
    let text = format!("#!/bin/sh\necho \"$1 {variables}\" >>{}\n", log.display());
    std::fs::write(&path, text).expect("a script");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("a mode");
}

fn log_of(scene: &Scene) -> String {
    std::fs::read_to_string(scene.path("log")).unwrap_or_default()
}

fn udhcpc(scene: &Scene) -> bool {
    let script = scene.path("script");
    let line = format!("udhcpc -i eth0 -f -n -q -t 3 -T 1 -s {}", script.display());
    scene.on_machine(&line).status.success()
}

fn udhcpc_gets_the_machines_address() {
    let mut scene = Scene::serving(settings());
    write_script(&scene, "$ip $subnet $siaddr $hostname");
    assert!(udhcpc(&scene));
    let log = log_of(&scene);
    assert!(
        log.contains(&format!("bound {ITS} 255.255.255.0 ")),
        "{log}"
    );
    assert!(log.contains(" n7"), "{log}");
    scene.wait_stage(MAC, Stage::Addressed);
    scene.end();
}

fn dhclient_gets_the_machines_address() {
    let mut scene = Scene::serving(settings());
    write_script(&scene, "$reason $new_ip_address $new_subnet_mask");
    let path = |name| scene.path(name).display().to_string();
    let line = format!(
        "dhclient -4 -1 -d -q -lf {} -pf {} -cf /dev/null -sf {} eth0",
        path("leases"),
        path("pid"),
        path("script")
    );
    // With -d it stays until it is stopped.
    let client = scene.beside(&line);
    super::scene::until(|| {
        let log = log_of(&scene);
        log.contains(&format!("BOUND {ITS} 255.255.255.0"))
            .then_some(())
    });
    drop(client);
    scene.wait_stage(MAC, Stage::Addressed);
}

/// It knows nothing that is newer than RFC 951, and prints what it was told for a shell.
fn a_bootp_client_gets_the_machines_address_and_what_to_boot() {
    let mut scene = Scene::serving(settings());
    let route = scene.on_machine("ip route add default dev eth0");
    assert!(route.status.success(), "{}", text(&route.stderr));
    let line = "bootpc --dev eth0 --serverbcast --timeoutwait 5 --returniffail";
    let told = scene.on_machine(line);
    let said = format!("{}{}", text(&told.stdout), text(&told.stderr));
    assert!(said.contains(&format!("IPADDR='{ITS}'")), "{said}");
    assert!(said.contains("BOOTFILE='undionly.kpxe'"), "{said}");
    scene.wait_stage(MAC, Stage::Addressed);
    scene.set_mac(Mac([2, 0, 0, 0, 0, 9]));
    let stranger = scene.on_machine(line);
    assert!(!text(&stranger.stdout).contains("IPADDR"));
}

fn a_stranger_that_does_not_boot_gets_nothing() {
    let scene = Scene::serving(settings());
    scene.set_mac(Mac([2, 0, 0, 0, 0, 9]));
    write_script(&scene, "$ip");
    assert!(!udhcpc(&scene));
    assert!(!log_of(&scene).contains("bound"));
}

/// Firmware's exchange, as iPXE makes it; returns the address and the boot file.
fn boot(scene: &Scene, mac: Mac) -> Option<(Ipv4Addr, String)> {
    scene.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:68").expect("port 68");
        bind_to_device(&socket, "eth0").expect("eth0");
        socket.set_broadcast(true).expect("broadcast");
        let time = Some(Duration::from_millis(500));
        socket.set_read_timeout(time).expect("a time-out");
        let ask = |kind: u8, had: Option<(Ipv4Addr, Ipv4Addr)>| {
            let mut packet = Packet::new(Operation::Request, 7 + u32::from(kind), mac);
            packet.broadcast = true;
            packet.options.set(53, [kind]);
            packet.options.set(60, *b"PXEClient:Arch:00000:UNDI:002001");
            packet.options.set(77, *b"iPXE");
            packet.options.set(93, [0, 0]);
            packet.options.set(175, [0xb1, 1, 2]);
            if let Some((address, server)) = had {
                packet.options.set(50, address.octets());
                packet.options.set(54, server.octets());
            }
            for _ in 0..4 {
                let bytes = packet.emit(1500);
                socket.send_to(&bytes, "255.255.255.255:67").expect("sent");
                let mut buffer = [0; 1500];
                while let Ok(count) = socket.recv(&mut buffer) {
                    let reply = Packet::parse(&buffer[..count]).expect("a packet");
                    if reply.transaction == packet.transaction {
                        return Some(reply);
                    }
                }
            }
            None
        };
        let offer = ask(1, None)?;
        let server = offer.options.address(54).expect("a server");
        let reply = ask(3, Some((offer.your, server)))?;
        assert_eq!(reply.options.byte(53), Some(5), "{reply:?}");
        let file = match reply.options.get(67) {
            Some(file) => text(file),
            None => text(&reply.file),
        };
        Some((reply.your, file))
    })
}

fn a_strangers_address_is_its_own_after_a_crash() {
    let stranger = |last| Mac([2, 0, 0, 0, 0, last]);
    let mut scene = Scene::serving(settings());
    let (first, file) = boot(&scene, stranger(1)).expect("an address");
    assert_eq!(file, script_of(stranger(1)));
    assert!((200..204).contains(&first.octets()[3]), "{first}");
    scene.wait_stage(stranger(1), Stage::Addressed);
    scene.kill();
    scene.start();
    scene.configure(settings());
    scene.wait(|message| matches!(message, FromBoot::Ready { .. }));
    // Three are left for others, and it gets its own again.
    let mut given: Vec<_> = (2..5)
        .map(|last| boot(&scene, stranger(last)).expect("an address").0)
        .collect();
    assert!(!given.contains(&first));
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 3);
    assert_eq!(boot(&scene, stranger(5)), None);
    assert_eq!(boot(&scene, stranger(1)).expect("an address").0, first);
    // The pool is dry, and the adopted machine does not notice (B1).
    assert_eq!(boot(&scene, MAC).expect("an address").0, ITS);
}

fn script_of(mac: Mac) -> String {
    let mac = mac.to_string().replace(':', "-");
    format!("http://{HEAD}:8069/script/{mac}")
}

fn dnsmasq(scene: &Scene) -> super::scene::Running {
    scene.give_address(Ipv4Addr::new(10, 9, 0, 2));
    scene.beside(
        "dnsmasq -k -C /dev/null -p 0 --interface=eth0 --bind-interfaces \
         --dhcp-range=10.9.0.50,10.9.0.60,1h --dhcp-leasefile=/dev/null --user=root",
    )
}

fn another_server_is_noticed_and_left_alone() {
    let mut scene = Scene::new();
    let other = dnsmasq(&scene);
    std::thread::sleep(Duration::from_millis(500));
    scene.start();
    scene.configure(settings());
    let told = scene.wait(|message| matches!(message, FromBoot::Problem { .. }));
    let FromBoot::Problem { interface, text } = told else {
        panic!("{told:?}");
    };
    assert_eq!(interface.as_deref(), Some("wire"));
    assert!(
        text.contains("another DHCP server answers on wire: 10.9.0.2"),
        "{text}"
    );
    assert!(text.contains("--proxy"), "{text}");
    let silent = |message: &FromBoot| match message {
        FromBoot::Ready { silent, .. } => Some(silent.clone()),
        _ => None,
    };
    let known = vec![("wire".to_owned(), Ipv4Addr::new(10, 9, 0, 2))];
    scene.wait(|message| silent(message) == Some(known.clone()));
    // It is asked again, and is still there; nobody is answered meanwhile, and nothing is told.
    scene.configure(settings());
    let next = scene.wait(|message| !matches!(message, FromBoot::Seen(_)));
    assert_eq!(silent(&next), Some(known), "{next:?}");
    // Now it is gone.
    drop(other);
    scene.configure(settings());
    scene.wait(|message| {
        matches!(message, FromBoot::Problem { text, .. } if text.contains("answers no more"))
    });
    scene.wait(|message| silent(message) == Some(Vec::new()));
    assert_eq!(boot(&scene, MAC).expect("an address").0, ITS);
}

fn another_server_is_noticed_when_the_cable_is_put_in() {
    let mut scene = Scene::new();
    let link = |scene: &Scene, state: &str| {
        let set = scene.on_machine(&format!("ip link set eth0 {state}"));
        assert!(set.status.success());
    };
    // It has to be there when the cable is: it is asked then, and not again.
    let _other = dnsmasq(&scene);
    std::thread::sleep(Duration::from_millis(500));
    link(&scene, "down");
    scene.serve(settings());
    // Nobody was there to answer. Now somebody is.
    std::thread::sleep(Duration::from_millis(2_500));
    link(&scene, "up");
    scene.wait(|message| {
        let FromBoot::Problem { text, .. } = message else {
            return false;
        };
        text.contains("another DHCP server answers on wire: 10.9.0.2")
    });
}

fn beside_another_server_we_only_say_what_to_boot() {
    let mut scene = Scene::new();
    scene.start();
    scene.configure(proxy());
    scene.wait(|message| matches!(message, FromBoot::Ready { .. }));
    write_script(&scene, "$ip");
    // We give no address, whoever asks.
    assert!(!udhcpc(&scene));
    assert_eq!(boot_file_by_proxy(&scene), script_of(MAC));
}

/// What the answer to a DISCOVER says.
fn boot_file_by_proxy(scene: &Scene) -> String {
    scene.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:68").expect("port 68");
        bind_to_device(&socket, "eth0").expect("eth0");
        socket.set_broadcast(true).expect("broadcast");
        let time = Some(Duration::from_secs(2));
        socket.set_read_timeout(time).expect("a time-out");
        let mut packet = Packet::new(Operation::Request, 99, MAC);
        packet.broadcast = true;
        packet.options.set(53, [1]);
        packet.options.set(60, *b"PXEClient:Arch:00000:UNDI:002001");
        packet.options.set(77, *b"iPXE");
        packet.options.set(93, [0, 0]);
        packet.options.set(175, [0xb1, 1, 2]);
        let bytes = packet.emit(1500);
        socket.send_to(&bytes, "255.255.255.255:67").expect("sent");
        let mut buffer = [0; 1500];
        let count = socket.recv(&mut buffer).expect("an answer");
        let reply = Packet::parse(&buffer[..count]).expect("a packet");
        assert!(reply.your.is_unspecified());
        match reply.options.get(67) {
            Some(file) => text(file),
            None => text(&reply.file),
        }
    })
}
