//! What is not so any more: told by the deputy, or because the deputy is gone.

use wiglaf_fuse::Notification;
use wiglaf_wire::view::{Answer, Ask, FileId};

use super::listing::Name;
use super::questions::{NOBODY, Waiting};
use super::{Effect, Session, errno};

impl Session {
    pub(super) fn file_changed(&mut self, node: u64, content: bool) {
        let Some(file) = self.files.get_mut(&node) else {
            return;
        };
        file.attributes = None;
        if content {
            self.content_changed(node);
        } else {
            self.refresh(node);
        }
        self.drop_if_unneeded(node);
    }

    /// What the kernel and we hold of a file's content may be wrong.
    pub(super) fn content_changed(&mut self, node: u64) {
        self.drop_content(node);
        self.retire_held(node);
        let Some(file) = self.files.get_mut(&node) else {
            return;
        };
        file.link = None;
        if let Some(directory) = &mut file.directory {
            directory.changed();
        }
        if file.kernel > 0 {
            file.pages_stale = true;
            self.effects.push(Effect::Refresh { node });
            let notice = Notification::Content { node };
            self.effects.push(Effect::Notice(notice));
        }
    }

    pub(super) fn name_changed(&mut self, parent: u64, name: Vec<u8>) {
        let is_mounted_on = self.is_mounted_on(parent, &name);
        let Some(directory) = self.directory(parent) else {
            return;
        };
        directory.changed();
        directory.set(&name, None);
        // What is mounted on a name is unmounted with it.
        if !is_mounted_on && self.files.get(&parent).is_some_and(|file| file.kernel > 0) {
            let notice = Notification::Entry { parent, name };
            self.effects.push(Effect::Notice(notice));
        }
    }

    /// Events were lost: nothing that was told is sure.
    pub(super) fn everything_changed(&mut self) {
        self.uses.start_over();
        let nodes: Vec<u64> = self.files.keys().copied().collect();
        for node in nodes {
            self.doubt(node);
        }
    }

    /// What nobody watches is not believed past a launch. What has been doubted since it was told
    /// last need not be doubted again: the kernel knows.
    pub(super) fn drop_unwatched(&mut self) {
        let is_blank = |file: &super::File| {
            let directory = file.directory.as_ref();
            file.doubted && file.link.is_none() && directory.is_none_or(|one| one.is_blank())
        };
        let unwatched = |file: &super::File| {
            let is_known = file.attributes.is_some() || file.directory.is_some();
            !file.watched && is_known && !(file.attributes.is_none() && is_blank(file))
        };
        let nodes: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, file)| unwatched(file))
            .map(|(node, _)| *node)
            .collect();
        for node in nodes {
            self.doubt(node);
        }
    }

    /// Forgets what is known of one file and of its names, here and in the kernel. Its content is
    /// kept for the case that the file turns out to be as it was: whoever opens it asks, and what
    /// is open is asked for at once.
    pub(super) fn doubt(&mut self, node: u64) {
        self.drop_pieces(node);
        let Some(file) = self.files.get_mut(&node) else {
            return;
        };
        file.attributes = None;
        file.doubted = true;
        // Until it is told anew: absent names of a directory are believed by this.
        file.watched = false;
        file.link = None;
        let is_open = file.readers > 0 || file.writing > 0;
        let in_kernel = file.kernel > 0;
        let mut names = Vec::new();
        if let Some(directory) = &mut file.directory {
            if in_kernel {
                let told = directory.names().filter(|(_, known)| known.is_some());
                names.extend(told.map(|(name, _)| name.clone()));
            }
            directory.unlearn();
        }
        self.retire_held(node);
        if self
            .files
            .get(&node)
            .is_some_and(|file| file.directory.is_some())
        {
            self.content_changed(node);
        } else {
            self.refresh(node);
            self.drop_if_unneeded(node);
        }
        if is_open {
            let what = Ask::Attributes { file: FileId(node) };
            let waiting = Waiting::Attributes {
                unique: 0,
                file: node,
            };
            self.ask(NOBODY, what, waiting);
        }
        for name in names {
            if !self.is_mounted_on(node, &name) {
                let notice = Notification::Expire { parent: node, name };
                self.effects.push(Effect::Notice(notice));
            }
        }
    }

    /// The link is gone, and with it what the deputy held for us. Whoever waits gets ENOTCONN,
    /// and so does whoever asks before [`Session::resume`].
    pub fn lose(&mut self) {
        self.lost = true;
        self.everything_changed();
        self.unlearn_pins();
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            self.conclude(waiting, Err(errno::NOTCONN));
        }
        self.by_request.clear();
        self.lockers.clear();
        self.readers.clear();
        for file in self.files.values_mut() {
            file.held = None;
            file.readers = 0;
            file.told = 0;
        }
    }

    /// There is a deputy again. What is open stays lost; names lead to files anew.
    pub fn resume(&mut self) {
        self.lost = false;
    }

    /// For drivers that can't send a question.
    pub fn refuse(&mut self, now: u64, id: u64, errno: i32) {
        let result = Err(errno);
        self.answer(now, Answer { id, result });
    }

    /// Whether a name leads to this file, as far as is known.
    pub(super) fn leads_to(&self, parent: u64, name: &[u8], node: u64) -> bool {
        let directory = self
            .files
            .get(&parent)
            .and_then(|file| file.directory.as_ref());
        directory.is_some_and(|directory| directory.name(name) == Some(Name::File(node)))
    }
}
