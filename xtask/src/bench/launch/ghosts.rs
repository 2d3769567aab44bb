//! A thousand ghosts at once: how fast they come, what they weigh, and how fast `ps` shows them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Effort;
use super::cluster::Cluster;
use super::memory::Snapshot;
use super::peers::Peers;
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::report::Report;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::Samples;

/// For all to have started.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// From there to the end of the measurements, and for all to end.
const LIFE_TIMEOUT: Duration = Duration::from_secs(180);
const XARGS_TIMEOUT: Duration = Duration::from_secs(60);
const PS_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// Until what was allocated or freed late shows in the sums.
const REST: Duration = Duration::from_secs(1);
const AIM_KB: f64 = 64.0;
const AIM_OF_XARGS: f64 = 0.4;
const AIM_PS_S: f64 = 0.2;
/// For both sides the same program; it outlives the measurement.
const TASK: [&str; 2] = ["sleep", "600"];

#[derive(Default)]
struct Figures {
    xargs_rate: Samples,
    ghost_rate: Samples,
    end_s: Samples,
    ps_s: Samples,
    /// Of the first round, when nothing is in the kernel's caches.
    memory: Option<Snapshot>,
    local: Option<Snapshot>,
}

pub(super) fn measure(
    stage: &Stage,
    effort: &Effort,
    cluster: Option<&Cluster>,
    _peers: &Peers,
    report: &mut Report,
) -> Result<()> {
    let mut figures = Figures::default();
    for _ in 0..effort.ghost_rounds {
        figures.xargs_rate.push(xargs(stage, effort)?);
        if let Some(cluster) = cluster {
            ghosts(stage, effort, cluster, &mut figures)?;
        }
        if figures.local.is_none() {
            figures.local = Some(local(stage, effort)?);
        }
    }
    write(effort, &figures, report);
    Ok(())
}

/// Local processes a second, as `xargs` starts them two at a time.
fn xargs(stage: &Stage, effort: &Effort) -> Result<f64> {
    stage.groups.enter(Group::Peer)?;
    let path = stage.dir.join("numbers");
    let numbers: Vec<String> = (1..=effort.ghosts)
        .map(|number| number.to_string())
        .collect();
    std::fs::write(&path, numbers.join("\n"))?;
    let mut command = stage.command("xargs");
    command
        .args(["-P2", "-n1", "true"])
        .stdin(std::fs::File::open(&path)?);
    let took = stage.watchdog.time_success(&mut command, XARGS_TIMEOUT)?;
    Ok(f64::from(effort.ghosts) / took.as_secs_f64())
}

fn ghosts(stage: &Stage, effort: &Effort, cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    stage.groups.enter(Group::Head)?;
    std::thread::sleep(REST);
    let before = Snapshot::take(stage)?;
    let base = stage.groups.members(Group::Nodes)?;
    let set = Cluster::first(cluster.nodes);
    let mut command = cluster.run(&["-w", &set, "-n", &effort.ghosts.to_string()]);
    let log = stage.dir.join("ghosts.log");
    command.args(TASK).stderr(std::fs::File::create(&log)?);
    let started = Instant::now();
    let mut child = spawn(&mut command)?;
    let watched = stage.watchdog.watch(&child, LIFE_TIMEOUT)?;
    let result = (|| {
        let took =
            wait_for_tasks(stage, effort, &base, &mut child, started).with_context(|| {
                format!(
                    "it said: {}",
                    std::fs::read_to_string(&log).unwrap_or_default().trim()
                )
            })?;
        figures
            .ghost_rate
            .push(f64::from(effort.ghosts) / took.as_secs_f64());
        std::thread::sleep(REST);
        let after = Snapshot::take(stage)?;
        figures.memory.get_or_insert(after.since(before));
        for _ in 0..effort.ps_runs {
            let took = stage_ps(stage, cluster)?;
            figures.ps_s.push(took.as_secs_f64());
        }
        check_ps(stage, effort, cluster)
    })();
    let ended = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    child.wait()?;
    watched.end(&command)?;
    result?;
    wait_for_end(stage, base.len())?;
    figures.end_s.push(ended.elapsed().as_secs_f64());
    Ok(())
}

/// Until so many new processes on the nodes are what they were to become.
fn wait_for_tasks(
    stage: &Stage,
    effort: &Effort,
    base: &[i32],
    child: &mut Child,
    started: Instant,
) -> Result<Duration> {
    let wanted = usize::try_from(effort.ghosts)?;
    loop {
        let now = stage.groups.members(Group::Nodes)?;
        if now.len() >= base.len() + wanted {
            let elapsed = started.elapsed();
            if now.iter().filter(|pid| is_task(**pid)).count() >= wanted {
                return Ok(elapsed);
            }
        }
        if let Some(status) = child.try_wait()? {
            bail!(
                "`wiglaf run` ended ({status}) with {} tasks",
                now.len() - base.len().min(now.len())
            );
        }
        if started.elapsed() > START_TIMEOUT {
            let have = now.iter().filter(|pid| is_task(**pid)).count();
            bail!(
                "{have} of {wanted} tasks ran after {} s",
                START_TIMEOUT.as_secs()
            );
        }
        std::thread::sleep(POLL);
    }
}

fn is_task(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == TASK[0])
}

fn wait_for_end(stage: &Stage, base: usize) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while stage.groups.members(Group::Nodes)?.len() > base {
        if Instant::now() > deadline {
            bail!("tasks are left on the nodes after their ghosts have ended");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// The watchdog watches the job, so this time-out is by timeout(1).
fn ps_command(stage: &Stage, cluster: &Cluster, is_json: bool) -> Command {
    let mut command = stage.command("timeout");
    let ps = cluster.command();
    command.envs(
        ps.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    command
        .args(["-s", "KILL", &PS_TIMEOUT.as_secs().to_string()])
        .arg(ps.get_program())
        .arg("ps");
    if is_json {
        command.arg("--json").stdout(Stdio::piped());
    }
    command
}

fn stage_ps(stage: &Stage, cluster: &Cluster) -> Result<Duration> {
    let started = Instant::now();
    let status = ps_command(stage, cluster, false).status()?;
    let took = started.elapsed();
    if !status.success() {
        bail!("`wiglaf ps` failed: {status}");
    }
    Ok(took)
}

fn check_ps(stage: &Stage, effort: &Effort, cluster: &Cluster) -> Result<()> {
    let output = ps_command(stage, cluster, true).output()?;
    let rows: Vec<serde_json::Value> =
        serde_json::from_slice(&output.stdout).context("`wiglaf ps --json`")?;
    let command = TASK.join(" ");
    let count = rows
        .iter()
        .filter(|row| row["command"] == command.as_str())
        .count();
    if count != usize::try_from(effort.ghosts)? {
        bail!(
            "`wiglaf ps --json` shows {count} of {} tasks",
            effort.ghosts
        );
    }
    Ok(())
}

/// What as many local processes weigh. After the ghosts: what these left in the kernel's caches
/// makes the figure that is subtracted smaller, not larger.
fn local(stage: &Stage, effort: &Effort) -> Result<Snapshot> {
    stage.groups.enter(Group::Peer)?;
    std::thread::sleep(REST);
    let before = Snapshot::take(stage)?;
    let mut sleepers = Vec::new();
    let mut start = || -> Result<Snapshot> {
        for _ in 0..effort.ghosts {
            sleepers.push(spawn(stage.command(TASK[0]).arg(TASK[1]))?);
        }
        std::thread::sleep(REST);
        Snapshot::take(stage)
    };
    let after = start();
    for sleeper in &mut sleepers {
        sleeper.kill()?;
    }
    for sleeper in &mut sleepers {
        sleeper.wait()?;
    }
    Ok(after?.since(before))
}

fn write(effort: &Effort, figures: &Figures, report: &mut Report) {
    let count = f64::from(effort.ghosts);
    let each = |bytes: i64| bytes as f64 / count / 1000.0;
    let text =
        |bytes: Option<i64>| bytes.map_or("—".to_owned(), |bytes| format!("{:.1}", each(bytes)));
    let xargs = figures.xargs_rate.median();
    let mut rows = vec![vec![
        "`xargs -P2 -n1 true`, local processes started a second".to_owned(),
        figures.xargs_rate.text(0),
    ]];
    if let (Some(memory), Some(local)) = (figures.memory, figures.local) {
        let rate = figures.ghost_rate.median();
        let sums = each(memory.kernel - local.kernel + memory.pss);
        let group = memory.head_group.map(each);
        let worse = group.map_or(sums, |group| group.max(sums));
        report.aim(
            &format!("memory of the head for each of {} ghosts", effort.ghosts),
            format!("≤ {AIM_KB} kB"),
            format!(
                "{sums:.1} kB by the kernel's sums, {} kB by cgroup",
                group.map_or("—".to_owned(), |group| format!("{group:.1}"))
            ),
            worse <= AIM_KB,
        );
        report.aim(
            "ghosts created with their remote processes",
            format!("≥ {AIM_OF_XARGS} × `xargs -P2`"),
            format!("{:.2} × ({rate:.0}/s of {xargs:.0}/s)", rate / xargs),
            rate / xargs >= AIM_OF_XARGS,
        );
        let ps = figures.ps_s.median();
        report.aim(
            &format!("`wiglaf ps` of {} processes", effort.ghosts),
            format!("< {AIM_PS_S} s"),
            format!("{ps:.3} s"),
            ps < AIM_PS_S,
        );
        let mut row = |what: &str, value: String| rows.push(vec![what.to_owned(), value]);
        row(
            "ghosts with their remote processes started a second",
            figures.ghost_rate.text(0),
        );
        row(
            "all ended after SIGTERM to `wiglaf run`, s",
            figures.end_s.text(2),
        );
        row("`wiglaf ps`, s", figures.ps_s.text(3));
        row(
            "the kernel's memory, whole machine, kB each",
            text(Some(memory.kernel)),
        );
        row(
            "− that of as many local `sleep`s, kB each",
            text(Some(local.kernel)),
        );
        row(
            "+ Pss of ghosts, daemons and command, kB each",
            text(Some(memory.pss)),
        );
        row(
            "**= the head's memory by sums, kB each**",
            format!("{sums:.1}"),
        );
        row(
            "**the head's memory by its cgroup, kB each**",
            text(memory.head_group),
        );
        row(
            "the nodes' by theirs (remote `sleep`s and agents), kB each",
            text(memory.nodes_group),
        );
    }
    if let Some(local) = figures.local {
        rows.push(vec![
            "as many local `sleep`s by their cgroup, kB each".to_owned(),
            text(local.peer_group),
        ]);
    }
    report.table(
        &format!("{} ghosts at once", effort.ghosts),
        &format!(
            "`wiglaf run -w n[1-16] -n {} {}`, {} rounds; memory from the first (kB: 1,000 bytes)",
            effort.ghosts,
            TASK.join(" "),
            effort.ghost_rounds
        ),
        &["", ""],
        rows,
    );
    report.note(
        "`xargs -P2 -n1 true` waits for each of its processes and so reaps them too; it is the \
         plainest way to have xargs start a thousand, as one that waits for `sleep 600` would \
         start two. The ghosts' time ends when the last remote process is `sleep` by name."
            .to_owned(),
    );
    report.note(
        "Kernel's sums: SUnreclaim + KernelStack + PageTables + Percpu of /proc/meminfo. The remote \
         processes run on the same machine, so as many local ones, measured afterwards, are taken \
         off. The cgroup of the head (daemons, command, ghosts) has nothing of the nodes in it; it \
         counts every kernel structure that is charged, reclaimable ones too. The larger of both \
         decides."
            .to_owned(),
    );
}
