//! What programs use of the view, told to the deputy so that it can give it to the next node that
//! runs them.

use std::collections::{BTreeMap, HashMap, HashSet};

use wiglaf_wire::view::{Ask, FileId, MAX_USES, Program, Use};

use super::Session;

/// Of `open(2)`, where the kernel is about to execute the file (`__FMODE_EXEC`).
const EXECUTES: u32 = 0x20;
/// Uses that are told together.
const TOLD_TOGETHER: usize = 512;
/// Processes whose programs are remembered.
const MAX_PROCESSES: usize = 4096;
/// Programs that were announced to the deputy, by path or number.
const MAX_ANNOUNCED: usize = 4096;

/// Who uses what, since it was told last.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// What processes have executed.
    programs: HashMap<u32, u64>,
    /// For processes of which that is not known: the latest; none, if a task has begun since.
    latest: Option<u64>,
    noted: Vec<(Option<u64>, Use)>,
    executed: HashSet<u64>,
    launched: HashSet<Vec<u8>>,
}

impl Uses {
    /// The deputy has forgotten what it was told, or it is another one.
    pub(super) fn start_over(&mut self) {
        self.executed.clear();
        self.launched.clear();
    }
}

impl Session {
    /// Notes what the asking process does.
    pub(super) fn note(&mut self, used: Use) {
        let uses = &mut self.uses;
        let program = uses.programs.get(&self.asker).copied().or(uses.latest);
        uses.noted.push((program, used));
        if uses.noted.len() >= TOLD_TOGETHER {
            self.tell_uses();
        }
    }

    /// Notes that a file is being opened to be read or executed.
    pub(super) fn note_open(&mut self, node: u64, flags: u32) {
        if flags & EXECUTES != 0 && !self.is_loader(node) {
            if !self.uses.executed.contains(&node) {
                self.note(Use::Executed(FileId(node)));
            }
            let uses = &mut self.uses;
            if uses.programs.len() >= MAX_PROCESSES {
                uses.programs.clear();
            }
            uses.programs.insert(self.asker, node);
            uses.latest = Some(node);
            if uses.executed.len() >= MAX_ANNOUNCED {
                uses.executed.clear();
            }
            if uses.executed.insert(node) {
                self.say(Ask::Expect(Program::Executed(FileId(node))));
            }
        }
        self.note_once(node, Use::Opened(FileId(node)));
    }

    /// Notes what is done with a file when it is done for the first time.
    pub(super) fn note_once(&mut self, node: u64, used: Use) {
        let is_first =
            |file: &mut super::File| file.watched && !std::mem::replace(&mut file.was_opened, true);
        if self.files.get_mut(&node).is_some_and(is_first) {
            self.note(used);
        }
    }

    /// A dynamic loader is executed with every program, and is none itself. It is known by its
    /// name, as `ld-linux-x86-64.so.2`.
    fn is_loader(&self, node: u64) -> bool {
        const SHARED: &[u8] = b".so";
        let name = self.files.get(&node).and_then(|file| file.name.as_ref());
        name.is_some_and(|(_, name)| name.windows(SHARED.len()).any(|part| part == SHARED))
    }

    /// A task is about to be launched: the first of these paths where there is something.
    pub fn expect(&mut self, paths: Vec<Vec<u8>>) {
        let uses = &mut self.uses;
        uses.latest = None;
        let Some(first) = paths.first() else {
            return;
        };
        if uses.launched.len() >= MAX_ANNOUNCED {
            uses.launched.clear();
        }
        if uses.launched.insert(first.clone()) {
            self.say(Ask::Expect(Program::Launched(paths)));
        }
    }

    /// Tells the deputy what has been noted.
    pub fn tell_uses(&mut self) {
        let mut by_program: BTreeMap<Option<u64>, Vec<Use>> = BTreeMap::new();
        for (program, used) in std::mem::take(&mut self.uses.noted) {
            by_program.entry(program).or_default().push(used);
        }
        for (program, mut uses) in by_program {
            let program = program.map(FileId);
            while uses.len() > MAX_USES {
                let rest = uses.split_off(MAX_USES);
                self.say(Ask::Used { program, uses });
                uses = rest;
            }
            self.say(Ask::Used { program, uses });
        }
    }
}
