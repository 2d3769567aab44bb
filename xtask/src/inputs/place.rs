//! A place where an input is unpacked, prepared and built, at the same path each time, as paths
//! get into what compilers write.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Build, Input, Source, Store};

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Programs that write the time into what they make take it from here if they can.
const TIME: &[(&str, &str)] = &[
    ("SOURCE_DATE_EPOCH", "1000000000"),
    ("KBUILD_BUILD_TIMESTAMP", "Sun Sep  9 01:46:40 UTC 2001"),
];
/// Nobody's own settings are to matter; these cargo and rustup need.
const PASSED_ON: &[&str] = &["HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
const SHOWN_LOG_LINES: usize = 15;

pub(crate) struct Place<'a> {
    pub(crate) input: &'a Input,
    source: PathBuf,
    pub(crate) dir: PathBuf,
}

impl<'a> Place<'a> {
    /// Fetches the source if need be. What was there of an earlier build goes.
    pub(crate) fn new(store: &Store, input: &'a Input, work: &Path) -> Result<Place<'a>> {
        Ok(Place {
            input,
            source: store.fetch(input)?,
            dir: work.join(input.name),
        })
    }

    /// A fresh copy, configured.
    pub(crate) fn prepare(&self) -> Result<()> {
        remove(&self.dir)?;
        let parent = self.dir.parent().context("the folder of the work")?;
        fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
        if self.input.source == Source::Linux {
            fs::create_dir(&self.dir)?;
        } else {
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto"]).arg(&self.source);
            crate::run::output(copy.arg(&self.dir))?;
        }
        let Some(script) = self.input.prepare else {
            return Ok(());
        };
        let mut command = self.command("sh", 1);
        self.logged(command.args(["-c", script]), "prepare")
    }

    /// The command that builds, without what goes before it; None as program for make.
    pub(crate) fn words(&self, jobs: u32) -> Vec<String> {
        match self.input.build {
            Build::Make(args) => {
                let mut words = vec!["make".to_owned(), format!("-j{jobs}")];
                words.extend(args.iter().map(|arg| (*arg).to_owned()));
                words
            }
            Build::Shell(line) => ["sh", "-c", line].map(str::to_owned).into(),
        }
    }

    /// The same through Wiglaf.
    pub(crate) fn words_by(&self, wiglaf: &Path, options: &[&str], jobs: u32) -> Vec<String> {
        let mut words = vec![wiglaf.to_string_lossy().into_owned()];
        let plain = self.words(jobs);
        let options = options.iter().map(|option| (*option).to_owned());
        match self.input.build {
            Build::Make(_) => {
                words.push("make".to_owned());
                words.extend(options);
                words.extend_from_slice(&plain[1..]);
            }
            Build::Shell(_) => {
                words.push("build".to_owned());
                words.extend(options);
                words.push("--".to_owned());
                words.extend(plain);
            }
        }
        words
    }

    /// A command in the build's folder and environment, without streams.
    pub(crate) fn command(&self, program: &str, jobs: u32) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.dir.join(self.input.folder))
            .env_clear()
            .env("LC_ALL", "C")
            .env("JOBS", jobs.to_string())
            .env("SOURCE", &self.source)
            // Some ask git what they are, which would find the repository that we are in.
            .env("GIT_CEILING_DIRECTORIES", self.dir.with_file_name(""))
            .envs(TIME.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let mut path = PATH.to_owned();
        if self.input.needs_cargo
            && let Some(folder) = cargo_folder()
        {
            path = format!("{}:{path}", folder.display());
        }
        command.env("PATH", path);
        command
    }

    /// Runs it to its end with all that it says in a file beside the copy; if it fails, says the
    /// last of it.
    pub(crate) fn logged(&self, command: &mut Command, what: &str) -> Result<()> {
        let log = self.log(what);
        let file = File::create(&log).with_context(|| format!("can't make {}", log.display()))?;
        let status = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("can't run `{}`", crate::run::text_of(command)))?;
        if !status.success() {
            bail!(
                "`{}` failed: {status}{}",
                crate::run::text_of(command),
                self.end_of_log(what)
            );
        }
        Ok(())
    }

    pub(crate) fn log(&self, what: &str) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{what}.log"));
        self.dir.with_file_name(name)
    }

    pub(crate) fn end_of_log(&self, what: &str) -> String {
        let log = fs::read(self.log(what)).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..]
            .iter()
            .map(|line| format!("\n  {line}"))
            .collect()
    }

    /// Puts what was built aside, for comparison.
    pub(crate) fn put_aside(&self, name: &str) -> Result<PathBuf> {
        let mut aside = self.dir.file_name().unwrap_or_default().to_owned();
        aside.push(format!(".{name}"));
        let aside = self.dir.with_file_name(aside);
        remove(&aside)?;
        fs::rename(&self.dir, &aside)
            .with_context(|| format!("can't rename {}", self.dir.display()))?;
        Ok(aside)
    }
}

pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Where the toolchain that runs us is.
fn cargo_folder() -> Option<PathBuf> {
    let cargo = PathBuf::from(std::env::var_os("CARGO")?);
    Some(cargo.parent()?.to_owned())
}
