//! A kernel for all machines, and the network cards of PCs: each is sent what its own needs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::parts::{check_run, join};
use crate::vm::guest::{Firmware, Guest, Plan};
use crate::vm::head::{BOOT, Head};
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

/// Its kernel alone has some 40 MiB, and a machine with several cards gets the drivers of all.
const GENERIC_MIB: u32 = 144;
/// Network cards, as QEMU calls them, and the kernel's drivers for them.
const CARDS: &[(&str, &str)] = &[
    ("e1000", "e1000"),
    ("e1000e", "e1000e"),
    ("rtl8139", "8139cp"),
];
/// A card that no machine above has.
const SPARE: (&str, &str) = ("pcnet", "pcnet32");
/// All drivers, and this program.
const LARGEST_INITRAMFS: u64 = 8 << 20;
/// What fetching it costs a machine by one of those cards.
const LARGEST_BY_CARD: u64 = 4_000_000;
const END: Duration = Duration::from_secs(60);
const LOG_WAIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(500);

pub(super) fn generic(stage: &Stage<'_>) -> Result<()> {
    let head = Head::with_image(stage)?;
    let size = |name: &str| -> Result<u64> {
        let path = head.image()?.join(name);
        let size = path
            .metadata()
            .with_context(|| path.display().to_string())?;
        Ok(size.len())
    };
    let (kernel, initramfs) = (size("kernel")?, size("initramfs")?);
    stage.say(&format!(
        "kernel and initramfs have {} kB and {} kB",
        kernel / 1000,
        initramfs / 1000
    ));
    ensure!(
        initramfs <= LARGEST_INITRAMFS,
        "an initramfs of {initramfs} bytes"
    );
    let list = head.image()?.join("cards");
    let list = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    head.admin(&["boot", "enable", "--interface", PORT])?;
    for (number, (card, driver)) in (1..).zip(CARDS) {
        let name = format!("n{number}");
        let plan = Plan::new(&name, Firmware::BiosIpxe)
            .card(card)
            .memory(GENERIC_MIB)
            .serial();
        let guest = stage.guest(&head.wire, plan)?;
        join(&head, &guest, &name, 1)?;
        has_loaded(&head, &name, driver)?;
        let file = fetched(&guest)?;
        let size = size_of(&list, &file).with_context(|| format!("{name} fetched {file}"))?;
        ensure!(size <= LARGEST_BY_CARD, "{file} has {size} bytes");
        stage.say(&format!("{name} was sent {} kB of it", size / 1000));
        let free = head.on_node(&name, &["grep", "MemAvailable", "/proc/meminfo"])?;
        let free = free.split_ascii_whitespace().nth(1).unwrap_or_default();
        stage.say(&format!(
            "{name} has {card}, by {driver}; of {GENERIC_MIB} MiB, {free} kB are for tasks"
        ));
        check_run(&head, &name)?;
    }
    several(stage, &head)
}

/// A machine with another card, too, says so, and has all drivers from its next start on.
fn several(stage: &Stage<'_>, head: &Head<'_>) -> Result<()> {
    let (card, driver) = SPARE;
    let mut plan = Plan::new("several", Firmware::BiosIpxe)
        .card("e1000")
        .spare_card(card)
        .memory(GENERIC_MIB)
        .serial();
    plan.reboots = true;
    let guest = stage.guest(&head.wire, plan)?;
    join(head, &guest, "several", 1)?;
    let file = fetched(&guest)?;
    ensure!(file.starts_with("initramfs-"), "it fetched {file}");
    let log = head.admin(&["node", "log", "several"])?;
    let said = format!("another network card here needs {driver}");
    ensure!(log.contains(&said), "it does not say what it lacks: {log}");
    head.admin(&["node", "reboot", "several"])?;
    head.wait_for_state_but("several", "up", END)?;
    head.wait_for_return(&guest, "several", BOOT)?;
    has_loaded(head, "several", driver)?;
    let file = fetched(&guest)?;
    ensure!(file == "initramfs", "it fetched {file}");
    stage.say(&format!(
        "a machine with {card}, too, was sent all drivers when it started again"
    ));
    check_run(head, "several")
}

/// What a machine says comes on its own way, perhaps after its agent.
fn has_loaded(head: &Head<'_>, name: &str, driver: &str) -> Result<()> {
    let until = Instant::now() + LOG_WAIT;
    loop {
        let log = head.admin(&["node", "log", name])?;
        let has_loaded = log.lines().any(|line| {
            let names = line.split_once(" loaded ").map(|(_, names)| names);
            names.is_some_and(|names| names.split(' ').any(|name| name == driver))
        });
        if has_loaded {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "{name} has not loaded {driver}: {log}"
        );
        std::thread::sleep(POLL);
    }
}

/// Which initramfs its iPXE has shown that it fetches, the last time.
fn fetched(guest: &Guest<'_>) -> Result<String> {
    let text = guest.console.text();
    let urls = text.match_indices("/image/").map(|(at, _)| &text[at..]);
    let files = urls.filter_map(|url| {
        let file = url.split('/').nth(3)?;
        file.split(|c: char| c.is_whitespace() || c == '.').next()
    });
    let file = files.filter(|file| file.starts_with("initramfs")).last();
    let file = file.context("its iPXE has shown no initramfs")?;
    Ok(file.to_owned())
}

/// Bytes of the parts that make this file.
fn size_of(list: &str, file: &str) -> Result<u64> {
    let mut lines = list.lines();
    let parts = lines.find_map(|line| line.strip_prefix("file ")?.strip_prefix(file));
    let parts = parts.context("the image has no such file")?;
    let sizes = parts.split_ascii_whitespace().map(|part| -> Result<u64> {
        let (start, end) = part.split_once('-').context("no part")?;
        Ok(end.parse::<u64>()? - start.parse::<u64>()?)
    });
    sizes.sum()
}
