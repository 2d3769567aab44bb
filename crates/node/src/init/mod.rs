//! `/init` of a machine that booted from the network: PID 1 of a system that has nothing but
//! Wiglaf.
//!
//! It brings the machine as far as an agent, says on the console what keeps it from that, and
//! never gives up: whatever is missing may still come. [`supervise`] is its life afterwards.

mod card;
mod cmdline;
mod dhcp;
mod entropy;
mod ground;
mod hotplug;
mod http;
mod journal;
mod medium;
mod modules;
mod network;
mod power;
mod report;
mod room;
mod rootfs;
mod supervise;

use std::convert::Infallible;
use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use wiglaf_linux::process::set_process_title;

use cmdline::CommandLine;
use hotplug::Hotplug;
pub(crate) use http::get as fetch;
use journal::Journal;
use modules::{Loaded, Modules};
use network::{Home, LOOK_PERIOD, Network};
use report::Report;
pub(crate) use report::greet;
use supervise::Supervisor;

const COMMAND_LINE: &str = "/proc/cmdline";
const AUTHORITY: &str = "/etc/wiglaf/authority";
/// How often the machine is searched for devices that no driver was loaded for.
const DEVICE_PERIOD_MS: u64 = 1_000;
/// So that a person can read why, before it is gone.
const PANIC_PAUSE: Duration = Duration::from_secs(30);
/// Wait before trying again what should never fail.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Runs the machine. The caller is PID 1 and has one thread.
pub fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        journal::say_at_last(&format_args!(
            "init has failed, which is a mistake in Wiglaf: {panic}\nstarting anew in {} s",
            PANIC_PAUSE.as_secs()
        ));
        std::thread::sleep(PANIC_PAUSE);
        match power::end_for_good() {}
    }));
    match live() {}
}

fn live() -> Infallible {
    let problems = ground::lay();
    entropy::gather();
    // Nobody depends on it.
    let _ = set_process_title("wiglaf: init");
    let line = CommandLine::parse(&fs::read_to_string(COMMAND_LINE).unwrap_or_default());
    ground::set_limits(line.is_debug);
    let mut journal = Journal::default();
    journal.open();
    journal.say(format_args!(
        "init {} on Linux {}",
        env!("CARGO_PKG_VERSION"),
        rustix::system::uname().release().to_string_lossy()
    ));
    for problem in problems {
        journal.say(problem);
    }
    let mut modules = Modules::read();
    // Without it devices are only searched for.
    let mut hotplug = Hotplug::open().ok();
    let (mut network, mut home) = find_home(&line, &mut modules, hotplug.as_mut(), &mut journal);
    journal.say(format_args!("the head is at {}", home.head));
    if let Some(name) = &home.host_name
        && let Err(error) = network::set_host_name(name)
    {
        journal.say(format_args!("can't be called {name}: {error}"));
    }
    let absent = modules.absent();
    if !absent.is_empty() {
        journal.say(format_args!(
            "another network card here needs {}, which this start's initramfs does not have: the \
             next one's does",
            absent.join(" ")
        ));
    }
    let wants_whole = !absent.is_empty();
    match home
        .boot
        .map(|boot| Report::start(boot, home.mac, wants_whole))
    {
        Some(Ok(report)) => journal.report_by(report),
        Some(Err(errno)) => journal.say(format_args!("can't tell the head of this: {errno}")),
        None => {}
    }
    if let Some(image) = &line.medium {
        medium::follow_head(image, &mut network, &mut home, &mut journal);
    }
    let authority = read_authority(&mut journal);
    let mut system = bring_system(&mut network, &mut home, &mut journal);
    if let Some(system) = &mut system {
        system.hand_over(&home, &mut journal);
    }
    let mut supervisor = Supervisor {
        journal,
        modules,
        hotplug,
        network,
        home,
        authority,
        system,
    };
    loop {
        if let Err(errno) = supervisor.run() {
            let journal = &mut supervisor.journal;
            journal.say(format_args!("init can't go on ({errno}); trying again"));
            std::thread::sleep(RETRY_PAUSE);
        }
    }
}

/// Loads drivers, waits for cables and asks for an address, until one comes with a head.
fn find_home(
    line: &CommandLine,
    modules: &mut Modules,
    mut hotplug: Option<&mut Hotplug>,
    journal: &mut Journal,
) -> (Network, Home) {
    let mut network = loop {
        match Network::open(line.clone(), now_ms()) {
            Ok(network) => break network,
            Err(error) => {
                journal.say(format_args!("{error}; trying again"));
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    };
    let mut look_at = 0;
    let mut has_always = false;
    loop {
        let now = now_ms();
        let mut loaded = Loaded::default();
        if look_at <= now {
            modules.load_for_devices(&mut loaded);
            // What a driver has found may want one, too: the kernel tells.
            let is_over = loaded.names.is_empty() || hotplug.is_some();
            look_at = if is_over { now + DEVICE_PERIOD_MS } else { 0 };
        }
        if let Some(hotplug) = &mut hotplug {
            hotplug.load(modules, &mut loaded);
        }
        loaded.tell(journal);
        network.find_cards(now, journal);
        if let Some(home) = network.step(now, journal) {
            network.keep(&home.card);
            return (network, home);
        }
        network.explain(now, journal);
        if !has_always {
            // Only now, while a cable comes up or somebody answers.
            modules.load_always().tell(journal);
            has_always = true;
            continue;
        }
        if look_at == 0 {
            continue;
        }
        let wait = network
            .deadline()
            .map(|at| Duration::from_millis(at.saturating_sub(now_ms())))
            .map_or(LOOK_PERIOD, |wait| wait.min(LOOK_PERIOD));
        let devices = hotplug.as_ref().map(|hotplug| hotplug.as_fd());
        let mut sockets: Vec<_> = network
            .sockets()
            .chain(devices)
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        // Too early is no harm.
        let _ = poll(&mut sockets, Timespec::try_from(wait).ok().as_ref());
    }
}

/// The image's full system, if it has one. A machine that was to have it does not go on without.
fn bring_system(
    network: &mut Network,
    home: &mut Home,
    journal: &mut Journal,
) -> Option<rootfs::System> {
    loop {
        match rootfs::Wanted::read()? {
            Ok(wanted) => return Some(wanted.bring(network, home, journal)),
            Err(why) => journal.say(why),
        }
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// The CA that the head must have. An image without it is of no use, whatever is waited for.
fn read_authority(journal: &mut Journal) -> [u8; 32] {
    loop {
        let text = fs::read_to_string(AUTHORITY).unwrap_or_default();
        if let Some(authority) = parse_authority(text.trim()) {
            return authority;
        }
        journal.say(format_args!(
            "{AUTHORITY} is missing in this image, so the head can't be told from others: build \
             it anew on the head (wiglaf image build) and start this machine again"
        ));
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn parse_authority(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

impl Loaded {
    fn tell(&self, journal: &mut Journal) {
        if !self.names.is_empty() {
            journal.say(format_args!(
                "loaded {} ({} ms)",
                self.names.join(" "),
                self.took.as_millis()
            ));
        }
        for failure in &self.failures {
            journal.say(format_args!("can't load the module {failure}"));
        }
    }
}

fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_fingerprint_counts() {
        let text = "0123456789abcdef".repeat(4);
        assert_eq!(parse_authority(&text).unwrap()[..2], [0x01, 0x23]);
        for text in ["", "01", &"é".repeat(32), &"g".repeat(64), &"+1".repeat(32)] {
            assert_eq!(parse_authority(text), None, "{text}");
        }
    }
}
