//! From the kernel's bytes.

use super::{LockRequest, Operation, ParseError, Request, SetAttributes, SetTime};
use crate::abi::{self, IN_HEADER_BYTES, fattr, opcode};
use crate::init::InitRequest;

impl<'a> Request<'a> {
    /// Reads what [`Device::receive`](crate::Device::receive) put into a buffer.
    pub fn parse(bytes: &'a [u8]) -> Result<Request<'a>, ParseError> {
        let length = bytes.len();
        let mut header = Fields(bytes);
        let (Some(said), Some(opcode), Some(unique), Some(node), Some(uid), Some(gid), Some(pid)) = (
            header.u32(),
            header.u32(),
            header.u64(),
            header.u64(),
            header.u32(),
            header.u32(),
            header.u32(),
        ) else {
            return Err(ParseError::Header { length });
        };
        let extensions = header.u16().zip(header.u16());
        let Some((extensions, _)) = extensions.filter(|_| said as usize == length) else {
            return Err(ParseError::Header { length });
        };
        let ill = ParseError::Body { unique, opcode };
        // Extensions come last, in units of 8 bytes. We ask for none, so that there are none.
        let end = length.checked_sub(usize::from(extensions) * 8);
        let body = end.and_then(|end| bytes.get(IN_HEADER_BYTES..end));
        let body = body.ok_or(ill)?;
        Ok(Request {
            unique,
            node,
            uid,
            gid,
            pid,
            operation: operation(opcode, Fields(body)).ok_or(ill)?,
        })
    }
}

fn operation(opcode: u32, mut body: Fields<'_>) -> Option<Operation<'_>> {
    Some(match opcode {
        opcode::INIT => Operation::Init(init(body)?),
        opcode::DESTROY => Operation::Destroy,
        opcode::LOOKUP => Operation::Lookup { name: body.name()? },
        opcode::FORGET => Operation::Forget { count: body.u64()? },
        opcode::BATCH_FORGET => Operation::BatchForget(forgotten(body)?),
        opcode::GETATTR | opcode::STATX | opcode::SETATTR | opcode::ACCESS | opcode::STATFS => {
            attributes(opcode, body)?
        }
        opcode::READLINK => Operation::ReadLink,
        opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK => names(opcode, body)?,
        opcode::OPEN | opcode::OPENDIR | opcode::CREATE | opcode::TMPFILE => open(opcode, body)?,
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => read(opcode, body)?,
        opcode::WRITE => write(body)?,
        opcode::RELEASE | opcode::RELEASEDIR | opcode::FLUSH => close(opcode, body)?,
        opcode::FSYNC | opcode::FSYNCDIR => {
            let handle = body.u64()?;
            let data_only = body.u32()? & abi::FUSE_FSYNC_FDATASYNC != 0;
            match opcode {
                opcode::FSYNC => Operation::Fsync { handle, data_only },
                _ => Operation::FsyncDirectory { data_only },
            }
        }
        opcode::SYNCFS => Operation::SyncFs,
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
            xattr(opcode, body)?
        }
        opcode::GETLK => Operation::GetLock(lock(body)?),
        opcode::SETLK | opcode::SETLKW => Operation::SetLock {
            lock: lock(body)?,
            wait: opcode == opcode::SETLKW,
        },
        opcode::INTERRUPT => Operation::Interrupt {
            unique: body.u64()?,
        },
        opcode::FALLOCATE => Operation::Allocate {
            handle: body.u64()?,
            offset: body.u64()?,
            length: body.u64()?,
            mode: body.u32()?,
        },
        opcode::LSEEK => Operation::Seek {
            handle: body.u64()?,
            offset: body.u64()?,
            whence: body.u32()?,
        },
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => Operation::Copy {
            from_handle: body.u64()?,
            from_offset: body.u64()?,
            to_node: body.u64()?,
            to_handle: body.u64()?,
            to_offset: body.u64()?,
            length: match opcode {
                opcode::COPY_FILE_RANGE => body.u64()?.min(u64::from(u32::MAX)),
                _ => body.u64()?,
            },
            flags: body.u64()?,
        },
        opcode::IOCTL => Operation::Ioctl {
            handle: body.u64()?,
            command: {
                let _flags = body.u32()?;
                body.u32()?
            },
        },
        opcode::POLL => Operation::Poll,
        opcode => Operation::Other { opcode },
    })
}

fn init(mut body: Fields<'_>) -> Option<InitRequest> {
    let (major, minor) = (body.u32()?, body.u32()?);
    let (max_readahead, flags) = (body.u32()?, u64::from(body.u32()?));
    let upper = match flags & abi::init::INIT_EXT {
        0 => 0,
        _ => u64::from(body.u32()?) << 32,
    };
    Some(InitRequest {
        major,
        minor,
        max_readahead,
        flags: flags | upper,
    })
}

fn forgotten(mut body: Fields<'_>) -> Option<Vec<(u64, u64)>> {
    let (count, _) = (body.u32()?, body.u32()?);
    (0..count)
        .map(|_| Some((body.u64()?, body.u64()?)))
        .collect()
}

fn attributes(opcode: u32, mut body: Fields<'_>) -> Option<Operation<'_>> {
    Some(match opcode {
        opcode::GETATTR | opcode::STATX => {
            let flags = body.u32()?;
            let _ = body.u32()?;
            let handle = body.u64()?;
            let handle = (flags & abi::FUSE_GETATTR_FH != 0).then_some(handle);
            match opcode {
                opcode::GETATTR => Operation::GetAttributes { handle },
                _ => Operation::Statx {
                    handle,
                    flags: body.u32()?,
                    mask: body.u32()?,
                },
            }
        }
        opcode::SETATTR => Operation::SetAttributes(set_attributes(body)?),
        opcode::ACCESS => Operation::Access { mask: body.u32()? },
        _ => Operation::StatFs,
    })
}

fn set_attributes(mut body: Fields<'_>) -> Option<SetAttributes> {
    let valid = body.u32()?;
    let has = |flag: u32| valid & flag != 0;
    let _ = body.u32()?;
    let (handle, size, lock_owner) = (body.u64()?, body.u64()?, body.u64()?);
    let (accessed, modified, _changed) = (body.u64()?, body.u64()?, body.u64()?);
    let (accessed_ns, modified_ns, _) = (body.u32()?, body.u32()?, body.u32()?);
    let mode = body.u32()?;
    let _ = body.u32()?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| {
        has(set).then_some(match has(now) {
            true => SetTime::Now,
            false => SetTime::At(seconds.cast_signed(), nanoseconds),
        })
    };
    Some(SetAttributes {
        handle: has(fattr::FH).then_some(handle),
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        accessed: time(fattr::ATIME, fattr::ATIME_NOW, accessed, accessed_ns),
        modified: time(fattr::MTIME, fattr::MTIME_NOW, modified, modified_ns),
        kill_privileges: has(fattr::KILL_SUIDGID),
        lock_owner: has(fattr::LOCKOWNER).then_some(lock_owner),
    })
}

fn names(opcode: u32, mut body: Fields<'_>) -> Option<Operation<'_>> {
    Some(match opcode {
        opcode::SYMLINK => Operation::Symlink {
            name: body.name()?,
            target: body.name()?,
        },
        opcode::MKNOD => {
            let (mode, rdev, umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
            Operation::MakeNode {
                name: body.name()?,
                mode,
                rdev,
                umask,
            }
        }
        opcode::MKDIR => {
            let (mode, umask) = (body.u32()?, body.u32()?);
            Operation::MakeDirectory {
                name: body.name()?,
                mode,
                umask,
            }
        }
        opcode::UNLINK => Operation::Unlink { name: body.name()? },
        opcode::RMDIR => Operation::RemoveDirectory { name: body.name()? },
        opcode::LINK => Operation::Link {
            file: body.u64()?,
            name: body.name()?,
        },
        _ => {
            let new_parent = body.u64()?;
            let (flags, _) = match opcode {
                opcode::RENAME2 => (body.u32()?, body.u32()?),
                _ => (0, 0),
            };
            Operation::Rename {
                name: body.name()?,
                new_parent,
                new_name: body.name()?,
                flags,
            }
        }
    })
}

fn open(opcode: u32, mut body: Fields<'_>) -> Option<Operation<'_>> {
    let flags = body.u32()?;
    if matches!(opcode, opcode::OPEN | opcode::OPENDIR) {
        let kill_privileges = body.u32()? & abi::FUSE_OPEN_KILL_SUIDGID != 0;
        return Some(match opcode {
            opcode::OPEN => Operation::Open {
                flags,
                kill_privileges,
            },
            _ => Operation::OpenDirectory { flags },
        });
    }
    let (mode, umask) = (body.u32()?, body.u32()?);
    let kill_privileges = body.u32()? & abi::FUSE_OPEN_KILL_SUIDGID != 0;
    let name = body.name()?;
    Some(match opcode {
        opcode::CREATE => Operation::Create {
            name,
            mode,
            umask,
            flags,
            kill_privileges,
        },
        _ => Operation::TemporaryFile { mode, umask, flags },
    })
}

fn read(opcode: u32, mut body: Fields<'_>) -> Option<Operation<'_>> {
    let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
    let (read_flags, owner, flags) = (body.u32()?, body.u64()?, body.u32()?);
    Some(match opcode {
        opcode::READ => Operation::Read {
            handle,
            offset,
            size,
            lock_owner: (read_flags & abi::FUSE_READ_LOCKOWNER != 0).then_some(owner),
            flags,
        },
        _ => Operation::ReadDirectory {
            handle,
            offset,
            size,
            plus: opcode == opcode::READDIRPLUS,
        },
    })
}

fn write(mut body: Fields<'_>) -> Option<Operation<'_>> {
    let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
    let (write_flags, owner, flags) = (body.u32()?, body.u64()?, body.u32()?);
    let _ = body.u32()?;
    Some(Operation::Write {
        handle,
        offset,
        data: body.bytes(size)?,
        from_cache: write_flags & abi::FUSE_WRITE_CACHE != 0,
        kill_privileges: write_flags & abi::FUSE_WRITE_KILL_SUIDGID != 0,
        lock_owner: (write_flags & abi::FUSE_WRITE_LOCKOWNER != 0).then_some(owner),
        flags,
    })
}

fn close(opcode: u32, mut body: Fields<'_>) -> Option<Operation<'_>> {
    let handle = body.u64()?;
    let (flags, release_flags) = (body.u32()?, body.u32()?);
    let lock_owner = body.u64()?;
    Some(match opcode {
        opcode::RELEASE => {
            let flock = release_flags & abi::FUSE_RELEASE_FLOCK_UNLOCK != 0;
            Operation::Release {
                handle,
                flags,
                flock_owner: flock.then_some(lock_owner),
                lock_owner,
            }
        }
        opcode::RELEASEDIR => Operation::ReleaseDirectory { handle },
        _ => Operation::Flush { handle, lock_owner },
    })
}

fn xattr(opcode: u32, mut body: Fields<'_>) -> Option<Operation<'_>> {
    if opcode == opcode::REMOVEXATTR {
        return Some(Operation::RemoveXattr { name: body.name()? });
    }
    let (size, flags) = (body.u32()?, body.u32()?);
    Some(match opcode {
        // The long form, which `InitReply::answering` insists on.
        opcode::SETXATTR => {
            let (more, _) = (body.u32()?, body.u32()?);
            Operation::SetXattr {
                name: body.name()?,
                value: body.bytes(size)?,
                flags,
                drop_set_gid: more & abi::FUSE_SETXATTR_ACL_KILL_SGID != 0,
            }
        }
        opcode::GETXATTR => Operation::GetXattr {
            name: body.name()?,
            size,
        },
        _ => Operation::ListXattr { size },
    })
}

fn lock(mut body: Fields<'_>) -> Option<LockRequest> {
    Some(LockRequest {
        handle: body.u64()?,
        owner: body.u64()?,
        start: body.u64()?,
        end: body.u64()?,
        kind: body.u32()?,
        pid: body.u32()?,
        flock: body.u32()? & abi::FUSE_LK_FLOCK != 0,
    })
}

/// The fields of a request that have not been read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    /// Up to a NUL, which is left out.
    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (name, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(name)
    }

    fn bytes(&mut self, count: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count as usize)?;
        self.0 = rest;
        Some(bytes)
    }
}
