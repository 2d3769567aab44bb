//! The work that everybody does, and how it is seen that it was done.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::materials::{BIG_BYTES, Materials, SEVERAL, SEVERAL_BYTES};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Measured with cold caches and with warm ones.
    Reads,
    /// Measured in a place that is up, with nothing of the outcome there before.
    Writes,
}

pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) about: String,
    pub(super) kind: Kind,
    script: Script,
    /// What it prints.
    said: String,
    outcome: Outcome,
}

enum Script {
    Program(&'static str),
    /// In the contender's folder, with `$0` for that of what all read, and `$1` for what no run
    /// made before, as sshfs would not see that we removed it.
    Shell(&'static str),
}

enum Outcome {
    Nothing,
    /// As this one, which the head made.
    SameAs(&'static str),
    Size(u64),
    Tree {
        entries: usize,
    },
}

pub(super) const TRUE: &str = "true";
pub(super) const GCC: &str = "gcc -c";
pub(super) const LS: &str = "ls -lR";
pub(super) const GIT: &str = "git status";
pub(super) const READ: &str = "read";
pub(super) const PYTHON: &str = "python3";
pub(super) const WRITE: &str = "write";
pub(super) const UNTAR: &str = "untar";

pub(super) fn all(materials: &Materials) -> Vec<Work> {
    let reads = |name, about: String, script, said: &str, outcome| Work {
        name,
        about,
        kind: Kind::Reads,
        script,
        said: said.to_owned(),
        outcome,
    };
    let big_mib = BIG_BYTES >> 20;
    vec![
        reads(
            TRUE,
            "nothing".to_owned(),
            Script::Program("true"),
            "",
            Outcome::Nothing,
        ),
        reads(
            GCC,
            format!("a file with {} headers, -O2", materials.headers),
            Script::Shell("gcc -O2 -c \"$0/many.c\" -o \"$1\""),
            "",
            Outcome::SameAs("many.o"),
        ),
        reads(
            LS,
            format!("/usr/include, {} lines", materials.include_lines),
            Script::Shell("ls -lR /usr/include | wc -l"),
            &materials.include_lines.to_string(),
            Outcome::Nothing,
        ),
        reads(
            GIT,
            format!("{} files, one changed", super::materials::REPOSITORY_FILES),
            Script::Shell("cd repository && git status --porcelain"),
            "M part0/d0/file0.txt",
            Outcome::Nothing,
        ),
        reads(
            PYTHON,
            "-c 'import json, re, subprocess, http.client, sqlite3'".to_owned(),
            Script::Shell(
                "/usr/bin/python3 -c 'import json, re, subprocess, http.client, sqlite3; print(\"done\")'",
            ),
            "done",
            Outcome::Nothing,
        ),
        reads(
            READ,
            format!("cat of {big_mib} MiB of noise"),
            Script::Shell("cat \"$0/big\" >/dev/null"),
            "",
            Outcome::Nothing,
        ),
        Work {
            kind: Kind::Writes,
            ..reads(
                WRITE,
                format!("{big_mib} MiB of noise by python3, with fsync"),
                // The same noise again and again, but never twice in what is compressed at once.
                Script::Shell(
                    "/usr/bin/python3 -c 'import os, sys\nnoise = os.urandom(1 << 20)\n\
                     file = open(sys.argv[1], \"wb\", 0)\nfor _ in range(500): file.write(noise)\n\
                     os.fsync(file.fileno())' \"$1\"",
                ),
                "",
                Outcome::Size(BIG_BYTES),
            )
        },
        Work {
            kind: Kind::Writes,
            ..reads(
                UNTAR,
                format!(
                    "{}, {} entries",
                    materials.archive, materials.archive_entries
                ),
                Script::Shell("mkdir \"$1\" && tar -xf \"$0/source.tar\" -C \"$1\""),
                "",
                Outcome::Tree {
                    entries: materials.archive_entries,
                },
            )
        },
    ]
}

/// What a node has to read again when it has been restarted.
pub(super) fn of_a_restart() -> Vec<Work> {
    let reads = |name, about: String, script, outcome| Work {
        name,
        about,
        kind: Kind::Reads,
        script: Script::Shell(script),
        said: String::new(),
        outcome,
    };
    vec![
        reads(
            GCC,
            "a file with one header".to_owned(),
            "gcc -c \"$0/one.c\" -o \"$1\"",
            Outcome::SameAs("one.o"),
        ),
        reads(
            READ,
            format!(
                "cat of {SEVERAL} files with {} MiB of noise each",
                SEVERAL_BYTES >> 20
            ),
            "cat \"$0\"/several/* >/dev/null",
            Outcome::Nothing,
        ),
    ]
}

impl Work {
    /// The command; what it makes is to have this name.
    pub(super) fn words(&self, materials: &Path, contender: &str, made: &str) -> Vec<String> {
        match self.script {
            Script::Program(name) => vec![name.to_owned()],
            Script::Shell(script) => {
                let own = materials.join(contender);
                vec![
                    "sh".to_owned(),
                    "-c".to_owned(),
                    format!("cd {} && {{ {script}; }}", own.display()),
                    materials.display().to_string(),
                    made.to_owned(),
                ]
            }
        }
    }

    /// Looks at what it said and, on the head's own disk, at what it made.
    pub(super) fn check(&self, said: &str, materials: &Path, made: &Path) -> Result<()> {
        if said.trim() != self.said {
            bail!("it said {:?}, not {:?}", said.trim(), self.said);
        }
        match &self.outcome {
            Outcome::Nothing => {}
            Outcome::SameAs(reference) => {
                if fs::read(made)? != fs::read(materials.join(reference))? {
                    bail!("what it made differs from {reference}");
                }
            }
            Outcome::Size(bytes) => {
                let found = fs::metadata(made)?.len();
                if found != *bytes {
                    bail!("what it made has {found} bytes, not {bytes}");
                }
            }
            Outcome::Tree { entries } => {
                let found = count(made)?;
                // The folder above the archive's own is not in its list.
                if found < *entries {
                    bail!("what it made has {found} entries, not {entries}");
                }
            }
        }
        Ok(())
    }
}

/// Removes what a run has made, if anything.
pub(super) fn clear(made: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(made) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(made),
        Ok(_) => fs::remove_file(made),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("can't remove {}", made.display()))
}

fn count(dir: &Path) -> Result<usize> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        sum += 1;
        if entry.file_type()?.is_dir() {
            sum += count(&entry.path())?;
        }
    }
    Ok(sum)
}
