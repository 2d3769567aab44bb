use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

const FROM_HEAD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

fn wire(name: &str, address: Ipv4Addr, service: AddressService) -> BootInterface {
    BootInterface {
        name: name.into(),
        address,
        prefix: 24,
        service,
        unknown: (address, address),
        gateway: None,
    }
}

fn machines() -> Machines {
    let mut machines = Machines::default();
    let interface = wire("eth1", FROM_HEAD, AddressService::Full);
    machines.enable(interface, false).unwrap();
    machines
}

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

fn at(ms: u64) -> Now {
    Now {
        ms,
        wall_s: i64::try_from(ms / 1000).unwrap(),
    }
}

fn sighting(mac: Mac, stage: Stage, address: Option<Ipv4Addr>) -> Sighting {
    Sighting {
        mac,
        stage,
        interface: "eth1".into(),
        client: None,
        address,
    }
}

/// Another key for each code.
fn key(code: &str) -> Key {
    let mut key = [0; 32];
    key[..code.len()].copy_from_slice(code.as_bytes());
    key
}

fn root_at(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::from((address, 1023))
}

#[test]
fn a_machine_joins_once_its_code_was_compared_and_then_without() {
    let mut machines = machines();
    machines.seen(at(0), &sighting(mac(1), Stage::Asked, None));
    let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
    machines.seen(at(10), &sighting(mac(1), Stage::Init, Some(own)));
    let code = || Verdict::Await {
        code: "1234-5678".into(),
    };
    let ask = |machines: &mut Machines, ms, code: &str| {
        machines.may_join(at(ms), mac(1), root_at(own), key(code), code)
    };
    assert_eq!(ask(&mut machines, 20, "1234-5678"), code());
    assert!(machines.approve("n1", "8765-4321").is_err());
    assert!(machines.approve("n1", "12345678").unwrap().is_approved);
    // Whoever else asks meanwhile has another key.
    assert!(matches!(
        ask(&mut machines, 30, "1111-1111"),
        Verdict::Await { .. }
    ));
    let accepted = Verdict::Accept { name: "n1".into() };
    assert_eq!(ask(&mut machines, 40, "1234-5678"), accepted);
    machines.is_up(at(50), "n1");
    assert!(!machines.is_booting("n1"));
    assert!(matches!(
        ask(&mut machines, 60, "1234-5678"),
        Verdict::Refuse { .. }
    ));
    // The next boot has another key.
    machines.seen(at(90), &sighting(mac(1), Stage::Script, None));
    assert!(machines.is_booting("n1"));
    assert_eq!(ask(&mut machines, 100, "2222-2222"), accepted);
}

#[test]
fn a_log_that_comes_after_the_question_to_join_is_no_new_start() {
    let mut machines = machines();
    let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
    let init = sighting(mac(1), Stage::Init, Some(own));
    let ask = |machines: &mut Machines, ms| {
        machines.may_join(at(ms), mac(1), root_at(own), key("1234-5678"), "1234-5678")
    };
    machines.seen(at(0), &sighting(mac(1), Stage::Script, Some(own)));
    let waits = ask(&mut machines, 10);
    assert!(matches!(waits, Verdict::Await { .. }), "{waits:?}");
    machines.seen(at(11), &init);
    assert_eq!(machines.info(mac(1)).stage, Some(Stage::AwaitsApproval));
    assert!(machines.approve("n1", "1234-5678").is_ok());
    let accepted = Verdict::Accept { name: "n1".into() };
    assert_eq!(ask(&mut machines, 20), accepted);
    // Only the first one is late; nor does it let anybody join twice.
    machines.seen(at(30), &sighting(mac(1), Stage::Script, Some(own)));
    assert_eq!(ask(&mut machines, 40), accepted);
    machines.seen(at(41), &init);
    assert!(matches!(ask(&mut machines, 42), Verdict::Refuse { .. }));
    machines.seen(at(50), &init);
    assert_eq!(ask(&mut machines, 60), accepted);
}

#[test]
fn what_is_fetched_and_never_runs_is_counted() {
    let mut machines = machines();
    machines.adopt(mac(1), "n1").unwrap();
    let loads = |machines: &Machines| machines.info(mac(1)).fruitless_loads;
    for count in 1..4 {
        for stage in [Stage::Asked, Stage::Addressed, Stage::Loader, Stage::Loader] {
            machines.seen(at(u64::from(count)), &sighting(mac(1), stage, None));
        }
        assert_eq!(loads(&machines), count);
    }
    machines.seen(at(9), &sighting(mac(1), Stage::Script, None));
    assert_eq!(loads(&machines), 0);
}

#[test]
fn nobody_joins_for_another() {
    let mut machines = machines();
    let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
    let other = machines.adopt(mac(2), "n2").unwrap().address.unwrap();
    let refused = |machines: &mut Machines, ms, mac, from: SocketAddr| {
        matches!(
            machines.may_join(at(ms), mac, from, key("1"), "1"),
            Verdict::Refuse { .. }
        )
    };
    assert!(refused(&mut machines, 0, mac(1), root_at(own)), "not seen");
    machines.seen(at(0), &sighting(mac(1), Stage::Init, Some(own)));
    assert!(refused(&mut machines, 1, mac(1), root_at(other)));
    let user = SocketAddr::from((own, 40_000));
    assert!(refused(&mut machines, 1, mac(1), user));
    assert!(refused(&mut machines, 1, mac(3), root_at(own)));
    assert!(refused(&mut machines, PERMIT_MS + 1, mac(1), root_at(own)));
}

#[test]
fn a_window_adopts_who_comes_while_it_is_open() {
    let mut machines = machines();
    let came = |number| sighting(mac(number), Stage::Addressed, None);
    assert_eq!(machines.seen(at(0), &came(1)), Seen::Noted);
    machines.adopt_all(at(0), 100, None, false);
    let switch = sighting(mac(3), Stage::Asked, None);
    assert_eq!(machines.seen(at(50), &switch), Seen::Noted);
    assert_eq!(machines.seen(at(99), &came(1)), ADOPT);
    assert_eq!(machines.seen(at(100), &came(2)), Seen::Noted);
}

const ADOPT: Seen = Seen::Adopt {
    name: None,
    image: None,
};

#[test]
fn in_order_the_next_is_adopted_when_the_one_before_is_up() {
    let mut machines = machines();
    let came = |number| sighting(mac(number), Stage::Script, None);
    let names = NamePattern::try_from("n%d".to_owned()).unwrap();
    machines.adopt_all(at(0), 1_000_000, Some(names.clone()), true);
    let adopt = Seen::Adopt {
        name: Some(names),
        image: None,
    };
    // Switched on in the order 9, 3, 5.
    assert_eq!(machines.seen(at(10), &came(9)), adopt);
    machines.adopt(mac(9), "n1").unwrap();
    assert_eq!(machines.seen(at(20), &came(3)), Seen::Noted);
    assert_eq!(machines.seen(at(30), &came(5)), Seen::Noted);
    assert_eq!(machines.waited_for(at(30)), Some("n1"));
    machines.seen(at(40), &came(9));
    machines.is_up(at(50), "n1");
    // The later one asks first.
    assert_eq!(machines.seen(at(60), &came(5)), Seen::Noted);
    assert_eq!(machines.seen(at(70), &came(3)), adopt);
    machines.adopt(mac(3), "n2").unwrap();
    // One that is forgotten holds nobody up, and one that starts again neither.
    assert_eq!(machines.seen(at(80), &came(5)), Seen::Noted);
    machines.forget("n2").unwrap();
    machines.seen(at(85), &came(9));
    assert_eq!(machines.seen(at(90), &came(5)), adopt);
    // One that has gone is not waited for.
    assert_eq!(machines.seen(at(95), &came(7)), Seen::Noted);
    assert_eq!(machines.seen(at(90_000), &came(7)), adopt);
}

#[test]
fn a_rule_adopts_those_that_it_is_for_and_no_others() {
    let mut machines = machines();
    let rule: Rule = Rule {
        mac: MacPattern::try_from("52:54:00:00:00:*".to_owned()).unwrap(),
        name: Some(NamePattern::try_from("gpu%d".to_owned()).unwrap()),
        image: Some("gpu".into()),
    };
    machines.govern(Approve::Once, vec![rule.clone()]);
    let came = |mac, stage| sighting(mac, stage, None);
    assert_eq!(
        machines.seen(at(0), &came(mac(1), Stage::Asked)),
        Seen::Noted
    );
    let adopt = Seen::Adopt {
        name: rule.name,
        image: rule.image,
    };
    assert_eq!(machines.seen(at(1), &came(mac(1), Stage::Addressed)), adopt);
    let other = Mac([0x52, 0x54, 0, 0, 1, 1]);
    assert_eq!(
        machines.seen(at(2), &came(other, Stage::Script)),
        Seen::Noted
    );
}

#[test]
fn where_codes_are_always_compared_each_boot_waits_for_one() {
    let mut machines = machines();
    machines.govern(Approve::Always, Vec::new());
    let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
    for (at_ms, code) in [(0, "1111-1111"), (1_000, "2222-2222")] {
        machines.seen(at(at_ms), &sighting(mac(1), Stage::Script, Some(own)));
        let ask = |machines: &mut Machines, code: &str| {
            machines.may_join(at(at_ms + 1), mac(1), root_at(own), key(code), code)
        };
        assert!(matches!(ask(&mut machines, code), Verdict::Await { .. }));
        machines.approve("n1", code).unwrap();
        assert!(!machines.info(mac(1)).is_approved, "not for the next time");
        // Who asks with another key waits all the same.
        assert!(matches!(
            ask(&mut machines, "3333-3333"),
            Verdict::Await { .. }
        ));
        assert!(matches!(ask(&mut machines, code), Verdict::Accept { .. }));
        machines.is_up(at(at_ms + 2), "n1");
    }
}

#[test]
fn a_groups_image_is_for_those_who_come_into_it_later_too() {
    let mut machines = machines();
    machines.adopt(mac(1), "n1").unwrap();
    machines.adopt(mac(2), "n2").unwrap();
    machines.use_image("default-1");
    machines.use_group_image("gpu", "gpu-1");
    let mut nodes = NodeTable::default();
    let image = |machines: &Machines, number| machines.info(mac(number)).image.unwrap();
    nodes.enrol("n1").unwrap();
    machines.follow_groups(&nodes);
    assert_eq!(image(&machines, 1), "default-1");
    let node = nodes.enrol("n1").unwrap();
    node.groups.extend(["fast".into(), "gpu".into()]);
    machines.follow_groups(&nodes);
    assert_eq!(image(&machines, 1), "gpu-1");
    assert_eq!(image(&machines, 2), "default-1");
    machines.use_image_for(Some("own-1"), &["n1".into()]);
    assert_eq!(image(&machines, 1), "own-1");
    // Step by step back.
    let kept = machines.use_image_for(None, &["n1".into()]);
    assert_eq!(kept[0].image, None);
    assert_eq!(image(&machines, 1), "gpu-1");
    assert!(machines.drop_group_image("gpu") && !machines.drop_group_image("gpu"));
    assert_eq!(image(&machines, 1), "default-1");
}

#[test]
fn machines_follow_their_interface_to_another_network_or_another_server() {
    let mut machines = machines();
    machines.adopt(mac(1), "n1").unwrap();
    let address = |machines: &Machines| machines.find("n1").unwrap().address;
    let moved = wire("eth1", Ipv4Addr::new(10, 78, 0, 1), AddressService::Full);
    machines.enable(moved, false).unwrap();
    assert_eq!(address(&machines), Some(Ipv4Addr::new(10, 78, 0, 2)));
    let proxy = wire("eth1", Ipv4Addr::new(10, 78, 0, 1), AddressService::Proxy);
    machines.enable(proxy, false).unwrap();
    assert_eq!(address(&machines), None);
    let back = wire("eth1", Ipv4Addr::new(10, 78, 0, 1), AddressService::Full);
    machines.enable(back, false).unwrap();
    assert_eq!(address(&machines), Some(Ipv4Addr::new(10, 78, 0, 2)));
}

#[test]
fn what_is_sent_in_a_machines_name_does_not_keep_it_out() {
    let mut machines = machines();
    let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
    machines.seen(at(0), &sighting(mac(1), Stage::Init, Some(own)));
    let ask = |machines: &mut Machines, from, key, code: &str| {
        machines.may_join(at(5), mac(1), from, key, code)
    };
    ask(&mut machines, root_at(own), key("1"), "1");
    // A packet with its Ethernet address, and a question from elsewhere.
    machines.seen(at(6), &sighting(mac(1), Stage::Asked, None));
    let elsewhere = root_at(Ipv4Addr::new(10, 77, 0, 99));
    ask(&mut machines, elsewhere, key("2"), "2");
    assert_eq!(machines.info(mac(1)).refusal, None);
    assert_eq!(machines.info(mac(1)).code.as_deref(), Some("1"));
    // Another key with the same code.
    ask(&mut machines, root_at(own), key("3"), "1");
    assert!(machines.approve("n1", "1").is_err());
}

#[test]
fn a_key_that_has_the_confirmed_code_is_not_the_confirmed_key() {
    let mut machines = machines();
    let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
    machines.seen(at(0), &sighting(mac(1), Stage::Init, Some(own)));
    let ask =
        |machines: &mut Machines, key| machines.may_join(at(5), mac(1), root_at(own), key, "1");
    ask(&mut machines, key("1"));
    machines.approve("n1", "1").unwrap();
    assert!(matches!(
        ask(&mut machines, key("2")),
        Verdict::Await { .. }
    ));
    assert!(matches!(
        ask(&mut machines, key("1")),
        Verdict::Accept { .. }
    ));
}

#[test]
fn what_is_taken_or_senseless_is_refused_with_a_remedy() {
    let mut machines = machines();
    machines.adopt(mac(1), "n1").unwrap();
    assert!(machines.adopt(mac(1), "n2").is_err());
    assert!(machines.adopt(mac(2), "n1").is_err());
    assert!(machines.adopt(Mac([1, 0, 0, 0, 0, 0]), "n2").is_err());
    assert!(machines.adopt(mac(2), "n 2").is_err());
    let near = wire("eth2", Ipv4Addr::new(10, 77, 0, 99), AddressService::Full);
    assert!(machines.enable(near, false).is_err());
    let other = wire("eth2", Ipv4Addr::new(10, 78, 0, 1), AddressService::Full);
    machines.enable(other, false).unwrap();
    assert!(machines.adopt(mac(2), "n2").is_err(), "which wire?");
    machines.forget("n1").unwrap();
    assert!(machines.forget("n1").is_err());
}

#[test]
fn a_head_with_another_address_gives_the_machine_that_had_it_a_new_one() {
    let mut machines = machines();
    let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
    let moved = wire("eth1", own, AddressService::Full);
    machines.enable(moved, false).unwrap();
    let new = machines.find("n1").unwrap().address.unwrap();
    assert_ne!(new, own);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn strangers_are_bounded_and_cost_the_adopted_nothing(floods in 1_u32..3000) {
        let mut machines = machines();
        let own = machines.adopt(mac(1), "n1").unwrap().address.unwrap();
        machines.seen(at(0), &sighting(mac(1), Stage::Init, Some(own)));
        for number in 0..floods {
            let [a, b, c, d] = number.to_be_bytes();
            let stranger = Mac([2, 1, a, b, c, d]);
            machines.seen(at(u64::from(number)), &sighting(stranger, Stage::Asked, None));
        }
        prop_assert!(machines.list().len() <= MAX_STRANGERS + 1);
        let list = machines.list();
        prop_assert_eq!(list[0].name.as_deref(), Some("n1"));
        let asks = machines.may_join(at(5), mac(1), root_at(own), key("1"), "1");
        let awaits = Verdict::Await { code: "1".into() };
        prop_assert_eq!(asks, awaits);
    }

    #[test]
    fn no_two_machines_have_one_address(names in proptest::collection::vec(0_u32..400, 1..80)) {
        let mut machines = machines();
        for (number, name) in names.iter().enumerate() {
            let number = u8::try_from(number).unwrap();
            let _ = machines.adopt(mac(number), &format!("n{name}"));
        }
        let mut addresses: Vec<_> = machines.known.values().filter_map(|m| m.address).collect();
        let count = addresses.len();
        addresses.sort();
        addresses.dedup();
        prop_assert_eq!(addresses.len(), count);
        prop_assert!(!addresses.contains(&FROM_HEAD));
    }
}
