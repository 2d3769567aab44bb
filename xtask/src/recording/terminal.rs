//! A shell at a terminal, at which we type.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::film;

/// Before each prompt, unseen, the shell says how the last command ended (OSC 133 of semantic
/// prompts).
const MARK: &[u8] = b"\x1b]133;D;";
const PROMPT: &str = "\x1b]133;D;$?\x07$ ";
/// A mark's end.
const BELL: u8 = 7;
/// Between two keys.
const KEY: Duration = Duration::from_millis(55);
/// From the last key to the one that ends the line.
const RETURN: Duration = Duration::from_millis(350);
const SLOWEST_COMMAND: Duration = Duration::from_secs(120);
const CHUNK: usize = 4096;

/// What the terminal got, and when since the first prompt.
pub(super) struct Piece {
    pub(super) at: Duration,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Terminal {
    keys: File,
    shell: Child,
    arrivals: Receiver<(Instant, Vec<u8>)>,
    started: Instant,
    pieces: Vec<Piece>,
}

impl Terminal {
    /// Returns at the first prompt.
    pub(super) fn open(mut shell: Command) -> Result<Terminal> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("can't open a terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        tcsetwinsize(
            &master,
            Winsize {
                ws_row: film::ROWS.get(),
                ws_col: film::COLUMNS.get(),
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        let name = ptsname(&master, Vec::new())?;
        let slave: OwnedFd = rustix::fs::open(
            name.as_c_str(),
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        shell
            .env("PS1", PROMPT)
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        let child = shell.spawn().context("can't start a shell")?;
        // It holds our copies of the slave, with which the terminal would never end.
        drop(shell);
        let keys = File::from(master);
        let mut screen = keys.try_clone()?;
        let (sender, arrivals) = channel();
        thread::spawn(move || {
            let mut chunk = [0; CHUNK];
            loop {
                match screen.read(&mut chunk) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // EIO when the last process has closed it; our reader gone otherwise.
                    Err(_) | Ok(0) => return,
                    Ok(length) => {
                        let piece = (Instant::now(), chunk[..length].to_vec());
                        if sender.send(piece).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        let mut terminal = Terminal {
            keys,
            shell: child,
            arrivals,
            started: Instant::now(),
            pieces: Vec::new(),
        };
        terminal.prompt(0)?;
        Ok(terminal)
    }

    /// Types a line and waits until the shell has done with it.
    pub(super) fn enter(&mut self, line: &str) -> Result<()> {
        let before = self.pieces.len();
        for key in line.bytes() {
            self.keys.write_all(&[key])?;
            self.watch(KEY)?;
        }
        self.watch(RETURN)?;
        self.keys.write_all(b"\n")?;
        let code = self.prompt(before)?;
        if code != "0" {
            bail!("`{line}` failed with {code}: {}", self.text(before));
        }
        Ok(())
    }

    /// Keeps what comes in the time.
    pub(super) fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while self.take(end)? {}
        Ok(())
    }

    /// Everything that it has shown.
    pub(super) fn into_pieces(mut self) -> Vec<Piece> {
        std::mem::take(&mut self.pieces)
    }

    /// Waits for the prompt and gives the code before it.
    fn prompt(&mut self, before: usize) -> Result<String> {
        let end = Instant::now() + SLOWEST_COMMAND;
        loop {
            let bytes = self.bytes(before);
            if let Some(code) = code(&bytes) {
                return Ok(code);
            }
            if !self.take(end)? {
                bail!("the shell has not come back: {}", self.text(before));
            }
        }
    }

    /// Takes one piece, if there is one until then.
    fn take(&mut self, end: Instant) -> Result<bool> {
        match self
            .arrivals
            .recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            Ok((at, bytes)) => {
                let at = at.saturating_duration_since(self.started);
                self.pieces.push(Piece { at, bytes });
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => bail!("the shell has ended: {}", self.text(0)),
        }
    }

    fn bytes(&self, before: usize) -> Vec<u8> {
        self.pieces[before..]
            .iter()
            .flat_map(|piece| piece.bytes.iter().copied())
            .collect()
    }

    fn text(&self, before: usize) -> String {
        String::from_utf8_lossy(&self.bytes(before)).into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The shell is never the leader of our group, so `setsid` has become it. What it runs
        // gets a hang-up from the kernel, as it leads the terminal's session.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// The code in the last whole mark after which the prompt has come.
fn code(bytes: &[u8]) -> Option<String> {
    let at = bytes.windows(MARK.len()).rposition(|part| part == MARK)? + MARK.len();
    let rest = &bytes[at..];
    let end = rest.iter().position(|byte| *byte == BELL)?;
    rest[end..]
        .ends_with(b"$ ")
        .then(|| String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn a_command_has_ended_when_the_whole_prompt_is_there() {
        let bytes = b"out\r\n\x1b]133;D;42\x07$ ";
        assert_eq!(code(bytes).as_deref(), Some("42"));
        for length in 0..bytes.len() {
            assert_eq!(code(&bytes[..length]), None, "{length}");
        }
    }
}
