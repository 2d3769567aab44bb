//! Nodes are started anew and switched off from the head.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::parts::{check_run, join};
use crate::vm::guest::{Firmware, Guest, KEXEC_MIB, Plan};
use crate::vm::head::{BOOT, Head};
use crate::vm::stage::Stage;

const END: Duration = Duration::from_secs(60);
const BOOT_ID: &[&str] = &["cat", "/proc/sys/kernel/random/boot_id"];

pub(super) fn reboot(stage: &Stage<'_>) -> Result<()> {
    let mut plan = plan();
    plan.reboots = true;
    anew(stage, plan, &["node", "reboot", "n1"]).map(drop)
}

/// QEMU ends if the firmware is asked.
pub(super) fn kexec(stage: &Stage<'_>) -> Result<()> {
    let plan = plan().memory(KEXEC_MIB);
    let log = anew(stage, plan, &["node", "reboot", "--kexec", "n1"])?;
    // As its iPXE did.
    ensure!(
        log.contains("the next kernel is loaded, and initramfs-"),
        "it fetched more than its network card needs: {log}"
    );
    Ok(())
}

/// It comes back, and nobody approves it again. Gives its log.
fn anew(stage: &Stage<'_>, plan: Plan, words: &[&str]) -> Result<String> {
    let head = Head::found(stage)?;
    let guest = node(stage, &head, plan)?;
    let before = head.on_node("n1", BOOT_ID)?;
    head.admin(words)?;
    head.wait_for_state_but("n1", "up", END)?;
    stage.say("n1 has gone");
    head.wait_for_return(&guest, "n1", BOOT)?;
    let after = head.on_node("n1", BOOT_ID)?;
    ensure!(before != after, "it has not started anew");
    stage.say("n1 has started anew, and nobody had to approve it");
    check_run(&head, "n1")?;
    head.admin(&["node", "log", "n1"])
}

pub(super) fn power_off(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = node(stage, &head, plan())?;
    head.admin(&["node", "poweroff", "n1"])?;
    let status = guest.wait_for_end(END)?;
    ensure!(status.success(), "QEMU ended with {status}");
    head.wait_for_state("n1", "down", END)?;
    stage.say("n1 is off, and down for the head");
    Ok(())
}

fn plan() -> Plan {
    Plan::new("guest", Firmware::BiosIpxe)
}

fn node<'w>(stage: &Stage<'_>, head: &'w Head<'_>, plan: Plan) -> Result<Guest<'w>> {
    let guest = stage.guest(&head.wire, plan)?;
    join(head, &guest, "n1", 1)?;
    Ok(guest)
}
