//! What nodes are given unasked: what the program that they are about to run has used before. A
//! gift is made as an answer is, by the same code, so that what a node believes by it is known
//! here and taken back.

use rustix::fs::FileType;
use wiglaf_wire::view::{
    Content, FIRST_GIVEN_HANDLE, FileId, Gift, HandleId, MAX_EXPECTED_PATHS, MAX_USES, PIECE_BYTES,
    Program, Reply, Use,
};

use super::giving::{Giving, MOSTLY};
use super::learned::{Deed, Path, Version, Wish};
use super::maker::Owner;
use super::{Export, LinkId, Told, descriptor};

/// Wishes that are fulfilled before questions have their turn, each of some 20 µs.
const WISHES_PER_TURN: usize = 24;
/// The same in bytes.
const WEIGHT_PER_TURN: u64 = 64 << 10;
/// Most entries of a directory that are given.
const MAX_ENTRIES_GIVEN: u32 = 1024;
/// Handles that a node may have beyond what it asked for.
const MAX_GIVEN_HANDLES: usize = 1 << 14;
/// Pieces of a file of data that are remembered, from its beginning.
const MAX_DATA_PIECES: u32 = 16;
/// Most programs that wait to be looked at.
const MAX_EXPECTED: usize = 64;
/// Whoever gives has no user's question to answer.
const NOBODY: Owner = Owner { uid: 0, gid: 0 };

/// Gifts of one turn.
struct Parcel<'a> {
    link: LinkId,
    gifts: Vec<Gift>,
    weight: u64,
    out: &'a mut Vec<(LinkId, Told)>,
}

impl Export {
    /// Whether [`give`](Export::give) has something for a link.
    #[must_use]
    pub fn has_gifts(&self, link: LinkId) -> bool {
        let link = self.links.get(&link);
        link.is_some_and(|link| link.giving.has_gifts())
    }

    /// Gives a link a little of what its programs will need, after what has changed.
    pub fn give(&mut self, link: LinkId, out: &mut Vec<(LinkId, Told)>) {
        if !self.has_gifts(link) {
            return;
        }
        self.drain();
        self.tell_news(out);
        self.look_at_expected(link);
        let mut parcel = Parcel {
            link,
            gifts: Vec::new(),
            weight: 0,
            out,
        };
        for _ in 0..WISHES_PER_TURN {
            if parcel.weight >= WEIGHT_PER_TURN || !self.fulfil_next(&mut parcel) {
                break;
            }
        }
        self.send(&mut parcel);
        self.tell_news(out);
        if std::mem::take(&mut self.released) {
            self.try_waiting(None, out);
        }
    }

    /// What became known to be changed while a gift was made goes before it, and after those that
    /// were made earlier.
    fn put(&mut self, parcel: &mut Parcel<'_>, gift: Gift) {
        if !self.news.is_empty() {
            self.send(parcel);
            self.tell_news(parcel.out);
        }
        parcel.weight += gift.weight();
        parcel.gifts.push(gift);
    }

    fn send(&mut self, parcel: &mut Parcel<'_>) {
        let gifts = std::mem::take(&mut parcel.gifts);
        if gifts.is_empty() {
            return;
        }
        if let Some(giving) = self.giving(parcel.link) {
            giving.sent(&gifts);
        }
        parcel.out.push((parcel.link, Told::Gifts(gifts)));
    }

    /// Nothing runs at a link for which gifts would be of use.
    pub fn stop_giving(&mut self, link: LinkId) {
        if let Some(giving) = self.giving(link) {
            giving.stop();
        }
    }

    fn giving(&mut self, link: LinkId) -> Option<&mut Giving> {
        self.links.get_mut(&link).map(|link| &mut link.giving)
    }

    pub(super) fn expect(&mut self, link: LinkId, program: Program) {
        if let Some(giving) = self.giving(link)
            && giving.expected.len() < MAX_EXPECTED
        {
            giving.expected.push_back(program);
        }
    }

    pub(super) fn took(&mut self, link: LinkId, weight: u64, settled: u64) {
        if let Some(giving) = self.giving(link) {
            giving.took(weight, settled);
        }
    }

    /// A node asks for a part of a file; whether it has been given that already.
    pub(super) fn is_given(
        &mut self,
        link: LinkId,
        file: FileId,
        offset: u64,
        length: u32,
    ) -> bool {
        let Some(giving) = self.giving(link) else {
            return false;
        };
        if giving.has_under_way(file, offset, length) {
            return true;
        }
        giving.asked(file, offset, length);
        false
    }

    /// A node tells what a program has used.
    pub(super) fn used(&mut self, link: LinkId, program: Option<FileId>, uses: Vec<Use>) {
        let program = match program {
            None => Some(Vec::new()),
            Some(file) => self.path_for(link, file),
        };
        let Some(program) = program else { return };
        // Most names of one directory come together.
        let mut last: Option<(FileId, Vec<u8>)> = None;
        for used in uses.into_iter().take(MAX_USES) {
            let (file, deed) = match used {
                Use::Name { parent, name } => {
                    if descriptor::check_name(&name).is_err() {
                        continue;
                    }
                    if last.as_ref().is_none_or(|(file, _)| *file != parent) {
                        let path = self.path_for(link, parent);
                        last = path.map(|path| (parent, path));
                    }
                    if let Some((_, path)) = &last {
                        let path = [path.as_slice(), b"/", &name].concat();
                        self.learned.note(&program, &path, Deed::Named);
                    }
                    continue;
                }
                Use::Opened(file) => (file, Deed::Opened),
                // Anything may be launched, by which nothing is said of what will be.
                Use::Executed(_) if program.is_empty() => continue,
                Use::Executed(file) => (file, Deed::Executed),
                Use::Link(file) => (file, Deed::LinkRead),
                Use::Listed(file) => (file, Deed::Listed),
                Use::Piece(file, piece) => {
                    if piece >= MAX_DATA_PIECES && !self.is_code(link, file) {
                        continue;
                    }
                    (file, Deed::Read(piece))
                }
            };
            if let Some(path) = self.path_for(link, file) {
                self.learned.note(&program, &path, deed);
            }
        }
    }

    /// Whether a file is a program or a library: others are different ones the next time, or are
    /// read from beginning to end, which needs no help.
    fn is_code(&mut self, link: LinkId, file: FileId) -> bool {
        const SHARED: &[u8] = b".so";
        const ANYBODY_EXECUTES: u16 = 0o111;
        let Ok(descriptor) = self.path(link, file) else {
            return false;
        };
        let path = self.table.path_of(file).unwrap_or_default();
        path.windows(SHARED.len()).any(|part| part == SHARED)
            || descriptor::status(&descriptor)
                .is_ok_and(|stat| stat.stx_mode & ANYBODY_EXECUTES != 0)
    }

    /// The path of a file that a link was told of; that of the root is empty.
    fn path_for(&mut self, link: LinkId, file: FileId) -> Option<Vec<u8>> {
        self.table.kind(link, file).ok()?;
        self.table.path_of(file)
    }

    /// Queues what belongs to the programs that are about to run.
    fn look_at_expected(&mut self, link: LinkId) {
        while let Some(program) = self
            .giving(link)
            .and_then(|giving| giving.expected.pop_front())
        {
            let runs = matches!(program, Program::Executed(_));
            let path = match program {
                Program::Launched(paths) => {
                    self.begin(link, &Path::from([]), false);
                    let mut paths = paths.into_iter().take(MAX_EXPECTED_PATHS);
                    paths.find_map(|path| self.resolve(&path))
                }
                Program::Executed(file) => self.path_for(link, file).and_then(|path| {
                    let descriptor = self.path(link, file).ok()?;
                    let stat = descriptor::status(&descriptor).ok()?;
                    Some((path, version(&stat)))
                }),
            };
            if let Some((path, version)) = path {
                self.learned.see_version(&path, version);
                self.begin(link, &path.into(), runs);
            }
        }
    }

    /// Where a path leads, without symbolic links: programs are known by that.
    fn resolve(&mut self, path: &[u8]) -> Option<(Vec<u8>, Version)> {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
        if !path.is_absolute() {
            return None;
        }
        let real = std::fs::canonicalize(path).ok()?;
        let stat = descriptor::status_in(rustix::fs::CWD, real.as_os_str().as_bytes()).ok()?;
        let is_file = descriptor::kind(&stat) == FileType::RegularFile;
        is_file.then(|| (real.into_os_string().into_vec(), version(&stat)))
    }

    fn begin(&mut self, link: LinkId, program: &Path, runs: bool) {
        let is_done = |giving: &mut Giving| {
            let done = if runs {
                &giving.executed
            } else {
                &giving.begun
            };
            done.contains(program)
        };
        if self.giving(link).is_none_or(is_done) {
            return;
        }
        let plan = self.learned.plan(program, runs);
        if runs {
            self.learned.ran(program);
        }
        if let Some(giving) = self.giving(link) {
            if runs {
                giving.runs(program);
            }
            giving.queue(program, plan);
        }
    }

    /// Whether there was one more wish.
    fn fulfil_next(&mut self, parcel: &mut Parcel<'_>) -> bool {
        let link = parcel.link;
        let Some(giving) = self.giving(link) else {
            return false;
        };
        if let Some((program, path, wish)) = giving.wishes.pop_front() {
            let before = parcel.weight;
            self.fulfil(parcel, &path, &wish);
            if parcel.weight > before {
                self.learned.gave(&program, &path);
            }
            return true;
        }
        if !giving.has_room() {
            return false;
        }
        if let Some((program, path, piece)) = giving.pieces.pop_front() {
            if self.give_piece(parcel, &path, piece).is_some() {
                self.learned.gave_piece(&program, &path, piece);
            }
            return true;
        }
        giving.directories.clear();
        false
    }

    fn fulfil(&mut self, parcel: &mut Parcel<'_>, path: &Path, wish: &Wish) {
        let link = parcel.link;
        let Some(file) = self.step_to(parcel, path) else {
            return;
        };
        let Ok((kind, false)) = self.table.kind(link, file) else {
            return;
        };
        match kind {
            FileType::RegularFile if wish.open => self.give_open(parcel, file),
            FileType::Symlink if wish.link => {
                if self.table.is_watched(file)
                    && let Ok(Reply::Data(text)) = self.read_link(link, file)
                {
                    self.put(parcel, Gift::Link { file, text });
                }
            }
            FileType::Directory if wish.list => {
                if !self.table.is_watched(file) {
                    return;
                }
                let part = (0, MAX_ENTRIES_GIVEN);
                if let Ok(Reply::Entries { entries, end }) = self.list(link, file, part, true) {
                    let directory = file;
                    let listing = Gift::Listing {
                        directory,
                        entries,
                        end,
                    };
                    self.put(parcel, listing);
                }
            }
            _ => {}
        }
    }

    /// Gives what leads to a path, as far as the node does not know it, and returns its file.
    fn step_to(&mut self, parcel: &mut Parcel<'_>, path: &[u8]) -> Option<FileId> {
        let Some(slash) = path.iter().rposition(|&byte| byte == b'/') else {
            return path.is_empty().then_some(FileId::ROOT);
        };
        let parent = self.directory_at(parcel, &path[..slash])?;
        self.give_name(parcel, parent, &path[slash + 1..])
    }

    fn directory_at(&mut self, parcel: &mut Parcel<'_>, path: &[u8]) -> Option<FileId> {
        let link = parcel.link;
        let known = self.giving(link)?.directories.get(path).copied();
        let file = match known.filter(|&file| self.table.kind(link, file).is_ok()) {
            Some(file) => return Some(file),
            None => self.step_to(parcel, path)?,
        };
        let Ok((FileType::Directory, false)) = self.table.kind(link, file) else {
            return None;
        };
        self.giving(link)?.directories.insert(path.into(), file);
        Some(file)
    }

    fn give_name(
        &mut self,
        parcel: &mut Parcel<'_>,
        parent: FileId,
        name: &[u8],
    ) -> Option<FileId> {
        let link = parcel.link;
        let believes = self.belief(link, parent).map(|belief| belief.knows(name));
        if believes == Some(true) {
            return self.known_file(link, parent, name);
        }
        let Ok(Reply::Entry(found)) = self.look_up(link, parent, name) else {
            return None;
        };
        let file = found.as_ref().map(|attributes| attributes.file);
        let name = name.to_vec();
        self.put(
            parcel,
            Gift::Name {
                parent,
                name,
                found,
            },
        );
        file
    }

    /// The file that a name stands for, if the link was told of it.
    fn known_file(&mut self, link: LinkId, parent: FileId, name: &[u8]) -> Option<FileId> {
        let directory = self.table.directory(link, parent).ok()?;
        let stat = descriptor::status_in(std::os::fd::AsFd::as_fd(&directory.path), name).ok()?;
        let file = self.table.number_of(&stat)?;
        self.table.kind(link, file).is_ok().then_some(file)
    }

    fn give_open(&mut self, parcel: &mut Parcel<'_>, file: FileId) {
        let link = parcel.link;
        let Some(of_link) = self.links.get_mut(&link) else {
            return;
        };
        if of_link.readers.contains_key(&file) || of_link.giving.handles >= MAX_GIVEN_HANDLES {
            return;
        }
        let handle = HandleId(of_link.giving.next_handle);
        of_link.giving.next_handle += 1;
        let Ok(Reply::Opened {
            attributes,
            content,
            unkept,
        }) = self.open(link, NOBODY, file, 0, handle, true)
        else {
            return;
        };
        if unkept || !attributes.watched {
            self.close_handle(link, handle);
            return;
        }
        if let Some(giving) = self.giving(link) {
            giving.handles += 1;
        }
        let opened = Gift::Opened {
            handle,
            attributes,
            content,
        };
        self.put(parcel, opened);
    }

    fn give_piece(&mut self, parcel: &mut Parcel<'_>, path: &[u8], piece: u32) -> Option<()> {
        let link = parcel.link;
        let file = self.step_to(parcel, path)?;
        let of_link = self.links.get_mut(&link)?;
        // Who has not opened it would not keep it.
        let handle = *of_link.readers.get(&file)?;
        let sent = of_link.giving.sent.get(&(file, piece)).copied();
        if sent.is_some_and(|bytes| bytes >= MOSTLY) {
            return None;
        }
        let offset = u64::from(piece) * u64::from(PIECE_BYTES);
        let data = self.read_part(link, file, Some(handle), offset, PIECE_BYTES);
        let Ok(Reply::Data(Content(data))) = data else {
            return None;
        };
        if data.is_empty() {
            return None;
        }
        let giving = self.giving(link)?;
        giving.unsettled += data.len() as u64;
        giving.sent.insert((file, piece), PIECE_BYTES);
        let data = Content(data);
        self.put(parcel, Gift::Piece { file, piece, data });
        Some(())
    }

    /// A given file is closed.
    pub(super) fn closed_given(&mut self, link: LinkId, handle: HandleId) {
        if handle.0 >= FIRST_GIVEN_HANDLE
            && let Some(giving) = self.giving(link)
        {
            giving.handles = giving.handles.saturating_sub(1);
        }
    }
}

fn version(stat: &rustix::fs::Statx) -> Version {
    let modified = (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec);
    (stat.stx_ino, modified, stat.stx_size)
}
