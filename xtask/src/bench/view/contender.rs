//! Who does the work: this machine, Wiglaf, sshfs, outrun.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cable::{Cable, wait_until_ready};
use super::ssh::Ssh;
use crate::bench::ground::groups::Group;
use crate::bench::ground::packages;
use crate::bench::ground::stage::Stage;
use crate::run;

pub(super) const SSHFS: &str = "/usr/bin/sshfs";
const OUTRUN_VERSION: &str = "1.1.0";
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// An hour, as nothing changes under it.
const SSHFS_OPTIONS: &str = "kernel_cache,auto_cache,attr_timeout=3600,entry_timeout=3600,\
    negative_timeout=3600,dcache_timeout=3600,dcache_stat_timeout=3600,dcache_link_timeout=3600,\
    dcache_dir_timeout=3600,dcache_clean_interval=3600,dcache_max_size=200000,max_conns=4,\
    allow_other,default_permissions,dev,suid";

/// Files read at once, after which sshfs, which connects when it has to, has all its connections.
const CONNECTING: u32 = 12;
const CONNECTING_BYTES: u64 = 2 << 20;

pub(super) trait Contender {
    fn name(&self) -> &'static str;

    /// Who pays for what is started next.
    fn group(&self) -> Group {
        Group::Peer
    }

    /// Whether it is on the second machine, with caches that can be cold.
    fn is_remote(&self) -> bool {
        true
    }

    /// Empties the caches.
    fn freshen(&mut self) -> Result<()>;

    fn command(&self, words: &[String]) -> Command;
}

pub(super) struct Native<'a>(pub(super) &'a Stage);

impl Contender for Native<'_> {
    fn name(&self) -> &'static str {
        "native"
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn freshen(&mut self) -> Result<()> {
        Ok(())
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = self.0.command(&words[0]);
        command.args(&words[1..]).current_dir("/");
        command
    }
}

/// All of the head's files by sshfs, and the work in a chroot there.
pub(super) struct Sshfs<'a> {
    stage: &'a Stage,
    cable: &'a Cable<'a>,
    ssh: &'a Ssh,
    mount: PathBuf,
    options: String,
    /// Holds the mount namespace.
    holder: Option<Child>,
}

impl<'a> Sshfs<'a> {
    pub(super) fn new(stage: &'a Stage, cable: &'a Cable, ssh: &'a Ssh) -> Result<Sshfs<'a>> {
        let mount = stage.dir.join("sshfs");
        fs::create_dir(&mount)?;
        let help = Command::new(SSHFS).arg("--help").output()?.stdout;
        let mut options = SSHFS_OPTIONS.to_owned();
        // Newer ones refuse absolute links unless told otherwise, and /lib64 has some.
        if String::from_utf8_lossy(&help).contains("no_contain_symlinks") {
            options.push_str(",no_contain_symlinks");
        }
        let sshfs = Sshfs {
            stage,
            cable,
            ssh,
            mount,
            options,
            holder: None,
        };
        for number in 1..=CONNECTING {
            let file = fs::File::create(format!("{}{number}", sshfs.connecting()))?;
            file.set_len(CONNECTING_BYTES)?;
        }
        Ok(sshfs)
    }

    /// What is read to have it connect, without a number.
    fn connecting(&self) -> String {
        self.stage
            .dir
            .join("connecting")
            .to_string_lossy()
            .into_owned()
    }

    fn unmount(&mut self) -> Result<()> {
        let Some(mut holder) = self.holder.take() else {
            return Ok(());
        };
        let mut command = self.enter(&holder);
        command.args(["umount", "--recursive", "--lazy"]);
        let result = self
            .stage
            .try_out(command.arg(&self.mount), UNMOUNT_TIMEOUT);
        holder.kill()?;
        holder.wait()?;
        result
    }

    fn enter(&self, holder: &Child) -> Command {
        let mut command = self.stage.command("nsenter");
        command.args(["-t", &holder.id().to_string(), "-m", "-n", "--"]);
        command
    }
}

impl Contender for Sshfs<'_> {
    fn name(&self) -> &'static str {
        "sshfs"
    }

    fn freshen(&mut self) -> Result<()> {
        self.unmount()?;
        self.stage.groups.enter(Group::Peer)?;
        let mount = self.mount.display();
        let script = format!(
            "set -e; sshfs -F {} {}:/ {mount} -o {} >/dev/null
             for i in $(seq {CONNECTING}); do cat {mount}{}$i >/dev/null & done; wait
             mount -t proc proc {mount}/proc; mount --rbind /dev {mount}/dev
             mount -t tmpfs tmpfs {mount}/tmp
             echo ready; exec sleep infinity >/dev/null",
            self.ssh.client_config(),
            self.cable.head,
            self.options,
            self.connecting(),
        );
        let mut command = self.cable.there(Path::new("unshare"));
        command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
        let log = self.stage.dir.join("sshfs.log");
        command.stderr(fs::File::create(&log)?);
        self.holder = wait_until_ready(&mut command)?;
        if self.holder.is_none() {
            bail!("sshfs: {}", fs::read_to_string(&log)?.trim());
        }
        Ok(())
    }

    fn command(&self, words: &[String]) -> Command {
        let Some(holder) = &self.holder else {
            // Tells by failing that there is no mount.
            return self.stage.command("/nonexistent/sshfs");
        };
        let mut command = self.enter(holder);
        command.arg("chroot").arg(&self.mount).args(words);
        command.current_dir("/");
        command
    }
}

/// outrun, whose caches are on the second machine's disk.
pub(super) struct Outrun<'a> {
    stage: &'a Stage,
    cable: &'a Cable<'a>,
    ssh: &'a Ssh,
    program: PathBuf,
}

impl<'a> Outrun<'a> {
    /// Installs it from PyPI below the given folder, if it is not there.
    pub(super) fn install(
        stage: &'a Stage,
        cable: &'a Cable,
        ssh: &'a Ssh,
        store: &Path,
    ) -> Result<Outrun<'a>> {
        let home = store.join(format!("outrun-{OUTRUN_VERSION}"));
        let program = home.join("bin/outrun");
        if !program.exists() {
            let mut venv = Command::new("/usr/bin/python3");
            run::check(venv.args(["-m", "venv", "--clear"]).arg(&home))?;
            let mut pip = Command::new(home.join("bin/pip"));
            run::check(pip.args(["install", "--quiet", &format!("outrun=={OUTRUN_VERSION}")]))?;
        }
        let programs = ssh.programs();
        std::os::unix::fs::symlink(&program, programs.join("outrun"))?;
        // It looks for a module of the name; a kernel with FUSE built in has none to show.
        let lsmod = programs.join("lsmod");
        fs::write(&lsmod, "#!/bin/sh\necho fuse\n")?;
        run::output(Command::new("chmod").arg("755").arg(&lsmod))?;
        Ok(Outrun {
            stage,
            cable,
            ssh,
            program,
        })
    }
}

impl Contender for Outrun<'_> {
    fn name(&self) -> &'static str {
        "outrun"
    }

    fn freshen(&mut self) -> Result<()> {
        let cache = self.ssh.home().join(".outrun");
        match fs::remove_dir_all(&cache) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("can't remove {}", cache.display()))
            }
            _ => Ok(()),
        }
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = self.stage.command(&self.program.to_string_lossy());
        let config = format!("-F {}", self.ssh.client_config());
        command
            .args(["--ssh", &config, &self.cable.node.to_string()])
            .args(words);
        command.env("HOME", self.ssh.home()).current_dir("/");
        command
    }
}

/// What the tables call them.
pub(super) fn versions() -> Result<String> {
    let packages = ["sshfs", "openssh-server", "gcc", "git", "python3-minimal"];
    Ok(format!(
        "{}, outrun {OUTRUN_VERSION}",
        packages::versions(&packages)?
    ))
}
