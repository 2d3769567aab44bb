//! A machine is forgotten that runs all the same, behind a cable that is out.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::parts::{check_run, join, soon};
use crate::vm::guest::{Firmware, Plan};
use crate::vm::head::{BOOT, Head};
use crate::vm::stage::Stage;

/// A lease is a minute.
const DOWN: Duration = Duration::from_secs(150);
/// It asks for its address every 30 s.
const REFUSED: Duration = Duration::from_secs(120);
const BOOT_ID: &[&str] = &["cat", "/proc/sys/kernel/random/boot_id"];

pub(super) fn forgotten(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = stage.guest(&head.wire, Plan::new("guest", Firmware::BiosIpxe))?;
    join(&head, &guest, "n1", 1)?;
    let before = head.on_node("n1", BOOT_ID)?;
    head.wire.plug(false)?;
    head.wait_for_state("n1", "down", DOWN)?;
    head.admin(&["node", "forget", "n1"])?;
    head.wire.plug(true)?;
    guest.wait_for("the head refuses this node", REFUSED)?;
    stage.say("n1's agent is refused, and has ended");
    guest.wait_for("its address is not its own any more", REFUSED)?;
    let (state, _) = head.node("n1")?;
    ensure!(state == "down", "n1 is {state}");
    soon("its place in the list", REFUSED, || {
        Ok(head.unknown()?.into_iter().next())
    })?;
    stage.say("it has given its address back, and is a machine that nobody knows");

    head.adopt(&guest.plan.mac, "n2")?;
    // Its console still shows the code of before, too.
    let code = soon("its new code", REFUSED, || {
        let why: Value = serde_json::from_str(&head.admin(&["node", "why", "n2", "--json"])?)?;
        Ok(why["code"].as_str().map(str::to_owned))
    })?;
    guest.wait_for(&code, BOOT)?;
    head.admin(&["node", "approve", "n2", &code])?;
    head.wait_for_state("n2", "up", BOOT)?;
    let after = head.on_node("n2", BOOT_ID)?;
    ensure!(before == after, "it has started anew");
    stage.say("it was adopted as n2, without a new start");
    check_run(&head, "n2")
}
