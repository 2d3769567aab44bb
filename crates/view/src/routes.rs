//! Which deputy is asked what, and who gets the answer.
//!
//! Nothing here waits. A request of the kernel becomes one question or a few in a row, and is
//! answered by whoever brings the last answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use wiglaf_wire::stream::{MAX_VIEW_READ_BYTES, ViewAsk, ViewAttributes, ViewEntry, ViewReply};

use crate::mount::Ask;
use crate::table::{GivenBack, OWN_FIRST, ROOT, Table};

/// A directory that anyone may list and enter.
const PLAIN_DIRECTORY_MODE: u32 = 0o040_755;
/// A directory's links when it has no subdirectories.
const PLAIN_DIRECTORY_LINKS: u32 = 2;

/// What the kernel adapter asks for.
pub(crate) struct Routes {
    ask: Arc<dyn Ask + Send + Sync>,
    table: Mutex<Table>,
    waiting: Mutex<Waiting>,
    handles: Mutex<Handles>,
    own: Vec<Vec<u8>>,
    since: (i64, u32),
}

pub(crate) type Then<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

#[derive(Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, (u32, Then<ViewReply>)>,
    closed: bool,
}

#[derive(Default)]
struct Handles {
    next: u64,
    open: HashMap<u64, Handle>,
}

/// An open file or directory. Who opened it is asked for, whoever uses it later, as with a
/// local descriptor.
struct Handle {
    uid: u32,
    node: u64,
    /// The part of a directory's listing that was told and may not have been taken yet.
    listing: Listing,
}

#[derive(Default)]
struct Listing {
    from: u64,
    entries: Arc<Vec<ViewEntry>>,
}

/// A file as the kernel is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The kernel's number.
    pub(crate) node: u64,
    pub(crate) attributes: ViewAttributes,
    pub(crate) good: Good,
}

/// How long the kernel may believe something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Good {
    /// As long as without callbacks is bearable.
    Briefly,
    /// It is the node's own.
    Forever,
    /// The next who wants to know asks again.
    Once,
}

/// Entries of a directory, from `skip` on.
pub(crate) struct Entries {
    pub(crate) entries: Arc<Vec<ViewEntry>>,
    pub(crate) skip: usize,
}

impl Routes {
    pub(crate) fn new(own: &[&str], ask: Arc<dyn Ask + Send + Sync>) -> Routes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        Routes {
            ask,
            table: Mutex::new(Table::new()),
            waiting: Mutex::default(),
            handles: Mutex::default(),
            own: own.iter().map(|name| name.as_bytes().to_vec()).collect(),
            since: (
                i64::try_from(now.as_secs()).unwrap_or(0),
                now.subsec_nanos(),
            ),
        }
    }

    pub(crate) fn lookup(
        self: &Arc<Self>,
        uid: u32,
        parent: u64,
        name: Vec<u8>,
        then: Then<Found>,
    ) {
        if parent >= OWN_FIRST {
            return then(Err(Errno::NOENT));
        }
        if parent == ROOT
            && let Some(node) = (OWN_FIRST..).zip(&self.own).find(|(_, own)| **own == name)
        {
            return then(Ok(self.plain_directory(node.0)));
        }
        let then = if uid == 0 {
            self.or_as_told(parent, name.clone(), then)
        } else {
            then
        };
        let routes = Arc::clone(self);
        self.number(uid, parent, move |number| match number {
            Err(errno) => then(Err(errno)),
            Ok(number) => routes.lookup_in(uid, (parent, number), name, then),
        });
    }

    /// Root on a node mostly has no deputy. If it were refused a name that the kernel knows, the
    /// kernel would drop that name with all that is cached below it, for everybody.
    fn or_as_told(self: &Arc<Self>, parent: u64, name: Vec<u8>, then: Then<Found>) -> Then<Found> {
        let routes = Arc::clone(self);
        Box::new(move |found| {
            let told = match &found {
                Err(Errno::ACCESS) => locked(&routes.table).enter_as_told(parent, &name),
                _ => None,
            };
            then(match told {
                Some((node, attributes)) => Ok(Found {
                    node,
                    attributes,
                    good: Good::Once,
                }),
                None => found,
            });
        })
    }

    fn lookup_in(
        self: &Arc<Self>,
        uid: u32,
        (parent, number): (u64, u64),
        name: Vec<u8>,
        then: Then<Found>,
    ) {
        let routes = Arc::clone(self);
        let asked = ViewAsk::Lookup {
            parent: number,
            name: name.clone(),
        };
        self.put_for_attributes(uid, asked, move |found| {
            let found = found.and_then(|attributes| {
                let entered = locked(&routes.table).enter(uid, parent, &name, &attributes);
                match entered {
                    Ok(node) => Ok(Found {
                        node,
                        attributes,
                        good: Good::Briefly,
                    }),
                    Err(errno) => {
                        routes.give_back(&[back(uid, &attributes)]);
                        Err(errno)
                    }
                }
            });
            then(found);
        });
    }

    /// Attributes of a file, as its opener sees them if it is open.
    pub(crate) fn attributes(
        self: &Arc<Self>,
        uid: u32,
        node: u64,
        handle: Option<u64>,
        then: Then<Found>,
    ) {
        if node >= OWN_FIRST {
            return then(Ok(self.plain_directory(node)));
        }
        let opener = handle.and_then(|handle| self.opener(handle));
        let routes = Arc::clone(self);
        self.attributes_of(opener.unwrap_or(uid), node, move |found| {
            then(match found {
                // The node itself has no deputy and must get to what it mounts in the root.
                Err(_) if node == ROOT => Ok(routes.plain_directory(ROOT)),
                Err(errno) => Err(errno),
                Ok(attributes) => Ok(Found {
                    node,
                    attributes,
                    good: Good::Briefly,
                }),
            });
        });
    }

    pub(crate) fn read_link(self: &Arc<Self>, uid: u32, node: u64, then: Then<Vec<u8>>) {
        let routes = Arc::clone(self);
        self.number(uid, node, move |number| match number {
            Err(errno) => then(Err(errno)),
            Ok(node) => routes.put(uid, ViewAsk::ReadLink { node }, move |reply| {
                then(match reply {
                    Ok(ViewReply::Link(text)) => Ok(text),
                    other => Err(unexpected(other)),
                });
            }),
        });
    }

    /// Opens a regular file: a handle, and whether what is cached of it is good.
    pub(crate) fn open(self: &Arc<Self>, uid: u32, node: u64, then: Then<(u64, bool)>) {
        let routes = Arc::clone(self);
        self.read_as(uid, node, (0, 0), move |rights| match rights {
            Err(errno) => then(Err(errno)),
            Ok(_) => {
                let asker = Arc::clone(&routes);
                asker.attributes_of(uid, node, move |now| {
                    then(now.map(|now| {
                        let keep = locked(&routes.table).unchanged_since_last_open(node, &now);
                        (routes.new_handle(uid, node), keep)
                    }));
                });
            }
        });
    }

    pub(crate) fn open_directory(&self, uid: u32, node: u64) -> u64 {
        self.new_handle(uid, node)
    }

    pub(crate) fn close_handle(&self, handle: u64) {
        locked(&self.handles).open.remove(&handle);
    }

    pub(crate) fn read(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        length: u32,
        then: Then<Vec<u8>>,
    ) {
        let opened = locked(&self.handles)
            .open
            .get(&handle)
            .map(|handle| (handle.uid, handle.node));
        let Some((uid, node)) = opened else {
            return then(Err(Errno::BADF));
        };
        let length = length.min(MAX_VIEW_READ_BYTES);
        self.read_as(uid, node, (offset, length), then);
    }

    pub(crate) fn read_directory(self: &Arc<Self>, handle: u64, offset: u64, then: Then<Entries>) {
        let opened = locked(&self.handles)
            .open
            .get(&handle)
            .map(|handle| (handle.uid, handle.node, handle.listing.after(offset)));
        let (uid, node) = match opened {
            None => return then(Err(Errno::BADF)),
            Some((_, node, _)) if node >= OWN_FIRST => return then(Ok(Entries::none())),
            Some((_, _, Some(entries))) => return then(Ok(entries)),
            Some((uid, node, None)) => (uid, node),
        };
        let routes = Arc::clone(self);
        self.number(uid, node, move |number| match number {
            Err(errno) => then(Err(errno)),
            Ok(node) => {
                let asker = Arc::clone(&routes);
                let asked = ViewAsk::ReadDirectory { node, offset };
                asker.put(uid, asked, move |reply| {
                    then(match reply {
                        Ok(ViewReply::Entries(entries)) => {
                            Ok(routes.keep_listing(handle, offset, entries))
                        }
                        other => Err(unexpected(other)),
                    });
                });
            }
        });
    }

    pub(crate) fn forget(self: &Arc<Self>, node: u64, count: u64) {
        let back = locked(&self.table).forget(node, count);
        self.give_back(&back);
    }

    pub(crate) fn lose(&self, uid: u32) {
        let lost: Vec<_> = {
            let mut waiting = locked(&self.waiting);
            locked(&self.table).lose(uid);
            let of_uid = waiting.answers.extract_if(|_, (owner, _)| *owner == uid);
            of_uid.map(|(_, (_, then))| then).collect()
        };
        lost.into_iter().for_each(|then| then(Err(Errno::NOTCONN)));
    }

    pub(crate) fn close(&self) {
        let lost = {
            let mut waiting = locked(&self.waiting);
            waiting.closed = true;
            std::mem::take(&mut waiting.answers)
        };
        lost.into_values()
            .for_each(|(_, then)| then(Err(Errno::NOTCONN)));
    }

    fn opener(&self, handle: u64) -> Option<u32> {
        let handles = locked(&self.handles);
        handles.open.get(&handle).map(|handle| handle.uid)
    }

    fn new_handle(&self, uid: u32, node: u64) -> u64 {
        let mut handles = locked(&self.handles);
        handles.next += 1;
        let handle = Handle {
            uid,
            node,
            listing: Listing::default(),
        };
        let number = handles.next;
        handles.open.insert(number, handle);
        number
    }

    fn keep_listing(&self, handle: u64, from: u64, entries: Vec<ViewEntry>) -> Entries {
        let entries = Arc::new(entries);
        if let Some(handle) = locked(&self.handles).open.get_mut(&handle) {
            handle.listing = Listing {
                from,
                entries: Arc::clone(&entries),
            };
        }
        Entries { entries, skip: 0 }
    }

    fn plain_directory(&self, node: u64) -> Found {
        Found {
            node,
            good: if node >= OWN_FIRST {
                Good::Forever
            } else {
                Good::Briefly
            },
            attributes: ViewAttributes {
                node,
                ino: node,
                mode: PLAIN_DIRECTORY_MODE,
                links: PLAIN_DIRECTORY_LINKS,
                uid: 0,
                gid: 0,
                size: 0,
                blocks: 0,
                rdev: 0,
                times: [self.since; 3],
            },
        }
    }

    fn attributes_of(
        self: &Arc<Self>,
        uid: u32,
        node: u64,
        then: impl FnOnce(Result<ViewAttributes, Errno>) + Send + 'static,
    ) {
        let routes = Arc::clone(self);
        self.number(uid, node, move |number| match number {
            Err(errno) => then(Err(errno)),
            Ok(node) => routes.put_for_attributes(uid, ViewAsk::Attributes { node }, then),
        });
    }

    fn read_as(
        self: &Arc<Self>,
        uid: u32,
        node: u64,
        (offset, length): (u64, u32),
        then: impl FnOnce(Result<Vec<u8>, Errno>) + Send + 'static,
    ) {
        let routes = Arc::clone(self);
        self.number(uid, node, move |number| match number {
            Err(errno) => then(Err(errno)),
            Ok(node) => {
                let asked = ViewAsk::Read {
                    node,
                    offset,
                    length,
                };
                routes.put(uid, asked, move |reply| {
                    then(match reply {
                        Ok(ViewReply::Data(data)) if data.len() <= length as usize => Ok(data),
                        other => Err(unexpected(other)),
                    });
                });
            }
        });
    }

    /// Finds what the deputy of `uid` calls this file, asking it for each directory on the way
    /// that it has not been asked for yet.
    fn number(
        self: &Arc<Self>,
        uid: u32,
        node: u64,
        then: impl FnOnce(Result<u64, Errno>) + Send + 'static,
    ) {
        let walk = locked(&self.table).walk(uid, node);
        match walk {
            Err(errno) => then(Err(errno)),
            Ok(walk) if walk.steps.is_empty() => then(Ok(walk.number)),
            Ok(walk) => self.step(uid, walk.number, walk.steps, Box::new(then)),
        }
    }

    fn step(
        self: &Arc<Self>,
        uid: u32,
        number: u64,
        mut steps: Vec<(u64, Vec<u8>)>,
        then: Then<u64>,
    ) {
        let Some((node, name)) = steps.pop() else {
            return then(Ok(number));
        };
        let routes = Arc::clone(self);
        let asked = ViewAsk::Lookup {
            parent: number,
            name,
        };
        self.put_for_attributes(uid, asked, move |found| {
            let attributes = match found {
                Ok(attributes) => attributes,
                Err(errno) => return then(Err(errno)),
            };
            let attached = locked(&routes.table).attach(uid, node, &attributes);
            match attached {
                Ok(number) => routes.step(uid, number, steps, then),
                Err(errno) => {
                    routes.give_back(&[back(uid, &attributes)]);
                    then(Err(errno));
                }
            }
        });
    }

    fn give_back(self: &Arc<Self>, all: &[GivenBack]) {
        for &GivenBack { uid, number, count } in all {
            let node = number;
            self.put(uid, ViewAsk::Forget { node, count }, |_| {});
        }
    }

    fn put_for_attributes(
        self: &Arc<Self>,
        uid: u32,
        asked: ViewAsk,
        then: impl FnOnce(Result<ViewAttributes, Errno>) + Send + 'static,
    ) {
        self.put(uid, asked, move |reply| {
            then(match reply {
                Ok(ViewReply::Attributes(attributes)) => Ok(attributes),
                other => Err(unexpected(other)),
            });
        });
    }

    /// Asks. `then` is called exactly once: with the answer, or when the deputy is lost, the
    /// view is closed or the question is dropped.
    fn put(
        self: &Arc<Self>,
        uid: u32,
        asked: ViewAsk,
        then: impl FnOnce(Result<ViewReply, Errno>) + Send + 'static,
    ) {
        let id = {
            let mut waiting = locked(&self.waiting);
            if waiting.closed {
                drop(waiting);
                return then(Err(Errno::NOTCONN));
            }
            waiting.next += 1;
            let id = waiting.next;
            waiting.answers.insert(id, (uid, Box::new(then)));
            id
        };
        let question = Question {
            routes: Arc::clone(self),
            id,
        };
        self.ask.ask(
            uid,
            asked,
            Box::new(move |reply| question.routes.take(id, reply.map_err(errno))),
        );
    }

    fn take(&self, id: u64, reply: Result<ViewReply, Errno>) {
        // Not under the lock: what follows may ask again.
        let waiting = locked(&self.waiting).answers.remove(&id);
        if let Some((_, then)) = waiting {
            then(reply);
        }
    }
}

/// A question on its way; when it is dropped without an answer, that is the answer.
struct Question {
    routes: Arc<Routes>,
    id: u64,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.routes.take(self.id, Err(Errno::IO));
    }
}

impl Listing {
    /// What was told after the entry whose `next` is `offset`. A listing that starts over is
    /// asked for anew.
    fn after(&self, offset: u64) -> Option<Entries> {
        if offset == 0 {
            return None;
        }
        let skip = if offset == self.from {
            0
        } else {
            1 + self.entries.iter().position(|entry| entry.next == offset)?
        };
        (skip < self.entries.len()).then(|| Entries {
            entries: Arc::clone(&self.entries),
            skip,
        })
    }
}

impl Entries {
    fn none() -> Entries {
        Entries {
            entries: Arc::default(),
            skip: 0,
        }
    }
}

fn back(uid: u32, attributes: &ViewAttributes) -> GivenBack {
    GivenBack {
        uid,
        number: attributes.node,
        count: 1,
    }
}

/// What a peer says is checked before the kernel hears it.
fn errno(raw: i32) -> Errno {
    const MAX_ERRNO: i32 = 4095;
    match raw {
        1..=MAX_ERRNO => Errno::from_raw_os_error(raw),
        _ => Errno::IO,
    }
}

fn unexpected(reply: Result<ViewReply, Errno>) -> Errno {
    reply.err().unwrap_or(Errno::IO)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
