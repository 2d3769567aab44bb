//! A guest: QEMU without acceleration, as one finds it everywhere.

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::console::Console;
use super::wire::Wire;

const QEMU: &str = "qemu-system-x86_64";
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// QEMU's least processor has no random numbers, which a PC's has, and the kernel gathers them for
/// a second.
const PC: &str = "qemu64,+rdrand";
/// OVMF's own names for its options (OvmfPkg/RUNBOOK, README).
const NO_PXE: &str = "name=opt/org.tianocore/IPv4PXESupport,string=n";
const NO_PXE6: &str = "name=opt/org.tianocore/IPv6PXESupport,string=n";
/// A machine that was told to boot from nothing tries again so soon, in milliseconds.
const BIOS_RETRY: &str = "reboot-timeout=2000";
const POLL: Duration = Duration::from_millis(50);

/// The least that a node needs.
pub(super) const SMALL_MIB: u32 = 112;
/// Linux gives the next kernel no more than half of its memory, and keeps copies of what it loads.
pub(super) const KEXEC_MIB: u32 = 192;
/// What QEMU's own guests have.
const VIRTIO: &str = "virtio-net-pci";
/// OVMF itself takes more than half of this.
pub(super) const UEFI_MIB: u32 = 256;

/// What a machine does when it is switched on.
#[derive(Clone, Debug)]
pub(super) enum Firmware {
    /// SeaBIOS, and iPXE in the network card.
    BiosIpxe,
    /// SeaBIOS, and an iPXE that does as this script says: it can play older network cards.
    BiosScript(String),
    /// OVMF's own PXE.
    UefiPxe,
    /// OVMF's own HTTP boot.
    UefiHttp,
    /// SeaBIOS and a CD.
    Cdrom(PathBuf),
    /// SeaBIOS or OVMF, and a USB stick.
    Stick { medium: PathBuf, is_uefi: bool },
    /// SeaBIOS and the first of its disks; nothing is asked of the network.
    Disk,
}

impl Firmware {
    fn is_uefi(&self) -> bool {
        matches!(
            self,
            Firmware::UefiPxe | Firmware::UefiHttp | Firmware::Stick { is_uefi: true, .. }
        )
    }
}

/// What a machine's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// Ours.
    Ours,
    /// While it works, each instruction takes two to the power of this many nanoseconds; while it
    /// waits, its time is ours (QEMU, docs/devel/tcg-icount).
    Counts(u8),
}

/// What a disk hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cable {
    Virtio,
    Nvme,
    Sata,
    Scsi,
    Usb,
}

impl Cable {
    /// What it needs beside the disk. A machine has one of each kind.
    fn devices(self) -> &'static [&'static str] {
        match self {
            Cable::Virtio | Cable::Nvme => &[],
            Cable::Sata => &["ich9-ahci,id=sata"],
            Cable::Scsi => &["virtio-scsi-pci,id=scsi"],
            Cable::Usb => &["qemu-xhci,id=usb"],
        }
    }

    fn disk(self) -> &'static str {
        match self {
            Cable::Virtio => "virtio-blk-pci",
            Cable::Nvme => "nvme",
            Cable::Sata => "ide-hd,bus=sata.0",
            Cable::Scsi => "scsi-hd,bus=scsi.0",
            Cable::Usb => "usb-storage,bus=usb.0,removable=off",
        }
    }
}

/// A machine that could be switched on.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Its console is kept under this name.
    pub(super) name: String,
    pub(super) mac: String,
    pub(super) firmware: Firmware,
    pub(super) memory_mib: u32,
    /// Its network card, as QEMU calls it.
    pub(super) card: &'static str,
    /// Another that no cable is plugged into.
    pub(super) spare_card: Option<&'static str>,
    /// Its disks: what they hang on, their serial numbers, and the files that they are.
    pub(super) disks: Vec<(Cable, &'static str, PathBuf)>,
    /// Its console is a screen rather than a serial line, as a PC's is.
    pub(super) screen: bool,
    /// It may start anew; else that ends it, so that a crash is not overlooked.
    pub(super) reboots: bool,
    pub(super) clock: Clock,
}

impl Plan {
    pub(super) fn new(name: &str, firmware: Firmware) -> Plan {
        // OVMF paints its screen, which nobody could read.
        let screen = !firmware.is_uefi();
        let memory_mib = if firmware.is_uefi() {
            UEFI_MIB
        } else {
            SMALL_MIB
        };
        let [.., high, low] = hash(name).to_be_bytes();
        Plan {
            name: name.to_owned(),
            mac: format!("52:54:00:77:{high:02x}:{low:02x}"),
            firmware,
            memory_mib,
            card: VIRTIO,
            spare_card: None,
            disks: Vec::new(),
            screen,
            reboots: false,
            clock: Clock::Ours,
        }
    }

    pub(super) fn memory(mut self, mib: u32) -> Plan {
        self.memory_mib = mib;
        self
    }

    pub(super) fn card(mut self, card: &'static str) -> Plan {
        self.card = card;
        self
    }

    pub(super) fn spare_card(mut self, card: &'static str) -> Plan {
        self.spare_card = Some(card);
        self
    }

    pub(super) fn disk(self, serial: &'static str, file: PathBuf) -> Plan {
        self.disk_on(Cable::Virtio, serial, file)
    }

    /// A disk of another kind.
    pub(super) fn disk_on(mut self, cable: Cable, serial: &'static str, file: PathBuf) -> Plan {
        self.disks.push((cable, serial, file));
        self
    }

    pub(super) fn clock(mut self, clock: Clock) -> Plan {
        self.clock = clock;
        self
    }

    pub(super) fn mac(mut self, mac: &str) -> Plan {
        mac.clone_into(&mut self.mac);
        self
    }

    /// It has a serial line in the place of a screen.
    pub(super) fn serial(mut self) -> Plan {
        self.screen = false;
        self
    }
}

/// A machine that is switched on. Dropping it pulls the mains plug.
pub(super) struct Guest<'a> {
    pub(super) plan: Plan,
    pub(super) console: Console,
    /// The cable.
    _wire: &'a Wire,
    child: RefCell<Child>,
}

impl<'a> Guest<'a> {
    /// Switches it on. Its console goes into the folder of logs, what it writes into the other.
    pub(super) fn start(wire: &'a Wire, plan: Plan, logs: &Path, dir: &Path) -> Result<Guest<'a>> {
        let tap = wire.tap()?;
        let path = logs.join(format!("{}.console", plan.name));
        let console = File::create(&path).with_context(|| path.display().to_string())?;
        let errors = File::create(logs.join(format!("{}.qemu", plan.name)))?;
        let child = wire
            .command(QEMU)
            .args(words(&plan, &tap, dir)?)
            .stdout(console)
            .stderr(errors)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("can't run {QEMU}"))?;
        let console = if plan.screen {
            Console::screen(&monitor(&plan, dir), &path)
        } else {
            Console::serial(&path)
        };
        Ok(Guest {
            plan,
            console,
            _wire: wire,
            child: RefCell::new(child),
        })
    }

    /// Waits until its console shows this, and gives the line.
    pub(super) fn wait_for(&self, wanted: &str, timeout: Duration) -> Result<String> {
        self.console
            .wait_for(wanted, timeout, &mut || self.is_running())
            .with_context(|| format!("guest {}", self.plan.name))
    }

    /// Whether its console is one that a kernel uses without being told: a PC's screen is.
    pub(super) fn shows_kernel(&self) -> bool {
        self.plan.screen
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.child.borrow_mut().try_wait(), Ok(None))
    }

    /// Waits until it has switched itself off.
    pub(super) fn wait_for_end(&self, timeout: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.borrow_mut().try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > timeout {
                bail!(
                    "guest {} is still on after {} s:{}",
                    self.plan.name,
                    timeout.as_secs(),
                    self.console.tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let mut child = self.child.borrow_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The same for the same name, so that a failure comes again.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

fn monitor(plan: &Plan, dir: &Path) -> PathBuf {
    dir.join(format!("{}.monitor", plan.name))
}

fn words(plan: &Plan, tap: &str, dir: &Path) -> Result<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |more: &str| words.extend(more.split(' ').map(str::to_owned));
    add("-accel tcg -display none -nodefaults");
    let mut machine = if plan.firmware.is_uefi() { "q35" } else { "pc" }.to_owned();
    if plan.screen {
        add("-vga std -monitor");
        let socket = monitor(plan, dir);
        add(&format!("unix:{},server=on,wait=off", socket.display()));
    } else {
        // SeaBIOS then uses the serial line.
        machine.push_str(",graphics=off");
        add("-serial stdio");
    }
    add(&format!("-machine {machine}"));
    add(&format!("-m {}", plan.memory_mib));
    if let Clock::Counts(shift) = plan.clock {
        add(&format!("-icount shift={shift},sleep=on -cpu {PC}"));
    }
    if !plan.reboots {
        add("-no-reboot");
    }
    // Firmware names machines by it: DHCP's options 61 and 97. Twins have one of their own each.
    add(&format!(
        "-uuid 77696c61-6600-4000-8000-0000{:08x}",
        hash(&plan.name)
    ));
    add(&format!(
        "-netdev tap,id=n0,ifname={tap},script=no,downscript=no"
    ));
    let mut card = format!("{},netdev=n0,mac={}", plan.card, plan.mac);
    match &plan.firmware {
        Firmware::BiosIpxe => {
            card.push_str(",bootindex=1");
            add(&format!("-boot {BIOS_RETRY}"));
        }
        Firmware::BiosScript(script) => {
            card.push_str(",romfile=");
            let path = dir.join(format!("{}.ipxe", plan.name));
            fs::write(&path, format!("#!ipxe\n{script}\n"))?;
            add("-kernel /usr/lib/ipxe/ipxe.lkrn -initrd");
            add(&path.to_string_lossy());
        }
        Firmware::UefiPxe | Firmware::UefiHttp => {
            // iPXE's option ROM would be asked before OVMF's own.
            card.push_str(",romfile=,bootindex=1");
            if matches!(plan.firmware, Firmware::UefiHttp) {
                add(&format!("-fw_cfg {NO_PXE} -fw_cfg {NO_PXE6}"));
            }
        }
        Firmware::Disk => card.push_str(",romfile="),
        Firmware::Cdrom(path) => {
            card.push_str(",romfile=");
            add("-boot d -cdrom");
            add(&path.to_string_lossy());
        }
        Firmware::Stick { medium, .. } => {
            card.push_str(",romfile=");
            add("-device qemu-xhci -device usb-storage,drive=stick,bootindex=1");
            add("-drive");
            // Two machines may have one of the same.
            let file = medium.display();
            add(&format!(
                "if=none,id=stick,format=raw,readonly=on,file={file}"
            ));
        }
    }
    if plan.firmware.is_uefi() {
        let variables = dir.join(format!("{}.vars", plan.name));
        fs::copy(OVMF_VARIABLES, &variables).context(OVMF_VARIABLES)?;
        add("-device virtio-rng-pci");
        add(&format!(
            "-drive if=pflash,format=raw,readonly=on,file={OVMF_CODE}"
        ));
        add(&format!(
            "-drive if=pflash,format=raw,file={}",
            variables.display()
        ));
    }
    for (index, (cable, serial, file)) in plan.disks.iter().enumerate() {
        let file = file.display();
        let is_started = index == 0 && matches!(plan.firmware, Firmware::Disk);
        let order = if is_started { ",bootindex=1" } else { "" };
        words.extend([
            "-drive".to_owned(),
            format!("if=none,id={serial},format=raw,cache=unsafe,file={file}"),
        ]);
        for device in cable.devices() {
            words.extend(["-device".to_owned(), (*device).to_owned()]);
        }
        words.extend([
            "-device".to_owned(),
            format!("{},drive={serial},serial={serial}{order}", cable.disk()),
        ]);
    }
    words.extend(["-device".to_owned(), card]);
    if let Some(spare) = plan.spare_card {
        words.extend(["-device".to_owned(), format!("{spare},romfile=")]);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_have_addresses_of_their_own() {
        let one = Plan::new("n1", Firmware::BiosIpxe);
        let other = Plan::new("n2", Firmware::BiosIpxe);
        assert_ne!(one.mac, other.mac);
        assert_eq!(one.mac, Plan::new("n1", Firmware::UefiPxe).mac);
        assert_eq!(one.mac.len(), 17);
    }

    #[test]
    fn a_crash_ends_a_guest_that_must_not_start_anew() -> Result<()> {
        let plan = Plan::new("n1", Firmware::BiosIpxe);
        let is_there = |plan: &Plan| -> Result<bool> {
            let words = words(plan, "tap1", Path::new("/nowhere"))?;
            Ok(words.iter().any(|word| word == "-no-reboot"))
        };
        assert!(is_there(&plan)?);
        let plan = Plan {
            reboots: true,
            ..plan
        };
        assert!(!is_there(&plan)?);
        Ok(())
    }
}
