//! Advisory locks: all are the head's, so that they hold across nodes (V5).

use wiglaf_fuse::{LockReply, LockRequest, Reply};
use wiglaf_wire::view::{Ask, FileId, Lock, LockKind, LockStyle, Reply as Told};

use super::questions::{Waiting, unexpected};
use super::{Effect, PARKED, Session, errno};

const F_RDLCK: u32 = 0;
const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;

fn lock(request: &LockRequest) -> Lock {
    Lock {
        kind: match request.kind {
            F_RDLCK => LockKind::Read,
            F_WRLCK => LockKind::Write,
            _ => LockKind::Unlock,
        },
        start: request.start,
        end: request.end,
        pid: request.pid,
    }
}

impl Session {
    pub(super) fn set_lock(
        &mut self,
        unique: u64,
        who: (u32, u32),
        node: u64,
        request: &LockRequest,
        wait: bool,
    ) {
        let Some(handle) = self.deputys_handle(request.handle) else {
            return self.fail(unique, errno::BADF);
        };
        let style = if request.flock {
            LockStyle::Whole
        } else {
            self.lockers.insert((node, request.owner));
            LockStyle::Record
        };
        // A file that is open for reading by several shares one descriptor on the head, but
        // locks belong to whoever took them: the deputy keeps them by owner.
        let what = Ask::Lock {
            file: FileId(node),
            handle,
            owner: request.owner,
            style,
            lock: lock(request),
            wait,
        };
        self.ask(who, what, Waiting::Lock { unique, file: node });
    }

    pub(super) fn locked(&mut self, unique: u64, node: u64, result: Result<Told, i32>) {
        match result {
            Ok(Told::Attributes(attributes)) if attributes.file.0 == node => {
                self.learn_while_writing(node, attributes);
                self.refresh(node);
                if unique != 0 {
                    let reply = Reply::Empty;
                    self.effects
                        .push(Effect::ReplyAfterNotices { unique, reply });
                }
            }
            other => self.fail(unique, unexpected(other)),
        }
    }

    pub(super) fn test_lock(
        &mut self,
        unique: u64,
        who: (u32, u32),
        node: u64,
        request: &LockRequest,
    ) {
        let Some(handle) = self.deputys_handle(request.handle) else {
            return self.fail(unique, errno::BADF);
        };
        let what = Ask::TestLock {
            file: FileId(node),
            handle,
            owner: request.owner,
            lock: lock(request),
        };
        self.ask(who, what, Waiting::TestLock { unique });
    }

    pub(super) fn tested_lock(&mut self, unique: u64, result: Result<Told, i32>) {
        match result {
            Ok(Told::Locked(found)) => {
                let found = found.unwrap_or(Lock {
                    kind: LockKind::Unlock,
                    start: 0,
                    end: 0,
                    pid: 0,
                });
                let kind = match found.kind {
                    LockKind::Read => F_RDLCK,
                    LockKind::Write => F_WRLCK,
                    LockKind::Unlock => F_UNLCK,
                };
                self.reply(
                    unique,
                    Reply::Lock(LockReply {
                        start: found.start,
                        end: found.end,
                        kind,
                        pid: found.pid,
                    }),
                );
            }
            other => self.fail(unique, unexpected(other)),
        }
    }

    /// An open file that was locked as a whole is closed for good.
    pub(super) fn unlock_whole(&mut self, handle: u64, owner: u64) {
        let Some(handle) = self.handles.get(&handle) else {
            return;
        };
        let what = Ask::Lock {
            file: FileId(handle.file),
            handle: handle.deputys,
            owner,
            style: LockStyle::Whole,
            lock: Lock {
                kind: LockKind::Unlock,
                start: 0,
                end: 0,
                pid: 0,
            },
            wait: false,
        };
        self.ask((0, 0), what, Waiting::Anything);
    }

    /// A process closes a file, and with it gives up its record locks there.
    pub(super) fn unlock_all(&mut self, node: u64, owner: u64) {
        if self.lockers.remove(&(node, owner)) {
            self.say(Ask::Unlock {
                file: FileId(node),
                owner,
            });
        }
    }

    /// Somebody does not want to wait any longer. Only waiting for a lock ends so; everything
    /// else is about to be answered.
    pub(super) fn interrupt(&mut self, unique: u64) {
        if let Some(&(id, _)) = self.by_request.get(&unique)
            && matches!(self.waiting.get(&id), Some(Waiting::Lock { .. }))
        {
            self.say(Ask::Interrupt { id });
        }
    }

    /// The process that waits for this request is being killed: it is answered, and what becomes
    /// of the question is taken in when the deputy says so.
    pub fn abandon(&mut self, unique: u64) {
        let Some((id, _)) = self.by_request.remove(&unique) else {
            return;
        };
        if id == PARKED {
            self.unpark(unique);
            return self.fail(unique, errno::INTR);
        }
        if let Some(waiting) = self.waiting.get_mut(&id)
            && let Some(asker) = waiting.unique()
        {
            *asker = 0;
            if let Some(Waiting::Lock { .. }) = self.waiting.get(&id) {
                self.say(Ask::Interrupt { id });
            }
            self.fail(unique, errno::INTR);
        }
    }
}
