//! What a guest shows: on its serial line, or on its screen.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(50);
/// How much of a console is told when what was waited for does not come.
const SHOWN_LINES: usize = 12;
/// A guest that shows one of these shows nothing else.
const FATAL: &[&str] = &["Kernel panic - not syncing", "No bootable device."];

/// A VGA's memory in text mode: 80 columns, with the rows that have scrolled away.
const SCREEN: (u64, usize) = (0xb_8000, 0x8000);
const COLUMNS: usize = 80;
/// A kernel's lines are not quite in the order of their times.
const DISORDER_S: f64 = 0.1;
/// QEMU's monitor is ready for the next command.
const PROMPT: &[u8] = b"(qemu) ";
const MONITOR: Duration = Duration::from_secs(10);

pub(super) struct Console {
    /// Where it is kept.
    path: PathBuf,
    screen: Option<Screen>,
}

/// A screen is looked at through QEMU's monitor.
struct Screen {
    socket: PathBuf,
    monitor: RefCell<Option<UnixStream>>,
    seen: RefCell<String>,
}

impl Console {
    /// A serial line that goes into this file.
    pub(super) fn serial(path: &Path) -> Console {
        Console {
            path: path.to_owned(),
            screen: None,
        }
    }

    /// A screen of a guest whose monitor is this socket; what it showed last is in the file.
    pub(super) fn screen(socket: &Path, path: &Path) -> Console {
        Console {
            screen: Some(Screen {
                socket: socket.to_owned(),
                monitor: RefCell::new(None),
                seen: RefCell::new(String::new()),
            }),
            ..Console::serial(path)
        }
    }

    /// All that was shown, without what is only for a terminal; of a screen, what it shows.
    pub(super) fn text(&self) -> String {
        match &self.screen {
            Some(screen) => screen.look(&self.path),
            None => plain(&std::fs::read(&self.path).unwrap_or_default()),
        }
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
            let text = self.text();
            if let Some(line) = line_with(&text, wanted) {
                return Ok(line);
            }
            if let Some(fatal) = FATAL.iter().find(|fatal| text.contains(**fatal)) {
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
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
        let shown: String = shown.iter().map(|line| format!("\n    | {line}")).collect();
        format!("{shown}\n    (all of it: {})", self.path.display())
    }
}

impl Screen {
    /// The last look if QEMU has ended.
    fn look(&self, path: &Path) -> String {
        let dump = self.socket.with_extension("vga");
        let (address, size) = SCREEN;
        let command = format!("pmemsave {address:#x} {size:#x} \"{}\"\n", dump.display());
        let cells = self
            .command(&command)
            .and_then(|()| std::fs::read(&dump))
            .unwrap_or_default();
        if !cells.is_empty() {
            let text = newest_last(&rows(&cells));
            // For whoever looks for the reason of a failure.
            let _ = std::fs::write(path, &text);
            *self.seen.borrow_mut() = text;
        }
        self.seen.borrow().clone()
    }

    fn command(&self, command: &str) -> std::io::Result<()> {
        let mut monitor = self.monitor.borrow_mut();
        let result = match monitor.as_mut() {
            Some(stream) => stream
                .write_all(command.as_bytes())
                .and_then(|()| until_prompt(stream)),
            None => UnixStream::connect(&self.socket).and_then(|mut stream| {
                stream.set_read_timeout(Some(MONITOR))?;
                until_prompt(&mut stream)?;
                stream.write_all(command.as_bytes())?;
                until_prompt(&mut stream)?;
                *monitor = Some(stream);
                Ok(())
            }),
        };
        if result.is_err() {
            *monitor = None;
        }
        result
    }
}

/// The monitor echoes what it is told, with the prompt at the very end.
fn until_prompt(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    while !said.ends_with(PROMPT) {
        match stream.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => said.extend(&piece[..count]),
        }
    }
    Ok(())
}

/// Each cell is a character and its colour. A line that fills its row goes on in the next.
fn rows(cells: &[u8]) -> String {
    let mut text = String::new();
    for row in cells.chunks(2 * COLUMNS) {
        let row: String = row
            .iter()
            .step_by(2)
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => ' ',
            })
            .collect();
        text.push_str(row.trim_end());
        if row.ends_with(' ') {
            text.push('\n');
        }
    }
    text
}

/// When it has scrolled often enough, the screen begins anew at its memory's start: what comes
/// after its newest lines is its oldest. A kernel's lines say when they were written.
fn newest_last(text: &str) -> String {
    let time = |line: &str| -> Option<f64> {
        let (time, _) = line.strip_prefix('[')?.split_once(']')?;
        time.trim().parse().ok()
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut oldest = 0;
    let mut before = 0.0;
    for (index, line) in lines.iter().enumerate() {
        let Some(time) = time(line) else { continue };
        // A kernel that starts after another begins at 0.
        if time > 0.0 && time + DISORDER_S < before {
            oldest = index;
        }
        before = time;
    }
    let (newer, older) = lines.split_at(oldest);
    let lines = older.iter().chain(newer);
    lines.map(|line| format!("{line}\n")).collect()
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
        let bytes =
            b"\x1b[2J\x1b[01;01H\x1b[0mSeaBIOS\x1b[02;01HiPXE\r\nnet0: \x1b[1mok\x1b[0m\r\n";
        assert_eq!(plain(bytes), "SeaBIOS\niPXE\nnet0: ok\n");
        assert_eq!(plain(b"cut \x1b[1"), "cut ");
    }

    #[test]
    fn a_screens_memory_reads_as_lines() {
        let mut cells = Vec::new();
        for (row, text) in ["iPXE", &"x".repeat(COLUMNS), "y"].iter().enumerate() {
            cells.resize(2 * COLUMNS * row, 7);
            cells.extend(text.bytes().flat_map(|byte| [byte, 7]));
        }
        cells.resize(2 * COLUMNS * 4, 0);
        let text = rows(&cells);
        assert_eq!(text, format!("iPXE\n{}y\n\n", "x".repeat(COLUMNS)));
    }

    #[test]
    fn a_screen_that_began_anew_is_put_in_order() {
        let torn = "[    4.9] new\n[    5.0] newer\nfolded\n[    0.7] old\n[    4.8] less old\n";
        let whole = "[    0.7] old\n[    4.8] less old\n[    4.9] new\n[    5.0] newer\nfolded\n";
        assert_eq!(newest_last(torn), whole);
        let again = "[    9.0] before\n[    0.0] a new kernel\n[    0.9] its line\n";
        assert_eq!(newest_last(again), again);
    }

    #[test]
    fn the_whole_line_is_given() {
        let text = "one\nCode 1234-5678 \nthree";
        assert_eq!(line_with(text, "Code").as_deref(), Some("Code 1234-5678"));
        assert_eq!(line_with(text, "three").as_deref(), Some("three"));
        assert_eq!(line_with(text, "four"), None);
    }
}
