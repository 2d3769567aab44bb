//! A machine that was started from a medium: it does what iPXE would have done, and asks the head
//! what to boot. If that is another image than the medium's, it is fetched and started, so that a
//! medium is never outdated.
//!
//! There is no loop in that: what is started so has not been started from a medium.

use std::net::SocketAddrV4;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wiglaf_wire::agent::PowerAction;

use super::journal::Journal;
use super::network::{Home, Network};
use super::power::{self, KexecError, Next};
use super::{now_ms, supervise};

/// Between two questions.
const ASK_AGAIN_MS: u64 = 3_000;
/// A boot service that can't be asked for so long is done without.
const SERVICE_WAIT_MS: u64 = 30_000;
/// What a boot script shows to whoever sits at the machine.
const SHOWN: &str = "echo Wiglaf: ";
const SHOWN_COMMAND: &str = "echo   ";
/// What it says to a machine that has another machine's address.
const ANOTHER_ADDRESS: &str = "\ndhcp ||";

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// This image is what the machine boots.
    Stay,
    /// That one is.
    Follow(Next),
    /// The machine should have another address.
    Readdress,
    /// Nobody knows yet.
    Wait,
}

/// Returns when the medium's own image is the one to go on with: because the head says so, or
/// because nothing else can be had.
pub(super) fn follow_head(
    image: &str,
    network: &mut Network,
    home: &mut Home,
    journal: &mut Journal,
) {
    let Some(boot) = home.boot else {
        journal.say(format_args!(
            "started from a medium, with {image}; nobody says where the head's boot service is, so \
             that is what runs"
        ));
        return;
    };
    journal.say(format_args!(
        "started from a medium, with {image}; asking {boot} whether that is what to boot"
    ));
    let mut shown = String::new();
    let mut answered_ms = now_ms();
    loop {
        // It is lost and found if the address changes.
        let boot = home.boot.unwrap_or(boot);
        match ask(boot, image, network, home, &mut shown, journal) {
            Ok(true) => {
                journal.say("it is");
                return;
            }
            Ok(false) => answered_ms = now_ms(),
            Err(error) if is_passing(&error) && now_ms() < answered_ms + SERVICE_WAIT_MS => {}
            Err(error) => {
                journal.say(format_args!("{error}; going on with {image} itself"));
                return;
            }
        }
        pause(network, home, journal);
    }
}

/// Asks once, and does as it is told. Whether the medium's own image is the one.
fn ask(
    boot: SocketAddrV4,
    image: &str,
    network: &mut Network,
    home: &Home,
    shown: &mut String,
    journal: &mut Journal,
) -> Result<bool, KexecError> {
    let script = power::fetch_script(boot, home.mac, None)?;
    let answer = read(&script, image);
    let words = words(&script);
    if matches!(answer, Answer::Readdress | Answer::Wait) && words != *shown {
        journal.say(&words);
        *shown = words;
    }
    match answer {
        Answer::Stay => return Ok(true),
        Answer::Follow(next) => {
            let newer = next.image().unwrap_or_default();
            journal.say(format_args!("it is not: fetching {newer}"));
            next.load(boot, network.line())?;
            journal.say(format_args!("starting {newer} in the place of {image}"));
            supervise::finish(PowerAction::Kexec, journal);
        }
        Answer::Readdress => network.ask_anew(now_ms()),
        Answer::Wait => {}
    }
    Ok(false)
}

/// Whether it may be better the next time.
fn is_passing(error: &KexecError) -> bool {
    matches!(error, KexecError::Fetch(_) | KexecError::Damaged(_))
}

fn read(script: &str, image: &str) -> Answer {
    match Next::parse(script) {
        Some(next) if next.image() == Some(image) => Answer::Stay,
        Some(next) => Answer::Follow(next),
        None if script.contains(ANOTHER_ADDRESS) && !script.contains("?asked=") => {
            Answer::Readdress
        }
        None => Answer::Wait,
    }
}

/// What a script shows, by lines.
fn words(script: &str) -> String {
    let shown = script.lines().filter_map(|line| {
        line.strip_prefix(SHOWN)
            .map(str::to_owned)
            .or_else(|| Some(format!("  {}", line.strip_prefix(SHOWN_COMMAND)?)))
    });
    shown.collect::<Vec<_>>().join("\n")
}

/// Meanwhile the address is kept, or becomes another.
fn pause(network: &mut Network, home: &mut Home, journal: &mut Journal) {
    let until = now_ms() + ASK_AGAIN_MS;
    loop {
        let now = now_ms();
        if let Some(new) = network.step(now, journal) {
            let has_moved = new.address != home.address;
            *home = Home {
                boot: new.boot.or(home.boot),
                ..new
            };
            if has_moved {
                return;
            }
        }
        if now >= until {
            return;
        }
        let next = network.deadline().map_or(until, |at| at.min(until));
        let wait = Duration::from_millis(next.saturating_sub(now_ms()));
        let mut sockets: Vec<_> = network
            .sockets()
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        // Too early is no harm.
        let _ = poll(&mut sockets, Timespec::try_from(wait).ok().as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "#!ipxe\n\
        echo Wiglaf: this is n7 (52:54:00:12:34:56), booting a-1 from 10.9.0.1:7495\n\
        imgfree\n\
        kernel http://10.9.0.1:7495/image/a-1/kernel initrd=initramfs BOOTIF=01-52 || goto again\n\
        initrd http://10.9.0.1:7495/image/a-1/initramfs || goto again\n\
        boot || goto again\n";

    #[test]
    fn only_another_image_is_followed() {
        assert_eq!(read(KNOWN, "a-1"), Answer::Stay);
        let Answer::Follow(next) = read(KNOWN, "a-0") else {
            panic!("it must be followed");
        };
        assert_eq!(next.image(), Some("a-1"));
    }

    #[test]
    fn who_is_not_known_waits_and_is_told() {
        let unknown = "#!ipxe\necho\necho Wiglaf: nobody has adopted this machine yet. On the \
            head, type:\necho   wiglaf node adopt 52:54:00:12:34:56\nsleep 5\n\
            chain --replace http://10.9.0.1:7495/script/52?asked=1 || goto again\n";
        assert_eq!(read(unknown, "a-1"), Answer::Wait);
        assert_eq!(
            words(unknown),
            "nobody has adopted this machine yet. On the head, type:\n  wiglaf node adopt \
             52:54:00:12:34:56"
        );
        let renewing = "#!ipxe\ndhcp || echo Wiglaf: no address; trying again\n\
            chain --replace http://10.9.0.1:7495/script/52?asked=120 || goto again\n";
        assert_eq!(read(renewing, "a-1"), Answer::Wait);
    }

    #[test]
    fn who_was_adopted_meanwhile_gets_its_own_address() {
        let other = "#!ipxe\necho Wiglaf: this machine is n7 now; asking for its own address\n\
            :again\ndhcp || echo Wiglaf: no address; trying again\n\
            chain --replace http://10.9.0.1:7495/script/52 || goto again\n";
        assert_eq!(read(other, "a-1"), Answer::Readdress);
    }
}
