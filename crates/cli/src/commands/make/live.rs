//! The status in the terminal's last row, outside of the region that scrolls, as apt has it.

use std::time::{Duration, Instant};

use rustix::termios::{isatty, tcgetpgrp, tcgetwinsize};
use wiglaf_linux::process::process_group;

/// Drawn at most so often.
const PERIOD: Duration = Duration::from_millis(200);
/// Fewer rows than this are left to the build.
const LEAST_ROWS: u16 = 4;

pub(super) struct Live {
    rows: u16,
    columns: u16,
    /// The region is set.
    is_shown: bool,
    drawn: Option<Instant>,
    text: String,
}

impl Live {
    /// `None` where there is no terminal to draw on.
    pub(super) fn new() -> Option<Live> {
        let term = std::env::var_os("TERM")?;
        if term == "dumb" || term.is_empty() || !isatty(rustix::stdio::stdout()) {
            return None;
        }
        Some(Live {
            rows: 0,
            columns: 0,
            is_shown: false,
            drawn: None,
            text: String::new(),
        })
    }

    /// When the next drawing may be.
    pub(super) fn due_in(&self) -> Duration {
        self.drawn
            .map_or(PERIOD, |drawn| PERIOD.saturating_sub(drawn.elapsed()))
    }

    /// Shows this text, unless one was drawn a moment ago.
    pub(super) fn draw(&mut self, text: &str) {
        if self.is_shown && !self.due_in().is_zero() || !is_in_foreground() {
            return;
        }
        self.drawn = Some(Instant::now());
        let Ok(size) = tcgetwinsize(rustix::stdio::stdout()) else {
            return;
        };
        let is_resized = (size.ws_row, size.ws_col) != (self.rows, self.columns);
        if size.ws_row < LEAST_ROWS {
            return self.hide();
        }
        if !self.is_shown || is_resized {
            self.rows = size.ws_row;
            self.columns = size.ws_col;
            self.is_shown = true;
            write(&shown(self.rows));
        } else if text == self.text {
            return;
        }
        text.clone_into(&mut self.text);
        write(&row(self.rows, self.columns, text));
    }

    /// Gives the whole terminal back.
    pub(super) fn hide(&mut self) {
        if std::mem::take(&mut self.is_shown) && is_in_foreground() {
            write(&hidden(self.rows));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.hide();
    }
}

/// One write, so that no other's output comes between. A terminal that is gone needs no status.
fn write(text: &str) {
    let _ = rustix::io::write(rustix::stdio::stdout(), text.as_bytes());
}

fn is_in_foreground() -> bool {
    let group = process_group(0);
    tcgetpgrp(rustix::stdio::stdout())
        .is_ok_and(|foreground| Ok(foreground.as_raw_nonzero().get()) == group)
}

/// Makes room below the cursor, saves it (DECSC), sets the scrolling region to all rows but the
/// last (DECSTBM, which moves the cursor), restores it (DECRC) and goes up out of the last row.
fn shown(rows: u16) -> String {
    format!("\n\x1b7\x1b[1;{}r\x1b8\x1b[1A", rows - 1)
}

fn row(rows: u16, columns: u16, text: &str) -> String {
    let text: String = text.chars().take(usize::from(columns)).collect();
    format!("\x1b7\x1b[{rows};1H\x1b[2K\x1b[7m{text}\x1b[0m\x1b8")
}

fn hidden(rows: u16) -> String {
    format!("\x1b7\x1b[1;{rows}r\x1b[{rows};1H\x1b[2K\x1b8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_is_taken_and_given_back() {
        assert_eq!(shown(24), "\n\x1b7\x1b[1;23r\x1b8\x1b[1A");
        assert_eq!(hidden(24), "\x1b7\x1b[1;24r\x1b[24;1H\x1b[2K\x1b8");
        assert!(row(24, 3, "wiglaf").contains("\x1b[24;1H\x1b[2K\x1b[7mwig\x1b[0m"));
    }
}
