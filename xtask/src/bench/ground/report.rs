//! The table: aims first, then what was measured, then what to know about it.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use crate::run;

pub(in crate::bench) struct Report {
    title: &'static str,
    introduction: &'static str,
    command: String,
    machine: Vec<String>,
    aims: Vec<[String; 4]>,
    tables: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    pub(in crate::bench) fn new(
        title: &'static str,
        command: &str,
        introduction: &'static str,
    ) -> Report {
        Report {
            title,
            introduction,
            command: command.to_owned(),
            machine: Vec::new(),
            aims: Vec::new(),
            tables: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Notes what this machine is, and what runs on it.
    pub(in crate::bench) fn machine(&mut self, peers: &str, accounting: &str) {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let word = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            run::output(command.args(args)).map_or("?".to_owned(), |text| text.trim().to_owned())
        };
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once([':', '=']))
                .map_or("?".to_owned(), |(_, value)| {
                    value.trim().trim_matches('"').to_owned()
                })
        };
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let memory: u64 = field(&text("/proc/meminfo"), "MemTotal")
            .split(' ')
            .next()
            .and_then(|kib| kib.parse().ok())
            .unwrap_or(0);
        let load = text("/proc/loadavg")
            .split(' ')
            .next()
            .unwrap_or("?")
            .to_owned();
        self.machine = vec![
            format!(
                "Date: {}; commit: {}",
                word("date", &["-u", "+%F"]),
                word("git", &["describe", "--always", "--dirty"])
            ),
            format!(
                "Machine: {cpus} cores ({}), {:.1} GB, Linux {}, {}; load when it began {load}",
                field(&text("/proc/cpuinfo"), "model name"),
                memory as f64 * 1024.0 / 1e9,
                text("/proc/sys/kernel/osrelease").trim(),
                field(&text("/etc/os-release"), "PRETTY_NAME"),
            ),
            format!("CPU time and memory by {accounting}"),
            format!("Peers: {peers}"),
        ];
    }

    pub(in crate::bench) fn aim(&mut self, what: &str, aim: String, figure: String, is_met: bool) {
        println!(
            "{what}: {figure}; aim {aim}: {}",
            if is_met { "met" } else { "NOT MET" }
        );
        let met = if is_met { "yes" } else { "**no**" };
        self.aims
            .push([what.to_owned(), aim, figure, met.to_owned()]);
    }

    pub(in crate::bench) fn table(
        &mut self,
        title: &str,
        how: &str,
        head: &[&str],
        rows: Vec<Vec<String>>,
    ) {
        let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
        let text = format!("## {title}\n\n{how}.\n\n{}", grid(&head, &rows));
        self.tables.push(text);
    }

    pub(in crate::bench) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    pub(in crate::bench) fn markdown(&self) -> String {
        let mut text = format!("# {}\n\nMade by `{}`.\n\n", self.title, self.command);
        for line in &self.machine {
            let _ = writeln!(text, "- {line}");
        }
        let _ = write!(text, "\n{}\n", self.introduction);
        if !self.aims.is_empty() {
            let head = ["", "aim", "measured", "met"].map(str::to_owned);
            let rows: Vec<_> = self.aims.iter().map(|row| row.to_vec()).collect();
            let _ = write!(text, "\n## Aims\n\n{}", grid(&head, &rows));
        }
        for table in &self.tables {
            let _ = write!(text, "\n{table}");
        }
        if !self.notes.is_empty() {
            text.push_str("\n## Notes\n\n");
            for note in &self.notes {
                let _ = writeln!(text, "- {note}");
            }
        }
        text
    }
}

fn grid(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head);
    text.push_str(&format!("|{}\n", "---|".repeat(head.len())));
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_that_is_missed_is_said_plainly() {
        let mut report = Report::new(
            "What a launch costs",
            "cargo xtask bench launch",
            "Medians.",
        );
        report.aim("a launch", "≤ 1 ms".into(), "2 ms".into(), false);
        report.aim("another", "≤ 1 ms".into(), "0.5 ms".into(), true);
        let text = report.markdown();
        assert!(
            text.contains("| a launch | ≤ 1 ms | 2 ms | **no** |\n"),
            "{text}"
        );
        assert!(
            text.contains("| another | ≤ 1 ms | 0.5 ms | yes |\n"),
            "{text}"
        );
        assert!(text.starts_with("# What a launch costs\n\nMade by `cargo xtask bench launch`."));
    }
}
