//! Names: what nodes ask, with the client that administrators have, and the resolver that most
//! heads have.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use wiglaf_boot::dns::Stream;
use wiglaf_wire::boot::{FromBoot, ToBoot};
use wiglaf_wire::names::{NameService, Resolver};

use super::Test;
use super::scene::{HEAD, ITS, Scene, settings, text, until};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "nodes_are_found_by_name",
        needs: &["dig"],
        run: nodes_are_found_by_name,
    },
    Test {
        name: "other_names_are_asked_of_the_heads_resolver",
        needs: &["dig"],
        run: other_names_are_asked_of_the_heads_resolver,
    },
    Test {
        name: "names_by_the_stub_of_systemd_resolved",
        needs: &["dig", "systemd-resolved", "unshare"],
        run: names_by_the_stub_of_systemd_resolved,
    },
    Test {
        name: "strangers_are_not_answered",
        needs: &["dig"],
        run: strangers_are_not_answered,
    },
    Test {
        name: "the_port_of_names_is_used_when_it_is_free",
        needs: &["dig"],
        run: the_port_of_names_is_used_when_it_is_free,
    },
    Test {
        name: "a_flood_of_questions_stops_nobody",
        needs: &["dig"],
        run: a_flood_of_questions_stops_nobody,
    },
];

/// The address that the outer world's name has.
const OUTER: &str = "192.0.2.7";
/// More than fits into a packet.
const MANY: u8 = 120;
/// In the head's namespace, as the stub of systemd-resolved is.
const STUB: &str = "127.0.0.53:53";
/// Another server, on the head's other wire.
const BEHIND: &str = "10.8.0.1:53";

fn told(servers: &[&str]) -> NameService {
    let servers = servers
        .iter()
        .map(|server| server.parse().expect("an address"));
    NameService {
        nodes: vec![
            ("n7".to_owned(), ITS.into()),
            ("n8".to_owned(), Ipv4Addr::new(10, 9, 0, 18).into()),
        ],
        head: "boss".to_owned(),
        domains: vec!["lab.example".to_owned()],
        servers: servers.collect(),
    }
}

fn name(scene: &mut Scene, names: Option<NameService>) {
    let head = scene.head.as_mut().expect("a head");
    let message = ToBoot::Names(names.map(Box::new));
    head.queue(&message, Vec::new()).expect("a message");
    head.wait_flushed().expect("a message");
}

/// With a machine that has its address.
fn scene(names: NameService) -> Scene {
    let mut scene = Scene::serving(settings());
    scene.give_address(ITS);
    name(&mut scene, Some(names));
    until(|| dig(&scene, "n7").contains("10.9.0.17").then_some(()));
    scene
}

fn dig(scene: &Scene, words: &str) -> String {
    let line = format!("dig @{HEAD} +short +tries=1 +time=4 {words}");
    text(&scene.on_machine(&line).stdout).trim().to_owned()
}

fn status(scene: &Scene, words: &str) -> String {
    let line = format!("dig @{HEAD} +tries=1 +time=6 {words}");
    let said = text(&scene.on_machine(&line).stdout);
    let status = said.split("status: ").nth(1).unwrap_or_default();
    status.split(',').next().unwrap_or_default().to_owned()
}

/// A name server in the head's namespace. It knows `www.example.org` and `big.example.org`, whose
/// answer it gives by TCP only.
fn serve_names(scene: &Scene, at: &str) {
    let at: SocketAddr = at.parse().expect("an address");
    let (packets, connections) = scene.inside_head(|| {
        let packets = UdpSocket::bind(at).expect("its port");
        (packets, TcpListener::bind(at).expect("its port"))
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = packets.recv_from(&mut buffer) {
            let answer = answer(&buffer[..count], false);
            // First what an intruder would say: another number.
            let mut false_one = answer.clone();
            false_one[0] ^= 0xff;
            let _ = packets.send_to(&false_one, from);
            let _ = packets.send_to(&answer, from);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut connection, _)) = connections.accept() {
            let mut stream = Stream::default();
            let mut buffer = [0; 2048];
            while let Ok(count @ 1..) = connection.read(&mut buffer) {
                stream.received(&buffer[..count]);
                while let Some(question) = stream.take() {
                    let answer = Stream::framed(&answer(&question, true)).expect("short enough");
                    // In two pieces, as the wire may have it.
                    let (one, two) = answer.split_at(answer.len() / 2);
                    let _ = connection.write_all(one);
                    std::thread::sleep(Duration::from_millis(20));
                    let _ = connection.write_all(two);
                }
            }
        }
    });
}

fn answer(question: &[u8], by_tcp: bool) -> Vec<u8> {
    let labels = |name: &str| -> Vec<u8> {
        let labels = name.split('.').flat_map(|label| {
            let length = u8::try_from(label.len()).expect("a label");
            [&[length], label.as_bytes()].concat()
        });
        labels.chain([0]).collect()
    };
    let end = 12
        + question[12..]
            .iter()
            .position(|byte| *byte == 0)
            .expect("a name")
        + 5;
    let asked = question[12..end - 4].to_ascii_lowercase();
    let kind = u16::from_be_bytes([question[end - 4], question[end - 3]]);
    let addresses: Vec<[u8; 4]> = match kind {
        1 if asked == labels("www.example.org") => vec![[192, 0, 2, 7]],
        1 if asked == labels("big.example.org") && by_tcp => {
            (0..MANY).map(|last| [198, 51, 100, last]).collect()
        }
        _ => Vec::new(),
    };
    let is_long = asked == labels("big.example.org") && !by_tcp;
    let is_known = asked.ends_with(&labels("example.org")) || asked.ends_with(b"\x09localhost\0");
    let mut bytes = question[..end].to_vec();
    bytes[2] = 0x81 | if is_long { 2 } else { 0 };
    bytes[3] = 0x80 | if is_known { 0 } else { 3 };
    bytes[6..12].copy_from_slice(&[0, u8::try_from(addresses.len()).expect("few"), 0, 0, 0, 0]);
    for address in addresses {
        bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend_from_slice(&address);
    }
    bytes
}

fn nodes_are_found_by_name() {
    let scene = scene(told(&[]));
    for name in ["n7", "N7.LAB.example", "n7.lab.example +tcp"] {
        assert_eq!(dig(&scene, name), "10.9.0.17", "{name}");
    }
    assert_eq!(dig(&scene, "n8 +noedns"), "10.9.0.18");
    assert_eq!(dig(&scene, "boss"), HEAD.to_string());
    assert_eq!(dig(&scene, "-x 10.9.0.18"), "n8.");
    assert_eq!(dig(&scene, "-x 10.9.0.1"), "boss.");
    assert_eq!(dig(&scene, "n7 AAAA"), "");
    assert_eq!(status(&scene, "n7 AAAA"), "NOERROR");
    // There is nobody to ask.
    assert_eq!(status(&scene, "www.example.org"), "SERVFAIL");
    assert_eq!(status(&scene, "www.example.org +tcp"), "SERVFAIL");
    assert_eq!(status(&scene, "n7 +opcode=update"), "NOTIMP");
}

fn other_names_are_asked_of_the_heads_resolver() {
    let scene = scene(told(&["127.0.0.98:53", STUB]));
    serve_names(&scene, STUB);
    // The first server is not there.
    assert_eq!(dig(&scene, "www.example.org"), OUTER);
    assert_eq!(dig(&scene, "www.example.org +tcp"), OUTER);
    assert_eq!(status(&scene, "nobody.example.com"), "NXDOMAIN");
    // dig asks again by TCP, as every resolver does.
    for words in ["big.example.org", "big.example.org +noedns"] {
        let said = dig(&scene, words);
        assert_eq!(said.lines().count(), usize::from(MANY), "{words}: {said}");
    }
    // By the C library, in a mount namespace of its own.
    let script = format!(
        "mount --make-rprivate / && echo 'nameserver {HEAD}\nsearch lab.example' >resolv && \
         mount --bind resolv /etc/resolv.conf && getent ahostsv4 www.example.org && \
         getent ahostsv4 n8"
    );
    let said = scene.on_machine_with("unshare", &["--mount", "sh", "-c", &script]);
    let said = format!("{}{}", text(&said.stdout), text(&said.stderr));
    assert!(said.contains(OUTER) && said.contains("10.9.0.18"), "{said}");
}

fn names_by_the_stub_of_systemd_resolved() {
    let scene = scene(told(&[STUB]));
    serve_names(&scene, BEHIND);
    let Some(_resolved) = resolved(&scene) else {
        return;
    };
    // What it writes for others is what the head reads.
    let stub = scene.path("stub-resolv.conf");
    let stub = until(|| std::fs::read(&stub).ok().filter(|text| !text.is_empty()));
    let resolver = Resolver::parse(&stub);
    assert_eq!(
        resolver.servers,
        [STUB.parse::<SocketAddr>().expect("it").ip()]
    );
    assert!(resolver.is_for_itself());
    until(|| (dig(&scene, "www.example.org") == OUTER).then_some(()));
    assert_eq!(dig(&scene, "www.example.org +tcp"), OUTER);
    assert_eq!(dig(&scene, "n7"), "10.9.0.17");
    assert_eq!(status(&scene, "nobody.example.org"), "NOERROR");
    let said = dig(&scene, "big.example.org");
    assert_eq!(said.lines().count(), usize::from(MANY), "{said}");
}

struct Resolved(Child);

impl Drop for Resolved {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it on the head, without systemd or D-Bus.
fn resolved(scene: &Scene) -> Option<Resolved> {
    let log = scene.path("resolved.log");
    let script = format!(
        "set -e\n\
         mount --make-rprivate /\n\
         chmod 755 {directory}\n\
         mount -t tmpfs tmpfs /run\n\
         mkdir -p /run/systemd/resolved.conf.d\n\
         cat >/run/systemd/resolved.conf.d/test.conf <<END\n\
         [Resolve]\nDNS=10.8.0.1\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n\
         END\n\
         export SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console\n\
         (until [ -s /run/systemd/resolve/stub-resolv.conf ]; do sleep 0.1; done\n\
         cat /run/systemd/resolve/stub-resolv.conf >{directory}/stub-resolv.conf) &\n\
         export PATH=/usr/lib/systemd:/lib/systemd:$PATH\n\
         exec systemd-resolved\n",
        directory = scene.path("").display()
    );
    let output = std::fs::File::create(&log).expect("a log");
    let child = scene.inside_head(|| {
        Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output)
            .spawn()
            .expect("unshare")
    });
    let mut resolved = Resolved(child);
    let is_up = until(|| {
        let listens = text(&scene.on_head("ss -Hlun").stdout).contains("127.0.0.53%lo:53");
        let has_ended = matches!(resolved.0.try_wait(), Ok(Some(_)));
        (listens || has_ended).then_some(listens)
    });
    if is_up {
        return Some(resolved);
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().last().unwrap_or_default();
    super::say(&format!(
        "SKIPPED: systemd-resolved does not start here: {last}"
    ));
    None
}

fn strangers_are_not_answered() {
    let mut scene = scene(told(&[STUB]));
    serve_names(&scene, STUB);
    let add = |address: &str| {
        let line = format!("ip address add {address}/24 dev eth0");
        assert!(scene.on_machine(&line).status.success());
    };
    add("10.9.0.200");
    add("10.9.0.18");
    // One of the pool, which a machine that nobody knows has (B2).
    for words in ["n7", "www.example.org", "n7 +tcp"] {
        let said = dig(&scene, &format!("-b 10.9.0.200 +time=1 {words}"));
        assert!(
            !said.contains("10.9.0.17") && !said.contains(OUTER),
            "{said}"
        );
    }
    // A node that nobody has adopted here: it has an address by another server.
    assert_eq!(dig(&scene, "-b 10.9.0.18 www.example.org"), OUTER);
    name(&mut scene, None);
    until(|| (!dig(&scene, "+time=1 n7").contains("10.9.0.17")).then_some(()));
    let said = text(&scene.on_head("ss -Hltun").stdout);
    assert!(!said.contains("10.9.0.1%wire:53"), "{said}");
}

fn the_port_of_names_is_used_when_it_is_free() {
    let mut scene = Scene::serving(settings());
    scene.give_address(ITS);
    let taken = scene.inside_head(|| UdpSocket::bind((HEAD, 53)).expect("the port"));
    name(&mut scene, Some(told(&[])));
    let message = scene.wait(|message| matches!(message, FromBoot::Problem { .. }));
    let FromBoot::Problem { interface, text } = message else {
        panic!("{message:?}");
    };
    assert_eq!(interface.as_deref(), Some("wire"));
    assert!(
        text.starts_with("UDP port 53 of 10.9.0.1 is taken"),
        "{text}"
    );
    drop(taken);
    until(|| (dig(&scene, "+time=1 n7") == "10.9.0.17").then_some(()));
}

fn a_flood_of_questions_stops_nobody() {
    // A server that says nothing.
    let scene = scene(told(&[STUB]));
    let silent = scene.inside_head(|| UdpSocket::bind(STUB).expect("its port"));
    let question = [
        0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'w', b'w', 1, b'x', 0, 0, 1, 0, 1,
    ];
    scene.inside(|| {
        let socket = UdpSocket::bind((ITS, 0)).expect("a socket");
        for number in 0..3_000_u16 {
            let mut question = question;
            question[..2].copy_from_slice(&number.to_be_bytes());
            // What does not fit is lost.
            let _ = socket.send_to(&question, (HEAD, 53));
        }
    });
    assert_eq!(dig(&scene, "n8"), "10.9.0.18");
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", scene.pid())).expect("its files");
    assert!(sockets.count() < 200, "one address has them all");
    drop(silent);
    serve_names(&scene, STUB);
    until(|| (dig(&scene, "www.example.org") == OUTER).then_some(()));
}
