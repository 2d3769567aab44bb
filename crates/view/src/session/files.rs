//! What is known of each file, and for how long.

use std::sync::Arc;

use wiglaf_fuse::{Reply, SetAttributes as Wanted, Valid};
use wiglaf_wire::view::{Ask, Attributes, FileId, HandleId, Reply as Told, SetAttributes, Use};

use super::given::Pieces;
use super::listing::Directory;
use super::questions::{Waiting, unexpected};
use super::{Effect, OWN_FIRST, Session, UNWATCHED_MS, convert};

const FORMAT: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
/// Deepest path that is put together for a message.
const MAX_DEPTH: usize = 256;

/// One file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) attributes: Option<Known>,
    /// What the content had when it was last known to be good: modification time, change time and
    /// size.
    version: Option<Version>,
    /// Whether the content has to be compared by that: nobody has told since that it is good.
    pub(super) doubted: bool,
    /// How often the kernel was told of it.
    pub(super) kernel: u64,
    /// How often the deputy told of it, which is given back when it is forgotten.
    pub(super) told: u64,
    /// Where it was seen last.
    pub(super) name: Option<(u64, Vec<u8>)>,
    /// The kernel may hold content that is not so any more.
    pub(super) pages_stale: bool,
    /// All of it, if it is small.
    pub(super) content: Option<Arc<Vec<u8>>>,
    /// A symbolic link's text.
    pub(super) link: Option<Vec<u8>>,
    /// A descriptor for reading that the deputy holds for us.
    pub(super) held: Option<HandleId>,
    /// Open files that read through `held`.
    pub(super) readers: u32,
    /// Writes that are under way.
    pub(super) writing: u32,
    /// Whether what is told of it is taken back.
    pub(super) watched: bool,
    pub(super) directory: Option<Box<Directory>>,
    /// Parts that were given, of a file that is not small.
    pub(super) pieces: Option<Box<Pieces>>,
    /// The deputy knows that somebody opens it, or reads it if it is a link or directory.
    pub(super) was_opened: bool,
    idle_stamp: u64,
}

pub(super) type Version = ((i64, u32), (i64, u32), u64);

/// Attributes, and when they stop being good if nobody watches them.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) attributes: Attributes,
    pub(super) until: Option<u64>,
}

impl File {
    pub(super) fn root() -> File {
        File {
            kernel: 1,
            ..File::default()
        }
    }
}

fn version(attributes: &Attributes) -> Version {
    let [_, modified, changed] = attributes.times;
    (modified, changed, attributes.size)
}

impl Session {
    /// What is known and still good.
    pub(super) fn valid_attributes(&self, node: u64) -> Option<&Attributes> {
        let known = self.files.get(&node)?.attributes.as_ref()?;
        let good = known.until.is_none_or(|until| self.now < until);
        good.then_some(&known.attributes)
    }

    /// What the kernel is shown of a file. All of a view is one file system to the node, so two
    /// files of different ones on the head may have the same number: where that could be taken
    /// for one file with two names, or for a loop of directories, the device is mixed in.
    pub(super) fn shown(&self, attributes: &Attributes) -> wiglaf_fuse::Attributes {
        let mut shown = convert::attributes(attributes);
        let is_directory = attributes.mode & FORMAT == DIRECTORY;
        let may_be_confused = is_directory || attributes.links > 1;
        if may_be_confused
            && self
                .root_device
                .is_some_and(|root| root != attributes.device)
        {
            shown.ino ^= convert::spread(attributes.device);
        }
        shown
    }

    /// How long the kernel may believe what it is told of this file.
    pub(super) fn validity(watched: bool) -> Valid {
        if watched {
            Valid::Always
        } else {
            Valid::For(std::time::Duration::from_millis(UNWATCHED_MS))
        }
    }

    /// Takes attributes in. `telling`: the deputy counts this one.
    pub(super) fn learn(&mut self, attributes: Attributes, telling: bool) -> u64 {
        let node = attributes.file.0;
        if node == FileId::ROOT.0 {
            self.root_device = Some(attributes.device);
        }
        let until = (!attributes.watched).then_some(self.now + UNWATCHED_MS);
        let is_new = !self.files.contains_key(&node);
        let file = self.files.entry(node).or_default();
        if telling {
            file.told += 1;
        }
        let now = version(&attributes);
        // While it is watched the content is taken back by name, and attributes may be ahead of
        // that or behind: our own writes change them too.
        let in_doubt = std::mem::take(&mut file.doubted) || !attributes.watched;
        let changed = in_doubt && file.version.is_some_and(|before| before != now);
        file.version = Some(now);
        file.watched = attributes.watched;
        if attributes.mode & FORMAT == DIRECTORY && file.directory.is_none() {
            file.directory = Some(Box::default());
        }
        file.attributes = Some(Known { attributes, until });
        if changed {
            self.content_changed(node);
        }
        if is_new {
            // Others make room, not this one: it has not been told yet.
            self.evict();
            self.idle(node);
        }
        node
    }

    pub(super) fn unlearn_attributes(&mut self, node: u64) {
        if let Some(file) = self.files.get_mut(&node) {
            file.attributes = None;
        }
    }

    pub(super) fn drop_content(&mut self, node: u64) {
        self.drop_pieces(node);
        if let Some(file) = self.files.get_mut(&node)
            && let Some(content) = file.content.take()
        {
            self.content_bytes -= content.len() as u64;
        }
    }

    /// Keeps a small file whole.
    pub(super) fn keep_content(&mut self, node: u64, content: Vec<u8>) {
        self.drop_content(node);
        if self.content_bytes + content.len() as u64 > self.max_content_bytes {
            self.drop_contents();
        }
        if let Some(file) = self.files.get_mut(&node) {
            self.content_bytes += content.len() as u64;
            file.content = Some(Arc::new(content));
        }
    }

    /// Everything that no open file needs: the kernel has most of it in its own cache.
    fn drop_contents(&mut self) {
        let mut kept = 0;
        for file in self.files.values_mut() {
            match &file.content {
                Some(content) if file.readers > 0 => kept += content.len() as u64,
                _ => file.content = None,
            }
        }
        self.content_bytes = kept;
    }

    /// The node's kernel was told of a file.
    pub(super) fn count(&mut self, node: u64) {
        if let Some(file) = self.files.get_mut(&node) {
            file.kernel += 1;
        }
    }

    pub(super) fn forget(&mut self, node: u64, count: u64) {
        if node >= OWN_FIRST || node == FileId::ROOT.0 {
            return;
        }
        let Some(file) = self.files.get_mut(&node) else {
            return;
        };
        file.kernel = file.kernel.saturating_sub(count);
        if file.kernel == 0 {
            // The kernel has dropped the content with the file.
            file.pages_stale = false;
            self.drop_pieces(node);
            self.idle(node);
            self.evict();
            self.drop_if_unneeded(node);
        }
    }

    /// The file may be forgotten, after those that have been idle for longer.
    fn idle(&mut self, node: u64) {
        self.idle_stamp += 1;
        if let Some(file) = self.files.get_mut(&node) {
            file.idle_stamp = self.idle_stamp;
            self.idle.push_back((node, self.idle_stamp));
        }
    }

    fn evict(&mut self) {
        while self.files.len() > self.max_files
            && let Some((node, stamp)) = self.idle.pop_front()
        {
            let unneeded = |file: &File| {
                file.idle_stamp == stamp
                    && file.kernel == 0
                    && file.readers == 0
                    && file.writing == 0
            };
            if self.files.get(&node).is_some_and(unneeded) && node != FileId::ROOT.0 {
                self.drop_file(node);
            }
        }
        // What is used again and idle again stands in the queue more than once.
        if self.idle.len() > 4 * self.max_files.max(self.files.len()) {
            let files = &self.files;
            self.idle
                .retain(|(node, stamp)| files.get(node).is_some_and(|f| f.idle_stamp == *stamp));
        }
    }

    /// The head keeps a removed file's blocks as long as we keep its number: what nobody uses
    /// and nobody knows anything of is given back.
    pub(super) fn drop_if_unneeded(&mut self, node: u64) {
        let unneeded = |file: &File| {
            file.attributes.is_none() && file.kernel == 0 && file.readers == 0 && file.writing == 0
        };
        let has_names = |file: &File| file.directory.is_some();
        if node != FileId::ROOT.0
            && self
                .files
                .get(&node)
                .is_some_and(|file| unneeded(file) && !has_names(file))
        {
            self.drop_file(node);
        }
    }

    fn drop_file(&mut self, node: u64) {
        self.drop_content(node);
        let Some(file) = self.files.remove(&node) else {
            return;
        };
        if let Some(handle) = file.held {
            self.say(Ask::Close { handle });
        }
        if file.told > 0 {
            self.say(Ask::Forget {
                file: FileId(node),
                count: file.told,
            });
        }
    }

    /// The path on the head, as far as it is known.
    pub(super) fn path(&self, node: u64) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = node;
        while at != FileId::ROOT.0 && parts.len() < MAX_DEPTH {
            match self.files.get(&at).and_then(|file| file.name.as_ref()) {
                Some((parent, name)) => {
                    parts.push(name.as_slice());
                    at = *parent;
                }
                None => {
                    parts.push(b"(unnamed file)");
                    break;
                }
            }
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        path
    }

    pub(super) fn get_attributes(&mut self, unique: u64, who: (u32, u32), node: u64) {
        if let Some(attributes) = self.valid_attributes(node) {
            let valid = Self::validity(attributes.watched);
            let attributes = self.shown(attributes);
            return self.reply(unique, Reply::Attributes { attributes, valid });
        }
        let file = FileId(node);
        let waiting = Waiting::Attributes { unique, file: node };
        self.ask(who, Ask::Attributes { file }, waiting);
    }

    pub(super) fn set_attributes(
        &mut self,
        unique: u64,
        who: (u32, u32),
        node: u64,
        wanted: &Wanted,
    ) {
        let handle = wanted.handle.and_then(|handle| self.deputys_handle(handle));
        let set = SetAttributes {
            mode: wanted.mode,
            uid: wanted.uid,
            gid: wanted.gid,
            size: wanted.size,
            accessed: wanted.accessed.map(convert::set_time),
            modified: wanted.modified.map(convert::set_time),
            drop_privileges: wanted.kill_privileges,
        };
        if wanted.size.is_some() {
            self.drop_content(node);
        }
        self.unlearn_attributes(node);
        let what = Ask::SetAttributes {
            file: FileId(node),
            handle,
            set,
        };
        self.ask(who, what, Waiting::SetAttributes { unique, file: node });
    }

    /// Attributes that the kernel waits for.
    pub(super) fn told_attributes(&mut self, unique: u64, node: u64, result: Result<Told, i32>) {
        match result {
            Ok(Told::Attributes(attributes)) if attributes.file.0 == node => {
                let valid = self.learn_while_writing(node, attributes.clone());
                let attributes = self.shown(&attributes);
                self.reply(unique, Reply::Attributes { attributes, valid });
            }
            other => {
                // The root must stay reachable: the node's own directories are in it.
                if node == FileId::ROOT.0 {
                    let attributes = convert::own_directory(node);
                    let valid = Valid::No;
                    return self.reply(unique, Reply::Attributes { attributes, valid });
                }
                self.fail(unique, unexpected(other));
            }
        }
    }

    /// Attributes that were asked for before a write that is still under way are old news by
    /// the time the kernel hears of them.
    pub(super) fn learn_while_writing(&mut self, node: u64, attributes: Attributes) -> Valid {
        let writing = self.files.get(&node).is_some_and(|file| file.writing > 0);
        let valid = Self::validity(attributes.watched);
        self.learn(attributes, false);
        if writing {
            self.unlearn_attributes(node);
            return Valid::No;
        }
        valid
    }

    /// Something of the file was changed from here, and the answer has its attributes.
    pub(super) fn changed_by_us(&mut self, unique: u64, node: u64, result: Result<Told, i32>) {
        match result {
            Ok(Told::Attributes(attributes)) if attributes.file.0 == node => {
                self.learn_while_writing(node, attributes);
                self.refresh(node);
                self.reply(unique, Reply::Empty);
            }
            other => self.fail(unique, unexpected(other)),
        }
    }

    pub(super) fn read_link(&mut self, unique: u64, who: (u32, u32), node: u64) {
        let good = self.valid_attributes(node).is_some();
        self.note_once(node, Use::Link(FileId(node)));
        if good && let Some(text) = self.files.get(&node).and_then(|file| file.link.clone()) {
            return self.reply(unique, Reply::Data(text));
        }
        let file = FileId(node);
        let waiting = Waiting::ReadLink { unique, file: node };
        self.ask(who, Ask::ReadLink { file }, waiting);
    }

    pub(super) fn told_link(&mut self, unique: u64, node: u64, result: Result<Told, i32>) {
        match result {
            Ok(Told::Data(text)) => {
                if let Some(file) = self.files.get_mut(&node) {
                    file.link = Some(text.0.clone());
                }
                self.reply(unique, Reply::Data(text.0));
            }
            other => self.fail(unique, unexpected(other)),
        }
    }

    /// The kernel's attributes of this file are not so any more.
    pub(super) fn refresh(&mut self, node: u64) {
        if self.files.get(&node).is_some_and(|file| file.kernel > 0) {
            self.effects.push(Effect::Refresh { node });
        }
    }
}
