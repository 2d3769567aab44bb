//! The aims, and the tables of all figures.

use super::cable::Wire;
use super::materials::BIG_BYTES;
use super::measure::{Column, Figures};
use super::work::{GCC, GIT, Kind, LS, READ, UNTAR, WRITE, Work};
use crate::bench::ground::report::Report;

pub(super) struct Results {
    pub(super) names: Vec<&'static str>,
    pub(super) rows: Vec<(Work, Vec<Figures>)>,
}

const NATIVE: &str = "native";
const WIGLAF: &str = "Wiglaf";
const SSHFS: &str = "sshfs";
const OUTRUN: &str = "outrun";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    Cold,
    Warm,
}
use Cache::{Cold, Warm};

/// Wiglaf's time is to be at most so many times another's.
const AIMS: &[(&str, Cache, &str, f64)] = &[
    (GCC, Warm, NATIVE, 1.05),
    (LS, Warm, NATIVE, 1.0),
    (GIT, Warm, NATIVE, 1.5),
    (READ, Warm, NATIVE, 1.3),
    (GCC, Cold, NATIVE, 1.8),
    (GCC, Cold, SSHFS, 0.75),
    (LS, Cold, SSHFS, 0.25),
    (GIT, Cold, SSHFS, 0.25),
    (UNTAR, Warm, SSHFS, 0.5),
];
/// From here on tenths are noise.
pub(super) const WHOLE_MS: f64 = 100.0;
const AIM_OF_OUTRUN: f64 = 3.0;
/// Of the wire's bytes a second.
const RATE_AIMS: &[(&str, Cache, f64)] = &[(READ, Cold, 0.9), (WRITE, Warm, 0.8)];

impl Results {
    fn figures(&self, work: &str, contender: &str) -> Option<&Figures> {
        let index = self.names.iter().position(|name| *name == contender)?;
        let (_, figures) = self.rows.iter().find(|(each, _)| each.name == work)?;
        figures.get(index)
    }

    /// Median wall clock in ms; None if it failed or was not measured.
    fn wall(&self, work: &str, contender: &str, cache: Cache) -> Option<f64> {
        let figures = self.figures(work, contender)?;
        let median = column(figures, cache).wall_ms.median();
        (figures.failure.is_none() && median.is_finite()).then_some(median)
    }

    pub(super) fn warm_packets(&self, work: &str) -> Option<f64> {
        let figures = self.figures(work, WIGLAF)?;
        let median = figures.warm.packets.median();
        (figures.failure.is_none() && median.is_finite()).then_some(median)
    }

    pub(super) fn write(&self, wire: &Wire, report: &mut Report) {
        if self.names.contains(&WIGLAF) {
            self.write_aims(wire, report);
        }
        self.table(
            report,
            "Wall clock, ms",
            "× native in each cell",
            |column, native| {
                let median = column.wall_ms.median();
                let decimals = usize::from(median < WHOLE_MS);
                format!(
                    "{} = {:.2} ×",
                    column.wall_ms.text(decimals),
                    median / native
                )
            },
        );
        for (work, all) in &self.rows {
            for (name, figures) in self.names.iter().zip(all) {
                if let Some(reason) = &figures.failure {
                    report.note(format!("{name} failed at {}: {reason}", work.name));
                }
            }
        }
        self.table(
            report,
            "CPU time in all, ms",
            "Of everything that takes part at both ends",
            |column, _| format!("{:.0}", column.cpu_ms.median()),
        );
        self.table(
            report,
            "On the cable",
            "Both directions; a packet may be a segment of up to 64 kB that the kernel did not cut",
            |column, _| {
                format!(
                    "{:.2} MB, {:.0} packets",
                    column.bytes.median() / 1e6,
                    column.packets.median()
                )
            },
        );
    }

    fn write_aims(&self, wire: &Wire, report: &mut Report) {
        for (work, cache, peer, most) in AIMS {
            let peer_cache = if *peer == NATIVE { Warm } else { *cache };
            let own = self.wall(work, WIGLAF, *cache);
            let other = self.wall(work, peer, peer_cache);
            let what = format!("{work}, {}", word(*cache));
            let aim = format!("≤ {most} × {peer}");
            match (own, other) {
                (Some(own), Some(other)) => report.aim(
                    &what,
                    aim,
                    format!("{:.2} × ({own:.0} of {other:.0} ms)", own / other),
                    own / other <= *most,
                ),
                _ => report.aim(&what, aim, "not measured".to_owned(), false),
            }
        }
        for (work, cache, least) in RATE_AIMS {
            let what = format!("{work}, {}", word(*cache));
            let aim = format!("≥ {least} × the wire");
            match self.wall(work, WIGLAF, *cache) {
                Some(own) => {
                    let rate = BIG_BYTES as f64 / (own / 1e3);
                    let share = rate / wire.bytes_per_s;
                    let figure = format!(
                        "{share:.2} × ({:.1} of {:.1} MB/s)",
                        rate / 1e6,
                        wire.bytes_per_s / 1e6
                    );
                    report.aim(&what, aim, figure, share >= *least);
                }
                None => report.aim(&what, aim, "not measured".to_owned(), false),
            }
        }
        self.write_aim_of_outrun(report);
    }

    /// The smallest lead, and all that are too small.
    fn write_aim_of_outrun(&self, report: &mut Report) {
        let mut leads = Vec::new();
        for (work, _) in &self.rows {
            for cache in [Cold, Warm] {
                let own = self.wall(work.name, WIGLAF, cache);
                let other = self.wall(work.name, OUTRUN, cache);
                if let (Some(own), Some(other)) = (own, other) {
                    let what = format!("{}, {}: {:.2} ×", work.name, word(cache), other / own);
                    leads.push((other / own, what));
                }
            }
        }
        leads.sort_by(|a, b| a.0.total_cmp(&b.0));
        let is_met = leads
            .first()
            .is_some_and(|(least, _)| *least >= AIM_OF_OUTRUN);
        let shown = leads
            .iter()
            .take_while(|(lead, _)| *lead < AIM_OF_OUTRUN)
            .count()
            .max(1)
            .min(leads.len());
        let figure = match &leads[..shown] {
            [] => "not measured".to_owned(),
            some => some
                .iter()
                .map(|(_, what)| what.as_str())
                .collect::<Vec<_>>()
                .join("; "),
        };
        let aim = format!("≥ {AIM_OF_OUTRUN} × as fast as outrun");
        report.aim("everything, the smallest leads", aim, figure, is_met);
    }

    fn table(
        &self,
        report: &mut Report,
        title: &str,
        how: &str,
        cell: impl Fn(&Column, f64) -> String,
    ) {
        let mut head = vec![String::new()];
        for name in &self.names {
            if *name == NATIVE {
                head.push((*name).to_owned());
            } else {
                head.extend([format!("{name} cold"), format!("{name} warm")]);
            }
        }
        let rows = self.rows.iter().map(|(work, all)| {
            let native = all
                .first()
                .map_or(f64::NAN, |all| all.warm.wall_ms.median());
            let mut row = vec![format!("**{}**: {}", work.name, work.about)];
            for (name, figures) in self.names.iter().zip(all) {
                let has_failed = figures.failure.is_some();
                let one = |column: &Column, is_due: bool| {
                    if !column.wall_ms.is_empty() {
                        cell(column, native)
                    } else if is_due && has_failed {
                        "failed".to_owned()
                    } else {
                        "—".to_owned()
                    }
                };
                if *name != NATIVE {
                    row.push(one(&figures.cold, work.kind == Kind::Reads));
                }
                row.push(one(
                    &figures.warm,
                    *name == NATIVE || work.kind == Kind::Writes,
                ));
            }
            row
        });
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        report.table(title, how, &head, rows.collect());
    }
}

fn column(figures: &Figures, cache: Cache) -> &Column {
    match cache {
        Cold => &figures.cold,
        Warm => &figures.warm,
    }
}

fn word(cache: Cache) -> &'static str {
    match cache {
        Cold => "cold",
        Warm => "warm",
    }
}
