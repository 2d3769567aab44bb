//! A node that runs hears of another way out, and of a head that is elsewhere.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::parts::{check_run, join};
use crate::run;
use crate::vm::guest::{Firmware, Plan};
use crate::vm::head::Head;
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

/// A node asks every 30 s; then its agent has to leave and to join again, and the head has to
/// know that nothing of it is alive.
const HEARD: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_secs(1);
const BOOT_ID: &[&str] = &["cat", "/proc/sys/kernel/random/boot_id"];
const ROUTES: &[&str] = &["cat", "/proc/net/route"];

pub(super) fn moved(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = stage.guest(&head.wire, Plan::new("guest", Firmware::BiosIpxe))?;
    join(&head, &guest, "n1", 1)?;
    let before = head.on_node("n1", BOOT_ID)?;

    let words = ["boot", "enable", "--interface", PORT];
    head.admin(&[&words[..], &["--gateway", "10.77.0.254"]].concat())?;
    // As the kernel writes it.
    wait_for("the way out", || {
        Ok(head.on_node("n1", ROUTES)?.contains("FE004D0A"))
    })?;
    stage.say("n1 has a way out that was not there when it booted");
    head.admin(&words)?;
    wait_for("the way out to go", || {
        Ok(!head.on_node("n1", ROUTES)?.contains("FE004D0A"))
    })?;

    let moves = format!("address del 10.77.0.1/24 dev {PORT}");
    run::output(Command::new("ip").args(moves.split(' ')))?;
    head.admin(&[&words[..], &["--address", "10.78.0.1/24"]].concat())?;
    wait_for("n1 at its new address", || {
        let (state, address) = head.node("n1")?;
        Ok(state == "up" && address.starts_with("10.78.0."))
    })?;
    let after = head.on_node("n1", BOOT_ID)?;
    ensure!(before == after, "it has started anew");
    let log = head.log_of("n1")?;
    ensure!(log.contains("the network has changed"), "its log: {log}");
    stage.say("the head is in another network now, and n1 has followed it");
    check_run(&head, "n1")
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is_so()? {
        if started.elapsed() > HEARD {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
