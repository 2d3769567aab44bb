//! What lines took in earlier builds of a tree.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::call::Call;

/// Lines that are remembered one by one; those seen longest ago make room.
const MAX_LINES: usize = 65_536;
/// Kinds of commands, and programs.
const MAX_SHAPES: usize = 4_096;
const MAX_PROGRAMS: usize = 1_024;
/// What was not seen in so many builds is forgotten.
const KEPT_BUILDS: u32 = 200;
/// A kind's average moves by this part of each difference: its lines are not alike.
const KIND_PART: u64 = 8;
/// A line's own moves by half: what it took last says most.
const LINE_PART: u64 = 2;
/// What takes longer on a node than its work so many times, and this, waits there.
const WAIT_FACTOR: u64 = 4;
const WAIT_US: u64 = 500_000;
/// What was seen on nodes loses this part of its weight each time that it runs here.
const FORGOTTEN_PART: u64 = 4;
/// At the beginning of the bytes; another layout gets another number.
const FORMAT: &[u8; 8] = b"wiglafB2";

/// Durations, processor time and memory of lines: each line by itself, by the kind of command,
/// and by program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Counts builds.
    build: u32,
    lines: HashMap<u64, Entry>,
    shapes: HashMap<u64, Entry>,
    programs: HashMap<String, Entry>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    wall_us: u64,
    /// Known of what ran on a node.
    cpu_us: Option<u64>,
    /// As long as it took there.
    node_us: Option<u64>,
    rss_kib: Option<u64>,
    /// It starts programs that are lines of their own.
    gathers: bool,
    seen: u32,
}

/// By what a line is looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) line: u64,
    pub(crate) shape: u64,
    pub(crate) program: String,
}

/// How well an estimate fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    Program,
    Shape,
    Line,
}

/// What a line is expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Estimate {
    pub(crate) wall_us: u64,
    pub(crate) cpu_us: Option<u64>,
    pub(crate) node_us: Option<u64>,
    pub(crate) rss_kib: Option<u64>,
    pub(crate) gathers: bool,
    pub(crate) fit: Fit,
}

/// What a line took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) wall_us: u64,
    pub(crate) cpu_us: Option<u64>,
    pub(crate) rss_kib: Option<u64>,
    pub(crate) gathers: bool,
}

impl Keys {
    pub(crate) fn new(call: &Call, directory: &[u8], program: &str, shape: &str) -> Keys {
        let arguments = call.argv.iter().skip(1).map(Vec::as_slice);
        let name = call.name();
        let line = [directory, name.as_bytes()].into_iter().chain(arguments);
        let kind = [program.as_bytes(), shape.as_bytes()];
        Keys {
            line: fingerprint(line),
            shape: fingerprint(kind.into_iter()),
            program: program.to_owned(),
        }
    }
}

impl Estimate {
    /// What says whether a node is worth it: waiting is no work.
    pub(crate) fn work_us(&self) -> u64 {
        self.cpu_us.unwrap_or(self.wall_us)
    }

    /// On nodes it mostly waits, be it for its files or for a processor.
    pub(crate) fn waits_on_nodes(&self) -> bool {
        let limit = self.work_us().saturating_mul(WAIT_FACTOR) + WAIT_US;
        self.fit == Fit::Line && self.node_us.is_some_and(|took| took > limit)
    }
}

impl Learned {
    /// Reads what [`Learned::to_bytes`] has written; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Learned> {
        let body = bytes.strip_prefix(FORMAT)?;
        let (mut learned, rest) = postcard::take_from_bytes::<Learned>(body).ok()?;
        if !rest.is_empty() {
            return None;
        }
        learned.trim();
        Some(learned)
    }

    /// For the next build.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = FORMAT.to_vec();
        // Plain data of bounded size: there is nothing that could not be written.
        bytes.extend(postcard::to_allocvec(self).unwrap_or_default());
        bytes
    }

    /// How many lines are known one by one.
    pub fn line_count(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn estimate(&self, keys: &Keys) -> Option<Estimate> {
        let line = self.lines.get(&keys.line).map(|entry| (entry, Fit::Line));
        let shape = || {
            self.shapes
                .get(&keys.shape)
                .map(|entry| (entry, Fit::Shape))
        };
        let program = || {
            self.programs
                .get(&keys.program)
                .map(|entry| (entry, Fit::Program))
        };
        let (entry, fit) = line.or_else(shape).or_else(program)?;
        Some(Estimate {
            wall_us: entry.wall_us,
            cpu_us: entry.cpu_us,
            node_us: entry.node_us,
            rss_kib: entry.rss_kib,
            gathers: entry.gathers,
            fit,
        })
    }

    pub(crate) fn learn(&mut self, keys: &Keys, taken: Taken) {
        let build = self.build;
        if self.lines.len() >= 2 * MAX_LINES
            || self.shapes.len() >= 2 * MAX_SHAPES
            || self.programs.len() >= 2 * MAX_PROGRAMS
        {
            self.trim();
        }
        let line = self.lines.entry(keys.line).or_default();
        line.take(taken, LINE_PART, build);
        let shape = self.shapes.entry(keys.shape).or_default();
        shape.take(taken, KIND_PART, build);
        match self.programs.get_mut(&keys.program) {
            Some(program) => program.take(taken, KIND_PART, build),
            None => {
                let mut program = Entry::default();
                program.take(taken, KIND_PART, build);
                self.programs.insert(keys.program.clone(), program);
            }
        }
    }

    /// A build is over.
    pub(crate) fn end_build(&mut self) {
        self.trim();
        self.build = self.build.saturating_add(1);
    }

    fn trim(&mut self) {
        trim(&mut self.lines, self.build, MAX_LINES);
        trim(&mut self.shapes, self.build, MAX_SHAPES);
        trim(&mut self.programs, self.build, MAX_PROGRAMS);
    }
}

impl Entry {
    fn take(&mut self, taken: Taken, part: u64, build: u32) {
        // An entry without a duration is new: nothing takes no time at all.
        let is_new = self.wall_us == 0;
        self.wall_us = if is_new {
            taken.wall_us.max(1)
        } else {
            toward(self.wall_us, taken.wall_us, part).max(1)
        };
        self.cpu_us = joined(self.cpu_us, taken.cpu_us, part);
        self.node_us = match taken.cpu_us {
            Some(_) => joined(self.node_us, Some(taken.wall_us), part),
            // A node that had to fetch the program first is not to speak for all time.
            None => self.node_us.map(|took| toward(took, 0, FORGOTTEN_PART)),
        };
        // Too little memory hurts more than too much.
        self.rss_kib = match (self.rss_kib, taken.rss_kib) {
            (Some(old), Some(new)) if new < old => Some(toward(old, new, part)),
            (old, new) => new.or(old),
        };
        self.gathers |= taken.gathers;
        self.seen = build;
    }
}

fn joined(old: Option<u64>, new: Option<u64>, part: u64) -> Option<u64> {
    match (old, new) {
        (Some(old), Some(new)) => Some(toward(old, new, part)),
        (old, new) => new.or(old),
    }
}

fn toward(old: u64, new: u64, part: u64) -> u64 {
    if new >= old {
        old + (new - old) / part
    } else {
        old - (old - new) / part
    }
}

fn trim<K: std::hash::Hash + Eq + Ord + Clone>(
    entries: &mut HashMap<K, Entry>,
    build: u32,
    most: usize,
) {
    entries.retain(|_, entry| build.saturating_sub(entry.seen) < KEPT_BUILDS);
    if entries.len() <= most {
        return;
    }
    let mut by_age: Vec<(u32, K)> = entries
        .iter()
        .map(|(key, entry)| (entry.seen, key.clone()))
        .collect();
    by_age.sort_unstable();
    for (_, key) in by_age.iter().take(entries.len() - most) {
        entries.remove(key);
    }
}

/// FNV-1a over parts, each with its end: the same from version to version.
fn fingerprint<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    let byte = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        byte(part.iter().fold(hash, byte), &0)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(line: u64) -> Keys {
        Keys {
            line,
            shape: line % 7,
            program: format!("p{}", line % 3),
        }
    }

    fn taken(wall_us: u64) -> Taken {
        Taken {
            wall_us,
            cpu_us: Some(wall_us / 2),
            rss_kib: Some(wall_us / 10),
            gathers: false,
        }
    }

    #[test]
    fn a_line_is_known_by_itself_then_by_kind_then_by_program() {
        let mut learned = Learned::default();
        assert_eq!(learned.estimate(&keys(1)), None);
        learned.learn(&keys(1), taken(1000));
        let known = |key: &Keys| {
            learned
                .estimate(key)
                .map(|found| (found.wall_us, found.fit))
        };
        assert_eq!(known(&keys(1)), Some((1000, Fit::Line)));
        assert_eq!(known(&keys(8)), Some((1000, Fit::Shape)));
        assert_eq!(known(&keys(4)), Some((1000, Fit::Program)));
        assert_eq!(known(&keys(2)), None);
    }

    #[test]
    fn what_it_took_last_says_most() {
        let mut learned = Learned::default();
        learned.learn(&keys(1), taken(1000));
        learned.learn(&keys(1), taken(2000));
        let found = learned.estimate(&keys(1)).expect("known");
        assert_eq!(
            (found.wall_us, found.work_us(), found.rss_kib),
            (1500, 750, Some(200))
        );
        // Without processor time, as here: what is known of it stays.
        learned.learn(
            &keys(1),
            Taken {
                wall_us: 1500,
                ..Taken::default()
            },
        );
        let found = learned.estimate(&keys(1)).expect("known");
        assert_eq!((found.wall_us, found.work_us()), (1500, 750));
    }

    #[test]
    fn what_waited_on_a_node_is_tried_there_again_one_day() {
        let mut learned = Learned::default();
        let mut waits = |wall_us: u64, cpu_us: Option<u64>| {
            let taken = Taken {
                wall_us,
                cpu_us,
                ..Taken::default()
            };
            learned.learn(&keys(1), taken);
            let found = learned.estimate(&keys(1));
            found.is_some_and(|found| found.waits_on_nodes())
        };
        assert!(waits(2_000_000, Some(50_000)));
        assert!(waits(60_000, None), "it is not known to be better now");
        let again = (0..20).position(|_| !waits(60_000, None));
        assert_eq!(again, Some(2));
        // Where it goes well once, it stays.
        assert!(!waits(100_000, Some(50_000)));
        assert!(!waits(100_000, Some(50_000)));
    }

    #[test]
    fn it_is_bounded_and_forgets_what_is_old() {
        let mut learned = Learned::default();
        learned.learn(&keys(u64::MAX), taken(5));
        learned.end_build();
        for line in 0..2 * MAX_LINES as u64 {
            learned.learn(&keys(line), taken(line));
        }
        assert!(learned.lines.len() <= 2 * MAX_LINES);
        learned.end_build();
        assert_eq!(learned.line_count(), MAX_LINES);
        assert!(
            !learned.lines.contains_key(&u64::MAX),
            "the oldest goes first"
        );
        for _ in 0..KEPT_BUILDS {
            learned.end_build();
        }
        assert_eq!(learned.line_count(), 0);
    }

    #[test]
    fn bytes_come_back() {
        let mut learned = Learned::default();
        (0..100).for_each(|line| learned.learn(&keys(line), taken(line)));
        let bytes = learned.to_bytes();
        assert_eq!(Learned::from_bytes(&bytes), Some(learned));
        assert_eq!(Learned::from_bytes(b""), None);
        assert_eq!(Learned::from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Learned::from_bytes(&[&bytes[..], b"x"].concat()), None);
    }

    #[test]
    fn a_line_is_told_from_others_by_directory_and_arguments() {
        let call = |argv: &[&str]| Call {
            program: "/usr/bin/gcc".into(),
            argv: argv.iter().map(|one| one.as_bytes().to_vec()).collect(),
            ..Call::default()
        };
        let line = |call: &Call, directory: &[u8]| Keys::new(call, directory, "gcc", "").line;
        let one = call(&["gcc", "-c", "x.c"]);
        assert_eq!(line(&one, b"a"), line(&call(&["cc", "-c", "x.c"]), b"a"));
        assert_ne!(line(&one, b"a"), line(&one, b"b"));
        assert_ne!(line(&one, b"a"), line(&call(&["gcc", "-cx.c"]), b"a"));
        assert_ne!(
            line(&one, b"a"),
            line(&call(&["gcc", "-c", "x", ".c"]), b"a")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Learned::from_bytes(&bytes);
            let _ = Learned::from_bytes(&[FORMAT, &bytes[..]].concat());
        }
    }
}
