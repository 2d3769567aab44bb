//! What Wiglaf is compared with: Hydra and ssh.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::sshd::Sshd;
use super::stage::Stage;
use crate::run;

pub(super) const HYDRA: &str = "/usr/bin/mpiexec.hydra";
const PACKAGES: &[(&str, &str)] = &[
    (HYDRA, "mpich"),
    (super::sshd::PROGRAM, "openssh-server"),
    ("/usr/bin/ssh", "openssh-client"),
];
/// While it says so, Debian's packages do not start what they install (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

pub(super) struct Peers<'a> {
    stage: &'a Stage,
    pub(super) sshd: Sshd<'a>,
}

impl<'a> Peers<'a> {
    pub(super) fn start(stage: &'a Stage) -> Result<Peers<'a>> {
        Ok(Peers {
            stage,
            sshd: Sshd::start(stage)?,
        })
    }

    /// `mpiexec -n COUNT true`
    pub(super) fn hydra(&self, count: u32) -> Command {
        let mut command = self.stage.command(HYDRA);
        command.args(["-n", &count.to_string(), "true"]);
        command
    }

    pub(super) fn versions(&self) -> Result<String> {
        let packages = [
            "mpich",
            "openssh-server",
            "openssh-client",
            "findutils",
            "coreutils",
        ];
        let mut query = Command::new("dpkg-query");
        query
            .args(["-W", "-f", "${Package} ${Version}\n"])
            .args(packages);
        Ok(run::output(&mut query)?.trim().replace('\n', ", "))
    }
}

pub(super) fn install_missing() -> Result<()> {
    let missing: Vec<&str> = PACKAGES
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
