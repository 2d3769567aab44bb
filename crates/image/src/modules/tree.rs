//! A kernel's modules on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::ModuleError;
use super::drivers::COMPANIONS;
use super::info::{Info, plain};
use crate::compress;
use crate::elf;

/// Directories that stand before others, as depmod.d(5) has it by default.
const FIRST: [&str; 2] = ["updates", "extra"];

/// Below any kernel's folder there are fewer levels.
const MAX_DEPTH: usize = 16;

/// The modules of one kernel; each is read once.
#[derive(Debug)]
pub(crate) struct Tree {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    read: BTreeMap<String, Info>,
    /// What modules answer to, read only if something must be sought by that.
    answers: Option<BTreeMap<String, String>>,
}

impl Tree {
    pub(crate) fn open(dir: &Path) -> Result<Tree, ModuleError> {
        let mut files = BTreeMap::new();
        let mut tops: Vec<PathBuf> = FIRST.iter().map(|name| dir.join(name)).collect();
        tops.retain(|path| path.is_dir());
        tops.push(dir.to_owned());
        for top in tops {
            walk(&top, 0, &mut files)?;
        }
        let builtin = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| name_of(Path::new(line)));
        Ok(Tree {
            dir: dir.to_owned(),
            files,
            builtin: builtin.collect(),
            read: BTreeMap::new(),
            answers: None,
        })
    }

    /// Whether there is such a module; what is built in is none.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(&plain(name))
    }

    pub(crate) fn info(&mut self, name: &str) -> Result<&Info, ModuleError> {
        let name = plain(name);
        if !self.read.contains_key(&name) {
            let bytes = self.bytes(&name)?;
            let section = elf::section(&bytes, b".modinfo")
                .ok_or_else(|| ModuleError::NotAModule(self.files[&name].clone()))?;
            self.read.insert(name.clone(), Info::parse(section));
        }
        Ok(&self.read[&name])
    }

    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, ModuleError> {
        let path = self.files.get(name);
        let path = path.ok_or_else(|| self.missing(name, None))?;
        compress::read(path).map_err(|source| ModuleError::Read {
            path: path.clone(),
            source,
        })
    }

    /// Adds a module to a load order, and before it what it depends on.
    pub(crate) fn close(&mut self, name: &str, order: &mut Vec<String>) -> Result<(), ModuleError> {
        let mut begun = order.iter().cloned().collect();
        self.visit(&plain(name), None, &mut begun, order)
    }

    fn visit(
        &mut self,
        name: &str,
        wanted_by: Option<&str>,
        begun: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        // Those that want each other softly would go round for ever.
        if begun.contains(name) || self.builtin.contains(name) && !self.has(name) {
            return Ok(());
        }
        if !self.has(name) {
            return Err(self.missing(name, wanted_by));
        }
        begun.insert(name.to_owned());
        let info = self.info(name)?.clone();
        for other in &info.depends {
            self.visit(other, Some(name), begun, order)?;
        }
        let companions = COMPANIONS.iter().filter(|(driver, _)| *driver == name);
        let companions = companions.map(|(_, companion)| (*companion).to_owned());
        for wish in info.before.iter().cloned().chain(companions) {
            self.visit_softly(&wish, name, begun, order)?;
        }
        order.push(name.to_owned());
        for wish in &info.after {
            self.visit_softly(wish, name, begun, order)?;
        }
        Ok(())
    }

    fn visit_softly(
        &mut self,
        wish: &str,
        wanted_by: &str,
        begun: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        if self.has(wish) {
            return self.visit(wish, Some(wanted_by), begun, order);
        }
        if self.builtin.contains(wish) {
            return Ok(());
        }
        match self.answering(wish)? {
            Some(name) => self.visit(&name, Some(wanted_by), begun, order),
            None => Ok(()),
        }
    }

    /// The module that answers to a name which is none's, such as `crypto_crc32c`.
    fn answering(&mut self, wish: &str) -> Result<Option<String>, ModuleError> {
        if self.answers.is_none() {
            let mut answers = BTreeMap::new();
            let names: Vec<_> = self.files.keys().cloned().collect();
            for name in names {
                for alias in &self.info(&name)?.aliases {
                    if !alias.contains([':', '*']) {
                        answers.entry(plain(alias)).or_insert_with(|| name.clone());
                    }
                }
            }
            self.answers = Some(answers);
        }
        let answers = self.answers.as_ref();
        Ok(answers.and_then(|answers| answers.get(wish).cloned()))
    }

    fn missing(&self, name: &str, wanted_by: Option<&str>) -> ModuleError {
        ModuleError::Missing {
            name: name.to_owned(),
            dir: self.dir.clone(),
            wanted_by: wanted_by.map(str::to_owned),
        }
    }
}

fn walk(
    dir: &Path,
    depth: usize,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ModuleError> {
    let failed = |source| ModuleError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        entries.push(entry.map_err(failed)?);
    }
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // `build` and `source` are links to other trees.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth < MAX_DEPTH {
                walk(&path, depth + 1, files)?;
            }
        } else if let Some(name) = name_of(&path) {
            files.entry(name).or_insert(path);
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| plain(stem))
}
