//! Extended attributes: passed on, but for what is known not to be there.

use wiglaf_fuse::Reply;
use wiglaf_wire::view::{Ask, FileId};

use super::questions::Waiting;
use super::{Session, errno};

/// The attribute that holds a file's SELinux label.
const SELINUX_LABEL: &[u8] = b"security.selinux";

impl Session {
    pub(super) fn get_xattr(
        &mut self,
        unique: u64,
        who: (u32, u32),
        node: u64,
        name: &[u8],
        size: u32,
    ) {
        // A node does not act on the head's labels. Said so, tools that would ask for that of each
        // file stop after the first.
        if name == SELINUX_LABEL {
            return self.fail(unique, errno::OPNOTSUPP);
        }
        match self.valid_attributes(node) {
            Some(attributes) if !attributes.xattrs => self.fail(unique, errno::NODATA),
            _ => {
                let (file, name) = (FileId(node), name.to_vec());
                let waiting = Waiting::Value { unique, size };
                self.ask(who, Ask::Xattr { file, name }, waiting);
            }
        }
    }

    pub(super) fn list_xattrs(&mut self, unique: u64, who: (u32, u32), node: u64, size: u32) {
        match self.valid_attributes(node) {
            Some(attributes) if !attributes.xattrs => self.reply_value(unique, size, Vec::new()),
            _ => {
                let file = FileId(node);
                let waiting = Waiting::Value { unique, size };
                self.ask(who, Ask::ListXattrs { file }, waiting);
            }
        }
    }

    pub(super) fn reply_value(&mut self, unique: u64, size: u32, value: Vec<u8>) {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        if size == 0 {
            self.reply(unique, Reply::Size(length));
        } else if length > size {
            self.fail(unique, errno::RANGE);
        } else {
            self.reply(unique, Reply::Data(value));
        }
    }
}
