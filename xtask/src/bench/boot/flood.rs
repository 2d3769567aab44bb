//! A flood of machines that nobody knows, while one asks that somebody does.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Effort;
use super::perfdhcp::{self, Load, Outcome};
use super::server::{Head, Server};
use super::wire::End;
use crate::bench::ground::report::Report;

const FLOOD_PER_S: u32 = 2_000;
const KNOWN_PER_S: u32 = 20;
/// The flood is there first.
const LEAD: Duration = Duration::from_secs(1);
/// And longer.
const MORE_S: u32 = 3;

struct Row {
    name: &'static str,
    alone: Outcome,
    flooded: Outcome,
    flood: Outcome,
}

pub(super) fn measure(
    head: &Head<'_>,
    servers: &[&Server<'_>],
    known: &Path,
    crowd: &Path,
    effort: &Effort,
    report: &mut Report,
) -> Result<()> {
    println!("\n=== a flood");
    let mut rows = Vec::new();
    for server in servers {
        match one(server, known, crowd, effort) {
            Ok(row) => rows.push(row),
            Err(error) => {
                server.wire.stage.check_alive()?;
                report.note(format!("{} failed in the flood: {error:#}", server.name));
            }
        }
    }
    if let Some(row) = rows.iter().find(|row| row.name == head.server.name) {
        let flooded = &row.flooded;
        report.aim(
            "DHCP, a known machine in a flood of 10,000 others",
            "all answered".to_owned(),
            format!(
                "{} of {}, p99 {:.2} ms",
                flooded.completed,
                flooded.begun,
                flooded.p99_ms()
            ),
            flooded.begun > 0 && flooded.lost() == 0,
        );
    }
    let lines = rows.iter().map(|row| {
        vec![
            row.name.to_owned(),
            told(&row.alone),
            told(&row.flooded),
            format!("{} of {}", row.flood.completed, row.flood.begun),
        ]
    });
    report.table(
        "A flood",
        &format!(
            "10,000 Ethernet addresses ask {FLOOD_PER_S} times a second, in no order, for 4,096 \
             addresses; a machine that each server is configured with asks {KNOWN_PER_S} times a \
             second at the same cable"
        ),
        &[
            "",
            "the known machine alone",
            "in the flood",
            "the flood itself: completed",
        ],
        lines.collect(),
    );
    let resident = head.server.resident()?;
    let resident: Vec<_> = resident
        .iter()
        .map(|(title, bytes)| format!("{title} {:.1} MB", *bytes as f64 / 1e6))
        .collect();
    report.note(format!(
        "Wiglaf after the flood: {} unknown machines in the list; resident: {}.",
        head.unknown_count()?,
        resident.join(", ")
    ));
    Ok(())
}

fn one(server: &Server<'_>, known: &Path, crowd: &Path, effort: &Effort) -> Result<Row> {
    let wire = &server.wire;
    let machine = Load {
        end: End::Single,
        macs: known,
        per_s: KNOWN_PER_S,
        seconds: effort.flood_s,
    };
    let others = Load {
        end: End::Crowd,
        macs: crowd,
        per_s: FLOOD_PER_S,
        seconds: effort.flood_s + MORE_S,
    };
    let alone = perfdhcp::run(wire, &machine)?;
    let flood = perfdhcp::start(wire, &others)?;
    std::thread::sleep(LEAD);
    let flooded = perfdhcp::run(wire, &machine)?;
    let flood = flood.finish()?;
    println!(
        "{}: {}; flood {}",
        server.name,
        told(&flooded),
        flood.completed
    );
    Ok(Row {
        name: server.name,
        alone,
        flooded,
        flood,
    })
}

fn told(outcome: &Outcome) -> String {
    format!(
        "{} of {} completed; {:.2} ms, p99 {:.2} ms",
        outcome.completed,
        outcome.begun,
        outcome.mean_ms(),
        outcome.p99_ms()
    )
}
