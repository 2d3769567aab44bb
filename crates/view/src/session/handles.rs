//! Open files: reading, writing, and what has to be on the head before a close is answered.

use wiglaf_fuse::{Opened, Reply};
use wiglaf_wire::view::{Ask, FileId, MAX_SMALL_FILE_BYTES, Reply as Told};

use super::questions::{Waiting, unexpected};
use super::{Effect, HandleId, MAX_UNACKNOWLEDGED_BYTES, Session, errno};

const O_ACCMODE: u32 = 0o3;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;
const O_DSYNC: u32 = 0o10000;
const O_DIRECT: u32 = 0o40000;
/// Of an open file that the deputy does not know. Handles' numbers begin at 1.
const NO_HANDLE: HandleId = HandleId(0);
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A file that a program on the node has open.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: u64,
    /// What the deputy calls it. Files that are open for reading share one.
    pub(super) deputys: HandleId,
    pub(super) shared: bool,
    /// Every write is answered when the head has it.
    waits: bool,
    unacknowledged: u32,
    /// Why a write did not reach the head, until somebody is told.
    error: Option<i32>,
    /// A program has been told of one: what fails afterwards is no surprise.
    was_told: bool,
    /// Requests that wait for all writes to arrive.
    flushes: Vec<Flush>,
    pub(super) for_reading: bool,
    owner: u32,
}

#[derive(Debug)]
struct Flush {
    unique: u64,
    pid: u32,
}

fn reads_only(flags: u32) -> bool {
    flags & (O_ACCMODE | O_TRUNC) == 0
}

impl Session {
    pub(super) fn new_handle(&mut self, file: u64, deputys: HandleId, flags: u32) -> u64 {
        let number = self.next_handle;
        self.next_handle += 1;
        let handle = Handle {
            file,
            deputys,
            shared: false,
            waits: flags & (O_APPEND | O_DSYNC | O_DIRECT) != 0,
            unacknowledged: 0,
            error: None,
            was_told: false,
            flushes: Vec::new(),
            for_reading: reads_only(flags),
            owner: 0,
        };
        self.handles.insert(number, handle);
        number
    }

    /// A handle's file is known now.
    pub(super) fn begin_handle(&mut self, handle: u64, file: u64) {
        if let Some(handle) = self.handles.get_mut(&handle) {
            handle.file = file;
        }
    }

    fn settle_writing(&mut self, file: u64) {
        if let Some(file) = self.files.get_mut(&file) {
            file.writing = file.writing.saturating_sub(1);
        }
    }

    pub(super) fn deputys_handle(&self, handle: u64) -> Option<HandleId> {
        self.handles.get(&handle).map(|handle| handle.deputys)
    }

    pub(super) fn open(&mut self, unique: u64, who: (u32, u32), node: u64, flags: u32) {
        if reads_only(flags) {
            self.note_open(node, flags);
        }
        if reads_only(flags)
            && flags & O_DIRECT == 0
            && self.valid_attributes(node).is_some_and(|told| told.watched)
            && let Some(held) = self.files.get(&node).and_then(|file| file.held)
        {
            return self.open_shared(unique, who.0, node, held, flags);
        }
        let number = HandleId(self.next_handle);
        let handle = self.new_handle(node, number, flags);
        if let Some(handle) = self.handles.get_mut(&handle) {
            handle.owner = who.0;
        }
        if flags & O_TRUNC != 0 {
            self.drop_content(node);
            self.unlearn_attributes(node);
        }
        let has_content = |file: &super::File| file.content.is_some();
        let what = Ask::Open {
            file: FileId(node),
            flags,
            handle: number,
            content: reads_only(flags) && !self.files.get(&node).is_some_and(has_content),
        };
        self.ask(who, what, Waiting::Opened { unique, handle });
    }

    /// One more reader of a file that the deputy has open for us.
    fn open_shared(&mut self, unique: u64, uid: u32, node: u64, held: HandleId, flags: u32) {
        *self.readers.entry(held).or_default() += 1;
        let handle = self.new_handle(node, held, flags);
        if let Some(handle) = self.handles.get_mut(&handle) {
            handle.shared = true;
        }
        let mut keep_cache = true;
        if let Some(file) = self.files.get_mut(&node) {
            file.readers += 1;
            keep_cache = !std::mem::take(&mut file.pages_stale);
        }
        let no_flush = self.needs_no_flush(node, uid);
        let opened = Opened {
            handle,
            keep_cache,
            no_flush,
            ..Opened::default()
        };
        self.reply(unique, Reply::Opened(opened));
    }

    /// A close is told only so that record locks are given up and errors are reported. Whoever
    /// can't write a file has little use for locks on it; should there be one, it ends with the
    /// open file.
    fn needs_no_flush(&self, node: u64, uid: u32) -> bool {
        let read_only = |told: &wiglaf_wire::view::Attributes| {
            told.uid != uid && told.mode & WRITABLE_BY_OTHERS == 0
        };
        uid != 0 && self.valid_attributes(node).is_some_and(read_only)
    }

    pub(super) fn opened(&mut self, unique: u64, number: u64, result: Result<Told, i32>) {
        let node = self.handles.get(&number).map_or(0, |handle| handle.file);
        let (attributes, content, unkept) = match result {
            Ok(Told::Opened {
                attributes,
                content,
                unkept,
            }) if attributes.file.0 == node => (attributes, content, unkept),
            other => {
                self.handles.remove(&number);
                return self.fail(unique, unexpected(other));
            }
        };
        let size = attributes.size;
        let watched = attributes.watched;
        self.learn_while_writing(node, attributes);
        let Some(handle) = self.handles.get_mut(&number) else {
            return;
        };
        let (owner, for_reading) = (handle.owner, handle.for_reading);
        let mut keep_cache = !unkept;
        if let Some(file) = self.files.get_mut(&node) {
            if std::mem::take(&mut file.pages_stale) {
                keep_cache = false;
            }
            if for_reading && watched && !unkept && file.held.is_none() {
                handle.shared = true;
                file.held = Some(handle.deputys);
                file.readers += 1;
                *self.readers.entry(handle.deputys).or_default() += 1;
            }
        }
        if let Some(content) = content
            && !unkept
            && watched
            && content.0.len() as u64 == size
            && size <= MAX_SMALL_FILE_BYTES
        {
            self.keep_content(node, content.0);
        }
        let opened = Opened {
            handle: number,
            keep_cache,
            direct_io: unkept || self.handles.get(&number).is_some_and(|handle| handle.waits),
            no_flush: for_reading && self.needs_no_flush(node, owner),
            ..Opened::default()
        };
        if unique == 0 {
            return self.close_handle(number);
        }
        self.reply(unique, Reply::Opened(opened));
    }

    pub(super) fn reply_created(&mut self, unique: u64, node: u64, handle: u64, unkept: bool) {
        let Some(entry) = self.entry(node) else {
            return self.fail(unique, errno::STALE);
        };
        if unique == 0 {
            return self.close_handle(handle);
        }
        self.count(node);
        let waits = self.handles.get(&handle).is_some_and(|handle| handle.waits);
        let mut stale = false;
        if let Some(file) = self.files.get_mut(&node) {
            stale = std::mem::take(&mut file.pages_stale);
        }
        let opened = Opened {
            handle,
            keep_cache: !unkept && !stale,
            direct_io: unkept || waits,
            ..Opened::default()
        };
        self.reply(unique, Reply::Created { entry, opened });
    }

    pub(super) fn write(
        &mut self,
        unique: u64,
        who: (u32, u32),
        number: u64,
        offset: u64,
        data: &[u8],
        drop_privileges: bool,
    ) {
        let Some(handle) = self.handles.get_mut(&number) else {
            return self.fail(unique, errno::BADF);
        };
        if let Some(errno) = handle.error.take() {
            handle.was_told = true;
            return self.fail(unique, errno);
        }
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let file = handle.file;
        let waits =
            handle.waits || self.unacknowledged + u64::from(size) > MAX_UNACKNOWLEDGED_BYTES;
        handle.unacknowledged += 1;
        let deputys = handle.deputys;
        self.unacknowledged += u64::from(size);
        self.statistics.bytes_written += u64::from(size);
        if let Some(file) = self.files.get_mut(&file) {
            file.writing += 1;
            file.attributes = None;
        }
        self.drop_content(file);
        let what = Ask::Write {
            handle: deputys,
            offset,
            data: data.to_vec(),
            drop_privileges,
        };
        let waiting = Waiting::Written {
            unique: if waits { unique } else { 0 },
            handle: number,
            file,
            size,
        };
        self.ask(who, what, waiting);
        if !waits {
            self.reply(unique, Reply::Written { size });
        }
    }

    pub(super) fn written(
        &mut self,
        unique: u64,
        number: u64,
        node: u64,
        size: u32,
        result: Result<Told, i32>,
    ) {
        self.unacknowledged = self.unacknowledged.saturating_sub(u64::from(size));
        self.settle_writing(node);
        let error = match result {
            Ok(Told::Attributes(attributes)) if attributes.file.0 == node => {
                let _validity = self.learn_while_writing(node, attributes);
                None
            }
            other => Some(unexpected(other)),
        };
        let mut flushes = Vec::new();
        if let Some(handle) = self.handles.get_mut(&number) {
            handle.unacknowledged -= 1;
            if unique == 0 {
                handle.error = handle.error.or(error);
            }
            if handle.unacknowledged == 0 {
                flushes = std::mem::take(&mut handle.flushes);
            }
        }
        match error {
            // What the kernel keeps of a write that failed is nowhere else.
            Some(errno) => {
                self.content_changed(node);
                self.fail(unique, errno);
            }
            None => self.reply(unique, Reply::Written { size }),
        }
        for flush in flushes {
            self.finish_flush(&flush, number);
        }
    }

    pub(super) fn flush(&mut self, unique: u64, pid: u32, number: u64, owner: u64) {
        let Some(handle) = self.handles.get_mut(&number) else {
            return self.reply(unique, Reply::Empty);
        };
        let file = handle.file;
        let flush = Flush { unique, pid };
        if handle.unacknowledged > 0 {
            handle.flushes.push(flush);
        } else {
            self.finish_flush(&flush, number);
        }
        self.unlock_all(file, owner);
    }

    fn finish_flush(&mut self, flush: &Flush, number: u64) {
        let Some(handle) = self.handles.get_mut(&number) else {
            return;
        };
        match handle.error.take() {
            None => self.reply(flush.unique, Reply::Empty),
            Some(errno) => {
                let file = handle.file;
                if !std::mem::replace(&mut handle.was_told, true) {
                    let path = self.path(file);
                    self.effects.push(Effect::CloseFailed {
                        pid: flush.pid,
                        path,
                        errno,
                    });
                }
                self.fail(flush.unique, errno);
            }
        }
    }

    pub(super) fn release(&mut self, unique: u64, number: u64, flock_owner: Option<u64>) {
        if let Some(owner) = flock_owner {
            self.unlock_whole(number, owner);
        }
        self.close_handle(number);
        self.reply(unique, Reply::Empty);
    }

    /// A directory is open on the node alone. Where changes are told, the kernel need not even
    /// say so: it lists what it has kept.
    pub(super) fn open_directory(&mut self, unique: u64, node: u64) {
        if self.files.get(&node).is_some_and(|file| file.watched) {
            return self.fail(unique, errno::NOSYS);
        }
        let opened = Opened {
            handle: self.new_handle(node, NO_HANDLE, 0),
            ..Opened::default()
        };
        self.reply(unique, Reply::Opened(opened));
    }

    /// Later opens ask the deputy again; those that read through the descriptor keep it.
    pub(super) fn retire_held(&mut self, node: u64) {
        let Some(file) = self.files.get_mut(&node) else {
            return;
        };
        if let Some(held) = file.held.take() {
            file.readers = 0;
            if !self.readers.contains_key(&held) {
                self.say(Ask::Close { handle: held });
            }
        }
    }

    pub(super) fn close_handle(&mut self, number: u64) {
        let Some(handle) = self.handles.remove(&number) else {
            return;
        };
        let deputys = handle.deputys;
        if deputys == NO_HANDLE {
            return;
        }
        if !handle.shared {
            return self.say(Ask::Close { handle: deputys });
        }
        let left = self.readers.get(&deputys).map_or(0, |count| count - 1);
        let is_held = match self.files.get_mut(&handle.file) {
            Some(file) if file.held == Some(deputys) => {
                file.readers = left;
                true
            }
            _ => false,
        };
        if left > 0 {
            self.readers.insert(deputys, left);
            return;
        }
        self.readers.remove(&deputys);
        if !is_held {
            self.say(Ask::Close { handle: deputys });
        }
    }

    pub(super) fn sync(
        &mut self,
        unique: u64,
        who: (u32, u32),
        node: u64,
        handle: Option<u64>,
        data_only: bool,
    ) {
        let what = Ask::Sync {
            file: FileId(node),
            handle: handle.and_then(|handle| self.deputys_handle(handle)),
            data_only,
        };
        self.ask(who, what, Waiting::Synced { unique, handle });
    }

    pub(super) fn synced(&mut self, unique: u64, handle: Option<u64>, result: Result<Told, i32>) {
        let failed = handle
            .and_then(|handle| self.handles.get_mut(&handle))
            .and_then(|handle| {
                let error = handle.error.take();
                handle.was_told |= error.is_some();
                error
            });
        match (failed, result) {
            (None, Ok(Told::Done)) => self.reply(unique, Reply::Empty),
            (Some(errno), _) => self.fail(unique, errno),
            (None, other) => self.fail(unique, unexpected(other)),
        }
    }

    pub(super) fn allocate(
        &mut self,
        unique: u64,
        who: (u32, u32),
        number: u64,
        (offset, length): (u64, u64),
        mode: u32,
    ) {
        let Some(handle) = self.handles.get(&number) else {
            return self.fail(unique, errno::BADF);
        };
        let (file, deputys) = (handle.file, handle.deputys);
        self.drop_content(file);
        self.unlearn_attributes(file);
        let what = Ask::Allocate {
            handle: deputys,
            offset,
            length,
            mode,
        };
        self.ask(who, what, Waiting::Changed { unique, file });
    }

    pub(super) fn seek(
        &mut self,
        unique: u64,
        who: (u32, u32),
        handle: u64,
        offset: u64,
        whence: u32,
    ) {
        let Some(deputys) = self.deputys_handle(handle) else {
            return self.fail(unique, errno::BADF);
        };
        let what = Ask::Seek {
            handle: deputys,
            offset,
            whence,
        };
        let waiting = Waiting::Count {
            unique,
            changed: None,
            as_offset: true,
        };
        self.ask(who, what, waiting);
    }

    pub(super) fn copy(
        &mut self,
        unique: u64,
        who: (u32, u32),
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
    ) {
        let Some(target) = self.handles.get(&to.0).map(|handle| handle.file) else {
            return self.fail(unique, errno::BADF);
        };
        let (Some(source), Some(sink)) = (self.deputys_handle(from.0), self.deputys_handle(to.0))
        else {
            return self.fail(unique, errno::BADF);
        };
        self.drop_content(target);
        self.unlearn_attributes(target);
        let what = Ask::Copy {
            from: source,
            from_offset: from.1,
            to: sink,
            to_offset: to.1,
            length,
        };
        let waiting = Waiting::Count {
            unique,
            changed: Some(target),
            as_offset: false,
        };
        self.ask(who, what, waiting);
    }

    pub(super) fn counted(
        &mut self,
        unique: u64,
        changed: Option<u64>,
        as_offset: bool,
        result: Result<Told, i32>,
    ) {
        if let Some(file) = changed {
            self.unlearn_attributes(file);
        }
        match result {
            Ok(Told::Count(count)) if as_offset => self.reply(unique, Reply::Offset(count)),
            Ok(Told::Count(count)) => {
                self.reply(unique, Reply::Copied { size: count });
            }
            other => self.fail(unique, unexpected(other)),
        }
    }
}
