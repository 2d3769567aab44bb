//! The head's end of the view, inside a deputy: questions in, answers out, with exactly the
//! rights that the calling process has for files, and to every node the news of what it was told
//! and is so no more.
//!
//! Files are named by numbers of a table of `O_PATH` descriptors, never by paths, so that a
//! file which is renamed or removed on the head stays the same file for whoever uses it.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use rustix::io::Errno;
use wiglaf_linux::creds::CredsError;
use wiglaf_linux::signal::{Disposition, set_disposition};
use wiglaf_wire::view::{
    Answer, Ask, Change, FileId, Gift, HandleId, MAX_CHANGES, Question, Reply,
};

use crate::watch::Watch;

mod attributes;
mod belief;
mod create;
mod data;
mod descriptor;
mod find;
mod give;
mod giving;
mod guards;
mod handles;
mod heard;
mod hidden;
mod learned;
mod list;
mod locks;
mod maker;
mod mounts;
mod names;
mod opened;
mod pseudo;
mod reach;
mod table;
mod undo;
mod waiting;
mod writers;
mod xattrs;

pub use table::MAX_FILES_IN_TABLE;

use belief::Belief;
use giving::Giving;
use guards::Guards;
use handles::Handle;
use hidden::Hidden;
use learned::Learned;
use list::Listings;
use locks::Locks;
use maker::Maker;
use mounts::Crossings;
use opened::Opened;
use table::Table;
use undo::Undo;
use waiting::Waiting;

/// Why an export can't start.
#[derive(thiserror::Error, Debug)]
pub enum ExportError {
    /// The root can't be opened.
    #[error("can't open / for the view: {0}")]
    Root(Errno),
    /// There is no randomness.
    #[error("can't draw numbers for the view: {0}")]
    Numbers(Errno),
    /// The signals of a full file and of a probe could end the process.
    #[error("can't ignore signal {signal} in the view: {errno}")]
    Signal {
        /// Which.
        signal: i32,
        /// What went wrong.
        errno: Errno,
    },
    /// The rights of this process are not known.
    #[error("can't tell the view's rights: {0}")]
    Rights(#[source] CredsError),
}

/// A deputy's number of a link to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What goes to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// An answer to one of its questions.
    Answer(Answer),
    /// What is not as it was told; never more than [`MAX_CHANGES`], never none.
    Changes(Vec<Change>),
    /// What it has not asked for yet; never none.
    Gifts(Vec<Gift>),
}

/// One deputy's end of all views that show files with its rights.
pub struct Export {
    table: Table,
    links: BTreeMap<LinkId, Link>,
    waiting: Waiting,
    /// A lock was given up, so one that waits may have its turn.
    released: bool,
    /// Changes that no caller has collected yet.
    news: Vec<(LinkId, Change)>,
    /// Since when there is some for which no caller is near.
    untold_since: Option<Instant>,
    readers: Opened,
    guards: Guards,
    listings: Listings,
    hidden: Hidden,
    crossings: Crossings,
    learned: Learned,
    maker: Maker,
    undo: Undo,
    watch: Option<Watch>,
    /// Questions had this process make events of its own, which nobody has taken yet.
    has_acted: bool,
}

/// What one node has.
#[derive(Default)]
struct Link {
    handles: HashMap<HandleId, Handle>,
    /// The files that are open to be read alone, each by its first handle.
    readers: HashMap<FileId, HandleId>,
    locks: Locks,
    giving: Giving,
}

/// What a question leads to: an answer now, later, or never.
enum Outcome {
    Reply(Reply),
    Later,
    Silence,
}

/// Whether the link that changes a file learns it from the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// The answer has the new attributes, and the node made the new content itself.
    KnowsAll(LinkId),
    /// The node knows the change itself; its attributes of the file are not right any more.
    KnowsContent(LinkId),
    /// It is to be told as everybody else.
    Nobody,
}

impl Export {
    /// An export of the whole tree except the directories `hidden`, which seem not to exist.
    ///
    /// The process ignores SIGXFSZ and SIGIO from now on: a write beyond the limit is an error
    /// for the node, and nobody's opening of a file that is just being probed ends the deputy.
    pub fn new(hidden: Vec<PathBuf>, watch: Option<Watch>) -> Result<Export, ExportError> {
        for signal in [
            rustix::process::Signal::XFSZ.as_raw(),
            rustix::process::Signal::IO.as_raw(),
        ] {
            set_disposition(signal, Disposition::Ignore)
                .map_err(|errno| ExportError::Signal { signal, errno })?;
        }
        let mut watch = watch;
        Ok(Export {
            table: Table::new(watch.as_mut())?,
            links: BTreeMap::new(),
            waiting: Waiting::default(),
            released: false,
            news: Vec::new(),
            untold_since: None,
            readers: Opened::default(),
            guards: Guards::default(),
            listings: Listings::default(),
            hidden: Hidden::new(hidden),
            crossings: Crossings::default(),
            learned: Learned::default(),
            maker: Maker::new().map_err(ExportError::Rights)?,
            undo: Undo::default(),
            watch,
            has_acted: false,
        })
    }

    /// Answers one question. What an answer makes known to be changed is told before it.
    pub fn question(&mut self, link: LinkId, question: Question, out: &mut Vec<(LinkId, Told)>) {
        self.links.entry(link).or_default();
        // What has no answer lets nobody believe anything (V1, V3). A lock that is granted by it
        // drains for itself.
        if question.what.has_answer() {
            self.drain();
        }
        self.has_acted |= heard::makes_events(&question.what);
        let id = question.id;
        let result = match self.answer(link, question) {
            Ok(Outcome::Reply(reply)) => Some(Ok(reply)),
            Ok(Outcome::Later | Outcome::Silence) => None,
            Err(errno) => Some(Err(errno.raw_os_error())),
        };
        self.tell_news(out);
        if let Some(result) = result {
            out.push((link, Told::Answer(Answer { id, result })));
        }
        if std::mem::take(&mut self.released) {
            self.try_waiting(None, out);
        }
    }

    /// Tells what has happened on the head since the last time.
    pub fn changes(&mut self, out: &mut Vec<(LinkId, Told)>) {
        self.drain();
        self.tell_news(out);
    }

    /// Readable when [`changes`](Export::changes) has something to tell.
    #[must_use]
    pub fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::fd)
    }

    /// This process has written to a file otherwise than by a question, as a task's output: the
    /// watch leaves out what its own process does. It is told by the next call that tells.
    pub fn wrote(&mut self, file: BorrowedFd<'_>) {
        if let Ok(stat) = descriptor::status(file) {
            let inode = table::Identity::of(&stat).inode;
            self.inode_changed(inode, true, Asker::Nobody, None);
        }
    }

    /// Tries the locks that have waited long enough, and tells what could not be told at once.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<(LinkId, Told)>) {
        self.tell_news(out);
        self.try_waiting(Some(now), out);
    }

    /// When [`tick`](Export::tick) is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let (news, locks) = (self.untold_since, self.waiting.deadline());
        news.min(locks).or(news).or(locks)
    }

    /// A link is gone, and with it all that it knew, had open and had locked. Locks that waited
    /// for it are granted by the next [`tick`](Export::tick), which is due at once.
    pub fn close(&mut self, link: LinkId) {
        self.waiting.close(link);
        let Some(gone) = self.links.remove(&link) else {
            return;
        };
        for handle in gone.handles.into_values() {
            self.end_handle(link, handle);
        }
        for file in gone.locks.files_written() {
            self.end_writing(file, None);
        }
        self.news.retain(|(to, _)| *to != link);
        self.listings.close(link);
        for file in self.table.close(link) {
            self.readers.drop(file);
        }
        self.waiting.hurry();
        self.untold_since = (!self.news.is_empty()).then(Instant::now);
    }

    /// How many files the table names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Never: the root stays.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    fn answer(&mut self, link: LinkId, question: Question) -> Result<Outcome, Errno> {
        let Question { id, uid, gid, what } = question;
        let who = maker::Owner { uid, gid };
        let task = self.undo.take_asking(link);
        let reply = match what {
            Ask::Barrier => Reply::Done,
            Ask::Lookup { parent, name } => self.look_up(link, parent, &name)?,
            Ask::Attributes { file } => self.attributes(link, file)?,
            Ask::SetAttributes { file, handle, set } => {
                self.set_attributes(link, file, handle, &set)?
            }
            Ask::ReadLink { file } => self.read_link(link, file)?,
            Ask::Make {
                parent,
                name,
                what,
                mode,
                umask,
            } => {
                let reply = self.make(link, who, (parent, &name), &what, mode, umask)?;
                self.note_made(task, parent, &name);
                reply
            }
            Ask::Create {
                parent,
                name,
                mode,
                umask,
                flags,
                handle,
            } => {
                let new = (parent, &*name);
                self.create(link, (who, task), new, (mode, umask), flags, handle)?
            }
            Ask::Temporary {
                parent,
                mode,
                umask,
                flags,
                handle,
            } => self.temporary(link, who, parent, (mode, umask), flags, handle)?,
            Ask::Link { file, parent, name } => {
                let reply = self.link(link, file, parent, &name)?;
                self.note_made(task, parent, &name);
                reply
            }
            Ask::Remove {
                parent,
                name,
                directory,
            } => self.remove(link, parent, &name, directory)?,
            Ask::Rename {
                from_parent,
                from,
                to_parent,
                to,
                flags,
            } => self.rename(link, (from_parent, &from), (to_parent, &to), flags)?,
            Ask::Open {
                file,
                flags,
                handle,
                content,
            } => self.open(link, who, file, flags, handle, content)?,
            Ask::Close { handle } => {
                self.close_handle(link, handle);
                return Ok(Outcome::Silence);
            }
            Ask::Read {
                file,
                handle,
                offset,
                length,
            } => self.read(link, file, handle, offset, length)?,
            Ask::Write {
                handle,
                offset,
                data,
                drop_privileges,
            } => self.write(link, handle, offset, &data, drop_privileges)?,
            Ask::Sync {
                file,
                handle,
                data_only,
            } => self.sync(link, file, handle, data_only)?,
            Ask::Allocate {
                handle,
                offset,
                length,
                mode,
            } => self.allocate(link, handle, (offset, length), mode)?,
            Ask::Seek {
                handle,
                offset,
                whence,
            } => self.seek(link, handle, offset, whence)?,
            Ask::Copy {
                from,
                from_offset,
                to,
                to_offset,
                length,
            } => self.copy(link, (from, from_offset), (to, to_offset), length)?,
            Ask::List {
                directory,
                offset,
                most,
                attributes,
            } => self.list(link, directory, (offset, most), attributes)?,
            Ask::Xattr { file, name } => self.xattr(link, file, &name)?,
            Ask::ListXattrs { file } => self.list_xattrs(link, file)?,
            Ask::SetXattr {
                file,
                name,
                value,
                flags,
                drop_set_gid,
            } => self.set_xattr(link, file, (&name, &value), flags, drop_set_gid)?,
            Ask::RemoveXattr { file, name } => self.remove_xattr(link, file, &name)?,
            Ask::Space { file } => self.space(link, file)?,
            Ask::Lock {
                file,
                handle,
                owner,
                style,
                lock,
                wait,
            } => {
                let wanted = locks::Wanted {
                    file,
                    handle,
                    owner,
                    style,
                    lock,
                };
                return self.lock_or_wait(link, id, wanted, wait);
            }
            Ask::TestLock {
                file,
                handle,
                owner,
                lock,
            } => self.test_lock(link, file, handle, owner, lock)?,
            Ask::Unlock { file, owner } => {
                self.unlock(link, file, owner);
                return Ok(Outcome::Silence);
            }
            Ask::Interrupt { id } => {
                self.waiting.interrupt(link, id);
                // The answer to the interrupted question goes out as that of a granted lock.
                self.released = true;
                return Ok(Outcome::Silence);
            }
            Ask::Forget { file, count } => {
                self.forget(link, file, count);
                return Ok(Outcome::Silence);
            }
            Ask::For { task } => {
                self.undo.asks_next(link, task);
                return Ok(Outcome::Silence);
            }
            Ask::Expect(program) => {
                self.expect(link, program);
                return Ok(Outcome::Silence);
            }
            Ask::Used { program, uses } => {
                self.used(link, program, uses);
                return Ok(Outcome::Silence);
            }
            Ask::Took { weight, settled } => {
                self.took(link, weight, settled);
                return Ok(Outcome::Silence);
            }
            // Whoever carries the answers has taken them.
            Ask::Keeps(_) | Ask::Lost(_) => return Ok(Outcome::Silence),
        };
        Ok(Outcome::Reply(reply))
    }

    /// The descriptor of a file that this link was told of.
    fn path(&mut self, link: LinkId, file: FileId) -> Result<Rc<OwnedFd>, Errno> {
        self.table.path(link, file)
    }

    fn forget(&mut self, link: LinkId, file: FileId, count: u64) {
        if self.table.forget(link, file, count) {
            self.readers.drop(file);
            self.listings.drop(link, file);
        }
    }

    /// A file changed, which a bind mount may show under several numbers: only the one that the
    /// asker named is the one that it knows about.
    fn inode_changed(
        &mut self,
        inode: table::Inode,
        content: bool,
        asker: Asker,
        named: Option<FileId>,
    ) {
        for file in self.table.of_inode(inode) {
            let asker = if named.is_none_or(|named| named == file) {
                asker
            } else {
                Asker::Nobody
            };
            self.file_changed(file, content, asker);
        }
    }

    /// A file of the table changed by an operation on this number of it.
    fn changed_by(&mut self, file: FileId, content: bool, asker: Asker) {
        match self.table.inode(file) {
            Some(inode) => self.inode_changed(inode, content, asker, Some(file)),
            None => self.file_changed(file, content, asker),
        }
    }

    fn file_changed(&mut self, file: FileId, content: bool, asker: Asker) {
        // Rights may have changed, and the next reader is to have the rights of then.
        self.readers.drop(file);
        for (link, telling) in self.table.tellings(file) {
            let content = match asker {
                Asker::KnowsAll(asker) if asker == *link => continue,
                Asker::KnowsContent(asker) if asker == *link => false,
                _ => content,
            };
            if telling.belief.break_file(content) {
                self.news.push((*link, Change::File { file, content }));
            }
        }
    }

    /// A name of a directory means another file now, or none.
    fn name_changed(&mut self, directory: FileId, name: &[u8], asker: Asker) {
        let Some(inode) = self.table.inode(directory) else {
            return;
        };
        for alias in self.table.of_inode(inode) {
            let asker = if alias == directory {
                asker
            } else {
                Asker::Nobody
            };
            self.name_of_file_changed(alias, name, asker);
        }
    }

    fn name_of_file_changed(&mut self, directory: FileId, name: &[u8], asker: Asker) {
        for (link, telling) in self.table.tellings(directory) {
            if let Asker::KnowsAll(asker) | Asker::KnowsContent(asker) = asker
                && asker == *link
            {
                telling.belief.tell_name(name);
                continue;
            }
            if telling.belief.break_name(name) {
                let name = name.to_vec();
                self.news.push((*link, Change::Name { directory, name }));
            }
        }
    }

    /// What this link believes of a file.
    fn belief(&mut self, link: LinkId, file: FileId) -> Option<&mut Belief> {
        self.table.belief(link, file)
    }

    fn tell_news(&mut self, out: &mut Vec<(LinkId, Told)>) {
        self.untold_since = None;
        if self.news.is_empty() {
            return;
        }
        let mut by_link: BTreeMap<LinkId, Vec<Change>> = BTreeMap::new();
        for (link, change) in self.news.drain(..) {
            by_link.entry(link).or_default().push(change);
        }
        for (link, mut changes) in by_link {
            while changes.len() > MAX_CHANGES {
                let rest = changes.split_off(MAX_CHANGES);
                out.push((link, Told::Changes(changes)));
                changes = rest;
            }
            out.push((link, Told::Changes(changes)));
        }
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export")
            .field("files", &self.table.len())
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
