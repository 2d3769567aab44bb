//! A bridge that is made as slow as a hub: all that the head sends and receives takes turns.

use std::cell::Cell;
use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::ground::stage::Stage;
use crate::run;

const RATE: &str = "10mbit";
/// A few full segments, and what a hub's sender holds back.
const BURST: &str = "64kb";
const LIMIT: &str = "512kb";

pub(super) struct Medium<'a> {
    pub(super) stage: &'a Stage,
    /// None for this machine's own.
    pub(super) space: Option<String>,
    pub(super) device: String,
    /// The bucket, which stays.
    pub(super) has_queue: Cell<bool>,
}

/// A slow bridge, until it is dropped.
pub(super) struct Slow<'a, 'b> {
    medium: &'b Medium<'a>,
}

impl<'a> Medium<'a> {
    pub(super) fn slow_down<'b>(&'b self) -> Result<Slow<'a, 'b>> {
        let queue = format!("wgb{}", std::process::id() % 1_000_000);
        let slow = Slow { medium: self };
        let device = &self.device;
        if !self.has_queue.replace(true) {
            self.run("ip", &format!("link add name {queue} type ifb"))?;
            if self.space.is_none() {
                self.stage.sweeper.add_link(&queue)?;
            }
            self.run("ip", &format!("link set {queue} up"))?;
            self.run(
                "tc",
                &format!("qdisc add dev {queue} root tbf rate {RATE} burst {BURST} limit {LIMIT}"),
            )?;
        }
        self.run("tc", &format!("qdisc add dev {device} clsact"))?;
        for way in ["egress", "ingress"] {
            self.run(
                "tc",
                &format!(
                    "filter add dev {device} {way} protocol all u32 match u32 0 0 \
                     action mirred egress redirect dev {queue}"
                ),
            )?;
        }
        Ok(slow)
    }

    /// Bytes that the head has sent and received until now.
    pub(super) fn bytes(&self) -> Result<u64> {
        let mut sum = 0;
        for way in ["rx", "tx"] {
            let path = format!("/sys/class/net/{}/statistics/{way}_bytes", self.device);
            let text = self.run("cat", &path)?;
            sum += text.trim().parse::<u64>().context(path)?;
        }
        Ok(sum)
    }

    fn run(&self, program: &str, words: &str) -> Result<String> {
        let mut command = match &self.space {
            None => Command::new(program),
            Some(space) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", space, program]);
                command
            }
        };
        run::output(command.args(words.split(' ').filter(|word| !word.is_empty())))
    }
}

impl Drop for Slow<'_, '_> {
    fn drop(&mut self) {
        let device = &self.medium.device;
        let _ = self
            .medium
            .run("tc", &format!("qdisc del dev {device} clsact"));
    }
}
