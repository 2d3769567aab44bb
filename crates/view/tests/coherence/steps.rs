//! What is done on the head and on nodes, at random.

use proptest::prelude::*;
use wiglaf_wire::view::PIECE_BYTES;

use crate::head::Somebody;

pub(crate) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
pub(crate) const DIRECTORIES: [&str; 3] = ["", "p", "q"];

/// Something that somebody does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(String, u8),
    Append(String, u8),
    Truncate(String, u8),
    Remove(String),
    MakeDirectory(String),
    RemoveDirectory(String),
    Rename(String, String),
    Link(String, String),
    Mode(String, u32),
    /// Only looks: what it sees is kept by its kernel.
    Look(String),
    List(String),
    /// Executes a file, which then reads another one.
    Run(&'static str, String),
    /// A task is about to be launched.
    Launch(&'static str),
    /// A file of some pieces.
    WriteMuch(String, u8),
    /// Nothing is sure any more, as after a mount on the head.
    Doubt,
    /// A node's link is lost, and there is another one: it is given everything anew.
    Relink,
}

/// Bytes of a file that is not small, not all of whole pieces.
pub(crate) fn much(n: u8) -> usize {
    (PIECE_BYTES as usize) * (1 + usize::from(n % 3)) + usize::from(n / 8 * 8) * 100
}

/// Who does it: 0 is the head, others are nodes.
pub(crate) type Deed = (usize, Step);

fn path() -> impl Strategy<Value = String> {
    let parts = (0..DIRECTORIES.len(), 0..NAMES.len());
    parts.prop_map(|(directory, name)| match DIRECTORIES[directory] {
        "" => NAMES[name].to_owned(),
        directory => format!("{directory}/{}", NAMES[name]),
    })
}

/// Few enough for one to be executed again and again.
fn program() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("p/a")]
}

/// Of files with which programs have to do more than with others.
fn busy_path() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("p/a"), Just("c")].prop_map(str::to_owned)
}

fn directory() -> impl Strategy<Value = String> {
    (0..DIRECTORIES.len()).prop_map(|at| DIRECTORIES[at].to_owned())
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Step::Write(p, n)),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Step::Append(p, n)),
        1 => (path(), any::<u8>()).prop_map(|(p, n)| Step::Truncate(p, n)),
        1 => path().prop_map(Step::Remove),
        1 => directory().prop_map(Step::MakeDirectory),
        1 => directory().prop_map(Step::RemoveDirectory),
        1 => (path(), path()).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Step::Link(a, b)),
        1 => (path(), 0..0o1000_u32).prop_map(|(p, m)| Step::Mode(p, m)),
        1 => path().prop_map(Step::Look),
        1 => directory().prop_map(Step::List),
        3 => (program(), busy_path()).prop_map(|(a, b)| Step::Run(a, b)),
        3 => program().prop_map(Step::Launch),
        3 => (busy_path(), any::<u8>()).prop_map(|(p, n)| Step::WriteMuch(p, n)),
        2 => (busy_path(), any::<u8>()).prop_map(|(p, n)| Step::Truncate(p, n)),
        2 => (busy_path(), any::<u8>()).prop_map(|(p, n)| Step::Append(p, n)),
        2 => Just(Step::Relink),
        1 => Just(Step::Doubt),
    ]
}

impl Somebody {
    pub(crate) fn act(&mut self, step: &Step) {
        let text = |n: &u8| format!("{n}").repeat(usize::from(*n % 7) + 1);
        let command = match step {
            Step::Write(p, n) => format!("printf {} > {p}", text(n)),
            Step::Append(p, n) => format!("printf {} >> {p}", text(n)),
            Step::Truncate(p, n) => format!("[ ! -f {p} ] || truncate -s {} {p}", n % 9),
            Step::Remove(p) => format!("rm -f {p}"),
            Step::MakeDirectory(p) if p.is_empty() => ":".into(),
            Step::MakeDirectory(p) => format!("mkdir {p}"),
            Step::RemoveDirectory(p) if p.is_empty() => ":".into(),
            Step::RemoveDirectory(p) => format!("rmdir {p}"),
            Step::Rename(a, b) => format!("mv -fT {a} {b}"),
            Step::Link(a, b) => format!("ln -T {a} {b}"),
            Step::Mode(p, m) => format!("chmod {m:o} {p}"),
            Step::Look(p) | Step::Run(_, p) => format!("cat {p}"),
            Step::Launch(_) => return,
            Step::WriteMuch(p, n) => {
                format!("[ -d {p} ] || yes {n} | head -c {} > {p}", much(*n))
            }
            Step::List(p) => format!("ls -l ./{p}"),
            Step::Doubt | Step::Relink => return,
        };
        let code = self.run(&command);
        let truncated = command.contains("truncate");
        assert!(!truncated || code == "0", "{command}: {code}");
    }
}
