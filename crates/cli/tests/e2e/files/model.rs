//! A file system in memory, that says what every step must do and what must be seen then.

use std::collections::BTreeMap;

use serde_json::{Value, json};

const EPERM: i64 = 1;
const ENOENT: i64 = 2;
const EEXIST: i64 = 17;
const ENOTDIR: i64 = 20;
const EISDIR: i64 = 21;
const EINVAL: i64 = 22;
const ENOTEMPTY: i64 = 39;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Few names, so that steps meet.
const NAMES: [&str; 8] = ["a", "b", "c", "x", "y", "x/a", "x/b", "y/a"];

/// Reproducible chance (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    /// From `WIGLAF_SEED`, or the clock; says which.
    pub(crate) fn new(test: &str) -> Dice {
        let now = std::time::SystemTime::now();
        let fresh = now
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| u64::from(since.subsec_nanos()));
        let seed = std::env::var("WIGLAF_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(fresh);
        println!("{test}: again with WIGLAF_SEED={seed}");
        Dice(seed)
    }

    /// Below `limit`.
    pub(crate) fn roll(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let limit = u64::try_from(limit).expect("small");
        usize::try_from(mixed % limit).expect("small")
    }

    /// Whether it happens, once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.roll(times) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}

/// One thing that a program does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Put(String, String),
    Make(String, String),
    Add(String, String),
    Patch(String, usize, String),
    MappedPatch(String, usize, String),
    Truncate(String, usize),
    Unlink(String),
    MakeDirectory(String),
    RemoveDirectory(String),
    Rename(String, String, u32),
    Link(String, String),
    Symlink(String, String),
    Chmod(String, u32),
}

impl Step {
    /// In the words of `place.py`.
    pub(crate) fn code(&self, top: &str) -> String {
        let at = |name: &str| format!("'{top}/{name}'");
        match self {
            Step::Put(name, text) => format!("put({}, '{text}')", at(name)),
            Step::Make(name, text) => format!("make({}, '{text}')", at(name)),
            Step::Add(name, text) => format!("add({}, '{text}')", at(name)),
            Step::Patch(name, offset, text) => format!("patch({}, {offset}, '{text}')", at(name)),
            Step::MappedPatch(name, offset, text) => {
                format!("mapped_patch({}, {offset}, '{text}')", at(name))
            }
            Step::Truncate(name, size) => format!("os.truncate({}, {size})", at(name)),
            Step::Unlink(name) => format!("os.unlink({})", at(name)),
            Step::MakeDirectory(name) => format!("os.mkdir({}, 0o755)", at(name)),
            Step::RemoveDirectory(name) => format!("os.rmdir({})", at(name)),
            Step::Rename(old, new, flags) => format!("rename({}, {}, {flags})", at(old), at(new)),
            Step::Link(old, new) => format!("os.link({}, {})", at(old), at(new)),
            Step::Symlink(name, text) => format!("os.symlink('{text}', {})", at(name)),
            Step::Chmod(name, mode) => format!("os.chmod({}, {mode})", at(name)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Link(String),
}

#[derive(Clone, Debug)]
struct Inode {
    kind: Kind,
    mode: u32,
}

/// Names, and what they name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    names: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
}

impl Model {
    /// A step that may or may not succeed.
    pub(crate) fn propose(&self, dice: &mut Dice, number: usize) -> Step {
        let name = (*dice.pick(&NAMES)).to_owned();
        let other = (*dice.pick(&NAMES)).to_owned();
        // Text that says which step wrote it; sometimes more than a page.
        let mut text = format!("<{number}>");
        if dice.once_in(6) {
            text = text.repeat(1 + dice.roll(1200));
        }
        match dice.roll(22) {
            0..=3 => Step::Put(name, text),
            4 | 5 => Step::Make(name, text),
            6 | 7 => Step::Add(name, text),
            8 => Step::Patch(name, dice.roll(6000), text),
            9 | 10 => match self.file(&name) {
                Some(content) if content.len() > 8 => {
                    let offset = dice.roll(content.len() - 6);
                    Step::MappedPatch(name, offset, format!("{:06}", number % 1_000_000))
                }
                _ => Step::Make(name, text),
            },
            11 => Step::Truncate(name, dice.roll(9000)),
            12 | 13 => Step::Unlink(name),
            14 => Step::MakeDirectory((*dice.pick(&["x", "y", "a"])).to_owned()),
            15 => Step::RemoveDirectory(name),
            16..=18 => Step::Rename(name, other, *dice.pick(&[0, 0, 0, 1, 2])),
            19 => Step::Link(name, other),
            20 => Step::Symlink(name, format!("nowhere/{number}")),
            _ => Step::Chmod(name, *dice.pick(&[0o644, 0o600, 0o755, 0o440])),
        }
    }

    /// Does it, or says with which errno it fails and changes nothing.
    pub(crate) fn apply(&mut self, step: &Step) -> Result<(), i64> {
        match step {
            Step::Put(name, text) => match self.lookup(name) {
                Ok(inode) => *self.content(inode)? = text.clone().into_bytes(),
                Err(ENOENT) => self.add(name, Kind::File(text.clone().into_bytes()), 0o644)?,
                Err(errno) => return Err(errno),
            },
            Step::Make(name, text) => {
                self.add(name, Kind::File(text.clone().into_bytes()), 0o644)?;
            }
            Step::Add(name, text) => {
                let inode = self.lookup(name)?;
                self.content(inode)?.extend_from_slice(text.as_bytes());
            }
            Step::Patch(name, offset, text) | Step::MappedPatch(name, offset, text) => {
                let inode = self.lookup(name)?;
                let content = self.content(inode)?;
                let end = offset + text.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(text.as_bytes());
            }
            Step::Truncate(name, size) => {
                let inode = self.lookup(name)?;
                self.content(inode)?.resize(*size, 0);
            }
            Step::Unlink(name) => {
                let inode = self.lookup(name)?;
                if self.is_directory(inode) {
                    return Err(EISDIR);
                }
                self.names.remove(name);
            }
            Step::MakeDirectory(name) => self.add(name, Kind::Directory, 0o755)?,
            Step::RemoveDirectory(name) => {
                let inode = self.lookup(name)?;
                if !self.is_directory(inode) {
                    return Err(ENOTDIR);
                }
                if self.has_children(name) {
                    return Err(ENOTEMPTY);
                }
                self.names.remove(name);
            }
            Step::Rename(old, new, flags) => self.rename(old, new, *flags)?,
            Step::Link(old, new) => {
                let inode = self.lookup(old)?;
                self.absent(new)?;
                if self.is_directory(inode) {
                    return Err(EPERM);
                }
                self.names.insert(new.clone(), inode);
            }
            Step::Symlink(name, text) => self.add(name, Kind::Link(text.clone()), 0o777)?,
            Step::Chmod(name, mode) => {
                let inode = self.lookup(name)?;
                if matches!(self.inodes[inode].kind, Kind::Link(_)) {
                    return Err(ENOENT);
                }
                self.inodes[inode].mode = *mode;
            }
        }
        Ok(())
    }

    fn rename(&mut self, old: &str, new: &str, flags: u32) -> Result<(), i64> {
        const NOREPLACE: u32 = 1;
        const EXCHANGE: u32 = 2;
        self.parent(old)?;
        self.parent(new)?;
        let source = *self.names.get(old).ok_or(ENOENT)?;
        let target = self.names.get(new).copied();
        if flags == NOREPLACE && target.is_some() {
            return Err(EEXIST);
        }
        if flags == EXCHANGE && target.is_none() {
            return Err(ENOENT);
        }
        if is_below(new, old) {
            return Err(EINVAL);
        }
        if is_below(old, new) {
            return Err(if flags == EXCHANGE { EINVAL } else { ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        if let Some(target) = target
            && flags != EXCHANGE
        {
            match (self.is_directory(source), self.is_directory(target)) {
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
                (true, true) if self.has_children(new) => return Err(ENOTEMPTY),
                _ => {}
            }
        }
        let moved = self.take(old);
        let replaced = self.take(new);
        self.put_back(moved, old, new);
        if flags == EXCHANGE {
            self.put_back(replaced, new, old);
        }
        Ok(())
    }

    /// Takes a name and all below it away.
    fn take(&mut self, name: &str) -> Vec<(String, usize)> {
        let all = std::mem::take(&mut self.names);
        let (taken, rest) = all
            .into_iter()
            .partition(|(each, _)| each == name || is_below(each, name));
        self.names = rest;
        BTreeMap::into_iter(taken).collect()
    }

    fn put_back(&mut self, taken: Vec<(String, usize)>, old: &str, new: &str) {
        for (name, inode) in taken {
            self.names
                .insert(format!("{new}{}", &name[old.len()..]), inode);
        }
    }

    fn lookup(&self, name: &str) -> Result<usize, i64> {
        self.parent(name)?;
        self.names.get(name).copied().ok_or(ENOENT)
    }

    /// Whether a name can be made there at all.
    fn parent(&self, name: &str) -> Result<(), i64> {
        let Some((parent, _)) = name.rsplit_once('/') else {
            return Ok(());
        };
        let inode = *self.names.get(parent).ok_or(ENOENT)?;
        match self.inodes[inode].kind {
            Kind::Directory => Ok(()),
            Kind::File(_) => Err(ENOTDIR),
            Kind::Link(_) => Err(ENOENT),
        }
    }

    fn absent(&self, name: &str) -> Result<(), i64> {
        match self.lookup(name) {
            Ok(_) => Err(EEXIST),
            Err(ENOENT) => self.parent(name),
            Err(errno) => Err(errno),
        }
    }

    fn add(&mut self, name: &str, kind: Kind, mode: u32) -> Result<(), i64> {
        self.absent(name)?;
        self.names.insert(name.to_owned(), self.inodes.len());
        self.inodes.push(Inode { kind, mode });
        Ok(())
    }

    fn content(&mut self, inode: usize) -> Result<&mut Vec<u8>, i64> {
        match &mut self.inodes[inode].kind {
            Kind::File(content) => Ok(content),
            Kind::Directory => Err(EISDIR),
            // Its text leads nowhere.
            Kind::Link(_) => Err(ENOENT),
        }
    }

    fn is_directory(&self, inode: usize) -> bool {
        self.inodes[inode].kind == Kind::Directory
    }

    fn has_children(&self, name: &str) -> bool {
        self.names.keys().any(|each| is_below(each, name))
    }

    fn links(&self, inode: usize) -> usize {
        self.names.values().filter(|each| **each == inode).count()
    }

    /// The number that a regular file keeps for ever.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        let inode = *self.names.get(name)?;
        matches!(self.inodes[inode].kind, Kind::File(_)).then_some(inode)
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        Some(self.numbered(self.number(name)?))
    }

    fn numbered(&self, inode: usize) -> &[u8] {
        match &self.inodes[inode].kind {
            Kind::File(content) => content,
            _ => &[],
        }
    }

    /// Writes through an open file, whatever has become of its name.
    pub(crate) fn write_held(&mut self, inode: usize, offset: usize, text: &str) {
        let Kind::File(content) = &mut self.inodes[inode].kind else {
            return;
        };
        let end = offset + text.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(text.as_bytes());
    }

    /// What an open file shows: links and content.
    pub(crate) fn held(&self, inode: usize) -> Value {
        json!([self.links(inode), latin(self.numbered(inode))])
    }

    /// A name of a regular file, if there is one.
    pub(crate) fn some_file(&self, dice: &mut Dice) -> Option<String> {
        let files: Vec<_> = self
            .names
            .keys()
            .filter(|name| self.number(name).is_some())
            .collect();
        (!files.is_empty()).then(|| (*dice.pick(&files)).clone())
    }

    /// What `tree` of place.py must say.
    pub(crate) fn tree(&self) -> Value {
        // In the order of a list's first element there.
        let all = self.names.iter().map(|(name, inode)| {
            let about = &self.inodes[*inode];
            match &about.kind {
                Kind::Directory => json!([name, about.mode, S_IFDIR, 1, 0, ""]),
                Kind::File(content) => json!([
                    name,
                    about.mode,
                    S_IFREG,
                    self.links(*inode),
                    content.len(),
                    latin(content)
                ]),
                Kind::Link(text) => json!([name, about.mode, S_IFLNK, 1, text.len(), text]),
            }
        });
        Value::Array(all.collect())
    }

    /// What [`LISTING`] must print.
    pub(crate) fn listing(&self) -> String {
        let mut said = String::new();
        for (name, inode) in &self.names {
            let about = &self.inodes[*inode];
            let mode = about.mode;
            match &about.kind {
                Kind::Directory => said += &format!("{name} {mode:o} d\n"),
                Kind::File(content) => {
                    said += &format!(
                        "{name} {mode:o} f {} {}\n",
                        self.links(*inode),
                        content.len()
                    );
                }
                Kind::Link(text) => said += &format!("{name} {mode:o} l {text}\n"),
            }
        }
        for name in PROBED {
            if self.names.contains_key(name) {
                said += name;
                said.push('\n');
            }
        }
        for inode in self.names.values() {
            if let Kind::File(content) = &self.inodes[*inode].kind {
                said += &String::from_utf8_lossy(content);
                said.push('\n');
            }
        }
        said
    }
}

/// Names that a listing also asks for one by one.
const PROBED: [&str; 9] = ["a", "b", "c", "x", "y", "x/a", "x/b", "y/a", "y/b"];

/// A shell's way to show a whole directory, its own.
pub(crate) const LISTING: &str = "find . -mindepth 1 \\( -type d -printf '%P %m d\\n' \\) \
    -o \\( -type l -printf '%P %m l %l\\n' \\) -o -printf '%P %m f %n %s\\n' | LC_ALL=C sort; \
    for f in a b c x y x/a x/b y/a y/b; do if [ -e $f ] || [ -L $f ]; then echo $f; fi; done; \
    find . -type f | LC_ALL=C sort | while read f; do cat $f; echo; done";

fn is_below(name: &str, above: &str) -> bool {
    name.strip_prefix(above)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// As Python's latin-1: each byte is a character.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}
