//! perfdhcp of Kea, as a crowd of machines that boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::wire::{End, SERVER, Wire};
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;

pub(super) const PROGRAM: &str = "/usr/sbin/perfdhcp";
/// `PXEClient:Arch:00000:UNDI:002001`
const CLASS: &str = "60,505845436c69656e743a417263683a30303030303a554e44493a303032303031";
/// A PC's BIOS.
const ARCHITECTURE: &str = "93,0000";
/// Late answers are waited for so long, in microseconds.
const LATE_US: &str = "1000000";
/// Each run draws the same machines in the same order.
const SEED: &str = "7";
const MORE_TIME: Duration = Duration::from_secs(30);
/// Not all exchanges were completed.
const INCOMPLETE: i32 = 3;

/// Who asks, and how often.
pub(super) struct Load<'a> {
    pub(super) end: End,
    pub(super) macs: &'a Path,
    pub(super) per_s: u32,
    pub(super) seconds: u32,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// Exchanges that were begun, and completed.
    pub(super) begun: u64,
    pub(super) completed: u64,
    /// Round trips of both halves in milliseconds, in no order.
    pub(super) round_trips_ms: Vec<f64>,
}

pub(super) struct Running<'w> {
    wire: &'w Wire<'w>,
    command: Command,
    child: Child,
    out: PathBuf,
    timeout: Duration,
}

/// Starts it; the group of what is started next is the clients'.
pub(super) fn start<'w>(wire: &'w Wire<'w>, load: &Load<'_>) -> Result<Running<'w>> {
    let stage = wire.stage;
    stage.groups.enter(Group::Nodes)?;
    let name = format!("perfdhcp.{}", load.end.device());
    let out = stage.dir.join(name);
    let mut command = wire.at(load.end, PROGRAM);
    command
        .args(["-4", "-g", "single", "-x", "t", "-W", LATE_US, "-s", SEED])
        .args(["-l", load.end.device()])
        .args(["-r", &load.per_s.to_string()])
        .args(["-p", &load.seconds.to_string()])
        .arg("-M")
        .arg(load.macs)
        .args(["-o", CLASS, "-o", ARCHITECTURE])
        .arg(SERVER.to_string())
        .stdout(fs::File::create(&out)?)
        .stderr(fs::File::options().append(true).open(&out)?);
    let child = spawn(&mut command)?;
    Ok(Running {
        wire,
        command,
        child,
        out,
        timeout: Duration::from_secs(load.seconds.into()) + MORE_TIME,
    })
}

impl Running<'_> {
    pub(super) fn finish(mut self) -> Result<Outcome> {
        let watched = self.wire.stage.watchdog.watch(&self.child, self.timeout)?;
        let status = self.child.wait()?;
        watched.end(&self.command)?;
        let text = fs::read(&self.out)?;
        let text = String::from_utf8_lossy(&text);
        if !status.success() && status.code() != Some(INCOMPLETE) {
            let last: Vec<_> = text.lines().rev().take(3).collect();
            bail!("perfdhcp failed: {status}; it said last: {last:?}");
        }
        parse(&text).context("perfdhcp prints something else than it did")
    }
}

pub(super) fn run(wire: &Wire<'_>, load: &Load<'_>) -> Result<Outcome> {
    start(wire, load)?.finish()
}

impl Outcome {
    pub(super) fn add(&mut self, other: &Outcome) {
        self.begun += other.begun;
        self.completed += other.completed;
        self.round_trips_ms.extend(&other.round_trips_ms);
    }

    pub(super) fn lost(&self) -> u64 {
        self.begun.saturating_sub(self.completed)
    }

    pub(super) fn lost_percent(&self) -> f64 {
        self.lost() as f64 * 100.0 / self.begun as f64
    }

    pub(super) fn mean_ms(&self) -> f64 {
        self.round_trips_ms.iter().sum::<f64>() / self.round_trips_ms.len() as f64
    }

    /// NaN when nothing was answered.
    pub(super) fn p99_ms(&self) -> f64 {
        let mut sorted = self.round_trips_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * 99).div_ceil(100);
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or(f64::NAN)
    }
}

fn parse(text: &str) -> Option<Outcome> {
    let mut outcome = Outcome::default();
    let mut counts = Vec::new();
    for line in text.lines() {
        let number = |name| line.strip_prefix(name)?.trim().parse::<u64>().ok();
        if let Some(count) = number("sent packets:").or_else(|| number("received packets:")) {
            counts.push(count);
        }
        if let Some(times) = line.strip_prefix("sent / received: ") {
            let (sent, received) = times.split_once(" / ")?;
            let took = seconds(received)? - seconds(sent)?;
            outcome.round_trips_ms.push(took * 1e3);
        }
    }
    // Of the first half what was sent, of the second what was received.
    let [begun, _, _, completed] = counts[..] else {
        return None;
    };
    outcome.begun = begun;
    outcome.completed = completed;
    Some(outcome)
}

fn seconds(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perfdhcp_prints_is_read() {
        let text = "***Statistics for: DISCOVER-OFFER***\nsent packets: 10\nreceived packets: 9\n\
            drops: 1\ndrops ratio: 10 %\n\n***Statistics for: REQUEST-ACK***\nsent packets: 9\n\
            received packets: 8\ndrops: 1\n\n***Timestamps for packets: DISCOVER-OFFER***\n\
            sent / received: 000000.000629 / 000000.001683\n\n\
            ***Timestamps for packets: REQUEST-ACK***\n\
            sent / received: 000001.001810 / 000001.002810\n";
        let outcome = parse(text).expect("it is what perfdhcp prints");
        assert_eq!((outcome.begun, outcome.completed), (10, 8));
        assert_eq!(outcome.lost_percent(), 20.0);
        assert!((outcome.mean_ms() - 1.027).abs() < 1e-9);
        assert!((outcome.p99_ms() - 1.054).abs() < 1e-9);
        assert_eq!(parse("interrupted\n"), None);
    }

    #[test]
    fn of_a_hundred_the_last_but_one_is_the_99th() {
        let round_trips_ms = (1..=100).map(f64::from).collect();
        let outcome = Outcome {
            round_trips_ms,
            ..Outcome::default()
        };
        assert_eq!(outcome.p99_ms(), 99.0);
        assert!(Outcome::default().p99_ms().is_nan());
    }
}
