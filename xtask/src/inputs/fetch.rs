//! Brings sources here: Debian's by apt-get with lists of our own, so that neither root's rights
//! nor a change of the machine's own lists is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Input, Source, Store};
use crate::{packages, run};

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What fetching and unpacking takes.
const TOOLS: &[&str] = &["dpkg-dev", "xz-utils", "bzip2", "patch", "make"];
const LINUX: &str = "linux-source-6.1";

impl Store {
    /// The source's folder, fetched if it is not there, with what its build needs installed.
    pub(crate) fn fetch(&self, input: &Input) -> Result<PathBuf> {
        packages::install(input.packages)?;
        match input.source {
            Source::Debian(package) => self.debian(package),
            Source::Linux => linux_source(&self.dir.join("sources")),
            Source::Own => self.own(),
        }
        .with_context(|| format!("the source of {}", input.name))
    }

    fn debian(&self, package: &str) -> Result<PathBuf> {
        let unpacked = self.dir.join("sources").join(package);
        if unpacked.exists() {
            return Ok(unpacked);
        }
        packages::install(TOOLS)?;
        let fresh = Fresh::beside(&unpacked)?;
        let apt = self.apt()?;
        run::check(
            apt.command(&["source", "--download-only", package])
                .current_dir(&fresh.dir),
        )?;
        let description = fs::read_dir(&fresh.dir)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|end| end == "dsc"))
            .with_context(|| format!("apt-get has fetched no .dsc file of {package}"))?;
        // The archive's signature was checked by apt; the maintainer's own key may be unknown here.
        run::check(
            Command::new("dpkg-source")
                .current_dir(&fresh.dir)
                .args(["--no-check", "-q", "-x"])
                .arg(&description)
                .arg("tree"),
        )?;
        fresh.keep("tree")
    }

    /// The committed state, and not what is being edited.
    fn own(&self) -> Result<PathBuf> {
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command
                .current_dir(&self.workspace)
                .args(["-c", "safe.directory=*"])
                .args(args);
            run::output(&mut command)
        };
        let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
        let unpacked = self
            .dir
            .join("sources")
            .join(format!("wiglaf-{}", commit.trim()));
        if unpacked.exists() {
            return Ok(unpacked);
        }
        let fresh = Fresh::beside(&unpacked)?;
        let archive = fresh.dir.join("own.tar");
        git(&["archive", "-o", &archive.to_string_lossy(), "HEAD"])?;
        let tree = fresh.dir.join("tree");
        fs::create_dir(&tree)?;
        run::check(
            Command::new("tar")
                .arg("-xf")
                .arg(&archive)
                .arg("-C")
                .arg(&tree),
        )?;
        // What cargo has fetched for us it needs not fetch again.
        run::check(
            run::cargo()
                .args(["fetch", "--quiet", "--locked"])
                .current_dir(&tree),
        )?;
        fresh.keep("tree")
    }

    fn apt(&self) -> Result<Apt> {
        let apt = Apt {
            dir: self.dir.join("apt"),
        };
        let list = apt.dir.join("sources.list");
        if !list.exists() {
            fs::create_dir_all(apt.dir.join("parts"))?;
            fs::create_dir_all(apt.dir.join("lists/partial"))?;
            fs::create_dir_all(apt.dir.join("cache/archives/partial"))?;
            let suite = debian_suite()?;
            let text = format!("deb-src [signed-by={KEYRING}] {MIRROR} {suite} main\n");
            fs::write(apt.dir.join("sources.new"), text)?;
            run::check(&mut apt.command_with("sources.new", &["update"]))?;
            fs::rename(apt.dir.join("sources.new"), list)?;
        }
        Ok(apt)
    }
}

/// Linux' source tree in this folder, fetched if it is not there.
pub(crate) fn linux_source(store: &Path) -> Result<PathBuf> {
    let unpacked = store.join(LINUX);
    if unpacked.exists() {
        return Ok(unpacked);
    }
    let fresh = Fresh::beside(&unpacked)?;
    let download = |name: &str| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "download", name])
            .current_dir(&fresh.dir);
        run::check(&mut command)
    };
    if download(LINUX).is_err() {
        // A machine whose lists are missing or name an older version.
        packages::update()?;
        download(LINUX)?;
    }
    println!("unpacking {LINUX}");
    let script = format!(
        "set -e; dpkg-deb --fsys-tarfile {LINUX}_*.deb | tar -xO ./usr/src/{LINUX}.tar.xz | tar -xJ"
    );
    run::output(
        Command::new("sh")
            .args(["-c", &script])
            .current_dir(&fresh.dir),
    )?;
    fresh.keep(LINUX)
}

/// apt-get that knows only our list, and keeps what it learns to itself.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn command(&self, args: &[&str]) -> Command {
        self.command_with("sources.list", args)
    }

    fn command_with(&self, list: &str, args: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-q");
        for (name, path) in [
            ("Dir::Etc::sourcelist", list),
            ("Dir::Etc::sourceparts", "parts"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            let path = self.dir.join(path);
            command.args(["-o", &format!("{name}={}", path.display())]);
        }
        // Our folders may be closed to apt's own user.
        let own = rustix::process::geteuid().as_raw().to_string();
        let user = if own == "0" { "root" } else { own.as_str() };
        command.args(["-o", &format!("APT::Sandbox::User={user}")]);
        command.args(args);
        command
    }
}

fn debian_suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(suite)) => Ok(suite),
        (id, _) => bail!(
            "this is {}, not Debian: put the unpacked sources into target/inputs/sources yourself, \
             each below its Debian name",
            id.unwrap_or("an unknown system")
        ),
    }
}

/// A folder that takes its final name only once all is in it.
struct Fresh {
    dir: PathBuf,
    wanted: PathBuf,
}

impl Fresh {
    fn beside(wanted: &Path) -> Result<Fresh> {
        let mut name = wanted.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let dir = wanted.with_file_name(name);
        fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        Ok(Fresh {
            dir,
            wanted: wanted.to_owned(),
        })
    }

    fn keep(self, name: &str) -> Result<PathBuf> {
        fs::rename(self.dir.join(name), &self.wanted)
            .with_context(|| format!("can't make {}", self.wanted.display()))?;
        Ok(self.wanted.clone())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
