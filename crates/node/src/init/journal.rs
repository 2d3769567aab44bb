//! What init has to say: to whoever sits at the machine, and to the head.
//!
//! The kernel's log is the way to all consoles at once, the serial ones included. Lines are kept
//! until there is somebody to send them to.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use super::report::Report;

const KERNEL_LOG: &str = "/dev/kmsg";
/// The kernel cuts longer ones.
const MAX_LINE_BYTES: usize = 900;
/// What is kept before there is a network; the oldest goes first.
const MAX_KEPT_BYTES: usize = 32 << 10;

/// `syslog(2)`'s level of lines for people; [`super::ground`] lets no less urgent ones of the
/// kernel's own through.
const NOTICE: u8 = 5;

/// Where lines go.
#[derive(Debug, Default)]
pub(super) struct Journal {
    kernel: Option<File>,
    kept: VecDeque<String>,
    kept_bytes: usize,
    report: Option<Report>,
}

impl Journal {
    /// Writes to the kernel's log from now on, if there is one.
    pub(super) fn open(&mut self) {
        self.kernel = OpenOptions::new().write(true).open(KERNEL_LOG).ok();
    }

    /// Says one line, or several.
    pub(super) fn say(&mut self, what: impl Display) {
        for line in what.to_string().lines() {
            let line = clean(line);
            show(self.kernel.as_mut(), &line);
            match &mut self.report {
                Some(report) => report.send(&line),
                None => self.keep(line),
            }
        }
    }

    /// Sends lines to the head from now on, beginning with those that were kept.
    pub(super) fn report_by(&mut self, mut report: Report) {
        for line in self.kept.drain(..) {
            report.send(&line);
        }
        self.kept_bytes = 0;
        self.report = Some(report);
    }

    /// Keeps lines again.
    pub(super) fn stop_reporting(&mut self) -> Option<Report> {
        self.report.take()
    }

    fn keep(&mut self, line: String) {
        self.kept_bytes += line.len();
        self.kept.push_back(line);
        while self.kept_bytes > MAX_KEPT_BYTES
            && let Some(oldest) = self.kept.pop_front()
        {
            self.kept_bytes -= oldest.len();
        }
    }
}

/// Says something where there is no journal: in a panic.
pub(super) fn say_at_last(what: &dyn Display) {
    let mut kernel = OpenOptions::new().write(true).open(KERNEL_LOG).ok();
    for line in what.to_string().lines() {
        show(kernel.as_mut(), &clean(line));
    }
}

fn show(kernel: Option<&mut File>, line: &str) {
    let is_shown = kernel.is_some_and(|kernel| {
        // One write is one record.
        let record = format!("<{NOTICE}>wiglaf: {line}\n");
        kernel.write_all(record.as_bytes()).is_ok()
    });
    if !is_shown {
        // There is nobody else to tell.
        let _ = writeln!(io::stdout(), "wiglaf: {line}");
    }
}

/// What a terminal shows as it is: some of it was written by others.
fn clean(line: &str) -> String {
    let mut clean = String::new();
    for character in line.chars() {
        let shown = if character.is_control() {
            '?'
        } else {
            character
        };
        if clean.len() + shown.len_utf8() > MAX_LINE_BYTES {
            break;
        }
        clean.push(shown);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_clean() {
        let mut journal = Journal::default();
        journal.say("a\u{1b}[2Jb\nc");
        assert_eq!(journal.kept, ["a?[2Jb", "c"]);
        for _ in 0..100 {
            journal.keep("x".repeat(MAX_LINE_BYTES));
        }
        assert!(journal.kept_bytes <= MAX_KEPT_BYTES);
        assert!(!journal.kept.contains(&"c".to_owned()));
        assert_eq!(clean(&"é".repeat(1000)).len(), MAX_LINE_BYTES);
    }
}
