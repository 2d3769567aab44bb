//! What Wiglaf is compared with: Hydra and ssh.

use std::process::Command;

use anyhow::Result;

use super::sshd::Sshd;
use crate::bench::ground::packages;
use crate::bench::ground::stage::Stage;

pub(super) const HYDRA: &str = "/usr/bin/mpiexec.hydra";
pub(super) const PACKAGES: &[(&str, &str)] = &[
    (HYDRA, "mpich"),
    (super::sshd::PROGRAM, "openssh-server"),
    ("/usr/bin/ssh", "openssh-client"),
];

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
        packages::versions(&packages)
    }
}
