//! A shell line, taken apart: the simple commands that it may execute, whatever their order and
//! conditions. Nothing is expanded or executed.
//!
//! The grammar is POSIX's with what bash adds and Makefiles use. What is not understood makes the
//! line *opaque*; the commands that were understood are kept all the same.

mod lex;
mod parse;
#[cfg(test)]
mod tests;

/// Longer lines are not looked at.
pub(crate) const MAX_LINE_BYTES: usize = 1 << 20;
/// More simple commands than this make a line opaque.
pub(crate) const MAX_COMMANDS: usize = 4096;
/// Substitutions in substitutions, and shells' lines in lines.
pub(crate) const MAX_DEPTH: usize = 24;

/// What a line was found to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// In the order of their text; those of a substitution come before the command around it.
    pub(crate) commands: Vec<Command>,
    /// Something is started with `&` (or `coproc`).
    pub(crate) background: bool,
    /// Not everything was understood: why, for the first time that it was so.
    pub(crate) opaque: Option<&'static str>,
    /// Functions that the line defines.
    pub(crate) functions: Vec<Vec<u8>>,
}

/// A simple command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Command {
    /// `NAME=value` before the command, or alone.
    pub(crate) assignments: Vec<Word>,
    /// The command's name and arguments.
    pub(crate) words: Vec<Word>,
    /// Its redirections.
    pub(crate) redirections: Vec<Redirection>,
    /// Where `cd` in this line has gone before.
    pub(crate) directory: Directory,
    /// Its standard input is a pipe of this line's.
    pub(crate) is_fed: bool,
    /// It stands in `$(…)` or backticks: its output is text for the line.
    pub(crate) is_substituted: bool,
}

/// A word after quotes and escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    /// Its text; expansions stand in it as they were written.
    pub(crate) text: Vec<u8>,
    /// Nothing in it is expanded.
    pub(crate) exact: bool,
    /// How much of it stands before the first quote or escape.
    plain_bytes: usize,
}

/// Where a command's input or output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirection {
    /// The descriptor, 0 or 1 where none is written.
    pub(crate) fd: u32,
    pub(crate) kind: RedirectionKind,
    /// The file; a here-document's delimiter; the descriptor of a duplication.
    pub(crate) target: Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedirectionKind {
    Input,
    Output,
    Duplicate,
    Here,
}

/// A directory as far as a line's `cd`s tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Directory {
    /// Where the line began.
    #[default]
    Start,
    /// Relative to it, or absolute.
    At(Vec<u8>),
    Unknown,
}

impl Line {
    /// Takes a line apart.
    pub(crate) fn parse(text: &[u8]) -> Line {
        let mut line = Line::default();
        line.add(text, 0);
        line
    }

    /// Takes apart what a shell within the line is given, at a depth that is bounded.
    pub(crate) fn add(&mut self, text: &[u8], depth: usize) {
        let end = text.len().min(MAX_LINE_BYTES);
        if end < text.len() {
            self.is_opaque("the line is very long");
        }
        parse::Parser::new(&text[..end], depth, false, self).run();
    }

    /// The first reason is kept.
    pub(crate) fn is_opaque(&mut self, why: &'static str) {
        self.opaque.get_or_insert(why);
    }
}

impl Word {
    /// A word that stands for itself, as in an argv.
    pub(crate) fn literal(text: &[u8]) -> Word {
        Word {
            text: text.to_vec(),
            exact: true,
            plain_bytes: 0,
        }
    }

    /// Whether no byte of it was quoted: only then it can be a reserved word.
    fn is_plain(&self) -> bool {
        self.exact && self.plain_bytes == self.text.len()
    }

    /// `NAME=` or `NAME+=` at its beginning, as an assignment has it.
    fn is_assignment(&self) -> bool {
        let Some(at) = self.text.iter().position(|byte| *byte == b'=') else {
            return false;
        };
        let name = &self.text[..at];
        let name = name.strip_suffix(b"+").unwrap_or(name);
        at < self.plain_bytes && is_name(name)
    }
}

/// Whether these bytes can name a variable.
pub(crate) fn is_name(bytes: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    bytes.first().is_some_and(is_letter)
        && bytes
            .iter()
            .all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

impl Directory {
    /// After `cd target` here.
    fn after(&self, target: Option<&Word>) -> Directory {
        match (self, target) {
            (_, Some(word)) if !word.exact || word.text.is_empty() || word.text == b"-" => {
                Directory::Unknown
            }
            (_, Some(word)) if word.text.starts_with(b"/") => Directory::At(word.text.clone()),
            (Directory::Start, Some(word)) => Directory::At(word.text.clone()),
            (Directory::At(before), Some(word)) => {
                Directory::At([before.as_slice(), b"/", &word.text].concat())
            }
            (Directory::Unknown, Some(_)) | (_, None) => Directory::Unknown,
        }
    }
}
