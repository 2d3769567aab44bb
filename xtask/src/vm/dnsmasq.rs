//! Somebody else's server on the wire: dnsmasq.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::wire::Wire;

/// How long it may take to refuse its configuration.
const START: Duration = Duration::from_millis(300);

pub(super) struct Dnsmasq {
    child: Child,
}

impl Dnsmasq {
    /// Serves the wire as its options say, with nothing of the machine's own configuration.
    pub(super) fn start(wire: &Wire, logs: &Path, options: &[&str]) -> Result<Dnsmasq> {
        let log = logs.join("dnsmasq.log");
        let file = File::create(&log)?;
        let child = wire
            .command("dnsmasq")
            .args(["--conf-file=/dev/null", "--no-daemon", "--user=root"])
            .args(["--port=0", "--leasefile-ro", "--log-dhcp", "--no-ping"])
            .arg(format!("--interface={}", wire.bridge()))
            .arg("--bind-interfaces")
            .args(options)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("can't run dnsmasq")?;
        let mut dnsmasq = Dnsmasq { child };
        std::thread::sleep(START);
        if dnsmasq.child.try_wait()?.is_some() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("dnsmasq has ended: {}", said.trim());
        }
        Ok(dnsmasq)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
