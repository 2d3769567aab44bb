//! How long one `true` takes from start to exit status.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::Effort;
use super::cluster::Cluster;
use super::peers::Peers;
use crate::bench::ground::groups::Group;
use crate::bench::ground::report::Report;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::Samples;

const TIMEOUT: Duration = Duration::from_secs(20);
const WARM_UPS: u32 = 3;
const AIM_OF_HYDRA: f64 = 0.5;

struct Contender {
    name: &'static str,
    groups: &'static [Group],
    command: Command,
    wall_ms: Samples,
    cpu_ms: Samples,
}

impl Contender {
    fn new(name: &'static str, groups: &'static [Group], command: Command) -> Contender {
        Contender {
            name,
            groups,
            command,
            wall_ms: Samples::default(),
            cpu_ms: Samples::default(),
        }
    }
}

pub(super) fn measure(
    stage: &Stage,
    effort: &Effort,
    cluster: Option<&Cluster>,
    peers: &Peers,
    report: &mut Report,
) -> Result<()> {
    peers.sshd.share_connection()?;
    let peer: &[Group] = &[Group::Peer];
    let mut contenders = vec![Contender::new(
        "fork+exec `true`",
        peer,
        stage.command("true"),
    )];
    if let Some(cluster) = cluster {
        let groups = &[Group::Head, Group::Nodes];
        let command = cluster.run(&["-w", "n1", "true"]);
        contenders.push(Contender::new("`wiglaf run -w n1 true`", groups, command));
    }
    contenders.push(Contender::new(
        "Hydra: `mpiexec -n 1 true`",
        peer,
        peers.hydra(1),
    ));
    let mut ssh = peers.sshd.ssh(&[]);
    ssh.arg("/usr/bin/true");
    contenders.push(Contender::new("`ssh host /usr/bin/true`", peer, ssh));
    let mut shared = peers.sshd.shared();
    shared.arg("/usr/bin/true");
    contenders.push(Contender::new(
        "the same by a shared connection",
        peer,
        shared,
    ));

    for contender in &mut contenders {
        stage.groups.enter(contender.groups[0])?;
        for _ in 0..WARM_UPS {
            stage.try_out(&mut contender.command, TIMEOUT)?;
        }
    }
    for _ in 0..effort.latency_rounds {
        for contender in &mut contenders {
            stage.groups.enter(contender.groups[0])?;
            let mut took = Duration::ZERO;
            let cpu_ms = stage.cpu_ms_of(contender.groups, || {
                took = stage
                    .watchdog
                    .time_success(&mut contender.command, TIMEOUT)?;
                Ok(())
            })?;
            contender.wall_ms.push(took.as_secs_f64() * 1e3);
            contender.cpu_ms.push(cpu_ms);
        }
    }
    write(effort, &contenders, report);
    Ok(())
}

fn write(effort: &Effort, contenders: &[Contender], report: &mut Report) {
    let median = |start: &str| {
        let found = contenders
            .iter()
            .find(|contender| contender.name.starts_with(start));
        found.map(|contender| contender.wall_ms.median())
    };
    let hydra = median("Hydra").unwrap_or(f64::NAN);
    if let Some(wiglaf) = median("`wiglaf") {
        let ratio = wiglaf / hydra;
        report.aim(
            "`wiglaf run -w n1 true`, wall clock",
            format!("≤ {AIM_OF_HYDRA} × Hydra"),
            format!("{ratio:.2} × ({wiglaf:.2} of {hydra:.2} ms)"),
            ratio <= AIM_OF_HYDRA,
        );
    }
    let rows = contenders.iter().map(|contender| {
        vec![
            contender.name.to_owned(),
            contender.wall_ms.text(2),
            format!("{:.2}", contender.wall_ms.median() / hydra),
            contender.cpu_ms.text(2),
        ]
    });
    report.table(
        "One `true`, from its start to its exit status",
        &format!("{} rounds", effort.latency_rounds),
        &["", "wall, ms", "× Hydra", "CPU in all, ms"],
        rows.collect(),
    );
    report.note(
        "ssh goes to an sshd of the benchmark's own on a loopback port, for a temporary account with \
         /bin/sh and an empty home, without PAM; each run sets up its connection. The shared \
         connection (ControlMaster) was set up before."
            .to_owned(),
    );
}
