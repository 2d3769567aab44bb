//! The wire between the head and the guests: a bridge in a network of its own, with a cable to
//! the head's one port and a tap for each guest.

use std::cell::Cell;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run;

/// What the head's end of the cable is called, unless a scenario wants another name.
pub(super) const PORT: &str = "eth1";
const BRIDGE: &str = "wire";
/// The cable's end at the bridge.
const SOCKET: &str = "head";

pub(super) struct Wire {
    /// Keeps the network: `cat`, waiting for what never comes.
    holder: Child,
    taps: Cell<u32>,
    port: String,
}

impl Wire {
    /// A wire, and a port of the head by that name, with an address if one is given.
    pub(super) fn lay(port: &str, address: Option<&str>) -> Result<Wire> {
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("can't run unshare")?;
        let wire = Wire {
            holder,
            taps: Cell::new(0),
            port: port.to_owned(),
        };
        wire.wait_for_network()?;
        // Its bridge must not wait for the spanning tree: iPXE would give up.
        wire.ip(&format!(
            "link add {BRIDGE} type bridge forward_delay 0 stp_state 0"
        ))?;
        wire.ip(&format!("link set {BRIDGE} up"))?;
        let pid = wire.holder.id();
        ip(&format!(
            "link add name {port} type veth peer name {SOCKET} netns {pid}"
        ))?;
        wire.ip(&format!("link set {SOCKET} master {BRIDGE} up"))?;
        if let Some(address) = address {
            ip(&format!("address add {address} dev {port}"))?;
            ip(&format!("link set {port} up"))?;
        }
        Ok(wire)
    }

    /// unshare(1) has not unshared yet when it has just been started.
    fn wait_for_network(&self) -> Result<()> {
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        for _ in 0..500 {
            let its = std::fs::read_link(format!("/proc/{}/ns/net", self.holder.id()));
            if its.is_ok_and(|its| its != ours) {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        bail!("unshare has made no network");
    }

    /// A command that sees the wire's network, and else what we see.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    fn ip(&self, words: &str) -> Result<()> {
        run::output(self.command("ip").args(words.split(' '))).map(|_| ())
    }

    /// A new tap on the bridge.
    pub(super) fn tap(&self) -> Result<String> {
        self.taps.set(self.taps.get() + 1);
        let tap = format!("tap{}", self.taps.get());
        self.ip(&format!("tuntap add name {tap} mode tap"))?;
        self.ip(&format!("link set {tap} master {BRIDGE} up"))?;
        Ok(tap)
    }

    /// Pulls the cables of all guests, or plugs them in. They don't see it: what they send is lost.
    pub(super) fn plug(&self, is_in: bool) -> Result<()> {
        let state = if is_in { "up" } else { "down" };
        for number in 1..=self.taps.get() {
            self.ip(&format!("link set tap{number} {state}"))?;
        }
        Ok(())
    }

    /// Gives the bridge an address, for somebody else who serves there.
    pub(super) fn address(&self, address: &str) -> Result<()> {
        self.ip(&format!("address add {address} dev {BRIDGE}"))
    }

    pub(super) fn bridge(&self) -> &str {
        BRIDGE
    }

    /// From now on the bridge loses so many of a hundred frames, in each direction.
    pub(super) fn lose(&self, percent: u32) -> Result<()> {
        let rules = format!(
            "table bridge loss {{ chain forward {{ type filter hook forward priority 0; \
             numgen random mod 100 < {percent} counter drop; }}; }}"
        );
        run::output(self.command("nft").arg(rules))
            .context("this kernel can't lose frames by chance (nftables, numgen)")
            .map(|_| ())
    }

    /// How many frames were lost so far.
    pub(super) fn lost(&self) -> Result<u64> {
        let text = run::output(
            self.command("nft")
                .args(["list", "table", "bridge", "loss"]),
        )?;
        packets(&text).context("nft counts no packets")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = ip(&format!("link delete {}", self.port));
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn ip(words: &str) -> Result<()> {
    run::output(Command::new("ip").args(words.split(' '))).map(|_| ())
}

fn packets(rules: &str) -> Option<u64> {
    let (_, rest) = rules.split_once("counter packets ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_frames_are_counted() {
        let rules = "\t\tnumgen random mod 100 < 2 counter packets 17 bytes 1200 drop\n";
        assert_eq!(packets(rules), Some(17));
        assert_eq!(packets("table bridge loss { }"), None);
    }
}
