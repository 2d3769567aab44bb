//! A terminal to type at, and `wiglaf run --tty` on it.

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
    child: Child,
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
        let slave = File::options().read(true).write(true).open(path).expect("it opens");
        if let User::Id(id) = cluster.owner {
            std::os::unix::fs::fchown(&slave, Some(id), Some(id)).expect("root gives it away");
        }
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]);
        if let User::Id(id) = cluster.owner {
            let (uid, gid) = (format!("--reuid={id}"), format!("--regid={id}"));
            command.args(["setpriv", &uid, &gid, "--clear-groups", "--"]);
        }
        let bin = wiglaf().parent().expect("a directory").display().to_string();
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
        let mut shell = Shell { master, child, text: String::new() };
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
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("it takes a size");
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

#[test]
fn a_task_has_a_real_terminal_with_its_size() {
    let Some(cluster) = Cluster::start(1) else { return };
    let mut shell = Shell::start(&cluster);
    shell.resize(31, 101);
    shell.say("wiglaf run --tty -w n1 sh -c 'tty; stty size; test -t 0 && test -t 1 && echo is''atty'");
    shell.expect("/dev/pts/");
    shell.expect("31 101");
    shell.expect("isatty");
    shell.expect("ready> ");
    shell.say("wiglaf run --tty -w n1 bash --norc -i");
    shell.expect("$ ");
    shell.say("PS1='far> '");
    shell.expect("far> ");
    shell.resize(44, 132);
    shell.say("stty size");
    shell.expect("44 132");
    shell.expect("far> ");
    // Ctrl-C is for what runs in the remote shell, and Ctrl-Z too.
    shell.say("sleep 1000");
    shell.settle(Duration::from_millis(300));
    shell.press("\x03");
    shell.expect("far> ");
    shell.say("sleep 2000");
    shell.settle(Duration::from_millis(300));
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.expect("far> ");
    shell.say("kill %1; hostname");
    shell.expect("n1");
    shell.expect("far> ");
    shell.say("exit 5");
    shell.expect("ready> ");
    shell.say("echo code $?; stty -a | grep -o '[-]*icanon'");
    shell.expect("code 5");
    shell.expect("icanon");
}

#[test]
fn ctrl_z_of_a_program_with_a_terminal_returns_to_the_local_shell_and_fg_goes_back() {
    let Some(cluster) = Cluster::start(1) else { return };
    let mut shell = Shell::start(&cluster);
    shell.say("wiglaf run --tty -w n1 cat");
    shell.settle(Duration::from_millis(500));
    shell.say("hello");
    shell.expect("hello\r\nhello");
    shell.press("\x1a");
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.say("stty -a | grep -o '[-]*isig'; jobs");
    shell.expect("isig");
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.say("fg");
    shell.settle(Duration::from_millis(300));
    shell.say("again");
    shell.expect("again\r\nagain");
    shell.press("\x04");
    shell.expect("ready> ");
    shell.say("echo code $?");
    shell.expect("code 0");
}

#[test]
fn an_editor_works_in_the_terminal() {
    let Some(cluster) = Cluster::start(1) else { return };
    if !std::path::Path::new("/usr/bin/vim.tiny").exists() {
        return crate::cluster::skip("vim.tiny is not installed");
    }
    let file = cluster.dir.join("note");
    let mut shell = Shell::start(&cluster);
    shell.resize(24, 80);
    shell.say(&format!("wiglaf run --tty -w n1 vim.tiny -u NONE {}", file.display()));
    shell.settle(Duration::from_millis(1500));
    shell.press("iwritten on n1\x1b:wq\r");
    shell.expect("ready> ");
    assert_eq!(std::fs::read_to_string(&file).expect("it was written"), "written on n1\n");
}
