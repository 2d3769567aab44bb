//! Files in memory, which keep a record of what was asked. Whatever they say holds for ever.

use std::collections::{BTreeMap, HashMap};

use wiglaf_fuse::{
    Attributes, DirectoryBuffer, Entry, Errno, InitReply, LockReply, LockRequest, Opened,
    Operation, Reply, Request, SetTime, StatFs, Statx, Valid,
};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const TYPE: u32 = 0o170_000;
const O_TRUNC: u32 = 0o1000;
const UNLOCK: u32 = 2;
/// Inode numbers are none of the kernel's numbers.
const INO_OFFSET: u64 = 1000;
/// When everything was made.
pub(crate) const BORN: (i64, u32) = (1_000_000_000, 5);

#[derive(Default)]
pub(crate) struct File {
    pub(crate) attributes: Attributes,
    pub(crate) content: Vec<u8>,
    pub(crate) names: BTreeMap<Vec<u8>, u64>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) struct Memory {
    pub(crate) files: HashMap<u64, File>,
    next: u64,
    /// Names of operations.
    pub(crate) asked: Vec<&'static str>,
    pub(crate) init: Option<InitReply>,
    /// Lookups of this name are not answered until it is released.
    pub(crate) hold: Option<&'static [u8]>,
    pub(crate) held: Vec<(u64, Reply)>,
    pub(crate) locks: Vec<(u64, LockRequest)>,
    waiting: Vec<(u64, u64, LockRequest)>,
    /// Tellings of each node that the kernel has not given back.
    pub(crate) told: HashMap<u64, u64>,
    pub(crate) writes: Vec<usize>,
    pub(crate) privileges_killed: usize,
    pub(crate) umasks: Vec<u32>,
    pub(crate) askers: Vec<(u32, u32, u32)>,
}

type Answer = Result<Reply, Errno>;

impl Memory {
    pub(crate) fn new() -> Self {
        let mut memory = Memory {
            files: HashMap::new(),
            next: 1,
            asked: Vec::new(),
            init: None,
            hold: None,
            held: Vec::new(),
            locks: Vec::new(),
            waiting: Vec::new(),
            told: HashMap::new(),
            writes: Vec::new(),
            privileges_killed: 0,
            umasks: Vec::new(),
            askers: Vec::new(),
        };
        memory.new_file(DIRECTORY | 0o755, (0, 0));
        memory
    }

    fn new_file(&mut self, mode: u32, (uid, gid): (u32, u32)) -> u64 {
        let node = self.next;
        self.next += 1;
        let attributes = Attributes {
            ino: node + INO_OFFSET,
            mode,
            uid,
            gid,
            links: 1,
            block_size: 4096,
            accessed: BORN,
            modified: BORN,
            changed: BORN,
            ..Attributes::default()
        };
        self.files.insert(
            node,
            File {
                attributes,
                ..File::default()
            },
        );
        node
    }

    /// A file that the kernel knows nothing of yet.
    pub(crate) fn plant(&mut self, name: &str, content: &[u8]) -> u64 {
        let node = self.new_file(REGULAR | 0o644, (0, 0));
        self.set_content(node, content);
        self.file(1).names.insert(name.into(), node);
        node
    }

    pub(crate) fn set_content(&mut self, node: u64, content: &[u8]) {
        let file = self.file(node);
        file.content = content.to_vec();
        file.attributes.size = content.len() as u64;
    }

    pub(crate) fn file(&mut self, node: u64) -> &mut File {
        self.files.get_mut(&node).expect("a file")
    }

    fn child(&mut self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        let found = self.file(parent).names.get(name);
        found.copied().ok_or(Errno::NOENT)
    }

    fn entry(&mut self, node: u64) -> Entry {
        *self.told.entry(node).or_default() += 1;
        Entry {
            node,
            generation: 0,
            attributes: self.file(node).attributes,
            entry_valid: Valid::Always,
            attributes_valid: Valid::Always,
        }
    }

    fn made(&mut self, parent: u64, name: &[u8], node: u64) -> Reply {
        self.file(parent).names.insert(name.to_vec(), node);
        Reply::Entry(self.entry(node))
    }

    fn attributes(&mut self, node: u64) -> Reply {
        Reply::Attributes {
            attributes: self.file(node).attributes,
            valid: Valid::Always,
        }
    }

    fn forget(&mut self, node: u64, count: u64) {
        let told = self.told.get_mut(&node).expect("it was told");
        *told = told.checked_sub(count).expect("it was told as often");
    }

    /// What is to be answered now, to this or to other requests.
    pub(crate) fn answer(&mut self, request: &Request<'_>) -> Vec<(u64, Reply)> {
        self.asked.push(name_of(&request.operation));
        self.askers.push((request.uid, request.gid, request.pid));
        let unique = request.unique;
        match &request.operation {
            Operation::Lookup { name } if self.hold == Some(name) => {
                let reply = self.dispatch(request).unwrap_or_else(error);
                self.held.push((unique, reply));
                Vec::new()
            }
            Operation::Forget { count } => {
                self.forget(request.node, *count);
                Vec::new()
            }
            Operation::BatchForget(nodes) => {
                for (node, count) in nodes {
                    self.forget(*node, *count);
                }
                Vec::new()
            }
            Operation::Interrupt { unique } => {
                let place = self.waiting.iter().position(|(its, ..)| its == unique);
                let waited = place.map(|place| self.waiting.remove(place));
                let ended = waited.map(|(its, ..)| (its, error(Errno::INTR)));
                ended.into_iter().collect()
            }
            Operation::SetLock { lock, wait } => {
                self.set_lock(unique, request.node, *lock, *wait);
                self.grant(unique)
            }
            Operation::Flush { lock_owner, .. } => {
                let node = request.node;
                let unlock = |(at, lock): &(u64, LockRequest)| {
                    *at != node || lock.flock || lock.owner != *lock_owner
                };
                self.locks.retain(unlock);
                let mut replies = self.grant(unique);
                replies.push((unique, Reply::Empty));
                replies
            }
            Operation::Release { flock_owner, .. } => {
                let (node, owner) = (request.node, *flock_owner);
                let unlock = |(at, lock): &(u64, LockRequest)| {
                    *at != node || !lock.flock || Some(lock.owner) != owner
                };
                self.locks.retain(unlock);
                let mut replies = self.grant(unique);
                replies.push((unique, Reply::Empty));
                replies
            }
            _ => vec![(unique, self.dispatch(request).unwrap_or_else(error))],
        }
    }

    fn set_lock(&mut self, unique: u64, node: u64, lock: LockRequest, wait: bool) {
        if lock.kind == UNLOCK {
            let same = |(at, held): &(u64, LockRequest)| {
                *at != node || held.flock != lock.flock || held.owner != lock.owner
            };
            self.locks.retain(same);
        }
        let waits = wait && lock.kind != UNLOCK;
        let in_the_way = self.in_the_way(node, &lock).is_some();
        match in_the_way {
            true if !waits => self.held.push((unique, error(Errno::AGAIN))),
            _ => self.waiting.push((unique, node, lock)),
        }
    }

    fn in_the_way(&self, node: u64, lock: &LockRequest) -> Option<LockRequest> {
        let conflicting = |(at, held): &&(u64, LockRequest)| {
            *at == node
                && held.flock == lock.flock
                && held.owner != lock.owner
                && lock.kind != UNLOCK
                && (held.kind == 1 || lock.kind == 1)
                && held.start <= lock.end
                && lock.start <= held.end
        };
        self.locks.iter().find(conflicting).map(|(_, lock)| *lock)
    }

    /// Answers those that need not wait any more, and a refusal of `unique`.
    fn grant(&mut self, unique: u64) -> Vec<(u64, Reply)> {
        let refused = self.held.iter().position(|(its, _)| *its == unique);
        let mut replies: Vec<(u64, Reply)> = refused
            .map(|place| self.held.remove(place))
            .into_iter()
            .collect();
        for (unique, node, lock) in std::mem::take(&mut self.waiting) {
            if self.in_the_way(node, &lock).is_some() {
                self.waiting.push((unique, node, lock));
                continue;
            }
            if lock.kind != UNLOCK {
                self.locks.push((node, lock));
            }
            replies.push((unique, Reply::Empty));
        }
        replies
    }

    fn dispatch(&mut self, request: &Request<'_>) -> Answer {
        let (node, who) = (request.node, (request.uid, request.gid));
        Ok(match &request.operation {
            Operation::Init(offer) => {
                let reply = InitReply::answering(offer).expect("a good kernel");
                self.init = Some(reply);
                Reply::Init(reply)
            }
            Operation::Lookup { name } => match self.child(node, name) {
                Ok(child) => Reply::Entry(self.entry(child)),
                Err(_) => Reply::NoEntry {
                    valid: Valid::Always,
                },
            },
            Operation::GetAttributes { .. } => self.attributes(node),
            Operation::Statx { .. } => Reply::Statx(Statx {
                attributes: self.file(node).attributes,
                born: Some(BORN),
                valid: Valid::Always,
            }),
            Operation::SetAttributes(set) => {
                let file = self.file(node);
                let told = &mut file.attributes;
                if let Some(size) = set.size {
                    file.content
                        .resize(usize::try_from(size).expect("small"), 0);
                    told.size = size;
                }
                told.mode = set
                    .mode
                    .map_or(told.mode, |mode| told.mode & TYPE | mode & !TYPE);
                told.uid = set.uid.unwrap_or(told.uid);
                told.gid = set.gid.unwrap_or(told.gid);
                for (time, set) in [
                    (&mut told.accessed, set.accessed),
                    (&mut told.modified, set.modified),
                ] {
                    match set {
                        Some(SetTime::At(seconds, nanoseconds)) => *time = (seconds, nanoseconds),
                        Some(SetTime::Now) => *time = BORN,
                        None => {}
                    }
                }
                self.attributes(node)
            }
            Operation::ReadLink => Reply::Data(self.file(node).content.clone()),
            Operation::Symlink { name, target } => {
                let link = self.new_file(SYMLINK | 0o777, who);
                self.set_content(link, target);
                self.made(node, name, link)
            }
            Operation::MakeNode {
                name, mode, rdev, ..
            } => {
                let made = self.new_file(*mode, who);
                self.file(made).attributes.rdev = *rdev;
                self.made(node, name, made)
            }
            Operation::MakeDirectory { name, mode, umask } => {
                self.umasks.push(*umask);
                let made = self.new_file(DIRECTORY | (mode & !umask), who);
                self.made(node, name, made)
            }
            Operation::Unlink { name } | Operation::RemoveDirectory { name } => {
                let child = self.child(node, name)?;
                self.file(child).attributes.links -= 1;
                self.file(node).names.remove(*name);
                Reply::Empty
            }
            Operation::Rename {
                name,
                new_parent,
                new_name,
                ..
            } => {
                let child = self.child(node, name)?;
                self.file(node).names.remove(*name);
                self.file(*new_parent)
                    .names
                    .insert(new_name.to_vec(), child);
                Reply::Empty
            }
            Operation::Link { file, name } => {
                self.file(*file).attributes.links += 1;
                self.made(node, name, *file)
            }
            Operation::Create {
                name, mode, umask, ..
            } => {
                let made = self.new_file(mode & !umask, who);
                self.umasks.push(*umask);
                self.made(node, name, made);
                self.created(made)
            }
            Operation::TemporaryFile { mode, umask, .. } => {
                let made = self.new_file(mode & !umask, who);
                self.file(made).attributes.links = 0;
                let reply = self.created(made);
                *self.told.entry(made).or_default() += 1;
                reply
            }
            other => return self.opened_dispatch(node, other),
        })
    }

    /// The telling of a made file is counted by whoever made it.
    fn created(&mut self, node: u64) -> Reply {
        let entry = self.entry(node);
        *self.told.entry(node).or_default() -= 1;
        Reply::Created {
            entry,
            opened: opened(node),
        }
    }

    fn opened_dispatch(&mut self, node: u64, operation: &Operation<'_>) -> Answer {
        Ok(match operation {
            Operation::Open { flags, .. } => {
                if flags & O_TRUNC != 0 {
                    self.set_content(node, b"");
                }
                Reply::Opened(opened(node))
            }
            Operation::Read {
                handle,
                offset,
                size,
                ..
            } => {
                assert_eq!(*handle, node);
                let content = &self.file(node).content;
                let start = usize::try_from(*offset).expect("small").min(content.len());
                let end = (start + *size as usize).min(content.len());
                Reply::Data(content[start..end].to_vec())
            }
            Operation::Write {
                offset,
                data,
                kill_privileges,
                ..
            } => {
                self.writes.push(data.len());
                self.privileges_killed += usize::from(*kill_privileges);
                self.write(node, *offset, data);
                Reply::Written {
                    size: u32::try_from(data.len()).expect("a request's"),
                }
            }
            Operation::StatFs => Reply::Space(StatFs {
                blocks: 1000,
                free: 600,
                available: 500,
                files: 100,
                free_files: 50,
                block_size: 8192,
                name_length: 200,
                fragment_size: 4096,
            }),
            Operation::SetXattr { name, value, .. } => {
                let xattrs = &mut self.file(node).xattrs;
                xattrs.insert(name.to_vec(), value.to_vec());
                Reply::Empty
            }
            Operation::GetXattr { name, size } => {
                let value = self.file(node).xattrs.get(*name).cloned();
                sized(value.ok_or(Errno::NODATA)?, *size)?
            }
            Operation::ListXattr { size } => {
                let names = self.file(node).xattrs.keys();
                let list: Vec<u8> = names.flat_map(|name| [name, &b"\0"[..]].concat()).collect();
                sized(list, *size)?
            }
            Operation::RemoveXattr { name } => {
                let value = self.file(node).xattrs.remove(*name);
                value.map(|_| Reply::Empty).ok_or(Errno::NODATA)?
            }
            Operation::ReadDirectory {
                offset, size, plus, ..
            } => self.list(node, *offset, *size, *plus),
            Operation::GetLock(lock) => {
                let reply = self
                    .in_the_way(node, lock)
                    .map_or(LockReply::FREE, |held| LockReply {
                        start: held.start,
                        end: held.end,
                        kind: held.kind,
                        pid: held.pid,
                    });
                Reply::Lock(reply)
            }
            Operation::Allocate { offset, length, .. } => {
                let end = usize::try_from(offset + length).expect("small");
                let file = self.file(node);
                let longer = file.content.len().max(end);
                file.content.resize(longer, 0);
                file.attributes.size = longer as u64;
                Reply::Empty
            }
            Operation::Seek { offset, whence, .. } => {
                // All of it is data.
                let end = self.file(node).attributes.size;
                Reply::Offset(if *whence == 4 { end } else { *offset })
            }
            Operation::Copy {
                from_offset,
                to_node,
                to_offset,
                length,
                ..
            } => {
                let content = &self.file(node).content;
                let start = usize::try_from(*from_offset).expect("small");
                let length = usize::try_from(*length).unwrap_or(usize::MAX);
                let end = start.saturating_add(length).min(content.len());
                let piece = content[start..end].to_vec();
                self.write(*to_node, *to_offset, &piece);
                Reply::Copied {
                    size: piece.len() as u64,
                }
            }
            Operation::Fsync { .. }
            | Operation::FsyncDirectory { .. }
            | Operation::ReleaseDirectory { .. }
            | Operation::Destroy => Reply::Empty,
            Operation::Ioctl { .. } => return Err(Errno::NOTTY),
            _ => return Err(Errno::NOSYS),
        })
    }

    fn write(&mut self, node: u64, offset: u64, data: &[u8]) {
        let file = self.file(node);
        let start = usize::try_from(offset).expect("small");
        let end = start + data.len();
        let longer = file.content.len().max(end);
        file.content.resize(longer, 0);
        file.content[start..end].copy_from_slice(data);
        file.attributes.size = longer as u64;
    }

    fn list(&mut self, node: u64, offset: u64, size: u32, plus: bool) -> Reply {
        let mut buffer = DirectoryBuffer::new(size as usize);
        let names = self.file(node).names.clone();
        let mut entries: Vec<(Vec<u8>, u64)> = vec![(b".".to_vec(), 1), (b"..".to_vec(), 1)];
        entries.extend(names);
        let skip = usize::try_from(offset).expect("small");
        for (place, (name, child)) in entries.iter().enumerate().skip(skip) {
            let attributes = self.file(*child).attributes;
            let kind = u8::try_from((attributes.mode & TYPE) >> 12).expect("four bits");
            let next = place as u64 + 1;
            let fits = match plus {
                false => buffer.add(attributes.ino, next, kind, name),
                true if place < 2 => buffer.add_plus(attributes.ino, next, kind, name, None),
                true => {
                    let entry = self.entry(*child);
                    let fits = buffer.add_plus(attributes.ino, next, kind, name, Some(&entry));
                    if !fits {
                        self.forget(*child, 1);
                    }
                    fits
                }
            };
            if !fits {
                break;
            }
        }
        Reply::Directory(buffer)
    }
}

/// Handles are the files' numbers. What is cached stays right.
fn opened(node: u64) -> Opened {
    Opened {
        handle: node,
        keep_cache: true,
        ..Opened::default()
    }
}

fn sized(value: Vec<u8>, size: u32) -> Answer {
    let length = u32::try_from(value.len()).expect("short");
    match size {
        0 => Ok(Reply::Size(length)),
        room if room < length => Err(Errno::RANGE),
        _ => Ok(Reply::Data(value)),
    }
}

fn error(errno: Errno) -> Reply {
    Reply::Error(errno.raw_os_error())
}

fn name_of(operation: &Operation<'_>) -> &'static str {
    match operation {
        Operation::Init(_) => "init",
        Operation::Lookup { .. } => "lookup",
        Operation::Forget { .. } | Operation::BatchForget(_) => "forget",
        Operation::GetAttributes { .. } => "attributes",
        Operation::SetAttributes(_) => "set-attributes",
        Operation::Open { .. } => "open",
        Operation::OpenDirectory { .. } => "open-directory",
        Operation::Create { .. } => "create",
        Operation::TemporaryFile { .. } => "temporary",
        Operation::Read { .. } => "read",
        Operation::Write { .. } => "write",
        Operation::Statx { .. } => "statx",
        Operation::Link { .. } => "link",
        Operation::ReadDirectory { plus: true, .. } => "list-plus",
        Operation::ReadDirectory { plus: false, .. } => "list",
        Operation::GetLock(_) => "get-lock",
        Operation::SetLock { wait: false, .. } => "lock",
        Operation::SetLock { wait: true, .. } => "lock-wait",
        Operation::Interrupt { .. } => "interrupt",
        Operation::Copy { .. } => "copy",
        Operation::Allocate { .. } => "allocate",
        Operation::Seek { .. } => "seek",
        Operation::Release { .. } => "release",
        Operation::Flush { .. } => "flush",
        Operation::GetXattr { .. } => "get-xattr",
        Operation::ReadLink => "read-link",
        _ => "other",
    }
}
