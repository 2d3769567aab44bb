use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use proptest::prelude::*;
use wiglaf_wire::names::NameService;

use super::message::{self, TYPE_A, TYPE_AAAA, TYPE_PTR};
use super::*;

const HEAD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 17);
const ASKER: Asker = Asker {
    wire: 1,
    peer: SocketAddrV4::new(NODE, 4000),
};
const ID: u16 = 0x1234;
/// The number that a server sees.
const SECRET: u16 = 0xbeef;

fn names() -> Names {
    Names::new(&NameService {
        nodes: vec![
            ("n7".to_owned(), IpAddr::V4(NODE)),
            (
                "N8.rack".to_owned(),
                IpAddr::V4(Ipv4Addr::new(10, 9, 0, 18)),
            ),
            ("n9".to_owned(), "fd00::9".parse().unwrap()),
        ],
        head: "Boss".to_owned(),
        domains: vec!["lab.example".to_owned()],
        servers: servers().to_vec(),
    })
}

fn servers() -> [SocketAddr; 2] {
    ["127.0.0.53:53", "[::1]:53"].map(|text| text.parse().unwrap())
}

fn ask(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&1_u16.to_be_bytes());
    bytes
}

/// With a room of 4096 bytes.
fn with_edns(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[11] = 1;
    bytes.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// What a server says.
fn answer(query: &[u8], code: u8, length: usize) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[2] |= 0x80;
    bytes[3] = 0x80 | code;
    bytes.resize(bytes.len().max(length), 7);
    bytes
}

fn answers(message: &[u8]) -> (u8, u16) {
    (
        message[3] & 0xf,
        u16::from_be_bytes([message[6], message[7]]),
    )
}

fn query(relay: &mut Relay, now_ms: u64, message: &[u8]) -> Option<Effect> {
    let (names, servers) = (names(), servers());
    relay.query(now_ms, ASKER, message, (&names, &servers, HEAD), SECRET)
}

fn known(name: &str, kind: u16) -> Option<Vec<u8>> {
    match query(&mut Relay::default(), 0, &ask(name, kind))? {
        Effect::Answer(ASKER, bytes) => Some(bytes),
        Effect::Ask(..) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nodes_are_found_by_name_and_by_address() {
    for name in ["n7", "N7", "n7.lab.example", "N7.LAB.Example"] {
        let answer = known(name, TYPE_A).expect(name);
        assert_eq!(answers(&answer), (0, 1), "{name}");
        assert_eq!(answer[..2], ID.to_be_bytes());
        assert!(answer.ends_with(&[0, 4, 10, 9, 0, 17]), "{name}");
        assert_eq!(
            answers(&known(name, TYPE_AAAA).unwrap()),
            (0, 0),
            "no such address"
        );
    }
    assert!(known("n9", TYPE_AAAA).unwrap().ends_with(&[0, 0, 0, 0, 9]));
    assert!(known("n8.rack", TYPE_A).is_some());
    assert!(known("boss", TYPE_A).unwrap().ends_with(&HEAD.octets()));
    for (address, name) in [("17.0.9.10", &b"\x02n7\0"[..]), ("1.0.9.10", b"\x04boss\0")] {
        let answer = known(&format!("{address}.in-addr.arpa"), TYPE_PTR).expect(address);
        assert!(answer.ends_with(name), "{answer:?}");
    }
    for other in [
        "n70",
        "n7.example",
        "lab.example",
        "20.0.9.10.in-addr.arpa",
        "xn7",
    ] {
        assert_eq!(known(other, TYPE_A), None, "{other}");
    }
}

#[test]
fn a_question_is_passed_on_and_its_answer_back() {
    let mut relay = Relay::default();
    let asked = ask("www.example.org", TYPE_A);
    let Some(Effect::Ask(key, server, sent)) = query(&mut relay, 0, &asked) else {
        panic!("it is nobody's here");
    };
    assert_eq!(server, servers()[0]);
    assert_eq!(sent[..2], SECRET.to_be_bytes());
    assert_eq!(sent[2..], asked[2..]);
    assert_eq!(query(&mut relay, 1, &asked), None, "it is on its way");
    // Not by the number, and not to the question.
    let good = answer(&sent, 0, 60);
    let stranger = message::with_id(&good, 1);
    let other = answer(
        &message::with_id(&ask("www.example.com", TYPE_A), SECRET),
        0,
        60,
    );
    for bad in [&stranger, &other, &sent, &good[..20].to_vec(), &Vec::new()] {
        assert_eq!(relay.reply(2, key, bad, &servers()), []);
    }
    let expected = message::with_id(&good, ID);
    assert_eq!(
        relay.reply(3, key, &good, &servers()),
        [Effect::Answer(ASKER, expected), Effect::Close(key)]
    );
    assert!(relay.is_empty() && relay.due_ms().is_none());
    assert_eq!(relay.reply(4, key, &good, &servers()), []);
}

#[test]
fn a_silent_or_unhelpful_server_is_followed_by_another() {
    let mut relay = Relay::default();
    let asked = ask("www.example.org", TYPE_A);
    let Some(Effect::Ask(key, first, _)) = query(&mut relay, 0, &asked) else {
        panic!("not passed on");
    };
    let due = relay.due_ms().unwrap();
    assert_eq!(relay.tick(due - 1, &servers()), []);
    let effects = relay.tick(due, &servers());
    let [Effect::Ask(_, second, sent)] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    assert_ne!(first, *second);
    // SERVFAIL: a third try; then it is what there is.
    let failure = answer(sent, 2, 0);
    assert!(matches!(
        relay.reply(due, key, &failure, &servers())[..],
        [Effect::Ask(..)]
    ));
    let effects = relay.failed(due, key, &servers());
    let [Effect::Answer(_, said), Effect::Close(_)] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    assert_eq!(said[3] & 0xf, 2);
    // Who answered is asked first.
    let Some(Effect::Ask(key, _, _)) = query(&mut relay, 0, &asked) else {
        panic!("not passed on");
    };
    let sent = relay.failed(0, key, &servers());
    let [Effect::Ask(_, helpful, sent)] = sent.as_slice() else {
        panic!("{sent:?}");
    };
    relay.reply(0, key, &answer(sent, 0, 0), &servers());
    let Some(Effect::Ask(_, server, _)) = query(&mut relay, 0, &asked) else {
        panic!("not passed on");
    };
    assert_eq!(server, *helpful);
}

#[test]
fn without_a_server_it_is_a_failure_at_once() {
    let asked = ask("www.example.org", TYPE_A);
    let known = (&names(), &[][..], HEAD);
    let effect = Relay::default().query(0, ASKER, &asked, known, SECRET);
    let Some(Effect::Answer(_, said)) = effect else {
        panic!("{effect:?}");
    };
    assert_eq!(answers(&said), (2, 0));
    let own = HashSet::from([servers()[0].ip()]);
    assert_eq!(
        names().servers(&own),
        servers()[1..],
        "asking ourselves would never end"
    );
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_by_tcp() {
    for (asked, room) in [
        (ask("big.example.org", TYPE_A), PLAIN_BYTES),
        (with_edns(ask("big.example.org", TYPE_A)), LONG_BYTES),
    ] {
        for (length, fits) in [(room, true), (room + 1, false)] {
            let mut relay = Relay::default();
            let Some(Effect::Ask(key, _, sent)) = query(&mut relay, 0, &asked) else {
                panic!("not passed on");
            };
            let effects = relay.reply(1, key, &answer(&sent, 0, length), &servers());
            let Some(Effect::Answer(_, said)) = effects.first() else {
                panic!("{effects:?}");
            };
            let is_truncated = said[2] & 2 != 0;
            assert_eq!(is_truncated, !fits, "{length} of {room}");
            assert!(said.len() <= room);
        }
    }
}

#[test]
fn questions_under_way_are_bounded() {
    let mut relay = Relay::default();
    let (names, servers) = (names(), servers());
    let mut passed = 0;
    for host in 0..40_u8 {
        for number in 0..100_u16 {
            let peer = SocketAddrV4::new(Ipv4Addr::new(10, 9, 1, host), 4000);
            let asker = Asker { wire: 1, peer };
            let asked = message::with_id(&ask("www.example.org", TYPE_A), number);
            let known = (&names, &servers[..], HEAD);
            passed += usize::from(relay.query(0, asker, &asked, known, SECRET).is_some());
        }
        assert!(passed <= MAX_QUESTIONS_PER_ADDRESS * (usize::from(host) + 1));
    }
    assert_eq!((passed, relay.len()), (MAX_QUESTIONS, MAX_QUESTIONS));
    for _ in 0..4 {
        let due = relay.due_ms().unwrap_or(0);
        relay.tick(due, &servers);
    }
    assert!(relay.is_empty(), "nobody waits for ever");
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let good = ask("www.example.org", TYPE_A);
    let said = |bytes: &[u8]| query(&mut Relay::default(), 0, bytes);
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(said(&answer), None, "answers are never answered");
    assert_eq!(said(&good[..11]), None);
    let code = |bytes: &[u8]| match said(bytes) {
        Some(Effect::Answer(_, said)) => said[3] & 0xf,
        other => panic!("{other:?}"),
    };
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(code(&update), 4);
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(code(&two), 1);
    // A name that points to itself, one without an end, one that is too long.
    let pointing = [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
    assert_eq!(code(&pointing), 1);
    assert_eq!(code(&good[..good.len() - 6]), 1);
    let long = vec!["a".repeat(63); 4].join(".");
    assert_eq!(code(&ask(&long, TYPE_A)), 1);
    let longest = format!("{}.{}", vec!["a".repeat(63); 3].join("."), "b".repeat(61));
    assert!(matches!(
        said(&ask(&longest, TYPE_A)),
        Some(Effect::Ask(..))
    ));
}

#[test]
fn messages_over_tcp_come_in_pieces_and_together() {
    let messages = [ask("n7", TYPE_A), Vec::new(), vec![7; 65_535]];
    let bytes: Vec<u8> = (messages.iter())
        .flat_map(|message| Stream::framed(message).unwrap())
        .collect();
    for pieces in [1, 7, bytes.len()] {
        let mut stream = Stream::default();
        let mut read = Vec::new();
        for piece in bytes.chunks(pieces) {
            assert!(stream.has_room());
            stream.received(piece);
            read.extend(std::iter::from_fn(|| stream.take()));
        }
        assert_eq!(read, messages);
    }
    assert_eq!(Stream::framed(&vec![0; 65_536]), None);
}

proptest! {
    #[test]
    fn nothing_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse_question(&bytes);
        let mut relay = Relay::default();
        if let Some(Effect::Answer(_, said)) = query(&mut relay, 0, &bytes) {
            prop_assert!(said.len() <= LONG_BYTES);
            prop_assert!(said[2] & 0x80 != 0);
        }
    }

    #[test]
    fn any_name_is_read_as_it_was_written(
        labels in prop::collection::vec("[a-z0-9_-]{1,63}", 1..5), kind in any::<u16>()
    ) {
        let name = labels.join(".");
        prop_assume!(name.len() <= 253);
        let bytes = ask(&name, kind);
        let question = parse_question(&bytes).unwrap();
        prop_assert_eq!(question.name.as_deref(), Some(name.as_str()));
        prop_assert_eq!((question.id, question.kind), (ID, kind));
        prop_assert_eq!(&question.bytes, &bytes[12..]);
        prop_assert!(is_answer_to(&answer(&bytes, 0, 0), ID, &question.bytes));
    }
}
