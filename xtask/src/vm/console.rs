//! What a guest shows on its serial line.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(50);
/// How much of a console is told when what was waited for does not come.
const SHOWN_LINES: usize = 12;
/// A guest that shows one of these shows nothing else.
const FATAL: &[&str] = &["Kernel panic - not syncing", "No bootable device."];

pub(super) struct Console {
    path: PathBuf,
    /// What was shown before is past.
    mark: Cell<usize>,
}

impl Console {
    pub(super) fn new(path: &Path) -> Console {
        Console {
            path: path.to_owned(),
            mark: Cell::new(0),
        }
    }

    /// All that was shown, without what is only for a terminal.
    pub(super) fn text(&self) -> String {
        plain(&std::fs::read(&self.path).unwrap_or_default())
    }

    /// What was shown since the mark.
    pub(super) fn news(&self) -> String {
        let text = self.text();
        text.get(self.mark.get()..).unwrap_or_default().to_owned()
    }

    /// Waiting looks at nothing that has been shown until now.
    pub(super) fn mark(&self) {
        self.mark.set(self.text().len());
    }

    /// Waits until it is shown, and gives the line in which it is.
    pub(super) fn wait_for(
        &self,
        wanted: &str,
        timeout: Duration,
        is_running: &mut dyn FnMut() -> bool,
    ) -> Result<String> {
        let started = Instant::now();
        loop {
            // Asked first, as the last words come before the end.
            let was_running = is_running();
            let news = self.news();
            if let Some(line) = line_with(&news, wanted) {
                return Ok(line);
            }
            if let Some(fatal) = FATAL.iter().find(|fatal| news.contains(**fatal)) {
                bail!("it shows {fatal:?} rather than {wanted:?}:{}", self.tail());
            }
            if !was_running {
                bail!("it ended without showing {wanted:?}:{}", self.tail());
            }
            if started.elapsed() > timeout {
                bail!(
                    "it has not shown {wanted:?} within {} s:{}",
                    timeout.as_secs(),
                    self.tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Its last lines, for an error.
    pub(super) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        let shown: String = shown.iter().map(|line| format!("\n    | {line}")).collect();
        format!("{shown}\n    (all of it: {})", self.path.display())
    }
}

fn line_with(text: &str, wanted: &str) -> Option<String> {
    let at = text.find(wanted)?;
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let end = text[at..].find('\n').map_or(text.len(), |end| at + end);
    Some(text[start..end].trim_end().to_owned())
}

/// Without carriage returns and escape sequences. A sequence that moves the cursor to another
/// line begins a line here, so that what firmware paints can be read.
fn plain(bytes: &[u8]) -> String {
    let mut text = String::new();
    let all = String::from_utf8_lossy(bytes);
    let mut chars = all.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => {
                if chars.next() != Some('[') {
                    continue;
                }
                let is_end = |char: &char| ('@'..='~').contains(char);
                let Some(end) = chars.find(is_end) else {
                    break;
                };
                if matches!(end, 'H' | 'f' | 'J') && !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
            }
            '\r' => {}
            '\n' => text.push('\n'),
            char if char.is_control() => {}
            char => text.push(char),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_painted_screen_reads_as_lines() {
        let bytes = b"\x1b[2J\x1b[01;01H\x1b[0mSeaBIOS\x1b[02;01HiPXE\r\nnet0: \x1b[1mok\x1b[0m\r\n";
        assert_eq!(plain(bytes), "SeaBIOS\niPXE\nnet0: ok\n");
        assert_eq!(plain(b"cut \x1b[1"), "cut ");
    }

    #[test]
    fn the_whole_line_is_given() {
        let text = "one\nCode 1234-5678 \nthree";
        assert_eq!(line_with(text, "Code").as_deref(), Some("Code 1234-5678"));
        assert_eq!(line_with(text, "three").as_deref(), Some("three"));
        assert_eq!(line_with(text, "four"), None);
    }
}
