//! A real machine, as small as is promised, in QEMU.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::ground::report::Report;
use crate::run;

/// The small one of `cargo xtask vm-test`.
const SCENARIO: &str = "bios";
const AIM_OF_MEMORY_MIB: u32 = 112;
const MEMORY: (&str, &str) = ("the machine has ", " MiB");

pub(super) fn measure(binary: &Path, target: &Path, report: &mut Report) -> Result<()> {
    println!("\n=== a small machine");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["vm-test", SCENARIO, "--binary"]).arg(binary);
    let said = run::output(&mut command);
    let memory_mib = said.as_ref().ok().and_then(|said| memory_in(said));
    let figure = match (&said, memory_mib) {
        (Ok(_), Some(mib)) => format!("it joins, and runs programs, with {mib} MiB"),
        (Ok(_), None) => "it joins; its memory is not told".to_owned(),
        (Err(error), _) => format!("it does not join: {error:#}"),
    };
    report.aim(
        "a machine with a BIOS and little memory",
        format!("boots with {AIM_OF_MEMORY_MIB} MiB"),
        figure,
        memory_mib.is_some_and(|mib| mib <= AIM_OF_MEMORY_MIB),
    );
    if said.is_ok() {
        let path = target.join("vm").join(SCENARIO).join("wiglaf-n1.log");
        let log = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        report.note(format!(
            "That machine (QEMU without KVM, so that all of its own work takes many times as long; \
             somebody approves it at once): {}.",
            stages(&log).join(", ")
        ));
    }
    Ok(())
}

fn memory_in(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once(MEMORY.0)?;
    rest.split_once(MEMORY.1)?.0.parse().ok()
}

/// The log's lines that tell a stage, with the seconds since the first.
fn stages(log: &str) -> Vec<String> {
    let mut first = None;
    log.lines()
        .filter_map(|line| {
            let (second, what) = line.split_once(' ')?;
            let second: u64 = second.parse().ok()?;
            let is_stage = what.contains(" on eth1: ")
                || what.starts_with("init ")
                || what.contains("asks to join")
                || what.contains("takes tasks now");
            let start = *first.get_or_insert(second);
            let what = what.split(". ").next().unwrap_or(what);
            is_stage.then(|| format!("{what} after {} s", second.saturating_sub(start)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_memory_are_read() {
        let log = "1795284804 iPXE on eth1: asked\n1795284819 loaded fuse overlay\n\
            1795284820 This machine asks to join as n1. Code 1\n\
            1795284822 this machine is n1: it takes tasks now\n";
        assert_eq!(
            stages(log),
            [
                "iPXE on eth1: asked after 0 s",
                "This machine asks to join as n1 after 16 s",
                "this machine is n1: it takes tasks now after 18 s"
            ]
        );
        assert_eq!(memory_in("    0.0 s  the machine has 112 MiB\n"), Some(112));
    }
}
