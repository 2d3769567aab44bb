//! The harness by itself: a guest that other people's programs boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::vm::BUSYBOX;
use crate::vm::dnsmasq::Dnsmasq;
use crate::vm::guest::{Firmware, Plan};
use crate::vm::stage::Stage;
use crate::vm::wire::{PORT, Wire};
use crate::{debs, run};

const BOOT: Duration = Duration::from_secs(120);
/// What virtio's network card needs, in this order.
const MODULES: &[&str] = &[
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
];

/// dnsmasq, iPXE's package and busybox boot a guest, by BIOS and by UEFI.
pub(super) fn harness(stage: &Stage<'_>) -> Result<()> {
    let wire = Wire::lay(PORT, Some("10.77.0.1/24"))?;
    let files = stage.folder("tftp")?;
    fs::copy(&stage.kernel.image, files.join("kernel"))?;
    initramfs(stage, &files.join("initramfs"))?;
    fs::copy("/usr/lib/ipxe/snponly.efi", files.join("snponly.efi"))?;
    fs::write(
        files.join("script"),
        "#!ipxe\nkernel tftp://10.77.0.2/kernel console=tty0 console=ttyS0 no_timer_check initrd=initramfs\n\
         initrd tftp://10.77.0.2/initramfs\nboot\n",
    )?;
    wire.address("10.77.0.2/24")?;
    let root = format!("--tftp-root={}", files.display());
    let _dnsmasq = Dnsmasq::start(
        &wire,
        &stage.logs,
        &[
            "--dhcp-range=10.77.0.50,10.77.0.99,10m",
            "--enable-tftp",
            &root,
            "--dhcp-match=set:ipxe,175",
            "--dhcp-boot=tag:ipxe,script",
            "--dhcp-boot=tag:!ipxe,snponly.efi",
        ],
    )?;
    let bios = Plan::new("bios", Firmware::BiosIpxe).serial();
    let bios = stage.guest(&wire, bios)?;
    bios.wait_for("the initramfs runs", BOOT)?;
    stage.say("a guest with a BIOS has booted");
    // It ends by itself.
    bios.wait_for_end(BOOT)?;
    let uefi = Plan::new("uefi", Firmware::UefiPxe);
    let uefi = stage.guest(&wire, uefi)?;
    uefi.wait_for("the initramfs runs", BOOT)?;
    stage.say("a guest with UEFI has booted");
    uefi.wait_for_end(BOOT)?;
    let pc = Plan::new("screen", Firmware::BiosIpxe);
    let pc = stage.guest(&wire, pc)?;
    pc.wait_for("the initramfs runs", BOOT)?;
    stage.say("a guest's screen can be read");
    wire.lose(2)?;
    ensure!(wire.lost()? < 1_000, "the count of lost frames is wrong");
    Ok(())
}

fn initramfs(stage: &Stage<'_>, to: &Path) -> Result<()> {
    let tree: PathBuf = stage.folder("initramfs")?;
    for dir in ["bin", "dev", "lib"] {
        fs::create_dir(tree.join(dir))?;
    }
    let package = debs::fetch(&stage.workspace.join("target"), BUSYBOX)?;
    fs::copy(package.join("bin/busybox"), tree.join("bin/busybox"))?;
    for module in MODULES {
        let name = format!("{module}.ko");
        let from = stage.kernel.modules.join("kernel/drivers").join(&name);
        let to = Path::new(&name).file_name().unwrap_or_default();
        fs::copy(from, tree.join("lib").join(to))?;
    }
    fs::write(
        tree.join("init"),
        "#!/bin/busybox sh\nbusybox mount -t devtmpfs devtmpfs /dev\n\
         busybox echo the initramfs runs >/dev/tty0\nbusybox echo the initramfs runs\nbusybox sleep 2\nbusybox poweroff -f\n",
    )?;
    run::output(Command::new("chmod").arg("755").arg(tree.join("init")))?;
    let script = "cd \"$0\" && find . | cpio -o -H newc --quiet | gzip -1 >\"$1\"";
    run::output(Command::new("sh").args(["-c", script]).args([&tree, to])).map(|_| ())
}
