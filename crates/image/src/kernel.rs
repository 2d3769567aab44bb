//! Which kernel nodes boot, and where its modules are.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Older ones lack what the view is made of.
const OLDEST: (u32, u32) = (6, 1);

/// As much of a kernel as its description is in.
const HEAD_BYTES: u64 = 64 << 10;

/// What was asked for; by default the kernel that runs here.
#[derive(Clone, Debug, Default)]
pub struct KernelChoice {
    /// A version, or a file.
    pub kernel: Option<PathBuf>,
    /// The directory of its modules, or one above.
    pub modules: Option<PathBuf>,
}

/// A kernel can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It is not installed.
    #[error("there is no kernel {version} in /boot{}", others(.installed))]
    Missing {
        /// Which was sought.
        version: String,
        /// Those that are there.
        installed: Vec<String>,
    },
    /// A file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a kernel that a boot loader starts.
    #[error("{0} is not a kernel for this architecture")]
    NotAKernel(PathBuf),
    /// Too old.
    #[error("kernel {0} is too old: nodes need 6.1 or later")]
    TooOld(String),
    /// Its modules are elsewhere.
    #[error("the modules of kernel {version} are not in {}", list(.looked))]
    NoModules {
        /// Whose.
        version: String,
        /// Where they were sought.
        looked: Vec<PathBuf>,
    },
}

impl KernelError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            KernelError::Missing { installed, .. } if installed.is_empty() => Some(
                "install one: `apt install linux-image-amd64` (it need not run here), then name \
                 it: `--kernel VERSION`; or unpack a package: `--kernel DIR/boot/vmlinuz-VERSION \
                 --modules DIR/lib/modules/VERSION`"
                    .into(),
            ),
            KernelError::Missing { installed, .. } => {
                let newest = installed.last().map_or("VERSION", String::as_str);
                Some(format!("name another one: `--kernel {newest}`"))
            }
            KernelError::Read { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("some distributions let only root read kernels: use sudo, or `sudo chmod a+r` on that file".into())
            }
            KernelError::TooOld(_) => {
                Some("on Debian 11 and Ubuntu 22.04: a newer one is in backports or -hwe".into())
            }
            KernelError::NoModules { .. } => Some(
                "name the directory with its `kernel` folder: `--modules DIR/lib/modules/VERSION`"
                    .into(),
            ),
            _ => None,
        }
    }
}

fn others(installed: &[String]) -> String {
    if installed.is_empty() {
        ", nor any other".into()
    } else {
        format!("; there are: {}", installed.join(", "))
    }
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(" nor ")
}

/// A kernel that was found.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    /// The directory with `modules.builtin` and `kernel`.
    pub(crate) modules: PathBuf,
    config: Option<String>,
}

impl Kernel {
    pub(crate) fn find(choice: &KernelChoice) -> Result<Kernel, KernelError> {
        Kernel::find_below(Path::new("/"), choice)
    }

    fn find_below(root: &Path, choice: &KernelChoice) -> Result<Kernel, KernelError> {
        let (version, image) = match &choice.kernel {
            Some(name) if name.components().count() > 1 || name.is_file() => {
                (version_of(name)?, name.clone())
            }
            Some(name) => {
                let version = name.to_string_lossy().into_owned();
                installed(root, &version)?
            }
            None => {
                let running = rustix::system::uname();
                installed(root, &running.release().to_string_lossy())?
            }
        };
        if numbers(&version).is_none_or(|found| found < OLDEST) {
            return Err(KernelError::TooOld(version));
        }
        let modules = modules_of(root, &version, choice.modules.as_deref(), &image)?;
        let beside = image.with_file_name(format!("config-{version}"));
        let config = [beside, modules.join("config")]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok());
        Ok(Kernel {
            version,
            image,
            modules,
            config,
        })
    }

    /// Whether it was configured with this; nothing, if that is not known.
    pub(crate) fn has(&self, option: &str) -> Option<bool> {
        let config = self.config.as_ref()?;
        let mut lines = config.lines().filter_map(|line| line.strip_prefix(option));
        Some(lines.any(|value| value == "=y"))
    }
}

/// A version's kernel in the places that distributions use.
fn installed(root: &Path, version: &str) -> Result<(String, PathBuf), KernelError> {
    let places = [
        format!("boot/vmlinuz-{version}"),
        format!("boot/Image-{version}"),
        format!("usr/lib/modules/{version}/vmlinuz"),
        format!("lib/modules/{version}/vmlinuz"),
    ];
    for place in places {
        let path = root.join(place);
        if path.is_file() {
            return Ok((version.to_owned(), path));
        }
    }
    let entries = fs::read_dir(root.join("boot"))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut installed: Vec<_> = names
        .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .filter(|version| numbers(version).is_some_and(|found| found >= OLDEST))
        .collect();
    installed.sort_by_key(|version| (numbers(version), version.clone()));
    Err(KernelError::Missing {
        version: version.to_owned(),
        installed,
    })
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The version that a kernel's file says it is, else what its name says.
fn version_of(path: &Path) -> Result<String, KernelError> {
    let read = |source| KernelError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(read)?;
    let not_a_kernel = || KernelError::NotAKernel(path.to_owned());
    if let Some(version) = version_of_x86(&head) {
        return Ok(version);
    }
    // Arm's image has no version inside (Documentation/arm64/booting.rst); it may be compressed.
    let is_plain = head.get(0x38..0x3c) == Some(b"ARM\x64");
    if cfg!(target_arch = "x86_64") || !(is_plain || head.starts_with(&[0x1f, 0x8b])) {
        return Err(not_a_kernel());
    }
    let name = path.file_name().map(|name| name.to_string_lossy());
    let version = name.as_ref().and_then(|name| name.split_once('-'));
    let (_, version) = version.ok_or_else(not_a_kernel)?;
    Ok(version.to_owned())
}

/// Documentation/x86/boot.rst: `HdrS`, and a pointer to a text that begins with the version.
fn version_of_x86(head: &[u8]) -> Option<String> {
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(head.get(0x20e..0x210)?.try_into().ok()?);
    let text = head.get(usize::from(offset) + 0x200..)?;
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    let version = String::from_utf8(text[..end].to_vec()).ok()?;
    (!version.is_empty() && !version.contains('/')).then_some(version)
}

fn modules_of(
    root: &Path,
    version: &str,
    named: Option<&Path>,
    image: &Path,
) -> Result<PathBuf, KernelError> {
    let looked = match named {
        Some(dir) => vec![
            dir.to_owned(),
            dir.join(version),
            dir.join("lib/modules").join(version),
            dir.join("usr/lib/modules").join(version),
        ],
        None => {
            let mut places = vec![
                root.join("lib/modules").join(version),
                root.join("usr/lib/modules").join(version),
            ];
            // An unpacked package: DIR/boot/vmlinuz-… beside DIR/lib/modules/….
            if let Some(above) = image.parent().and_then(Path::parent) {
                places.push(above.join("lib/modules").join(version));
                places.push(above.join("usr/lib/modules").join(version));
            }
            places
        }
    };
    let found = looked
        .iter()
        .find(|dir| dir.join("kernel").is_dir() || dir.join("modules.builtin").is_file());
    found.cloned().ok_or_else(|| KernelError::NoModules {
        version: version.to_owned(),
        looked: looked.into_iter().take(2).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel as far as its header goes.
    fn bzimage(version: &str) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = format!("{version} (debian-kernel@lists.debian.org) #1 SMP\0");
        bytes[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    fn machine(versions: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        for version in versions {
            let dir = root.path().join("lib/modules").join(version);
            fs::create_dir_all(dir.join("kernel")).unwrap();
            let kernel = root.path().join(format!("boot/vmlinuz-{version}"));
            fs::write(kernel, bzimage(version)).unwrap();
        }
        root
    }

    fn choice(kernel: impl Into<PathBuf>) -> KernelChoice {
        KernelChoice {
            kernel: Some(kernel.into()),
            modules: None,
        }
    }

    #[test]
    fn a_kernel_is_found_by_version_and_by_path() {
        let root = machine(&["6.1.0-50-amd64", "6.12.3"]);
        let config = root.path().join("boot/config-6.12.3");
        fs::write(
            config,
            "CONFIG_RD_XZ=y\nCONFIG_RD_XZ_NOT=m\n# CONFIG_RD_ZSTD is not set\n",
        )
        .unwrap();
        let kernel = Kernel::find_below(root.path(), &choice("6.12.3")).unwrap();
        assert_eq!(kernel.modules, root.path().join("lib/modules/6.12.3"));
        assert_eq!(kernel.has("CONFIG_RD_XZ"), Some(true));
        assert_eq!(kernel.has("CONFIG_RD_ZSTD"), Some(false));

        // Unpacked elsewhere, with a name that says nothing.
        let moved = root.path().join("boot/linux");
        fs::rename(root.path().join("boot/vmlinuz-6.1.0-50-amd64"), &moved).unwrap();
        let kernel = Kernel::find_below(Path::new("/nowhere"), &choice(moved)).unwrap();
        assert_eq!(kernel.version, "6.1.0-50-amd64");
        assert_eq!(kernel.has("CONFIG_RD_XZ"), None);
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let root = machine(&["6.1.0-50-amd64", "6.12.3", "5.10.0-9"]);
        let find = |name: &str| Kernel::find_below(root.path(), &choice(name)).unwrap_err();
        let missing = find("6.13.1");
        assert_eq!(
            missing.to_string(),
            "there is no kernel 6.13.1 in /boot; there are: 6.1.0-50-amd64, 6.12.3"
        );
        assert_eq!(
            missing.hint().unwrap(),
            "name another one: `--kernel 6.12.3`"
        );
        assert!(matches!(find("5.10.0-9"), KernelError::TooOld(_)));

        fs::remove_dir_all(root.path().join("lib/modules/6.12.3")).unwrap();
        let error = find("6.12.3");
        assert!(error.hint().unwrap().contains("--modules"), "{error}");

        let empty = machine(&[]);
        let error = Kernel::find_below(empty.path(), &choice("6.1.0")).unwrap_err();
        assert!(
            error
                .hint()
                .unwrap()
                .contains("apt install linux-image-amd64")
        );

        let text = root.path().join("boot/notes-6.1");
        fs::write(&text, "not a kernel").unwrap();
        let error = Kernel::find_below(root.path(), &choice(text)).unwrap_err();
        assert!(matches!(error, KernelError::NotAKernel(_)));
    }
}
