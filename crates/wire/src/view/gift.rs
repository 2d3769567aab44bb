//! What comes before it is asked for: what a node says of the programs that it runs and of what
//! they used, and what the deputy gives it for that.

use serde::{Deserialize, Serialize};

use super::{Attributes, Content, Entry, FileId, HandleId};

/// What [`Ask::Expect`](super::Ask::Expect) announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A task's: the first of these paths where there is something, at most
    /// [`MAX_EXPECTED_PATHS`](super::MAX_EXPECTED_PATHS). They are absolute.
    Launched(Vec<Vec<u8>>),
    /// One that was executed just now.
    Executed(FileId),
}

/// One use of the head's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Use {
    /// A name was looked up, whatever it meant.
    Name {
        /// Its directory.
        parent: FileId,
        /// The name.
        name: Vec<u8>,
    },
    /// A file was opened to be read.
    Opened(FileId),
    /// A file was executed.
    Executed(FileId),
    /// A symbolic link was read.
    Link(FileId),
    /// A directory was listed.
    Listed(FileId),
    /// Something of this piece of [`PIECE_BYTES`](super::PIECE_BYTES) of a file that is not small
    /// was read.
    Piece(FileId, u32),
}

/// Deputy → agent, unasked: what a question would be answered with now. It is believed, and taken
/// back, like any answer; an agent may throw it away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gift {
    /// As the answer to [`Ask::Lookup`](super::Ask::Lookup).
    Name {
        /// Directory.
        parent: FileId,
        /// Name in it.
        name: Vec<u8>,
        /// What it means.
        found: Option<Attributes>,
    },
    /// As the answer to [`Ask::Open`](super::Ask::Open) for reading.
    Opened {
        /// The number of the open file, which the agent closes.
        handle: HandleId,
        /// The file's attributes.
        attributes: Attributes,
        /// The content, if it is small.
        content: Option<Content>,
    },
    /// As the answer to [`Ask::ReadLink`](super::Ask::ReadLink).
    Link {
        /// The link.
        file: FileId,
        /// Its text.
        text: Content,
    },
    /// As the answer to [`Ask::List`](super::Ask::List) from the beginning, with attributes.
    Listing {
        /// The directory.
        directory: FileId,
        /// Its first entries.
        entries: Vec<Entry>,
        /// Whether these are all.
        end: bool,
    },
    /// As the answer to [`Ask::Read`](super::Ask::Read) of one piece of a file that was given open.
    Piece {
        /// The file.
        file: FileId,
        /// Which one.
        piece: u32,
        /// Shorter than [`PIECE_BYTES`](super::PIECE_BYTES) only at the end of the file.
        data: Content,
    },
}

impl Gift {
    /// Bytes of files that come with it.
    pub fn content_bytes(&self) -> usize {
        match self {
            Gift::Opened {
                content: Some(Content(bytes)),
                ..
            }
            | Gift::Piece {
                data: Content(bytes),
                ..
            } => bytes.len(),
            _ => 0,
        }
    }

    /// About how many bytes it has in a message. Both ends count by this.
    pub fn weight(&self) -> u64 {
        const ATTRIBUTES: usize = 128;
        let bytes = match self {
            Gift::Name { name, found, .. } => name.len() + found.as_ref().map_or(0, |_| ATTRIBUTES),
            Gift::Opened { content, .. } => content.as_ref().map_or(0, |content| content.0.len()),
            Gift::Link { text, .. } => text.0.len(),
            Gift::Listing { entries, .. } => entries
                .iter()
                .map(|entry| entry.name.len() + ATTRIBUTES)
                .sum(),
            Gift::Piece { data, .. } => data.0.len(),
        };
        (bytes + ATTRIBUTES) as u64
    }
}
