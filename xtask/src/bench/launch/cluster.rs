//! A Wiglaf cluster of virtual nodes in a folder of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;

const UP_TIMEOUT: Duration = Duration::from_secs(90);
const SHOWN_LOG_LINES: usize = 5;
const FIRST_RUN_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Cluster<'a> {
    stage: &'a Stage,
    binary: PathBuf,
    dir: PathBuf,
    pub(super) nodes: u32,
}

impl<'a> Cluster<'a> {
    /// Starts it: the head's daemons are charged to the head's group, all of the nodes to theirs.
    pub(super) fn start(stage: &'a Stage, binary: PathBuf, nodes: u32) -> Result<Cluster<'a>> {
        let dir = stage.dir.join("w");
        std::fs::create_dir(&dir)?;
        stage.sweeper.add_cluster(&binary, &dir)?;
        let cluster = Cluster {
            stage,
            binary,
            dir,
            nodes,
        };
        stage.groups.enter(Group::Head)?;
        println!("starting {nodes} virtual nodes");
        let started = stage
            .try_out(
                cluster.command().args(["up", "-n", &nodes.to_string()]),
                UP_TIMEOUT,
            )
            .and_then(|()| cluster.move_nodes())
            .and_then(|()| stage.try_out(&mut cluster.run(&["-a", "true"]), FIRST_RUN_TIMEOUT));
        match started {
            Ok(()) => Ok(cluster),
            Err(error) => Err(error.context(cluster.logs())),
        }
    }

    /// The ends of the daemons' logs.
    fn logs(&self) -> String {
        let mut text = "the cluster does not work".to_owned();
        for name in ["head", "keeper", "rack"] {
            let path = self.dir.join(format!("state/{name}.log"));
            let log = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..] {
                text.push_str(&format!("\n  {name}.log: {line}"));
            }
        }
        text
    }

    pub(super) fn command(&self) -> Command {
        let mut command = self.stage.command(&self.binary.to_string_lossy());
        command.env("WIGLAF_DIR", &self.dir);
        command
    }

    /// `wiglaf run ARGS`
    pub(super) fn run(&self, args: &[&str]) -> Command {
        let mut command = self.command();
        command.arg("run").args(args);
        command
    }

    /// The node set of the first so many.
    pub(super) fn first(count: u32) -> String {
        if count == 1 {
            "n1".to_owned()
        } else {
            format!("n[1-{count}]")
        }
    }

    /// The rack and its forks, the agents.
    fn move_nodes(&self) -> Result<()> {
        let path = self.dir.join("run/rack.pid");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("can't read {}", path.display()))?;
        let rack: i32 = text
            .split_whitespace()
            .next()
            .context("rack.pid is empty")?
            .parse()?;
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for pid in self.stage.groups.members(Group::Head)? {
            if let Some(parent) = parent_of(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut found = vec![rack];
        while let Some(pid) = found.pop() {
            self.stage.groups.move_there(Group::Nodes, pid)?;
            found.extend(children.remove(&pid).unwrap_or_default());
        }
        Ok(())
    }
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may contain anything, come the state and the parent.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
