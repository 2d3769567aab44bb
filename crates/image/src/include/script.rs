//! A script's first line.

/// Linux reads no more of it.
const MAX_LINE: usize = 255;

/// The programs that a script is run by: the one that it names, and with `env` that one's, too.
pub(super) fn interpreters(text: &[u8]) -> Option<Vec<String>> {
    let line = text.strip_prefix(b"#!")?;
    let line = &line[..line.len().min(MAX_LINE)];
    let line = line.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim();
    let mut words = line.split_whitespace();
    let first = words.next()?.to_owned();
    let mut programs = vec![first];
    if programs[0].ends_with("/env") {
        // `env -S` splits what follows; other options and assignments name no program.
        let program = words.find(|word| !word.starts_with('-') && !word.contains('='));
        programs.extend(program.map(str::to_owned));
    }
    Some(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_as_people_write_them() {
        let cases = [
            ("#!/bin/sh\nx", &["/bin/sh"][..]),
            ("#! /usr/bin/perl -w\n", &["/usr/bin/perl"]),
            ("#!/usr/bin/env python3\n", &["/usr/bin/env", "python3"]),
            ("#!/usr/bin/env -S A=1 ruby -w\n", &["/usr/bin/env", "ruby"]),
            ("#!/usr/bin/env", &["/usr/bin/env"]),
        ];
        for (text, expected) in cases {
            assert_eq!(interpreters(text.as_bytes()).unwrap(), expected, "{text}");
        }
        for text in ["", "#!", "#!\n", "text", "#!\u{fffd}\u{0}"] {
            assert!(interpreters(text.as_bytes()).is_none_or(|all| !all.is_empty()));
        }
    }
}
