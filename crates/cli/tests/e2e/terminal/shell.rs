//! A user who types, and what the terminal shows.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::cluster::{Cluster, PATIENCE, User, wiglaf};

/// An interactive bash on a terminal, as a user has it; `wiglaf` is ours.
pub(crate) struct Shell {
    master: OwnedFd,
    pub(super) child: Child,
    text: String,
}

impl Shell {
    pub(crate) fn start(cluster: &Cluster) -> Shell {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).expect("a terminal");
        unlockpt(&master).expect("a terminal");
        let path = ptsname(&master, vec![]).expect("a name");
        let path = path.to_str().expect("a name");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("it opens");
        if let User::Id(id) = cluster.owner {
            std::os::unix::fs::fchown(&slave, Some(id), Some(id)).expect("root gives it away");
        }
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]);
        if let User::Id(id) = cluster.owner {
            let (uid, gid) = (format!("--reuid={id}"), format!("--regid={id}"));
            command.args(["setpriv", &uid, &gid, "--clear-groups", "--"]);
        }
        let bin = wiglaf()
            .parent()
            .expect("a directory")
            .display()
            .to_string();
        command
            .args(["bash", "--norc", "--noprofile", "-i"])
            .current_dir("/tmp")
            .env("WIGLAF_DIR", &cluster.dir)
            .env("PATH", format!("{bin}:/usr/bin:/bin:/usr/sbin:/sbin"))
            .env("HISTFILE", "")
            .env("TERM", "xterm")
            .stdin(slave.try_clone().expect("a copy"))
            .stdout(slave.try_clone().expect("a copy"))
            .stderr(slave);
        let child = command.spawn().expect("bash starts");
        let mut shell = Shell {
            master,
            child,
            text: String::new(),
        };
        shell.say("PS1='ready> '; bind 'set enable-bracketed-paste off'; stty -echo; echo set''up");
        shell.expect("setup");
        shell.expect("ready> ");
        shell
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.press(&format!("{line}\n"));
    }

    pub(crate) fn press(&mut self, keys: &str) {
        rustix::io::write(&self.master, keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Reads on until `wanted` has come, and forgets everything up to there.
    pub(crate) fn expect(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(wanted) {
                self.text.drain(..at + wanted.len());
                return;
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            assert!(!rest.is_zero(), "no {wanted:?} in {:?}", self.text);
            self.read(rest);
        }
    }

    /// Reads for a while.
    pub(crate) fn settle(&mut self, time: Duration) -> &str {
        let deadline = Instant::now() + time;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return &self.text;
            }
            self.read(rest);
        }
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("it takes a size");
    }

    /// Goes on in an interactive bash on n1.
    pub(super) fn go_far(&mut self) {
        self.say("wiglaf run --tty -w n1 bash --norc --noprofile -i");
        // `#` for root, `$` for others.
        self.expect("bash-");
        self.say("PS1='far> '; bind 'set enable-bracketed-paste off'; echo ar''rived");
        self.expect("arrived");
        self.expect("far> ");
    }

    /// The local terminal is as a shell wants it.
    pub(super) fn expect_cooked(&mut self) {
        self.say(
            "stty -a | tr ' ;' '\\n\\n' | grep -cx -e icanon -e isig -e opost -e onlcr -e icrnl",
        );
        self.expect("5\r\n");
        self.expect("ready> ");
    }

    pub(super) fn expect_stopped(&mut self) {
        self.expect("Stopped");
        self.expect("ready> ");
    }

    pub(super) fn expect_code(&mut self, code: u8) {
        self.say("echo code=$?=");
        self.expect(&format!("code={code}="));
        self.expect("ready> ");
    }

    fn read(&mut self, patience: Duration) {
        let time = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).expect("short"),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let ready = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&time));
        if ready.is_ok_and(|count| count > 0) {
            let mut bytes = [0; 4096];
            let read = rustix::io::read(&self.master, &mut bytes).unwrap_or(0);
            self.text += &String::from_utf8_lossy(&bytes[..read]);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
