//! Real programs to build: where their sources come from, how they are configured and built, and
//! what differs between two builds anyway.
//!
//! `catalogue` is the table, `fetch` brings sources to `target/inputs/sources`, `place` unpacks a
//! fresh copy and builds it, `tree` compares two outcomes, `record` reads what Wiglaf tells of a build, and
//! `compare` is the command that compares builds here and over a cluster.

mod catalogue;
pub(crate) mod compare;
mod fetch;
pub(crate) mod place;
pub(crate) mod record;
pub(crate) mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use fetch::linux_source;

/// A program that is built.
pub(crate) struct Input {
    pub(crate) name: &'static str,
    about: &'static str,
    source: Source,
    /// Debian's names of what its build needs besides a C compiler and make.
    packages: &'static [&'static str],
    /// Where it is configured and built, below the copy.
    folder: &'static str,
    /// What is done first, by a shell and never over a cluster.
    prepare: Option<&'static str>,
    pub(crate) build: Build,
    /// Beside `wiglaf build`: whether its build finds compilers in the caller's own PATH.
    needs_cargo: bool,
    /// What two builds on the same machine do not agree on.
    pub(crate) differences: &'static [Difference],
}

/// Where it comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A Debian source package.
    Debian(&'static str),
    /// Linux, built outside of its source tree, of which there is only one.
    Linux,
    /// This workspace as it was committed last.
    Own,
}

/// What builds it.
#[derive(Clone, Copy)]
pub(crate) enum Build {
    /// `make -jN` with these arguments.
    Make(&'static [&'static str]),
    /// A shell's command line, with the number of jobs in `$JOBS`.
    Shell(&'static str),
}

/// Files whose contents two builds do not agree on.
pub(crate) struct Difference {
    /// From the top of the copy; a `*` stands for anything.
    pub(crate) files: &'static str,
    pub(crate) reason: &'static str,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which; all if none is named
    names: Vec<String>,
    /// Only say what there is
    #[arg(long)]
    list: bool,
}

/// `cargo xtask inputs`: fetches.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        for input in catalogue::INPUTS {
            println!("{:12} {}", input.name, input.about);
            for difference in input.differences {
                println!(
                    "{:12}   two builds differ in {}: {}",
                    "", difference.files, difference.reason
                );
            }
        }
        return Ok(());
    }
    let store = Store::open()?;
    for input in by_names(&args.names)? {
        let path = store.fetch(input)?;
        println!("{:12} {}", input.name, path.display());
    }
    Ok(())
}

/// Those of the names, or all.
pub(crate) fn by_names(names: &[String]) -> Result<Vec<&'static Input>> {
    if names.is_empty() {
        return Ok(catalogue::INPUTS.iter().collect());
    }
    names.iter().map(|name| by_name(name)).collect()
}

pub(crate) fn by_name(name: &str) -> Result<&'static Input> {
    catalogue::INPUTS
        .iter()
        .find(|input| input.name == name)
        .with_context(|| {
            let all: Vec<_> = catalogue::INPUTS.iter().map(|each| each.name).collect();
            format!("no input is called `{name}`; there are {}", all.join(", "))
        })
}

/// `target/inputs`.
pub(crate) struct Store {
    dir: PathBuf,
    workspace: PathBuf,
}

impl Store {
    pub(crate) fn open() -> Result<Store> {
        let metadata = cargo_metadata::MetadataCommand::new()
            .no_deps()
            .exec()
            .context("can't read the workspace")?;
        let dir = metadata.target_directory.join("inputs").into_std_path_buf();
        std::fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        Ok(Store {
            dir,
            workspace: metadata.workspace_root.into_std_path_buf(),
        })
    }

    pub(crate) fn workspace(&self) -> &Path {
        &self.workspace
    }
}
