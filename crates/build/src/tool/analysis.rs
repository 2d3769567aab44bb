//! A whole line: what of it counts.

use super::{Class, Input, Work, classify};
use crate::line::{Command, Directory, Line, MAX_DEPTH, RedirectionKind, Word};

/// What is known of a line, a script's call or a program's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Analysis {
    /// The command that says most of it.
    pub(crate) main: Option<Work>,
    /// The first command that starts make.
    pub(crate) recursive: Option<String>,
    /// The first that starts lines of its own.
    pub(crate) builder: Option<String>,
    /// The first that must not leave the head.
    pub(crate) outside: Option<String>,
    pub(crate) background: bool,
    pub(crate) opaque: Option<&'static str>,
    pub(crate) input: Input,
    /// A file below a directory that each machine has for itself.
    pub(crate) own: Option<String>,
    /// Where the main command runs.
    pub(crate) directory: Directory,
    /// What the line makes.
    pub(crate) target: Option<Vec<u8>>,
}

/// Of `sh -c LINE`. `own` are directories that nodes have of their own.
pub(crate) fn analyse_line(text: &[u8], own: &[Vec<u8>]) -> Analysis {
    let mut line = Line::parse(text);
    let mut analysis = Analysis::default();
    let mut depth = 0;
    loop {
        let mut inner = Line::default();
        let functions = std::mem::take(&mut line.functions);
        for command in &line.commands {
            if let Some(nested) = analysis.add(command, &functions, own) {
                inner.add(&nested, depth);
            }
        }
        analysis.background |= line.background;
        analysis.opaque = analysis.opaque.or(line.opaque);
        depth += 1;
        if inner == Line::default() {
            return analysis;
        }
        if depth >= MAX_DEPTH {
            analysis.opaque.get_or_insert("nested too deeply");
            return analysis;
        }
        line = inner;
    }
}

/// Of a program with its arguments, without a shell.
pub(crate) fn analyse_program(name: &str, arguments: &[Vec<u8>], own: &[Vec<u8>]) -> Analysis {
    let mut words = vec![Word::literal(name.as_bytes())];
    words.extend(arguments.iter().map(|text| Word::literal(text)));
    let command = Command {
        words,
        ..Command::default()
    };
    let mut analysis = Analysis::default();
    if analysis.add(&command, &[], own).is_some() {
        analysis.opaque.get_or_insert("a shell's line");
    }
    analysis
}

/// Of `sh FILE ARGUMENT…`: what it is if it only wraps a compiler.
pub(crate) fn analyse_script(words: &[Vec<u8>], own: &[Vec<u8>]) -> Analysis {
    match words.split_first() {
        Some((file, arguments)) => {
            let name = String::from_utf8_lossy(file).into_owned();
            analyse_program(&name, arguments, own)
        }
        None => Analysis::default(),
    }
}

impl Analysis {
    /// Takes a command into account; the text of a line within it is to be looked at as well.
    fn add(
        &mut self,
        command: &Command,
        functions: &[Vec<u8>],
        own: &[Vec<u8>],
    ) -> Option<Vec<u8>> {
        self.look_for_own(command, own);
        let first = command.words.first()?;
        if functions.contains(&first.text) {
            return None;
        }
        let mut work = classify(&command.words);
        let redirected = |fd: u32| {
            command
                .redirections
                .iter()
                .rev()
                .find(|one| one.fd == fd && one.kind != RedirectionKind::Duplicate)
        };
        if command.is_fed || redirected(0).is_some() {
            work.input = Input::No;
        }
        if let Class::Line(text) = work.class {
            return Some(text);
        }
        // `gcc -E x.c >x.i`: the answer is a file of the build.
        if work.class == Class::Query
            && !work.shape.is_empty()
            && let Some(output) = redirected(1)
            && output.target.text != b"/dev/null"
        {
            work.class = Class::Compile;
        }
        // `echo … | gcc -c -xc - -o x.o` is done as a part of its line.
        self.input = self.input.max(work.input);
        let slot = match work.class {
            Class::Recursive => Some(&mut self.recursive),
            Class::Builder => Some(&mut self.builder),
            Class::Outside => Some(&mut self.outside),
            _ => None,
        };
        if let Some(slot) = slot {
            slot.get_or_insert_with(|| work.program.clone());
        }
        if work.class == Class::Opaque {
            self.opaque
                .get_or_insert("a command that only the shell knows");
            work.class = Class::Unknown;
        }
        if work.target.is_none()
            && let Some(output) = redirected(1)
            && output.target.exact
            && !output.target.text.starts_with(b"/dev/")
        {
            work.target = Some(output.target.text.clone());
        }
        self.take_main(work, command);
        None
    }

    fn take_main(&mut self, work: Work, command: &Command) {
        let rank = |class: &Class| match class {
            // The first of these is what the line is about.
            Class::Heavy | Class::Link | Class::Compile => 5,
            Class::Unknown => 4,
            Class::Text => 3,
            Class::Files => 2,
            Class::Query => 1,
            _ => 0,
        };
        let is_more = self
            .main
            .as_ref()
            .is_none_or(|main| rank(&main.class) < rank(&work.class));
        if !is_more {
            // What it makes may be seen only later: `cmd >x.tmp; mv x.tmp x`.
            if self.target.is_none() {
                self.target = work.target;
            }
            return;
        }
        if work.target.is_some() || work.class.is_work() {
            self.target.clone_from(&work.target);
        }
        self.directory = command.directory.clone();
        self.main = Some(work);
    }

    fn look_for_own(&mut self, command: &Command, own: &[Vec<u8>]) {
        let words = command.words.iter().chain(&command.assignments);
        let targets = command
            .redirections
            .iter()
            .filter(|one| one.kind != RedirectionKind::Here);
        for word in words.chain(targets.map(|one| &one.target)) {
            if self.own.is_none() {
                let mut named = own
                    .iter()
                    .flat_map(|directory| named_below(&word.text, directory));
                let found = named.find(|name| !is_everywhere(name));
                self.own = found.map(|name| String::from_utf8_lossy(name).into_owned());
            }
        }
    }
}

/// The files that a text names in this directory, and the directory itself.
pub(crate) fn named_below<'a>(
    text: &'a [u8],
    directory: &'a [u8],
) -> impl Iterator<Item = &'a [u8]> {
    let is_path = |byte: &u8| byte.is_ascii_alphanumeric() || b"_./-+@~}".contains(byte);
    // `-I/tmp/x` names a file; `src/tmp/x` and `$(D)/tmp` name others.
    let is_inner = move |byte: &&u8| is_path(byte) || **byte == b')';
    let places = text.windows(directory.len()).enumerate();
    places.filter_map(move |(at, part)| {
        if part != directory {
            return None;
        }
        let mut before = text[..at].iter().rev().take_while(is_inner);
        let begins = matches!(
            (before.next(), before.next(), before.next()),
            (None, ..) | (Some(_), Some(b'-'), None)
        );
        let end = text.get(at + directory.len());
        let is_whole = end.is_none_or(|byte| *byte == b'/' || !is_path(byte));
        let length = text[at..].iter().take_while(|byte| is_path(byte)).count();
        (begins && is_whole).then(|| &text[at..at + length])
    })
}

/// Whether it is one of those in `/dev` and `/proc` that are everywhere.
fn is_everywhere(name: &[u8]) -> bool {
    const EVERYWHERE: &[&[u8]] = &[
        b"/dev/null",
        b"/dev/zero",
        b"/dev/full",
        b"/dev/random",
        b"/dev/urandom",
        b"/dev/stdin",
        b"/dev/stdout",
        b"/dev/stderr",
        b"/dev/fd",
        b"/proc/self",
        b"/proc/cpuinfo",
    ];
    EVERYWHERE.iter().any(|file| name.starts_with(file))
}
