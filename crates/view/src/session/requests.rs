//! The kernel's requests, each to whoever knows about it.

use wiglaf_fuse::{Operation, Reply, Request};
use wiglaf_wire::view::{Ask, FileId, NewFile};

use super::listing::Reader;
use super::questions::Waiting;
use super::{OWN_FIRST, Session, convert, errno};

impl Session {
    /// The kernel asks. `now` is in milliseconds of any clock that does not go back.
    pub fn request(&mut self, now: u64, request: &Request<'_>) {
        self.now = now;
        self.asker = request.pid;
        let who = (request.uid, request.gid);
        let (unique, node) = (request.unique, request.node);
        if !matches!(
            request.operation,
            Operation::Forget { .. } | Operation::BatchForget(_)
        ) {
            self.statistics.requests += 1;
        }
        if node >= super::links::FIRST {
            return self.request_of_link(unique, node, &request.operation);
        }
        if node >= OWN_FIRST {
            return self.request_of_own(unique, node, &request.operation);
        }
        match &request.operation {
            Operation::Lookup { name } => self.lookup(unique, who, node, name),
            Operation::Forget { count } => self.forget(node, *count),
            Operation::BatchForget(nodes) => {
                for &(node, count) in nodes {
                    self.forget(node, count);
                }
            }
            Operation::GetAttributes { .. } => self.get_attributes(unique, who, node),
            Operation::SetAttributes(set) => self.set_attributes(unique, who, node, set),
            Operation::ReadLink => self.read_link(unique, who, node),
            Operation::Symlink { name, target } => {
                let what = NewFile::Link(target.to_vec());
                self.make(unique, who, (node, name), what, (0o777, 0));
            }
            Operation::MakeNode {
                name,
                mode,
                rdev,
                umask,
            } => {
                let device = convert::from_kernel_device(*rdev);
                let what = NewFile::Special { device };
                self.make(unique, who, (node, name), what, (*mode, *umask));
            }
            Operation::MakeDirectory { name, mode, umask } => {
                let what = NewFile::Directory;
                self.make(unique, who, (node, name), what, (*mode, *umask));
            }
            Operation::Unlink { name } => self.remove(unique, who, (node, name), false),
            Operation::RemoveDirectory { name } => self.remove(unique, who, (node, name), true),
            Operation::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => self.rename(unique, who, (node, name), (*new_parent, new_name), *flags),
            Operation::Link { file, name } => self.link(unique, who, *file, (node, name)),
            Operation::Open { flags, .. } => self.open(unique, who, node, *flags),
            Operation::Create {
                name,
                mode,
                umask,
                flags,
                ..
            } => self.create(unique, who, node, Some(name), (*mode, *umask), *flags),
            Operation::TemporaryFile { mode, umask, flags } => {
                self.create(unique, who, node, None, (*mode, *umask), *flags);
            }
            Operation::Read {
                handle,
                offset,
                size,
                ..
            } => self.read(unique, who, node, *handle, (*offset, *size)),
            Operation::Write {
                handle,
                offset,
                data,
                kill_privileges,
                from_cache,
                ..
            } => {
                let drop_privileges = *kill_privileges && !from_cache;
                self.write(unique, who, *handle, *offset, data, drop_privileges);
            }
            Operation::StatFs => {
                let what = Ask::Space { file: FileId(node) };
                self.ask(who, what, Waiting::Space { unique });
            }
            Operation::Release {
                handle,
                flock_owner,
                ..
            } => self.release(unique, *handle, *flock_owner),
            Operation::Flush { handle, lock_owner } => {
                self.flush(unique, request.pid, *handle, *lock_owner);
            }
            Operation::Fsync { handle, data_only } => {
                self.sync(unique, who, node, Some(*handle), *data_only);
            }
            Operation::FsyncDirectory { data_only } => {
                self.sync(unique, who, node, None, *data_only);
            }
            Operation::SetXattr {
                name,
                value,
                flags,
                drop_set_gid,
            } => {
                let what = Ask::SetXattr {
                    file: FileId(node),
                    name: name.to_vec(),
                    value: value.to_vec(),
                    flags: *flags,
                    drop_set_gid: *drop_set_gid,
                };
                self.unlearn_attributes(node);
                self.ask(who, what, Waiting::Changed { unique, file: node });
            }
            Operation::RemoveXattr { name } => {
                let what = Ask::RemoveXattr {
                    file: FileId(node),
                    name: name.to_vec(),
                };
                self.unlearn_attributes(node);
                self.ask(who, what, Waiting::Changed { unique, file: node });
            }
            Operation::GetXattr { name, size } => self.get_xattr(unique, who, node, name, *size),
            Operation::ListXattr { size } => self.list_xattrs(unique, who, node, *size),
            Operation::ReadDirectory {
                offset, size, plus, ..
            } => {
                let reader = Reader {
                    unique,
                    who,
                    offset: *offset,
                    size: *size,
                    plus: *plus,
                };
                self.read_directory(node, reader);
            }
            Operation::GetLock(lock) => self.test_lock(unique, who, node, lock),
            Operation::SetLock { lock, wait } => self.set_lock(unique, who, node, lock, *wait),
            Operation::Interrupt { unique } => self.interrupt(*unique),
            Operation::Allocate {
                handle,
                offset,
                length,
                mode,
            } => self.allocate(unique, who, *handle, (*offset, *length), *mode),
            Operation::Seek {
                handle,
                offset,
                whence,
            } => self.seek(unique, who, *handle, *offset, *whence),
            Operation::Copy {
                from_handle,
                from_offset,
                to_handle,
                to_offset,
                length,
                ..
            } => {
                let (from, to) = ((*from_handle, *from_offset), (*to_handle, *to_offset));
                self.copy(unique, who, from, to, *length);
            }
            Operation::OpenDirectory { .. } => self.open_directory(unique, node),
            Operation::ReleaseDirectory { handle } => self.release(unique, *handle, None),
            Operation::Ioctl { .. } => self.fail(unique, errno::NOTTY),
            Operation::Destroy => self.reply(unique, Reply::Empty),
            _ => self.fail(unique, errno::NOSYS),
        }
    }

    fn request_of_own(&mut self, unique: u64, node: u64, operation: &Operation<'_>) {
        match operation {
            Operation::Forget { .. } | Operation::BatchForget(_) => {}
            Operation::Lookup { .. } => self.fail(unique, errno::NOENT),
            Operation::GetAttributes { .. } => {
                let attributes = convert::own_directory(node);
                let valid = wiglaf_fuse::Valid::Always;
                self.reply(unique, Reply::Attributes { attributes, valid });
            }
            Operation::OpenDirectory { .. } => self.open_directory(unique, node),
            Operation::ReleaseDirectory { handle } => self.release(unique, *handle, None),
            Operation::ReadDirectory { size, .. } => {
                let buffer = wiglaf_fuse::DirectoryBuffer::new(*size as usize);
                self.reply(unique, Reply::Directory(buffer));
            }
            Operation::GetXattr { .. } => self.fail(unique, errno::NODATA),
            _ => self.fail(unique, errno::ROFS),
        }
    }
}
