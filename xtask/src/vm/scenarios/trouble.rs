//! What goes wrong with wires, heads and network cards.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::parts::{check_run, join};
use crate::vm::guest::{Firmware, Plan};
use crate::vm::head::{BOOT, CODE, Head};
use crate::vm::stage::Stage;

/// How long nobody answers.
const AWAY: Duration = Duration::from_secs(3);
const REPORT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(500);
const LOST_PERCENT: u32 = 2;

/// The head and the boot service are killed while a machine fetches its kernel, and again while
/// it waits for its approval.
pub(super) fn head_killed(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = stage.guest(&head.wire, Plan::new("guest", Firmware::BiosIpxe))?;
    head.wait_for_unknown(&guest)?;
    head.adopt(&guest.plan.mac, "n1")?;
    guest.wait_for("/kernel", BOOT)?;
    head.kill()?;
    stage.say("killed while the kernel was on its way");
    std::thread::sleep(AWAY);
    head.start()?;
    guest.wait_for(CODE, BOOT)?;
    head.kill()?;
    stage.say("killed while the machine waited for its approval");
    std::thread::sleep(AWAY);
    head.start()?;
    // A new head hears of it when it asks next.
    let started = Instant::now();
    while !head
        .admin(&["node", "why", "n1"])?
        .contains("waits for somebody")
    {
        ensure!(
            started.elapsed() < REPORT,
            "the new head does not hear of it"
        );
        std::thread::sleep(POLL);
    }
    head.approve(&guest, "n1")?;
    head.wait_up(1)?;
    stage.say("n1 is up all the same");
    check_run(&head, "n1")
}

/// A bad cable.
pub(super) fn loss(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    head.wire.lose(LOST_PERCENT)?;
    for (name, firmware) in [("n1", Firmware::BiosIpxe), ("n2", Firmware::UefiPxe)] {
        let guest = stage.guest(&head.wire, Plan::new(name, firmware))?;
        join(&head, &guest, name, 1)?;
        check_run(&head, name)?;
    }
    let lost = head.wire.lost()?;
    ensure!(lost > 0, "no frame was lost");
    stage.say(&format!("{lost} frames were lost on the way"));
    Ok(())
}

/// Two network cards with one address: both machines' owner is told.
pub(super) fn twins(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let mac = "52:54:00:77:77:77";
    let twin = |name: &str| {
        let plan = Plan::new(name, Firmware::BiosIpxe).mac(mac);
        stage.guest(&head.wire, plan)
    };
    // Of machines that nobody knows, nothing is remembered by which they could be told apart.
    head.admin(&["node", "adopt", mac])?;
    let _one = twin("one")?;
    let _other = twin("other")?;
    let started = Instant::now();
    loop {
        let status = head.admin(&["boot", "status"])?;
        if let Some(line) = status.lines().find(|line| line.contains(mac)) {
            stage.say(&format!("told: {}", line.trim()));
            return Ok(());
        }
        if started.elapsed() > REPORT {
            bail!("`wiglaf boot status` has no word about {mac}:\n{status}");
        }
        std::thread::sleep(POLL);
    }
}
