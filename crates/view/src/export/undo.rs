//! What tasks have made anew, so that it can be removed if the cluster fails one of them: nothing
//! half-written stays of a task whose node has died.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, RenameFlags};
use wiglaf_wire::id::TaskId;
use wiglaf_wire::view::FileId;

use super::table::{Birth, Identity, Inode, birth};
use super::{Asker, Export, LinkId, Told, descriptor};

/// Most names that are remembered of one task. What it makes beyond stays.
const MAX_NAMES_OF_TASK: usize = 1 << 16;

type Name = (FileId, Box<[u8]>);

/// The names that tasks have made.
#[derive(Debug, Default)]
pub(super) struct Undo {
    /// Of whom a link's next question is.
    asking: Option<(LinkId, TaskId)>,
    /// In the order in which they were made.
    tasks: HashMap<TaskId, BTreeMap<u64, Made>>,
    by_name: HashMap<Name, (TaskId, u64)>,
    next: u64,
}

#[derive(Debug)]
struct Made {
    name: Name,
    inode: Inode,
    birth: Birth,
}

impl Undo {
    pub(super) fn asks_next(&mut self, link: LinkId, task: TaskId) {
        self.asking = Some((link, task));
    }

    /// A question has come.
    pub(super) fn take_asking(&mut self, link: LinkId) -> Option<TaskId> {
        let (asking, task) = self.asking.take()?;
        (asking == link).then_some(task)
    }

    fn note(&mut self, task: TaskId, made: Made) -> bool {
        let of_task = self.tasks.entry(task).or_default();
        if of_task.len() >= MAX_NAMES_OF_TASK {
            return false;
        }
        self.next += 1;
        self.by_name.insert(made.name.clone(), (task, self.next));
        of_task.insert(self.next, made);
        true
    }

    fn take(&mut self, name: &Name) -> Option<(TaskId, Made)> {
        let (task, number) = self.by_name.remove(name)?;
        let made = self.tasks.get_mut(&task)?.remove(&number)?;
        Some((task, made))
    }

    fn take_all(&mut self, task: TaskId) -> Vec<Made> {
        let all = self.tasks.remove(&task).unwrap_or_default();
        for made in all.values() {
            self.by_name.remove(&made.name);
        }
        all.into_values().collect()
    }
}

impl Export {
    /// The task has made this name, if its making is to be undone.
    pub(super) fn note_made(&mut self, task: Option<TaskId>, directory: FileId, name: &[u8]) {
        let Some(task) = task else { return };
        self.note_gone(directory, name);
        let Ok(path) = self.table.hold(directory) else {
            return;
        };
        // Somebody may have put another file there since; that one's end is not ours to bring.
        if let Ok(stat) = descriptor::status_in(path.as_fd(), name) {
            let made = Made {
                name: (directory, name.into()),
                inode: Identity::of(&stat).inode,
                birth: birth(&stat),
            };
            if self.undo.note(task, made) {
                self.table.stay(directory);
            }
        }
    }

    /// This name was removed, or is about to mean another file.
    pub(super) fn note_gone(&mut self, directory: FileId, name: &[u8]) {
        if !self.undo.by_name.is_empty() && self.undo.take(&(directory, name.into())).is_some() {
            self.table.leave_alone(directory);
        }
    }

    /// A name has become another. A file that was put in the place of one that was there before
    /// stays: without it there would be neither.
    pub(super) fn note_renamed(
        &mut self,
        from: (FileId, &[u8]),
        to: (FileId, &[u8]),
        has_replaced: bool,
        flags: u32,
    ) {
        if self.undo.by_name.is_empty() {
            return;
        }
        let name = |(directory, name): (FileId, &[u8])| (directory, name.into());
        let moved = self.undo.take(&name(from));
        let replaced = self.undo.take(&name(to));
        for (known, place) in [(&moved, from), (&replaced, to)] {
            if known.is_some() {
                self.table.leave_alone(place.0);
            }
        }
        if RenameFlags::from_bits_retain(flags).contains(RenameFlags::EXCHANGE) {
            self.note_again(replaced, from);
            self.note_again(moved, to);
        } else if !has_replaced || replaced.is_some() {
            self.note_again(moved, to);
        }
    }

    fn note_again(&mut self, known: Option<(TaskId, Made)>, to: (FileId, &[u8])) {
        if let Some((task, mut made)) = known {
            made.name = (to.0, to.1.into());
            if self.undo.note(task, made) {
                self.table.stay(to.0);
            }
        }
    }

    /// The cluster has failed the task, and nothing of it lives any more: removes what it has made
    /// anew, the latest first, so far as it is still the same, and tells it. Directories in which
    /// others have put something stay.
    pub fn undo(&mut self, task: TaskId, out: &mut Vec<(LinkId, Told)>) {
        self.drain();
        for made in self.undo.take_all(task).into_iter().rev() {
            let (directory, name) = (made.name.0, &made.name.1);
            self.remove_made(&made);
            self.table.leave_alone(directory);
            self.name_changed(directory, name, Asker::Nobody);
            self.changed_by(directory, true, Asker::Nobody);
        }
        self.tell_news(out);
    }

    fn remove_made(&mut self, made: &Made) {
        let (directory, name) = (made.name.0, &made.name.1);
        let Ok(path) = self.table.hold(directory) else {
            return;
        };
        let Ok(stat) = descriptor::status_in(path.as_fd(), name) else {
            return;
        };
        if Identity::of(&stat).inode != made.inode || birth(&stat) != made.birth {
            return;
        }
        self.table.hold_all(made.inode);
        let flags = if descriptor::kind(&stat) == FileType::Directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        if rustix::fs::unlinkat(&path, &**name, flags).is_ok() {
            self.table.vacate(made.inode, directory, name);
            self.inode_changed(made.inode, false, Asker::Nobody, None);
        }
    }

    /// The task has ended by itself: what it has made is there to stay.
    pub fn keep_made(&mut self, task: TaskId) {
        for made in self.undo.take_all(task) {
            self.table.leave_alone(made.name.0);
        }
    }
}
