//! Questions to the deputy: what each is for, and who hears its answer.

use wiglaf_fuse::Reply;
use wiglaf_wire::id::TaskId;
use wiglaf_wire::view::{Answer, Ask, Question, Reply as Told};

use super::listing::Reader;
use super::{Effect, Session, convert, errno, reading};

/// A question's owner when it is the view's own.
pub(super) const NOBODY: (u32, u32) = (0, 0);

/// What an answer is for. A request's number of 0 means that nobody waits for it any more.
#[derive(Debug)]
pub(super) enum Waiting {
    Lookup {
        unique: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Listing {
        directory: u64,
        from: u64,
        version: u64,
        reader: Option<Reader>,
    },
    Attributes {
        unique: u64,
        file: u64,
    },
    SetAttributes {
        unique: u64,
        file: u64,
    },
    ReadLink {
        unique: u64,
        file: u64,
    },
    /// `Make` and `Link`.
    Made {
        unique: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Created {
        unique: u64,
        parent: u64,
        name: Option<Vec<u8>>,
        handle: u64,
    },
    Removed {
        unique: u64,
        parent: u64,
        name: Vec<u8>,
    },
    Renamed {
        unique: u64,
        from: (u64, Vec<u8>),
        to: (u64, Vec<u8>),
        exchange: bool,
    },
    Opened {
        unique: u64,
        handle: u64,
    },
    Read {
        unique: u64,
        wanted: reading::Range,
        asked: reading::Asked,
    },
    Written {
        unique: u64,
        handle: u64,
        file: u64,
        size: u32,
    },
    Synced {
        unique: u64,
        handle: Option<u64>,
    },
    /// An answer whose attributes replace what was known.
    Changed {
        unique: u64,
        file: u64,
    },
    Count {
        unique: u64,
        changed: Option<u64>,
        as_offset: bool,
    },
    Value {
        unique: u64,
        size: u32,
    },
    Space {
        unique: u64,
    },
    Lock {
        unique: u64,
        file: u64,
    },
    TestLock {
        unique: u64,
    },
    /// What comes of it is seen elsewhere.
    Anything,
    Barrier {
        token: u64,
    },
    CheckFile {
        token: u64,
        file: u64,
    },
    CheckName {
        token: u64,
        parent: u64,
        name: Vec<u8>,
    },
}

impl Waiting {
    pub(super) fn unique(&mut self) -> Option<&mut u64> {
        match self {
            Waiting::Lookup { unique, .. }
            | Waiting::Attributes { unique, .. }
            | Waiting::SetAttributes { unique, .. }
            | Waiting::ReadLink { unique, .. }
            | Waiting::Made { unique, .. }
            | Waiting::Created { unique, .. }
            | Waiting::Removed { unique, .. }
            | Waiting::Renamed { unique, .. }
            | Waiting::Opened { unique, .. }
            | Waiting::Read { unique, .. }
            | Waiting::Written { unique, .. }
            | Waiting::Synced { unique, .. }
            | Waiting::Changed { unique, .. }
            | Waiting::Count { unique, .. }
            | Waiting::Value { unique, .. }
            | Waiting::Space { unique }
            | Waiting::Lock { unique, .. }
            | Waiting::TestLock { unique } => Some(unique),
            Waiting::Listing { reader, .. } => reader.as_mut().map(|reader| &mut reader.unique),
            Waiting::Anything
            | Waiting::Barrier { .. }
            | Waiting::CheckFile { .. }
            | Waiting::CheckName { .. } => None,
        }
    }
}

impl Session {
    /// The deputy answers.
    pub fn answer(&mut self, now: u64, answer: Answer) {
        self.now = now;
        // An answer that nobody asked for is the deputy's mistake, and of no use.
        let Some(mut waiting) = self.waiting.remove(&answer.id) else {
            return;
        };
        if let Some(unique) = waiting.unique() {
            self.by_request.remove(unique);
        }
        self.conclude(waiting, answer.result);
    }

    pub(super) fn conclude(&mut self, waiting: Waiting, result: Result<Told, i32>) {
        match waiting {
            Waiting::Lookup {
                unique,
                parent,
                name,
            } => self.looked_up(unique, parent, name, result),
            Waiting::Listing {
                directory,
                from,
                version,
                reader,
            } => self.listed(directory, (from, version), reader, result),
            Waiting::Attributes { unique, file } => self.told_attributes(unique, file, result),
            Waiting::SetAttributes { unique, file } => self.told_attributes(unique, file, result),
            Waiting::Changed { unique, file } => self.changed_by_us(unique, file, result),
            Waiting::ReadLink { unique, file } => self.told_link(unique, file, result),
            Waiting::Made {
                unique,
                parent,
                name,
            } => self.made(unique, parent, name, result),
            Waiting::Created {
                unique,
                parent,
                name,
                handle,
            } => self.created(unique, (parent, name), handle, result),
            Waiting::Removed {
                unique,
                parent,
                name,
            } => self.removed(unique, parent, name, result),
            Waiting::Renamed {
                unique,
                from,
                to,
                exchange,
            } => self.renamed(unique, from, to, exchange, result),
            Waiting::Opened { unique, handle } => self.opened(unique, handle, result),
            Waiting::Read {
                unique,
                wanted,
                asked,
            } => self.told_data(unique, wanted, asked, result),
            Waiting::Written {
                unique,
                handle,
                file,
                size,
            } => self.written(unique, handle, file, size, result),
            Waiting::Synced { unique, handle } => self.synced(unique, handle, result),
            Waiting::Count {
                unique,
                changed,
                as_offset,
            } => self.counted(unique, changed, as_offset, result),
            Waiting::Value { unique, size } => match result {
                Ok(Told::Data(data)) => self.reply_value(unique, size, data.0),
                other => self.fail(unique, unexpected(other)),
            },
            Waiting::Space { unique } => match result {
                Ok(Told::Space(space)) => {
                    self.reply(unique, Reply::Space(convert::space(&space)));
                }
                other => self.fail(unique, unexpected(other)),
            },
            Waiting::Lock { unique, file } => self.locked(unique, file, result),
            Waiting::TestLock { unique } => self.tested_lock(unique, result),
            Waiting::Anything => {}
            Waiting::Barrier { token } => self.effects.push(Effect::Passed { token }),
            Waiting::CheckFile { token, file } => self.checked_file(token, file, result),
            Waiting::CheckName {
                token,
                parent,
                name,
            } => self.checked_name(token, parent, &name, result),
        }
    }

    /// Asks for a barrier: [`Effect::Passed`] with this number follows when everything asked
    /// before is done and every change that was complete by then is with the kernel (V1, V2).
    pub fn barrier(&mut self, now: u64, token: u64) {
        self.now = now;
        self.drop_unwatched();
        self.drop_old_pieces();
        self.ask(NOBODY, Ask::Barrier, Waiting::Barrier { token });
    }

    pub(super) fn ask(&mut self, (uid, gid): (u32, u32), what: Ask, mut waiting: Waiting) {
        if self.lost {
            return self.conclude(waiting, Err(errno::NOTCONN));
        }
        let id = self.next_question;
        self.next_question += 1;
        if let Some(&mut unique) = waiting.unique()
            && unique != 0
        {
            self.by_request.insert(unique, (id, self.asker));
        }
        // What a check asks, no program has asked.
        if !matches!(
            waiting,
            Waiting::CheckFile { .. } | Waiting::CheckName { .. }
        ) {
            self.statistics.questions += 1;
        }
        self.waiting.insert(id, waiting);
        self.effects
            .push(Effect::Ask(Question { id, uid, gid, what }));
    }

    /// The kernel's requests are those of this task, whose making is to be undone if the cluster
    /// fails it, until the next call.
    pub fn set_maker(&mut self, task: Option<TaskId>) {
        self.maker = task;
    }

    /// Says before a question that makes something of whom it is.
    pub(super) fn say_maker(&mut self) {
        if let Some(task) = self.maker {
            self.say(Ask::For { task });
        }
    }

    /// A question that nothing answers.
    pub(super) fn say(&mut self, what: Ask) {
        if self.lost {
            return;
        }
        let id = self.next_question;
        self.next_question += 1;
        let (uid, gid) = NOBODY;
        self.effects
            .push(Effect::Ask(Question { id, uid, gid, what }));
    }
}

/// What an answer that is not of the kind asked for amounts to.
pub(super) fn unexpected(result: Result<Told, i32>) -> i32 {
    match result {
        Err(errno) if errno > 0 => errno,
        _ => errno::IO,
    }
}
