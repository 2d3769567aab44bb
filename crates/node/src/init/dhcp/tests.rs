use proptest::prelude::*;

use super::packet::tests::{MAC, answer};
use super::*;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 11);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const HEAD: (u8, &[u8]) = (224, b"head=10.7.0.1:7494 boot=10.7.0.1:7480 cluster=c1");

fn reply(client: &Client, kind: u8, address: Ipv4Addr, more: &[(u8, &[u8])]) -> Vec<u8> {
    reply_from(client, kind, address, OURS, more)
}

fn reply_from(
    client: &Client,
    kind: u8,
    address: Ipv4Addr,
    server: Ipv4Addr,
    more: &[(u8, &[u8])],
) -> Vec<u8> {
    let kind = [kind];
    let server = server.octets();
    let mut options: Vec<(u8, &[u8])> = vec![(53, &kind), (54, &server), (1, &[255, 255, 255, 0])];
    options.extend_from_slice(more);
    answer(client.transaction, address, &options)
}

fn tick(client: &mut Client, now: u64) -> Vec<Output> {
    let mut out = Vec::new();
    client.tick(now, &mut out);
    out
}

fn packet(client: &mut Client, now: u64, bytes: &[u8]) -> Vec<Output> {
    let mut out = Vec::new();
    client.packet(now, bytes, &mut out);
    out
}

fn sent(out: &[Output]) -> Vec<u8> {
    out.iter()
        .filter_map(|output| match output {
            Output::Send(bytes, _) => Some(bytes[242]),
            _ => None,
        })
        .collect()
}

fn fresh(knows_head: bool) -> Client {
    Client::new(MAC, 77, knows_head, 0)
}

/// Through all of it with a server of ours.
fn bound(lease: &[u8]) -> Client {
    let mut client = fresh(false);
    assert_eq!(sent(&tick(&mut client, 0)), [1]);
    let offer = reply(&client, 2, OWN, &[HEAD]);
    assert_eq!(sent(&packet(&mut client, 10, &offer)), [3]);
    let ack = reply(&client, 5, OWN, &[HEAD, (51, lease), (12, b"n1")]);
    assert!(matches!(
        packet(&mut client, 20, &ack)[..],
        [Output::Bound(_)]
    ));
    client
}

#[test]
fn a_server_of_ours_gives_address_and_head_for_ever() {
    let client = bound(&[255; 4]);
    let lease = client.lease().unwrap();
    assert_eq!((lease.address, lease.prefix), (OWN, 24));
    assert_eq!(lease.host_name.as_deref(), Some("n1"));
    assert_eq!(lease.cluster.as_ref().unwrap().id, "c1");
    assert_eq!(client.deadline(), None);
}

#[test]
fn silence_is_asked_again_for_ever() {
    let mut client = fresh(false);
    let mut now = 0;
    for _ in 0..1000 {
        assert_eq!(sent(&tick(&mut client, now)), [1]);
        let next = client.deadline().unwrap();
        assert!(next > now && next <= now + LAST_WAIT_MS * 5 / 4);
        now = next;
    }
}

#[test]
fn a_stranger_is_named_and_not_taken() {
    let mut client = fresh(false);
    tick(&mut client, 0);
    let offer = reply_from(&client, 2, OWN, OTHER, &[]);
    assert_eq!(packet(&mut client, 5, &offer), [Output::Stranger(OTHER)]);
    let next = client.deadline().unwrap();
    assert_eq!(sent(&tick(&mut client, next)), [1]);
    // Ours has woken up.
    let offer = reply(&client, 2, OWN, &[HEAD]);
    assert_eq!(sent(&packet(&mut client, next + 5, &offer)), [3]);
}

#[test]
fn another_servers_address_and_our_word_make_a_lease() {
    for hint_first in [false, true] {
        let mut client = fresh(false);
        tick(&mut client, 0);
        let offer = reply_from(&client, 2, OWN, OTHER, &[]);
        let hint = reply(&client, 2, Ipv4Addr::UNSPECIFIED, &[HEAD]);
        let out = if hint_first {
            packet(&mut client, 5, &hint);
            packet(&mut client, 6, &offer);
            tick(&mut client, 6 + GATHER_MS)
        } else {
            packet(&mut client, 5, &offer);
            packet(&mut client, 6, &hint)
        };
        assert_eq!(sent(&out), [3], "{hint_first}");
        let ack = reply_from(&client, 5, OWN, OTHER, &[(51, &[0, 0, 14, 16])]);
        packet(&mut client, 2000, &ack);
        let lease = client.lease().unwrap();
        assert_eq!(lease.server, OTHER);
        assert_eq!(lease.cluster.as_ref().unwrap().head.port(), 7494);
    }
}

#[test]
fn who_knows_the_head_takes_any_address_but_prefers_ours() {
    let mut client = fresh(true);
    tick(&mut client, 0);
    let offer = reply_from(&client, 2, OWN, OTHER, &[]);
    assert_eq!(packet(&mut client, 5, &offer), []);
    let mut other = fresh(true);
    tick(&mut other, 0);
    packet(&mut other, 5, &offer);
    assert_eq!(sent(&tick(&mut client, 5 + GATHER_MS)), [3]);
    let ours = reply(&other, 2, OWN, &[HEAD]);
    assert_eq!(sent(&packet(&mut other, 100, &ours)), [3]);
    assert!(matches!(other.state, State::Requesting { server, .. } if server == OURS));
}

#[test]
fn a_finite_lease_is_renewed_and_lost_at_its_end() {
    // 100 seconds.
    let mut client = bound(&[0, 0, 0, 100]);
    let renew = client.deadline().unwrap();
    assert_eq!(renew, 20 + 50_000);
    let out = tick(&mut client, renew);
    assert!(matches!(&out[..], [Output::Send(bytes, Some(OURS))] if bytes[12..16] == OWN.octets()));
    let ack = reply(&client, 5, OWN, &[(51, &[0, 0, 0, 100])]);
    packet(&mut client, renew + 5, &ack);
    let again = client.deadline().unwrap();
    assert_eq!(again, renew + 5 + 50_000);
    assert!(client.lease().unwrap().cluster.is_some(), "still known");
    // Now nobody answers: in the end everybody is asked, and then it is over.
    let mut now = again;
    let mut to_all = 0;
    loop {
        let out = tick(&mut client, now);
        to_all += usize::from(matches!(out[..], [Output::Send(_, None)]));
        if out == [Output::Lost] {
            break;
        }
        now = client.deadline().unwrap();
    }
    assert!(to_all > 0);
    assert_eq!(now, renew + 5 + 100_000);
    let next = client.deadline().unwrap();
    assert_eq!(sent(&tick(&mut client, next)), [1]);
}

#[test]
fn a_long_lease_is_asked_for_again_as_soon_as_the_server_wishes() {
    let mut client = fresh(false);
    tick(&mut client, 0);
    let offer = reply(&client, 2, OWN, &[HEAD]);
    packet(&mut client, 10, &offer);
    let times: [(u8, &[u8]); 3] = [
        (51, &[0, 0, 14, 16]),
        (58, &[0, 0, 0, 30]),
        (59, &[0, 0, 0, 45]),
    ];
    let ack = reply(&client, 5, OWN, &[&times[..], &[HEAD]].concat());
    packet(&mut client, 20, &ack);
    // The head is at another address now, and nobody answers at the old one.
    let mut now;
    let everybody = loop {
        now = client.deadline().unwrap();
        match &tick(&mut client, now)[..] {
            [Output::Send(_, Some(OURS))] => {}
            [Output::Send(bytes, None)] => break bytes.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert!(now < 60_000, "{now}");
    assert_eq!(everybody[12..16], OWN.octets());
    let moved: (u8, &[u8]) = (224, b"head=10.7.0.9:7494 boot=10.7.0.9:7480 cluster=c1");
    let new = Ipv4Addr::new(10, 7, 0, 9);
    let ack = reply_from(&client, 5, OWN, new, &[&times[..], &[moved]].concat());
    let out = packet(&mut client, now + 5, &ack);
    let [Output::Bound(lease)] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!(
        (lease.server, lease.cluster.as_ref().unwrap().head.ip()),
        (new, &new)
    );
    // While nobody answers, it goes on asking, and often.
    for _ in 0..50 {
        let next = client.deadline().unwrap();
        assert!(next <= now + 5 + MOST_RENEWAL_WAIT_MS);
        now = next - 5;
        tick(&mut client, next);
    }
}

#[test]
fn where_another_server_gives_addresses_ours_is_asked_for_the_head() {
    let mut client = fresh(false);
    tick(&mut client, 0);
    let hint = reply(&client, 2, Ipv4Addr::UNSPECIFIED, &[HEAD]);
    packet(&mut client, 5, &hint);
    let offer = reply_from(&client, 2, OWN, OTHER, &[]);
    packet(&mut client, 6, &offer);
    tick(&mut client, 6 + GATHER_MS);
    let ack = reply_from(&client, 5, OWN, OTHER, &[(51, &[255; 4])]);
    packet(&mut client, 2000, &ack);
    let mut now = 2000;
    for last in [1, 9, 9] {
        let next = client.deadline().unwrap();
        assert_eq!(next, now + INFORM_PERIOD_MS);
        assert_eq!(sent(&tick(&mut client, next)), [8]);
        let word = format!("head=10.7.0.{last}:7494 cluster=c1");
        let told = reply(&client, 5, Ipv4Addr::UNSPECIFIED, &[(224, word.as_bytes())]);
        assert!(matches!(
            &packet(&mut client, next, &told)[..],
            [Output::Bound(_)]
        ));
        let lease = client.lease().unwrap();
        assert_eq!((lease.address, lease.server), (OWN, OTHER));
        assert_eq!(lease.cluster.as_ref().unwrap().head.ip().octets()[3], last);
        now = next;
    }
}

#[test]
fn refusals_start_anew() {
    let mut client = fresh(false);
    tick(&mut client, 0);
    let offer = reply(&client, 2, OWN, &[HEAD]);
    packet(&mut client, 5, &offer);
    let old = client.transaction;
    let nak = reply(&client, 6, Ipv4Addr::UNSPECIFIED, &[]);
    packet(&mut client, 6, &nak);
    assert_ne!(client.transaction, old);
    let next = client.deadline().unwrap();
    assert_eq!(sent(&tick(&mut client, next)), [1]);
    // And a server that falls silent after its offer is left.
    let offer = reply(&client, 2, OWN, &[HEAD]);
    packet(&mut client, next, &offer);
    let mut kinds = Vec::new();
    for _ in 0..REQUEST_TRIES + 1 {
        let next = client.deadline().unwrap();
        kinds.extend(sent(&tick(&mut client, next)));
    }
    assert_eq!(kinds, [3, 3, 3, 1]);
}

#[test]
fn masks_that_make_no_sense_are_not_believed() {
    let of = |mask: [u8; 4]| prefix(Some(mask.into()), OWN);
    assert_eq!((of([255, 255, 255, 0]), of([255; 4])), (24, 32));
    assert_eq!((of([255, 0, 255, 0]), of([255, 255, 254, 0])), (8, 23));
    assert_eq!(prefix(None, Ipv4Addr::new(192, 168, 1, 1)), 24);
}

proptest! {
    /// Whatever comes, it never has an address that no server acknowledged, and never stops.
    #[test]
    fn it_goes_on_whatever_comes(
        steps in prop::collection::vec((0_u8..8, any::<bool>(), 0_u64..20_000), 1..200),
        knows_head in any::<bool>(),
    ) {
        let mut client = fresh(knows_head);
        let mut now = 0;
        for (kind, has_head, wait) in steps {
            now += wait;
            let more: &[(u8, &[u8])] = if has_head { &[HEAD] } else { &[(51, &[0, 0, 0, 60])] };
            let address = if kind == 7 { Ipv4Addr::UNSPECIFIED } else { OWN };
            let bytes = reply(&client, kind.min(6), address, more);
            let was_requesting = matches!(client.state, State::Requesting { .. });
            let was_bound = client.lease().is_some();
            let out = packet(&mut client, now, &bytes);
            if out.iter().any(|output| matches!(output, Output::Bound(_))) {
                prop_assert!(kind == 5 && (was_requesting || was_bound));
                let lease = client.lease().unwrap();
                prop_assert!(knows_head || lease.cluster.is_some());
            }
            tick(&mut client, now);
            match client.deadline() {
                Some(at) => prop_assert!(at > now),
                None => prop_assert!(false, "these leases end"),
            }
        }
    }
}
