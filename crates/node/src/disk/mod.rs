//! A node's own disks, as far as that is thinking: where partitions lie, how a table of them and a
//! swap area's header are written, what is on a disk, and what is to be done about it.
//!
//! Disks, files and the kernel are [`crate::agent`]'s.

pub(crate) mod content;
pub(crate) mod layout;
pub(crate) mod medium;
pub(crate) mod plan;
pub(crate) mod swap;
pub(crate) mod table;

/// What partitions begin and end at.
pub(crate) const MIB: u64 = 1 << 20;

/// Which cluster a partition belongs to: in its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster(String);

impl Cluster {
    /// By the SHA-256 of its CA's certificate, which is in the image: a node knows it before it
    /// has found the head.
    pub(crate) fn new(authority: &[u8; 32]) -> Cluster {
        let start = authority.iter().take(4);
        Cluster(start.map(|byte| format!("{byte:02x}")).collect())
    }

    /// What its partitions have in their names.
    pub(crate) fn mark(&self) -> &str {
        &self.0
    }
}
