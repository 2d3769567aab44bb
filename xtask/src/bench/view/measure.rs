//! Has the contenders do the work in turns.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Effort;
use super::cable::{Cable, Traffic};
use super::contender::Contender;
use super::work::{Kind, Work, clear};
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::bench::ground::statistics::Samples;

const TIMEOUT: Duration = Duration::from_secs(120);
/// Who has used this much for one column does not get another turn in it.
const BUDGET: Duration = Duration::from_secs(8);
const PAYERS: &[Group] = &[Group::Head, Group::Nodes, Group::Peer];
const SHOWN_REASON: usize = 160;

/// One contender at one work.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) cold: Column,
    pub(super) warm: Column,
    pub(super) failure: Option<String>,
}

#[derive(Default)]
pub(super) struct Column {
    pub(super) wall_ms: Samples,
    pub(super) cpu_ms: Samples,
    /// Of that, by the head's daemons and the command.
    pub(super) head_ms: Samples,
    pub(super) bytes: Samples,
    pub(super) packets: Samples,
    spent: Duration,
}

pub(super) struct Ground<'a> {
    pub(super) stage: &'a Stage,
    pub(super) cable: &'a Cable<'a>,
    /// What is worked on, and a folder for each contender.
    pub(super) materials: &'a Path,
    /// So far.
    pub(super) runs: Cell<u32>,
}

impl Ground<'_> {
    /// One work by all, in the contenders' order.
    pub(super) fn measure(
        &self,
        effort: &Effort,
        work: &Work,
        contenders: &mut [&mut dyn Contender],
    ) -> Result<Vec<Figures>> {
        let mut figures: Vec<Figures> = contenders.iter().map(|_| Figures::default()).collect();
        let rounds = match work.kind {
            Kind::Reads => effort.cold_rounds,
            Kind::Writes => 0,
        };
        for _ in 0..rounds {
            for (contender, figures) in contenders.iter_mut().zip(&mut figures) {
                if contender.is_remote() {
                    self.turn(work, &mut **contender, figures, true);
                }
            }
        }
        let rounds = match work.kind {
            Kind::Reads => effort.warm_rounds,
            Kind::Writes => effort.write_rounds,
        };
        for _ in 0..rounds {
            for (contender, figures) in contenders.iter_mut().zip(&mut figures) {
                self.turn(work, &mut **contender, figures, false);
            }
        }
        for (contender, figures) in contenders.iter_mut().zip(&figures) {
            if let Some(reason) = &figures.failure {
                println!("{} at {}: failed: {reason}", contender.name(), work.name);
                // What failed may have left it in a bad way, which is no other work's fault.
                if let Err(error) = contender.freshen() {
                    println!("{}: {error:#}", contender.name());
                }
            }
        }
        self.stage.check_alive()?;
        Ok(figures)
    }

    fn turn(
        &self,
        work: &Work,
        contender: &mut dyn Contender,
        figures: &mut Figures,
        is_cold: bool,
    ) {
        let column = if is_cold {
            &mut figures.cold
        } else {
            &mut figures.warm
        };
        if figures.failure.is_some() || column.spent > BUDGET {
            return;
        }
        let freshened = if is_cold {
            contender.freshen().context("its caches can't be emptied")
        } else {
            Ok(())
        };
        let result = freshened.and_then(|()| self.once(work, contender, column));
        if let Err(error) = result {
            let mut reason = format!("{error:#}").replace(['\n', '|'], " ");
            if let Some((at, _)) = reason.char_indices().nth(SHOWN_REASON) {
                reason.truncate(at);
                reason.push('…');
            }
            figures.failure = Some(reason);
        }
    }

    /// One run.
    pub(super) fn once(
        &self,
        work: &Work,
        contender: &dyn Contender,
        column: &mut Column,
    ) -> Result<()> {
        let name = format!("made{}", self.runs.replace(self.runs.get() + 1));
        let made = self.materials.join(contender.name()).join(&name);
        let result = self.run(work, contender, column, &made, &name);
        clear(&made)?;
        result
    }

    fn run(
        &self,
        work: &Work,
        contender: &dyn Contender,
        column: &mut Column,
        made: &Path,
        name: &str,
    ) -> Result<()> {
        if work.kind == Kind::Writes {
            // The disk is not to be busy with what was written before.
            rustix::fs::sync();
        }
        let said = self.stage.dir.join("said.log");
        let complained = self.stage.dir.join("complained.log");
        let mut command = contender.command(&work.words(self.materials, contender.name(), name));
        command
            .stdout(fs::File::create(&said)?)
            .stderr(fs::File::create(&complained)?);
        self.stage.groups.enter(contender.group())?;
        let head_ms = || self.stage.groups.cpu_ms(Group::Head);
        let (before, head_before) = (self.cable.traffic()?, head_ms()?);
        let started = Instant::now();
        let mut ended = None;
        let cpu_ms = self.stage.cpu_ms_of(PAYERS, || {
            ended = Some(self.stage.watchdog.time(&mut command, TIMEOUT)?);
            Ok(())
        })?;
        column.spent += started.elapsed();
        let (after, head_after) = (self.cable.traffic()?, head_ms()?);
        let (took, status) = ended.context("it did not run")?;
        if !status.success() {
            let text = fs::read_to_string(&complained)?;
            let reason = text.lines().rev().find(|line| !line.trim().is_empty());
            bail!("{status}: {}", reason.unwrap_or("it did not say why"));
        }
        work.check(&fs::read_to_string(&said)?, self.materials, made)?;
        let since = |value: fn(&Traffic) -> u64| (value(&after) - value(&before)) as f64;
        column.wall_ms.push(took.as_secs_f64() * 1e3);
        column.cpu_ms.push(cpu_ms);
        column.head_ms.push(head_after - head_before);
        column.bytes.push(since(|traffic| traffic.bytes));
        column.packets.push(since(|traffic| traffic.packets));
        println!(
            "{:8} {:12} {:9.1} ms wall {:9.1} ms CPU {:9.3} MB {:7} packets",
            contender.name(),
            work.name,
            took.as_secs_f64() * 1e3,
            cpu_ms,
            since(|traffic| traffic.bytes) / 1e6,
            since(|traffic| traffic.packets),
        );
        Ok(())
    }
}
