//! Wiglaf: a head here, an agent on the second machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::cable::Cable;
use super::contender::Contender;
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::run;

const NODE: &str = "far";
const PORT: u16 = 7494;
const TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
const SHOWN_LOG_LINES: usize = 5;

pub(super) struct Cluster<'a> {
    stage: &'a Stage,
    cable: &'a Cable<'a>,
    binary: PathBuf,
    dir: PathBuf,
    agent: Option<Child>,
}

impl<'a> Cluster<'a> {
    pub(super) fn start(stage: &'a Stage, cable: &'a Cable, binary: &Path) -> Result<Cluster<'a>> {
        let dir = stage.dir.join("w");
        fs::create_dir(&dir)?;
        let cluster = Cluster {
            stage,
            cable,
            binary: binary.to_owned(),
            dir,
            agent: None,
        };
        stage.try_out(cluster.wiglaf().arg("init"), TIMEOUT)?;
        let config = format!("listen = \"{}:{PORT}\"\nroot_on_nodes = true\n", cable.head);
        fs::write(cluster.dir.join("state/wiglaf.toml"), config)?;
        stage.groups.enter(Group::Head)?;
        let mut head = cluster.wiglaf();
        head.arg("head")
            .stderr(fs::File::create(cluster.dir.join("head.log"))?);
        spawn(&mut head)?;
        stage.sweeper.add_cluster(&cluster.binary, &cluster.dir)?;
        let deadline = Instant::now() + TIMEOUT;
        while !cluster.dir.join("run/head.sock").exists() {
            if Instant::now() > deadline {
                bail!("the head does not start{}", cluster.logs());
            }
            std::thread::sleep(POLL);
        }
        let mut command = cluster.wiglaf();
        command.args(["node", "token"]).stdout(Stdio::piped());
        let token = run::output(&mut command)?;
        fs::write(cluster.token(), token)?;
        Ok(cluster)
    }

    pub(super) fn wiglaf(&self) -> Command {
        let mut command = self.stage.command(&self.binary.to_string_lossy());
        command.env("WIGLAF_DIR", &self.dir).current_dir("/");
        command
    }

    fn token(&self) -> PathBuf {
        self.dir.join("token")
    }

    pub(super) fn end_agent(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else {
            return Ok(());
        };
        let pid = Pid::from_child(&agent);
        kill_process(pid, Signal::TERM).context("can't end the agent")?;
        let deadline = Instant::now() + TIMEOUT;
        while agent.try_wait()?.is_none() {
            if Instant::now() > deadline {
                agent.kill()?;
                agent.wait()?;
                bail!("the agent does not end{}", self.logs());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Starts the agent; it is to keep what it reads there.
    pub(super) fn start_agent(&mut self, keep: Option<&Path>) -> Result<()> {
        self.stage.groups.enter(Group::Nodes)?;
        let mut command = self.cable.there(&self.binary);
        command
            .args(["node", "agent", "--name", NODE])
            .args(["--head", &format!("{}:{PORT}", self.cable.head)])
            .arg("--token-file")
            .arg(self.token())
            .stderr(fs::File::create(self.dir.join("agent.log"))?);
        if let Some(keep) = keep {
            command.arg("--keep").arg(keep);
        }
        self.agent = Some(spawn(&mut command)?);
        self.stage.groups.enter(Group::Head)?;
        self.stage
            .try_out(self.wiglaf().args(["nodes", "--wait", "1"]), TIMEOUT)
            .with_context(|| self.logs())
    }

    /// Memory of the agent's processes, each page divided by those that share it.
    pub(super) fn agent_memory_bytes(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self.stage.groups.members(Group::Nodes)? {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let kib = text
                .lines()
                .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"))
                .and_then(|kib| kib.trim().parse::<u64>().ok());
            sum += kib.unwrap_or(0) * 1024;
        }
        if sum == 0 {
            bail!("the node's processes can't be found");
        }
        Ok(sum)
    }

    /// Round trips of the view until now, by its own count; None if it does not tell.
    pub(super) fn round_trips(&self) -> Option<u64> {
        let output = self
            .wiglaf()
            .args(["view", "status", "--json"])
            .stdout(Stdio::piped())
            .output()
            .ok()?;
        sum_of(&serde_json::from_slice(&output.stdout).ok()?, "asked")
    }

    /// The ends of the logs.
    fn logs(&self) -> String {
        let mut text = String::new();
        for name in ["head.log", "agent.log", "state/keeper.log"] {
            let log = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..] {
                text.push_str(&format!("\n  {name}: {line}"));
            }
        }
        text
    }
}

impl Contender for Cluster<'_> {
    fn name(&self) -> &'static str {
        "Wiglaf"
    }

    fn group(&self) -> Group {
        Group::Head
    }

    /// An agent that has just joined.
    fn freshen(&mut self) -> Result<()> {
        self.end_agent()?;
        self.start_agent(None)
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = self.wiglaf();
        command.args(["run", "-w", NODE]).args(words);
        command
    }
}

/// Of all numbers with this name, wherever they stand.
fn sum_of(value: &serde_json::Value, name: &str) -> Option<u64> {
    let inner = |values: &mut dyn Iterator<Item = &serde_json::Value>| {
        values
            .filter_map(|value| sum_of(value, name))
            .reduce(|a, b| a + b)
    };
    match value {
        serde_json::Value::Object(fields) => {
            let own = fields.get(name).and_then(serde_json::Value::as_u64);
            own.or_else(|| inner(&mut fields.values()))
        }
        serde_json::Value::Array(values) => inner(&mut values.iter()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_over_nodes() {
        let status = serde_json::json!([
            {"node": "n1", "traffic": {"asked": 3}},
            {"node": "n2", "asked": 4, "files": 7},
        ]);
        assert_eq!(sum_of(&status, "asked"), Some(7));
        assert_eq!(sum_of(&status, "no_such"), None);
    }
}
