//! Screens as one SVG, moved by CSS alone.
//!
//! What lies on the screen for a time (a row's text, the cursor) is written once, in a group
//! with all that comes and goes with it. Where nothing is animated the last screen is seen.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::Duration;

use super::film::{COLUMNS, ROWS, Run, Screen};

/// In hundredths of a pixel.
const CELL_WIDTH: u32 = 840;
const CELL_HEIGHT: u32 = 1800;
/// From a row's top down to its letters' feet.
const FEET: u32 = 1350;
const MARGIN: u32 = 1400;
/// How long the last screen stays before all begins anew.
const REST: Duration = Duration::from_secs(10);

/// First and last screen (exclusive) on which a thing is.
type Span = (usize, usize);

/// What lies on the screen.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Thing<'a> {
    Row(usize, &'a [Run]),
    Cursor(u16, u16),
}

pub(super) fn write(title: &str, screens: &[Screen]) -> String {
    let last = screens.len();
    let spans = spans(screens);
    let length = screens.last().map_or(Duration::ZERO, |screen| screen.at) + REST;
    let share = |index: usize| {
        let at = screens
            .get(index)
            .map_or(length, |screen| screen.at.min(length));
        format!("{:.3}", 100.0 * at.as_secs_f64() / length.as_secs_f64())
    };
    let (width, height) = (
        2 * MARGIN + CELL_WIDTH * u32::from(COLUMNS.get()),
        2 * MARGIN + CELL_HEIGHT * u32::from(ROWS.get()),
    );
    let (shown_width, shown_height) = (pixels(width), pixels(height));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {shown_width} {shown_height}\" \
         width=\"{shown_width}\" height=\"{shown_height}\" role=\"img\" xml:space=\"preserve\">\n\
         <title>{}</title>\n<style>\n\
         text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',\
         'Liberation Mono',monospace;fill:#d8dee9;white-space:pre}}\n\
         .b{{font-weight:bold}}.i{{fill:#1b2028}}.c{{fill:#d8dee9;fill-opacity:.55}}\n\
         @media (prefers-reduced-motion:no-preference){{\n\
         g{{animation:{:.2}s step-end infinite}}\n",
        escaped(title),
        length.as_secs_f64(),
    );
    for (index, (first, end)) in spans.keys().enumerate() {
        // What is there always needs no animation.
        if (*first, *end) == (0, last) {
            continue;
        }
        let _ = write!(
            text,
            "#g{index}{{animation-name:k{index}}}@keyframes k{index}{{"
        );
        if *first > 0 {
            let _ = write!(text, "0%{{visibility:hidden}}");
        }
        let _ = write!(text, "{}%{{visibility:visible}}", share(*first));
        if *end < last {
            let _ = write!(text, "{}%{{visibility:hidden}}", share(*end));
        } else {
            // Else the last step would lead back to what is there without animation.
            text.push_str("to{visibility:visible}");
        }
        text.push_str("}\n");
    }
    let _ = write!(
        text,
        "}}\n</style>\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1b2028\"/>\n"
    );
    for (index, ((_, end), things)) in spans.iter().enumerate() {
        let hidden = if *end < last {
            " visibility=\"hidden\""
        } else {
            ""
        };
        let _ = write!(text, "<g id=\"g{index}\"{hidden}>");
        things.iter().for_each(|thing| draw(&mut text, thing));
        text.push_str("</g>\n");
    }
    text.push_str("</svg>\n");
    text
}

/// What is on which screens.
fn spans(screens: &[Screen]) -> BTreeMap<Span, Vec<Thing<'_>>> {
    let mut spans: BTreeMap<Span, Vec<Thing<'_>>> = BTreeMap::new();
    let mut open: HashMap<Thing<'_>, usize> = HashMap::new();
    for (index, screen) in screens.iter().enumerate() {
        let mut now: Vec<_> = (0..)
            .zip(&screen.rows)
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(row, runs)| Thing::Row(row, runs))
            .collect();
        now.extend(
            screen
                .cursor
                .map(|(row, column)| Thing::Cursor(row, column)),
        );
        let mut before = std::mem::take(&mut open);
        for thing in now {
            let since = before.remove(&thing).unwrap_or(index);
            open.insert(thing, since);
        }
        for (thing, since) in before {
            spans.entry((since, index)).or_default().push(thing);
        }
    }
    for (thing, since) in open {
        spans.entry((since, screens.len())).or_default().push(thing);
    }
    for things in spans.values_mut() {
        things.sort_unstable_by_key(|thing| match thing {
            Thing::Row(row, _) => (0, *row),
            Thing::Cursor(row, _) => (1, usize::from(*row)),
        });
    }
    spans
}

fn draw(text: &mut String, thing: &Thing<'_>) {
    match thing {
        Thing::Cursor(row, column) => {
            let _ = write!(
                text,
                "<rect class=\"c\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
                across(*column),
                pixels(MARGIN + CELL_HEIGHT * u32::from(*row)),
                pixels(CELL_WIDTH),
                pixels(CELL_HEIGHT),
            );
        }
        Thing::Row(row, runs) => {
            let top = MARGIN + CELL_HEIGHT * u32::try_from(*row).unwrap_or(0);
            runs.iter().for_each(|run| draw_run(text, top, run));
        }
    }
}

fn draw_run(text: &mut String, top: u32, run: &Run) {
    // The first letters of a row need no blanks before them.
    let blanks = if run.inverse {
        0
    } else {
        run.text.len() - run.text.trim_start_matches(' ').len()
    };
    let shown = &run.text[blanks..];
    let column = run.column + u16::try_from(blanks).unwrap_or(0);
    let width = pixels(CELL_WIDTH * u32::try_from(shown.chars().count()).unwrap_or(0));
    if run.inverse {
        let _ = write!(
            text,
            "<rect x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{}\" fill=\"#d8dee9\"/>",
            across(column),
            pixels(top),
            pixels(CELL_HEIGHT),
        );
    }
    let class = match (run.bold, run.inverse) {
        (false, false) => "",
        (true, false) => " class=\"b\"",
        (false, true) => " class=\"i\"",
        (true, true) => " class=\"b i\"",
    };
    // Whatever the width of the reader's font, columns stand below each other.
    let _ = write!(
        text,
        "<text{class} x=\"{}\" y=\"{}\" textLength=\"{width}\">{}</text>",
        across(column),
        pixels(top + FEET),
        escaped(shown),
    );
}

fn across(column: u16) -> String {
    pixels(MARGIN + CELL_WIDTH * u32::from(column))
}

/// Hundredths of pixels as SVG writes them.
fn pixels(hundredths: u32) -> String {
    (f64::from(hundredths) / 100.0).to_string()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(milliseconds: u64, rows: &[&str], cursor: (u16, u16)) -> Screen {
        let run = |text: &&str| {
            vec![Run {
                column: 0,
                text: (*text).to_owned(),
                bold: false,
                inverse: text.starts_with('!'),
            }]
        };
        Screen {
            at: Duration::from_millis(milliseconds),
            rows: rows.iter().map(run).collect(),
            cursor: Some(cursor),
        }
    }

    /// Each thing is written once, with the time that it is there, and the still is the last.
    #[test]
    fn what_stays_is_written_once_and_the_still_is_the_last_screen() {
        let svg = write(
            "a & b",
            &[
                screen(0, &["$ make <x"], (0, 2)),
                screen(2_500, &["$ make <x", "  first"], (1, 0)),
                screen(10_000, &["$ make <x", "!end"], (1, 0)),
            ],
        );
        assert_eq!(svg.matches("$ make &lt;x</text>").count(), 1);
        assert!(svg.contains("<title>a &amp; b</title>"));
        assert!(svg.contains("animation:20.00s step-end infinite"));
        let groups: Vec<_> = svg.lines().filter(|line| line.starts_with("<g ")).collect();
        let [cursor, always, between, later, last] = groups[..] else {
            panic!("{groups:?}");
        };
        assert!(
            cursor.starts_with("<g id=\"g0\" visibility=\"hidden\"><rect class=\"c\" x=\"30.8\"")
        );
        assert!(always.starts_with("<g id=\"g1\"><text x=\"14\" y=\"27.5\" textLength=\"75.6\">"));
        // The blanks before it are its place.
        assert!(between.starts_with(
            "<g id=\"g2\" visibility=\"hidden\"><text x=\"30.8\" y=\"45.5\" textLength=\"42\">first"
        ));
        assert!(later.starts_with("<g id=\"g3\"><rect class=\"c\""));
        assert!(last.starts_with("<g id=\"g4\"><rect ") && last.contains("class=\"i\""));
        let frames: Vec<_> = svg.lines().filter(|line| line.starts_with("#g")).collect();
        assert_eq!(
            frames,
            [
                "#g0{animation-name:k0}@keyframes k0{0.000%{visibility:visible}\
                 12.500%{visibility:hidden}}",
                "#g2{animation-name:k2}@keyframes k2{0%{visibility:hidden}\
                 12.500%{visibility:visible}50.000%{visibility:hidden}}",
                "#g3{animation-name:k3}@keyframes k3{0%{visibility:hidden}\
                 12.500%{visibility:visible}to{visibility:visible}}",
                "#g4{animation-name:k4}@keyframes k4{0%{visibility:hidden}\
                 50.000%{visibility:visible}to{visibility:visible}}",
            ]
        );
    }
}
