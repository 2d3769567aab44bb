//! A small Debian in a directory, as administrators make it: a full system for nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{packages, run};

const TOOLS: &[&str] = &["debootstrap"];
/// What the least of systems lacks to run a machine.
const INCLUDED: &str = "--include=systemd-sysv,udev";
/// A file that the head does not have.
pub(crate) const MARK: &str = "etc/wiglaf-test-system";
/// What nodes would only carry in their memory.
const NEEDLESS: &[&str] = &["var/cache/apt", "var/lib/apt/lists", "usr/share/doc"];

/// The tree of this machine's own Debian release, made if it is not there.
pub(crate) fn fetch(target: &Path) -> Result<PathBuf> {
    packages::install(TOOLS)?;
    let wanted = target.join("debs/system");
    if wanted.exists() {
        return Ok(wanted);
    }
    let fresh = wanted.with_extension(format!("{}.new", std::process::id()));
    let made = make(&fresh).and_then(|()| {
        fs::rename(&fresh, &wanted).with_context(|| format!("can't make {}", wanted.display()))
    });
    let _ = fs::remove_dir_all(&fresh);
    made.context("can't make a system by debootstrap")?;
    Ok(wanted)
}

fn make(tree: &Path) -> Result<()> {
    let (mirror, release) = source().or_else(|_| {
        // A machine whose lists are missing.
        packages::update()?;
        source()
    })?;
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", INCLUDED, &release]);
    run::check(command.arg(tree).arg(&mirror))?;
    for directory in NEEDLESS {
        let _ = fs::remove_dir_all(tree.join(directory));
    }
    let mark = tree.join(MARK);
    fs::write(&mark, "the system\n").with_context(|| mark.display().to_string())
}

/// Where apt has this machine's own release from, and its name.
fn source() -> Result<(String, String)> {
    let format = "$(REPO_URI) $(CODENAME) $(COMPONENT)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Identifier: Packages"]);
    first_of(&run::output(&mut command)?).context("apt knows no Debian release")
}

fn first_of(targets: &str) -> Option<(String, String)> {
    targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
        // Updates have a hyphen, and others' packages another place.
        let is_release =
            !release.is_empty() && release.bytes().all(|byte| byte.is_ascii_lowercase());
        let is_debian = uri.trim_end_matches('/').ends_with("/debian");
        (is_release && is_debian && component == "main")
            .then(|| (uri.to_owned(), release.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_itself_is_taken() {
        let targets = "https://packages.example/apt cloud main\n\
            http://deb.debian.org/debian/ bookworm-updates main\n\
            http://deb.debian.org/debian/ bookworm main\n";
        let found = first_of(targets);
        let wanted = ("http://deb.debian.org/debian/".into(), "bookworm".into());
        assert_eq!(found, Some(wanted));
        assert_eq!(first_of(""), None);
    }
}
