use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wiglaf_wire::view::{
    Attributes, Content, Entry, Lock, LockKind, LockStyle, NewFile, SetAttributes, SetTime,
};

use super::*;

mod acts;
mod changes;
mod giving;
mod guards;
mod locks;
mod model;
mod node;
mod operations;
mod rights;
mod shown;
mod undoing;
mod watched;

const A: LinkId = LinkId(1);
const B: LinkId = LinkId(2);

const RDONLY: u32 = 0;
const WRONLY: u32 = 1;
const RDWR: u32 = 2;
const EXCL: u32 = 0o200;
const TRUNC: u32 = 0o1000;
const APPEND: u32 = 0o2000;

/// An export with two links, a directory that both know, and what they were told.
struct Rig {
    export: Export,
    _directory: tempfile::TempDir,
    path: PathBuf,
    here: FileId,
    ids: u64,
    handles: u64,
    changes: Vec<(LinkId, Change)>,
    /// Answers to questions that had to wait.
    late: VecDeque<(LinkId, Answer)>,
    owner: (u32, u32),
}

impl Rig {
    fn new() -> Rig {
        Rig::hiding(&[])
    }

    fn hiding(hidden: &[&str]) -> Rig {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().canonicalize().expect("its path");
        let hidden = hidden.iter().map(|name| path.join(name)).collect();
        let export = Export::new(hidden, None).expect("an export");
        Rig::with(directory, export)
    }

    fn with(directory: tempfile::TempDir, export: Export) -> Rig {
        give_thread_its_own_umask();
        let path = directory.path().canonicalize().expect("its path");
        let mut rig = Rig {
            export,
            _directory: directory,
            path: path.clone(),
            here: FileId::ROOT,
            ids: 0,
            handles: 0,
            changes: Vec::new(),
            late: VecDeque::new(),
            owner: (0, 0),
        };
        let own = std::fs::metadata(&path).expect("its status");
        rig.owner = (own.uid(), own.gid());
        rig.here = rig.find(A, &path).file;
        let seen_by_other = rig.find(B, &path).file;
        assert_eq!(rig.here, seen_by_other);
        rig
    }

    /// Walks to a path of the head.
    fn find(&mut self, link: LinkId, path: &Path) -> Attributes {
        let mut file = FileId::ROOT;
        let mut found = None;
        for name in path.components().skip(1) {
            let name = name.as_os_str().as_encoded_bytes();
            let attributes = self.look_up_in(link, file, name);
            file = attributes.file;
            found = Some(attributes);
        }
        found.expect("a path below /")
    }

    /// Another process on the head. What is told of that is told when the export is asked next.
    fn run(&self, shell: &[&str]) -> std::process::ExitStatus {
        std::process::Command::new("sh")
            .args(shell)
            .current_dir(&self.path)
            .stderr(std::process::Stdio::null())
            .status()
            .expect("a shell")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), content).expect("a file");
    }

    /// Asks; `None` if the answer is yet to come, or none is.
    fn try_ask(&mut self, link: LinkId, what: Ask) -> Option<Result<Reply, Errno>> {
        self.ids += 1;
        let question = Question {
            id: self.ids,
            uid: self.owner.0,
            gid: self.owner.1,
            what,
        };
        let mut out = Vec::new();
        self.export.question(link, question, &mut out);
        let mut answered = None;
        for (to, told) in out {
            match told {
                Told::Answer(answer) if to == link && answer.id == self.ids => {
                    assert!(answered.is_none());
                    answered = Some(answer.result.map_err(Errno::from_raw_os_error));
                }
                Told::Answer(answer) => self.late.push_back((to, answer)),
                Told::Changes(changes) => {
                    assert!(answered.is_none() || !self.late.is_empty() || to != link);
                    self.heard(to, changes);
                }
                Told::Gifts(gifts) => panic!("{gifts:?}"),
            }
        }
        answered
    }

    fn heard(&mut self, link: LinkId, changes: Vec<Change>) {
        assert!((1..=MAX_CHANGES).contains(&changes.len()));
        self.changes
            .extend(changes.into_iter().map(|change| (link, change)));
    }

    fn ask(&mut self, link: LinkId, what: Ask) -> Result<Reply, Errno> {
        self.try_ask(link, what).expect("an answer")
    }

    fn tell(&mut self, link: LinkId, what: Ask) {
        assert!(self.try_ask(link, what).is_none());
    }

    /// What was told unasked since this was asked last.
    fn news(&mut self, link: LinkId) -> Vec<Change> {
        let mut out = Vec::new();
        self.export.changes(&mut out);
        for (to, told) in out {
            match told {
                Told::Changes(changes) => self.heard(to, changes),
                told => panic!("{told:?}"),
            }
        }
        let (mine, others) = self.changes.drain(..).partition(|(to, _)| *to == link);
        self.changes = others;
        let mine: Vec<(LinkId, Change)> = mine;
        mine.into_iter().map(|(_, change)| change).collect()
    }

    fn ignore_news(&mut self) {
        self.changes.clear();
    }

    fn entry(&mut self, link: LinkId, what: Ask) -> Result<Option<Attributes>, Errno> {
        match self.ask(link, what)? {
            Reply::Entry(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    fn attributes_of(&mut self, link: LinkId, what: Ask) -> Result<Attributes, Errno> {
        match self.ask(link, what)? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    fn done(&mut self, link: LinkId, what: Ask) -> Result<(), Errno> {
        match self.ask(link, what)? {
            Reply::Done => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    fn data(&mut self, link: LinkId, what: Ask) -> Result<Vec<u8>, Errno> {
        match self.ask(link, what)? {
            Reply::Data(Content(data)) => Ok(data),
            other => panic!("{other:?}"),
        }
    }

    fn try_look_up(
        &mut self,
        link: LinkId,
        parent: FileId,
        name: &[u8],
    ) -> Result<Option<Attributes>, Errno> {
        let name = name.to_vec();
        self.entry(link, Ask::Lookup { parent, name })
    }

    fn look_up_in(&mut self, link: LinkId, parent: FileId, name: &[u8]) -> Attributes {
        let found = self.try_look_up(link, parent, name);
        found.expect("no error").expect("it is there")
    }

    fn look_up(&mut self, link: LinkId, name: &str) -> Attributes {
        self.look_up_in(link, self.here, name.as_bytes())
    }

    fn attributes(&mut self, link: LinkId, file: FileId) -> Result<Attributes, Errno> {
        self.attributes_of(link, Ask::Attributes { file })
    }

    fn set(&mut self, link: LinkId, file: FileId, set: SetAttributes) -> Result<Attributes, Errno> {
        let handle = None;
        self.attributes_of(link, Ask::SetAttributes { file, handle, set })
    }

    fn make(&mut self, link: LinkId, name: &str, what: NewFile, mode: u32) -> Attributes {
        let made = self.try_make(link, name, what, mode);
        made.expect("no error").expect("it is there")
    }

    fn try_make(
        &mut self,
        link: LinkId,
        name: &str,
        what: NewFile,
        mode: u32,
    ) -> Result<Option<Attributes>, Errno> {
        let what = Ask::Make {
            parent: self.here,
            name: name.into(),
            what,
            mode,
            umask: 0o022,
        };
        self.entry(link, what)
    }

    fn create(&mut self, link: LinkId, name: &str, flags: u32) -> Result<Opened, Errno> {
        self.handles += 1;
        let handle = HandleId(self.handles);
        let what = Ask::Create {
            parent: self.here,
            name: name.into(),
            mode: 0o666,
            umask: 0o022,
            flags,
            handle,
        };
        self.opened(link, handle, what)
    }

    fn open(&mut self, link: LinkId, file: FileId, flags: u32) -> Result<Opened, Errno> {
        self.handles += 1;
        let handle = HandleId(self.handles);
        let what = Ask::Open {
            file,
            flags,
            handle,
            content: true,
        };
        self.opened(link, handle, what)
    }

    fn opened(&mut self, link: LinkId, handle: HandleId, what: Ask) -> Result<Opened, Errno> {
        match self.ask(link, what)? {
            Reply::Opened {
                attributes,
                content,
                unkept,
            } => Ok(Opened {
                handle,
                file: attributes.file,
                attributes,
                content: content.map(|content| content.0),
                unkept,
            }),
            other => panic!("{other:?}"),
        }
    }

    fn read(
        &mut self,
        link: LinkId,
        file: FileId,
        handle: Option<HandleId>,
        offset: u64,
        length: u32,
    ) -> Result<Vec<u8>, Errno> {
        let what = Ask::Read {
            file,
            handle,
            offset,
            length,
        };
        self.data(link, what)
    }

    fn write_to(
        &mut self,
        link: LinkId,
        handle: HandleId,
        offset: u64,
        data: &[u8],
    ) -> Result<Attributes, Errno> {
        let what = Ask::Write {
            handle,
            offset,
            data: data.to_vec(),
            drop_privileges: false,
        };
        self.attributes_of(link, what)
    }

    fn remove(&mut self, link: LinkId, name: &str, directory: bool) -> Result<(), Errno> {
        let what = Ask::Remove {
            parent: self.here,
            name: name.into(),
            directory,
        };
        self.done(link, what)
    }

    fn rename(&mut self, link: LinkId, from: &str, to: &str, flags: u32) -> Result<(), Errno> {
        let what = Ask::Rename {
            from_parent: self.here,
            from: from.into(),
            to_parent: self.here,
            to: to.into(),
            flags,
        };
        self.done(link, what)
    }

    fn list_from(
        &mut self,
        link: LinkId,
        directory: FileId,
        (offset, most): (u64, u32),
        attributes: bool,
    ) -> Result<(Vec<Entry>, bool), Errno> {
        let what = Ask::List {
            directory,
            offset,
            most,
            attributes,
        };
        match self.ask(link, what)? {
            Reply::Entries { entries, end } => Ok((entries, end)),
            other => panic!("{other:?}"),
        }
    }

    /// All entries, sorted by name, without `.` and `..`.
    fn list(&mut self, link: LinkId, attributes: bool) -> Vec<Entry> {
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let most = wiglaf_wire::view::MAX_ENTRIES as u64;
            let most = u32::try_from(most).expect("small");
            let (entries, end) = self
                .list_from(link, self.here, (offset, most), attributes)
                .expect("entries");
            offset = entries.last().map_or(offset, |entry| entry.next);
            all.extend(entries);
            if end {
                break;
            }
        }
        all.retain(|entry| entry.name != b"." && entry.name != b"..");
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}

struct Opened {
    handle: HandleId,
    file: FileId,
    attributes: Attributes,
    content: Option<Vec<u8>>,
    unkept: bool,
}

fn give_thread_its_own_umask() {
    #[expect(deprecated, reason = "the other one is unsafe, which this flag is not")]
    rustix::thread::unshare(rustix::thread::UnshareFlags::FS).expect("a thread may have this");
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: not root");
    }
    root
}

/// Something that another process on the head does in the rig's directory.
fn elsewhere(rig: &mut Rig, script: &str) {
    assert!(rig.run(&["-ec", script]).success(), "{script}");
}

fn changed(file: FileId, content: bool) -> Change {
    Change::File { file, content }
}

fn renamed(directory: FileId, name: &str) -> Change {
    Change::Name {
        directory,
        name: name.into(),
    }
}
