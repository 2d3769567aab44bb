//! An sshd of our own on a loopback port, for an account of its own with an empty profile.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::run;

pub(super) const PROGRAM: &str = "/usr/sbin/sshd";
const ACCOUNT: &str = "wiglafbench";
/// Where sshd confines its unprivileged half; Debian's unit makes it.
const SEPARATION_DIR: &str = "/run/sshd";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Sshd<'a> {
    stage: &'a Stage,
    dir: PathBuf,
    port: u16,
}

impl<'a> Sshd<'a> {
    pub(super) fn start(stage: &'a Stage) -> Result<Sshd<'a>> {
        let dir = stage.dir.join("s");
        let home = dir.join("home");
        fs::create_dir_all(&home)?;
        make_account(stage, &home)?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let sshd = Sshd { stage, dir, port };
        sshd.write_files()?;
        stage.groups.enter(Group::Peer)?;
        let config = sshd.path("config");
        let log = sshd.path("log");
        let mut command = stage.command(PROGRAM);
        command.args(["-D", "-f", &config, "-E", &log]);
        let mut child = spawn(&mut command)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "sshd ended ({status}): {}",
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "sshd does not listen: {}",
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            std::thread::sleep(POLL);
        }
        stage
            .try_out(sshd.ssh(&[]).arg("true"), LOGIN_TIMEOUT)
            .with_context(|| format!("sshd: {}", fs::read_to_string(&log).unwrap_or_default()))?;
        Ok(sshd)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn write_files(&self) -> Result<()> {
        for key in ["host_key", "key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f", &self.path(key)]);
            run::output(&mut command)?;
        }
        let public = |name| fs::read_to_string(self.path(name));
        fs::write(self.path("authorized_keys"), public("key.pub")?)?;
        fs::set_permissions(
            self.path("authorized_keys"),
            fs::Permissions::from_mode(0o644),
        )?;
        fs::write(
            self.path("known_hosts"),
            format!("[127.0.0.1]:{} {}", self.port, public("host_key.pub")?),
        )?;
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             AllowUsers {ACCOUNT}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             UsePAM no\nUseDNS no\nPrintMotd no\nPrintLastLog no\nPermitUserEnvironment no\n\
             StrictModes no\n",
            self.port,
            self.path("host_key"),
            self.path("authorized_keys"),
        );
        fs::write(self.path("config"), config)?;
        fs::create_dir_all(SEPARATION_DIR)?;
        Ok(())
    }

    /// `ssh OPTIONS host`, to which the remote command is added.
    pub(super) fn ssh(&self, options: &[&str]) -> Command {
        let mut command = self.stage.command("/usr/bin/ssh");
        command.args([
            "-F",
            "none",
            "-T",
            "-i",
            &self.path("key"),
            "-p",
            &self.port.to_string(),
        ]);
        let known = format!("UserKnownHostsFile={}", self.path("known_hosts"));
        let fixed = [
            known.as_str(),
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ];
        for option in fixed {
            command.args(["-o", option]);
        }
        command.args(options).arg(format!("{ACCOUNT}@127.0.0.1"));
        command
    }

    /// A connection that later commands can share; it ends with the peers' group.
    pub(super) fn share_connection(&self) -> Result<()> {
        self.stage.groups.enter(Group::Peer)?;
        let mut command = self.ssh(&["-M", "-N", "-S", &self.path("mux")]);
        spawn(&mut command)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.dir.join("mux").exists() {
            if Instant::now() > deadline {
                bail!("ssh does not make its control socket");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// ssh by the shared connection.
    pub(super) fn shared(&self) -> Command {
        self.ssh(&["-S", &self.path("mux")])
    }
}

fn make_account(stage: &Stage, home: &std::path::Path) -> Result<()> {
    let exists = fs::read_to_string("/etc/passwd")?
        .lines()
        .any(|line| line.split(':').next() == Some(ACCOUNT));
    if exists {
        bail!(
            "there is an account {ACCOUNT} already: another benchmark runs, or `userdel {ACCOUNT}`"
        );
    }
    let mut command = Command::new("useradd");
    command.args([
        "--system",
        "--no-create-home",
        "--shell",
        "/bin/sh",
        "--home-dir",
    ]);
    // sshd takes `!` for a locked account; no password fits `*`.
    command.arg(home).args(["--password", "*", ACCOUNT]);
    run::output(&mut command)?;
    stage.sweeper.add_user(ACCOUNT)
}
