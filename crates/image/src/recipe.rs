//! What an image is made of, and the making.

use std::fs::{self, File as Disk};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::compress::{Code, Compression};
use crate::cpio::{Archive, ArchiveError};
use crate::elf;
use crate::firmware::{self, FirmwareError};
use crate::hashed::{COPY_BYTES, Hashed, hex};
use crate::include::{Include, IncludeError};
use crate::initramfs::{ID_DIGITS, Initramfs, Way};
use crate::kernel::{Kernel, KernelChoice, KernelError};
use crate::modules::{self, ModuleError, Selection, Tree, Wanted};
use crate::rootfs::{Rootfs, RootfsError, SystemChoice};
use crate::store::{self, File, Images, Manifest, Module, StoreError, System};

/// For images with what disks need.
const MAKES_FILE_SYSTEMS: &str = "mkfs.ext4";

const NO_USE: &str = "the system has no init, and tasks see the head's files: nothing of it is used; \
                      with --files node tasks see it, and --init names a program that has the machine";

/// What somebody wants.
#[derive(Debug)]
pub struct Recipe {
    /// What it is called; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Which kernel.
    pub kernel: KernelChoice,
    /// The static program that nodes run as /init.
    pub init: PathBuf,
    /// Its version.
    pub version: String,
    /// SHA-256 of the certificate that the nodes trust.
    pub authority: [u8; 32],
    /// Programs by name or path, and directories, that are there without the head.
    pub include: Vec<PathBuf>,
    /// Modules by name, loaded in any case.
    pub modules: Vec<String>,
    /// Directories with firmware, asked before this machine's own.
    pub firmware: Vec<PathBuf>,
    /// With what nodes need for their own disks.
    pub disk: bool,
    /// A full system.
    pub system: Option<SystemChoice>,
    /// Else the smallest that the kernel can undo.
    pub compression: Option<Compression>,
}

/// An image can't be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not a name.
    #[error("{0:?} is no name for an image: letters, digits, `-`, `_` and `.`, at most 40 of them")]
    Name(String),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A module.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// Firmware.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// A program.
    #[error(transparent)]
    Include(#[from] IncludeError),
    /// A full system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The program for the nodes.
    #[error("{path} can't be /init: {reason}")]
    Init {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The kernel can't undo it.
    #[error("kernel {version} can't unpack an initramfs that is compressed by {name}")]
    Compression {
        /// Which kernel.
        version: String,
        /// Which way.
        name: &'static str,
    },
    /// Something can't be read, or the result not written.
    #[error("{0}")]
    Archive(String),
}

impl From<ArchiveError> for BuildError {
    fn from(error: ArchiveError) -> BuildError {
        BuildError::Archive(error.to_string())
    }
}

impl BuildError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            BuildError::Kernel(error) => error.hint(),
            BuildError::Rootfs(error) => error.hint(),
            BuildError::Module(ModuleError::Missing { name, .. }) if name == "fuse" => Some(
                "the head's files are shown by FUSE: nodes need a kernel that has it, as those \
                 of distributions do"
                    .into(),
            ),
            BuildError::Store(StoreError::Disk { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("images belong to who made the cluster: use the same user, mostly root".into())
            }
            BuildError::Init { .. } => {
                Some("build wiglaf as its README says; it is static then".into())
            }
            _ => None,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Built {
    /// The image.
    pub manifest: Manifest,
    /// It was not there before.
    pub is_new: bool,
    /// What it lacks.
    pub warnings: Vec<String>,
}

impl Recipe {
    /// Builds it and keeps it; says meanwhile what it does.
    ///
    /// # Errors
    /// Something is missing; the message names it.
    pub fn build(
        &self,
        images: &Images,
        made_s: i64,
        say: &mut dyn FnMut(&str),
    ) -> Result<Built, BuildError> {
        if !store::is_plain(&self.name) || self.name.len() > 40 {
            return Err(BuildError::Name(self.name.clone()));
        }
        let new = images.begin()?;
        let scratch = new.file("scratch");
        let rootfs = self.open_system(images, &new.file(store::SYSTEM), &scratch, say)?;
        let choice = match &rootfs {
            Some(rootfs) => rootfs.kernel(&self.kernel, say),
            None => self.kernel.clone(),
        };
        let kernel = Kernel::find(&choice)?;
        let (init, arch) = self.init()?;
        let compression = self.compression(&kernel)?;
        say(&format!("kernel {}: choosing its modules", kernel.version));
        let mut tree = Tree::open(&kernel.modules)?;
        let wanted = Wanted {
            named: self.modules.clone(),
            disk: self.disk,
            system: rootfs.is_some(),
        };
        let selection = modules::select(&mut tree, &wanted)?;
        let firmware = firmware::collect(&selection.firmware, &self.firmware)?;
        let mut warnings = firmware::warnings(&firmware);

        let mut archive = Archive::new();
        archive.file(Path::new("/init"), 0o755, init)?;
        let authority = hex(&self.authority);
        let line = format!("{authority}\n");
        archive.file(Path::new("/etc/wiglaf/authority"), 0o644, line)?;
        let listed = list_modules(&selection);
        for program in &self.include {
            say(&format!("including {}", program.display()));
            let mut include = Include::new(&mut archive);
            include.program(program)?;
            warnings.append(&mut include.warnings);
        }
        if self.disk {
            include_disk_tools(&mut archive, &mut warnings)?;
        }

        let mut system = None;
        if let Some(rootfs) = &rootfs {
            if kernel.has("CONFIG_SQUASHFS_ZSTD") == Some(false) {
                return Err(RootfsError::Kernel(kernel.version).into());
            }
            let path = new.file(store::SYSTEM);
            rootfs.pack(&path, say)?;
            let file = digest(&path)?;
            let text = rootfs.describe(file.size, &file.sha256);
            archive.file(Path::new("/etc/wiglaf/system"), 0o644, text)?;
            let of = self.describe_system(rootfs, file);
            if of.init.is_none() && !of.has_tasks {
                warnings.push(NO_USE.into());
            }
            system = Some(of);
        }

        let initramfs = Initramfs::new(archive, &kernel.version, selection, &firmware.files)?;
        let unpacked = initramfs.size();
        say(&format!(
            "compressing {}.{} MB by {}",
            unpacked / 1_000_000,
            unpacked / 100_000 % 10,
            compression.name()
        ));
        let kernel_file = copy(&kernel.image, &new.file(store::KERNEL))?;
        let way = Way {
            compression,
            code: code_for(&kernel, arch),
        };
        let place = new.file(store::INITRAMFS);
        let written = initramfs.write(way, &kernel_file, &place, &new.file(store::CARDS));
        let written = written.map_err(BuildError::Archive)?;
        // The kernel may have been in it.
        let _ = fs::remove_dir_all(&scratch);
        let mut contents = Context::new(&SHA256);
        contents.update(kernel_file.sha256.as_bytes());
        contents.update(written.file.sha256.as_bytes());
        let hash = hex(contents.finish().as_ref());
        let manifest = Manifest {
            id: format!("{}-{}", self.name, &hash[..ID_DIGITS]),
            name: self.name.clone(),
            made_s,
            wiglaf: self.version.clone(),
            kernel_version: kernel.version,
            arch: arch.to_owned(),
            authority,
            kernel: kernel_file,
            initramfs: written.file,
            by_card: written.by_card,
            compression,
            unpacked,
            modules: listed,
            firmware: firmware.files.into_keys().collect(),
            missing_firmware: firmware.missing.into_values().flatten().collect(),
            included: self
                .include
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            system,
        };
        let is_new = images.keep(&new, &manifest)?;
        Ok(Built {
            manifest,
            is_new,
            warnings,
        })
    }

    fn open_system(
        &self,
        images: &Images,
        file: &Path,
        scratch: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Option<Rootfs<'_>>, RootfsError> {
        let Some(choice) = &self.system else {
            return Ok(None);
        };
        let opened = Rootfs::open(choice, images.dir(), file, scratch, say)?;
        Ok(Some(opened))
    }

    fn describe_system(&self, rootfs: &Rootfs<'_>, file: File) -> System {
        let choice = rootfs.choice();
        System {
            file,
            rootfs: choice.rootfs.display().to_string(),
            init: rootfs.init().map(|init| init.display().to_string()),
            has_tasks: choice.has_tasks,
        }
    }

    /// The program, without what only debuggers read, and what it runs on.
    fn init(&self) -> Result<(Vec<u8>, &'static str), BuildError> {
        let refuse = |reason: String| BuildError::Init {
            path: self.init.clone(),
            reason,
        };
        let mut bytes = fs::read(&self.init).map_err(|error| refuse(error.to_string()))?;
        let object = elf::parse(&bytes).ok_or_else(|| refuse("it is no program".into()))?;
        if let Some(interpreter) = object.interpreter {
            return Err(refuse(format!(
                "it is linked with libraries, and wants {interpreter}"
            )));
        }
        // The program is this one, so this says how it was built.
        if cfg!(panic = "abort") {
            elf::clear_unwinding(&mut bytes);
        }
        let stripped = elf::without_sections(&bytes);
        let stripped = stripped.ok_or_else(|| refuse("it is not a 64-bit program".into()))?;
        Ok((stripped, object.machine.name()))
    }

    /// What was asked for, if the kernel can undo it; else the smallest that it can.
    fn compression(&self, kernel: &Kernel) -> Result<Compression, BuildError> {
        // Where nothing tells, it is a distribution's kernel, and theirs can.
        let can = |method: Compression| match method {
            Compression::Xz => kernel.has("CONFIG_RD_XZ") != Some(false),
            Compression::Zstd => kernel.has("CONFIG_RD_ZSTD") != Some(false),
            Compression::None => true,
        };
        if let Some(asked) = self.compression {
            return if can(asked) {
                Ok(asked)
            } else {
                Err(BuildError::Compression {
                    version: kernel.version.clone(),
                    name: asked.name(),
                })
            };
        }
        let smallest_first = [Compression::Xz, Compression::Zstd];
        let found = smallest_first.into_iter().find(|method| can(*method));
        Ok(found.unwrap_or(Compression::None))
    }
}

/// What makes file systems. An image without it can still use those that are there.
fn include_disk_tools(
    archive: &mut Archive,
    warnings: &mut Vec<String>,
) -> Result<(), IncludeError> {
    let mut include = Include::new(archive);
    match include.program(Path::new(MAKES_FILE_SYSTEMS)) {
        Err(IncludeError::NotInPath(name)) => {
            warnings.push(format!(
                "{name} is not on this machine, so `wiglaf disk apply` can't make file systems on \
                 nodes: install e2fsprogs, and build the image anew"
            ));
            return Ok(());
        }
        result => result?,
    }
    let settings = Path::new("/etc/mke2fs.conf");
    if settings.exists() {
        include.program(settings)?;
    }
    warnings.append(&mut include.warnings);
    Ok(())
}

fn code_for(kernel: &Kernel, arch: &str) -> Code {
    let can = kernel.has("CONFIG_XZ_DEC_X86") != Some(false);
    if arch == "x86_64" && can {
        Code::X86
    } else {
        Code::Other
    }
}

fn list_modules(selection: &Selection) -> Vec<Module> {
    let names = selection.files.keys();
    let listed = names.map(|name| Module {
        name: name.clone(),
        always: selection.always.contains(name),
    });
    listed.collect()
}

/// What a file is that somebody else has written.
fn digest(path: &Path) -> Result<File, BuildError> {
    let failed = |error: io::Error| BuildError::Archive(format!("{}: {error}", path.display()));
    let mut source = Disk::open(path).map_err(failed)?;
    let mut hash = Context::new(&SHA256);
    let mut size = 0;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = source.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            let sha256 = hex(hash.finish().as_ref());
            return Ok(File { size, sha256 });
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
}

fn copy(from: &Path, to: &Path) -> Result<File, BuildError> {
    let read = |source| KernelError::Read {
        path: from.to_owned(),
        source,
    };
    let write = |error: io::Error| BuildError::Archive(format!("{}: {error}", to.display()));
    let mut source = Disk::open(from).map_err(read)?;
    let mut out = Hashed::new(Disk::create(to).map_err(write)?);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = source.read(&mut buffer).map_err(read)?;
        if count == 0 {
            return Ok(out.done());
        }
        out.write_all(&buffer[..count]).map_err(write)?;
    }
}
