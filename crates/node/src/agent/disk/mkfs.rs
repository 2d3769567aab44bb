//! The program that makes file systems. A disk that hangs must not keep whoever waits for it for
//! ever, so it has so much time and no more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::look;
use super::work::Failed;
use crate::disk::content::{Content, EXT4};

/// Where it is, in images that are built for disks.
const PLACES: [&str; 2] = ["/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4"];
pub(super) const NONE: &str = "its image has no mkfs.ext4: build one by `wiglaf image build --disk`, \
                               and start the node anew";
/// How long one order may make file systems, on all of a node's disks: big slow ones take minutes.
/// The head waits somewhat longer.
pub(super) const WAIT: Duration = Duration::from_secs(13 * 60);
/// How long one that was killed may take to end.
const END_WAIT: Duration = Duration::from_secs(5);
/// What it has to say at its end, at most.
const MAX_WORDS: usize = 4096;

pub(super) fn program() -> Option<&'static str> {
    PLACES.into_iter().find(|path| Path::new(path).exists())
}

/// Makes a file system on a device of so many bytes.
pub(super) fn make(device: &Path, bytes: u64, label: &str, until: Instant) -> Result<(), Failed> {
    let program = program().ok_or(NONE)?;
    let mut command = Command::new(program);
    command
        // Zeros that nobody reads would take longer than all the rest, as would discarding.
        .args(["-q", "-F", "-m", "0"])
        .args(["-E", "nodiscard,lazy_itable_init=1", "-L", label])
        .arg(device)
        .env_clear();
    let words = run(&mut command, until)?;
    // The agent's loop reaps all children, perhaps sooner than we ask: what is there tells.
    let made = look::ends_of(device, bytes)
        .map(|(head, tail)| Content::identify(&head, &tail, bytes) == Content::Known(EXT4));
    if made.unwrap_or(false) {
        return Ok(());
    }
    Err(has_failed(program, &words))
}

fn has_failed(program: &str, words: &str) -> Failed {
    let words = words.lines().last().unwrap_or("it does not say why");
    format!("{program} has failed: {words}")
}

/// Runs a program to its end, and returns what it has written to its standard error.
fn run(command: &mut Command, until: Instant) -> Result<String, Failed> {
    let program = command.get_program().to_string_lossy().into_owned();
    let given = until.saturating_duration_since(Instant::now());
    if given.is_zero() {
        return Err(format!(
            "{program} was not started, as another disk has used up the time that there was: apply \
             again"
        ));
    }
    let failed = |error: io::Error| format!("{program} can't be started: {error}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // By its number it could be another by the time that it is killed.
    let process = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(process) => Some(process),
        // It has ended and was reaped.
        Err(Errno::SRCH) => None,
        Err(errno) => {
            let _ = child.kill();
            return Err(failed(errno.into()));
        }
    };
    let mut words = Words {
        pipe: child.stderr.take(),
        text: Vec::new(),
    };
    let Some(process) = process else {
        words.read_rest();
        return end(&mut child, &program, words);
    };
    if words.listen(&process, until) {
        return end(&mut child, &program, words);
    }
    let _ = pidfd_send_signal(&process, Signal::KILL);
    let has_ended = words.listen(&process, Instant::now() + END_WAIT);
    let how = if has_ended {
        let _ = child.wait();
        "it was ended; if the disk is only slow, erase it and try again"
    } else {
        // Nothing ends what waits for a disk that does not answer. It holds the disk, so that it is
        // found to be in use from now on.
        "the disk does not answer: not even SIGKILL ends what waits for it. Start the node anew, \
         or take the disk out"
    };
    Err(format!(
        "{program} has not come to an end in {:.0} s: {how}",
        given.as_secs_f64()
    ))
}

/// What a program that has ended has to say.
fn end(child: &mut Child, program: &str, words: Words) -> Result<String, Failed> {
    let text = words.into_text();
    match child.wait() {
        Ok(status) if !status.success() => Err(has_failed(program, &text)),
        _ => Ok(text),
    }
}

/// A program's standard error.
struct Words {
    pipe: Option<ChildStderr>,
    text: Vec<u8>,
}

impl Words {
    /// Listens until the program ends. Whether it did in time.
    fn listen(&mut self, process: &OwnedFd, until: Instant) -> bool {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            let mut waited = vec![PollFd::new(process, PollFlags::IN)];
            if let Some(pipe) = &self.pipe {
                waited.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
            }
            let polled = poll(&mut waited, left.as_ref());
            let is_there = |place: usize| {
                let waited = waited.get(place);
                waited.is_some_and(|waited| !waited.revents().is_empty())
            };
            let (has_ended, has_words) = (is_there(0), is_there(1));
            match polled {
                Ok(0) => return false,
                Ok(_) if has_ended => {
                    self.read_rest();
                    return true;
                }
                Ok(_) if has_words => self.read(),
                _ => {}
            }
        }
    }

    /// Takes what is there, and forgets what is too much.
    fn read(&mut self) {
        let mut buffer = [0; MAX_WORDS];
        match self
            .pipe
            .as_ref()
            .map(|pipe| rustix::io::read(pipe, &mut buffer))
        {
            Some(Ok(length)) if length > 0 => {
                self.text.extend_from_slice(&buffer[..length]);
                let too_many = self.text.len().saturating_sub(MAX_WORDS);
                self.text.drain(..too_many);
            }
            Some(Err(Errno::INTR)) => {}
            _ => self.pipe = None,
        }
    }

    /// What it has left in the pipe. Others that it has started may hold the other end: they are
    /// not waited for.
    fn read_rest(&mut self) {
        while let Some(pipe) = &self.pipe {
            let now = Timespec::default();
            let mut waited = [PollFd::new(pipe, PollFlags::IN)];
            if !poll(&mut waited, Some(&now)).is_ok_and(|ready| ready > 0) {
                return;
            }
            self.read();
        }
    }

    fn into_text(self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, wait: Duration) -> Result<String, Failed> {
        let mut command = Command::new("/bin/sh");
        run(command.args(["-c", script]), Instant::now() + wait)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_that_ends_in_time_says_what_it_has_to_say() {
        assert_eq!(shell("echo a warning >&2", LONG).unwrap(), "a warning\n");
        let failed = shell("echo one >&2; echo two >&2; exit 3", LONG).unwrap_err();
        assert_eq!(failed, "/bin/sh has failed: two");
        let silent = shell("exec 2>&-; exit 3", LONG).unwrap_err();
        assert!(silent.ends_with("does not say why"), "{silent}");
        // More than a pipe holds, and the end of it is kept.
        let much = shell("seq 100000 >&2; exit 1", LONG).unwrap_err();
        assert_eq!(much, "/bin/sh has failed: 100000");
        // What it leaves behind holds its standard error.
        let began = Instant::now();
        assert_eq!(shell("sleep 30 & echo x >&2", LONG).unwrap(), "x\n");
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 1000", file.display());
        let began = Instant::now();
        let late = shell(&script, Duration::from_secs(1)).unwrap_err();
        assert!(late.contains("has not come to an end in"), "{late}");
        assert!(late.contains("it was ended"), "{late}");
        assert!(began.elapsed() < Duration::from_secs(20));
        let pid = std::fs::read_to_string(file).unwrap();
        let left = Path::new("/proc").join(pid.trim()).join("cmdline");
        let left = std::fs::read(left).unwrap_or_default();
        assert!(!left.starts_with(b"sleep\0"), "it lives");
        // Who is last has no time left.
        let late = shell("echo x >&2", Duration::ZERO).unwrap_err();
        assert!(late.contains("was not started"), "{late}");
    }
}
