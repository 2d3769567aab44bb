//! What the view adds to a launch: the same `true` on a virtual node that sees the head's files
//! through it, and on one that reads the head's disk by the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::Effort;
use crate::bench::ground::groups::Group;
use crate::bench::ground::report::Report;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::Samples;

const UP_TIMEOUT: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(20);
const WARM_UPS: usize = 5;

pub(super) fn measure(
    stage: &Stage,
    effort: &Effort,
    binary: &Path,
    report: &mut Report,
) -> Result<()> {
    let mut contenders = Vec::new();
    for files in ["view", "disk"] {
        contenders.push((start(stage, binary, files)?, Samples::default()));
    }
    for round in 0..WARM_UPS + effort.launch_rounds {
        for (dir, samples) in &mut contenders {
            let mut command = wiglaf(stage, binary, dir);
            command.args(["run", "-w", "n1", "true"]);
            let took = stage.watchdog.time_success(&mut command, TIMEOUT)?;
            if round >= WARM_UPS {
                samples.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    let [(_, view), (_, disk)] = &contenders[..] else {
        unreachable!("both were started");
    };
    report.table(
        "What the view adds to a launch",
        &format!(
            "`wiglaf run -w n1 true` on virtual nodes of this machine, {} rounds in turns, ms",
            effort.launch_rounds
        ),
        &[
            "files by the view",
            "by this machine's kernel",
            "difference",
        ],
        vec![vec![
            view.text(2),
            disk.text(2),
            format!("{:+.2}", view.median() - disk.median()),
        ]],
    );
    Ok(())
}

fn start(stage: &Stage, binary: &Path, files: &str) -> Result<PathBuf> {
    let dir = stage.dir.join(files);
    std::fs::create_dir(&dir)?;
    stage.groups.enter(Group::Head)?;
    let mut up = wiglaf(stage, binary, &dir);
    up.args(["up", "-n", "1", "--files", files]);
    stage.try_out(&mut up, UP_TIMEOUT)?;
    stage.sweeper.add_cluster(binary, &dir)?;
    Ok(dir)
}

fn wiglaf(stage: &Stage, binary: &Path, dir: &Path) -> Command {
    let mut command = stage.command(&binary.to_string_lossy());
    command.env("WIGLAF_DIR", dir).current_dir("/");
    command
}
