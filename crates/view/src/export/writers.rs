//! Who has a file open for writing: a probe of the kernel can't tell this process from others, so
//! it is asked before the first of these.

use wiglaf_wire::view::FileId;

use super::LinkId;
use super::table::Table;

/// Who has one file open for writing here.
#[derive(Debug, Default)]
pub(super) struct Writers {
    links: Vec<(LinkId, u32)>,
    /// Descriptions for write locks, through which nothing is written.
    lockers: u32,
    /// Whether somebody else had it open for writing before the first of these.
    foreign: bool,
}

/// Who may write to a file while a node reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// Nobody by this process, so that a probe tells.
    Unknown,
    /// Another node, or somebody who was there before this process.
    Others,
    /// This node alone.
    Own,
}

impl Writers {
    fn are_none(&self) -> bool {
        self.links.is_empty() && self.lockers == 0
    }
}

impl Table {
    /// Who writes to a file, seen from a link.
    pub(super) fn writing(&mut self, link: LinkId, number: FileId) -> Writing {
        let Some(writers) = self.writers(number) else {
            return Writing::Unknown;
        };
        if writers.links.iter().any(|(writer, _)| *writer != link) {
            Writing::Others
        } else if writers.are_none() {
            Writing::Unknown
        } else if writers.foreign {
            Writing::Others
        } else {
            Writing::Own
        }
    }

    /// Whether this process has a file open for writing.
    pub(super) fn is_written_here(&mut self, number: FileId) -> bool {
        self.writers(number)
            .is_some_and(|writers| !writers.are_none())
    }

    /// A link opens a file for writing, or `None` for write locks alone. `foreign` is asked,
    /// while it can be told, whether somebody else has it open so.
    pub(super) fn begin_writing(
        &mut self,
        number: FileId,
        link: Option<LinkId>,
        foreign: impl FnOnce() -> bool,
    ) {
        let Some(writers) = self.writers(number) else {
            return;
        };
        if writers.are_none() {
            writers.foreign = foreign();
        }
        let Some(link) = link else {
            writers.lockers += 1;
            return;
        };
        match writers.links.iter_mut().find(|(writer, _)| *writer == link) {
            Some((_, count)) => *count += 1,
            None => writers.links.push((link, 1)),
        }
    }

    /// The end of what [`begin_writing`](Table::begin_writing) began.
    pub(super) fn end_writing(&mut self, number: FileId, link: Option<LinkId>) {
        let Some(writers) = self.writers(number) else {
            return;
        };
        let Some(link) = link else {
            writers.lockers = writers.lockers.saturating_sub(1);
            return;
        };
        for (writer, count) in &mut writers.links {
            if *writer == link {
                *count = count.saturating_sub(1);
            }
        }
        writers.links.retain(|(_, count)| *count > 0);
    }
}
