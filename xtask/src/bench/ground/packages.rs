//! The packages of what a benchmark compares with: installed, and named with their versions.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::run;

/// While it says so, Debian's packages do not start what they install (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the packages of those programs that are not here.
pub(in crate::bench) fn install_missing(wanted: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !Path::new(program).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!(
        "installing the peers that are missing: {}",
        missing.join(" ")
    );
    let policy = Policy::forbid_starting()?;
    let apt = |args: &[&str]| {
        run::check(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .arg("-q")
                .args(args),
        )
    };
    apt(&["update"])?;
    let mut args = vec!["install", "-y", "--no-install-recommends"];
    args.extend(&missing);
    let result = apt(&args);
    drop(policy);
    result
}

/// What these packages are, for a table.
pub(in crate::bench) fn versions(packages: &[&str]) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["-W", "-f", "${Package} ${Version}\n"])
        .args(packages);
    Ok(run::output(&mut query)?.trim().replace('\n', ", "))
}

/// The machine's own sshd must not start because we wanted its program.
struct Policy {
    is_ours: bool,
}

impl Policy {
    fn forbid_starting() -> Result<Policy> {
        if Path::new(POLICY).exists() {
            return Ok(Policy { is_ours: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| POLICY.to_owned())?;
        let policy = Policy { is_ours: true };
        run::check(
            Command::new("chmod")
                .args(["755", POLICY])
                .stdout(Stdio::null()),
        )?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
