//! A model of a node's kernel: what Linux caches of a FUSE file system, and when it asks.

mod programs;

use std::collections::HashMap;

use wiglaf_fuse::{Attributes, Entry, Notification, Operation, Reply, Request, Valid};
use wiglaf_view::session::{Bounds, Effect, Missing, Session};
use wiglaf_wire::view::{Answer, Change, Filter, Gift, PieceDigest, Question};

const ROOT: u64 = 1;
const ENOENT: i32 = 2;

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

    /// Pieces are kept here, so it asks for whole ones.
    pub(crate) fn keep(&mut self) {
        self.session.keep(Filter::with_room(0));
        self.carry_out();
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

    pub(crate) fn given(&mut self, gifts: Vec<Gift>, missing: Missing) {
        self.session.given(0, gifts, missing);
        self.carry_out();
    }

    pub(crate) fn lose_kept(&mut self, pieces: Vec<PieceDigest>) {
        self.session.lose_kept(pieces);
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
}
