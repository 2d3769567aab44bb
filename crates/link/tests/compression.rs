//! Frames over a real TLS link, compressed and not: what is sent arrives.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use proptest::prelude::*;
use wiglaf_link::{Authority, Role, TlsLink, client_config, server_config, server_name};
use wiglaf_wire::frame::{Compression, DataHeader, Frame};
use wiglaf_wire::id::{DeputyId, JobId, NodeId, TaskId};
use wiglaf_wire::stream::Stream;

type Link = TlsLink<Vec<u8>, Vec<u8>>;

/// What one side sends.
#[derive(Clone, Debug)]
enum Sent {
    Message(Vec<u8>),
    Data(Vec<u8>),
}

fn pair(compression: Compression) -> (Link, Link) {
    let authority = Authority::create("test").unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let node = authority.issue(Role::Node(NodeId(1))).unwrap();
    let role = Role::Deputy(DeputyId(1));
    let deputy = authority.issue(role).unwrap();
    let config = client_config(&node).unwrap();
    let mut client = Link::client(dialled.into(), config, server_name(role)).unwrap();
    let config = server_config(&deputy, false).unwrap();
    let mut server = Link::server(accepted.into(), config).unwrap();
    client.offer_compression(compression);
    server.heed_compression();
    // The server compresses once it has heard the offer.
    client.send(&b"first".to_vec()).unwrap();
    let mut heard = false;
    while !heard {
        for link in [&mut client, &mut server] {
            link.flush().unwrap();
            link.receive().unwrap();
        }
        heard = server.next_frame().unwrap().is_some();
    }
    (client, server)
}

fn header(offset: u64) -> DataHeader {
    let task = TaskId {
        job: JobId(1),
        index: 2,
    };
    DataHeader {
        task,
        stream: Stream::Output,
        offset,
    }
}

/// Sends all, and returns what arrives: messages as they are, and the data in one.
fn pass(from: &mut Link, to: &mut Link, all: &[Sent]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut messages, mut data) = (Vec::new(), Vec::new());
    let (count, bytes) = all.iter().fold((0, 0), |(count, bytes), sent| match sent {
        Sent::Message(_) => (count + 1, bytes),
        Sent::Data(data) => (count, bytes + data.len()),
    });
    let mut offset = 0;
    let mut rest = all.iter();
    while messages.len() < count || data.len() < bytes {
        match rest.next() {
            Some(Sent::Message(message)) => from.queue(message).unwrap(),
            Some(Sent::Data(data)) => {
                from.queue_data(header(offset), data).unwrap();
                offset += data.len() as u64;
            }
            None => {}
        }
        from.flush().unwrap();
        to.receive().unwrap();
        while let Some(frame) = to.next_frame().unwrap() {
            match frame {
                Frame::Message(message) => messages.push(message),
                Frame::Data(at, piece) => {
                    assert_eq!(at, header(data.len() as u64));
                    data.extend_from_slice(piece);
                }
            }
        }
    }
    (messages, data)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0usize..100, 4000usize..5000, 0usize..200_000];
    (length, any::<u64>(), 0u32..4).prop_map(|(length, mut state, sort)| {
        let mut next = move || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        let byte = move || match sort {
            0 => 0,
            1 => next() % 8,
            _ => next(),
        };
        std::iter::repeat_with(byte).take(length).collect()
    })
}

fn frames() -> impl Strategy<Value = Vec<Sent>> {
    let one = (any::<bool>(), bytes()).prop_map(|(is_data, bytes)| match is_data {
        true => Sent::Data(bytes),
        false => Sent::Message(bytes),
    });
    prop::collection::vec(one, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_frames_arrive_as_they_were_sent(
        there in frames(),
        back in frames(),
        compression in prop_oneof![
            Just(Compression::Never),
            Just(Compression::Adaptive),
            Just(Compression::Always),
        ],
    ) {
        let (mut client, mut server) = pair(compression);
        for (is_there, all) in [(true, there), (false, back)] {
            let (from, to) = match is_there {
                true => (&mut client, &mut server),
                false => (&mut server, &mut client),
            };
            let (messages, data) = pass(from, to, &all);
            let (mut all_messages, mut all_data) = (Vec::new(), Vec::new());
            for sent in all {
                match sent {
                    Sent::Message(message) => all_messages.push(message),
                    Sent::Data(mut bytes) => all_data.append(&mut bytes),
                }
            }
            prop_assert!(messages == all_messages);
            prop_assert!(data == all_data);
        }
        let (sent, received) = (client.traffic(), server.traffic());
        prop_assert_eq!(sent.sent_wire_bytes, received.received_wire_bytes);
        prop_assert_eq!(sent.received_wire_bytes, received.sent_wire_bytes);
    }
}

#[test]
fn both_sides_compress_once_the_dialling_one_has_said_so() {
    let all: Vec<_> = (0..20)
        .flat_map(|_| {
            [
                Sent::Message(vec![5; 100_000]),
                Sent::Data(b"not very different ".repeat(5000)),
            ]
        })
        .collect();
    for (compression, is_short) in [(Compression::Always, true), (Compression::Never, false)] {
        let (mut client, mut server) = pair(compression);
        pass(&mut client, &mut server, &all);
        pass(&mut server, &mut client, &all);
        for traffic in [client.traffic(), server.traffic()] {
            let [sent, received] = [
                (traffic.sent_content_bytes, traffic.sent_wire_bytes),
                (traffic.received_content_bytes, traffic.received_wire_bytes),
            ];
            for (content, wire) in [sent, received] {
                assert!(content >= 20 * 190_000, "{traffic:?}");
                assert_eq!(wire < content / 8, is_short, "{traffic:?}");
            }
        }
    }
}
