//! Processes of ours that outlive the daemon: found again, or started.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_peercred;
use wiglaf_linux::process::{pidfd_open, pidfd_send_signal};

use super::dial;
use crate::config::Layout;

/// How long one may take to start.
const START_WAIT: Duration = Duration::from_secs(5);
const START_POLL: Duration = Duration::from_millis(5);
const SIGKILL: i32 = 9;

/// Such a process.
pub(super) struct Beside {
    /// What its log is called by.
    pub(super) name: &'static str,
    /// Where it is reached.
    pub(super) socket: PathBuf,
    /// What this program is started with to be it, besides `--socket`.
    pub(super) command: &'static str,
    pub(super) arguments: Vec<OsString>,
    /// Whether one that another version of Wiglaf has left may be ended: nothing is lost by it.
    pub(super) is_dispensable: bool,
}

/// The way to one.
pub(super) struct Reached {
    pub(super) socket: OwnedFd,
    /// It served an earlier head.
    pub(super) was_there: bool,
}

impl Beside {
    /// Finds the one of an earlier head, or starts one. An error is why it can't be had.
    pub(super) fn reach(&self, layout: &Layout) -> Result<Reached, String> {
        if let Some(socket) = dial(&self.socket) {
            return Ok(Reached {
                socket,
                was_there: true,
            });
        }
        for (path, socket) in self.of_other_versions() {
            self.supersede(&path, socket)?;
        }
        self.start(layout)?;
        let deadline = Instant::now() + START_WAIT;
        loop {
            if let Some(socket) = dial(&self.socket) {
                return Ok(Reached {
                    socket,
                    was_there: false,
                });
            }
            if Instant::now() > deadline {
                let log = layout.log(self.name);
                return Err(format!("it does not answer; see {}", log.display()));
            }
            std::thread::sleep(START_POLL);
        }
    }

    /// Those that answer, but speak what this version does not.
    fn of_other_versions(&self) -> Vec<(PathBuf, OwnedFd)> {
        let entries = self.socket.parent().map(fs::read_dir);
        let paths = entries.into_iter().flatten().flatten().flatten();
        paths
            .map(|entry| entry.path())
            .filter(|path| *path != self.socket && is_socket_of(self.name, path))
            .filter_map(|path| dial(&path).map(|socket| (path, socket)))
            .collect()
    }

    fn supersede(&self, path: &Path, socket: OwnedFd) -> Result<(), String> {
        let name = self.name;
        if !self.is_dispensable {
            return Err(format!(
                "a {name} of another version of Wiglaf holds running tasks ({}): start that \
                 version of the head again, or end them by `wiglaf down` of that version",
                path.display()
            ));
        }
        let stuck = |why: &str| format!("the {name} of another version does not end: {why}");
        let peer = socket_peercred(&socket).map_err(|errno| stuck(&errno.to_string()))?;
        // It is that process as long as it has the other end.
        let pid = peer.pid.as_raw_nonzero().get();
        let by_hand = format!("end it by hand: fuser -k {}", path.display());
        let process = pidfd_open(pid).map_err(|_| stuck(&by_hand))?;
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !title.starts_with(format!("wiglaf: {name}").as_bytes()) {
            return Err(stuck(&by_hand));
        }
        pidfd_send_signal(&process, SIGKILL).map_err(|errno| stuck(&errno.to_string()))?;
        drop(socket);
        let wait = Timespec::try_from(START_WAIT).ok();
        let ended =
            retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], wait.as_ref()));
        match ended {
            Ok(0) => Err(stuck("it was killed")),
            Ok(_) => {
                // Nobody answers there any more.
                let _ = fs::remove_file(path);
                Ok(())
            }
            Err(errno) => Err(stuck(&errno.to_string())),
        }
    }

    /// In a program of its own rather than a fork: it must hold nothing of the head's memory.
    fn start(&self, layout: &Layout) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let path = layout.log(self.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("wiglaf")
            .args([OsStr::new(self.command), OsStr::new("--socket")])
            .arg(&self.socket)
            .args(&self.arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        // It forks itself away, so that it is nobody's child; this end is reaped at once.
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(format!("it ended ({status}); see {}", path.display()))
    }
}

/// `boot.sock`, as it was called first, or `boot.7.sock`.
fn is_socket_of(name: &str, path: &Path) -> bool {
    let between = path
        .file_name()
        .and_then(OsStr::to_str)
        .and_then(|file| file.strip_prefix(name)?.strip_suffix(".sock"));
    between.is_some_and(|version| version.is_empty() || version.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_all_versions_are_known() {
        for (file, is_ours) in [
            ("boot.sock", true),
            ("boot.2.sock", true),
            ("bootstrap.sock", false),
            ("boot.log", false),
            ("keeper.2.sock", false),
        ] {
            assert_eq!(
                is_socket_of("boot", &Path::new("/run/w").join(file)),
                is_ours
            );
        }
    }
}
