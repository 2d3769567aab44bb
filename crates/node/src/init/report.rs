//! The process that sends init's lines to the head. It is one of its own because it waits for
//! the network, and init must never wait: it reaps the machine's processes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use wiglaf_linux::process::{Fork, fork, set_process_title};
use wiglaf_wire::boot::Mac;

use super::http::{self, HeadTime, HttpError};
use crate::agent::step_clock;

/// Says to the boot service that this machine's kernel runs.
const GREETING: &str = "stage init";
/// After that: the drivers of the card that it starts by are not enough.
const WANTS_WHOLE: &str = "stage whole";
/// Lines that come together go together.
const GATHER: Duration = Duration::from_millis(300);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// The boot service takes 64 kB at once.
const MAX_TEXT_BYTES: usize = 48 << 10;
/// How long the last lines may take when the machine goes down.
const FINISH_WAIT: Duration = Duration::from_secs(3);
/// A clock that is off by less is left alone, once it was set.
const TOLERANCE_NS: u128 = 1_000_000_000;

/// The other end of that process.
#[derive(Debug)]
pub(super) struct Report {
    pipe: File,
    process: OwnedFd,
}

impl Report {
    /// Starts it. The caller has one thread. `wants_whole`: at its next start the machine is to be
    /// sent the whole initramfs.
    pub(super) fn start(
        server: SocketAddrV4,
        mac: Mac,
        wants_whole: bool,
    ) -> Result<Report, Errno> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        match fork()? {
            Fork::Child => {
                drop(writer);
                // Init's would start the machine anew.
                drop(std::panic::take_hook());
                let _ = set_process_title("wiglaf: boot log");
                deliver(File::from(reader), server, mac, wants_whole);
                std::process::exit(0)
            }
            Fork::Parent { pidfd, .. } => {
                rustix::io::ioctl_fionbio(&writer, true)?;
                Ok(Report {
                    pipe: writer.into(),
                    process: pidfd,
                })
            }
        }
    }

    /// Sends a line, unless too many are on their way.
    pub(super) fn send(&mut self, line: &str) {
        // It is shorter than a pipe takes as a whole.
        let _ = self.pipe.write_all(format!("{line}\n").as_bytes());
    }

    /// Waits until everything is sent, but not for long.
    pub(super) fn finish(self) {
        drop(self.pipe);
        let wait = Timespec::try_from(FINISH_WAIT).ok();
        let _ = poll(
            &mut [PollFd::new(&self.process, PollFlags::IN)],
            wait.as_ref(),
        );
    }
}

/// Says that this machine's kernel runs.
pub(crate) fn greet(server: SocketAddrV4, mac: Mac) -> Result<(), HttpError> {
    http::post(server, &path(mac), &format!("{GREETING}\n")).map(|_| ())
}

fn path(mac: Mac) -> String {
    format!("/lines/{mac}")
}

fn deliver(reader: File, server: SocketAddrV4, mac: Mac, wants_whole: bool) {
    let path = path(mac);
    let mut lines = BufReader::new(reader);
    let mut text = format!("{GREETING}\n");
    if wants_whole {
        text.push_str(WANTS_WHOLE);
        text.push('\n');
    }
    let mut is_clock_set = false;
    let mut pause = FIRST_PAUSE;
    loop {
        match http::post(server, &path, &text) {
            Ok(time) => {
                text.clear();
                pause = FIRST_PAUSE;
                if let Some(time) = time {
                    is_clock_set |= set_clock(time, is_clock_set).is_ok();
                }
            }
            // A text that it does not like it won't like later.
            Err(HttpError::Status(_, _, 400..500)) => text.clear(),
            Err(_) => {
                sleep(pause);
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
        if !gather(&mut lines, &mut text) {
            let _ = http::post(server, &path, &text);
            return;
        }
    }
}

/// Waits for lines, unless some are left over, and takes what comes with them. Returns whether
/// more may follow.
fn gather(lines: &mut BufReader<File>, text: &mut String) -> bool {
    let has_old = !text.is_empty();
    if !has_old && !take_line(lines, text) {
        return false;
    }
    let wait = Timespec::try_from(GATHER).ok();
    loop {
        let is_waiting = lines.buffer().is_empty();
        if is_waiting {
            let mut waited = [PollFd::new(lines.get_ref(), PollFlags::IN)];
            match poll(&mut waited, wait.as_ref()) {
                Ok(0) => return true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if !take_line(lines, text) {
            return false;
        }
        if text.len() >= MAX_TEXT_BYTES {
            if has_old {
                // Nobody takes them: the oldest go, but not the greeting.
                let keep = text.len() - MAX_TEXT_BYTES / 2;
                let at = text[..keep].rfind('\n').map_or(0, |at| at + 1);
                let newest = text.split_off(at);
                *text = format!("{GREETING}\n{newest}");
            }
            return true;
        }
    }
}

fn take_line(lines: &mut BufReader<File>, text: &mut String) -> bool {
    // Lines are short, but what goes wrong must not fill the memory.
    let most = u64::try_from(MAX_TEXT_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    match lines.by_ref().take(most).read_until(b'\n', &mut bytes) {
        Ok(0) | Err(_) => false,
        Ok(_) => {
            text.push_str(&String::from_utf8_lossy(&bytes));
            true
        }
    }
}

fn set_clock(head: HeadTime, is_set: bool) -> Result<(), Errno> {
    let own = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let signed = |value: u128| i128::try_from(value).unwrap_or(i128::MAX);
    let offset =
        i128::from(head.unix_ns) + signed((head.trip / 2).as_nanos()) - signed(own.as_nanos());
    if is_set && offset.unsigned_abs() < TOLERANCE_NS {
        return Ok(());
    }
    step_clock(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn lines_arrive_after_a_greeting_and_the_last_ones_at_the_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"one\ntwo\n").unwrap();
        let life = std::thread::spawn(move || {
            deliver(File::from(reader), server, Mac([2, 0, 0, 0, 0, 1]), true);
        });
        let mut bodies = Vec::new();
        for _ in 0..3 {
            let mut stream = listener.accept().unwrap().0;
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&request).into_owned();
                if let Some((header, body)) = text.split_once("\r\n\r\n") {
                    let length = header.lines().find_map(|line| {
                        line.strip_prefix("Content-Length: ")?.parse::<usize>().ok()
                    });
                    if body.len() >= length.unwrap() {
                        assert!(header.starts_with("POST /lines/02:00:00:00:00:01 "));
                        bodies.push(body.to_owned());
                        break;
                    }
                }
            }
            let answer: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).unwrap();
            if bodies.len() == 2 {
                writer.write_all(b"three\n").unwrap();
                // Its end is the process's.
                writer = File::open("/dev/null").unwrap();
            }
        }
        life.join().unwrap();
        assert_eq!(
            bodies,
            ["stage init\nstage whole\n", "one\ntwo\n", "three\n"]
        );
    }
}
