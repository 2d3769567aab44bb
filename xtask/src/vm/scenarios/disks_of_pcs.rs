//! Disks of the kinds that PCs have.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::parts::join;
use crate::vm::guest::{Cable, Firmware, Plan};
use crate::vm::head::{BOOT, Head};
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

const DISK_BYTES: u64 = 600 << 20;
/// A kernel for all machines, its drivers for disks, and mkfs.
const MEMORY_MIB: u32 = 320;
const KINDS: [(Cable, &str); 4] = [
    (Cable::Usb, "on-usb"),
    (Cable::Nvme, "on-nvme"),
    (Cable::Sata, "on-sata"),
    (Cable::Scsi, "on-scsi"),
];
const LAYOUT: &str = "
[[disk]]
device = \"first\"
scratch = \"rest\"

[[disk]]
device = \"on-usb\"
swap = \"rest\"
";
const APPLY: Duration = Duration::from_secs(180);
const END: Duration = Duration::from_secs(60);

pub(super) fn disks_of_pcs(stage: &Stage<'_>) -> Result<()> {
    let head = Head::with_system(stage, &["--disk"])?;
    head.admin(&["boot", "enable", "--interface", PORT])?;
    let mut plan = Plan::new("guest", Firmware::BiosIpxe)
        .card("e1000e")
        .memory(MEMORY_MIB)
        .serial();
    plan.reboots = true;
    for (cable, serial) in KINDS {
        let file = stage.dir.join(format!("{serial}.img"));
        File::create(&file)?.set_len(DISK_BYTES)?;
        plan = plan.disk_on(cable, serial, file);
    }
    let guest = stage.guest(&head.wire, plan)?;
    join(&head, &guest, "n1", 1)?;

    let shown = head.admin(&["disk", "show"])?;
    for (_, serial) in KINDS {
        let line = shown.lines().find(|line| line.contains(serial));
        let line = line.with_context(|| format!("there is no {serial} in {shown}"))?;
        ensure!(line.ends_with("empty"), "{shown}");
        stage.say(line);
    }

    let config = stage.dir.join("w/state/wiglaf.toml");
    File::options()
        .append(true)
        .open(config)?
        .write_all(LAYOUT.as_bytes())?;
    let applied = head.admin_within(&["disk", "apply"], APPLY)?;
    stage.say(applied.trim());
    let used = |what: &str| -> Result<()> {
        let shown = head.admin(&["disk", "show"])?;
        let disk = |serial: &str| -> Result<String> {
            let line = shown.lines().find(|line| line.contains(serial));
            let device = line.and_then(|line| line.split_ascii_whitespace().nth(1));
            Ok(device.context("it was there")?.to_owned())
        };
        let usb = disk("on-usb")?;
        let is_used = |device: &str, how: &str| {
            let mut lines = shown.lines();
            lines.any(|line| line.contains(device) && line.contains(how))
        };
        ensure!(is_used(&usb, "wiglaf swap, on"), "{shown}");
        let mut others = ["on-nvme", "on-sata", "on-scsi"].into_iter();
        let is_scratch = |serial: &str| {
            disk(serial).is_ok_and(|device| is_used(&device, "wiglaf scratch: ext4, at /scratch"))
        };
        let scratch = others.find(|serial| is_scratch(serial));
        let scratch = scratch.with_context(|| shown.clone())?;
        head.on_node("n1", &["sh", "-c", "echo here >/scratch/mine"])?;
        stage.say(&format!("{what}: swap on-usb, scratch {scratch}"));
        Ok(())
    };
    used("laid out")?;
    head.admin(&["node", "reboot", "n1"])?;
    head.wait_for_state_but("n1", "up", END)?;
    head.wait_for_state("n1", "up", BOOT)
        .with_context(|| guest.console.tail())?;
    ensure!(head.on_node("n1", &["cat", "/scratch/mine"])? == "here");
    used("after a new start")
}
