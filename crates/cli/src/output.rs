//! Tables for people, JSON for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::CommandError;

/// A column's head and whether it is set flush right.
pub(crate) struct Column(pub(crate) &'static str, pub(crate) Align);

/// How a column is set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Prints rows as a table; the last column is not padded.
pub(crate) fn table(columns: &[Column], rows: &[Vec<String>]) -> Result<(), CommandError> {
    print(&render(columns, rows))
}

fn render(columns: &[Column], rows: &[Vec<String>]) -> String {
    let width = |index: usize| {
        let cells = rows.iter().map(|row| row[index].chars().count());
        cells.chain([columns[index].0.len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let head: Vec<_> = columns.iter().map(|column| column.0.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[index].saturating_sub(cell.chars().count()));
            let gap = if index == 0 { "" } else { "  " };
            line.push_str(gap);
            match columns[index].1 {
                Align::Right => line.push_str(&format!("{padding}{cell}")),
                Align::Left => line.push_str(&format!("{cell}{padding}")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CommandError> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Prints to standard output; a reader that has gone is no failure.
pub(crate) fn print(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CommandError::new(format!("standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Bytes as people read them, from KiB.
pub(crate) fn size(kib: u64) -> String {
    const UNITS: [&str; 4] = ["K", "M", "G", "T"];
    let mut tenths = kib.saturating_mul(10);
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths >= 100 || unit == 0 {
        format!("{}{}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        format!("{bytes}B")
    } else {
        size(bytes / 1024)
    }
}

/// Seconds since the Epoch.
pub(crate) fn unix_now() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}

/// How long ago a moment is, in seconds since the Epoch.
pub(crate) fn ago(at_s: i64) -> String {
    match unix_now().saturating_sub(at_s) {
        ..=0 => "now".to_owned(),
        seconds @ 1..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// The user's name, or the number when the passwd file does not have it.
pub(crate) fn user(uid: u32) -> String {
    name_of(uid, "/etc/passwd")
}

/// The group's name, or the number.
pub(crate) fn group(gid: u32) -> String {
    name_of(gid, "/etc/group")
}

/// A static program has no name service, so the files themselves are read.
fn name_of(id: u32, file: &str) -> String {
    std::fs::read_to_string(file)
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
            })
        })
        .unwrap_or_else(|| id.to_string())
}

/// The number behind a user's or group's name, or behind digits.
pub(crate) fn id_of(name: &str, file: &str) -> Option<u32> {
    name.parse().ok().or_else(|| {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name)
                .then(|| fields.nth(1)?.parse().ok())
                .flatten()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let columns = [Column("NODE", Align::Left), Column("LOAD", Align::Right)];
        let rows = [
            vec!["n1".to_owned(), "0.10".to_owned()],
            vec!["rack12".into(), "12.00".into()],
        ];
        assert_eq!(
            render(&columns, &rows),
            "NODE     LOAD\nn1       0.10\nrack12  12.00\n"
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(
            ["512K", "2.0M", "15M", "1.5G"].map(String::from),
            [size(512), size(2048), size(15 * 1024), size(1536 * 1024)]
        );
        assert_eq!(
            ["0B", "1023B", "1K", "5.0G"].map(String::from),
            [bytes(0), bytes(1023), bytes(2047), bytes(5 << 30)]
        );
    }
}
