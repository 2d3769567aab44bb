//! The parts of the benchmark: all in turns, cold starts, slow nodes, a node's death.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Effort;
use super::builder::{Builder, Distcc, Icecc, Plain, Wiglaf};
use super::cluster::Cluster;
use super::farm::{Farm, SLOTS};
use super::measure::{Figures, Ground, one_line};
use super::quota::{Quota, family};
use crate::bench::ground::statistics::Samples;

pub(super) const NODES: u32 = 4;
pub(super) const JOBS: [u32; 2] = [2, 4];
/// When a node is killed, of a build's usual time.
const KILL_AFTER: f64 = 0.4;
/// What the columns of the hub are called, after the builder.
pub(super) const HUB: &str = ", 10 Mb/s";
/// So few slow nodes need less than the hub has.
pub(super) const HUB_FROM_NODES: u32 = 4;
/// gcc's own name for what does its work.
const COMPILER: &str = "cc1";
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// All builders at one input and one number of jobs.
pub(super) struct Row {
    pub(super) input: &'static str,
    pub(super) objects: usize,
    pub(super) jobs: u32,
    pub(super) columns: Vec<(&'static str, Figures)>,
}

/// Everybody builds it in turns, so that what disturbs disturbs all.
pub(super) fn turns(
    ground: &Ground,
    rounds: usize,
    cluster: Option<&Cluster>,
    farm: &Farm,
) -> Vec<Row> {
    let wiglaf = cluster.map(Wiglaf);
    let (distcc, icecc) = (Distcc(farm), Icecc(farm));
    let mut builders: Vec<&dyn Builder> = vec![&Plain];
    builders.extend(wiglaf.as_ref().map(|each| each as &dyn Builder));
    builders.extend([&distcc as &dyn Builder, &icecc]);
    let mut rows: Vec<Row> = JOBS
        .iter()
        .map(|jobs| Row {
            input: ground.place.input.name,
            objects: ground.objects(),
            jobs: *jobs,
            columns: builders
                .iter()
                .map(|builder| (builder.name(), Figures::default()))
                .collect(),
        })
        .collect();
    println!("once without measuring");
    for (index, builder) in builders.iter().enumerate() {
        if let Err(error) = ground.build(*builder, JOBS[1], NODES, || Ok(())) {
            println!("{}: {error:#}", builder.name());
            for row in &mut rows {
                row.columns[index].1.failure = Some(one_line(&error));
            }
        }
    }
    for round in 0..rounds {
        println!("round {}", round + 1);
        for row in &mut rows {
            for (builder, (_, figures)) in builders.iter().zip(&mut row.columns) {
                ground.turn(*builder, row.jobs, NODES, figures);
            }
        }
    }
    rows
}

/// The first build of a cluster that has just been started, and the second.
#[derive(Default)]
pub(super) struct Cold {
    /// By a user who has never built this.
    pub(super) unlearned: Figures,
    pub(super) first: Figures,
    pub(super) second: Figures,
}

pub(super) fn cold(ground: &Ground, rounds: usize, cluster: &mut Cluster) -> Result<Cold> {
    println!("\n=== after a cold start");
    let mut cold = Cold::default();
    for _ in 0..rounds {
        cluster.restart(NODES)?;
        cluster.forget()?;
        ground.turn(&Wiglaf(cluster), JOBS[0], NODES, &mut cold.unlearned);
        cluster.restart(NODES)?;
        ground.turn(&Wiglaf(cluster), JOBS[0], NODES, &mut cold.first);
        ground.turn(&Wiglaf(cluster), JOBS[0], NODES, &mut cold.second);
    }
    Ok(cold)
}

/// A node that is killed in mid-build.
#[derive(Default)]
pub(super) struct Killed {
    pub(super) undisturbed: Figures,
    pub(super) disturbed: Figures,
}

pub(super) fn killed(ground: &Ground, rounds: usize, cluster: &mut Cluster) -> Result<Killed> {
    println!("\n=== a node is killed");
    let mut killed = Killed::default();
    cluster.restart(NODES)?;
    // The nodes' caches are to be warm in both cases.
    ground.build(&Wiglaf(cluster), JOBS[1], NODES, || Ok(()))?;
    for _ in 0..rounds {
        ground.turn(&Wiglaf(cluster), JOBS[1], NODES, &mut killed.undisturbed);
        let usual_s = killed.undisturbed.wall_s.median();
        if !usual_s.is_finite() {
            bail!("no build succeeds even undisturbed");
        }
        let outcome = ground.build(&Wiglaf(cluster), JOBS[1], NODES, || {
            std::thread::sleep(Duration::from_secs_f64(usual_s * KILL_AFTER));
            let victim = busy(&cluster.agents()?)?;
            let pid = Pid::from_raw(victim).context("the agent's number")?;
            kill_process(pid, Signal::KILL).context("can't kill the agent")
        });
        match outcome {
            Ok(outcome) => killed.disturbed.add(&outcome),
            Err(error) => {
                killed.disturbed.failure = Some(one_line(&error));
                break;
            }
        }
        cluster.restart(NODES)?;
        ground.build(&Wiglaf(cluster), JOBS[1], NODES, || Ok(()))?;
    }
    Ok(killed)
}

/// One of these whose node compiles just now, so that something is lost with it.
fn busy(agents: &[i32]) -> Result<i32> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    while Instant::now() < deadline {
        for agent in agents {
            let compiles = |pid: &i32| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == COMPILER)
            };
            if family(*agent)?.iter().any(compiles) {
                return Ok(*agent);
            }
        }
    }
    bail!("no node compiles anything")
}

/// A build on so many slow nodes.
#[derive(Default)]
pub(super) struct SlowRow {
    pub(super) nodes: u32,
    pub(super) series: Vec<SlowCell>,
}

#[derive(Default)]
pub(super) struct SlowCell {
    pub(super) name: String,
    pub(super) wall_s: Samples,
    pub(super) megabytes: Samples,
    pub(super) failure: Option<String>,
}

/// The original's table: one build on more and more slow nodes, then over a slow hub.
pub(super) fn slow(
    ground: &Ground,
    effort: &Effort,
    cluster: Option<&mut Cluster>,
    farm: &Farm,
    quota: &Quota,
) -> Result<Vec<SlowRow>> {
    println!("\n=== slow nodes");
    let most = *effort
        .slow_nodes
        .iter()
        .max()
        .context("no number of nodes")?;
    let cluster = match cluster {
        Some(cluster) => {
            cluster.restart(most)?;
            Some(&*cluster)
        }
        None => None,
    };
    let mut builders: Vec<(Box<dyn Builder>, _, Vec<i32>)> = Vec::new();
    if let Some(cluster) = cluster {
        // Each node is to have the compiler, as distcc's have.
        ground.build(&Wiglaf(cluster), most * SLOTS, most, || Ok(()))?;
        let builder = Box::new(Wiglaf(cluster));
        builders.push((builder, cluster.medium()?, cluster.agents()?));
    }
    builders.push((Box::new(Distcc(farm)), farm.medium(), farm.distccds()));
    let mut rows = Vec::new();
    for &nodes in effort.slow_nodes {
        let mut row = SlowRow {
            nodes,
            series: Vec::new(),
        };
        let wires: &[bool] = if nodes < HUB_FROM_NODES {
            &[false]
        } else {
            &[false, true]
        };
        for &is_hub in wires {
            for (builder, medium, processes) in &builders {
                let wire = if is_hub { HUB } else { "" };
                let mut cell = SlowCell {
                    name: format!("{}{wire}", builder.name()),
                    ..SlowCell::default()
                };
                for (index, process) in processes.iter().enumerate().take(nodes as usize) {
                    quota.slow_down(index + 1, *process)?;
                }
                let slow = if is_hub {
                    Some(medium.slow_down()?)
                } else {
                    None
                };
                let before = medium.bytes()?;
                let outcome = ground.build(&**builder, nodes * SLOTS, nodes, || Ok(()));
                let after = medium.bytes()?;
                drop(slow);
                quota.lift()?;
                match outcome {
                    Ok(outcome) => {
                        println!("{nodes} nodes{wire}: {:.1} s", outcome.wall_s);
                        cell.wall_s.push(outcome.wall_s);
                        cell.megabytes.push((after - before) as f64 / 1e6);
                    }
                    Err(error) => {
                        println!("{}: {error:#}", cell.name);
                        cell.failure = Some(one_line(&error));
                    }
                }
                row.series.push(cell);
            }
        }
        rows.push(row);
    }
    Ok(rows)
}
