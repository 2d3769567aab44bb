//! What the watch has to say, and whom it concerns.

use wiglaf_wire::view::{Ask, Change};

use super::{Asker, Export, LinkId, Told};
use crate::watch::Event;

impl Export {
    /// To be called after some questions, before the process waits for anything: takes away what
    /// they had the kernel tell this process of its own doing, which would wake it. Tells, too.
    pub fn settle(&mut self, out: &mut Vec<(LinkId, Told)>) {
        if !self.has_acted {
            return;
        }
        self.has_acted = false;
        let mut events = Vec::new();
        if let Some(watch) = &mut self.watch {
            watch.take_events(&mut |event| events.push(event));
        }
        self.obey_all(&events);
        self.tell_news(out);
    }

    /// Reads all that the watch has, and notes whom it concerns.
    pub(super) fn drain(&mut self) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        let mut events = Vec::new();
        watch.drain(&mut |event| events.push(event));
        self.has_acted = false;
        self.obey_all(&events);
    }

    fn obey_all(&mut self, events: &[Event]) {
        events.iter().for_each(|event| self.obey(event));
        self.look_for_writers();
    }

    pub(super) fn obey(&mut self, event: &Event) {
        match event {
            Event::File { key, content } => {
                for file in self.table.of_key(key) {
                    self.file_changed(file, *content, Asker::Nobody);
                }
            }
            Event::Opened { key } => self.guards.doubt(key),
            Event::Name { directory, name } => {
                for directory in self.table.of_key(directory) {
                    self.name_of_file_changed(directory, name, Asker::Nobody);
                }
            }
            Event::Remounted(mounts) => self.remounted(mounts),
            Event::Lost => {
                self.table.disbelieve_all();
                self.crossings.clear();
                self.readers.clear();
                self.guards.doubt_all();
                self.news.clear();
                for link in self.links.values_mut() {
                    link.giving.start_over();
                }
                let everybody = self.links.keys();
                self.news
                    .extend(everybody.map(|&link| (link, Change::Everything)));
            }
        }
    }
}

/// Whether the kernel tells of what is done for this. A wrong answer costs a call for nothing, or
/// wakes this process for nothing.
pub(super) fn makes_events(what: &Ask) -> bool {
    matches!(
        what,
        Ask::SetAttributes { .. }
            | Ask::Make { .. }
            | Ask::Create { .. }
            | Ask::Link { .. }
            | Ask::Remove { .. }
            | Ask::Rename { .. }
            | Ask::Write { .. }
            | Ask::Allocate { .. }
            | Ask::Copy { .. }
            | Ask::SetXattr { .. }
            | Ask::RemoveXattr { .. }
    )
}
