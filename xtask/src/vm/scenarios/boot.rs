//! Machines of all kinds become nodes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::parts::{check_make, check_run, check_unknown, join};
use crate::vm::dnsmasq::Dnsmasq;
use crate::vm::guest::{Firmware, Guest, Plan, SMALL_MIB};
use crate::vm::head::Head;
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

/// A compiler is a large program.
const COMPILER_MIB: u32 = 224;
/// From a reset to the second firmware's words.
const FIRMWARE: Duration = Duration::from_secs(60);

/// One machine, by this firmware.
fn one(stage: &Stage<'_>, firmware: Firmware) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = stage.guest(&head.wire, Plan::new("guest", firmware))?;
    join(&head, &guest, "n1", 1)?;
    check_run(&head, "n1")
}

pub(super) fn bios(stage: &Stage<'_>) -> Result<()> {
    stage.say(&format!("the machine has {SMALL_MIB} MiB"));
    one(stage, Firmware::BiosIpxe)
}

pub(super) fn uefi(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = stage.guest(&head.wire, Plan::new("guest", Firmware::UefiPxe))?;
    join(&head, &guest, "n1", 1)?;
    // OVMF would try HTTP after that.
    ensure!(
        guest
            .console
            .text()
            .contains("NBP file downloaded successfully"),
        "its firmware has not booted by PXE:{}",
        guest.console.tail()
    );
    check_run(&head, "n1")
}

pub(super) fn uefi_http(stage: &Stage<'_>) -> Result<()> {
    one(stage, Firmware::UefiHttp)
}

/// A card that knows only TFTP: iPXE that is told to be one.
pub(super) fn old_card(stage: &Stage<'_>) -> Result<()> {
    let script = "dhcp net0\nchain tftp://${next-server}/undionly.kpxe";
    let head = Head::found(stage)?;
    let plan = Plan::new("guest", Firmware::BiosScript(script.to_owned()));
    let guest = stage.guest(&head.wire, plan)?;
    guest.wait_for("undionly.kpxe... ok", FIRMWARE)?;
    stage.say("the boot program came by TFTP");
    join(&head, &guest, "n1", 1)?;
    check_run(&head, "n1")
}

pub(super) fn unknown(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guest = stage.guest(&head.wire, Plan::new("guest", Firmware::BiosIpxe))?;
    check_unknown(&head, &[&guest])?;
    // It asks again by itself: nobody has to go there and switch it off and on.
    join(&head, &guest, "n1", 1)
}

/// Two machines that nobody knows, and what they are for.
pub(super) fn nodes(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guests = two(stage, &head)?;
    check_unknown(&head, &[&guests[0], &guests[1]])?;
    join_both(&head, &guests)?;
    check_run(&head, "n1")?;
    check_make(&head, &["n1", "n2"])
}

pub(super) fn make(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let guests = two(stage, &head)?;
    join_both(&head, &guests)?;
    check_make(&head, &["n1", "n2"])
}

fn two<'w>(stage: &Stage<'_>, head: &'w Head<'_>) -> Result<[Guest<'w>; 2]> {
    let guest = |name: &str| {
        let plan = Plan::new(name, Firmware::BiosIpxe).memory(COMPILER_MIB);
        stage.guest(&head.wire, plan)
    };
    Ok([guest("one")?, guest("other")?])
}

/// Both adopted before either is waited for, so that they start side by side.
fn join_both(head: &Head<'_>, guests: &[Guest<'_>; 2]) -> Result<()> {
    for (guest, name) in guests.iter().zip(["n1", "n2"]) {
        head.wait_for_unknown(guest)?;
        head.adopt(&guest.plan.mac, name)?;
    }
    for (guest, name) in guests.iter().zip(["n1", "n2"]) {
        head.approve(guest, name)?;
    }
    head.wait_up(2)?;
    head.stage.say("n1 and n2 are up");
    Ok(())
}

/// Somebody else gives the addresses; we only say what to boot.
pub(super) fn proxy(stage: &Stage<'_>) -> Result<()> {
    let head = Head::with_image(stage)?;
    head.wire.address("10.77.0.2/24")?;
    let range = "--dhcp-range=10.77.0.150,10.77.0.199,10m";
    let _dnsmasq = Dnsmasq::start(&head.wire, &stage.logs, &[range])?;
    head.admin(&["boot", "enable", "--interface", PORT, "--proxy"])?;
    for (name, firmware) in [("n1", Firmware::BiosIpxe), ("n2", Firmware::UefiPxe)] {
        // The first goes on beside the second: `nodes --wait` counts those that are up.
        let guest = stage.guest(&head.wire, Plan::new(name, firmware))?;
        join(&head, &guest, name, 1)?;
        let (_, address) = head.node(name)?;
        let host: Option<u8> = address
            .rsplit('.')
            .next()
            .and_then(|last| last.parse().ok());
        ensure!(
            host.is_some_and(|host| (150..=199).contains(&host)),
            "{name} has the address {address}, which dnsmasq has not given"
        );
        check_run(&head, name)?;
    }
    Ok(())
}
