//! Programs with everything that they need, for nodes that must run without the head's files.

mod libraries;
mod python;
mod script;

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::cpio::{Archive, ArchiveError, Content};
use crate::elf;
use libraries::Libraries;

/// As the kernel's.
const MAX_LINKS: usize = 40;

/// File systems that are not of the disk.
const NEVER: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// A program can't be included.
#[derive(Debug, thiserror::Error)]
pub enum IncludeError {
    /// There is none of that name.
    #[error("there is no program {0} in PATH")]
    NotInPath(String),
    /// A file can't be read.
    #[error("{path}: {source}{}", .wanted_by.as_ref().map(|by| format!(" ({} needs it)", by.display())).unwrap_or_default())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// A program or link.
        wanted_by: Option<PathBuf>,
    },
    /// A library is missing here, too.
    #[error("{} needs the library {name}, which is not on this machine", .wanted_by.display())]
    NoLibrary {
        /// Its name.
        name: String,
        /// Who needs it.
        wanted_by: PathBuf,
    },
    /// An interpreter is missing here, too.
    #[error("{} is run by {name}, which is not on this machine", .wanted_by.display())]
    NoInterpreter {
        /// Its name.
        name: String,
        /// The script.
        wanted_by: PathBuf,
    },
    /// Links lead round and round.
    #[error("{0}: too many symbolic links")]
    Loop(PathBuf),
    /// Neither a program nor a directory of the disk.
    #[error("{0} can't be included: it is no file, directory or link of a disk")]
    Unsuitable(PathBuf),
    /// Python can't say what a program imports.
    #[error("{interpreter} can't say what {program} imports: {reason}")]
    Python {
        /// Whose.
        program: PathBuf,
        /// Which.
        interpreter: PathBuf,
        /// Its words.
        reason: String,
    },
    /// The archive refuses it.
    #[error("{0}")]
    Archive(String),
}

impl From<ArchiveError> for IncludeError {
    fn from(error: ArchiveError) -> IncludeError {
        IncludeError::Archive(error.to_string())
    }
}

/// A file that is still to be looked into.
struct Wish {
    path: PathBuf,
    wanted_by: Option<PathBuf>,
    reason: Reason,
}

/// How far what a file lacks matters. What a wanted file wants is wanted for the same reason.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// A program that somebody named, or what it needs.
    Asked,
    /// In a directory that somebody named: what it lacks, it lacks here, too, which is said.
    InDirectory,
    /// In a language's library, most of which no program ever uses.
    InLibrary,
}

/// Takes files into an archive, and what they lead to.
pub(crate) struct Include<'a> {
    archive: &'a mut Archive,
    libraries: Libraries,
    waiting: Vec<Wish>,
    seen: BTreeSet<PathBuf>,
    /// How what is being looked into was come by.
    reason: Reason,
    pub(crate) warnings: Vec<String>,
}

impl<'a> Include<'a> {
    pub(crate) fn new(archive: &'a mut Archive) -> Include<'a> {
        Include {
            archive,
            libraries: Libraries::of_this_machine(),
            waiting: Vec::new(),
            seen: BTreeSet::new(),
            reason: Reason::Asked,
            warnings: Vec::new(),
        }
    }

    /// A program by its name or path, or a whole directory.
    pub(crate) fn program(&mut self, name: &Path) -> Result<(), IncludeError> {
        let path = find_program(name)?;
        self.reason = Reason::Asked;
        self.want(path, None);
        while let Some(wish) = self.waiting.pop() {
            self.reason = wish.reason;
            self.take(&wish.path, wish.wanted_by.as_deref())?;
        }
        Ok(())
    }

    fn want(&mut self, path: PathBuf, wanted_by: Option<&Path>) {
        if self.seen.insert(path.clone()) {
            self.waiting.push(Wish {
                path,
                wanted_by: wanted_by.map(Path::to_owned),
                reason: self.reason,
            });
        }
    }

    fn want_library(&mut self, paths: Vec<PathBuf>, wanted_by: &Path) {
        let reason = std::mem::replace(&mut self.reason, Reason::InLibrary);
        for path in paths {
            self.want(path, Some(wanted_by));
        }
        self.reason = reason;
    }

    fn lacks(&mut self, error: IncludeError) -> Result<(), IncludeError> {
        match self.reason {
            Reason::Asked => return Err(error),
            Reason::InDirectory => self.warnings.push(error.to_string()),
            Reason::InLibrary => {}
        }
        Ok(())
    }

    /// If it is there.
    fn want_softly(&mut self, path: &str) {
        if Path::new(path).exists() {
            self.want(path.into(), None);
        }
    }

    fn take(&mut self, path: &Path, wanted_by: Option<&Path>) -> Result<(), IncludeError> {
        let failed = |source| IncludeError::Read {
            path: path.to_owned(),
            source,
            wanted_by: wanted_by.map(Path::to_owned),
        };
        let real = self.resolve(path, wanted_by)?;
        if NEVER.iter().any(|dir| real.starts_with(dir)) || real == Path::new("/") {
            return Err(IncludeError::Unsuitable(path.to_owned()));
        }
        let metadata = fs::symlink_metadata(&real).map_err(failed)?;
        if metadata.is_dir() {
            return self.take_directory(&real, &metadata);
        }
        if !metadata.is_file() {
            return Err(IncludeError::Unsuitable(path.to_owned()));
        }
        self.take_file(&real, &metadata)?;
        self.look_into(path, &real)
    }

    /// Takes the links on the way to a file, and says where it lies.
    fn resolve(&mut self, path: &Path, wanted_by: Option<&Path>) -> Result<PathBuf, IncludeError> {
        let mut real = PathBuf::from("/");
        let mut links = 0;
        let mut rest: Vec<_> = names(path).into_iter().rev().collect();
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            let failed = |source| IncludeError::Read {
                path: path.to_owned(),
                source,
                wanted_by: wanted_by.map(Path::to_owned),
            };
            let metadata = fs::symlink_metadata(&next).map_err(failed)?;
            if !metadata.is_symlink() {
                real = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(IncludeError::Loop(path.to_owned()));
            }
            let target = fs::read_link(&next).map_err(failed)?;
            self.archive.symlink(&next, &target)?;
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            rest.extend(names(&target).into_iter().rev());
        }
        Ok(real)
    }

    fn take_file(&mut self, real: &Path, metadata: &Metadata) -> Result<(), IncludeError> {
        let identity = (metadata.nlink() > 1).then(|| (metadata.dev(), metadata.ino()));
        let content = Content::From {
            path: real.to_owned(),
            size: metadata.len(),
        };
        self.archive
            .content(real, mode_for_root(metadata), content, identity)?;
        Ok(())
    }

    fn take_directory(&mut self, real: &Path, metadata: &Metadata) -> Result<(), IncludeError> {
        self.archive.directory(real, metadata.mode() & 0o7777)?;
        let failed = |source| IncludeError::Read {
            path: real.to_owned(),
            source,
            wanted_by: None,
        };
        if self.reason == Reason::Asked {
            self.reason = Reason::InDirectory;
        }
        for entry in fs::read_dir(real).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let kind = entry.file_type().map_err(failed)?;
            // Python's compiled files are dated, so that they would be made anew in any case.
            if entry.file_name() == "__pycache__" {
                continue;
            }
            if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(failed)?;
                self.archive.symlink(&path, &target)?;
                if path.exists() {
                    self.want(path, Some(real));
                }
            } else if kind.is_dir() || kind.is_file() {
                self.want(path, Some(real));
            }
        }
        Ok(())
    }

    /// What a file needs, by what it is.
    fn look_into(&mut self, path: &Path, real: &Path) -> Result<(), IncludeError> {
        let failed = |source| IncludeError::Read {
            path: real.to_owned(),
            source,
            wanted_by: None,
        };
        let mut start = [0; 4];
        let mut file = fs::File::open(real).map_err(failed)?;
        let count = file.read(&mut start).map_err(failed)?;
        if elf::is_elf(&start[..count]) {
            let bytes = fs::read(real).map_err(failed)?;
            return self.look_into_elf(path, real, &bytes);
        }
        if start.starts_with(b"#!") && self.reason != Reason::InLibrary {
            let text = fs::read(real).map_err(failed)?;
            return self.look_into_script(path, real, &text);
        }
        Ok(())
    }

    fn look_into_elf(
        &mut self,
        path: &Path,
        real: &Path,
        bytes: &[u8],
    ) -> Result<(), IncludeError> {
        let Some(object) = elf::parse(bytes) else {
            return Ok(());
        };
        if let Some(interpreter) = &object.interpreter {
            self.want(interpreter.into(), Some(path));
            if python::is_interpreter(real) {
                self.want_library(python::standard_library(real)?, path);
            }
        }
        for name in &object.needed {
            let Some(library) = self.libraries.find(name, &object, real) else {
                self.lacks(IncludeError::NoLibrary {
                    name: name.clone(),
                    wanted_by: path.to_owned(),
                })?;
                continue;
            };
            self.want(library, Some(path));
            if name.starts_with("libc.so.") {
                self.name_services(&object);
            }
        }
        if self.libraries.needs_cache {
            // Outside of its own directories the loader finds libraries by this alone.
            self.want_softly("/etc/ld.so.cache");
            self.want_softly("/etc/ld-musl-x86_64.path");
        }
        Ok(())
    }

    /// The C library loads these by the names in a file of configuration.
    fn name_services(&mut self, object: &elf::Object) {
        if !self.seen.insert("/etc/nsswitch.conf".into()) {
            return;
        }
        let text = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
        for service in libraries::name_services(&text) {
            let name = format!("libnss_{service}.so.2");
            if let Some(library) = self.libraries.find(&name, object, Path::new("/")) {
                self.want(library, None);
            }
        }
        for path in ["/etc/nsswitch.conf", "/etc/protocols", "/etc/services"] {
            if let Ok(bytes) = fs::read(path) {
                // It may be there from an earlier directory.
                let _ = self.archive.file(Path::new(path), 0o644, bytes);
            }
        }
        for path in ["/etc/passwd", "/etc/group"] {
            if let Ok(text) = fs::read_to_string(path) {
                let _ =
                    self.archive
                        .file(Path::new(path), 0o644, libraries::without_passwords(&text));
            }
        }
    }

    fn look_into_script(
        &mut self,
        path: &Path,
        real: &Path,
        text: &[u8],
    ) -> Result<(), IncludeError> {
        let Some(interpreters) = script::interpreters(text) else {
            return Ok(());
        };
        for name in &interpreters {
            let found = find_program(Path::new(name)).ok();
            let Some(interpreter) = found.filter(|path| path.exists()) else {
                self.lacks(IncludeError::NoInterpreter {
                    name: name.clone(),
                    wanted_by: path.to_owned(),
                })?;
                continue;
            };
            self.want(interpreter.clone(), Some(path));
            let Ok(program) = fs::canonicalize(&interpreter) else {
                continue;
            };
            if python::is_interpreter(&program) {
                self.want_library(python::imports(&interpreter, real)?, path);
            }
        }
        Ok(())
    }
}

/// Everything in the image is root's: what another user's rights were must not become root's.
fn mode_for_root(metadata: &Metadata) -> u32 {
    let mut mode = metadata.mode() & 0o7777;
    if metadata.uid() != 0 {
        mode &= !0o4000;
    }
    if metadata.gid() != 0 {
        mode &= !0o2000;
    }
    mode
}

fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

fn find_program(name: &Path) -> Result<PathBuf, IncludeError> {
    let failed = |source| IncludeError::Read {
        path: name.to_owned(),
        source,
        wanted_by: None,
    };
    if name.components().count() > 1 || name.is_absolute() {
        return std::path::absolute(name).map_err(failed);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    // Root's programs are not in everybody's PATH.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    // What pyenv and its like put there leads elsewhere by their own tools.
    let places = places.filter(|dir| dir.is_absolute() && !dir.ends_with("shims"));
    let mut candidates = places.map(|dir| dir.join(name));
    let found = candidates.find(|path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
    });
    found.ok_or_else(|| IncludeError::NotInPath(name.display().to_string()))
}

#[cfg(test)]
mod tests;
