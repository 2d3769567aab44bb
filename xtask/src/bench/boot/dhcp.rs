//! Exchanges a second: what is lost, and how long answers take.

use std::path::Path;

use anyhow::Result;

use super::Effort;
use super::perfdhcp::{self, Load, Outcome};
use super::server::Server;
use super::wire::End;
use crate::bench::ground::report::Report;

/// The Kea that another aim is measured by, and ours.
const KEA: &str = "Kea";
const WIGLAF: &str = "Wiglaf";

pub(super) struct Contender<'s, 'a> {
    pub(super) label: &'static str,
    pub(super) server: &'s Server<'a>,
    /// Who asks.
    pub(super) macs: &'s Path,
}

/// What became of all rounds at one rate.
#[derive(Clone, Default)]
struct Figures {
    all: Outcome,
    cpu_ms: f64,
    failure: Option<String>,
}

pub(super) fn measure(
    contenders: &[Contender<'_, '_>],
    effort: &Effort,
    report: &mut Report,
) -> Result<()> {
    let mut rows = Vec::new();
    for per_s in effort.rates {
        println!("\n=== {per_s} exchanges/s");
        let mut row = vec![Figures::default(); contenders.len()];
        for round in 0..effort.rounds {
            for turn in 0..contenders.len() {
                let index = (turn + round) % contenders.len();
                let contender = &contenders[index];
                if let Err(error) = once(contender, *per_s, effort, &mut row[index]) {
                    println!("{}: {error:#}", contender.label);
                    contender.server.wire.stage.check_alive()?;
                    row[index].failure = Some(format!("{error:#}"));
                }
            }
        }
        rows.push((*per_s, row));
    }
    write_aim(contenders, &rows, report);
    write(contenders, effort, &rows, report);
    let memory = contenders.iter().map(|contender| {
        let resident = contender.server.resident()?;
        let parts: Vec<_> = resident
            .iter()
            .map(|(title, bytes)| format!("{} {:.1} MB", short(title), *bytes as f64 / 1e6))
            .collect();
        Ok(format!("{}: {}", contender.label, parts.join(", ")))
    });
    let memory: Result<Vec<_>> = memory.collect();
    report.note(format!("Resident after that: {}.", memory?.join("; ")));
    Ok(())
}

fn once(
    contender: &Contender<'_, '_>,
    per_s: u32,
    effort: &Effort,
    figures: &mut Figures,
) -> Result<()> {
    let server = contender.server;
    let load = Load {
        end: End::Crowd,
        macs: contender.macs,
        per_s,
        seconds: effort.seconds,
    };
    let mut outcome = Outcome::default();
    figures.cpu_ms += server.wire.stage.cpu_ms_of(&[server.group], || {
        outcome = perfdhcp::run(&server.wire, &load)?;
        Ok(())
    })?;
    println!("{}: {}", contender.label, cell(&outcome));
    figures.all.add(&outcome);
    Ok(())
}

fn write_aim(contenders: &[Contender<'_, '_>], rows: &[(u32, Vec<Figures>)], report: &mut Report) {
    let Some(kea) = contenders.iter().position(|each| each.label == KEA) else {
        return;
    };
    let all_kept = |figures: &Figures| {
        figures.failure.is_none() && figures.all.begun > 0 && figures.all.lost() == 0
    };
    let counted: Vec<_> = rows.iter().filter(|(_, row)| all_kept(&row[kea])).collect();
    for (index, contender) in contenders.iter().enumerate() {
        if !contender.label.starts_with(WIGLAF) {
            continue;
        }
        let figures: Vec<_> = counted
            .iter()
            .map(|(per_s, row)| {
                let all = &row[index].all;
                format!("{per_s}/s: {} of {}", all.lost(), all.begun)
            })
            .collect();
        let is_met = !counted.is_empty() && counted.iter().all(|(_, row)| all_kept(&row[index]));
        let figure = match figures.is_empty() {
            true => "Kea loses some at each rate".to_owned(),
            false => figures.join(", "),
        };
        report.aim(
            &format!("DHCP, lost by {}", contender.label),
            "0 where Kea loses none".to_owned(),
            figure,
            is_met,
        );
    }
}

fn write(
    contenders: &[Contender<'_, '_>],
    effort: &Effort,
    rows: &[(u32, Vec<Figures>)],
    report: &mut Report,
) {
    let mut head = vec!["begun a second"];
    head.extend(contenders.iter().map(|each| each.label));
    let table = |cell: &dyn Fn(&Figures) -> String| {
        rows.iter()
            .map(|(per_s, row)| {
                let cells = row.iter().map(|figures| match &figures.failure {
                    Some(_) => "failed".to_owned(),
                    None => cell(figures),
                });
                std::iter::once(per_s.to_string()).chain(cells).collect()
            })
            .collect::<Vec<Vec<String>>>()
    };
    report.table(
        "DHCP exchanges",
        &format!(
            "DISCOVER, OFFER, REQUEST, ACK with PXE's options, by perfdhcp through a veth, {} × {} s \
             at each rate. Lost: not completed within 1 s. Mean and 99th percentile of all round \
             trips, of which an exchange has two",
            effort.rounds, effort.seconds
        ),
        &head,
        table(&|figures| cell(&figures.all)),
    );
    report.table(
        "Completed a second, and CPU time for each",
        "perfdhcp itself may begin fewer than it was told to",
        &head,
        table(&|figures| {
            let seconds = f64::from(effort.seconds) * effort.rounds as f64;
            format!(
                "{:.0}/s, {:.0} µs",
                figures.all.completed as f64 / seconds,
                figures.cpu_ms * 1e3 / figures.all.completed as f64
            )
        }),
    );
    for (per_s, row) in rows {
        for (contender, figures) in contenders.iter().zip(row) {
            if let Some(failure) = &figures.failure {
                report.note(format!(
                    "{} failed at {per_s}/s: {failure}",
                    contender.label
                ));
            }
        }
    }
}

fn cell(outcome: &Outcome) -> String {
    if outcome.completed == 0 {
        return format!("all of {} lost", outcome.begun);
    }
    format!(
        "{:.2} % lost; {:.2} ms, p99 {:.2} ms",
        outcome.lost_percent(),
        outcome.mean_ms(),
        outcome.p99_ms()
    )
}

/// The program's name, or a title of ours.
fn short(title: &str) -> &str {
    title.rsplit('/').next().unwrap_or(title)
}
