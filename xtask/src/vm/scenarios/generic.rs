//! A kernel for all machines, and the network cards of PCs.

use anyhow::{Context, Result, ensure};

use super::parts::{check_run, join};
use crate::vm::guest::{Firmware, Plan};
use crate::vm::head::Head;
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

/// Its kernel alone has some 40 MiB, and the drivers of all cards are in its image.
const GENERIC_MIB: u32 = 144;
/// Network cards, as QEMU calls them, and the kernel's drivers for them.
const CARDS: &[(&str, &str)] = &[
    ("e1000", "e1000"),
    ("e1000e", "e1000e"),
    ("rtl8139", "8139cp"),
];
/// All drivers, and this program: what fetching it costs each machine.
const LARGEST_INITRAMFS: u64 = 8 << 20;

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
    head.admin(&["boot", "enable", "--interface", PORT])?;
    for (number, (card, driver)) in (1..).zip(CARDS) {
        let name = format!("n{number}");
        let plan = Plan::new(&name, Firmware::BiosIpxe)
            .card(card)
            .memory(GENERIC_MIB);
        let guest = stage.guest(&head.wire, plan)?;
        join(&head, &guest, &name, 1)?;
        let log = head.admin(&["node", "log", &name])?;
        let has_loaded = log.lines().any(|line| {
            let names = line.split_once(" loaded ").map(|(_, names)| names);
            names.is_some_and(|names| names.split(' ').any(|name| name == *driver))
        });
        ensure!(has_loaded, "{name} has not loaded {driver}: {log}");
        let free = head.on_node(&name, &["grep", "MemAvailable", "/proc/meminfo"])?;
        let free = free.split_ascii_whitespace().nth(1).unwrap_or_default();
        stage.say(&format!(
            "{name} has {card}, by {driver}; of {GENERIC_MIB} MiB, {free} kB are for tasks"
        ));
        check_run(&head, &name)?;
    }
    Ok(())
}
