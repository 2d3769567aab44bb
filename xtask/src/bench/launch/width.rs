//! What each further node costs: `run -a true` on 1 to 16 nodes.

use std::time::Duration;

use anyhow::Result;

use super::Effort;
use super::cluster::Cluster;
use super::peers::Peers;
use crate::bench::ground::groups::Group;
use crate::bench::ground::report::Report;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::{Samples, slope};

const COUNTS: [u32; 5] = [1, 2, 4, 8, 16];
const TIMEOUT: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(2);
const AIM_MS_PER_NODE: f64 = 0.6;

/// On so many nodes.
#[derive(Default)]
struct Point {
    wall_ms: Samples,
    head_ms: Samples,
    all_ms: Samples,
    hydra_wall_ms: Samples,
    hydra_ms: Samples,
}

pub(super) fn measure(
    stage: &Stage,
    effort: &Effort,
    cluster: Option<&Cluster>,
    peers: &Peers,
    report: &mut Report,
) -> Result<()> {
    let mut points: Vec<(u32, Point)> = COUNTS
        .iter()
        .map(|count| (*count, Point::default()))
        .collect();
    for _ in 0..effort.width_rounds {
        for (count, point) in &mut points {
            if let Some(cluster) = cluster {
                wiglaf(stage, effort, cluster, *count, point)?;
            }
            stage.groups.enter(Group::Peer)?;
            let mut wall = Duration::ZERO;
            let all = stage.cpu_ms_of(&[Group::Peer], || {
                wall = batch(stage, effort, || peers.hydra(*count))?;
                Ok(())
            })?;
            let runs = f64::from(effort.width_batch);
            point.hydra_ms.push(all / runs);
            point.hydra_wall_ms.push(wall.as_secs_f64() * 1e3 / runs);
        }
    }
    if cluster.is_some() {
        let idle = stage.cpu_ms_of(&[Group::Head, Group::Nodes], || {
            std::thread::sleep(IDLE);
            Ok(())
        })?;
        report.note(format!(
            "The idle cluster of {} nodes used {:.2} ms of CPU a second; it is in the figures of \
             its runs.",
            COUNTS[COUNTS.len() - 1],
            idle / IDLE.as_secs_f64()
        ));
    }
    write(effort, cluster.is_some(), &points, report);
    Ok(())
}

fn wiglaf(
    stage: &Stage,
    effort: &Effort,
    cluster: &Cluster,
    count: u32,
    point: &mut Point,
) -> Result<()> {
    let set = Cluster::first(count);
    let runs = f64::from(effort.width_batch);
    stage.groups.enter(Group::Head)?;
    let head_before = stage.groups.cpu_ms(Group::Head)?;
    let mut wall = Duration::ZERO;
    let all = stage.cpu_ms_of(&[Group::Head, Group::Nodes], || {
        wall = batch(stage, effort, || cluster.run(&["-a", "-w", &set, "true"]))?;
        Ok(())
    })?;
    point.all_ms.push(all / runs);
    point
        .head_ms
        .push((stage.groups.cpu_ms(Group::Head)? - head_before) / runs);
    point.wall_ms.push(wall.as_secs_f64() * 1e3 / runs);
    Ok(())
}

fn batch(
    stage: &Stage,
    effort: &Effort,
    command: impl Fn() -> std::process::Command,
) -> Result<Duration> {
    (0..effort.width_batch)
        .map(|_| stage.watchdog.time_success(&mut command(), TIMEOUT))
        .sum()
}

fn write(effort: &Effort, has_wiglaf: bool, points: &[(u32, Point)], report: &mut Report) {
    let per_node = |value: fn(&Point) -> &Samples| {
        let line: Vec<_> = points
            .iter()
            .map(|(count, point)| (f64::from(*count), value(point).median()))
            .collect();
        slope(&line)
    };
    let hydra = per_node(|point| &point.hydra_ms);
    let all = per_node(|point| &point.all_ms);
    if has_wiglaf {
        report.aim(
            "each further node of `wiglaf run -a true`, CPU in all",
            format!("≤ {AIM_MS_PER_NODE} ms"),
            format!("{all:.2} ms (Hydra, each further process on one host: {hydra:.2} ms)"),
            all <= AIM_MS_PER_NODE,
        );
    }
    let mut rows: Vec<_> = points
        .iter()
        .map(|(count, point)| {
            vec![
                count.to_string(),
                point.wall_ms.text(2),
                point.all_ms.text(2),
                point.head_ms.text(2),
                point.hydra_wall_ms.text(2),
                point.hydra_ms.text(2),
            ]
        })
        .collect();
    let text = |value: f64| {
        if value.is_nan() {
            "—".to_owned()
        } else {
            format!("{value:.2}")
        }
    };
    rows.push(vec![
        "**per node**".to_owned(),
        text(per_node(|point| &point.wall_ms)),
        text(all),
        text(per_node(|point| &point.head_ms)),
        text(per_node(|point| &point.hydra_wall_ms)),
        text(hydra),
    ]);
    report.table(
        "`true` on several nodes",
        &format!(
            "{} rounds of {} runs each; per node: the slope by least squares. The CPU in all is \
             that of the command, its ghosts, the head's daemons, the agents and the tasks",
            effort.width_rounds, effort.width_batch
        ),
        &[
            "nodes",
            "run -a: wall, ms",
            "CPU in all, ms",
            "of it on the head",
            "mpiexec -n: wall, ms",
            "CPU in all, ms",
        ],
        rows,
    );
}
