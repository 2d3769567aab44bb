//! Who builds: make as it is, Wiglaf, distcc, icecream.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cluster::Cluster;
use super::farm::{DISTCC, Farm, ICECC};
use crate::inputs::place::Place;
use crate::inputs::record::Lines;

/// Its nodes take nothing while they find their processors busy, of which they tell the scheduler
/// every three seconds: they must not be refused for what another's build has done.
const ICE_REST: Duration = Duration::from_secs(8);

/// One build of one input, ready to be started.
pub(super) struct Job<'a> {
    pub(super) place: &'a Place<'a>,
    pub(super) jobs: u32,
    pub(super) nodes: u32,
    /// For what it prints.
    pub(super) log: PathBuf,
}

pub(super) trait Builder {
    fn name(&self) -> &'static str;

    fn command(&self, job: &Job) -> Result<Command>;

    /// How long nothing should run before its build.
    fn rest(&self) -> Duration {
        Duration::ZERO
    }

    /// What nodes have compiled or run until now, of all builds; None where nothing leaves this
    /// machine.
    fn done_remotely(&self) -> Result<Option<u64>>;

    /// What was told of the build whose output is in the file.
    fn lines(&self, _log: &Path) -> Result<Option<Lines>> {
        Ok(None)
    }

    /// Whether its files must be those of a build here.
    fn is_faithful(&self) -> bool {
        false
    }
}

pub(super) struct Plain;

impl Builder for Plain {
    fn name(&self) -> &'static str {
        "make"
    }

    fn command(&self, job: &Job) -> Result<Command> {
        finish(job, &job.place.words(job.jobs))
    }

    fn done_remotely(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn is_faithful(&self) -> bool {
        true
    }
}

pub(super) struct Wiglaf<'c, 'a>(pub(super) &'c Cluster<'a>);

impl Builder for Wiglaf<'_, '_> {
    fn name(&self) -> &'static str {
        "Wiglaf"
    }

    fn command(&self, job: &Job) -> Result<Command> {
        let nodes = Cluster::first(job.nodes);
        let options = ["--json", "--require-cluster", "--nodes", &nodes];
        let words = job.place.words_by(&self.0.binary, &options, job.jobs);
        let mut command = finish(job, &words)?;
        command.env("WIGLAF_DIR", &self.0.dir);
        // What it learns is to be of this benchmark's builds only.
        command.env("XDG_CACHE_HOME", self.0.cache());
        Ok(command)
    }

    fn done_remotely(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn lines(&self, log: &Path) -> Result<Option<Lines>> {
        Lines::read(log).map(Some)
    }

    fn is_faithful(&self) -> bool {
        true
    }
}

pub(super) struct Distcc<'f, 'a>(pub(super) &'f Farm<'a>);

impl Builder for Distcc<'_, '_> {
    fn name(&self) -> &'static str {
        "distcc"
    }

    fn command(&self, job: &Job) -> Result<Command> {
        let mut words = self.0.on_head().to_vec();
        words.extend(wrapped(job, DISTCC));
        let mut command = finish(job, &words)?;
        command.env("DISTCC_HOSTS", self.0.distcc_hosts(job.nodes));
        command.env("DISTCC_FALLBACK", "0");
        let dir = job.log.with_file_name("distcc");
        std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        command.env("DISTCC_DIR", dir);
        Ok(command)
    }

    fn done_remotely(&self) -> Result<Option<u64>> {
        self.0.distcc_compiled().map(Some)
    }
}

pub(super) struct Icecc<'f, 'a>(pub(super) &'f Farm<'a>);

impl Builder for Icecc<'_, '_> {
    fn name(&self) -> &'static str {
        "icecream"
    }

    fn rest(&self) -> Duration {
        ICE_REST
    }

    fn command(&self, job: &Job) -> Result<Command> {
        let mut words = self.0.on_head().to_vec();
        words.extend(wrapped(job, ICECC));
        let mut command = finish(job, &words)?;
        command.env("ICECC_TEST_SOCKET", self.0.ice_socket());
        Ok(command)
    }

    fn done_remotely(&self) -> Result<Option<u64>> {
        self.0.ice_compiled().map(Some)
    }
}

/// make with a compiler that is called by another.
fn wrapped(job: &Job, wrapper: &str) -> Vec<String> {
    let mut words = job.place.words(job.jobs);
    words.push(format!("CC={wrapper} gcc"));
    words.push(format!("HOSTCC={wrapper} gcc"));
    words
}

fn finish(job: &Job, words: &[String]) -> Result<Command> {
    let mut command = job.place.command(&words[0], job.jobs);
    let log =
        File::create(&job.log).with_context(|| format!("can't make {}", job.log.display()))?;
    command
        .args(&words[1..])
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}
