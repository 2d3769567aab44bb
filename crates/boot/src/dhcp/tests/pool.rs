//! Machines that nobody knows, and their addresses.

use super::super::seen::MAX_STRANGERS;
use super::*;

fn stranger(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x02, 0, a, b, c, d])
}

/// Asks for an address and takes it.
fn join(wire: &mut Wire, mac: Mac) -> Option<Lease> {
    let effects = wire.ask(&pxe(mac, DISCOVER));
    let address = replies(&effects).first()?.1.your;
    let effects = wire.ask(&take(pxe(mac, REQUEST), address));
    assert_eq!(reply(&effects), (ACK, address));
    assert!(
        matches!(effects[0], Effect::Keep(_)),
        "durable before it is sent"
    );
    kept(&effects).first().copied()
}

#[test]
fn a_dry_pool_refuses_strangers_only() {
    let mut wire = Wire::new(adopted());
    let taken: Vec<_> = (0..10)
        .filter_map(|number| join(&mut wire, stranger(number)))
        .collect();
    assert_eq!(taken.len(), 4);
    let effects = wire.ask(&pxe(stranger(99), DISCOVER));
    assert!(is_silent(&effects));
    assert_eq!(reply(&wire.ask(&pxe(MAC, DISCOVER))), (OFFER, FIXED));
    // The same machine has the same address as long as it asks.
    assert_eq!(
        join(&mut wire, stranger(2)).map(|lease| lease.address),
        Some(taken[2].address)
    );
    wire.pass_s(121);
    assert!(join(&mut wire, stranger(99)).is_some());
}

#[test]
fn an_offer_that_nobody_takes_is_offered_again() {
    let mut wire = Wire::new(strange());
    for number in 0..4 {
        assert_eq!(reply(&wire.ask(&pxe(stranger(number), DISCOVER))).0, OFFER);
    }
    assert!(is_silent(&wire.ask(&pxe(stranger(9), DISCOVER))));
    wire.pass_s(31);
    assert_eq!(reply(&wire.ask(&pxe(stranger(9), DISCOVER))).0, OFFER);
}

#[test]
fn a_stranger_gets_its_former_address_again_and_the_longest_free_goes_first() {
    let mut wire = Wire::new(strange());
    let first = join(&mut wire, stranger(1)).expect("a lease");
    wire.pass_s(500);
    let second = join(&mut wire, stranger(2)).expect("a lease");
    assert_ne!(first.address, second.address, "others are free for longer");
    assert_eq!(
        join(&mut wire, stranger(1)).map(|lease| lease.address),
        Some(first.address)
    );
}

#[test]
fn leases_survive_a_restart_until_they_are_over() {
    let mut wire = Wire::new(strange());
    let lease = join(&mut wire, stranger(1)).expect("a lease");
    assert_eq!(
        lease.until_s,
        i64::try_from(START_MS / 1_000 + 120).unwrap_or(0)
    );
    let restarted = |now_ms| Wire {
        server: Server::new(strange(), vec![lease]),
        now_ms,
    };

    let mut wire = restarted(START_MS + 60_000);
    let others: Vec<_> = (2..9)
        .filter_map(|number| join(&mut wire, stranger(number)))
        .collect();
    assert_eq!(others.len(), 3);
    assert!(others.iter().all(|other| other.address != lease.address));
    assert_eq!(
        join(&mut wire, stranger(1)).map(|lease| lease.address),
        Some(lease.address)
    );

    let mut wire = restarted(START_MS + 121_000);
    let others = (2..9).filter_map(|number| join(&mut wire, stranger(number)));
    assert_eq!(others.count(), 4);
}

#[test]
fn a_released_address_is_free_and_that_is_kept() {
    let mut wire = Wire::new(strange());
    let lease = join(&mut wire, stranger(1)).expect("a lease");
    let mut packet = pxe(stranger(1), RELEASE);
    packet.client = POOL_LAST;
    assert_eq!(wire.ask(&packet), [], "not what it has");
    packet.client = lease.address;
    let [over] = kept(&wire.ask(&packet))[..] else {
        panic!("not kept");
    };
    assert_eq!((over.address, over.mac), (lease.address, lease.mac));
    let restored = Server::new(strange(), vec![lease, over]);
    let mut wire = Wire {
        server: restored,
        now_ms: wire.now_ms + 1_000,
    };
    assert_eq!(
        (2..9)
            .filter_map(|number| join(&mut wire, stranger(number)))
            .count(),
        4
    );
}

#[test]
fn a_declined_address_is_set_aside() {
    let mut wire = Wire::new(strange());
    let lease = join(&mut wire, stranger(1)).expect("a lease");
    let mut packet = pxe(stranger(1), DECLINE);
    packet.options.set(code::REQUESTED, lease.address.octets());
    let mut other = packet.clone();
    other.hardware = stranger(2);
    assert_eq!(wire.ask(&other), [], "it is not its to decline");
    let effects = wire.ask(&packet);
    assert_eq!(kept(&effects).len(), 1);
    assert!(problems(&effects)[0].contains(&lease.address.to_string()));
    for _ in 0..4 {
        wire.pass_s(130);
        let taken: Vec<_> = (1..9)
            .filter_map(|number| join(&mut wire, stranger(number)))
            .collect();
        assert_eq!(taken.len(), 3);
        assert!(taken.iter().all(|taken| taken.address != lease.address));
    }
    wire.pass_s(130);
    assert_eq!(
        (1..9)
            .filter_map(|number| join(&mut wire, stranger(number)))
            .count(),
        4
    );
}

#[test]
fn a_waiting_stranger_keeps_its_address() {
    let mut wire = Wire::new(strange());
    let lease = join(&mut wire, stranger(1)).expect("a lease");
    assert_eq!(
        wire.server.renew(wire.now_ms, stranger(1)),
        None,
        "there is time"
    );
    for _ in 0..5 {
        wire.pass_s(90);
        let renewed = wire
            .server
            .renew(wire.now_ms, stranger(1))
            .expect("renewed");
        assert_eq!(renewed.address, lease.address);
    }
    wire.pass_s(121);
    assert_eq!(
        wire.server.renew(wire.now_ms, stranger(1)),
        None,
        "it is over"
    );
}

#[test]
fn an_adopted_stranger_leaves_the_pool() {
    let mut wire = Wire::new(strange());
    let lease = join(&mut wire, MAC).expect("a lease");
    wire.server.configure(adopted());
    let mut packet = message(MAC, REQUEST);
    packet.client = lease.address;
    assert_eq!(reply(&wire.ask(&packet)).0, NAK);
    assert_eq!(reply(&wire.ask(&pxe(MAC, DISCOVER))), (OFFER, FIXED));
}

#[test]
fn an_adopted_machines_address_in_the_pool_is_its_own() {
    let mut wire = Wire::new(strange());
    let lease = join(&mut wire, stranger(1)).expect("a lease");
    let offered = reply(&wire.ask(&pxe(stranger(2), DISCOVER))).1;
    // Leased to somebody else: it has to wait for the end. Only offered: it is withdrawn.
    for (address, waits) in [(lease.address, true), (offered, false)] {
        let machines = vec![machine(MAC, "n1", address)];
        wire.server
            .configure(settings(AddressService::Full, machines));
        let effects = wire.ask(&pxe(MAC, DISCOVER));
        assert_eq!(is_silent(&effects), waits);
        assert_eq!(problems(&effects).len(), usize::from(waits));
    }
    assert_eq!(
        reply(&wire.ask(&take(pxe(stranger(2), REQUEST), offered))).0,
        NAK
    );
    let machines = vec![machine(MAC, "n1", lease.address)];
    wire.server
        .configure(settings(AddressService::Full, machines));
    assert_eq!(wire.server.renew(wire.now_ms + 100_000, stranger(1)), None);
    wire.pass_s(121);
    assert_eq!(
        reply(&wire.ask(&pxe(MAC, DISCOVER))),
        (OFFER, lease.address)
    );
}

#[test]
fn a_flood_is_bounded_and_told_in_drops() {
    let mut wire = Wire::new(adopted());
    let mut told = 0;
    for number in 0..20_000 {
        wire.now_ms += 1;
        let effects = wire.ask(&pxe(stranger(number), DISCOVER));
        told += effects
            .iter()
            .filter(|effect| !matches!(effect, Effect::Send { .. }))
            .count();
        assert!(wire.server.strangers.len() <= MAX_STRANGERS);
        assert!(wire.server.leases.len() <= 4);
    }
    assert!(told < 64 + 20 * 32 + 10, "{told}");
    let effects = wire.ask(&pxe(MAC, DISCOVER));
    assert_eq!(reply(&effects), (OFFER, FIXED));
    assert_eq!(sightings(&effects).len(), 1, "its sightings are its own");
}

#[test]
fn who_gets_no_further_is_told_of_every_ten_seconds() {
    for settings in [adopted(), strange()] {
        let mut wire = Wire::new(settings);
        let mut told = Vec::new();
        for second in 0..25 {
            let effects = wire.ask(&pxe(MAC, DISCOVER));
            told.extend(sightings(&effects).iter().map(|_| second));
            wire.pass_s(1);
        }
        assert_eq!(told, [0, 10, 20]);
        let address = reply(&wire.ask(&pxe(MAC, DISCOVER))).1;
        let effects = wire.ask(&take(pxe(MAC, REQUEST), address));
        assert_eq!(
            sightings(&effects)[0].stage,
            Stage::Addressed,
            "progress is told at once"
        );
    }
}
