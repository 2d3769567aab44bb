//! Comparing what is believed with the truth.

use std::collections::HashMap;

use wiglaf_wire::view::{Ask, FileId, Reply as Told};

use super::listing::Name;
use super::questions::{NOBODY, Waiting};
use super::{Effect, Session, errno};

/// Differences that are told in words.
const MAX_DIFFERENCES: usize = 100;

/// The checks under way.
#[derive(Debug, Default)]
pub(super) struct Checks(HashMap<u64, Check>);

#[derive(Debug, Default)]
struct Check {
    waiting: u64,
    compared: u64,
    differences: Vec<String>,
}

impl Session {
    /// Compares everything that is believed until it is taken back with what the deputy says
    /// now. [`Effect::Checked`] with this number follows. What changes while the check runs is
    /// no difference: the change comes before the answer.
    pub fn check(&mut self, now: u64, token: u64) {
        self.now = now;
        let mut files = Vec::new();
        let mut names = Vec::new();
        for (&node, file) in &self.files {
            if !file.watched || file.attributes.is_none() {
                continue;
            }
            files.push(node);
            if let Some(directory) = &file.directory {
                let is_believed = |known: &Option<Name>| match known {
                    Some(Name::File(file)) => self.valid_attributes(*file).is_some(),
                    Some(Name::Nothing) => true,
                    None => false,
                };
                let known = directory.names().filter(|(_, known)| is_believed(known));
                names.extend(known.map(|(name, _)| (node, name.clone())));
            }
        }
        let waiting = (files.len() + names.len()) as u64;
        self.checks.0.insert(
            token,
            Check {
                waiting,
                ..Check::default()
            },
        );
        if waiting == 0 {
            return self.finish_check(token);
        }
        for file in files {
            let what = Ask::Attributes { file: FileId(file) };
            self.ask(NOBODY, what, Waiting::CheckFile { token, file });
        }
        for (parent, name) in names {
            let what = Ask::Lookup {
                parent: FileId(parent),
                name: name.clone(),
            };
            let waiting = Waiting::CheckName {
                token,
                parent,
                name,
            };
            self.ask(NOBODY, what, waiting);
        }
    }

    pub(super) fn checked_file(&mut self, token: u64, node: u64, result: Result<Told, i32>) {
        let believed = self.valid_attributes(node).cloned();
        let difference = match (believed, result) {
            // Taken back meanwhile.
            (None, _) => None,
            // Something was mounted over the way to it. Whether that is known, its names show.
            (_, Err(errno::STALE)) => None,
            (Some(believed), Ok(Told::Attributes(mut now))) => {
                // Reading a file changes it for nobody.
                now.times[0] = believed.times[0];
                (now != believed).then(|| format!("believed {believed:?}, is {now:?}"))
            }
            (Some(_), other) => Some(format!("{other:?}")),
        };
        self.compared(token, node, None, difference);
    }

    pub(super) fn checked_name(
        &mut self,
        token: u64,
        parent: u64,
        name: &[u8],
        result: Result<Told, i32>,
    ) {
        let directory = self
            .files
            .get(&parent)
            .and_then(|file| file.directory.as_ref());
        let believed = directory.and_then(|directory| directory.name(name));
        // A file that was forgotten, or taken back, meanwhile is nothing that is believed.
        let believed = believed.filter(|known| match known {
            Name::File(file) => self.valid_attributes(*file).is_some(),
            Name::Nothing => true,
        });
        let difference = match (believed, result) {
            (None, Ok(Told::Entry(Some(now)))) => {
                // Counted by the deputy like any other.
                self.learn_name(parent, name, now);
                None
            }
            (None, _) | (Some(Name::Nothing), Ok(Told::Entry(None))) => None,
            (_, Err(errno::STALE)) => None,
            (Some(_), Ok(Told::Entry(Some(now)))) => {
                let node = self.learn(now, true);
                let same = self.leads_to(parent, name, node);
                (!same).then(|| "it leads to another file".to_owned())
            }
            (Some(Name::File(_)), Ok(Told::Entry(None))) => Some("it does not exist".to_owned()),
            (Some(_), other) => Some(format!("{other:?}")),
        };
        self.compared(token, parent, Some(name), difference);
    }

    fn compared(&mut self, token: u64, node: u64, name: Option<&[u8]>, difference: Option<String>) {
        let path = difference.as_ref().map(|_| {
            let mut path = self.path(node);
            if let Some(name) = name {
                path.push(b'/');
                path.extend_from_slice(name);
            }
            String::from_utf8_lossy(&path).into_owned()
        });
        let Some(check) = self.checks.0.get_mut(&token) else {
            return;
        };
        check.compared += 1;
        check.waiting -= 1;
        if let (Some(path), Some(difference)) = (path, difference)
            && check.differences.len() < MAX_DIFFERENCES
        {
            check.differences.push(format!("{path}: {difference}"));
        }
        if check.waiting == 0 {
            self.finish_check(token);
        }
    }

    fn finish_check(&mut self, token: u64) {
        if let Some(check) = self.checks.0.remove(&token) {
            self.effects.push(Effect::Checked {
                token,
                compared: check.compared,
                differences: check.differences,
            });
        }
    }
}
