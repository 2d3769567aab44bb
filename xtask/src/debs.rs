//! Debian packages that are unpacked below `target/debs`, and never installed: a kernel for the
//! guests must not become the one that this machine starts, nor one package drive out another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{packages, run};

/// Depends on the newest of its kind: the kernel with the fewest drivers, those of virtual
/// machines.
const CLOUD_KERNEL: &str = "linux-image-cloud-amd64";
/// Likewise, with the drivers of all machines.
const GENERIC_KERNEL: &str = "linux-image-amd64";
/// `depmod`, which a package's own script runs when it is installed.
const TOOLS: &[&str] = &["kmod"];

/// A kernel with its modules, as `wiglaf image build --kernel … --modules …` takes them.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// Debian's kernel for virtual machines, fetched if it is not there.
    pub(crate) fn fetch(target: &Path) -> Result<Kernel> {
        Kernel::fetch_by(target, CLOUD_KERNEL)
    }

    /// Debian's kernel for machines of all kinds, fetched if it is not there.
    pub(crate) fn fetch_generic(target: &Path) -> Result<Kernel> {
        Kernel::fetch_by(target, GENERIC_KERNEL)
    }

    fn fetch_by(target: &Path, meta: &str) -> Result<Kernel> {
        let unpacked = target.join("debs").join(meta);
        if !unpacked.exists() {
            packages::install(TOOLS)?;
            depends_on(meta)
                .or_else(|_| {
                    // A machine whose lists are missing.
                    packages::update()?;
                    depends_on(meta)
                })
                .and_then(|name| unpack(&name, &unpacked, make_module_lists))
                .with_context(|| format!("can't fetch {meta}"))?;
        }
        Kernel::in_tree(&unpacked).with_context(|| {
            format!(
                "{} has no kernel; remove it, and it is fetched anew",
                unpacked.display()
            )
        })
    }

    fn in_tree(tree: &Path) -> Result<Kernel> {
        let version = version_in(tree)?;
        let kernel = Kernel {
            image: tree.join(format!("boot/vmlinuz-{version}")),
            modules: tree.join("lib/modules").join(&version),
        };
        if !kernel.image.exists() {
            bail!("{} is missing", kernel.image.display());
        }
        Ok(kernel)
    }
}

fn version_in(tree: &Path) -> Result<String> {
    let dir = tree.join("lib/modules");
    let entry = fs::read_dir(&dir)
        .with_context(|| format!("can't read {}", dir.display()))?
        .flatten()
        .next()
        .with_context(|| format!("{} is empty", dir.display()))?;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// The files of a package, fetched if they are not there.
pub(crate) fn fetch(target: &Path, name: &str) -> Result<PathBuf> {
    let unpacked = target.join("debs").join(name);
    if !unpacked.exists() {
        unpack(name, &unpacked, |_| Ok(())).with_context(|| format!("can't fetch {name}"))?;
    }
    Ok(unpacked)
}

/// Unpacks a package, finishes its tree, and only then gives that its name.
fn unpack(name: &str, wanted: &Path, finish: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let fresh = wanted.with_extension(format!("{}.new", std::process::id()));
    let result = download(name, &fresh).and_then(|package| {
        let tree = fresh.join("tree");
        run::check(Command::new("dpkg-deb").arg("-x").args([&package, &tree]))?;
        finish(&tree)?;
        fs::rename(&tree, wanted).with_context(|| format!("can't make {}", wanted.display()))
    });
    let _ = fs::remove_dir_all(&fresh);
    result
}

/// Puts the package itself into a folder.
fn download(name: &str, to: &Path) -> Result<PathBuf> {
    fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
    let download = || {
        // Our folder may be closed to apt's own user.
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", name])
            .current_dir(to);
        run::check(&mut command)
    };
    if download().is_err() {
        // The lists name a version that is not there any more.
        packages::update()?;
        download()?;
    }
    fs::read_dir(to)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get has fetched no .deb file")
}

/// `modules.dep` and the like, which are made where a kernel is installed.
fn make_module_lists(tree: &Path) -> Result<()> {
    run::check(
        Command::new("depmod")
            .arg("-b")
            .args([tree, Path::new(&version_in(tree)?)])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    )
}

fn depends_on(meta: &str) -> Result<String> {
    let text = run::output(Command::new("apt-cache").args(["depends", "--important", meta]))?;
    dependency(&text).with_context(|| format!("apt knows no dependency of {meta}"))
}

fn dependency(depends: &str) -> Option<String> {
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_meta_package_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            dependency(text).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }
}
