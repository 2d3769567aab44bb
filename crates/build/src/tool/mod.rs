//! What a command does, by its name and arguments.

mod analysis;
mod compiler;
mod names;
#[cfg(test)]
mod tests;
mod wrappers;

pub(crate) use analysis::{Analysis, analyse_line, analyse_program, analyse_script, named_below};

use crate::line::Word;

/// What one simple command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) class: Class,
    /// Its name for whoever reads and for what is learned; with the script of an interpreter.
    pub(crate) program: String,
    /// What it makes, if that can be seen.
    pub(crate) target: Option<Vec<u8>>,
    /// What of its arguments says how long it takes.
    pub(crate) shape: String,
    pub(crate) input: Input,
}

/// Whether it reads its standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Input {
    #[default]
    No,
    Perhaps,
    Yes,
}

/// Kinds of commands; later ones say more of a line than those before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A builtin, or over at once.
    Nothing,
    /// A compiler that is only asked something, or tries something out.
    Query,
    /// Moves files about: bound by the files, which are here.
    Files,
    /// Goes through text: mostly over at once.
    Text,
    /// Not known by name.
    Unknown,
    /// Other known work that takes long.
    Heavy,
    Link,
    Compile,
    /// Starts lines of its own that come as calls: `ninja`, `cargo`, `./configure`.
    Builder,
    /// `make`.
    Recursive,
    /// Does more than to read and write files: `sudo`, `mount`, `ssh`.
    Outside,
    /// A shell with a line of its own.
    Line(Vec<u8>),
    /// Executes what can't be seen here: `eval "$x"`, `$CC -c x.c`.
    Opaque,
}

impl Class {
    /// Known to be worth a node.
    pub(crate) fn is_work(&self) -> bool {
        matches!(self, Class::Heavy | Class::Link | Class::Compile)
    }
}

impl Work {
    fn new(class: Class, program: impl Into<String>) -> Work {
        Work {
            class,
            program: program.into(),
            target: None,
            shape: String::new(),
            input: Input::No,
        }
    }

    fn reading(self, input: Input) -> Work {
        Work { input, ..self }
    }
}

/// What a simple command is, past everything that only starts it.
pub(crate) fn classify(words: &[Word]) -> Work {
    match wrappers::unwrap(words) {
        wrappers::Inner::Work(work) => work,
        wrappers::Inner::Command { name, arguments } => by_name(&name, arguments),
    }
}

/// By a program's name, without its directory.
fn by_name(name: &str, arguments: &[Word]) -> Work {
    let short = names::short(name);
    if let Some(work) = compiler::work(name, short, arguments) {
        return work;
    }
    let operands = arguments
        .iter()
        .filter(|word| !word.text.starts_with(b"-"))
        .count();
    let Some(class) = names::class(name).or_else(|| names::class(short)) else {
        let mut work = Work::new(Class::Unknown, name).reading(Input::Perhaps);
        work.shape = compiler::options_of(arguments);
        work.target = compiler::output_of(arguments);
        return work;
    };
    let is_archiver = matches!(short, "ar" | "ranlib");
    let input = match (&class, name) {
        (_, "read") => Input::Yes,
        (Class::Text, "tr" | "tee") => Input::Yes,
        (Class::Text, "cat" | "sort" | "head" | "tail" | "wc" | "od" | "uniq" | "cut") => {
            if operands == 0 {
                Input::Yes
            } else {
                Input::No
            }
        }
        (Class::Text, _) if is_archiver => Input::No,
        (Class::Text, _) if operands < 2 => Input::Perhaps,
        _ => Input::No,
    };
    let mut work = Work::new(class, name).reading(input);
    work.shape = compiler::options_of(arguments);
    work.target = match name {
        "emacs" | "bootstrap-emacs" | "temacs" => names::byte_compiled(arguments),
        _ if is_archiver => arguments
            .iter()
            .find(|word| word.text.ends_with(b".a"))
            .map(|word| word.text.clone()),
        _ => compiler::output_of(arguments),
    };
    work
}
