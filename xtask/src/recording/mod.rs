//! `cargo xtask recording`: a session at a real terminal, as an animated picture for the README.
//!
//! `terminal` is the terminal with a shell and keeps what it shows, `film` makes the screens of
//! it that one sees one after another, `svg` writes them. Only the typing is the script's.

mod film;
mod svg;
mod terminal;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bench::ground::sweeper::Sweeper;
use terminal::Terminal;

/// What is typed, and how long the reader has for what comes of it.
const SCRIPT: [(&str, Duration); 4] = [
    ("wiglaf up -n 4", Duration::from_millis(1000)),
    ("wiglaf make -j --report", Duration::from_millis(6000)),
    ("./spheres 72 20", Duration::from_millis(2500)),
    ("wiglaf down", Duration::from_millis(500)),
];
const SOURCES: &str = "crates/cli/src/commands/demo/spheres";
const PICTURE: &str = "docs/recordings/make.svg";
const TITLE: &str = "A ray tracer is built over four virtual nodes with wiglaf make, and run";
/// GitHub shows larger ones, but a README should open at once.
const LARGEST: usize = 100_000;

pub(crate) fn run() -> Result<()> {
    let binary = crate::binary::build()?;
    let project = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in no workspace")?;
    let place = Place::make(&binary, &project.join(SOURCES))?;
    let mut terminal = Terminal::open(place.shell())?;
    for (line, rest) in SCRIPT {
        println!("$ {line}");
        terminal.enter(line)?;
        terminal.watch(rest)?;
    }
    // Its last line has succeeded.
    place.sweeper.forget_cluster(&place.cluster())?;
    let screens = film::screens(&terminal.into_pieces());
    let text = svg::write(TITLE, &screens);
    if text.len() > LARGEST {
        bail!("the picture has {} bytes, more than {LARGEST}", text.len());
    }
    let path = project.join(PICTURE);
    fs::create_dir_all(path.parent().unwrap_or(project))?;
    fs::write(&path, &text).with_context(|| format!("can't write {}", path.display()))?;
    println!(
        "{PICTURE}: {} screens, {} kB",
        screens.len(),
        text.len() / 1000
    );
    Ok(())
}

/// A directory with the program and a cluster of its own, gone at the end however we end.
struct Place {
    dir: PathBuf,
    sweeper: Sweeper,
}

impl Place {
    fn make(binary: &Path, sources: &Path) -> Result<Place> {
        let dir = std::env::temp_dir().join(format!("wiglaf-recording-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .with_context(|| format!("can't make {}", dir.display()))?;
        let place = Place {
            sweeper: Sweeper::start()?,
            dir,
        };
        place.sweeper.add_dir(&place.dir)?;
        place.sweeper.add_cluster(binary, &place.cluster())?;
        fs::create_dir(place.bin())?;
        symlink(binary, place.bin().join("wiglaf"))?;
        fs::create_dir(place.work())?;
        let files =
            fs::read_dir(sources).with_context(|| format!("can't read {}", sources.display()))?;
        for file in files {
            let file = file?;
            fs::copy(file.path(), place.work().join(file.file_name()))?;
        }
        Ok(place)
    }

    fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn work(&self) -> PathBuf {
        self.dir.join("spheres")
    }

    fn shell(&self) -> Command {
        // A session of its own, with the terminal as its controlling one.
        let mut shell = Command::new("setsid");
        shell
            .args(["--ctty", "--wait", "/bin/sh", "-i"])
            .current_dir(self.work())
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.bin().display()))
            .env("WIGLAF_DIR", self.cluster())
            .env("HOME", &self.dir)
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm");
        shell
    }

    fn cluster(&self) -> PathBuf {
        self.dir.join("w")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sweeper.finish();
    }
}
