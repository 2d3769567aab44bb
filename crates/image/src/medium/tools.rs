//! The programs that media are made with, and GRUB's own files. They are the distribution's.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Arguments, EPOCH};

/// Where a service manager's PATH may not lead.
const MORE_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const BIOS_MODULES: &str = "usr/lib/grub/i386-pc";
const EFI_MODULES: &str = "usr/lib/grub/x86_64-efi";
const SHIM: &str = "usr/lib/shim/shimx64.efi.signed";
/// Debian's GRUB for CDs; the one for disks looks for itself in a place of its own.
const SIGNED_GRUB: &str = "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed";
/// As much of what a program said as tells why it failed.
const SHOWN_LINES: usize = 6;

/// A program that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Mkimage,
    Xorriso,
    Mformat,
    Mmd,
    Mcopy,
}

impl Program {
    const ALL: [Program; 5] = [
        Program::Mkimage,
        Program::Xorriso,
        Program::Mformat,
        Program::Mmd,
        Program::Mcopy,
    ];

    /// What it may be called.
    fn names(self) -> &'static [&'static str] {
        match self {
            Program::Mkimage => &["grub-mkimage", "grub2-mkimage"],
            Program::Xorriso => &["xorriso"],
            Program::Mformat => &["mformat"],
            Program::Mmd => &["mmd"],
            Program::Mcopy => &["mcopy"],
        }
    }

    fn package(self) -> &'static str {
        match self {
            Program::Mkimage => "grub-common",
            Program::Xorriso => "xorriso",
            Program::Mformat | Program::Mmd | Program::Mcopy => "mtools",
        }
    }
}

/// What UEFI starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Efi {
    /// Machines with Secure Boot take it, too.
    Signed {
        shim: PathBuf,
        grub: PathBuf,
    },
    Unsigned {
        modules: PathBuf,
    },
}

/// All that is needed to make a medium.
#[derive(Clone, Debug)]
pub struct MediumTools {
    programs: Vec<(Program, PathBuf)>,
    pub(super) bios: PathBuf,
    pub(super) efi: Efi,
}

/// Something is missing, or fails.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("media are made with programs that are not here: {}", names(.0))]
    Missing(Vec<Lack>),
    /// It could not be started.
    #[error("can't run {program}: {source}")]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It failed.
    #[error("{program} has failed: {said}")]
    Failed {
        /// Which.
        program: PathBuf,
        /// Its last words.
        said: String,
    },
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// A program, or a folder.
    pub name: String,
    /// Debian's package that has it.
    pub package: &'static str,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn names(lacks: &[Lack]) -> String {
    let names: Vec<_> = lacks.iter().map(Lack::to_string).collect();
    names.join(", ")
}

impl ToolError {
    pub(super) fn hint(&self) -> Option<String> {
        let ToolError::Missing(lacks) = self else {
            return None;
        };
        let mut packages: Vec<_> = lacks.iter().map(|lack| lack.package).collect();
        packages.sort_unstable();
        packages.dedup();
        Some(format!("apt install {}", packages.join(" ")))
    }
}

impl MediumTools {
    /// Those of this machine.
    ///
    /// # Errors
    /// Some are missing: all of them are named.
    pub fn find() -> Result<MediumTools, ToolError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        folders.extend(MORE_FOLDERS.map(PathBuf::from));
        MediumTools::find_in(&folders, Path::new("/"))
    }

    pub(super) fn find_in(folders: &[PathBuf], root: &Path) -> Result<MediumTools, ToolError> {
        let mut lacks = Vec::new();
        let mut programs = Vec::new();
        for program in Program::ALL {
            let places = program.names().iter().flat_map(|name| {
                let folders = folders.iter().filter(|folder| folder.is_absolute());
                folders.map(move |folder| folder.join(name))
            });
            match places.into_iter().find(|place| place.is_file()) {
                Some(place) => programs.push((program, place)),
                None => lacks.push(Lack {
                    name: program.names()[0].to_owned(),
                    package: program.package(),
                }),
            }
        }
        let mut need = |folder: &str, file: &str, package| {
            let folder = root.join(folder);
            if !folder.join(file).is_file() {
                lacks.push(Lack {
                    name: folder.join(file).display().to_string(),
                    package,
                });
            }
            folder
        };
        let bios = need(BIOS_MODULES, "boot_hybrid.img", "grub-pc-bin");
        let (shim, grub) = (root.join(SHIM), root.join(SIGNED_GRUB));
        let efi = if shim.is_file() && grub.is_file() {
            Efi::Signed { shim, grub }
        } else {
            let modules = need(EFI_MODULES, "linux.mod", "grub-efi-amd64-bin");
            Efi::Unsigned { modules }
        };
        if lacks.is_empty() {
            return Ok(MediumTools {
                programs,
                bios,
                efi,
            });
        }
        Err(ToolError::Missing(lacks))
    }

    /// Whether machines with Secure Boot start from what is made with these.
    pub fn is_signed(&self) -> bool {
        matches!(self.efi, Efi::Signed { .. })
    }

    /// Runs one to its end.
    pub(super) fn run(&self, program: Program, words: Arguments) -> Result<(), ToolError> {
        let found = self.programs.iter().find(|(name, _)| *name == program);
        let path = found.map_or_else(
            || PathBuf::from(program.names()[0]),
            |(_, path)| path.clone(),
        );
        let Arguments(words) = words;
        let output = Command::new(&path)
            .args(words)
            .envs(surroundings())
            .stdin(Stdio::null())
            .output();
        let output = output.map_err(|source| ToolError::Start {
            program: path.clone(),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let lines: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        let said = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("; ");
        Err(ToolError::Failed {
            program: path,
            said: format!("{} ({})", said, output.status),
        })
    }
}

/// Nothing of who calls shows in what is made.
fn surroundings() -> [(&'static str, OsString); 4] {
    let word = |text: &str| OsStr::new(text).to_owned();
    [
        ("LC_ALL", word("C")),
        ("TZ", word("UTC")),
        ("SOURCE_DATE_EPOCH", word(EPOCH)),
        ("MTOOLSRC", word("/dev/null")),
    ]
}
