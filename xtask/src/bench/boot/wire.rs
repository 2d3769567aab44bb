//! A wire in networks of its own: a server's end, and two clients' ends.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::bench::ground::stage::Stage;
use crate::run;

pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(super) const PREFIX: u8 = 16;
pub(super) const DEVICE: &str = "srv0";
/// What is given to those that nobody knows: Wiglaf's own choice for this network.
pub(super) const POOL: (Ipv4Addr, Ipv4Addr) = (
    Ipv4Addr::new(10, 77, 239, 255),
    Ipv4Addr::new(10, 77, 255, 254),
);
const CROWD: Ipv4Addr = Ipv4Addr::new(10, 77, 128, 9);
const SINGLE: Ipv4Addr = Ipv4Addr::new(10, 77, 128, 10);
/// Adopted machines are given addresses here.
const MACHINES: &str = "10.77.0.0/17";

/// Who is at a client's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Many machines.
    Crowd,
    /// One that is known.
    Single,
}

impl End {
    pub(super) fn device(self) -> &'static str {
        match self {
            End::Crowd => "cli0",
            End::Single => "cli1",
        }
    }
}

pub(super) struct Wire<'a> {
    pub(super) stage: &'a Stage,
    server: String,
    crowd: String,
    single: String,
}

impl<'a> Wire<'a> {
    pub(super) fn lay(stage: &'a Stage, name: &str) -> Result<Wire<'a>> {
        let space = |end: &str| -> Result<String> {
            let space = format!("wgb{}{name}{end}", std::process::id());
            ip(&format!("netns add {space}"))?;
            stage.sweeper.add_space(&space)?;
            ip(&format!("-n {space} link set lo up"))?;
            Ok(space)
        };
        let wire = Wire {
            stage,
            server: space("s")?,
            crowd: space("c")?,
            single: space("d")?,
        };
        let Wire {
            server,
            crowd,
            single,
            ..
        } = &wire;
        ip(&format!(
            "link add {DEVICE} netns {server} type veth peer name cli0 netns {crowd}"
        ))?;
        // A second machine at the same cable.
        ip(&format!(
            "-n {crowd} link add link cli0 name cli1 netns {single} type macvlan mode bridge"
        ))?;
        for (space, device, address) in [
            (server, DEVICE, SERVER),
            (crowd, "cli0", CROWD),
            (single, "cli1", SINGLE),
        ] {
            ip(&format!(
                "-n {space} address add {address}/{PREFIX} dev {device}"
            ))?;
            ip(&format!("-n {space} link set {device} up"))?;
        }
        Ok(wire)
    }

    pub(super) fn at_server(&self, program: &str) -> Command {
        self.within(&self.server, program)
    }

    pub(super) fn at(&self, end: End, program: &str) -> Command {
        match end {
            End::Crowd => self.within(&self.crowd, program),
            End::Single => self.within(&self.single, program),
        }
    }

    /// Not by `ip netns exec`, which makes another mount namespace: Wiglaf's daemons serve nobody
    /// from elsewhere.
    fn within(&self, space: &str, program: &str) -> Command {
        let mut command = self.stage.command("nsenter");
        command
            .arg(format!("--net=/run/netns/{space}"))
            .arg("--")
            .arg(program)
            .current_dir("/");
        command
    }

    /// Has the crowd's end answer for these addresses, and the server believe that a machine of
    /// its own has each.
    pub(super) fn populate(&self, machines: &[(String, Ipv4Addr)], scratch: &Path) -> Result<()> {
        ip(&format!(
            "-n {} route add local {MACHINES} dev lo",
            self.crowd
        ))?;
        // The server itself is among them.
        ip(&format!(
            "-n {} route add {SERVER}/32 dev cli0 table local",
            self.crowd
        ))?;
        ip(&format!(
            "-n {} route add {MACHINES} via {CROWD} dev {DEVICE}",
            self.server
        ))?;
        let lines: String = machines
            .iter()
            .map(|(mac, address)| {
                format!("neigh replace {address} lladdr {mac} dev {DEVICE} nud permanent\n")
            })
            .collect();
        std::fs::write(scratch, lines)?;
        let mut batch = Command::new("ip");
        batch
            .args(["-n", &self.server, "-batch"])
            .arg(scratch)
            .stdout(Stdio::null());
        if !batch.status().context("ip -batch")?.success() {
            bail!("`ip -batch` failed for {} machines", machines.len());
        }
        Ok(())
    }
}

/// So many Ethernet addresses of a kind, as perfdhcp and `wiglaf node adopt` take them.
pub(super) fn macs(kind: u8, count: u16) -> Vec<String> {
    (0..count)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            format!("02:{kind:02x}:00:00:{high:02x}:{low:02x}")
        })
        .collect()
}

pub(super) fn log(stage: &Stage, name: &str) -> Result<File> {
    let path = stage.dir.join(name);
    File::create(&path).with_context(|| format!("can't make {}", path.display()))
}

fn ip(words: &str) -> Result<()> {
    run::output(Command::new("ip").args(words.split(' '))).map(|_| ())
}
