//! What iPXE is told to do.
//!
//! Each script ends in asking for the next, for ever: a head that is away for a while must not
//! leave machines standing at a firmware menu. There is no secret in any (S4).

use std::fmt::Write as _;
use std::net::SocketAddrV4;

use wiglaf_wire::boot::{BootMachine, Mac};

use crate::card::Card;

/// Between two attempts of a machine that is known.
const RETRY_S: u32 = 2;
/// Between two questions of a machine that nobody knows.
const ASK_AGAIN_S: u32 = 5;
/// iPXE does not renew its address, so the service renews it for a machine that nobody knows when
/// it asks. After this many questions it asks for an address all the same: the wire may have
/// others now.
const QUESTIONS_PER_ADDRESS: u32 = 120;

/// What a machine says of itself whenever it asks for a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// How often it has asked before, while nobody knew it.
    pub times: u32,
    /// Its network card.
    pub card: Option<Card>,
}

impl Asked {
    /// From what comes after `?` in a script's address; what is not understood is passed over.
    pub fn parse(query: &str) -> Asked {
        let mut asked = Asked::default();
        for (name, value) in query.split('&').filter_map(|part| part.split_once('=')) {
            match name {
                "asked" => asked.times = value.parse().unwrap_or(0),
                "card" => asked.card = value.parse().ok(),
                _ => {}
            }
        }
        asked
    }

    fn query(self) -> String {
        let times = (self.times > 0).then(|| format!("asked={}", self.times));
        let card = self.card.map(|card| format!("card={card}"));
        let parts: Vec<_> = times.into_iter().chain(card).collect();
        match parts.is_empty() {
            true => String::new(),
            false => format!("?{}", parts.join("&")),
        }
    }

    fn anew(self) -> Asked {
        Asked { times: 0, ..self }
    }
}

/// Boots a machine that somebody has adopted. `initramfs`: the file with what its network card
/// needs; else it gets the whole one. `None`: its image's name can't stand in a URL.
pub fn boot(
    from: SocketAddrV4,
    machine: &BootMachine,
    asked: Asked,
    initramfs: Option<&str>,
) -> Option<String> {
    if !is_plain(&machine.image) {
        return None;
    }
    // EFI's kernels find it by the name that they were told.
    let initramfs = initramfs.filter(|name| is_plain(name));
    let initramfs = match initramfs {
        Some(name) => format!(
            "--name initramfs http://{from}/image/{}/{name}",
            machine.image
        ),
        None => format!("http://{from}/image/{}/initramfs", machine.image),
    };
    let BootMachine { mac, image, .. } = machine;
    let name = printable(&machine.name);
    let arguments = words(&machine.arguments);
    let hardware = hyphenated(*mac);
    let mut script = String::from("#!ipxe\n");
    let folder = format!("http://{from}/image/{image}");
    let _ = write!(
        script,
        "echo Wiglaf: this is {name} ({mac}), booting {image} from {from}\n\
         imgfree\n\
         kernel {folder}/kernel initrd=initramfs BOOTIF=01-{hardware}{arguments} || goto again\n\
         initrd {initramfs} || goto again\n\
         boot || goto again\n\
         :again\n\
         echo Wiglaf: that failed; trying again\n"
    );
    ask_again(&mut script, from, *mac, RETRY_S, asked.anew());
    Some(script)
}

/// Tells a machine that nobody knows what to do about it, and asks again.
pub fn unknown(from: SocketAddrV4, mac: Mac, asked: Asked) -> String {
    let mut script = String::from("#!ipxe\n");
    if asked.times == 0 {
        let _ = write!(
            script,
            "echo\n\
             echo Wiglaf: nobody has adopted this machine yet. On the head, type:\n\
             echo   wiglaf node adopt {mac}\n\
             echo It goes on by itself then.\n"
        );
    }
    let next = Asked {
        times: asked.times.saturating_add(1),
        ..asked
    };
    if next.times.is_multiple_of(QUESTIONS_PER_ADDRESS) {
        script.push_str("dhcp || echo Wiglaf: no address; trying again\n");
    }
    script.push_str(":again\n");
    ask_again(&mut script, from, mac, ASK_AGAIN_S, next);
    script
}

/// For a machine that was adopted while it had an address of those that nobody knows.
pub fn readdress(from: SocketAddrV4, machine: &BootMachine, asked: Asked) -> String {
    let mut script = String::from("#!ipxe\n");
    let name = printable(&machine.name);
    let _ = write!(
        script,
        "echo Wiglaf: this machine is {name} now; asking for its own address\n\
         :again\n\
         dhcp || echo Wiglaf: no address; trying again\n"
    );
    ask_again(&mut script, from, machine.mac, RETRY_S, asked.anew());
    script
}

/// Says what is wrong on the head, and asks again.
pub fn wait(from: SocketAddrV4, mac: Mac, asked: Asked, why: &str) -> String {
    let mut script = String::from("#!ipxe\n");
    let _ = write!(script, "echo Wiglaf: {}\n:again\n", printable(why));
    ask_again(&mut script, from, mac, ASK_AGAIN_S, asked.anew());
    script
}

fn ask_again(script: &mut String, from: SocketAddrV4, mac: Mac, pause_s: u32, asked: Asked) {
    let _ = write!(
        script,
        "sleep {pause_s}\n\
         chain --replace http://{from}/script/{}{} || goto again\n",
        hyphenated(mac),
        asked.query()
    );
}

/// As PXELINUX's `BOOTIF` has it, and URLs: colons are special there.
fn hyphenated(mac: Mac) -> String {
    mac.to_string().replace(':', "-")
}

/// Whether a name can stand in a URL, and names nothing but a folder.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// iPXE's own words of a line are none of ours.
fn words(text: &str) -> String {
    let text = printable(text);
    let words = text.split_whitespace();
    words
        .filter(|word| !matches!(*word, "||" | "&&"))
        .fold(String::new(), |all, word| all + " " + word)
}

fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_ascii_graphic() { c } else { ' ' };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 9, 0, 1), 8069);

    fn machine() -> BootMachine {
        BootMachine {
            mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            name: "n7".to_owned(),
            address: "10.9.0.17".parse().unwrap(),
            image: "default-0123456789ab".to_owned(),
            arguments: "console=ttyS0  wiglaf.debug".to_owned(),
        }
    }

    #[test]
    fn an_adopted_machine_boots_its_image() {
        let expected = "#!ipxe
echo Wiglaf: this is n7 (52:54:00:12:34:56), booting default-0123456789ab from 10.9.0.1:8069
imgfree
kernel http://10.9.0.1:8069/image/default-0123456789ab/kernel initrd=initramfs BOOTIF=01-52-54-00-12-34-56 console=ttyS0 wiglaf.debug || goto again
initrd http://10.9.0.1:8069/image/default-0123456789ab/initramfs || goto again
boot || goto again
:again
echo Wiglaf: that failed; trying again
sleep 2
chain --replace http://10.9.0.1:8069/script/52-54-00-12-34-56 || goto again
";
        let asked = Asked::default();
        let script = boot(HEAD, &machine(), asked, None);
        assert_eq!(script.as_deref(), Some(expected));
    }

    #[test]
    fn a_machine_whose_card_is_known_gets_what_that_needs() {
        let asked = Asked::parse("asked=7&card=8086-100e&else");
        assert_eq!(asked.query(), "?asked=7&card=8086-100e");
        let script = boot(HEAD, &machine(), asked, Some("initramfs-0a")).unwrap();
        assert!(script.contains(
            "\ninitrd --name initramfs \
             http://10.9.0.1:8069/image/default-0123456789ab/initramfs-0a || goto again\n"
        ));
        assert!(script.contains("kernel http://") && script.contains(" initrd=initramfs "));
        // And says it again.
        let again = "/script/52-54-00-12-34-56?card=8086-100e || goto again\n";
        assert!(script.ends_with(again), "{script}");
        assert!(readdress(HEAD, &machine(), asked).ends_with(again));
        assert!(wait(HEAD, machine().mac, asked, "x").ends_with(again));
        let unknown = unknown(HEAD, machine().mac, asked);
        assert!(unknown.ends_with("?asked=8&card=8086-100e || goto again\n"));
        for name in ["../x", "a b", ""] {
            let script = boot(HEAD, &machine(), asked, Some(name)).unwrap();
            assert!(script.contains("/initramfs || goto again\n"), "{name}");
        }
    }

    #[test]
    fn nothing_that_an_administrator_writes_adds_a_line() {
        let mut machine = machine();
        machine.arguments = "quiet || shell\nshell && x".to_owned();
        machine.name = "a\nshell".to_owned();
        let asked = Asked::default();
        let script = boot(HEAD, &machine, asked, None).unwrap();
        assert!(script.contains(" quiet shell shell x || goto again\n"));
        assert!(script.contains("this is a shell ("));
        assert_eq!(script.lines().count(), 10);
        for image in ["", "..", "a/b", "a b", ".hidden", "a\n"] {
            machine.image = image.to_owned();
            assert_eq!(boot(HEAD, &machine, asked, None), None, "{image}");
        }
    }

    #[test]
    fn a_machine_that_nobody_knows_gets_no_kernel() {
        let mac = machine().mac;
        let asked = |times| Asked { times, card: None };
        let first = unknown(HEAD, mac, asked(0));
        assert!(first.contains("echo   wiglaf node adopt 52:54:00:12:34:56\n"));
        assert!(first.contains("/script/52-54-00-12-34-56?asked=1 ||"));
        let later = unknown(HEAD, mac, asked(1));
        assert_eq!(
            later,
            "#!ipxe\n:again\nsleep 5\n\
             chain --replace http://10.9.0.1:8069/script/52-54-00-12-34-56?asked=2 || goto again\n"
        );
        assert!(unknown(HEAD, mac, asked(119)).contains("\ndhcp ||"));
        unknown(HEAD, mac, asked(u32::MAX));
        for script in [first, later] {
            assert!(!script.contains("kernel") && !script.contains("boot"));
        }
    }
}
