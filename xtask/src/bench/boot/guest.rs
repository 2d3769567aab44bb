//! Real machines in QEMU: as small as is promised, and what its first process takes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::ground::report::Report;
use crate::run;
use crate::vm::DELAY_CONSOLES;

/// The small one of `cargo xtask vm-test`; its kernel tells the time of each line.
const SMALL: &str = "bios";
const AIM_OF_MEMORY_MIB: u32 = 112;
const MEMORY: (&str, &str) = ("the machine has ", " MiB");
/// The one whose machine counts its instructions.
const COUNTED: &str = "delay";
const AIM_OF_DELAY_S: f64 = 0.5;
/// What the kernel does with what it was given, before us.
const UNPACKING: (&str, &str) = ("Trying to unpack rootfs image", "Freeing initrd memory");
/// From here on it is we who take the time.
const START: &str = "Run /init as init process";
/// From here on it waits for somebody who approves it; at later boots it joins.
const JOINING: &str = "asks to join";
const UP: &str = "it takes tasks now";
/// What stages begin or end with, and how the table calls them.
const STAGES: &[(&str, &str)] = &[
    ("wiglaf: init ", "our first line"),
    (
        " has a link",
        "its network card is found, and its drivers are loaded",
    ),
    (" has the address ", "it has its address"),
    (JOINING, "it asks to join, with a key that it has made"),
    (UP, "it takes tasks"),
];
/// What is told of modules: their names, and how long the kernel took.
const LOADED: (&str, &str) = ("wiglaf: loaded ", " ms)");

pub(super) fn measure(binary: &Path, target: &Path, report: &mut Report) -> Result<()> {
    println!("\n=== machines in QEMU");
    let small = play(SMALL, binary);
    let memory_mib = small.as_ref().ok().and_then(|said| memory_in(said));
    let figure = match (&small, memory_mib) {
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
    let counted = play(COUNTED, binary);
    let logs = target.join("vm");
    let life = |scenario: &str, name: &str| -> Result<Life> {
        let path = logs.join(scenario).join(name);
        let console = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(Life::read(&String::from_utf8_lossy(&console)))
    };
    let by_wall = match &small {
        Ok(_) => life(SMALL, "guest.console")?,
        Err(_) => Life::default(),
    };
    let [first, later] = DELAY_CONSOLES;
    let (first, later) = match &counted {
        Ok(_) => (life(COUNTED, first)?, life(COUNTED, later)?),
        Err(error) => {
            println!("{COUNTED}: {error:#}");
            (Life::default(), Life::default())
        }
    };
    write(&first, &later, &by_wall, report);
    Ok(())
}

fn play(scenario: &str, binary: &Path) -> Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["vm-test", scenario, "--binary"]).arg(binary);
    run::output(&mut command)
}

fn write(first: &Life, later: &Life, by_wall: &Life, report: &mut Report) {
    let delay_s = later.since_start(UP);
    let figure = match delay_s {
        Some(s) => format!(
            "{s:.2} s; the kernel loads drivers in {:.2} of it",
            later.loading_s
        ),
        None => format!("not measured: `cargo xtask vm-test {COUNTED}` failed"),
    };
    let beside = by_wall.since_start(JOINING);
    let beside = beside.map_or("not measured".to_owned(), |s| format!("{s:.2} s"));
    report.aim(
        "delay that we add: from the kernel's start of /init until the node takes tasks, at one \
         instruction a nanosecond",
        format!("< {AIM_OF_DELAY_S} s"),
        format!("{figure} (by QEMU's own speed, until it asks to join: {beside})"),
        delay_s.is_some_and(|s| s < AIM_OF_DELAY_S),
    );
    let lives = [first, later, by_wall];
    let row = |what: &str, figure: &dyn Fn(&Life) -> Option<f64>| {
        let cells = lives.iter().map(|life| seconds(figure(life)));
        std::iter::once(what.to_owned()).chain(cells).collect()
    };
    let mut rows: Vec<Vec<String>> = STAGES
        .iter()
        .map(|(mark, what)| row(what, &|life| life.since_start(mark)))
        .collect();
    rows.push(row("of that, the kernel loads drivers", &|life| {
        life.lines.first().map(|_| life.loading_s)
    }));
    rows.push(row(
        "before that, the kernel unpacks the initramfs, while it starts",
        &|life| life.unpacking_s,
    ));
    report.table(
        "Until a machine takes tasks",
        "Seconds by the clock of one machine's kernel, since that has started /init. The first two \
         machines' clock counts their instructions, one a nanosecond (a processor of 1 GHz that \
         does one in each cycle), and passes as ours while they wait: QEMU's -icount \
         shift=0,sleep=on, compared with a loop of known length. The third one's is ours, so that \
         all of its work takes as long as it takes QEMU to emulate its processor. A new machine \
         waits for somebody who approves it",
        &["", "new", "started anew", "new, by QEMU's own speed"],
        rows,
    );
}

fn seconds(figure: Option<f64>) -> String {
    figure.map_or("—".to_owned(), |s| format!("{s:.3}"))
}

/// What a console has shown of the newest life of a machine: when it was shown, and what.
#[derive(Debug, Default)]
struct Life {
    /// From the kernel's start of our first process.
    lines: Vec<(f64, String)>,
    loading_s: f64,
    unpacking_s: Option<f64>,
}

impl Life {
    fn read(console: &str) -> Life {
        let lines: Vec<_> = console.lines().filter_map(timed).collect();
        let start = lines.iter().rposition(|(_, text)| text.contains(START));
        let (before, since) = lines.split_at(start.unwrap_or(lines.len()));
        let last = |mark: &str| {
            let mut lines = before.iter().rev();
            lines
                .find(|(_, text)| text.contains(mark))
                .map(|(at, _)| *at)
        };
        let loading_ms: f64 = since.iter().filter_map(|(_, text)| loading(text)).sum();
        Life {
            lines: since.to_vec(),
            loading_s: loading_ms / 1e3,
            unpacking_s: last(UNPACKING.1)
                .zip(last(UNPACKING.0))
                .map(|(end, start)| end - start),
        }
    }

    /// When this was first shown.
    fn since_start(&self, mark: &str) -> Option<f64> {
        let (start, _) = self.lines.first()?;
        let (at, _) = self.lines.iter().find(|(_, text)| text.contains(mark))?;
        Some(at - start)
    }
}

/// `[    6.077961] Run /init …`.
fn timed(line: &str) -> Option<(f64, String)> {
    let (time, text) = line.split_once('[')?.1.split_once(']')?;
    Some((time.trim().parse().ok()?, text.trim().to_owned()))
}

/// `loaded virtio_net (12 ms)`.
fn loading(text: &str) -> Option<f64> {
    let rest = text.strip_prefix(LOADED.0)?.strip_suffix(LOADED.1)?;
    rest.rsplit_once('(')?.1.parse().ok()
}

fn memory_in(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once(MEMORY.0)?;
    rest.split_once(MEMORY.1)?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_times_are_read() {
        assert_eq!(memory_in("    0.0 s  the machine has 112 MiB\n"), Some(112));
        let before = "[    3.1] Run /init as init process\n[    9.9] wiglaf: it takes tasks now\n";
        let console = format!(
            "SeaBIOS\r\n{before}\
             [    0.500000] Trying to unpack rootfs image as initramfs...\r\n\
             [    2.000000] Freeing initrd memory: 3768K\r\n\
             [    6.000000] Run /init as init process\r\n\
             [    6.100000] wiglaf: loaded virtio virtio_net (80 ms)\r\n\
             [    6.200000] wiglaf: loaded fuse (20 ms)\r\n\
             [    6.454593] wiglaf: This machine asks to join as 52:54:00:77:db:f3. Code 1\r\n"
        );
        let life = Life::read(&console);
        assert_eq!(seconds(life.since_start(JOINING)), "0.455");
        assert_eq!(seconds(life.since_start(UP)), "—");
        assert_eq!(seconds(life.unpacking_s), "1.500");
        assert_eq!(seconds(Some(life.loading_s)), "0.100");
        assert_eq!(Life::default().since_start(START), None);
    }
}
