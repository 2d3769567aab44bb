//! Machines that can't start from the network start from a CD or a stick, and go on as if they
//! could.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::parts::{check_run, join};
use crate::vm::dnsmasq::Dnsmasq;
use crate::vm::guest::{Firmware, Guest, KEXEC_MIB, Plan};
use crate::vm::head::{BOOT, Head, IMAGE};
use crate::vm::stage::Stage;
use crate::vm::wire::PORT;

/// The kernel shows itself on the screen and on the serial line.
const ARGUMENTS: &str = "console=tty0 console=ttyS0 no_timer_check";
const COMMAND_LINE: &[&str] = &["cat", "/proc/cmdline"];
const DISK_BYTES: u64 = 1 << 30;
/// With drivers for disks.
const MEMORY_MIB: u32 = 256;
/// In the command line of what was started from a medium, and of nothing else.
const MARK: &str = "wiglaf.medium=";

/// By a BIOS; the second time the head has something newer.
pub(super) fn cd(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let (medium, old) = write(&head)?;
    let plan = Plan::new("guest", Firmware::Cdrom(medium)).memory(KEXEC_MIB);
    let guest = stage.guest(&head.wire, plan.clone())?;
    // Its console says what to type at the head.
    head.wait_for_unknown(&guest)?;
    guest.wait_for(&format!("wiglaf node adopt {}", guest.plan.mac), BOOT)?;
    stage.say("a machine that nobody knows says so, and waits");
    join(&head, &guest, "n1", 1)?;
    check_origin(&head, "n1", Some(&old))?;
    check_run(&head, "n1")?;

    let new = build_newer(&head, &old)?;
    drop(guest);
    head.wait_for_state_but("n1", "up", BOOT)?;
    let guest = stage.guest(&head.wire, plan)?;
    head.wait_for_state("n1", "up", BOOT)
        .with_context(|| guest.console.tail())?;
    check_follows(&head, "n1", &new, &old)
}

/// Somebody else gives the addresses there, and nothing of ours is asked before `/init` is.
pub(super) fn cd_proxy(stage: &Stage<'_>) -> Result<()> {
    let head = Head::with_image(stage)?;
    head.wire.address("10.77.0.2/24")?;
    let range = "--dhcp-range=10.77.0.150,10.77.0.199,10m";
    let _dnsmasq = Dnsmasq::start(&head.wire, &stage.logs, &[range])?;
    head.admin(&["boot", "enable", "--interface", PORT, "--proxy"])?;
    let (medium, old) = write(&head)?;
    let plan = Plan::new("guest", Firmware::Cdrom(medium));
    let guest = stage.guest(&head.wire, plan)?;
    // On such a wire are other people's machines, which nobody lists.
    guest.wait_for(&format!("wiglaf node adopt {}", guest.plan.mac), BOOT)?;
    head.adopt(&guest.plan.mac, "n1")?;
    head.approve(&guest, "n1")?;
    head.wait_up(1)?;
    stage.say("n1 is up, with an address from dnsmasq");
    check_origin(&head, "n1", Some(&old))?;
    check_run(&head, "n1")
}

/// One file for both kinds of firmware.
pub(super) fn stick(stage: &Stage<'_>) -> Result<()> {
    let head = Head::found(stage)?;
    let (medium, old) = write(&head)?;
    let plug = |name: &str, is_uefi| -> Result<Guest<'_>> {
        let medium = medium.clone();
        let firmware = Firmware::Stick { medium, is_uefi };
        stage.guest(&head.wire, Plan::new(name, firmware))
    };
    {
        let guest = plug("bios", false)?;
        join(&head, &guest, "n1", 1)?;
        check_origin(&head, "n1", Some(&old))?;
        check_run(&head, "n1")?;
        stage.say("a BIOS starts the stick");
    }
    {
        let guest = plug("uefi", true)?;
        join(&head, &guest, "n2", 1)?;
        head.wait_for_state("n2", "up", BOOT)?;
        check_origin(&head, "n2", Some(&old))?;
        check_run(&head, "n2")?;
        stage.say("UEFI starts the stick");
    }
    let new = build_newer(&head, &old)?;
    head.wait_for_state_but("n2", "up", BOOT)?;
    let guest = plug("uefi", true)?;
    head.wait_for_state("n2", "up", BOOT)
        .with_context(|| guest.console.tail())?;
    check_follows(&head, "n2", &new, &old)
}

/// The machine starts from the network at first, and then from its disk.
pub(super) fn install(stage: &Stage<'_>) -> Result<()> {
    let head = Head::with_system(stage, &["--disk"])?;
    head.admin(&["boot", "enable", "--interface", PORT])?;
    let disk = stage.dir.join("disk.img");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    let plan = |firmware| {
        let plan = Plan::new("guest", firmware).memory(MEMORY_MIB);
        plan.disk("own", disk.clone())
    };
    let guest = stage.guest(&head.wire, plan(Firmware::BiosIpxe))?;
    join(&head, &guest, "n1", 1)?;
    check_origin(&head, "n1", None)?;
    check_refusals(&head)?;
    check_failure(&head)?;
    let to = ["--disk", "n1", "--device", "/dev/vda"];
    let image = write_to(&head, &to)?;
    let error = refused(&head, &[])?;
    ensure!(
        error.contains("it has") && error.contains("--overwrite"),
        "{error}"
    );
    write_to(&head, &[&to[..], &["--overwrite"]].concat())?;
    stage.say("what is on the disk is overwritten only if that is said");

    head.admin(&["node", "poweroff", "n1"])?;
    guest.wait_for_end(BOOT)?;
    drop(guest);
    head.wait_for_state_but("n1", "up", BOOT)?;
    let guest = stage.guest(&head.wire, plan(Firmware::Disk))?;
    head.wait_for_state("n1", "up", BOOT)
        .with_context(|| guest.console.tail())?;
    check_origin(&head, "n1", Some(&image))?;
    check_run(&head, "n1")?;
    stage.say("it starts from its own disk");
    Ok(())
}

/// Whoever may not, and what is not there; nothing of it is left.
fn check_refusals(head: &Head<'_>) -> Result<()> {
    let words = ["image", "write", "--disk", "n1", "--device"];
    let said = head.user(&head.stage.dir, &[&words[..], &["/dev/vda"]].concat())?;
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(
        !said.status.success() && error.contains("only root and the cluster's administrators"),
        "a user hears {error:?}"
    );
    let said = head.admin_output(&[&words[..], &["/dev/vdz"]].concat(), IMAGE)?;
    let error = String::from_utf8_lossy(&said.stderr);
    ensure!(error.contains("it has no disk /dev/vdz"), "{error}");
    check_nothing_left(head)
}

/// A node that can't fetch the medium has lost nothing, and the head keeps nothing.
fn check_failure(head: &Head<'_>) -> Result<()> {
    head.admin(&["boot", "disable", "--interface", PORT])?;
    let error = refused(head, &[])?;
    ensure!(error.contains("the medium can't be fetched"), "{error}");
    check_nothing_left(head)?;
    head.admin(&["boot", "enable", "--interface", PORT])?;
    let shown = head.admin(&["disk", "show", "-w", "n1"])?;
    ensure!(shown.contains("empty"), "{shown}");
    head.stage
        .say("without a boot service it is not written, and nothing is left");
    Ok(())
}

/// Why it is not written.
fn refused(head: &Head<'_>, more: &[&str]) -> Result<String> {
    let words = ["image", "write", "--disk", "n1", "--device", "own"];
    let said = head.admin_output(&[&words[..], more].concat(), IMAGE)?;
    ensure!(!said.status.success(), "it is written");
    Ok(String::from_utf8_lossy(&said.stderr).into_owned())
}

fn write_to(head: &Head<'_>, to: &[&str]) -> Result<String> {
    let words = ["image", "write", "--arguments", ARGUMENTS, "--json"];
    let said = head.admin_within(&[&words[..], to].concat(), IMAGE)?;
    let said: Value = serde_json::from_str(&said).context("image write --json")?;
    let field = |name: &str| said.get(name).and_then(Value::as_str);
    ensure!(
        field("node") == Some("n1") && field("path") == Some("/dev/vda"),
        "{said}"
    );
    let image = field("image").context("it names no image")?.to_owned();
    check_nothing_left(head)?;
    head.stage
        .say(&format!("n1 has written {image} to its disk"));
    Ok(image)
}

fn check_nothing_left(head: &Head<'_>) -> Result<()> {
    let images = head.image()?;
    let images = images.parent().context("no folder of images")?;
    for entry in fs::read_dir(images)?.flatten() {
        let name = entry.file_name();
        let is_left = name.to_string_lossy().starts_with(".medium-");
        ensure!(!is_left, "{} is left", entry.path().display());
    }
    Ok(())
}

/// A medium with what machines boot now, and the ID of that.
fn write(head: &Head<'_>) -> Result<(PathBuf, String)> {
    let path = head.stage.dir.join("medium.iso");
    let file = path.to_string_lossy();
    let words = ["image", "write", "--iso", &file];
    let words = [&words[..], &["--arguments", ARGUMENTS, "--json"]].concat();
    let said = head.admin_within(&words, IMAGE)?;
    let said: Value = serde_json::from_str(&said).context("image write --json")?;
    let image = said.get("image").and_then(Value::as_str);
    let image = image.context("it names no image")?.to_owned();
    head.stage.say(&format!("a medium with {image} is written"));
    Ok((path, image))
}

/// An image that takes the old one's place.
fn build_newer(head: &Head<'_>, old: &str) -> Result<String> {
    let kernel = head.stage.kernel;
    let (image, modules) = (
        kernel.image.to_string_lossy(),
        kernel.modules.to_string_lossy(),
    );
    let words = ["image", "build", "--kernel", &image, "--modules", &modules];
    let words = [&words[..], &["--include", "/usr/bin/true", "--json"]].concat();
    let said = head.admin_within(&words, IMAGE)?;
    let said: Value = serde_json::from_str(&said).context("image build --json")?;
    let new = said.get("id").and_then(Value::as_str).context("no id")?;
    ensure!(new != old, "another image has the same name");
    Ok(new.to_owned())
}

/// Whether it runs what was on the medium.
fn check_origin(head: &Head<'_>, node: &str, medium: Option<&str>) -> Result<()> {
    let line = head.on_node(node, COMMAND_LINE)?;
    let found = line
        .split(' ')
        .find_map(|word| word.strip_prefix(MARK))
        .filter(|image| !image.is_empty());
    ensure!(
        found == medium,
        "{node} runs {line:?}, which is not of {medium:?}"
    );
    Ok(())
}

/// It runs the head's image, which its log tells, and not what was on the medium.
fn check_follows(head: &Head<'_>, node: &str, new: &str, old: &str) -> Result<()> {
    check_origin(head, node, None)?;
    let log = head.log_of(node)?;
    let wanted = format!("starting {new} in the place of {old}");
    ensure!(log.contains(&wanted), "{node} has not said {wanted:?}");
    head.stage
        .say(&format!("{node} goes on with the head's newer image"));
    Ok(())
}
