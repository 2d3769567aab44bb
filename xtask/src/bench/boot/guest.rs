//! Real machines in QEMU: as small as is promised, and what its first process takes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::ground::report::Report;
use crate::run;

/// The small one of `cargo xtask vm-test`; its kernel tells the time of each line.
const SMALL: &str = "bios";
const AIM_OF_MEMORY_MIB: u32 = 112;
const MEMORY: (&str, &str) = ("the machine has ", " MiB");
const AIM_OF_DELAY_S: f64 = 0.5;
const KVM: &str = "/dev/kvm";
/// From here on it is we who take the time.
const START: &str = "Run /init as init process";
/// From here on it waits for somebody who approves it; at later boots it joins.
const JOINING: &str = "asks to join";
/// What stages begin or end with, and how the table calls them.
const STAGES: &[(&str, &str)] = &[
    ("wiglaf: init ", "our first line"),
    (
        " has a link",
        "its network card is found, and its drivers are loaded",
    ),
    (" has the address ", "it has its address"),
    (JOINING, "it asks to join, with a key that it has made"),
];

pub(super) fn measure(binary: &Path, target: &Path, report: &mut Report) -> Result<()> {
    println!("\n=== machines in QEMU");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["vm-test", SMALL, "--binary"]).arg(binary);
    let said = run::output(&mut command);
    let memory_mib = said.as_ref().ok().and_then(|said| memory_in(said));
    let figure = match (&said, memory_mib) {
        (Ok(_), Some(mib)) => format!("it joins, and runs programs, with {mib} MiB"),
        (Ok(_), None) => "it joins; its memory is not told".to_owned(),
        (Err(error), _) => format!("failed: {error:#}"),
    };
    report.aim(
        "a machine with a BIOS and little memory",
        format!("boots with {AIM_OF_MEMORY_MIB} MiB"),
        figure,
        memory_mib.is_some_and(|mib| mib <= AIM_OF_MEMORY_MIB),
    );
    if said.is_ok() {
        let path = target.join("vm").join(SMALL).join("guest.console");
        let console = fs::read(&path).with_context(|| path.display().to_string())?;
        write(&String::from_utf8_lossy(&console), report);
    }
    Ok(())
}

fn write(console: &str, report: &mut Report) {
    let how = match Path::new(KVM).exists() {
        true => "QEMU",
        false => "QEMU, where all of its work takes many times as long, as there is no KVM here",
    };
    let since = |mark: &str| Some(time_of(console, mark)? - time_of(console, START)?);
    let delay_s = since(JOINING);
    report.aim(
        "delay that we add: from the kernel's start of /init until it asks to join",
        format!("< {AIM_OF_DELAY_S} s"),
        delay_s.map_or("not measured".to_owned(), |s| format!("{s:.2} s in {how}")),
        delay_s.is_some_and(|s| s < AIM_OF_DELAY_S),
    );
    let rows = STAGES.iter().map(|(mark, what)| {
        let time = since(mark).map_or("—".to_owned(), |s| format!("{s:.2}"));
        vec![(*what).to_owned(), time]
    });
    report.table(
        "Until a machine asks to join",
        &format!(
            "By the clock of one machine's kernel, since that has started /init; the machine is in {how}"
        ),
        &["", "s"],
        rows.collect(),
    );
}

fn memory_in(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once(MEMORY.0)?;
    rest.split_once(MEMORY.1)?.0.parse().ok()
}

/// When the kernel has first shown a line with this: `[    6.077961] Run /init …`.
fn time_of(console: &str, mark: &str) -> Option<f64> {
    let line = console.lines().find(|line| line.contains(mark))?;
    let (time, _) = line.split_once('[')?.1.split_once(']')?;
    time.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_times_are_read() {
        assert_eq!(memory_in("    0.0 s  the machine has 112 MiB\n"), Some(112));
        let console = "SeaBIOS\r\n[    6.077961] Run /init as init process\r\n\
            [   10.454593] wiglaf: This machine asks to join as 52:54:00:77:db:f3. Code 1\r\n";
        assert_eq!(time_of(console, START), Some(6.077961));
        assert_eq!(time_of(console, JOINING), Some(10.454593));
        assert_eq!(time_of(console, "takes tasks now"), None);
    }
}
