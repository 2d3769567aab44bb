//! Where the head, the guests and all that they start live: namespaces that end with us.
//!
//! We run ourselves again as a process of a new PID namespace. Its first process is a shell that
//! reaps; when that ends, the kernel kills everything else. So a head, a keeper or a guest can't
//! be left behind, however we end.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::run;

const PREFIX: &str = "wgv.";
/// A namespace's processes count from one. A machine that has been started is further, and
/// nothing of a guest's must have a number that a ghost gets.
const FIRST_PID: &str = "20000";
/// The first process: reaps what is left to it, and passes our end on. The session is a new one,
/// since the number of a group from outside is 0 here.
const INIT: &str = "exec 3<&0; setsid -w \"$@\" <&3 3<&- & wait $!";

/// Runs this program with these arguments on a new ground, with its folder as the last one.
pub(super) fn enter(args: &[String]) -> Result<ExitStatus> {
    remove_stale();
    let dir = PathBuf::from(format!("/tmp/{PREFIX}{}", std::process::id()));
    fs::DirBuilder::new()
        .mode(0o755)
        .create(&dir)
        .with_context(|| format!("can't make {}", dir.display()))?;
    let result = spawn(args, &dir);
    let _ = fs::remove_dir_all(&dir);
    result
}

fn spawn(args: &[String], dir: &Path) -> Result<ExitStatus> {
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child=KILL"])
        .args(["--mount", "--mount-proc", "--net"])
        .args(["sh", "-c", INIT, "sh"])
        .arg(std::env::current_exe()?)
        .args(args)
        .arg(dir)
        .stdin(Stdio::piped());
    let mut child = command.spawn().context("can't run unshare")?;
    // Open as long as we are: its other end tells our end.
    let pipe = child.stdin.take();
    let status = child.wait()?;
    drop(pipe);
    Ok(status)
}

/// What was left by those that were killed.
fn remove_stale() {
    let Ok(entries) = fs::read_dir("/tmp") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The inner side.
pub(super) struct Ground {
    /// Short, as sockets are in it.
    pub(super) dir: PathBuf,
}

impl Ground {
    pub(super) fn arrive(dir: &Path) -> Result<Ground> {
        std::thread::Builder::new()
            .name("outer".to_owned())
            .spawn(|| {
                let mut end = [0];
                let _ = std::io::stdin().read(&mut end);
                eprintln!("whoever started us is gone");
                std::process::exit(1);
            })?;
        let ground = Ground {
            dir: dir.to_owned(),
        };
        fs::write("/proc/sys/kernel/ns_last_pid", FIRST_PID).context("ns_last_pid")?;
        ground.mount_sys()?;
        run::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        Ok(ground)
    }

    /// /sys shows the network of whoever mounted it.
    fn mount_sys(&self) -> Result<()> {
        let sys = self.dir.join("sys");
        fs::create_dir(&sys)?;
        let script = "set -e; mount -t sysfs sysfs \"$0\"
            mount --rbind /sys/fs/cgroup \"$0/fs/cgroup\"
            mount --rbind \"$0\" /sys; umount -R -l \"$0\"";
        run::output(Command::new("sh").args(["-c", script]).arg(&sys))?;
        fs::remove_dir(&sys)?;
        Ok(())
    }

    /// A folder for one scenario, which anybody may write to.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777))?;
        Ok(dir)
    }

    /// Ends what a scenario has left. Only what is on the ground has a number here.
    pub(super) fn kill_strays(&self) {
        let is_ground = fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "sh");
        let own = std::process::id();
        let Ok(entries) = fs::read_dir("/proc") else {
            return;
        };
        for entry in entries.flatten().filter(|_| is_ground) {
            let pid = entry.file_name().to_string_lossy().parse::<i32>();
            let Some(pid) = pid.ok().and_then(Pid::from_raw) else {
                continue;
            };
            if pid != Pid::INIT && pid.as_raw_nonzero().get().cast_unsigned() != own {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
