//! Random operations of two nodes, and of the head where it can be watched: whatever a node was
//! told and has not been told to be otherwise is so.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::acts::{Act, NAMES, Who, heads_act, node, nodes_act};
use super::node::Node;
use super::watched::watched;
use super::*;

const EXCHANGE: u32 = 2;

struct World {
    rig: Rig,
    nodes: HashMap<LinkId, Node>,
    /// Whether the nodes rely on the watch.
    watched: bool,
}

impl World {
    fn new(rig: Rig, watched: bool) -> World {
        let nodes = HashMap::from([(A, Node::default()), (B, Node::default())]);
        World {
            rig,
            nodes,
            watched,
        }
    }

    fn node(&mut self, link: LinkId) -> &mut Node {
        self.nodes.get_mut(&link).expect("one of two")
    }

    /// Asks, and lets the nodes hear what came before the answer.
    fn ask(&mut self, link: LinkId, what: Ask) -> Result<Reply, Errno> {
        let reply = self.rig.ask(link, what);
        self.deliver();
        reply
    }

    fn deliver(&mut self) {
        for (link, change) in std::mem::take(&mut self.rig.changes) {
            let here = self.rig.here;
            self.node(link).hear(here, &change);
        }
    }

    fn entry(&mut self, link: LinkId, name: &str, what: Ask) {
        match self.ask(link, what) {
            Ok(Reply::Entry(Some(attributes))) => {
                let node = self.node(link);
                *node.told.entry(attributes.file).or_default() += 1;
                node.learn_name(name, Some(attributes.file));
                node.listing = None;
                node.learn(attributes);
            }
            Ok(Reply::Entry(None)) => self.node(link).learn_name(name, None),
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }

    fn attributes(&mut self, link: LinkId, what: Ask) -> bool {
        match self.ask(link, what) {
            Ok(Reply::Attributes(attributes)) => {
                self.node(link).learn(attributes);
                true
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => false,
        }
    }

    fn opened(&mut self, link: LinkId, what: Ask, flags: u32, name: Option<&str>) {
        self.rig.handles += 1;
        let handle = HandleId(self.rig.handles);
        let what = match what {
            Ask::Create {
                parent,
                name,
                mode,
                umask,
                flags,
                ..
            } => Ask::Create {
                parent,
                name,
                mode,
                umask,
                flags,
                handle,
            },
            Ask::Open { file, flags, .. } => Ask::Open {
                file,
                flags,
                handle,
                content: true,
            },
            other => other,
        };
        let Ok(Reply::Opened {
            attributes,
            content,
            ..
        }) = self.ask(link, what)
        else {
            return;
        };
        let node = self.node(link);
        let file = attributes.file;
        node.handles.push((handle, file, flags));
        if flags & TRUNC != 0 {
            node.contents.insert(file, Vec::new());
        }
        if let Some(content) = content {
            node.contents.insert(file, content.0);
        }
        if let Some(name) = name {
            *node.told.entry(file).or_default() += 1;
            node.learn_name(name, Some(file));
            node.listing = None;
        }
        node.learn(attributes);
    }

    fn act(&mut self, who: Who, act: Act) {
        let here = self.rig.here;
        let pick = |which: usize| NAMES[which % NAMES.len()];
        let Who::Node(link) = who else {
            self.act_on_the_head(&act);
            return;
        };
        let known = |world: &mut World, which: usize| world.node(link).known(which);
        let parent = here;
        match act {
            Act::LookUp(name) => {
                let name = pick(name);
                let what = Ask::Lookup {
                    parent,
                    name: name.into(),
                };
                self.entry(link, name, what);
            }
            Act::Attributes(file) => {
                if let Some(file) = known(self, file) {
                    self.attributes(link, Ask::Attributes { file });
                }
            }
            Act::Here => {
                self.attributes(link, Ask::Attributes { file: here });
            }
            Act::Create(name, flags) => {
                let name = pick(name);
                let what = Ask::Create {
                    parent,
                    name: name.into(),
                    mode: 0o644,
                    umask: 0,
                    flags,
                    handle: HandleId(0),
                };
                self.opened(link, what, flags, Some(name));
            }
            Act::Open(file, flags) => {
                if let Some(file) = known(self, file) {
                    let what = Ask::Open {
                        file,
                        flags,
                        handle: HandleId(0),
                        content: true,
                    };
                    self.opened(link, what, flags, None);
                }
            }
            Act::Close(which) => {
                if let Some((handle, ..)) = self.node(link).handle(which) {
                    self.rig.tell(link, Ask::Close { handle });
                    self.deliver();
                    let handles = &mut self.node(link).handles;
                    handles.retain(|(other, ..)| *other != handle);
                }
            }
            Act::Write(which, offset, length) => self.write(link, which, offset, length),
            Act::Read(file) => {
                let Some(file) = known(self, file) else {
                    return;
                };
                let what = Ask::Read {
                    file,
                    handle: None,
                    offset: 0,
                    length: 1 << 16,
                };
                if let Ok(Reply::Data(content)) = self.ask(link, what) {
                    self.node(link).contents.insert(file, content.0);
                }
            }
            Act::Truncate(file, size) => {
                let Some(file) = known(self, file) else {
                    return;
                };
                let set = SetAttributes {
                    size: Some(size.into()),
                    ..SetAttributes::default()
                };
                let handle = None;
                let done = self.attributes(link, Ask::SetAttributes { file, handle, set });
                if done && let Some(content) = self.node(link).contents.get_mut(&file) {
                    content.resize(size.into(), 0);
                }
            }
            Act::Mode(file, mode) => {
                if let Some(file) = known(self, file) {
                    let set = SetAttributes {
                        mode: Some(0o600 | u32::from(mode & 0o77)),
                        ..SetAttributes::default()
                    };
                    let handle = None;
                    self.attributes(link, Ask::SetAttributes { file, handle, set });
                }
            }
            Act::Remove(name) => {
                let name = pick(name);
                for directory in [false, true] {
                    let what = Ask::Remove {
                        parent,
                        name: name.into(),
                        directory,
                    };
                    if self.ask(link, what) == Ok(Reply::Done) {
                        self.node(link).learn_name(name, None);
                        self.node(link).listing = None;
                    }
                }
            }
            Act::Rename(from, to, exchange) => self.rename(link, pick(from), pick(to), exchange),
            Act::Link(file, name) => {
                if let Some(file) = known(self, file) {
                    let name = pick(name);
                    let what = Ask::Link {
                        file,
                        parent,
                        name: name.into(),
                    };
                    self.entry(link, name, what);
                }
            }
            Act::MakeDirectory(name) => self.make(link, pick(name), NewFile::Directory),
            Act::MakeLink(name) => self.make(link, pick(name), NewFile::Link(b"x".to_vec())),
            Act::SetXattr(file, value) => {
                if let Some(file) = known(self, file) {
                    let what = Ask::SetXattr {
                        file,
                        name: b"user.x".to_vec(),
                        value: vec![value],
                        flags: 0,
                        drop_set_gid: false,
                    };
                    if self.attributes(link, what) {
                        self.node(link).xattrs.insert(file, Some(vec![value]));
                    }
                }
            }
            Act::Xattr(file) => {
                let Some(file) = known(self, file) else {
                    return;
                };
                let name = b"user.x".to_vec();
                match self.ask(link, Ask::Xattr { file, name }) {
                    Ok(Reply::Data(value)) => {
                        self.node(link).xattrs.insert(file, Some(value.0));
                    }
                    Err(Errno::NODATA) => {
                        self.node(link).xattrs.insert(file, None);
                    }
                    _ => {}
                }
            }
            Act::Copy(from, to) => {
                let node = self.node(link);
                if let (Some((from, ..)), Some((to, ..))) = (node.handle(from), node.handle(to)) {
                    let what = Ask::Copy {
                        from,
                        from_offset: 0,
                        to,
                        to_offset: 3,
                        length: 5,
                    };
                    let _ = self.ask(link, what);
                }
            }
            Act::List(attributes) => self.list(link, attributes),
            Act::Forget(file) => self.forget(link, file),
            Act::HeadWrites(..)
            | Act::HeadRenames(..)
            | Act::HeadRemoves(..)
            | Act::HeadLinks(..)
            | Act::HeadChangesMode(..) => {}
        }
    }

    fn write(&mut self, link: LinkId, which: usize, offset: u8, length: u8) {
        let Some((handle, file, flags)) = self.node(link).handle(which) else {
            return;
        };
        let data = vec![offset ^ length; length.into()];
        let what = Ask::Write {
            handle,
            offset: offset.into(),
            data: data.clone(),
            drop_privileges: false,
        };
        if !self.attributes(link, what) {
            return;
        }
        if let Some(content) = self.node(link).contents.get_mut(&file) {
            let start = match flags & APPEND {
                0 => usize::from(offset),
                _ => content.len(),
            };
            let end = start + data.len();
            if !data.is_empty() && content.len() < end {
                content.resize(end, 0);
            }
            if !data.is_empty() {
                content[start..end].copy_from_slice(&data);
            }
        }
    }

    fn make(&mut self, link: LinkId, name: &str, what: NewFile) {
        let what = Ask::Make {
            parent: self.rig.here,
            name: name.into(),
            what,
            mode: 0o755,
            umask: 0,
        };
        self.entry(link, name, what);
    }

    fn rename(&mut self, link: LinkId, from: &str, to: &str, exchange: bool) {
        let inode = |name: &str| {
            let found = std::fs::symlink_metadata(self.rig.file(name));
            found.map(|found| found.ino()).ok()
        };
        let same = inode(from) == inode(to);
        let what = Ask::Rename {
            from_parent: self.rig.here,
            from: from.into(),
            to_parent: self.rig.here,
            to: to.into(),
            flags: if exchange { EXCHANGE } else { 0 },
        };
        if self.ask(link, what) != Ok(Reply::Done) {
            return;
        }
        let node = self.node(link);
        node.listing = None;
        let source = node.names.remove(from.as_bytes());
        let target = node.names.remove(to.as_bytes());
        // Two names of one file are left as they are; the node's kernel does not even ask.
        if same {
            return;
        }
        if let Some(source) = source {
            node.names.insert(to.into(), source);
        }
        if exchange {
            if let Some(target) = target {
                node.names.insert(from.into(), target);
            }
        } else {
            node.names.insert(from.into(), None);
        }
    }

    fn list(&mut self, link: LinkId, attributes: bool) {
        let what = Ask::List {
            directory: self.rig.here,
            offset: 0,
            most: 100,
            attributes,
        };
        let Ok(Reply::Entries { entries, end }) = self.ask(link, what) else {
            panic!("no entries");
        };
        assert!(end);
        let node = self.node(link);
        let mut listing = BTreeSet::new();
        for entry in entries {
            if let Some(attributes) = entry.attributes {
                *node.told.entry(attributes.file).or_default() += 1;
                node.names.insert(entry.name.clone(), Some(attributes.file));
                node.learn(attributes);
            }
            if !entry.name.starts_with(b".") {
                listing.insert(entry.name);
            }
        }
        node.listing = Some(listing);
    }

    fn forget(&mut self, link: LinkId, which: usize) {
        let node = self.node(link);
        let Some(file) = node.known(which) else {
            return;
        };
        if node.handles.iter().any(|(_, open, _)| *open == file) {
            return;
        }
        let count = node.told.remove(&file).expect("told");
        node.attributes.remove(&file);
        node.contents.remove(&file);
        node.xattrs.remove(&file);
        node.names.retain(|_, of| *of != Some(file));
        self.rig.tell(link, Ask::Forget { file, count });
        self.deliver();
    }

    fn act_on_the_head(&mut self, act: &Act) {
        let pick = |which: &usize| NAMES[which % NAMES.len()];
        let script = match act {
            Act::HeadWrites(name, length) => {
                format!("printf '%0{length}d' 7 >> {}", pick(name))
            }
            Act::HeadRenames(from, to) => format!("mv -T {} {}", pick(from), pick(to)),
            Act::HeadRemoves(name) => format!("rm -r {}", pick(name)),
            Act::HeadLinks(from, to) => format!("ln -T {} {}", pick(from), pick(to)),
            Act::HeadChangesMode(name, mode) => {
                format!("chmod {:o} {}", 0o600 | u32::from(mode & 0o77), pick(name))
            }
            _ => return,
        };
        self.rig.run(&["-c", &script]);
        // The launch barrier.
        assert_eq!(self.ask(A, Ask::Barrier), Ok(Reply::Done));
    }

    /// Every belief is so.
    fn check(&mut self) {
        let here = self.rig.here;
        for link in [A, B] {
            if self.watched {
                let attributes = self.rig.attributes(link, here).expect("told");
                self.deliver();
                self.node(link).here_is_watched = attributes.watched;
            }
        }
        let watched = self.watched;
        let World { rig, nodes, .. } = self;
        for (&link, node) in nodes {
            for (&file, believed) in &node.attributes {
                let path = rig.export.path(link, file).expect("it is known");
                if watched && !believed.watched {
                    continue;
                }
                let stat = descriptor::status(&path).expect("its status");
                let mut so = descriptor::attributes(
                    file,
                    &stat,
                    descriptor::has_xattrs(&path),
                    believed.watched,
                );
                // Reading is no change.
                so.times[0] = believed.times[0];
                assert_eq!(*believed, so, "{link:?}");
            }
            for (&file, believed) in &node.contents {
                let attributes = node.attributes.get(&file);
                if watched && attributes.is_none_or(|attributes| !attributes.watched) {
                    continue;
                }
                let path = rig.export.path(link, file).expect("it is known");
                let opened = descriptor::reopen(&path, rustix::fs::OFlags::RDONLY);
                let so = data::read_at(opened.expect("opened"), 0, 1 << 17).expect("read");
                assert_eq!(*believed, so, "{link:?} {file:?}");
            }
            for (&file, believed) in &node.xattrs {
                let attributes = node.attributes.get(&file);
                if watched && attributes.is_none_or(|attributes| !attributes.watched) {
                    continue;
                }
                let path = rig.export.path(link, file).expect("it is known");
                let mut value = [0; 100];
                let magic = descriptor::magic(&path);
                let so = rustix::fs::getxattr(magic, "user.x", &mut value[..]);
                let so = so.ok().map(|length| value[..length].to_vec());
                assert_eq!(*believed, so, "{link:?} {file:?}");
            }
            if watched && !node.here_is_watched {
                continue;
            }
            for (name, believed) in &node.names {
                let directory = rig.export.path(link, here).expect("it is known");
                let so = descriptor::status_in(directory.as_fd(), name).ok();
                let so = so.map(|stat| table::Identity::of(&stat).inode);
                let believed = believed.map(|file| rig.export.table.inode(file).expect("known"));
                assert_eq!(believed, so, "{link:?} {}", name.escape_ascii());
            }
            if let Some(believed) = &node.listing {
                let so: BTreeSet<_> = std::fs::read_dir(&rig.path)
                    .expect("a directory")
                    .map(|entry| entry.expect("an entry").file_name())
                    .map(std::ffi::OsString::into_encoded_bytes)
                    .collect();
                assert_eq!(*believed, so, "{link:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn what_two_nodes_believe_is_so(
        few_descriptors in any::<bool>(),
        acts in prop::collection::vec((node(), nodes_act()), 1..60),
    ) {
        let mut world = World::new(Rig::new(), false);
        if few_descriptors {
            world.rig.export.table.held.set_most(1);
        }
        world.rig.ignore_news();
        for (who, act) in acts {
            world.act(who, act);
            world.check();
        }
        for link in [A, B] {
            world.rig.export.close(link);
        }
        prop_assert_eq!(world.rig.export.len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn what_nodes_believe_of_a_busy_head_is_so(
        acts in prop::collection::vec(
            prop_oneof![
                3 => (node(), nodes_act()),
                1 => (Just(Who::Head), heads_act()),
            ],
            1..60,
        ),
    ) {
        let Some((rig, _keeper)) = watched() else {
            return Ok(());
        };
        let mut world = World::new(rig, true);
        for (who, act) in acts {
            world.act(who, act);
            world.check();
        }
    }
}
