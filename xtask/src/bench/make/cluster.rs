//! Wiglaf's virtual nodes, which can be started anew, slowed down and killed.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::medium::Medium;
use super::quota::{family, parent_of};
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;

const TIMEOUT: Duration = Duration::from_secs(90);
const SHOWN_LOG_LINES: usize = 5;

pub(super) struct Cluster<'a> {
    stage: &'a Stage,
    pub(super) binary: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) nodes: u32,
}

impl<'a> Cluster<'a> {
    pub(super) fn start(stage: &'a Stage, binary: PathBuf, nodes: u32) -> Result<Cluster<'a>> {
        let dir = stage.dir.join("w");
        fs::create_dir(&dir)?;
        stage.sweeper.add_cluster(&binary, &dir)?;
        let cluster = Cluster {
            stage,
            binary,
            dir,
            nodes,
        };
        cluster.up()?;
        Ok(cluster)
    }

    fn up(&self) -> Result<()> {
        self.stage.groups.enter(Group::Head)?;
        let count = self.nodes.to_string();
        self.stage
            .try_out(self.wiglaf().args(["up", "-n", &count]), TIMEOUT)
            .and_then(|()| {
                let wait = ["nodes", "--wait", count.as_str()];
                self.stage.try_out(self.wiglaf().args(wait), TIMEOUT)
            })
            .and_then(|()| {
                for pid in family(self.rack()?)? {
                    self.stage.groups.move_there(Group::Nodes, pid)?;
                }
                Ok(())
            })
            .with_context(|| self.logs())
    }

    /// As if it had never been there.
    pub(super) fn restart(&mut self, nodes: u32) -> Result<()> {
        self.stage
            .try_out(self.wiglaf().arg("down"), TIMEOUT)
            .with_context(|| self.logs())?;
        self.nodes = nodes;
        self.up()
    }

    /// Where it keeps what it learns of builds.
    pub(super) fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// What it has learned.
    pub(super) fn forget(&self) -> Result<()> {
        crate::inputs::place::remove(&self.cache())
    }

    fn wiglaf(&self) -> Command {
        let mut command = self.stage.command(&self.binary.to_string_lossy());
        command.env("WIGLAF_DIR", &self.dir).current_dir("/");
        command
    }

    /// The node set of the first so many.
    pub(super) fn first(count: u32) -> String {
        match count {
            1 => "n1".to_owned(),
            count => format!("n[1-{count}]"),
        }
    }

    /// The processes of the nodes, in their order.
    pub(super) fn agents(&self) -> Result<Vec<i32>> {
        let rack = self.rack()?;
        let mut agents = family(rack)?;
        agents.retain(|pid| parent_of(*pid) == Some(rack));
        agents.sort_unstable();
        Ok(agents)
    }

    fn rack(&self) -> Result<i32> {
        let path = self.dir.join("run/rack.pid");
        let text =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let pid = text
            .split_whitespace()
            .next()
            .context("rack.pid is empty")?;
        Ok(pid.parse()?)
    }

    /// The nodes' switch.
    pub(super) fn medium(&self) -> Result<Medium<'a>> {
        let agent = *self.agents()?.first().context("the rack has no nodes")?;
        // The node's own device says which of ours is its other end.
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &agent.to_string(),
            "-n",
            "ip",
            "-o",
            "link",
            "show",
            "eth0",
        ]);
        let text = crate::run::output(&mut command)?;
        let peer = text
            .split_once("@if")
            .and_then(|(_, rest)| rest.split(':').next())
            .context("the node's device has no other end")?
            .to_owned();
        let ports = crate::run::output(Command::new("ip").args(["-o", "link", "show"]))?;
        let port = ports
            .lines()
            .find(|line| line.starts_with(&format!("{peer}: ")))
            .context("the other end of the node's device is not here")?;
        let device = port
            .split_once(" master ")
            .and_then(|(_, rest)| rest.split(' ').next())
            .context("the node's device is no port of a bridge")?
            .to_owned();
        Ok(Medium {
            stage: self.stage,
            space: None,
            device,
            has_queue: Cell::new(false),
        })
    }

    /// The ends of the daemons' logs.
    fn logs(&self) -> String {
        let mut text = "the cluster does not work".to_owned();
        for name in ["head", "keeper", "rack"] {
            let path = self.dir.join(format!("state/{name}.log"));
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..] {
                text.push_str(&format!("\n  {name}.log: {line}"));
            }
        }
        text
    }
}
