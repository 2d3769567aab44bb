//! The files that are served, by descriptors that root has opened.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::{Rc, Weak};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::card::{Card, Cards, MAX_LIST_BYTES};
use crate::tftp::{self, LOADERS};

/// A boot program is some hundred kilobytes.
const MAX_LOADER_BYTES: u64 = 16 << 20;
/// Files that are remembered as open, before those that nobody reads are forgotten.
const MAX_REMEMBERED: usize = 64;
/// Images whose lists of cards are kept.
const MAX_LISTS: usize = 8;
/// The names that images have for them.
const INITRAMFS: &str = "initramfs";
const CARDS: &str = "cards";

/// Where the files are.
#[derive(Debug)]
pub(super) struct Files {
    images: OwnedFd,
    loaders: Vec<OwnedFd>,
    open: HashMap<String, Weak<OwnedFd>>,
    programs: HashMap<&'static str, Program>,
    /// By image, whose name is of what is in it: another list would have another.
    lists: HashMap<String, Cards>,
}

/// A boot program in memory, as long as somebody fetches it by TFTP.
#[derive(Debug)]
struct Program {
    bytes: Weak<[u8]>,
    changed: (i64, u64, u64),
}

impl Files {
    /// `loaders`: the first that has a program provides it; those that are not there are left out.
    pub(super) fn open(images: &Path, loaders: &[std::path::PathBuf]) -> Result<Files, Errno> {
        let directory = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
        };
        Ok(Files {
            images: directory(images)?,
            loaders: loaders
                .iter()
                .filter_map(|path| directory(path).ok())
                .collect(),
            open: HashMap::new(),
            programs: HashMap::new(),
            lists: HashMap::new(),
        })
    }

    /// The boot programs that there are.
    pub(super) fn loaders(&self) -> impl Iterator<Item = &'static str> {
        LOADERS
            .into_iter()
            .filter(|loader| self.find(loader).is_ok())
    }

    /// The file of an image that a machine with this card needs; none if that is the whole
    /// initramfs.
    pub(super) fn initramfs_for(&mut self, image: &str, card: Card) -> Option<String> {
        let (_, whole) = self.open_image(image, INITRAMFS).ok()?;
        let list = self.list(image)?;
        let file = list.file_for(card)?;
        list.parts_of(file, whole)?;
        Some(file.to_owned())
    }

    /// A file of an image, and what it is of that. Readers share a descriptor.
    pub(super) fn image(
        &mut self,
        image: &str,
        file: &str,
    ) -> Result<(Rc<OwnedFd>, Vec<Range<u64>>), Errno> {
        match self.open_image(image, file) {
            Ok((open, length)) => Ok((open, std::iter::once(0..length).collect())),
            // It may be one that is put together.
            Err(errno) if file.starts_with(INITRAMFS) => {
                let (open, whole) = self.open_image(image, INITRAMFS)?;
                let list = self.list(image).ok_or(errno)?;
                let parts = list.parts_of(file, whole).ok_or(errno)?;
                Ok((open, parts.to_vec()))
            }
            Err(errno) => Err(errno),
        }
    }

    /// The image's list of cards, if it has one.
    fn list(&mut self, image: &str) -> Option<&Cards> {
        if !self.lists.contains_key(image) {
            let path = format!("{image}/{CARDS}");
            let open = open_file(
                &self.images,
                &path,
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            );
            let mut text = String::new();
            let file = File::from(open.ok()?);
            file.take(MAX_LIST_BYTES).read_to_string(&mut text).ok()?;
            let list = Cards::parse(&text)?;
            if self.lists.len() >= MAX_LISTS {
                self.lists.clear();
            }
            self.lists.insert(image.to_owned(), list);
        }
        self.lists.get(image)
    }

    fn open_image(&mut self, image: &str, file: &str) -> Result<(Rc<OwnedFd>, u64), Errno> {
        let path = format!("{image}/{file}");
        let open = match self.open.get(&path).and_then(Weak::upgrade) {
            Some(open) => open,
            None => {
                // Images have no links, and none that somebody put there leads out.
                let open = open_file(
                    &self.images,
                    &path,
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
                )?;
                if self.open.len() >= MAX_REMEMBERED {
                    self.open.retain(|_, open| open.strong_count() > 0);
                }
                let open = Rc::new(open);
                self.open.insert(path, Rc::downgrade(&open));
                open
            }
        };
        let length = length_of(&open)?;
        Ok((open, length))
    }

    /// A boot program, or the one that stands in for it.
    pub(super) fn loader(&self, loader: &'static str) -> Result<(Rc<OwnedFd>, u64), Errno> {
        let found = tftp::candidates(loader).find_map(|name| self.find(name).ok());
        let open = found.ok_or(Errno::NOENT)?;
        let length = length_of(&open)?;
        Ok((Rc::new(open), length))
    }

    /// The same in memory.
    pub(super) fn program(&mut self, loader: &'static str) -> Result<Rc<[u8]>, Errno> {
        let (open, length) = self.loader(loader)?;
        let status = rustix::fs::fstat(&open)?;
        let changed = (status.st_mtime, status.st_ino, length);
        let known = self.programs.get(loader);
        let known = known.filter(|known| known.changed == changed);
        if let Some(bytes) = known.and_then(|known| known.bytes.upgrade()) {
            return Ok(bytes);
        }
        if length > MAX_LOADER_BYTES {
            return Err(Errno::FBIG);
        }
        let mut bytes = Vec::new();
        let file = File::from(open.try_clone().map_err(|_| Errno::MFILE)?);
        let read = file.take(MAX_LOADER_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let bytes: Rc<[u8]> = bytes.into();
        let program = Program {
            bytes: Rc::downgrade(&bytes),
            changed,
        };
        self.programs.insert(loader, program);
        Ok(bytes)
    }

    fn find(&self, name: &str) -> Result<OwnedFd, Errno> {
        // The administrator may have put links there, wherever they lead.
        let mut tried = self.loaders.iter().map(|directory| {
            let open = open_file(directory, name, ResolveFlags::empty())?;
            length_of(&open).map(|_| open)
        });
        tried.find(Result::is_ok).unwrap_or(Err(Errno::NOENT))
    }
}

fn open_file(directory: impl AsFd, path: &str, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    // A fifo must not hold us up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve)
}

fn length_of(file: impl AsFd) -> Result<u64, Errno> {
    let status = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::ISDIR);
    }
    u64::try_from(status.st_size).map_err(|_| Errno::OVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_the_images_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path().join("images");
        std::fs::create_dir_all(images.join("a-1/inner")).unwrap();
        std::fs::write(images.join("a-1/kernel"), b"kernel").unwrap();
        std::fs::write(directory.path().join("secret"), b"x").unwrap();
        std::os::unix::fs::symlink("../../secret", images.join("a-1/link")).unwrap();
        std::os::unix::fs::symlink("a-1", images.join("alias")).unwrap();
        let mut files = Files::open(&images, &[]).unwrap();
        let (first, parts) = files.image("a-1", "kernel").unwrap();
        assert_eq!(parts.first(), Some(&(0..6)));
        let (second, _) = files.image("a-1", "kernel").unwrap();
        assert!(Rc::ptr_eq(&first, &second));
        for (image, file) in [
            ("a-1", "link"),
            ("alias", "kernel"),
            ("..", "secret"),
            ("a-1", "inner"),
            ("a-1", "none"),
        ] {
            assert!(files.image(image, file).is_err(), "{image}/{file}");
        }
    }

    #[test]
    fn an_initramfs_is_put_together_for_a_card() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path();
        let list = "file initramfs-0a 0-4 8-9\ncard 8086-100e initramfs-0a\n";
        for (image, list) in [("new", Some(list)), ("old", None), ("odd", Some("x"))] {
            let dir = images.join(image);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("initramfs"), b"0123456789").unwrap();
            if let Some(list) = list {
                std::fs::write(dir.join("cards"), list).unwrap();
            }
        }
        let mut files = Files::open(images, &[]).unwrap();
        let card: Card = "8086-100e".parse().unwrap();
        let found = files.initramfs_for("new", card);
        assert_eq!(found.as_deref(), Some("initramfs-0a"));
        let other = "8086-100f".parse().unwrap();
        assert_eq!(files.initramfs_for("new", other), None);
        let (whole, parts) = files.image("new", "initramfs").unwrap();
        assert_eq!(parts.first(), Some(&(0..10)));
        let (same, parts) = files.image("new", "initramfs-0a").unwrap();
        assert!(Rc::ptr_eq(&whole, &same));
        assert_eq!(parts, [0..4, 8..9]);
        assert!(files.image("new", "initramfs-0b").is_err());
        // As earlier versions built them, damaged, and gone.
        for image in ["old", "odd", "none"] {
            assert_eq!(files.initramfs_for(image, card), None);
            assert!(files.image(image, "initramfs-0a").is_err());
        }
        // What was promised is not there any more.
        drop((whole, same));
        std::fs::write(images.join("new/initramfs"), b"012345").unwrap();
        assert_eq!(files.initramfs_for("new", card), None);
        assert!(files.image("new", "initramfs-0a").is_err());
    }

    #[test]
    fn a_program_that_was_replaced_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ipxe.efi");
        std::fs::write(&path, b"one").unwrap();
        let missing = directory.path().join("none");
        let loaders = [missing, directory.path().to_owned()];
        let mut files = Files::open(directory.path(), &loaders).unwrap();
        assert_eq!(files.loaders().collect::<Vec<_>>(), ["ipxe.efi"]);
        // It stands in for the other.
        let one = files.program("snponly.efi").unwrap();
        assert_eq!(&*one, b"one");
        assert!(Rc::ptr_eq(&one, &files.program("snponly.efi").unwrap()));
        std::fs::write(&path, b"second").unwrap();
        assert_eq!(&*files.program("snponly.efi").unwrap(), b"second");
        assert!(files.program("undionly.kpxe").is_err());
    }
}
