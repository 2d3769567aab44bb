//! What a shim costs: starts `sh -c :` over and over from one shell, as it is, and through a
//! shim that is told to go on here.
//!
//! `cargo run --release -p wiglaf-linux --example shim_cost [STARTS]`

#![forbid(unsafe_code)]

use rustix::event::{PollFd, PollFlags, poll};
use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wiglaf_linux::process::wait;
use wiglaf_linux::shim::{self, Verdict};
use wiglaf_linux::shimmed::{PrivateSpace, SpaceCommand};
use wiglaf_linux::signal::SignalSet;

const STARTS: u32 = 2000;
const ROUNDS: usize = 5;
const SHELL: &str = "/bin/bash";
/// What `/proc/PID/stat` counts in.
const TICK: Duration = Duration::from_millis(10);
/// In `/proc/self/stat`, behind the name.
const OWN_TICKS: std::ops::Range<usize> = 11..13;
const CHILDRENS_TICKS: std::ops::Range<usize> = 13..15;

#[derive(Clone, Copy)]
enum Way {
    Plain,
    Told,
    NoBroker,
}

fn main() -> Result<(), Box<dyn Error>> {
    let starts = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => STARTS,
    };
    let mut out = std::io::stdout();
    for _ in 0..ROUNDS {
        for (name, way) in [
            ("plain", Way::Plain),
            ("told to go on here", Way::Told),
            ("no broker", Way::NoBroker),
        ] {
            let (wall, children, own) = measure(starts, way)?;
            let each = |time: Duration| time.as_micros() / u128::from(starts);
            writeln!(
                out,
                "{name:20} {:5} us, CPU {:5} us and {:4} us of the broker",
                each(wall),
                each(children),
                each(own)
            )?;
        }
    }
    Ok(())
}

fn measure(starts: u32, way: Way) -> Result<(Duration, Duration, Duration), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let programs = match way {
        Way::Plain => Vec::new(),
        Way::Told | Way::NoBroker => vec![PathBuf::from("/bin/sh")],
    };
    let listener = shim::listen(directory.path())?;
    let listener = (!matches!(way, Way::NoBroker)).then_some(listener);
    let space = PrivateSpace::new(directory.path(), &programs)?;
    let script = CString::new(format!("for ((i = 0; i < {starts}; i++)) {{ sh -c :; }}"))?;
    let (own, children, began) = (ticks(OWN_TICKS)?, ticks(CHILDRENS_TICKS)?, Instant::now());
    let shell = space.spawn(&SpaceCommand {
        program: &CString::new(SHELL)?,
        argv: &[c"bash".into(), c"-c".into(), script],
        env: &[c"PATH=/usr/bin:/bin".into()],
        ignored_signals: SignalSet::EMPTY,
        blocked_signals: SignalSet::EMPTY,
    })?;
    if let Some(listener) = &listener {
        serve(listener, &shell.pidfd)?;
    }
    wait(shell.pid, false)?;
    Ok((
        began.elapsed(),
        ticks(CHILDRENS_TICKS)?.saturating_sub(children),
        ticks(OWN_TICKS)?.saturating_sub(own),
    ))
}

fn serve(listener: &OwnedFd, end: &OwnedFd) -> Result<(), Box<dyn Error>> {
    loop {
        let mut ready = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        poll(&mut ready, None)?;
        if ready[0].revents().is_empty() {
            return Ok(());
        }
        let socket = rustix::net::accept(listener)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        shim::receive(&socket)?;
        let program = fs::read_link(format!("/proc/{}/exe", peer.pid.as_raw_nonzero()))?;
        let real = shim::open_real(Path::new(&program))?;
        shim::answer(&socket, Verdict::Here(Some(real.as_fd())))?;
    }
}

fn ticks(fields: std::ops::Range<usize>) -> Result<Duration, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let behind = text.rsplit(')').next().unwrap_or_default();
    let fields = behind.split_whitespace().collect::<Vec<_>>()[fields].to_vec();
    let mut sum = 0;
    for field in fields {
        sum += field.parse::<u32>()?;
    }
    Ok(TICK * sum)
}
