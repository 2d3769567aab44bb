//! Extended attributes, ACLs among them.

use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use wiglaf_wire::view::{Content, FileId, MAX_XATTR_BYTES, Reply};

use super::{Asker, Export, LinkId, descriptor};

/// The kernel's `XATTR_NAME_MAX`.
const MAX_XATTR_NAME_BYTES: usize = 255;
/// Room that is tried first; most values are far shorter.
const USUAL_XATTR_BYTES: usize = 1 << 10;

impl Export {
    pub(super) fn xattr(
        &mut self,
        link: LinkId,
        file: FileId,
        name: &[u8],
    ) -> Result<Reply, Errno> {
        check(name)?;
        self.read_xattr(link, file, |path, room| {
            rustix::fs::getxattr(path, name, spare_capacity(room))
        })
    }

    pub(super) fn list_xattrs(&mut self, link: LinkId, file: FileId) -> Result<Reply, Errno> {
        self.read_xattr(link, file, |path, room| {
            rustix::fs::listxattr(path, spare_capacity(room))
        })
    }

    fn read_xattr(
        &mut self,
        link: LinkId,
        file: FileId,
        read: impl Fn(&str, &mut Vec<u8>) -> Result<usize, Errno>,
    ) -> Result<Reply, Errno> {
        let path = self.path(link, file)?;
        let magic = descriptor::magic(&path);
        let mut value = Vec::with_capacity(USUAL_XATTR_BYTES);
        let result = match read(&magic, &mut value) {
            Err(Errno::RANGE) => {
                value = Vec::with_capacity(MAX_XATTR_BYTES);
                read(&magic, &mut value)
            }
            result => result,
        };
        // That there is none is told as much as a value is.
        if let Some(belief) = self.belief(link, file) {
            belief.tell();
        }
        result?;
        Ok(Reply::Data(Content(value)))
    }

    pub(super) fn set_xattr(
        &mut self,
        link: LinkId,
        file: FileId,
        (name, value): (&[u8], &[u8]),
        flags: u32,
        drop_set_gid: bool,
    ) -> Result<Reply, Errno> {
        check(name)?;
        if value.len() > MAX_XATTR_BYTES {
            return Err(Errno::TOOBIG);
        }
        let path = self.path(link, file)?;
        let flags = XattrFlags::from_bits_retain(flags);
        rustix::fs::setxattr(descriptor::magic(&path), name, value, flags)?;
        if drop_set_gid {
            let stat = descriptor::status(&path)?;
            self.maker.drop_set_gid(&path, &stat)?;
        }
        self.changed_by(file, false, Asker::KnowsAll(link));
        Ok(Reply::Attributes(self.tell(link, file, &path)?))
    }

    pub(super) fn remove_xattr(
        &mut self,
        link: LinkId,
        file: FileId,
        name: &[u8],
    ) -> Result<Reply, Errno> {
        check(name)?;
        let path = self.path(link, file)?;
        rustix::fs::removexattr(descriptor::magic(&path), name)?;
        self.changed_by(file, false, Asker::KnowsAll(link));
        Ok(Reply::Attributes(self.tell(link, file, &path)?))
    }
}

fn check(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME_BYTES {
        return Err(Errno::RANGE);
    }
    if name.contains(&0) {
        return Err(Errno::INVAL);
    }
    Ok(())
}
