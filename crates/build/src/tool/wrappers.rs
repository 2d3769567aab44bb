//! Programs that only start others: what it is that they start.

use super::{Class, Input, Work};
use crate::call::{Kind, file_name, is_shell, shell_kind};
use crate::line::{Word, is_name};

/// Wrappers around wrappers.
const MAX_WRAPPERS: usize = 16;

pub(super) enum Inner<'a> {
    Work(Work),
    Command {
        /// Without its directory.
        name: String,
        arguments: &'a [Word],
    },
}

/// Caches and distributors that stand before a compiler.
const LAUNCHERS: &[&str] = &[
    "buildcache",
    "ccache",
    "distcc",
    "icecc",
    "icerun",
    "sccache",
];

const INTERPRETERS: &[&str] = &[
    "guile", "java", "lua", "node", "nodejs", "ocaml", "octave", "perl", "php", "python",
    "python2", "python3", "ruby", "tclsh",
];

pub(super) fn unwrap(words: &[Word]) -> Inner<'_> {
    let mut words = words;
    for _ in 0..MAX_WRAPPERS {
        let Some((first, arguments)) = words.split_first() else {
            return Inner::Work(Work::new(Class::Nothing, ""));
        };
        if !first.exact && first.text.contains(&b'$') || first.text.contains(&b'`') {
            return Inner::Work(opaque(&file_name(&first.text)));
        }
        let name = file_name(&first.text);
        let (inner, scripts) = match name.as_str() {
            "env" => (past_env(arguments), false),
            "exec" => (past(arguments, &["-a"]), false),
            "builtin" | "nohup" | "chronic" | "unbuffer" => (past(arguments, &[]), false),
            "command" => match arguments.first() {
                Some(word) if matches!(word.text.as_slice(), b"-v" | b"-V") => {
                    return Inner::Work(Work::new(Class::Nothing, name));
                }
                _ => (past(arguments, &[]), false),
            },
            "time" => (
                past(arguments, &["-f", "-o", "--format", "--output"]),
                false,
            ),
            "nice" => (past(arguments, &["-n"]), false),
            "ionice" => (past(arguments, &["-c", "-n"]), false),
            "stdbuf" => (past(arguments, &["-i", "-o", "-e"]), false),
            "timeout" => {
                let rest = past(arguments, &["-k", "-s"]);
                (rest.get(1..).unwrap_or_default(), false)
            }
            "xargs" => (
                past(arguments, &["-n", "-P", "-I", "-L", "-d", "-a", "-E", "-s"]),
                false,
            ),
            "missing" | "depcomp" | "compile" | "ylwrap" => (past(arguments, &[]), false),
            "eval" => return Inner::Work(evaluated(arguments)),
            "." | "source" => return Inner::Work(opaque(&name)),
            "libtool" | "glibtool" | "slibtool" => return Inner::Work(libtool(arguments)),
            "cmake" => match cmake(arguments) {
                Ok(rest) => (rest, false),
                Err(work) => return Inner::Work(work),
            },
            _ if LAUNCHERS.contains(&name.as_str()) => match arguments.first() {
                Some(word) if !word.text.starts_with(b"-") => (arguments, false),
                _ => return Inner::Work(Work::new(Class::Query, name)),
            },
            _ if is_shell(&name) => (arguments, true),
            _ if is_interpreter(&name) => return Inner::Work(interpreted(&name, arguments)),
            _ => return Inner::Command { name, arguments },
        };
        words = if scripts {
            match shell(&name, inner) {
                Ok(script) => script,
                Err(work) => return Inner::Work(work),
            }
        } else if inner.is_empty() {
            return Inner::Work(Work::new(Class::Nothing, name));
        } else {
            inner
        };
    }
    Inner::Work(opaque("many wrappers"))
}

fn opaque(program: &str) -> Work {
    Work::new(Class::Opaque, program).reading(Input::Perhaps)
}

/// Past options, of which these have a value behind them.
fn past<'a>(arguments: &'a [Word], with_value: &[&str]) -> &'a [Word] {
    let mut rest = arguments;
    while let Some((word, behind)) = rest.split_first() {
        if word.text == b"--" {
            return behind;
        }
        if word.text.len() < 2 || !word.text.starts_with(b"-") {
            break;
        }
        let has_value = with_value
            .iter()
            .any(|option| option.as_bytes() == word.text);
        rest = behind.get(usize::from(has_value)..).unwrap_or_default();
    }
    rest
}

fn past_env(arguments: &[Word]) -> &[Word] {
    let mut rest = past(arguments, &["-u", "-C", "-S", "--unset", "--chdir"]);
    while let Some((word, behind)) = rest.split_first() {
        let name = word.text.split(|byte| *byte == b'=').next();
        let is_variable = word.text.contains(&b'=') && name.is_some_and(is_name);
        if !is_variable && word.text != b"-" {
            break;
        }
        rest = behind;
    }
    rest
}

/// A shell within a line: its line, or the script's words.
fn shell<'a>(name: &str, arguments: &'a [Word]) -> Result<&'a [Word], Work> {
    let texts: Vec<Vec<u8>> = arguments.iter().map(|word| word.text.clone()).collect();
    match shell_kind(&texts) {
        Kind::Line(line) => {
            let is_exact = arguments.iter().any(|word| word.exact && word.text == line);
            if is_exact {
                Err(Work::new(Class::Line(line.to_vec()), name))
            } else {
                Err(opaque(name))
            }
        }
        // A script is then told by its own name.
        Kind::Script(words) => arguments
            .get(arguments.len() - words.len()..)
            .filter(|script| !script.is_empty())
            .ok_or_else(|| opaque(name)),
        Kind::Session | Kind::Program(_) => Err(opaque(name).reading(Input::Yes)),
    }
}

/// `eval` of words that stand there is a line.
fn evaluated(arguments: &[Word]) -> Work {
    if arguments.iter().all(|word| word.exact) {
        let texts: Vec<&[u8]> = arguments.iter().map(|word| word.text.as_slice()).collect();
        return Work::new(Class::Line(texts.join(&b' ')), "eval");
    }
    opaque("eval")
}

fn libtool(arguments: &[Word]) -> Work {
    let mode = arguments
        .iter()
        .find_map(|word| word.text.strip_prefix(b"--mode="));
    let inner = past(arguments, &[]);
    let compiler = super::classify(inner);
    let class = match mode {
        Some(b"compile") => Class::Compile,
        Some(b"link") => Class::Link,
        Some(b"install" | b"clean" | b"uninstall" | b"finish") => Class::Files,
        _ if compiler.class.is_work() => compiler.class.clone(),
        _ => Class::Unknown,
    };
    Work {
        class,
        program: "libtool".to_owned(),
        shape: format!("libtool {}", compiler.shape),
        target: super::compiler::output_of(inner).or(compiler.target),
        input: Input::No,
    }
}

fn cmake(arguments: &[Word]) -> Result<&[Word], Work> {
    let texts: Vec<&[u8]> = arguments.iter().map(|word| word.text.as_slice()).collect();
    let class = match texts.as_slice() {
        [b"-E", b"cmake_link_script", script, ..] => {
            let mut work = Work::new(Class::Link, "cmake_link_script");
            work.shape = "link".to_owned();
            // `CMakeFiles/NAME.dir/link.txt`
            work.target = script
                .split(|byte| *byte == b'/')
                .rev()
                .nth(1)
                .map(|directory| {
                    directory
                        .strip_suffix(b".dir")
                        .unwrap_or(directory)
                        .to_vec()
                });
            return Err(work);
        }
        [b"-E", b"env", ..] => return Ok(past_env(&arguments[2..])),
        [b"-E", b"time", ..] => return Ok(&arguments[2..]),
        [b"-E", b"__run_co_compile", ..] => {
            let behind = texts.iter().position(|text| *text == b"--");
            return Ok(behind.map_or(&[], |at| &arguments[at + 1..]));
        }
        [b"-E", b"cmake_autogen" | b"cmake_autorcc", ..] | [b"-P", ..] => Class::Unknown,
        [b"-E", b"tar", ..] => Class::Text,
        [b"-E", ..] => Class::Files,
        // Configures, or builds.
        _ => Class::Builder,
    };
    Err(Work::new(class, "cmake"))
}

fn is_interpreter(name: &str) -> bool {
    let plain = name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    INTERPRETERS.contains(&name) || INTERPRETERS.contains(&plain)
}

/// What is learned is learned of the script.
fn interpreted(name: &str, arguments: &[Word]) -> Work {
    let mut program = name.to_owned();
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let text = word.text.as_slice();
        let value = if matches!(text, b"-m" | b"-jar") {
            rest.next()
        } else {
            None
        };
        if let Some(value) = value {
            program = format!(
                "{name} {} {}",
                String::from_utf8_lossy(text),
                file_name(&value.text)
            );
            break;
        }
        if matches!(text, b"-c" | b"-e") {
            program = format!("{name} {}", String::from_utf8_lossy(text));
            break;
        }
        if !text.starts_with(b"-") {
            program = format!("{name} {}", file_name(text));
            break;
        }
    }
    let mut work = Work::new(Class::Unknown, program).reading(Input::Perhaps);
    work.shape = super::compiler::options_of(arguments);
    work.target = super::compiler::output_of(arguments);
    work
}
