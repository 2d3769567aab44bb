//! Nodes are started anew and switched off from the head.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::parts::{check_run, join};
use crate::vm::guest::{Firmware, Guest, Plan};
use crate::vm::head::{BOOT, Head};
use crate::vm::stage::Stage;

const END: Duration = Duration::from_secs(60);
const BOOT_ID: &[&str] = &["cat", "/proc/sys/kernel/random/boot_id"];

pub(super) fn reboot(stage: &Stage<'_>) -> Result<()> {
    anew(stage, &["node", "reboot", "n1"], true)
}

pub(super) fn kexec(stage: &Stage<'_>) -> Result<()> {
    anew(stage, &["node", "reboot", "--kexec", "n1"], false)
}

/// It comes back, by its firmware or without, and nobody has to approve it again.
fn anew(stage: &Stage<'_>, words: &[&str], by_firmware: bool) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = node(stage, &head)?;
    let before = head.on_node("n1", BOOT_ID)?;
    guest.console.mark();
    head.admin(words)?;
    guest.wait_for("Linux version", BOOT)?;
    head.wait_for_state("n1", "up", BOOT)?;
    let after = head.on_node("n1", BOOT_ID)?;
    ensure!(before != after, "it has not started anew");
    let shown = guest.console.news();
    ensure!(!shown.contains("Code "), "it had to be approved again");
    ensure!(
        shown.contains("iPXE") == by_firmware,
        "its firmware was {}asked",
        if by_firmware { "not " } else { "" }
    );
    stage.say("n1 has started anew, and nobody had to approve it");
    check_run(&head, "n1")
}

pub(super) fn power_off(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = node(stage, &head)?;
    head.admin(&["node", "poweroff", "n1"])?;
    let status = guest.wait_for_end(END)?;
    ensure!(status.success(), "QEMU ended with {status}");
    head.wait_for_state("n1", "down", END)?;
    stage.say("n1 is off, and down for the head");
    Ok(())
}

fn node<'w>(stage: &Stage<'_>, head: &'w Head<'_>) -> Result<Guest<'w>> {
    let plan = Plan::new("guest", Firmware::BiosIpxe).reboots();
    let guest = stage.guest(&head.wire, plan)?;
    join(head, &guest, "n1", 1)?;
    Ok(guest)
}
