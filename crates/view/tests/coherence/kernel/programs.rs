//! Programs: what they do with files, and what the kernel asks and keeps for that.

use wiglaf_fuse::{Operation, Reply};

use super::{Kernel, Seen, Waits};

const O_WRONLY: u32 = 1;
const O_APPEND: u32 = 0o2000;
const O_TRUNC: u32 = 0o1000;
const EXECUTES: u32 = 0x20;
/// Not a multiple of the pieces that files are given in.
const READ_BYTES: u32 = 100 << 10;

impl Kernel {
    pub(crate) fn look(&mut self, path: &str) -> Waits<Option<Seen>> {
        self.program(|k| {
            let Ok(node) = k.walk(path)? else {
                return Some(None);
            };
            let Ok(attributes) = k.attributes(node)? else {
                return Some(None);
            };
            let is_file = attributes.mode & 0o170_000 == 0o100_000;
            let content = if is_file {
                Some(k.content(node, 0)?)
            } else {
                None
            };
            let nanoseconds = |(seconds, part): (i64, u32)| (seconds, i64::from(part));
            Some(Some(Seen {
                ino: attributes.ino,
                mode: attributes.mode,
                links: attributes.links,
                size: is_file.then_some(attributes.size),
                modified: nanoseconds(attributes.modified),
                changed: nanoseconds(attributes.changed),
                content,
            }))
        })
    }

    /// Executes a file, and reads another one as that.
    pub(crate) fn run(&mut self, program: &str, path: &str) -> Waits<()> {
        self.program(|k| {
            for (path, flags) in [(program, EXECUTES), (path, 0)] {
                if let Ok(node) = k.walk(path)?
                    && let Ok(attributes) = k.attributes(node)?
                    && attributes.mode & 0o170_000 == 0o100_000
                {
                    k.content(node, flags)?;
                }
            }
            k.session.tell_uses();
            k.carry_out();
            Some(())
        })
    }

    fn content(&mut self, node: u64, flags: u32) -> Waits<Vec<u8>> {
        let is_new = self.at >= self.script.len();
        let opened = match self.call(
            node,
            Operation::Open {
                flags,
                kill_privileges: false,
            },
        )? {
            Reply::Opened(opened) => opened,
            other => panic!("{other:?} to an open"),
        };
        if is_new && !opened.keep_cache {
            self.inodes.entry(node).or_default().pages = None;
        }
        let cached = self.inodes.get(&node).and_then(|inode| inode.pages.clone());
        let data = if let (Some(pages), true) = (
            cached,
            self.at >= self.script.len() && self.awaited.is_none(),
        ) {
            self.script.push(Reply::Data(pages.clone()));
            self.at += 1;
            pages
        } else {
            let mut data = Vec::new();
            loop {
                let read = Operation::Read {
                    handle: opened.handle,
                    offset: data.len() as u64,
                    size: READ_BYTES,
                    lock_owner: None,
                    flags: 0,
                };
                match self.call(node, read)? {
                    Reply::Data(part) => data.extend_from_slice(&part),
                    other => panic!("{other:?} to a read"),
                }
                if data.len() % READ_BYTES as usize != 0 || data.is_empty() {
                    break;
                }
            }
            if !opened.direct_io {
                self.inodes.entry(node).or_default().pages = Some(data.clone());
            }
            data
        };
        self.release(node, opened.handle)?;
        Some(data)
    }

    fn release(&mut self, node: u64, handle: u64) -> Waits<()> {
        self.call(
            node,
            Operation::Flush {
                handle,
                lock_owner: 0,
            },
        )?;
        let release = Operation::Release {
            handle,
            flags: 0,
            flock_owner: None,
            lock_owner: 0,
        };
        self.call(node, release)?;
        Some(())
    }

    pub(crate) fn list(&mut self, path: &str) -> Waits<Option<Vec<String>>> {
        self.program(|k| {
            let Ok(node) = k.walk(path)? else {
                return Some(None);
            };
            let cached = k.inodes.get(&node).and_then(|inode| inode.listing.clone());
            if let Some(names) = cached
                && k.at >= k.script.len()
                && k.awaited.is_none()
            {
                return Some(Some(names));
            }
            let reply = k.call(
                node,
                Operation::ReadDirectory {
                    handle: 0,
                    offset: 0,
                    size: 1 << 20,
                    plus: false,
                },
            )?;
            let names = match reply {
                Reply::Directory(buffer) => names_of(&Reply::Directory(buffer)),
                Reply::Error(_) => return Some(None),
                other => panic!("{other:?} to a listing"),
            };
            k.inodes.entry(node).or_default().listing = Some(names.clone());
            Some(Some(names))
        })
    }

    /// As the kernel does after a directory was changed through it.
    fn directory_changed(&mut self, node: u64) {
        let inode = self.inodes.entry(node).or_default();
        inode.attributes = None;
        inode.listing = None;
    }

    pub(crate) fn write(&mut self, path: &str, data: &[u8], truncate: bool) -> Waits<()> {
        let flags = O_WRONLY | if truncate { O_TRUNC } else { O_APPEND };
        self.program(|k| {
            let Ok((parent, name)) = k.parent(path)? else {
                return Some(());
            };
            let (node, opened) = match k.step(parent, &name)? {
                Ok(node) => {
                    match k.call(
                        node,
                        Operation::Open {
                            flags,
                            kill_privileges: false,
                        },
                    )? {
                        Reply::Opened(opened) => (node, opened),
                        _ => return Some(()),
                    }
                }
                Err(_) => {
                    let create = Operation::Create {
                        name: name.as_bytes(),
                        mode: 0o100_644,
                        umask: 0o022,
                        flags,
                        kill_privileges: false,
                    };
                    match k.call(parent, create)? {
                        Reply::Created { entry, opened } => {
                            k.directory_changed(parent);
                            k.learn(&entry);
                            let key = (parent, name.as_bytes().to_vec());
                            k.names.insert(key, Some(entry.node));
                            (entry.node, opened)
                        }
                        _ => return Some(()),
                    }
                }
            };
            let inode = k.inodes.entry(node).or_default();
            inode.pages = None;
            inode.attributes = None;
            let write = Operation::Write {
                handle: opened.handle,
                offset: 0,
                data,
                from_cache: false,
                kill_privileges: false,
                lock_owner: None,
                flags,
            };
            k.call(node, write)?;
            k.inodes.entry(node).or_default().attributes = None;
            k.release(node, opened.handle)
        })
    }

    fn set(&mut self, path: &str, set: wiglaf_fuse::SetAttributes) -> Waits<()> {
        self.program(|k| {
            let Ok(node) = k.walk(path)? else {
                return Some(());
            };
            let Ok(attributes) = k.attributes(node)? else {
                return Some(());
            };
            if set.size.is_some() && attributes.mode & 0o170_000 != 0o100_000 {
                return Some(());
            }
            if let Reply::Attributes { attributes, .. } =
                k.call(node, Operation::SetAttributes(set))?
            {
                let inode = k.inodes.entry(node).or_default();
                inode.attributes = Some(attributes);
                if set.size.is_some() {
                    inode.pages = None;
                }
            }
            Some(())
        })
    }

    pub(crate) fn truncate(&mut self, path: &str, size: u64) -> Waits<()> {
        let set = wiglaf_fuse::SetAttributes {
            size: Some(size),
            ..wiglaf_fuse::SetAttributes::default()
        };
        self.set(path, set)
    }

    pub(crate) fn mode(&mut self, path: &str, mode: u32) -> Waits<()> {
        let set = wiglaf_fuse::SetAttributes {
            mode: Some(mode),
            ..wiglaf_fuse::SetAttributes::default()
        };
        self.set(path, set)
    }

    pub(crate) fn remove(&mut self, path: &str, directory: bool) -> Waits<()> {
        self.program(|k| {
            let Ok((parent, name)) = k.parent(path)? else {
                return Some(());
            };
            let Ok(node) = k.step(parent, &name)? else {
                return Some(());
            };
            let name = name.as_bytes();
            let operation = if directory {
                Operation::RemoveDirectory { name }
            } else {
                Operation::Unlink { name }
            };
            if k.call(parent, operation)? == Reply::Empty {
                k.names.insert((parent, name.to_vec()), None);
                k.names.remove(&(parent, name.to_vec()));
                k.directory_changed(parent);
                k.inodes.entry(node).or_default().attributes = None;
            }
            Some(())
        })
    }

    pub(crate) fn make_directory(&mut self, path: &str) -> Waits<()> {
        self.program(|k| {
            let Ok((parent, name)) = k.parent(path)? else {
                return Some(());
            };
            if k.step(parent, &name)?.is_ok() {
                return Some(());
            }
            let make = Operation::MakeDirectory {
                name: name.as_bytes(),
                mode: 0o755,
                umask: 0o022,
            };
            if let Reply::Entry(entry) = k.call(parent, make)? {
                k.learn(&entry);
                k.names
                    .insert((parent, name.as_bytes().to_vec()), Some(entry.node));
                k.directory_changed(parent);
            }
            Some(())
        })
    }

    pub(crate) fn link(&mut self, from: &str, to: &str) -> Waits<()> {
        self.program(|k| {
            let Ok(file) = k.walk(from)? else {
                return Some(());
            };
            let Ok((parent, name)) = k.parent(to)? else {
                return Some(());
            };
            if k.step(parent, &name)?.is_ok() {
                return Some(());
            }
            let link = Operation::Link {
                file,
                name: name.as_bytes(),
            };
            if let Reply::Entry(entry) = k.call(parent, link)? {
                k.learn(&entry);
                k.names
                    .insert((parent, name.as_bytes().to_vec()), Some(entry.node));
                k.directory_changed(parent);
            }
            Some(())
        })
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) -> Waits<()> {
        self.program(|k| {
            let Ok((old_parent, old)) = k.parent(from)? else {
                return Some(());
            };
            let Ok((new_parent, new)) = k.parent(to)? else {
                return Some(());
            };
            let Ok(node) = k.step(old_parent, &old)? else {
                return Some(());
            };
            let replaced = k.step(new_parent, &new)?;
            if replaced == Ok(node) {
                return Some(());
            }
            let rename = Operation::Rename {
                name: old.as_bytes(),
                new_parent,
                new_name: new.as_bytes(),
                flags: 0,
            };
            if k.call(old_parent, rename)? == Reply::Empty {
                k.names.remove(&(old_parent, old.as_bytes().to_vec()));
                k.names
                    .insert((new_parent, new.as_bytes().to_vec()), Some(node));
                k.directory_changed(old_parent);
                k.directory_changed(new_parent);
                // As Linux does: the times of what was moved.
                k.inodes.entry(node).or_default().attributes = None;
                if let Ok(replaced) = replaced {
                    k.inodes.entry(replaced).or_default().attributes = None;
                }
            }
            Some(())
        })
    }
}

/// The names of a listing, as the kernel parses it: offset and number, 8 bytes each, then the
/// name's length and type, 4 bytes each, then the name, padded to 8 bytes.
fn names_of(reply: &Reply) -> Vec<String> {
    const HEADER_BYTES: usize = 16;
    const ENTRY_BYTES: usize = 24;
    let mut bytes = Vec::new();
    reply.encode(0, &mut bytes);
    let mut names = Vec::new();
    let mut at = HEADER_BYTES;
    while at + ENTRY_BYTES <= bytes.len() {
        let length: [u8; 4] = bytes[at + 16..at + 20].try_into().expect("four bytes");
        let length = u32::from_ne_bytes(length) as usize;
        let name = &bytes[at + ENTRY_BYTES..at + ENTRY_BYTES + length];
        let name = String::from_utf8(name.to_vec()).expect("text");
        if name != "." && name != ".." {
            names.push(name);
        }
        at += (ENTRY_BYTES + length).next_multiple_of(8);
    }
    names
}
