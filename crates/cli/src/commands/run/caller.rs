//! This process, described so that a node can make it again.

use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, umask};
use wiglaf_linux::status::read_status;
use wiglaf_wire::launch::{LaunchSpec, Limit, StdioKind, WindowSize};

use super::Args;
use crate::error::CommandError;

const SIGPIPE_BIT: u64 = 1 << 12;

/// All limits with their numbers on x86_64 and aarch64 (asm-generic/resource.h).
const LIMITS: [(u32, Resource); 16] = [
    (0, Resource::Cpu),
    (1, Resource::Fsize),
    (2, Resource::Data),
    (3, Resource::Stack),
    (4, Resource::Core),
    (5, Resource::Rss),
    (6, Resource::Nproc),
    (7, Resource::Nofile),
    (8, Resource::Memlock),
    (9, Resource::As),
    (10, Resource::Locks),
    (11, Resource::Sigpending),
    (12, Resource::Msgqueue),
    (13, Resource::Nice),
    (14, Resource::Rtprio),
    (15, Resource::Rttime),
];

/// The spec of a task that is this process but for its command.
pub(super) fn describe(args: &Args) -> Result<LaunchSpec, CommandError> {
    let cwd = match &args.chdir {
        Some(dir) => std::path::absolute(dir)?,
        None => std::env::current_dir().map_err(|error| {
            CommandError::new(format!("the working directory can't be told: {error}"))
                .hint("cd to a directory that exists, or give --chdir")
        })?,
    };
    let status = read_status(rustix::process::getpid().as_raw_nonzero().get())?;
    Ok(LaunchSpec {
        program: None,
        argv: args
            .command
            .iter()
            .map(|word| word.as_bytes().to_vec())
            .collect(),
        env: environment(args),
        cwd: cwd.into_os_string().into_vec(),
        umask: current_umask(),
        limits: limits(),
        // Rust's start-up code ignores SIGPIPE; the command must not inherit that.
        ignored_signals: status.ignored.bits() & !SIGPIPE_BIT,
        blocked_signals: status.blocked.bits(),
        stdio: stdio(args)?,
        window: window(),
        leave: args.leave,
        private_tmp: args.private_tmp,
        undo: args.undo,
        host_name: None,
    })
}

fn environment(args: &Args) -> Vec<Vec<u8>> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = std::env::vars_os()
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect();
    for change in &args.env {
        let (name, value) = match change.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (change.as_str(), None),
        };
        env.retain(|(known, _)| known != name.as_bytes());
        env.extend(value.map(|value| (name.as_bytes().to_vec(), value.as_bytes().to_vec())));
    }
    env.into_iter()
        .map(|(mut name, value)| {
            name.push(b'=');
            name.extend(value);
            name
        })
        .collect()
}

fn current_umask() -> u32 {
    // The only way to read it is to set it; this process has one thread here.
    let mask = umask(Mode::empty());
    umask(mask);
    mask.bits()
}

fn limits() -> Vec<Limit> {
    LIMITS
        .iter()
        .map(|(number, resource)| {
            let limit = getrlimit(*resource);
            Limit {
                resource: *number,
                soft: limit.current.unwrap_or(u64::MAX),
                hard: limit.maximum.unwrap_or(u64::MAX),
            }
        })
        .collect()
}

fn stdio(args: &Args) -> Result<[StdioKind; 3], CommandError> {
    if args.detach {
        return Ok([StdioKind::Null, StdioKind::Relayed, StdioKind::Relayed]);
    }
    if !args.tty {
        return Ok([StdioKind::Relayed; 3]);
    }
    let is_terminal = [
        rustix::termios::isatty(rustix::stdio::stdin()),
        rustix::termios::isatty(rustix::stdio::stdout()),
        rustix::termios::isatty(rustix::stdio::stderr()),
    ];
    if !is_terminal[0] || args.input.is_some() {
        return Err(
            CommandError::new("--tty needs a terminal as standard input")
                .hint("leave --tty out, or run it from a terminal"),
        );
    }
    Ok(is_terminal.map(|yes| {
        if yes {
            StdioKind::Terminal
        } else {
            StdioKind::Relayed
        }
    }))
}

/// The size of whichever standard stream is a terminal.
fn window() -> WindowSize {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    streams
        .into_iter()
        .find_map(|fd| rustix::termios::tcgetwinsize(fd).ok())
        .map(|size| WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        })
        .unwrap_or_default()
}
