//! Where a call is to run, and why.

use std::fmt;

use crate::broker::Settings;
use crate::call::{Call, Kind, StdinKind};
use crate::learned::{Estimate, Fit, Keys, Learned};
use crate::line::Directory;
use crate::tool::{self, Analysis, Class, Input};

/// They read what their lines print by pipes, and wait for it: nothing is captured.
const READERS: &[&str] = &["bear", "ctest", "meson", "ninja", "samu", "scons"];

/// Words of a line that are looked at: those of the first files say enough.
const MAX_FILES: usize = 256;

/// Where a line is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Here,
    Node,
    /// Here while there is room, else on a node.
    HereIfRoom,
}

/// Why a line runs where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Recursive,
    Builder(String),
    Outside(String),
    FakeRoot,
    Descriptors,
    Captured,
    Session,
    Script(String),
    Small,
    Query,
    Input,
    Background,
    Own(String),
    Unknown(String),
    Opaque(&'static str),
    Gathers,
    Short,
    /// On nodes it waited more than it worked.
    Waits,
    Compile,
    Link,
    Heavy(String),
    Long,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Recursive => f.write_str("recursive"),
            Reason::Builder(name) => write!(f, "{name} starts lines of its own"),
            Reason::Outside(name) => write!(f, "{name} does more than to read and write files"),
            Reason::FakeRoot => f.write_str("another root, user or fakeroot"),
            Reason::Descriptors => f.write_str("has open descriptors"),
            Reason::Captured => f.write_str("its output is wanted as text"),
            Reason::Session => f.write_str("a shell for input"),
            Reason::Script(name) => write!(f, "the script {name}"),
            Reason::Small => f.write_str("small"),
            Reason::Query => f.write_str("a question to the compiler"),
            Reason::Input => f.write_str("may read its input"),
            Reason::Background => f.write_str("starts something in the background"),
            Reason::Own(path) => write!(f, "names {path}"),
            Reason::Unknown(name) => write!(f, "{name} was never seen before"),
            Reason::Opaque(why) => write!(f, "not understood ({why})"),
            Reason::Gathers => f.write_str("starts lines of its own"),
            Reason::Short => f.write_str("short"),
            Reason::Waits => f.write_str("waits for its files on nodes"),
            Reason::Compile => f.write_str("compile"),
            Reason::Link => f.write_str("link"),
            Reason::Heavy(name) => f.write_str(name),
            Reason::Long => f.write_str("takes long"),
        }
    }
}

/// What is thought of a call.
#[derive(Clone, Debug)]
pub(crate) struct Judgement {
    pub(crate) wish: Wish,
    pub(crate) reason: Reason,
    pub(crate) estimate: Option<Estimate>,
    pub(crate) keys: Keys,
    pub(crate) program: String,
    pub(crate) target: Option<Vec<u8>>,
    /// `target`, from the tree.
    pub(crate) makes: Option<Vec<u8>>,
    /// Words that may name files which it reads, from the tree; none for what runs here.
    pub(crate) reads: Vec<Vec<u8>>,
    /// Relative to the tree where it is within.
    pub(crate) directory: Vec<u8>,
    /// What it starts here runs here, too: it is a part of it.
    pub(crate) keeps: bool,
    /// What it names of the head's `/tmp`, which is shown to it there then.
    pub(crate) shares_tmp: Option<Vec<u8>>,
}

/// Judges a call.
pub(crate) fn judge(call: &Call, settings: &Settings, learned: &Learned) -> Judgement {
    let own = settings.own_prefixes();
    let kind = call.kind();
    let name = call.name();
    let analysis = match &kind {
        Kind::Line(text) => tool::analyse_line(text, &own),
        Kind::Script(words) => tool::analyse_script(words, &own),
        Kind::Program(arguments) => tool::analyse_program(&name, arguments, &own),
        Kind::Session => Analysis::default(),
    };
    let main = analysis.main.as_ref();
    let program = match main {
        Some(work) if !work.program.is_empty() => work.program.clone(),
        _ => name,
    };
    let start = settings.below_tree(&call.cwd);
    let shape = main.map_or("", |work| work.shape.as_str());
    let keys = Keys::new(call, &start, &program, shape);
    let estimate = learned.estimate(&keys);
    let (wish, reason) = decide(call, &kind, &analysis, settings, estimate);
    let shares_tmp = match wish {
        Wish::Here => None,
        Wish::Node | Wish::HereIfRoom => shared_tmp(call),
    };
    let directory = match &analysis.directory {
        Directory::Start | Directory::Unknown => call.cwd.clone(),
        Directory::At(path) => call.cwd.join(as_path(path)),
    };
    let below = |file: &[u8]| settings.below_tree(&directory.join(as_path(file)));
    let by_make = matches!(call.started_by.as_str(), "make" | "gmake" | "");
    Judgement {
        keeps: reason == Reason::Captured && by_make,
        wish,
        reason,
        estimate,
        keys,
        program,
        directory: settings.below_tree(&directory),
        makes: analysis.target.as_deref().map(below),
        reads: match wish {
            Wish::Here => Vec::new(),
            Wish::Node | Wish::HereIfRoom => files(call).map(below).collect(),
        },
        target: analysis.target,
        shares_tmp,
    }
}

/// The words of a call that may name files.
fn files(call: &Call) -> impl Iterator<Item = &[u8]> {
    let is_between = |byte: &u8| byte.is_ascii_whitespace() || b";&|()<>\"'`".contains(byte);
    let words = call.argv.iter().skip(1);
    words
        .flat_map(move |text| text.split(is_between))
        .filter(|word| !word.starts_with(b"-") && word.contains(&b'.'))
        .take(MAX_FILES)
}

/// Where lines on nodes have files of their own, unless they work there.
const TEMPORARY: [&[u8]; 2] = [b"/tmp", b"/var/tmp"];
/// Who knows this name may name any file there.
const TEMPORARY_NAME: &[u8] = b"TMPDIR";

/// What a call's text names of `/tmp` that others may share with it for a while: a lock, a log.
/// What lies where it works is everybody's anyway.
fn shared_tmp(call: &Call) -> Option<Vec<u8>> {
    let first_part = |path: &[u8], place: &[u8]| {
        let rest = path.strip_prefix(place)?.strip_prefix(b"/")?;
        let part = rest.split(|byte| *byte == b'/').next()?;
        (!part.is_empty()).then(|| part.to_vec())
    };
    let cwd = call.cwd.as_os_str().as_encoded_bytes();
    let own = TEMPORARY.map(|place| (place, first_part(cwd, place)));
    call.argv.iter().find_map(|word| {
        let by_name = word.windows(TEMPORARY_NAME.len());
        if by_name.into_iter().any(|part| part == TEMPORARY_NAME) {
            return Some(TEMPORARY_NAME.to_vec());
        }
        own.iter().find_map(|(place, own)| {
            let mut named = tool::named_below(word, place);
            let found = named.find(|name| own.is_none() || first_part(name, place) != *own);
            found.map(<[u8]>::to_vec)
        })
    })
}

fn decide(
    call: &Call,
    kind: &Kind<'_>,
    analysis: &Analysis,
    settings: &Settings,
    estimate: Option<Estimate>,
) -> (Wish, Reason) {
    let here = |reason| (Wish::Here, reason);
    let is_shell = !matches!(kind, Kind::Program(_));
    if call.fake_root {
        return here(Reason::FakeRoot);
    }
    if *kind == Kind::Session {
        return here(Reason::Session);
    }
    if let Some(recursive) = recursive(call, is_shell, analysis) {
        return here(recursive);
    }
    if call.extra_descriptors {
        return here(Reason::Descriptors);
    }
    if is_shell && call.captured && !READERS.contains(&call.started_by.as_str()) {
        return here(Reason::Captured);
    }
    if let Some(name) = &analysis.outside {
        return here(Reason::Outside(name.clone()));
    }
    if analysis.background {
        return here(Reason::Background);
    }
    if let Some(path) = settings.own_of(&call.cwd).or_else(|| analysis.own.clone()) {
        return here(Reason::Own(path));
    }
    if analysis.input == Input::Yes && call.stdin != StdinKind::Null {
        return here(Reason::Input);
    }
    let Some(main) = &analysis.main else {
        return here(analysis.opaque.map_or(Reason::Small, Reason::Opaque));
    };
    if main.class.is_work() {
        return work(&main.class, &main.program, estimate, settings.short_us);
    }
    if let Kind::Script(_) = kind {
        return here(Reason::Script(file_of(&main.program)));
    }
    let is_judged_by_time = match main.class {
        Class::Unknown => true,
        Class::Text | Class::Nothing | Class::Files => analysis.opaque.is_some(),
        _ => false,
    };
    let is_known = |fit: Fit| match main.class {
        // Its program says what it is; what is not understood is known only by the line.
        Class::Unknown if analysis.opaque.is_none() => true,
        Class::Unknown | Class::Text | Class::Nothing | Class::Files => fit == Fit::Line,
        _ => false,
    };
    // Builtins take long when the machine does.
    let is_worth_it = match main.class {
        Class::Files => false,
        Class::Nothing => analysis.opaque.is_some(),
        _ => true,
    };
    match estimate.filter(|found| is_known(found.fit)) {
        Some(found) if found.gathers => here(Reason::Gathers),
        Some(found) if found.work_us() >= settings.short_us && is_worth_it => {
            if call.stdin != StdinKind::Null && analysis.input != Input::No {
                return here(Reason::Input);
            }
            if found.waits_on_nodes() {
                return (Wish::HereIfRoom, Reason::Waits);
            }
            (Wish::Node, Reason::Long)
        }
        Some(_) if is_judged_by_time => here(Reason::Short),
        None if is_judged_by_time => here(match analysis.opaque {
            Some(why) => Reason::Opaque(why),
            None => Reason::Unknown(main.program.clone()),
        }),
        _ if main.class == Class::Query => here(Reason::Query),
        _ => here(Reason::Small),
    }
}

fn recursive(call: &Call, is_shell: bool, analysis: &Analysis) -> Option<Reason> {
    if analysis.recursive.is_some() {
        return Some(Reason::Recursive);
    }
    if let Some(name) = &analysis.builder {
        return Some(Reason::Builder(name.clone()));
    }
    // cargo gives the jobserver's descriptors to rustc, which can do without.
    let main = analysis.main.as_ref();
    let takes_tokens = main.is_some_and(|work| work.shape.contains("-flto=jobserver"));
    (call.jobserver && (is_shell || takes_tokens)).then_some(Reason::Recursive)
}

fn work(class: &Class, program: &str, estimate: Option<Estimate>, short_us: u64) -> (Wish, Reason) {
    let is_short = |found: Estimate| found.fit == Fit::Line && found.work_us() < short_us;
    if estimate.is_some_and(is_short) {
        return (Wish::HereIfRoom, Reason::Short);
    }
    if *class == Class::Link && estimate.is_some_and(|found| found.waits_on_nodes()) {
        return (Wish::HereIfRoom, Reason::Waits);
    }
    let reason = match class {
        Class::Compile => Reason::Compile,
        Class::Link => Reason::Link,
        _ => Reason::Heavy(program.to_owned()),
    };
    (Wish::Node, reason)
}

fn file_of(program: &str) -> String {
    crate::call::file_name(program.as_bytes())
}

fn as_path(bytes: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
