//! What the service may do, where it answers, and what it tells when it can't.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};
use wiglaf_linux::raw_socket::{hear_only_icmp6, receive_with_hop_limit};
use wiglaf_wire::boot::FromBoot;

use super::scene::{HEAD, HTTP_PORT, ITS, Scene, settings, text, until};
use super::{ACCOUNT, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "it_has_the_rights_of_nobody",
        needs: &[],
        run: it_has_the_rights_of_nobody,
    },
    Test {
        name: "nothing_answers_on_another_interface",
        needs: &["ss", "udhcpc"],
        run: nothing_answers_on_another_interface,
    },
    Test {
        name: "who_asks_for_an_ipv6_router_is_told_that_there_is_none",
        needs: &["sysctl"],
        run: who_asks_for_an_ipv6_router_is_told_that_there_is_none,
    },
    Test {
        name: "a_port_that_is_taken_is_told_and_used_when_it_is_free",
        needs: &[],
        run: a_port_that_is_taken_is_told_and_used_when_it_is_free,
    },
    Test {
        name: "interfaces_come_and_go",
        needs: &["udhcpc"],
        run: interfaces_come_and_go,
    },
];

fn it_has_the_rights_of_nobody() {
    let scene = Scene::serving(settings());
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.pid())).expect("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.expect(name).split_ascii_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let account = ACCOUNT.to_string();
    assert!(field("Uid:").iter().all(|id| *id == account));
    assert!(field("Gid:").iter().all(|id| *id == account));
    assert!(field("Groups:").is_empty());
    // CAP_NET_BIND_SERVICE and CAP_NET_RAW.
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(set), ["0000000000002400"], "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Threads:"), ["1"]);
    assert_eq!(field("Name:"), ["wiglaf"]);
}

fn nothing_answers_on_another_interface() {
    let scene = Scene::serving(settings());
    let said = text(&scene.on_head("ss -Hltun").stdout);
    assert!(said.lines().count() >= 4, "{said}");
    for line in said.lines() {
        assert!(line.contains("%wire:"), "{line}");
    }
    // The head's address on the served wire, by the other cable.
    assert!(
        scene
            .on_machine("ip address add 10.8.0.2/24 dev eth1")
            .status
            .success()
    );
    let route = format!("ip route add {HEAD}/32 via 10.8.0.1 dev eth1");
    assert!(scene.on_machine(&route).status.success());
    scene.inside(|| {
        let address = SocketAddrV4::new(HEAD, HTTP_PORT).into();
        TcpStream::connect_timeout(&address, Duration::from_millis(700)).expect_err("closed");
    });
    let said = scene.on_machine("udhcpc -i eth1 -f -n -q -t 2 -T 1 -s /bin/true");
    assert!(!said.status.success());
}

fn who_asks_for_an_ipv6_router_is_told_that_there_is_none() {
    let scene = Scene::new();
    let quick = |name| format!("sysctl -qw net.ipv6.conf.{name}.accept_dad=0");
    let made = scene.on_head(&quick("wire")).status.success()
        && scene.on_machine(&quick("eth0")).status.success();
    if !made {
        return super::say("SKIPPED: there is no IPv6 here");
    }
    let mut scene = scene;
    scene.set_mac(super::scene::MAC);
    scene.start();
    scene.configure(settings());
    scene.wait(|message| matches!(message, FromBoot::Ready { .. }));
    let (from, hop_limit) = scene.inside(|| {
        let protocol = Some(rustix::net::ipproto::ICMPV6);
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, protocol);
        let socket = socket.expect("a raw socket");
        let index = rustix::net::netdevice::name_to_index(&socket, "eth0").expect("eth0");
        hear_only_icmp6(&socket, 134).expect("a filter");
        sockopt::set_ipv6_multicast_hops(&socket, 255).expect("a hop limit");
        let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let to = SocketAddrV6::new(routers, 0, 0, index);
        // The address of the link may take a moment.
        until(|| {
            let ask = [133, 0, 0, 0, 0, 0, 0, 0];
            rustix::net::sendto(&socket, &ask, SendFlags::empty(), &to).ok()?;
            std::thread::sleep(Duration::from_millis(100));
            let mut buffer = [0; 64];
            let message = receive_with_hop_limit(&socket, &mut buffer).ok()?;
            // Lifetime 0, and no options.
            assert_eq!((message.length, &buffer[6..8]), (16, [0, 0].as_slice()));
            Some((message.from, message.hop_limit))
        })
    });
    assert!(from.is_unicast_link_local(), "{from}");
    assert_eq!(hop_limit, Some(255));
}

fn a_port_that_is_taken_is_told_and_used_when_it_is_free() {
    let mut scene = Scene::new();
    let other = scene.inside_head(|| UdpSocket::bind("0.0.0.0:67").expect("port 67"));
    scene.start();
    scene.configure(settings());
    let told = scene.wait(|message| matches!(message, FromBoot::Problem { .. }));
    let FromBoot::Problem { interface, text } = told else {
        panic!("{told:?}");
    };
    assert_eq!(interface.as_deref(), Some("wire"));
    assert!(text.contains("UDP port 67 on wire is taken"), "{text}");
    assert!(text.contains("ss -ulnp 'sport = :67'"), "{text}");
    drop(other);
    until(|| {
        let said = super::scene::text(&scene.on_head("ss -Hlun").stdout);
        said.contains("%wire:67 ").then_some(())
    });
    // It is not told again and again.
    let told = std::iter::from_fn(|| scene.next(Duration::from_millis(100)));
    let again = told.filter(|message| matches!(message, FromBoot::Problem { .. }));
    assert_eq!(again.count(), 0);
}

fn interfaces_come_and_go() {
    let mut scene = Scene::new();
    assert!(scene.on_head("ip link set wire down").status.success());
    assert!(
        scene
            .on_head("ip link set wire name early")
            .status
            .success()
    );
    scene.start();
    scene.configure(settings());
    let told = scene.wait(|message| matches!(message, FromBoot::Problem { .. }));
    assert!(matches!(told, FromBoot::Problem { text, .. } if text.contains("no interface wire")));
    assert!(
        scene
            .on_head("ip link set early name wire")
            .status
            .success()
    );
    // It is there, but down.
    scene.wait(
        |message| matches!(message, FromBoot::Problem { text, .. } if text.contains("ip link set wire up")),
    );
    assert!(scene.on_head("ip link set wire up").status.success());
    let asks = |scene: &Scene| {
        let line = "udhcpc -i eth0 -f -n -q -t 2 -T 1 -s /bin/true";
        scene.on_machine(line).status.success()
    };
    until(|| asks(&scene).then_some(()));
    // Somebody else's address there.
    let mut moved = settings();
    moved.interfaces[0].address = Ipv4Addr::new(10, 9, 0, 5);
    scene.configure(moved);
    let told = scene.wait(|message| matches!(message, FromBoot::Problem { .. }));
    assert!(
        matches!(&told, FromBoot::Problem { text, .. } if text.contains("address add 10.9.0.5/24")),
        "{told:?}"
    );
    // Nobody is served any more.
    let mut none = settings();
    none.interfaces.clear();
    scene.configure(none);
    scene.wait(|message| matches!(message, FromBoot::Ready { http, .. } if http.is_empty()));
    assert!(!asks(&scene));
    scene.give_address(ITS);
    let said = text(&scene.on_head("ss -Hltuwn").stdout);
    assert_eq!(said, "");
    scene.end();
}
