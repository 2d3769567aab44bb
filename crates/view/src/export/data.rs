//! What files hold.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use wiglaf_wire::view::{Content, FileId, HandleId, MAX_DATA_BYTES, Reply};

use super::handles::check_openable;
use super::{Asker, Export, LinkId, descriptor};

/// Most bytes that one question copies: the other nodes wait meanwhile.
const MAX_COPY_BYTES: u64 = 64 << 20;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Export {
    pub(super) fn read(
        &mut self,
        link: LinkId,
        file: FileId,
        handle: Option<HandleId>,
        offset: u64,
        length: u32,
    ) -> Result<Reply, Errno> {
        if self.is_given(link, file, offset, length) {
            return Ok(Reply::Given);
        }
        self.read_part(link, file, handle, offset, length)
    }

    /// Reads without regard to what is on its way.
    pub(super) fn read_part(
        &mut self,
        link: LinkId,
        file: FileId,
        handle: Option<HandleId>,
        offset: u64,
        length: u32,
    ) -> Result<Reply, Errno> {
        let opened = match handle {
            Some(handle) => {
                let handle = self.handle(link, handle)?;
                if !handle.access.read || handle.number != file {
                    return Err(Errno::BADF);
                }
                Rc::clone(&handle.file)
            }
            None => self.reader(link, file)?,
        };
        let length = length.min(MAX_DATA_BYTES) as usize;
        let data = read_at(&opened, offset, length)?;
        if let Some(belief) = self.belief(link, file) {
            belief.tell();
        }
        Ok(Reply::Data(Content(data)))
    }

    /// A file opened with the rights of now: one that is kept open is closed when the watch says
    /// that they may have changed, and one that is not watched is not kept.
    fn reader(&mut self, link: LinkId, file: FileId) -> Result<Rc<OwnedFd>, Errno> {
        check_openable(self.table.kind(link, file)?)?;
        let path = self.path(link, file)?;
        let open = || descriptor::reopen(&path, OFlags::RDONLY);
        if self.table.is_watched(file) {
            return self.readers.get(file, open);
        }
        open().map(Rc::new)
    }

    /// An open file that is written through.
    fn writable(
        &self,
        link: LinkId,
        handle: HandleId,
    ) -> Result<(FileId, Rc<OwnedFd>, bool), Errno> {
        let handle = self.handle(link, handle)?;
        if !handle.access.write {
            return Err(Errno::BADF);
        }
        Ok((handle.number, Rc::clone(&handle.file), handle.access.append))
    }

    pub(super) fn write(
        &mut self,
        link: LinkId,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        drop_privileges: bool,
    ) -> Result<Reply, Errno> {
        let (number, file, append) = self.writable(link, handle)?;
        if data.len() > MAX_DATA_BYTES as usize {
            return Err(Errno::INVAL);
        }
        let written = write_all(&file, (!append).then_some(offset), data);
        if let Err(errno) = written {
            // A part may have been written, which the node does not know.
            self.changed_by(number, true, Asker::Nobody);
            return Err(errno);
        }
        self.changed_by(number, true, Asker::KnowsAll(link));
        let stat = descriptor::status(&file)?;
        if drop_privileges && self.maker.drop_privileges(&file, &stat)? {
            return Ok(Reply::Attributes(self.tell(link, number, &file)?));
        }
        let attributes = self.tell_status(link, number, &file, &stat);
        Ok(Reply::Attributes(attributes))
    }

    pub(super) fn sync(
        &mut self,
        link: LinkId,
        file: FileId,
        handle: Option<HandleId>,
        data_only: bool,
    ) -> Result<Reply, Errno> {
        let opened = match handle {
            Some(handle) => Rc::clone(&self.handle(link, handle)?.file),
            None => Rc::new(self.open_to_sync(link, file)?),
        };
        if data_only {
            rustix::fs::fdatasync(&opened)?;
        } else {
            rustix::fs::fsync(&opened)?;
        }
        Ok(Reply::Done)
    }

    fn open_to_sync(&mut self, link: LinkId, file: FileId) -> Result<OwnedFd, Errno> {
        let path = self.path(link, file)?;
        match self.table.kind(link, file)? {
            (_, true) => Err(Errno::INVAL),
            (FileType::Directory, _) => {
                descriptor::reopen(&path, OFlags::RDONLY | OFlags::DIRECTORY)
            }
            (FileType::RegularFile, _) => descriptor::reopen(&path, OFlags::RDONLY)
                .or_else(|_| descriptor::reopen(&path, OFlags::WRONLY)),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn allocate(
        &mut self,
        link: LinkId,
        handle: HandleId,
        (offset, length): (u64, u64),
        mode: u32,
    ) -> Result<Reply, Errno> {
        let (number, file, _) = self.writable(link, handle)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let done = rustix::fs::fallocate(&file, mode, offset, length);
        let asker = match done {
            Ok(()) => Asker::KnowsAll(link),
            Err(_) => Asker::Nobody,
        };
        self.changed_by(number, true, asker);
        done?;
        Ok(Reply::Attributes(self.tell(link, number, &file)?))
    }

    pub(super) fn seek(
        &mut self,
        link: LinkId,
        handle: HandleId,
        offset: u64,
        whence: u32,
    ) -> Result<Reply, Errno> {
        let from = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let handle = self.handle(link, handle)?;
        if !handle.access.read && !handle.access.write {
            return Err(Errno::ISDIR);
        }
        let file = &handle.file;
        Ok(Reply::Count(rustix::fs::seek(file, from)?))
    }

    pub(super) fn copy(
        &mut self,
        link: LinkId,
        (from, mut from_offset): (HandleId, u64),
        (to, mut to_offset): (HandleId, u64),
        length: u64,
    ) -> Result<Reply, Errno> {
        let source = self.handle(link, from)?;
        if !source.access.read {
            return Err(Errno::BADF);
        }
        let source = Rc::clone(&source.file);
        let (number, file, _) = self.writable(link, to)?;
        let length = usize::try_from(length.min(MAX_COPY_BYTES)).map_err(|_| Errno::INVAL)?;
        let copied = rustix::fs::copy_file_range(
            &source,
            Some(&mut from_offset),
            &file,
            Some(&mut to_offset),
            length,
        );
        // The answer is a number, so the asker too is told what has become of the file.
        self.changed_by(number, true, Asker::Nobody);
        Ok(Reply::Count(copied? as u64))
    }
}

/// As much as there is, up to `length`.
pub(super) fn read_at(file: impl AsFd, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut data = Vec::with_capacity(length);
    while data.len() < length {
        let from = offset.checked_add(data.len() as u64).ok_or(Errno::INVAL)?;
        match rustix::io::pread(&file, spare_capacity(&mut data), from) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    // A vector may have been given more room than it was asked for.
    data.truncate(length);
    Ok(data)
}

/// Without an offset at the end of the file, wherever that is by then.
fn write_all(file: &OwnedFd, offset: Option<u64>, data: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        let written = match offset {
            Some(offset) => {
                let to = offset.checked_add(done as u64).ok_or(Errno::FBIG)?;
                rustix::io::pwrite(file, rest, to)
            }
            None => rustix::io::write(file, rest),
        };
        match written {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
