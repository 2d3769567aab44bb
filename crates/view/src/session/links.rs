//! Links of the node's own that stand in place of files of the head's.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use wiglaf_fuse::{Entry, Notification, Operation, Reply, Valid};

use super::pins::Pin;
use super::{Effect, OWN_FIRST, Session, convert, errno};

/// Their numbers, beyond those of directories.
pub(super) const FIRST: u64 = OWN_FIRST + (1 << 32);

/// One such link.
#[derive(Debug)]
pub(super) struct OwnLink {
    pub(super) pin: Pin,
    /// `None`: the head's file is seen.
    target: Option<Vec<u8>>,
    node: u64,
}

impl Session {
    /// Shows a link to `target` at this path, whatever the head has there; `None`: what the head
    /// has. The path must not lead through links. If it is to be shown later, it has to be said so
    /// from the beginning, by `None`.
    pub fn show_link(&mut self, path: &Path, target: Option<&Path>) {
        let target = target.map(|target| target.as_os_str().as_bytes().to_vec());
        let mut pin = Pin::new(path);
        self.follow(&mut pin);
        let known = self.links.iter().position(|link| link.pin.is_of(&pin));
        let known = known.map(|place| self.links.remove(place));
        if let Some(known) = known {
            if known.target == target {
                return self.links.push(known);
            }
            // It has heard all along which directory that is.
            pin = known.pin;
        }
        // Another number, so that nobody takes the old link for it.
        let node = FIRST + self.next_link;
        self.next_link += 1;
        let place = pin.last().map(|(parent, name)| (parent, name.to_vec()));
        self.links.push(OwnLink { pin, target, node });
        if let Some((parent, name)) = place {
            self.set_name(parent, &name, None);
            if self.files.get(&parent).is_some_and(|file| file.kernel > 0) {
                let notice = Notification::Entry { parent, name };
                self.effects.push(Effect::Notice(notice));
            }
        }
    }

    /// The one that a name is.
    pub(super) fn own_link(&self, parent: u64, name: &[u8]) -> Option<&OwnLink> {
        let mut shown = self.links.iter().filter(|link| link.target.is_some());
        shown.find(|link| link.pin.last() == Some((parent, name)))
    }

    /// Whether some of them are in this directory.
    pub(super) fn has_links_in(&self, directory: u64) -> bool {
        let mut places = self.links.iter().filter_map(|link| link.pin.last());
        places.any(|(parent, _)| parent == directory)
    }

    pub(super) fn reply_own_link(&mut self, unique: u64, parent: u64, name: &[u8]) -> bool {
        let Some(link) = self.own_link(parent, name) else {
            return false;
        };
        let length = link.target.as_ref().map_or(0, Vec::len);
        let entry = Entry {
            node: link.node,
            generation: 0,
            attributes: convert::own_link(link.node, length as u64),
            entry_valid: Valid::Always,
            attributes_valid: Valid::Always,
        };
        self.reply(unique, Reply::Entry(entry));
        true
    }

    /// The kernel asks for one of them.
    pub(super) fn request_of_link(&mut self, unique: u64, node: u64, operation: &Operation<'_>) {
        let link = self.links.iter().find(|link| link.node == node);
        let target = link.and_then(|link| link.target.clone());
        let reply = match (operation, target) {
            (Operation::Forget { .. } | Operation::BatchForget(_), _) => return,
            (Operation::GetAttributes { .. }, Some(target)) => Reply::Attributes {
                attributes: convert::own_link(node, target.len() as u64),
                valid: Valid::Always,
            },
            (Operation::ReadLink, Some(target)) => Reply::Data(target),
            (Operation::GetXattr { .. }, Some(_)) => Reply::Error(errno::NODATA),
            (Operation::ListXattr { size }, Some(_)) => {
                return self.reply_value(unique, *size, Vec::new());
            }
            (_, Some(_)) => Reply::Error(errno::ROFS),
            (_, None) => Reply::Error(errno::STALE),
        };
        self.reply(unique, reply);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bounds, Question};
    use super::*;
    use wiglaf_fuse::Request;
    use wiglaf_wire::view::{Answer, Ask, Attributes, Entry as Listed, FileId, Reply as Told};

    const ETC: u64 = 7;
    const HOSTS: u64 = 8;
    const HOSTS_PATH: &str = "/etc/hosts";

    fn attributes(file: u64, mode: u32) -> Attributes {
        Attributes {
            file: FileId(file),
            ino: file,
            device: 1,
            mode,
            links: 1,
            uid: 0,
            gid: 0,
            size: 3,
            blocks: 0,
            block_size: 4096,
            rdev: 0,
            times: [(0, 0); 3],
            watched: true,
            xattrs: false,
        }
    }

    /// What becomes of a request, and what is asked for it.
    fn request(session: &mut Session, node: u64, operation: Operation<'_>) -> Vec<Effect> {
        let request = Request {
            unique: 1,
            node,
            uid: 0,
            gid: 0,
            pid: 1,
            operation,
        };
        session.request(0, &request);
        session.take_effects()
    }

    fn lookup(session: &mut Session, parent: u64, name: &[u8]) -> Vec<Effect> {
        let mut effects = request(session, parent, Operation::Lookup { name });
        if let [Effect::Ask(Question { id, what, .. }), ..] = effects.as_slice() {
            let found = match what {
                Ask::Lookup { name, .. } if name == b"etc" => attributes(ETC, 0o040_755),
                Ask::Lookup { name, .. } if name == b"hosts" => attributes(HOSTS, 0o100_644),
                other => panic!("{other:?}"),
            };
            let result = Ok(Told::Entry(Some(found)));
            session.answer(0, Answer { id: *id, result });
            effects = session.take_effects();
        }
        effects
    }

    fn node_of(effects: &[Effect]) -> u64 {
        match effects {
            [
                Effect::Reply {
                    reply: Reply::Entry(entry),
                    ..
                },
                ..,
            ] => entry.node,
            other => panic!("{other:?}"),
        }
    }

    fn session() -> Session {
        Session::new(&["proc"], Bounds::default())
    }

    #[test]
    fn a_link_stands_for_the_heads_file() {
        let mut session = session();
        let target = Path::new("/run/wiglaf-names/hosts");
        session.show_link(Path::new(HOSTS_PATH), Some(target));
        assert!(
            session.take_effects().is_empty(),
            "the kernel knows nothing yet"
        );
        assert_eq!(node_of(&lookup(&mut session, 1, b"etc")), ETC);
        let link = node_of(&lookup(&mut session, ETC, b"hosts"));
        assert!(link >= FIRST);
        let effects = request(&mut session, link, Operation::ReadLink);
        let [
            Effect::Reply {
                reply: Reply::Data(text),
                ..
            },
        ] = effects.as_slice()
        else {
            panic!("{effects:?}");
        };
        assert_eq!(text, target.as_os_str().as_bytes());
        // Whatever the head does there.
        session.name_changed(ETC, b"hosts".to_vec());
        let name = &b"hosts"[..];
        for operation in [
            Operation::Unlink { name },
            Operation::RemoveDirectory { name },
        ] {
            let effects = request(&mut session, ETC, operation);
            assert!(
                matches!(
                    effects.as_slice(),
                    [Effect::Reply {
                        reply: Reply::Error(errno::ROFS),
                        ..
                    }]
                ),
                "{effects:?}"
            );
        }
        // Other names there, and this name elsewhere, are the head's.
        assert!(!session.is_own(ETC, b"hostname") && !session.is_own(1, b"hosts"));
    }

    #[test]
    fn a_listing_does_not_bring_the_heads_file_back() {
        let mut session = session();
        session.show_link(Path::new(HOSTS_PATH), Some(Path::new("/run/x")));
        lookup(&mut session, 1, b"etc");
        let mut entries = vec![Listed {
            name: b"hosts".to_vec(),
            ino: HOSTS,
            next: 1,
            kind: 8,
            attributes: Some(attributes(HOSTS, 0o100_644)),
        }];
        session.learn_entries(ETC, &mut entries);
        assert_eq!(entries[0].kind, 10);
        assert!(node_of(&lookup(&mut session, ETC, b"hosts")) >= FIRST);
    }

    #[test]
    fn the_kernel_hears_when_it_comes_changes_and_goes() {
        let mut session = session();
        session.show_link(Path::new(HOSTS_PATH), None);
        lookup(&mut session, 1, b"etc");
        assert_eq!(node_of(&lookup(&mut session, ETC, b"hosts")), HOSTS);
        let mut links = Vec::new();
        for target in ["/run/x", "/run/y"] {
            session.show_link(Path::new(HOSTS_PATH), Some(Path::new(target)));
            let effects = session.take_effects();
            let [Effect::Notice(Notification::Entry { parent: ETC, name })] = effects.as_slice()
            else {
                panic!("{effects:?}");
            };
            assert_eq!(name, b"hosts");
            links.push(node_of(&lookup(&mut session, ETC, b"hosts")));
            session.show_link(Path::new(HOSTS_PATH), Some(Path::new(target)));
            assert!(session.take_effects().is_empty(), "nothing is new");
        }
        assert_ne!(links[0], links[1]);
        session.show_link(Path::new(HOSTS_PATH), None);
        assert_eq!(session.take_effects().len(), 1);
        assert_eq!(node_of(&lookup(&mut session, ETC, b"hosts")), HOSTS);
        // A new deputy has other numbers.
        session.show_link(Path::new(HOSTS_PATH), Some(Path::new("/run/x")));
        session.lose();
        session.resume();
        assert!(!session.is_own(ETC, b"hosts"));
        session.take_effects();
        lookup(&mut session, 1, b"etc");
        assert!(session.is_own(ETC, b"hosts"));
    }
}
