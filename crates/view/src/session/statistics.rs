//! What a view counts.

use serde::{Deserialize, Serialize};

/// Counts since the view was mounted, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Requests of the kernel, forgetting not counted.
    pub requests: u64,
    /// Questions that went to the head.
    pub questions: u64,
    /// What the head told without having been asked.
    pub gifts: u64,
    /// Changes that the head told.
    pub changes: u64,
    /// Bytes of files that went to the head.
    pub bytes_written: u64,
    /// Files whose attributes are known now.
    pub files: u64,
    /// Bytes of small files held now.
    pub content_bytes: u64,
    /// Open files now.
    pub handles: u64,
    /// Questions without an answer now.
    pub waiting: u64,
    /// Bytes written that the head has not acknowledged now.
    pub unacknowledged_bytes: u64,
}
