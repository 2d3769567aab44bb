//! An sshd of our own at each end of the cable, with a home of its own.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cable::Cable;
use crate::bench::ground::child::spawn;
use crate::bench::ground::groups::Group;
use crate::bench::ground::stage::Stage;
use crate::run;

pub(super) const SSHD: &str = "/usr/sbin/sshd";
const PORT: u16 = 7496;
/// The fastest where the processor has AES and carry-less multiplication.
pub(super) const CIPHER: &str = "aes128-gcm@openssh.com";
/// Where sshd confines its unprivileged half; Debian's unit makes it.
const SEPARATION_DIR: &str = "/run/sshd";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Ssh {
    dir: PathBuf,
}

impl Ssh {
    pub(super) fn start(stage: &Stage, cable: &Cable) -> Result<Ssh> {
        let dir = stage.dir.join("ssh");
        let ssh = Ssh { dir };
        fs::create_dir_all(ssh.home())?;
        fs::create_dir_all(ssh.programs())?;
        ssh.write_files(cable)?;
        stage.groups.enter(Group::Peer)?;
        fs::create_dir_all(SEPARATION_DIR)?;
        for (address, mut command) in [
            (cable.head, stage.command(SSHD)),
            (cable.node, cable.there(Path::new(SSHD))),
        ] {
            let (config, log) = (ssh.path(&format!("config.{address}")), ssh.path("log"));
            command.args(["-D", "-f", &config, "-E", &log]);
            spawn(&mut command)?;
            let deadline = Instant::now() + START_TIMEOUT;
            while TcpStream::connect((address, PORT)).is_err() {
                if Instant::now() > deadline {
                    bail!("sshd does not listen: {}", fs::read_to_string(&log)?);
                }
                std::thread::sleep(POLL);
            }
        }
        let mut try_out = stage.command("/usr/bin/ssh");
        try_out.args(["-F", &ssh.client_config(), &cable.node.to_string(), "true"]);
        stage.try_out(&mut try_out, START_TIMEOUT)?;
        Ok(ssh)
    }

    /// What the ssh client is to read.
    pub(super) fn client_config(&self) -> String {
        self.path("client")
    }

    /// Where one is when one comes by ssh.
    pub(super) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// The first folder of `PATH` there.
    pub(super) fn programs(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn write_files(&self, cable: &Cable) -> Result<()> {
        for key in ["host_key", "key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f", &self.path(key)]);
            run::output(command.stdout(Stdio::null()))?;
        }
        fs::copy(self.path("key.pub"), self.path("authorized_keys"))?;
        let host_key = fs::read_to_string(self.path("host_key.pub"))?;
        let known = |address: Ipv4Addr| format!("[{address}]:{PORT} {host_key}");
        let known = [cable.head, cable.node].map(known).concat();
        fs::write(self.path("known_hosts"), known)?;
        for address in [cable.head, cable.node] {
            let config = format!(
                "ListenAddress {address}\nPort {PORT}\nHostKey {}\nAuthorizedKeysFile {}\n\
                 PidFile none\nAllowUsers root\nPermitRootLogin prohibit-password\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
                 UseDNS no\nPrintMotd no\nPrintLastLog no\nStrictModes no\nCompression no\n\
                 SetEnv HOME={} PATH={}:/usr/sbin:/usr/bin:/sbin:/bin\n\
                 Subsystem sftp internal-sftp\n",
                self.path("host_key"),
                self.path("authorized_keys"),
                self.home().display(),
                self.programs().display(),
            );
            fs::write(self.path(&format!("config.{address}")), config)?;
        }
        let client = format!(
            "User root\nPort {PORT}\nIdentityFile {}\nUserKnownHostsFile {}\n\
             GlobalKnownHostsFile none\nStrictHostKeyChecking yes\nIdentitiesOnly yes\n\
             BatchMode yes\nLogLevel ERROR\nCompression no\nCiphers {CIPHER}\n",
            self.path("key"),
            self.path("known_hosts"),
        );
        fs::write(self.client_config(), client).context("ssh's configuration")
    }
}
