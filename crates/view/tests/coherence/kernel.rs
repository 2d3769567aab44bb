//! A model of a node's kernel: what Linux caches of a FUSE file system, and when it asks.

use std::collections::HashMap;

use wiglaf_fuse::{Attributes, Entry, Notification, Operation, Reply, Request, Valid};
use wiglaf_view::session::{Bounds, Effect, Session};
use wiglaf_wire::view::{Answer, Change, Gift, Question};

const ROOT: u64 = 1;
const ENOENT: i32 = 2;
const O_WRONLY: u32 = 1;
const O_APPEND: u32 = 0o2000;
const O_TRUNC: u32 = 0o1000;
const EXECUTES: u32 = 0x20;
/// Not a multiple of the pieces that files are given in.
const READ_BYTES: u32 = 100 << 10;

/// What a program sees of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) ino: u64,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) size: Option<u64>,
    pub(crate) modified: (i64, i64),
    pub(crate) changed: (i64, i64),
    pub(crate) content: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Inode {
    attributes: Option<Attributes>,
    pages: Option<Vec<u8>>,
    listing: Option<Vec<String>>,
}

pub(crate) struct Kernel {
    session: Session,
    questions: Vec<Question>,
    /// Whether programs have to have the right to enter `/`.
    checks_root: bool,
    names: HashMap<(u64, Vec<u8>), Option<u64>>,
    inodes: HashMap<u64, Inode>,
    /// The request that a program waits in, and its answer.
    unique: u64,
    awaited: Option<u64>,
    answered: Option<Reply>,
    /// Answers of the calls that the running program has made so far: a program that has to wait
    /// is run again from its beginning with these.
    script: Vec<Reply>,
    at: usize,
    passed: bool,
    checked: Option<Vec<String>>,
}

type Waits<T> = Option<T>;

impl Kernel {
    pub(crate) fn new() -> Kernel {
        Kernel {
            session: Session::new(&["proc", "sys", "dev", "run"], Bounds::default()),
            questions: Vec::new(),
            checks_root: false,
            names: HashMap::new(),
            inodes: HashMap::from([(ROOT, Inode::default())]),
            unique: 0,
            awaited: None,
            answered: None,
            script: Vec::new(),
            at: 0,
            passed: false,
            checked: None,
        }
    }

    /// As Linux does, which asks for the attributes of `/` before anything else.
    pub(crate) fn check_root(&mut self) {
        self.checks_root = true;
    }

    pub(crate) fn take_questions(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    pub(crate) fn answer(&mut self, answer: Answer) {
        self.session.answer(0, answer);
        self.carry_out();
    }

    pub(crate) fn changed(&mut self, changes: Vec<Change>) {
        self.session.changed(0, changes);
        self.carry_out();
    }

    pub(crate) fn given(&mut self, gifts: Vec<Gift>) {
        self.session.given(0, gifts);
        self.carry_out();
    }

    pub(crate) fn expect(&mut self, program: &str) {
        self.session.tell_uses();
        self.session.expect(vec![program.as_bytes().to_vec()]);
        self.carry_out();
    }

    /// The link is lost, and another one made.
    pub(crate) fn relink(&mut self) {
        self.session.lose();
        self.carry_out();
        self.questions.clear();
        self.session.resume();
    }

    pub(crate) fn barrier(&mut self) {
        self.passed = false;
        self.session.barrier(0, 1);
        self.carry_out();
    }

    pub(crate) fn is_past_barrier(&self) -> bool {
        self.passed
    }

    pub(crate) fn check(&mut self) {
        self.session.check(0, 1);
        self.carry_out();
    }

    pub(crate) fn take_check(&mut self) -> Option<Vec<String>> {
        self.checked.take()
    }

    fn carry_out(&mut self) {
        for effect in self.session.take_effects() {
            match effect {
                Effect::Reply { unique, reply } | Effect::ReplyAfterNotices { unique, reply } => {
                    if self.awaited == Some(unique) {
                        self.answered = Some(reply);
                    }
                }
                Effect::Ask(question) => self.questions.push(question),
                Effect::Refresh { node } => {
                    if let Some(inode) = self.inodes.get_mut(&node) {
                        inode.attributes = None;
                    }
                }
                Effect::Notice(Notification::Content { node }) => {
                    if let Some(inode) = self.inodes.get_mut(&node) {
                        *inode = Inode::default();
                    }
                }
                Effect::Notice(
                    Notification::Entry { parent, name } | Notification::Expire { parent, name },
                ) => {
                    self.names.remove(&(parent, name));
                    if let Some(inode) = self.inodes.get_mut(&parent) {
                        inode.attributes = None;
                    }
                }
                Effect::Notice(other) => panic!("unexpected {other:?}"),
                Effect::Passed { .. } => self.passed = true,
                Effect::CloseFailed { path, errno, .. } => {
                    panic!("{} is lost: {errno}", String::from_utf8_lossy(&path))
                }
                Effect::Checked { differences, .. } => self.checked = Some(differences),
            }
        }
    }

    /// A system call of the running program: its answer, if it has come.
    fn call(&mut self, node: u64, operation: Operation<'_>) -> Waits<Reply> {
        self.at += 1;
        if let Some(reply) = self.script.get(self.at - 1) {
            return Some(reply.clone());
        }
        if self.awaited.is_none() {
            self.unique += 1;
            self.awaited = Some(self.unique);
            let request = Request {
                unique: self.unique,
                node,
                uid: 0,
                gid: 0,
                pid: 1,
                operation,
            };
            self.session.request(0, &request);
            self.carry_out();
        }
        let reply = self.answered.take()?;
        self.awaited = None;
        self.script.push(reply.clone());
        Some(reply)
    }

    /// Runs a program that may have to wait. What its kernel learned on the way, it learns once:
    /// the caches change only where `fresh` says that the answer is new.
    fn program<T>(&mut self, body: impl FnOnce(&mut Self) -> Waits<T>) -> Waits<T> {
        self.at = 0;
        let result = body(self);
        if result.is_some() {
            self.script.clear();
            self.at = 0;
        }
        result
    }

    fn learn(&mut self, entry: &Entry) {
        let inode = self.inodes.entry(entry.node).or_default();
        inode.attributes = (entry.attributes_valid == Valid::Always).then_some(entry.attributes);
    }

    fn step(&mut self, parent: u64, name: &str) -> Waits<Result<u64, i32>> {
        let key = (parent, name.as_bytes().to_vec());
        // A cached name is used unless this program asked for it already.
        if self.at >= self.script.len()
            && self.awaited.is_none()
            && let Some(known) = self.names.get(&key)
        {
            let known = known.ok_or(ENOENT);
            // So that a second run takes the same way.
            self.script.push(match known {
                Ok(node) => Reply::Offset(node),
                Err(errno) => Reply::Error(errno),
            });
            self.at += 1;
            return Some(known);
        }
        let is_new = self.at >= self.script.len();
        let reply = self.call(
            parent,
            Operation::Lookup {
                name: name.as_bytes(),
            },
        )?;
        Some(match reply {
            Reply::Offset(node) => Ok(node),
            Reply::Entry(entry) => {
                if is_new {
                    self.learn(&entry);
                    if entry.entry_valid == Valid::Always {
                        self.names.insert(key, Some(entry.node));
                    }
                }
                Ok(entry.node)
            }
            Reply::NoEntry { valid } => {
                if is_new && valid == Valid::Always {
                    self.names.insert(key, None);
                }
                Err(ENOENT)
            }
            Reply::Error(errno) => Err(errno),
            other => panic!("{other:?} to a lookup"),
        })
    }

    fn walk(&mut self, path: &str) -> Waits<Result<u64, i32>> {
        let mut at = ROOT;
        if self.checks_root
            && let Err(errno) = self.attributes(ROOT)?
        {
            return Some(Err(errno));
        }
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match self.step(at, part)? {
                Ok(node) => at = node,
                Err(errno) => return Some(Err(errno)),
            }
        }
        Some(Ok(at))
    }

    fn parent(&mut self, path: &str) -> Waits<Result<(u64, String), i32>> {
        let (parent, name) = path.rsplit_once('/').expect("an absolute path");
        let name = name.to_owned();
        Some(self.walk(parent)?.map(|node| (node, name)))
    }

    fn attributes(&mut self, node: u64) -> Waits<Result<Attributes, i32>> {
        if self.at >= self.script.len()
            && self.awaited.is_none()
            && let Some(known) = self.inodes.get(&node).and_then(|inode| inode.attributes)
        {
            self.script.push(Reply::Attributes {
                attributes: known,
                valid: Valid::Always,
            });
            self.at += 1;
            return Some(Ok(known));
        }
        let is_new = self.at >= self.script.len();
        Some(
            match self.call(node, Operation::GetAttributes { handle: None })? {
                Reply::Attributes { attributes, valid } => {
                    if is_new && valid == Valid::Always {
                        self.inodes.entry(node).or_default().attributes = Some(attributes);
                    }
                    Ok(attributes)
                }
                Reply::Error(errno) => Err(errno),
                other => panic!("{other:?} to a stat"),
            },
        )
    }

    pub(crate) fn look(&mut self, path: &str) -> Waits<Option<Seen>> {
        self.program(|k| {
            let Ok(node) = k.walk(path)? else {
                return Some(None);
            };
            let Ok(attributes) = k.attributes(node)? else {
                return Some(None);
            };
            let is_file = attributes.mode & 0o170_000 == 0o100_000;
            let content = if is_file {
                Some(k.content(node, 0)?)
            } else {
                None
            };
            let nanoseconds = |(seconds, part): (i64, u32)| (seconds, i64::from(part));
            Some(Some(Seen {
                ino: attributes.ino,
                mode: attributes.mode,
                links: attributes.links,
                size: is_file.then_some(attributes.size),
                modified: nanoseconds(attributes.modified),
                changed: nanoseconds(attributes.changed),
                content,
            }))
        })
    }

    /// Executes a file, and reads another one as that.
    pub(crate) fn run(&mut self, program: &str, path: &str) -> Waits<()> {
        self.program(|k| {
            for (path, flags) in [(program, EXECUTES), (path, 0)] {
                if let Ok(node) = k.walk(path)?
                    && let Ok(attributes) = k.attributes(node)?
                    && attributes.mode & 0o170_000 == 0o100_000
                {
                    k.content(node, flags)?;
                }
            }
            k.session.tell_uses();
            k.carry_out();
            Some(())
        })
    }

    fn content(&mut self, node: u64, flags: u32) -> Waits<Vec<u8>> {
        let is_new = self.at >= self.script.len();
        let opened = match self.call(
            node,
            Operation::Open {
                flags,
                kill_privileges: false,
            },
        )? {
            Reply::Opened(opened) => opened,
            other => panic!("{other:?} to an open"),
        };
        if is_new && !opened.keep_cache {
            self.inodes.entry(node).or_default().pages = None;
        }
        let cached = self.inodes.get(&node).and_then(|inode| inode.pages.clone());
        let data = if let (Some(pages), true) = (
            cached,
            self.at >= self.script.len() && self.awaited.is_none(),
        ) {
            self.script.push(Reply::Data(pages.clone()));
            self.at += 1;
            pages
        } else {
            let mut data = Vec::new();
            loop {
                let read = Operation::Read {
                    handle: opened.handle,
                    offset: data.len() as u64,
                    size: READ_BYTES,
                    lock_owner: None,
                    flags: 0,
                };
                match self.call(node, read)? {
                    Reply::Data(part) => data.extend_from_slice(&part),
                    other => panic!("{other:?} to a read"),
                }
                if data.len() % READ_BYTES as usize != 0 || data.is_empty() {
                    break;
                }
            }
            if !opened.direct_io {
                self.inodes.entry(node).or_default().pages = Some(data.clone());
            }
            data
        };
        self.release(node, opened.handle)?;
        Some(data)
    }

    fn release(&mut self, node: u64, handle: u64) -> Waits<()> {
        self.call(
            node,
            Operation::Flush {
                handle,
                lock_owner: 0,
            },
        )?;
        let release = Operation::Release {
            handle,
            flags: 0,
            flock_owner: None,
            lock_owner: 0,
        };
        self.call(node, release)?;
        Some(())
    }

    pub(crate) fn list(&mut self, path: &str) -> Waits<Option<Vec<String>>> {
        self.program(|k| {
            let Ok(node) = k.walk(path)? else {
                return Some(None);
            };
            let cached = k.inodes.get(&node).and_then(|inode| inode.listing.clone());
            if let Some(names) = cached
                && k.at >= k.script.len()
                && k.awaited.is_none()
            {
                return Some(Some(names));
            }
            let reply = k.call(
                node,
                Operation::ReadDirectory {
                    handle: 0,
                    offset: 0,
                    size: 1 << 20,
                    plus: false,
                },
            )?;
            let names = match reply {
                Reply::Directory(buffer) => names_of(&Reply::Directory(buffer)),
                Reply::Error(_) => return Some(None),
                other => panic!("{other:?} to a listing"),
            };
            k.inodes.entry(node).or_default().listing = Some(names.clone());
            Some(Some(names))
        })
    }

    /// As the kernel does after a directory was changed through it.
    fn directory_changed(&mut self, node: u64) {
        let inode = self.inodes.entry(node).or_default();
        inode.attributes = None;
        inode.listing = None;
    }

    pub(crate) fn write(&mut self, path: &str, data: &[u8], truncate: bool) -> Waits<()> {
        let flags = O_WRONLY | if truncate { O_TRUNC } else { O_APPEND };
        self.program(|k| {
            let Ok((parent, name)) = k.parent(path)? else {
                return Some(());
            };
            let (node, opened) = match k.step(parent, &name)? {
                Ok(node) => {
                    match k.call(
                        node,
                        Operation::Open {
                            flags,
                            kill_privileges: false,
                        },
                    )? {
                        Reply::Opened(opened) => (node, opened),
                        _ => return Some(()),
                    }
                }
                Err(_) => {
                    let create = Operation::Create {
                        name: name.as_bytes(),
                        mode: 0o100_644,
                        umask: 0o022,
                        flags,
                        kill_privileges: false,
                    };
                    match k.call(parent, create)? {
                        Reply::Created { entry, opened } => {
                            k.directory_changed(parent);
                            k.learn(&entry);
                            let key = (parent, name.as_bytes().to_vec());
                            k.names.insert(key, Some(entry.node));
                            (entry.node, opened)
                        }
                        _ => return Some(()),
                    }
                }
            };
            let inode = k.inodes.entry(node).or_default();
            inode.pages = None;
            inode.attributes = None;
            let write = Operation::Write {
                handle: opened.handle,
                offset: 0,
                data,
                from_cache: false,
                kill_privileges: false,
                lock_owner: None,
                flags,
            };
            k.call(node, write)?;
            k.inodes.entry(node).or_default().attributes = None;
            k.release(node, opened.handle)
        })
    }

    fn set(&mut self, path: &str, set: wiglaf_fuse::SetAttributes) -> Waits<()> {
        self.program(|k| {
            let Ok(node) = k.walk(path)? else {
                return Some(());
            };
            let Ok(attributes) = k.attributes(node)? else {
                return Some(());
            };
            if set.size.is_some() && attributes.mode & 0o170_000 != 0o100_000 {
                return Some(());
            }
            if let Reply::Attributes { attributes, .. } =
                k.call(node, Operation::SetAttributes(set))?
            {
                let inode = k.inodes.entry(node).or_default();
                inode.attributes = Some(attributes);
                if set.size.is_some() {
                    inode.pages = None;
                }
            }
            Some(())
        })
    }

    pub(crate) fn truncate(&mut self, path: &str, size: u64) -> Waits<()> {
        let set = wiglaf_fuse::SetAttributes {
            size: Some(size),
            ..wiglaf_fuse::SetAttributes::default()
        };
        self.set(path, set)
    }

    pub(crate) fn mode(&mut self, path: &str, mode: u32) -> Waits<()> {
        let set = wiglaf_fuse::SetAttributes {
            mode: Some(mode),
            ..wiglaf_fuse::SetAttributes::default()
        };
        self.set(path, set)
    }

    pub(crate) fn remove(&mut self, path: &str, directory: bool) -> Waits<()> {
        self.program(|k| {
            let Ok((parent, name)) = k.parent(path)? else {
                return Some(());
            };
            let Ok(node) = k.step(parent, &name)? else {
                return Some(());
            };
            let name = name.as_bytes();
            let operation = if directory {
                Operation::RemoveDirectory { name }
            } else {
                Operation::Unlink { name }
            };
            if k.call(parent, operation)? == Reply::Empty {
                k.names.insert((parent, name.to_vec()), None);
                k.names.remove(&(parent, name.to_vec()));
                k.directory_changed(parent);
                k.inodes.entry(node).or_default().attributes = None;
            }
            Some(())
        })
    }

    pub(crate) fn make_directory(&mut self, path: &str) -> Waits<()> {
        self.program(|k| {
            let Ok((parent, name)) = k.parent(path)? else {
                return Some(());
            };
            if k.step(parent, &name)?.is_ok() {
                return Some(());
            }
            let make = Operation::MakeDirectory {
                name: name.as_bytes(),
                mode: 0o755,
                umask: 0o022,
            };
            if let Reply::Entry(entry) = k.call(parent, make)? {
                k.learn(&entry);
                k.names
                    .insert((parent, name.as_bytes().to_vec()), Some(entry.node));
                k.directory_changed(parent);
            }
            Some(())
        })
    }

    pub(crate) fn link(&mut self, from: &str, to: &str) -> Waits<()> {
        self.program(|k| {
            let Ok(file) = k.walk(from)? else {
                return Some(());
            };
            let Ok((parent, name)) = k.parent(to)? else {
                return Some(());
            };
            if k.step(parent, &name)?.is_ok() {
                return Some(());
            }
            let link = Operation::Link {
                file,
                name: name.as_bytes(),
            };
            if let Reply::Entry(entry) = k.call(parent, link)? {
                k.learn(&entry);
                k.names
                    .insert((parent, name.as_bytes().to_vec()), Some(entry.node));
                k.directory_changed(parent);
            }
            Some(())
        })
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) -> Waits<()> {
        self.program(|k| {
            let Ok((old_parent, old)) = k.parent(from)? else {
                return Some(());
            };
            let Ok((new_parent, new)) = k.parent(to)? else {
                return Some(());
            };
            let Ok(node) = k.step(old_parent, &old)? else {
                return Some(());
            };
            let replaced = k.step(new_parent, &new)?;
            if replaced == Ok(node) {
                return Some(());
            }
            let rename = Operation::Rename {
                name: old.as_bytes(),
                new_parent,
                new_name: new.as_bytes(),
                flags: 0,
            };
            if k.call(old_parent, rename)? == Reply::Empty {
                k.names.remove(&(old_parent, old.as_bytes().to_vec()));
                k.names
                    .insert((new_parent, new.as_bytes().to_vec()), Some(node));
                k.directory_changed(old_parent);
                k.directory_changed(new_parent);
                // As Linux does: the times of what was moved.
                k.inodes.entry(node).or_default().attributes = None;
                if let Ok(replaced) = replaced {
                    k.inodes.entry(replaced).or_default().attributes = None;
                }
            }
            Some(())
        })
    }
}

/// The names of a listing, as the kernel parses it: offset and number, 8 bytes each, then the
/// name's length and type, 4 bytes each, then the name, padded to 8 bytes.
fn names_of(reply: &Reply) -> Vec<String> {
    const HEADER_BYTES: usize = 16;
    const ENTRY_BYTES: usize = 24;
    let mut bytes = Vec::new();
    reply.encode(0, &mut bytes);
    let mut names = Vec::new();
    let mut at = HEADER_BYTES;
    while at + ENTRY_BYTES <= bytes.len() {
        let length: [u8; 4] = bytes[at + 16..at + 20].try_into().expect("four bytes");
        let length = u32::from_ne_bytes(length) as usize;
        let name = &bytes[at + ENTRY_BYTES..at + ENTRY_BYTES + length];
        let name = String::from_utf8(name.to_vec()).expect("text");
        if name != "." && name != ".." {
            names.push(name);
        }
        at += (ENTRY_BYTES + length).next_multiple_of(8);
    }
    names
}
