//! Who answers: Wiglaf, dnsmasq and Kea, each on a wire of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::perfdhcp::{self, Load};
use super::wire::{self, DEVICE, End, POOL, PREFIX, Wire};
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::run;

pub(super) const DNSMASQ: &str = "/usr/sbin/dnsmasq";
pub(super) const KEA: &str = "/usr/sbin/kea-dhcp4";
/// As long as Wiglaf's.
const LEASE_S: u32 = 120;
/// Wiglaf looks for another server first.
const START: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
const COMMAND: Duration = Duration::from_secs(120);
/// The address of the one machine that others are configured with.
const CONFIGURED: &str = "10.77.0.99";

pub(super) struct Server<'a> {
    pub(super) name: &'static str,
    pub(super) wire: Wire<'a>,
    /// Whom its CPU time and memory are charged to.
    pub(super) group: Group,
    /// Of its processes, if others are in the group too.
    pids: Vec<i32>,
}

impl<'a> Server<'a> {
    /// With one machine that it is configured to know.
    pub(super) fn dnsmasq(stage: &'a Stage, known: &str) -> Result<Server<'a>> {
        let wire = Wire::lay(stage, "q")?;
        let (first, last) = POOL;
        let mut command = wire.at_server(DNSMASQ);
        command
            .args(["--conf-file=/dev/null", "--keep-in-foreground"])
            .args(["--user=root", "--pid-file=", "--port=0"])
            .args(["--no-ping", "--quiet-dhcp", "--dhcp-authoritative"])
            .arg("--log-facility=-")
            .args(["--bind-interfaces", "--dhcp-lease-max=100000"])
            .arg(format!("--interface={DEVICE}"))
            .arg(format!(
                "--dhcp-leasefile={}",
                stage.dir.join("dnsmasq.leases").display()
            ))
            .arg(format!("--dhcp-range={first},{last},{LEASE_S}"))
            .arg(format!("--dhcp-host={known},{CONFIGURED},infinite"))
            .arg("--dhcp-boot=undionly.kpxe")
            .stderr(wire::log(stage, "dnsmasq.log")?);
        Server::start("dnsmasq", wire, command)
    }

    /// The same for Kea.
    pub(super) fn kea(stage: &'a Stage, known: &str) -> Result<Server<'a>> {
        let wire = Wire::lay(stage, "k")?;
        let (first, last) = POOL;
        let config = json!({"Dhcp4": {
            "interfaces-config": {"interfaces": [DEVICE]},
            "lease-database": {
                "type": "memfile",
                "persist": true,
                "name": stage.dir.join("kea.leases"),
            },
            "valid-lifetime": LEASE_S,
            "subnet4": [{
                "id": 1,
                "subnet": format!("10.77.0.0/{PREFIX}"),
                "pools": [{"pool": format!("{first} - {last}")}],
                "boot-file-name": "undionly.kpxe",
                "reservations": [{"hw-address": known, "ip-address": CONFIGURED}],
            }],
            "loggers": [{
                "name": "kea-dhcp4",
                "severity": "ERROR",
                "output_options": [{"output": stage.dir.join("kea.log")}],
            }],
        }});
        let path = stage.dir.join("kea.json");
        fs::write(&path, config.to_string())?;
        let mut command = wire.at_server(KEA);
        command
            .arg("-c")
            .arg(&path)
            .env("KEA_PIDFILE_DIR", &stage.dir)
            .env("KEA_LOCKFILE_DIR", "none")
            .stderr(wire::log(stage, "kea.err")?);
        Server::start("Kea", wire, command)
    }

    fn start(name: &'static str, wire: Wire<'a>, mut command: Command) -> Result<Server<'a>> {
        let group = Group::Peer;
        wire.stage.groups.enter(group)?;
        // nsenter(1) becomes what it starts.
        let child = spawn(&mut command)?;
        Ok(Server {
            name,
            wire,
            group,
            pids: vec![i32::try_from(child.id())?],
        })
    }

    /// Waits until it completes an exchange.
    pub(super) fn wait_until_ready(&self, macs: &Path) -> Result<()> {
        let load = Load {
            end: End::Single,
            macs,
            per_s: 2,
            seconds: 1,
        };
        let deadline = Instant::now() + START;
        loop {
            let outcome = perfdhcp::run(&self.wire, &load)?;
            if outcome.completed > 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} answers nobody: {outcome:?}{}", self.name, self.said());
            }
            std::thread::sleep(POLL);
        }
    }

    fn said(&self) -> String {
        let dir = &self.wire.stage.dir;
        let names = ["dnsmasq.log", "kea.err", "kea.log", "w/state/head.log"];
        names
            .iter()
            .filter_map(|name| {
                let text = fs::read_to_string(dir.join(name)).ok()?;
                let last = text.lines().last()?;
                Some(format!("\n{name}: {last}"))
            })
            .collect()
    }

    /// Its processes with what they call themselves and their resident memory, now.
    pub(super) fn resident(&self) -> Result<Vec<(String, u64)>> {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for pid in self.wire.stage.groups.members(self.group)? {
            if !self.pids.is_empty() && !self.pids.contains(&pid) {
                continue;
            }
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let title = title.split(|byte| *byte == 0).next().unwrap_or_default();
            let title = String::from_utf8_lossy(title).into_owned();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let kib = status
                .lines()
                .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"))
                .and_then(|kib| kib.trim().parse::<u64>().ok());
            found.extend(kib.map(|kib| (title, kib * 1024)));
        }
        if found.is_empty() {
            bail!("{} has no process any more{}", self.name, self.said());
        }
        Ok(found)
    }
}

/// Wiglaf's own commands.
pub(super) struct Head<'a> {
    pub(super) server: Server<'a>,
    binary: PathBuf,
    pub(super) dir: PathBuf,
}

/// Its processes' titles.
pub(super) const BOOT_SERVICE: &str = "wiglaf: boot";

impl<'a> Head<'a> {
    pub(super) fn found(stage: &'a Stage, binary: &Path) -> Result<Head<'a>> {
        let wire = Wire::lay(stage, "w")?;
        let dir = stage.dir.join("w");
        fs::create_dir(&dir)?;
        let head = Head {
            server: Server {
                name: "Wiglaf",
                wire,
                group: Group::Head,
                pids: Vec::new(),
            },
            binary: binary.to_owned(),
            dir,
        };
        stage.groups.enter(Group::Head)?;
        stage.sweeper.add_cluster(&head.binary, &head.dir)?;
        head.wiglaf(&["init"])?;
        head.wiglaf(&["boot", "enable", "--interface", DEVICE])?;
        Ok(head)
    }

    /// What a command that must succeed prints. Who starts daemons charges them to the head.
    pub(super) fn wiglaf(&self, words: &[&str]) -> Result<String> {
        let stage = self.server.wire.stage;
        stage.groups.enter(Group::Head)?;
        let mut command = self.server.wire.at_server(&self.binary.to_string_lossy());
        let said = stage.dir.join("wiglaf.err");
        command
            .args(words)
            .env("WIGLAF_DIR", &self.dir)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&said)?);
        let child = spawn(&mut command)?;
        let watched = stage.watchdog.watch(&child, COMMAND)?;
        let output = child.wait_with_output()?;
        watched.end(&command)?;
        if !output.status.success() {
            let said = fs::read_to_string(&said).unwrap_or_default();
            bail!("`{}` failed: {}", run::text_of(&command), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(super) fn unknown_count(&self) -> Result<usize> {
        let text = self.wiglaf(&["nodes", "--unknown", "--json"])?;
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&text).context("`wiglaf nodes --unknown --json`")?;
        Ok(rows.len())
    }

    /// The most that each of its processes ever had: the boot service's, and the rest's.
    pub(super) fn peak_bytes(&self) -> Result<(u64, u64)> {
        let all = self.server.memory("VmHWM:")?;
        let (boot, rest): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(title, _)| title.starts_with(BOOT_SERVICE));
        if boot.is_empty() {
            bail!("no boot service is running");
        }
        let sum = |all: &[(String, u64)]| all.iter().map(|(_, bytes)| bytes).sum();
        Ok((sum(&boot), sum(&rest)))
    }
}
