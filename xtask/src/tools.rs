//! Programs of others that CI needs and cargo installs, kept below `target/tools`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::Metadata;

use crate::run;

/// Name and version. The end-to-end tests find them in `target/tools/bin`.
const TOOLS: &[(&str, &str)] = &[("cargo-deny", "0.20.2"), ("pjdfstest", "0.2.2")];

/// The program's path, after it has been built if need be: without optimisation, which takes
/// a third of the time.
pub(crate) fn install(metadata: &Metadata, name: &str) -> Result<PathBuf> {
    let (_, version) = TOOLS
        .iter()
        .find(|(each, _)| *each == name)
        .with_context(|| format!("{name} is not one of our tools"))?;
    let root = metadata.target_directory.join("tools");
    let program = root.join("bin").join(name).into_std_path_buf();
    if !has_version(&program, version) {
        run::check(
            run::cargo()
                .args(["install", name, "--quiet", "--locked", "--debug", "--force"])
                .args(["--version", version, "--root", root.as_str()]),
        )?;
    }
    Ok(program)
}

fn has_version(program: &Path, version: &str) -> bool {
    program.exists()
        && run::output(Command::new(program).arg("--version"))
            .is_ok_and(|said| said.trim().ends_with(version))
}
