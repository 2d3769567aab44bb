//! Compiler drivers, assemblers and linkers: what they are asked for.

use super::{Class, Input, Work};
use crate::line::Word;

/// Drivers that take GCC's options.
const DRIVERS: &[&str] = &[
    "armclang", "c++", "c89", "c99", "cc", "clang", "clang++", "cpp", "f77", "f95", "flang", "g++",
    "g77", "gcc", "gccgo", "gdc", "gfortran", "icc", "icpc", "icpx", "icx", "tcc",
];

const ASSEMBLERS: &[&str] = &[
    "as", "cc1", "cc1plus", "f951", "gas", "llc", "nasm", "opt", "yasm",
];

const LINKERS: &[&str] = &[
    "collect2",
    "gold",
    "ld",
    "ld.bfd",
    "ld.gold",
    "ld.lld",
    "lld",
    "mold",
    "lto-wrapper",
];

/// GCC's options whose value is the next argument.
const WITH_VALUE: &[&str] = &[
    "--param",
    "-A",
    "-B",
    "-D",
    "-F",
    "-G",
    "-I",
    "-L",
    "-MF",
    "-MQ",
    "-MT",
    "-T",
    "-U",
    "-V",
    "-Xassembler",
    "-Xclang",
    "-Xlinker",
    "-Xpreprocessor",
    "-arch",
    "-aux-info",
    "-b",
    "-dumpbase",
    "-e",
    "-framework",
    "-idirafter",
    "-imacros",
    "-include",
    "-iprefix",
    "-iquote",
    "-isysroot",
    "-isystem",
    "-l",
    "-m",
    "-mllvm",
    "-o",
    "-target",
    "-u",
    "-wrapper",
    "-x",
    "-z",
];

/// rustc's.
const RUSTC_WITH_VALUE: &[&str] = &[
    "--allow",
    "--cap-lints",
    "--cfg",
    "--check-cfg",
    "--codegen",
    "--color",
    "--crate-name",
    "--crate-type",
    "--deny",
    "--edition",
    "--emit",
    "--error-format",
    "--extern",
    "--forbid",
    "--json",
    "--out-dir",
    "--print",
    "--remap-path-prefix",
    "--sysroot",
    "--target",
    "--warn",
    "-A",
    "-C",
    "-D",
    "-F",
    "-L",
    "-W",
    "-Z",
    "-l",
    "-o",
];

/// Options in a shape; more say nothing.
const MAX_SHAPE_OPTIONS: usize = 8;

/// `None` if it is no compiler, assembler or linker.
pub(super) fn work(name: &str, short: &str, arguments: &[Word]) -> Option<Work> {
    if short == "rustc" || short == "clippy-driver" {
        return Some(rustc(short, arguments));
    }
    let class = if DRIVERS.contains(&short) {
        return Some(driver(name, short, arguments));
    } else if ASSEMBLERS.contains(&short) {
        Class::Compile
    } else if LINKERS.contains(&short) {
        Class::Link
    } else if super::names::is_emacs(name) {
        return emacs(name, arguments);
    } else {
        return None;
    };
    let given = Given::of(arguments, WITH_VALUE);
    if given.operands.is_empty() {
        return Some(Work::new(Class::Query, short));
    }
    let mut work = Work::new(class, short);
    work.target = given.output.map(<[u8]>::to_vec);
    work.shape = "as is".to_owned();
    Some(work)
}

fn driver(name: &str, short: &str, arguments: &[Word]) -> Work {
    let given = Given::of(arguments, WITH_VALUE);
    let has = |option: &[u8]| arguments.iter().any(|word| word.text == option);
    let begins = |option: &[u8]| arguments.iter().any(|word| word.text.starts_with(option));
    if given.operands.iter().any(|operand| *operand == b"-") {
        return Work::new(Class::Query, short).reading(Input::Yes);
    }
    let is_probe = given
        .operands
        .iter()
        .all(|operand| *operand == b"/dev/null");
    let asks = has(b"-###") || begins(b"-print-") || begins(b"--print-") || begins(b"-dump");
    if given.operands.is_empty() || is_probe || asks {
        return Work::new(Class::Query, short);
    }
    let only_preprocesses = has(b"-E") || has(b"-M") || has(b"-MM") || short == "cpp";
    let stops = has(b"-c") || has(b"-S") || has(b"-fsyntax-only") || only_preprocesses;
    let mut work = Work::new(if stops { Class::Compile } else { Class::Link }, short);
    // Its text goes into a pipe or a file of the line's; the policy looks where.
    if only_preprocesses && given.output.is_none() {
        work.class = Class::Query;
    }
    let source = given
        .operands
        .iter()
        .copied()
        .find(|operand| is_source(operand));
    if !stops && source.is_some() && given.operands.len() == 1 {
        work.class = Class::Compile;
    }
    work.target = given.output.map(<[u8]>::to_vec).or_else(|| {
        let end: &[u8] = if has(b"-S") { b".s" } else { b".o" };
        match source {
            Some(source) if stops && !only_preprocesses => Some(default_output(source, end)),
            _ if stops => None,
            _ => Some(b"a.out".to_vec()),
        }
    });
    work.shape = driver_shape(name, arguments, source, work.target.as_deref());
    work
}

fn driver_shape(
    name: &str,
    arguments: &[Word],
    source: Option<&[u8]>,
    target: Option<&[u8]>,
) -> String {
    let counts = |text: &&[u8]| {
        matches!(
            *text,
            b"-c" | b"-S" | b"-E" | b"-M" | b"-MM" | b"-shared" | b"-pg"
        ) || text.starts_with(b"-O")
            || (text.starts_with(b"-g") && text.len() < 6)
            || text.starts_with(b"-flto")
            || text.starts_with(b"-fsanitize")
    };
    let mut options: Vec<&[u8]> = arguments
        .iter()
        .map(|word| word.text.as_slice())
        .filter(counts)
        .collect();
    options.sort_unstable();
    options.dedup();
    options.truncate(MAX_SHAPE_OPTIONS);
    let mut shape = name.to_owned();
    for option in options {
        shape.push(' ');
        shape.push_str(&String::from_utf8_lossy(option));
    }
    let end = |path: Option<&[u8]>| path.and_then(extension).unwrap_or_default();
    shape + " " + &end(source) + ">" + &end(target)
}

fn rustc(name: &str, arguments: &[Word]) -> Work {
    let given = Given::of(arguments, RUSTC_WITH_VALUE);
    let begins = |option: &[u8]| arguments.iter().any(|word| word.text.starts_with(option));
    let value = |option: &str| value_of(arguments, option);
    if given.operands.iter().any(|operand| *operand == b"-") {
        return Work::new(Class::Query, name).reading(Input::Yes);
    }
    if given.operands.is_empty() || begins(b"--print") {
        return Work::new(Class::Query, name);
    }
    let mut work = Work::new(Class::Compile, name);
    let crate_name = value("--crate-name").unwrap_or_default();
    let kind = value("--crate-type").unwrap_or_default();
    work.target = given.output.map(<[u8]>::to_vec).or_else(|| {
        let directory = value("--out-dir")?;
        Some([directory.as_slice(), b"/", &crate_name].concat())
    });
    let level = arguments
        .iter()
        .find(|word| word.text.starts_with(b"opt-level="));
    let level = level.map(|word| word.text.as_slice()).unwrap_or_default();
    work.shape = format!(
        "rustc {} {}",
        String::from_utf8_lossy(&kind),
        String::from_utf8_lossy(level)
    );
    work
}

/// With a display it is for people, and not known here.
fn emacs(name: &str, arguments: &[Word]) -> Option<Work> {
    let is_batch = |word: &Word| matches!(word.text.as_slice(), b"-batch" | b"--batch");
    if !arguments.iter().any(is_batch) {
        return Some(Work::new(Class::Unknown, name).reading(Input::Perhaps));
    }
    let mut work = Work::new(Class::Heavy, name);
    work.target = super::names::byte_compiled(arguments);
    work.shape = options_of(arguments);
    Some(work)
}

/// What stands on a command line, by an option table.
struct Given<'a> {
    operands: Vec<&'a [u8]>,
    output: Option<&'a [u8]>,
}

impl<'a> Given<'a> {
    fn of(arguments: &'a [Word], with_value: &[&str]) -> Given<'a> {
        let mut given = Given {
            operands: Vec::new(),
            output: None,
        };
        let mut rest = arguments.iter().map(|word| word.text.as_slice());
        while let Some(text) = rest.next() {
            if text == b"-" || !text.starts_with(b"-") {
                given.operands.push(text);
            } else if with_value.iter().any(|option| option.as_bytes() == text) {
                let value = rest.next();
                if text == b"-o" {
                    given.output = value;
                }
            } else if let Some(joined) = text.strip_prefix(b"-o")
                && !joined.is_empty()
                && !text.starts_with(b"-object")
            {
                given.output = Some(joined);
            } else if let Some(joined) = text.strip_prefix(b"--output=") {
                given.output = Some(joined);
            }
        }
        given
    }
}

fn value_of(arguments: &[Word], option: &str) -> Option<Vec<u8>> {
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        if word.text == option.as_bytes() {
            return rest.next().map(|value| value.text.clone());
        }
        if let Some(value) = word.text.strip_prefix(option.as_bytes())
            && let Some(value) = value.strip_prefix(b"=")
        {
            return Some(value.to_vec());
        }
    }
    None
}

/// `-o FILE`, `--output FILE` of a program that is not known.
pub(super) fn output_of(arguments: &[Word]) -> Option<Vec<u8>> {
    value_of(arguments, "-o")
        .or_else(|| value_of(arguments, "--output"))
        .filter(|file| !file.starts_with(b"-"))
}

/// The names of a program's options, without their values.
pub(super) fn options_of(arguments: &[Word]) -> String {
    let mut options: Vec<_> = arguments
        .iter()
        .filter(|word| word.text.starts_with(b"-"))
        .map(|word| {
            let end = word.text.iter().position(|byte| *byte == b'=');
            String::from_utf8_lossy(&word.text[..end.unwrap_or(word.text.len()).min(24)])
                .into_owned()
        })
        .collect();
    options.sort_unstable();
    options.dedup();
    options.truncate(MAX_SHAPE_OPTIONS);
    options.join(" ")
}

fn is_source(path: &[u8]) -> bool {
    const ENDS: &[&str] = &[
        "C", "F", "F90", "S", "adb", "c", "c++", "cc", "cp", "cpp", "cxx", "d", "f", "f03", "f08",
        "f77", "f90", "f95", "for", "go", "i", "ii", "m", "mm", "s", "sx",
    ];
    extension(path).is_some_and(|end| ENDS.contains(&end.as_str()))
}

/// Without the dot.
pub(super) fn extension(path: &[u8]) -> Option<String> {
    let name = path.rsplit(|byte| *byte == b'/').next()?;
    let at = name.iter().rposition(|byte| *byte == b'.')?;
    (at > 0 && name.len() - at <= 8).then(|| String::from_utf8_lossy(&name[at + 1..]).into_owned())
}

/// `dir/x.c` compiles to `x.o` in the working directory.
fn default_output(source: &[u8], end: &[u8]) -> Vec<u8> {
    let name = source.rsplit(|byte| *byte == b'/').next().unwrap_or(source);
    let stem = name
        .iter()
        .rposition(|byte| *byte == b'.')
        .unwrap_or(name.len());
    [&name[..stem], end].concat()
}
