use super::*;
use crate::http::request;
use proptest::prelude::*;
use wiglaf_wire::boot::BootInterface;

const KNOWN: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
const STRANGER: Mac = Mac([0x52, 0x54, 0, 0, 0, 99]);
const ITS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 17);
const POOL: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 200);
const FULL: usize = 0;
const PROXY: usize = 1;

fn site() -> Site {
    let interface = |name: &str, service| BootInterface {
        name: name.to_owned(),
        address: Ipv4Addr::new(10, 9, 0, 1),
        prefix: 24,
        service,
        unknown: (POOL, Ipv4Addr::new(10, 9, 0, 250)),
        gateway: None,
    };
    let machine = |mac, name: &str, address| BootMachine {
        mac,
        name: name.to_owned(),
        address,
        image: "default-1".to_owned(),
        arguments: String::new(),
    };
    Site::new(BootSettings {
        interfaces: vec![
            interface("eth1", AddressService::Full),
            interface("eth2", AddressService::Proxy),
        ],
        head_port: 1,
        http_port: 80,
        cluster: "c".to_owned(),
        machines: vec![
            machine(KNOWN, "n1", ITS),
            machine(OTHER, "n2", Ipv4Addr::new(10, 9, 0, 18)),
        ],
    })
}

fn asker(interface: usize, address: Ipv4Addr, hardware: Option<Mac>) -> Asker {
    Asker {
        interface,
        address,
        hardware,
    }
}

/// The image has a file for this card only.
fn one_card(image: &str, card: Card) -> Option<String> {
    let is_known = image == "default-1" && card.to_string() == "8086-100e";
    is_known.then(|| "initramfs-0a".to_owned())
}

fn ask(site: &mut Site, asker: Asker, path: &str) -> Decision {
    let text = format!("GET {path} HTTP/1.1\r\n\r\n");
    let (request, _) = request::parse(text.as_bytes()).unwrap().unwrap();
    site.decide(1000, asker, &request, b"", &mut one_card)
}

fn post(site: &mut Site, now_ms: u64, asker: Asker, mac: Mac, body: &[u8]) -> Decision {
    let text = format!(
        "POST /lines/{mac} HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let (request, _) = request::parse(text.as_bytes()).unwrap().unwrap();
    site.decide(now_ms, asker, &request, body, &mut one_card)
}

fn script_of(decision: Decision) -> String {
    match decision {
        Decision::Script { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

fn is_refused(decision: &Decision, status: u16) -> bool {
    matches!(decision, Decision::Refused(found, _) if *found == status)
}

const SCRIPT: &str = "/script/52:54:00:00:00:01";
const KERNEL: &str = "/image/default-1/kernel";

#[test]
fn an_adopted_machine_gets_its_script_and_image() {
    let mut site = site();
    for hardware in [None, Some(KNOWN)] {
        let asker = asker(FULL, ITS, hardware);
        let decision = ask(&mut site, asker, SCRIPT);
        assert!(script_of(decision).contains("/image/default-1/kernel "));
        let Decision::Image { seen, .. } = ask(&mut site, asker, KERNEL) else {
            panic!("no image");
        };
        assert_eq!(seen, Some((KNOWN, Stage::Kernel)));
    }
}

#[test]
fn what_a_machine_gets_depends_on_its_card() {
    let mut site = site();
    let own = asker(FULL, ITS, Some(KNOWN));
    let initramfs = |site: &mut Site, query: &str| {
        let text = script_of(ask(site, own, &format!("{SCRIPT}{query}")));
        let line = text.lines().find(|line| line.starts_with("initrd"));
        let words = line.and_then(|line| line.split(" || ").next());
        let url = words.and_then(|words| words.rsplit('/').next());
        url.unwrap_or_default().to_owned()
    };
    assert_eq!(initramfs(&mut site, "?card=8086-100e"), "initramfs-0a");
    for query in ["", "?card=8086-100f", "?card=", "?card=x&asked=2"] {
        assert_eq!(initramfs(&mut site, query), "initramfs", "{query}");
    }
    let decision = ask(&mut site, own, "/image/default-1/initramfs-0a");
    let Decision::Image { seen, .. } = decision else {
        panic!("no image");
    };
    assert_eq!(seen, Some((KNOWN, Stage::Initramfs)));

    // It has another card, too; only its own greeting says so.
    post(&mut site, 0, own, KNOWN, b"stage whole\n");
    post(&mut site, 0, own, OTHER, b"stage init\nstage whole\n");
    assert_eq!(initramfs(&mut site, "?card=8086-100e"), "initramfs-0a");
    let said = post(&mut site, 0, own, KNOWN, b"stage init\nstage whole\nx\n");
    let Decision::Lines { lines, .. } = said else {
        panic!("no lines");
    };
    assert_eq!(lines, ["x"]);
    assert_eq!(initramfs(&mut site, "?card=8086-100e"), "initramfs");
    // Who is forgotten and adopted again is a new machine.
    let settings = site.settings.clone();
    let mut without = settings.clone();
    without.machines.retain(|machine| machine.mac != KNOWN);
    site.configure(without);
    site.configure(settings);
    assert_eq!(initramfs(&mut site, "?card=8086-100e"), "initramfs-0a");
}

#[test]
fn nobody_else_does() {
    let mut site = site();
    // A stranger with an address of the pool, and one that took the machine's.
    for (address, hardware) in [
        (POOL, Some(STRANGER)),
        (POOL, None),
        (ITS, Some(STRANGER)),
        (POOL, Some(KNOWN)),
    ] {
        let asker = asker(FULL, address, hardware);
        assert!(is_refused(&ask(&mut site, asker, KERNEL), 403));
        let decision = ask(&mut site, asker, SCRIPT);
        let is_harmless = match &decision {
            Decision::Script { text, .. } => !text.contains("kernel"),
            decision => is_refused(decision, 403),
        };
        assert!(is_harmless, "{address} {hardware:?} {decision:?}");
        assert!(is_refused(&post(&mut site, 0, asker, KNOWN, b"x"), 403));
    }
}

#[test]
fn a_machine_that_was_adopted_meanwhile_asks_for_its_own_address() {
    let mut site = site();
    let text = script_of(ask(&mut site, asker(FULL, POOL, Some(KNOWN)), SCRIPT));
    assert!(text.contains("this machine is n1 now") && text.contains("\ndhcp ||"));
}

#[test]
fn a_stranger_is_told_what_to_do_and_nothing_else() {
    let mut site = site();
    for interface in [FULL, PROXY] {
        let stranger = asker(interface, POOL, Some(STRANGER));
        let decision = ask(&mut site, stranger, "/script/52:54:00:00:00:63");
        let Decision::Script { text, seen } = decision else {
            panic!("{decision:?}");
        };
        assert!(text.contains("wiglaf node adopt 52:54:00:00:00:63"));
        assert_eq!(seen, Some(STRANGER));
        assert!(is_refused(&ask(&mut site, stranger, KERNEL), 403));
    }
    // A name that is only claimed is not seen.
    let unsure = asker(FULL, POOL, None);
    let decision = ask(&mut site, unsure, "/script/52:54:00:00:00:63?asked=3");
    assert!(matches!(decision, Decision::Script { seen: None, .. }));
}

#[test]
fn where_others_give_addresses_the_script_opens_the_image() {
    let mut site = site();
    let far = Ipv4Addr::new(192, 168, 7, 7);
    let unsure = asker(PROXY, far, None);
    assert!(is_refused(&ask(&mut site, unsure, KERNEL), 403));
    // Whoever asks from behind a router has no Ethernet address here.
    assert!(is_refused(&ask(&mut site, unsure, SCRIPT), 403));
    let its = asker(PROXY, far, Some(KNOWN));
    assert!(script_of(ask(&mut site, its, SCRIPT)).contains("kernel"));
    // The kernel forgets whom it has seen before a slow machine has fetched all.
    assert!(matches!(
        ask(&mut site, unsure, KERNEL),
        Decision::Image { .. }
    ));
    // Another machine there, or nobody after a while.
    let stranger = asker(PROXY, far, Some(STRANGER));
    assert!(is_refused(&ask(&mut site, stranger, KERNEL), 403));
    let later = site.image(1000 + GRANT_MS, unsure, "default-1", "kernel");
    assert!(is_refused(&later, 403));
    // A machine that the kernel has seen needs no grant.
    let sure = asker(PROXY, Ipv4Addr::new(192, 168, 7, 8), Some(KNOWN));
    assert!(matches!(
        ask(&mut site, sure, KERNEL),
        Decision::Image { .. }
    ));
}

#[test]
fn media_are_for_adopted_machines_only() {
    let mut site = site();
    let its = asker(FULL, ITS, Some(KNOWN));
    let found = ask(&mut site, its, "/medium/4711");
    let Decision::Image { image, file, seen } = found else {
        panic!("{found:?}");
    };
    assert_eq!((image.as_str(), file.as_str()), (".medium-4711", "medium"));
    assert_eq!(seen, None);
    for other in [
        "/medium/",
        "/medium/..",
        "/medium/-1",
        "/medium/99999999999",
    ] {
        assert!(is_refused(&ask(&mut site, its, other), 404), "{other}");
    }
    for path in ["/image/.medium-4711/medium", "/medium/4711/medium"] {
        assert!(is_refused(&ask(&mut site, its, path), 404), "{path}");
    }
    for (address, hardware) in [(POOL, Some(STRANGER)), (POOL, None), (ITS, Some(STRANGER))] {
        let asker = asker(FULL, address, hardware);
        assert!(is_refused(&ask(&mut site, asker, "/medium/4711"), 403));
    }
}

#[test]
fn lines_are_cleaned_and_bounded() {
    let mut site = site();
    let its = asker(FULL, ITS, Some(KNOWN));
    let body = format!(
        "stage init\nred \x1b[31m\u{7}alarm\r\n{}\n\u{e9}",
        "x".repeat(900)
    );
    let decision = post(&mut site, 0, its, KNOWN, body.as_bytes());
    let Decision::Lines {
        mac,
        lines,
        is_first,
    } = decision
    else {
        panic!("{decision:?}");
    };
    assert!(mac == KNOWN && is_first);
    assert_eq!(lines[0], "red [31malarm");
    assert_eq!(lines[1].len(), MAX_LINE_CHARS);
    assert!(is_refused(&post(&mut site, 0, its, OTHER, b"x"), 403));
    let much = vec![b'x'; 60_000];
    let taken = (0..10)
        .filter(|_| {
            matches!(
                post(&mut site, 1, its, KNOWN, &much),
                Decision::Lines { .. }
            )
        })
        .count();
    assert_eq!(taken, 4);
    assert!(is_refused(&post(&mut site, 2, its, KNOWN, &much), 429));
    let later = post(&mut site, 60_000, its, KNOWN, &much);
    assert!(matches!(later, Decision::Lines { .. }));
}

#[test]
fn loaders_are_everybodys_and_nothing_else_is() {
    let mut site = site();
    let stranger = asker(FULL, POOL, Some(STRANGER));
    assert_eq!(
        ask(&mut site, stranger, "/loader/snponly.efi"),
        Decision::Loader("snponly.efi")
    );
    for path in [
        "/",
        "/loader/",
        "/loader/../image/default-1/kernel",
        "/loader/passwd",
        "/script/zz",
        "/script/ff:ff:ff:ff:ff:ff",
        "/image/default-1",
    ] {
        let decision = ask(&mut site, stranger, path);
        assert!(matches!(decision, Decision::Refused(..)), "{path}");
    }
    let its = asker(FULL, ITS, None);
    for path in [
        "/image/../kernel",
        "/image/./kernel",
        "/image/x/..",
        "/image/x/a%2fb",
    ] {
        assert!(is_refused(&ask(&mut site, its, path), 404), "{path}");
    }
}

proptest! {
    #[test]
    fn nothing_that_is_asked_panics(path in "(/(script|image|medium|lines|loader|.)?){0,5}[a-z0-9.:%-]{0,20}") {
        let mut site = site();
        for hardware in [None, Some(KNOWN), Some(STRANGER)] {
            for interface in [FULL, PROXY, 7] {
                if path.starts_with('/') {
                    let text = format!("GET {path} HTTP/1.1\r\n\r\n");
                    if let Ok(Some((request, _))) = request::parse(text.as_bytes()) {
                        site.decide(0, asker(interface, POOL, hardware), &request, b"", &mut one_card);
                    }
                }
            }
        }
    }
}
