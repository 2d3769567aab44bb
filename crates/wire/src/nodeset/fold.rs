//! From names to the compact text.

use std::collections::{BTreeMap, BTreeSet};

use super::MAX_NUMBER_DIGITS;
use super::order::{Name, natural_order};

pub(super) fn fold(names: &BTreeSet<Name>) -> String {
    let mut patterns: BTreeMap<Vec<&str>, Vec<Cell<'_>>> = BTreeMap::new();
    // A pattern is written where its first name stands in the set's order.
    let mut order: Vec<Vec<&str>> = Vec::new();
    for name in names {
        let (texts, numbers) = split_numbers(&name.0);
        let cells = patterns.entry(texts).or_insert_with_key(|texts| {
            order.push(texts.clone());
            Vec::new()
        });
        cells.push(numbers.into_iter().map(|n| vec![n]).collect());
    }
    let mut terms = Vec::new();
    for texts in order {
        let cells = patterns.remove(&texts).unwrap_or_default();
        for cell in merge_cells(cells, texts.len() - 1) {
            terms.push(cell_text(&texts, &cell));
        }
    }
    terms.join(",")
}

/// A product of number lists, one for each place of a pattern where numbers stand.
type Cell<'a> = Vec<Vec<&'a str>>;

/// Joins cells that differ in one place only, place by place, the last one first. Every
/// name stays in exactly one cell.
fn merge_cells(mut cells: Vec<Cell<'_>>, places: usize) -> Vec<Cell<'_>> {
    for place in (0..places).rev() {
        let mut joined: BTreeMap<Cell<'_>, usize> = BTreeMap::new();
        let mut merged: Vec<Cell<'_>> = Vec::new();
        for mut cell in cells {
            let numbers = std::mem::take(&mut cell[place]);
            let index = *joined.entry(cell).or_insert_with_key(|others| {
                merged.push(others.clone());
                merged.len() - 1
            });
            merged[index][place].extend(numbers);
        }
        cells = merged;
    }
    cells
}

fn cell_text(texts: &[&str], cell: &Cell<'_>) -> String {
    let mut out = texts[0].to_owned();
    for (numbers, text) in cell.iter().zip(&texts[1..]) {
        let mut numbers = numbers.clone();
        numbers.sort_by(|a, b| natural_order(a, b));
        match numbers.as_slice() {
            [single] => out.push_str(single),
            many => {
                out.push('[');
                out.push_str(&ranges_text(many));
                out.push(']');
            }
        }
        out.push_str(text);
    }
    out
}

/// `1-3,7` for sorted digits; a range goes on as long as its first number's padding does.
fn ranges_text(numbers: &[&str]) -> String {
    let mut ranges: Vec<(&str, &str)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((first, last)) if follows(first, last, number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let texts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_owned(),
            false => format!("{first}-{last}"),
        })
        .collect();
    texts.join(",")
}

fn follows(first: &str, last: &str, number: &str) -> bool {
    let width = if first.starts_with('0') {
        first.len()
    } else {
        0
    };
    last.parse::<u64>()
        .is_ok_and(|last| format!("{:0width$}", last + 1) == number)
}

/// A name as texts and the numbers between them; there is one text more than numbers.
fn split_numbers(name: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut texts, mut numbers) = (Vec::new(), Vec::new());
    let (mut text_start, mut at) = (0, 0);
    while let Some(offset) = name[at..].find(|c: char| c.is_ascii_digit()) {
        let start = at + offset;
        let digits = name[start..]
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(name.len() - start);
        at = start + digits;
        if digits <= MAX_NUMBER_DIGITS {
            texts.push(&name[text_start..start]);
            numbers.push(&name[start..at]);
            text_start = at;
        }
    }
    texts.push(&name[text_start..]);
    (texts, numbers)
}
