//! What the deputy answers: files, names, bytes.

use serde::{Deserialize, Serialize};

use super::{FileId, Lock};

/// Answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's.
    pub id: u64,
    /// The answer, or an errno.
    pub result: Result<Reply, i32>,
}

impl Answer {
    /// Bytes of files that come with it.
    pub fn content_bytes(&self) -> usize {
        match &self.result {
            Ok(
                Reply::Data(Content(bytes))
                | Reply::Opened {
                    content: Some(Content(bytes)),
                    ..
                },
            ) => bytes.len(),
            _ => 0,
        }
    }
}

/// What a node is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// A name's file. That there is none is an answer too, which holds until told otherwise.
    Entry(Option<Attributes>),
    /// A file's attributes.
    Attributes(Attributes),
    /// An open file.
    Opened {
        /// Its attributes, told as by a `Lookup` if it was asked for by name.
        attributes: Attributes,
        /// The whole content, where it was wanted and is small.
        content: Option<Content>,
        /// Somebody on the head may change the content without anyone being told (it is open for
        /// writing there), so none of it may be kept.
        unkept: bool,
    },
    /// Bytes.
    Data(Content),
    /// Names in a directory.
    Entries {
        /// In the directory's order.
        entries: Vec<Entry>,
        /// Whether the listing is over.
        end: bool,
    },
    /// A number.
    Count(u64),
    /// A file system's size.
    Space(Space),
    /// The lock that is in the way, if any.
    Locked(Option<Lock>),
    /// In place of `Data`: all of it went with the gifts before this answer. Whoever has not kept
    /// them asks again.
    Given,
}

/// Bytes that serde copies at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content(#[serde(with = "crate::stream::whole")] pub Vec<u8>);

/// A file's attributes on the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Number in the deputy's table.
    pub file: FileId,
    /// Inode number on the head.
    pub ino: u64,
    /// Which of the head's file systems it is on.
    pub device: u64,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of reads and writes, in bytes.
    pub block_size: u32,
    /// Device number, for device files.
    pub rdev: u64,
    /// Access, modification and change time: seconds and nanoseconds.
    pub times: [(i64, u32); 3],
    /// Whether the deputy will say when any of this, or the content, changes. If not, it is good
    /// for a moment only.
    pub watched: bool,
    /// Whether it has extended attributes, ACLs included, or may have some: if not, nobody need
    /// ask. (The kernel asks for ACLs at every new file that it checks rights of.)
    pub xattrs: bool,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// Inode number on the head.
    pub ino: u64,
    /// `DT_*` of `readdir(3)`.
    pub kind: u8,
    /// Where the listing goes on after this entry.
    pub next: u64,
    /// Its attributes, where they were asked for and could be had.
    pub attributes: Option<Attributes>,
}

/// A file system's size, as `statfs(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Block size in bytes.
    pub block_size: u32,
    /// Fragment size in bytes.
    pub fragment_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Those that this user may have.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free ones.
    pub free_files: u64,
    /// Longest name.
    pub name_length: u32,
}
