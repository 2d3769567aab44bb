//! A full system, from a directory or an archive of its root, as one read-only file that nodes
//! mount: a squashfs.
//!
//! mksquashfs (squashfs-tools) makes it: it keeps owners, modes, links, devices and extended
//! attributes, and gives the same bytes for the same files.

mod archive;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::kernel::KernelChoice;

const MAKE: &str = "mksquashfs";
const UNPACK: &str = "unsquashfs";
/// What is not a part of a system, though it shows in one that runs.
const LEFT_OUT: [&str; 5] = ["dev/pts/*", "dev/shm/*", "proc/*", "run/*", "sys/*"];
/// As nodes look for it, too.
const INITS: [&str; 3] = [
    "sbin/init",
    "usr/lib/systemd/systemd",
    "lib/systemd/systemd",
];
/// Where else the first of them is, where /sbin is a link.
const MERGED_INIT: &str = "usr/sbin/init";
/// Where kernels and their modules are.
const KERNELS: [&str; 3] = ["boot", "lib/modules", "usr/lib/modules"];
/// One of them is in every system.
const SYSTEM: [&str; 2] = ["usr", "bin"];
/// Of what a tool says, the last lines tell why.
const SHOWN_LINES: usize = 3;

/// A full system that nodes are to have.
#[derive(Clone, Debug)]
pub struct SystemChoice {
    /// A directory, or a tar archive.
    pub rootfs: PathBuf,
    /// The program that has the machine, instead of the system's usual one.
    pub init: Option<PathBuf>,
    /// Whether tasks see the system's files and not the head's.
    pub has_tasks: bool,
}

/// A full system can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// It can't be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else.
    #[error("{0} is neither a directory nor a tar archive")]
    Neither(PathBuf),
    /// Some files, but not a system.
    #[error("{0} holds no system: there is neither /usr nor /bin in it")]
    NoSystem(PathBuf),
    /// It would hold what nobody but the head may know.
    #[error(
        "{0} has this cluster's state in it, with its keys, and nodes fetch a system in the clear"
    )]
    State(PathBuf),
    /// It was named, but is not there.
    #[error("there is no {init} in {rootfs}, which was to be its init")]
    NoInit {
        /// What was sought.
        init: PathBuf,
        /// Where.
        rootfs: PathBuf,
    },
    /// A tool is not installed.
    #[error("{0} is not installed, which packs the system")]
    NoTool(&'static str),
    /// A tool can't do it.
    #[error("{tool} failed: {said}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// Its words.
        said: String,
    },
    /// The kernel can't read it.
    #[error("kernel {0} can't read a squashfs that is compressed by zstd")]
    Kernel(String),
}

impl RootfsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            RootfsError::NoTool(_) => Some("apt install squashfs-tools".into()),
            RootfsError::Tool { said, .. } if said.contains("-tar") => {
                Some("tar archives need squashfs-tools 4.5 or later; or unpack it, and name the directory".into())
            }
            RootfsError::NoSystem(_) | RootfsError::Neither(_) => Some(
                "it takes the root itself: what `debootstrap` makes, or `docker export CONTAINER`; \
                 not `docker save`, which holds layers"
                    .into(),
            ),
            RootfsError::State(_) => {
                Some("name a directory that a system was made in: `debootstrap bookworm DIR`".into())
            }
            RootfsError::Kernel(_) => {
                Some("CONFIG_SQUASHFS_ZSTD is what it lacks; name another by --kernel".into())
            }
            _ => None,
        }
    }
}

/// A system, as far as it is known.
#[derive(Debug)]
pub(crate) struct Rootfs<'a> {
    choice: &'a SystemChoice,
    /// Its kernels are here: the directory itself, or a part of the archive that was unpacked.
    tree: PathBuf,
    is_packed: bool,
}

impl<'a> Rootfs<'a> {
    /// Looks what it is. An archive is packed to `file` at once; `scratch` is for parts of it.
    pub(crate) fn open(
        choice: &'a SystemChoice,
        state: &Path,
        file: &Path,
        scratch: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Rootfs<'a>, RootfsError> {
        let path = &choice.rootfs;
        let read = |source| RootfsError::Read {
            path: path.clone(),
            source,
        };
        let is_directory = fs::metadata(path).map_err(read)?.is_dir();
        let tree = if is_directory {
            let real = path.canonicalize().map_err(read)?;
            if state
                .canonicalize()
                .is_ok_and(|state| state.starts_with(&real))
            {
                return Err(RootfsError::State(path.clone()));
            }
            real
        } else {
            say(&format!("packing {}", path.display()));
            archive::pack(path, file)?;
            unpack_some(choice, file, scratch)?;
            scratch.to_owned()
        };
        if !SYSTEM.iter().any(|name| exists(&tree, name)) {
            return Err(RootfsError::NoSystem(path.clone()));
        }
        if let Some(init) = &choice.init
            && !exists(&tree, relative(init))
        {
            return Err(RootfsError::NoInit {
                init: init.clone(),
                rootfs: path.clone(),
            });
        }
        Ok(Rootfs {
            choice,
            tree,
            is_packed: !is_directory,
        })
    }

    /// What was asked for.
    pub(crate) fn choice(&self) -> &SystemChoice {
        self.choice
    }

    /// Writes the file, if that was not done yet.
    pub(crate) fn pack(&self, file: &Path, say: &mut dyn FnMut(&str)) -> Result<(), RootfsError> {
        if self.is_packed {
            return Ok(());
        }
        say(&format!("packing {}", self.choice.rootfs.display()));
        let mut command = make(self.tree.as_os_str(), file);
        command.args(["-exit-on-error", "-wildcards", "-e"]);
        command.args(LEFT_OUT);
        finish(MAKE, run(MAKE, &mut command)?)
    }

    /// The program that will have the machine; nothing if tasks are all that it is for.
    pub(crate) fn init(&self) -> Option<PathBuf> {
        if let Some(init) = &self.choice.init {
            return Some(Path::new("/").join(init));
        }
        let found = |name: &&&str| exists(&self.tree, name);
        let usual = INITS.iter().find(found);
        let usual = usual.or_else(|| exists(&self.tree, MERGED_INIT).then_some(&INITS[0]));
        usual.map(|name| Path::new("/").join(name))
    }

    /// Which kernel is meant: the system's own, where it has that one or only one.
    pub(crate) fn kernel(&self, asked: &KernelChoice, say: &mut dyn FnMut(&str)) -> KernelChoice {
        let own = kernels(&self.tree);
        let name = asked.kernel.as_deref();
        let meant = match (name, &own[..]) {
            (Some(name), own) if asked.modules.is_none() => {
                own.iter().find(|kernel| Path::new(&kernel.version) == name)
            }
            (None, [only]) if asked.modules.is_none() => Some(only),
            (None, own) => {
                let versions: Vec<_> = own.iter().map(|kernel| &*kernel.version).collect();
                say(&match &versions[..] {
                    [] => "the system has no kernel with modules: taking the one that runs here"
                        .into(),
                    many => format!(
                        "the system has the kernels {}: taking the one that runs here; name one by \
                         --kernel",
                        many.join(" and ")
                    ),
                });
                None
            }
            _ => None,
        };
        match meant {
            Some(kernel) => {
                say(&format!("kernel {} is the system's own", kernel.version));
                KernelChoice {
                    kernel: Some(kernel.image.clone()),
                    modules: Some(kernel.modules.clone()),
                }
            }
            None => asked.clone(),
        }
    }

    /// What nodes are told of it.
    pub(crate) fn describe(&self, size: u64, sha256: &str) -> String {
        let mut text = format!("sha256 {sha256}\nsize {size}\n");
        if let Some(init) = &self.choice.init {
            text += &format!("init {}\n", Path::new("/").join(init).display());
        }
        if self.choice.has_tasks {
            text += "files node\n";
        }
        text
    }
}

/// A kernel in a system's tree.
#[derive(Debug, PartialEq, Eq)]
struct OwnKernel {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

fn kernels(tree: &Path) -> Vec<OwnKernel> {
    let mut found: Vec<OwnKernel> = Vec::new();
    // A link such as /lib to /usr/lib would lead to the head's own, and out of the tree anywhere.
    let tree = &tree.canonicalize().unwrap_or_else(|_| tree.to_owned());
    let is_inside = |path: &Path| path.canonicalize().is_ok_and(|path| path.starts_with(tree));
    for place in &KERNELS[1..] {
        let entries = fs::read_dir(tree.join(place)).into_iter().flatten();
        for entry in entries.flatten() {
            let modules = entry.path();
            let Ok(version) = entry.file_name().into_string() else {
                continue;
            };
            let images = [
                tree.join(format!("boot/vmlinuz-{version}")),
                tree.join(format!("boot/Image-{version}")),
                modules.join("vmlinuz"),
            ];
            let is_own = |image: &PathBuf| image.is_file() && is_inside(image);
            let image = images.into_iter().find(is_own);
            let is_known = found.iter().any(|kernel| kernel.version == version);
            if let Some(image) = image
                && modules.join("kernel").is_dir()
                && is_inside(&modules)
                && !is_known
            {
                found.push(OwnKernel {
                    version,
                    image,
                    modules,
                });
            }
        }
    }
    found.sort_by(|one, other| one.version.cmp(&other.version));
    found
}

/// Of an archive that was packed, what the builder itself has to see.
fn unpack_some(choice: &SystemChoice, file: &Path, scratch: &Path) -> Result<(), RootfsError> {
    let top = top_of(file)?;
    let mut command = Command::new(UNPACK);
    command.args(["-n", "-no-xattrs", "-f", "-d"]).arg(scratch);
    command.arg(file);
    // Links in / lead to where the others are.
    let links = top.iter().filter(|(_, is_link)| *is_link);
    command.args(links.map(|(name, _)| name));
    command.args(KERNELS).args(INITS).arg(MERGED_INIT);
    if let Some(init) = &choice.init {
        command.arg(relative(init));
    }
    // It complains of names that are not there.
    run(UNPACK, &mut command)?;
    for (name, _) in top {
        // That it is there is enough.
        let _ = fs::create_dir(scratch.join(name));
    }
    Ok(())
}

/// The names in the root of what was packed, and whether they are links.
fn top_of(file: &Path) -> Result<Vec<(String, bool)>, RootfsError> {
    const ROOT: &str = "squashfs-root/";
    let mut command = Command::new(UNPACK);
    command.args(["-lls", "-max-depth", "1"]).arg(file);
    let output = run(UNPACK, &mut command)?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    finish(UNPACK, output)?;
    let lines = listed.lines();
    let names = lines.filter_map(|line| {
        let name = line.split_once(ROOT)?.1;
        let name = name.split(" -> ").next()?;
        Some((name.to_owned(), line.starts_with('l')))
    });
    // A name with a line's end in it would be two.
    let names = names.filter(|(name, _)| !name.contains('/'));
    Ok(names.collect())
}

/// A name in a tree, whether or not a link there leads somewhere here.
fn exists(tree: &Path, name: impl AsRef<Path>) -> bool {
    tree.join(name).symlink_metadata().is_ok()
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// mksquashfs, from `source`.
fn make(source: &OsStr, file: &Path) -> Command {
    let mut command = Command::new(MAKE);
    command.arg(source).arg(file).args([
        "-noappend",
        "-no-recovery",
        "-no-progress",
        "-quiet",
        "-no-exports",
        "-comp",
        "zstd",
        "-mkfs-time",
        "0",
    ]);
    // It would be asked for another time.
    command.env_remove("SOURCE_DATE_EPOCH").stdin(Stdio::null());
    command
}

fn run(tool: &'static str, command: &mut Command) -> Result<Output, RootfsError> {
    command.output().map_err(|error| not_started(tool, &error))
}

fn not_started(tool: &'static str, error: &io::Error) -> RootfsError {
    if error.kind() == io::ErrorKind::NotFound {
        return RootfsError::NoTool(tool);
    }
    RootfsError::Tool {
        tool,
        said: error.to_string(),
    }
}

fn finish(tool: &'static str, output: Output) -> Result<(), RootfsError> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let said = if lines.is_empty() {
        output.status.to_string()
    } else {
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("; ")
    };
    Err(RootfsError::Tool { tool, said })
}

#[cfg(test)]
mod tests;
