//! From a terminal's bytes to the screens that one sees.

use std::num::NonZeroU16;
use std::time::Duration;

use vt100::Screen as Emulated;

use super::terminal::Piece;

pub(super) const ROWS: NonZeroU16 = NonZeroU16::new(28).unwrap();
pub(super) const COLUMNS: NonZeroU16 = NonZeroU16::new(96).unwrap();
/// What comes within this time of a screen's beginning belongs to it.
const BLINK: Duration = Duration::from_millis(40);
/// Nobody waits longer for what comes next.
const LONGEST_PAUSE: Duration = Duration::from_secs(6);

/// What is shown from a moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Screen {
    pub(super) at: Duration,
    /// From the top; rows with nothing in them are empty.
    pub(super) rows: Vec<Vec<Run>>,
    /// Row and column, where it is to be seen.
    pub(super) cursor: Option<(u16, u16)>,
}

/// Neighbouring cells that look alike. Colours are not kept: nothing in the script has any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) column: u16,
    pub(super) text: String,
    pub(super) bold: bool,
    pub(super) inverse: bool,
}

/// The screens at their times, without those that nobody could see.
pub(super) fn screens(pieces: &[Piece]) -> Vec<Screen> {
    let mut parser = vt100::Parser::new(ROWS, COLUMNS, 0);
    let mut screens: Vec<Screen> = Vec::new();
    let mut last = pieces.first().map_or(Duration::ZERO, |piece| piece.at);
    let mut now = Duration::ZERO;
    for piece in pieces {
        now += piece.at.saturating_sub(last).min(LONGEST_PAUSE);
        last = piece.at;
        parser.process(&piece.bytes);
        let mut screen = screen(now, parser.screen());
        match screens.last_mut() {
            Some(before) if before.rows == screen.rows && before.cursor == screen.cursor => {}
            Some(before) if now < before.at + BLINK => {
                screen.at = before.at;
                *before = screen;
            }
            _ => screens.push(screen),
        }
    }
    screens
}

fn screen(at: Duration, emulated: &Emulated) -> Screen {
    Screen {
        at,
        rows: (0..ROWS.get()).map(|row| runs(emulated, row)).collect(),
        cursor: (!emulated.hide_cursor()).then(|| emulated.cursor_position()),
    }
}

fn runs(emulated: &Emulated, row: u16) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for column in 0..COLUMNS.get() {
        let Some(cell) = emulated.cell(row, column) else {
            continue;
        };
        let text = if cell.has_contents() {
            cell.contents()
        } else {
            " "
        };
        match runs.last_mut() {
            Some(run) if run.bold == cell.bold() && run.inverse == cell.inverse() => {
                run.text.push_str(text);
            }
            _ => runs.push(Run {
                column,
                text: text.to_owned(),
                bold: cell.bold(),
                inverse: cell.inverse(),
            }),
        }
    }
    runs.retain_mut(|run| {
        if !run.inverse {
            run.text.truncate(run.text.trim_end().len());
        }
        !run.text.is_empty()
    });
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(milliseconds: u64, bytes: &str) -> Piece {
        Piece {
            at: Duration::from_millis(milliseconds),
            bytes: bytes.as_bytes().to_vec(),
        }
    }

    fn run(column: u16, text: &str, inverse: bool) -> Run {
        Run {
            column,
            text: text.to_owned(),
            bold: false,
            inverse,
        }
    }

    #[test]
    fn what_comes_in_one_blink_is_one_screen_and_pauses_are_cut() {
        let screens = screens(&[
            piece(4, "$ "),
            piece(100, "a"),
            piece(110, "b\r\n"),
            piece(120, "\x1b[7mstate\x1b[0m  \r\n"),
            piece(150, "\x1b[m"),
            piece(60_100, "\x1b[2A\x1b[2K\r$ "),
        ]);
        let times: Vec<_> = screens.iter().map(|screen| screen.at.as_millis()).collect();
        // The pause of a minute begins at 150 ms, with the piece that changed nothing.
        assert_eq!(times, [0, 96, 6146]);
        assert_eq!(screens[0].cursor, Some((0, 2)));
        assert_eq!(screens[1].rows[0], [run(0, "$ ab", false)]);
        assert_eq!(screens[1].rows[1], [run(0, "state", true)]);
        assert_eq!(screens[1].rows[2], []);
        assert_eq!(screens[2].rows[0], [run(0, "$", false)]);
        assert_eq!(screens[2].cursor, Some((0, 2)));
    }
}
