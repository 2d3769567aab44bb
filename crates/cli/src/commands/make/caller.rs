//! What a shim has been called for, read from its process: all that a node needs to make the
//! command again, and all that the broker judges it by.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::termios::tcgetwinsize;
use wiglaf_build::{Call, ShimId, StdinKind};
use wiglaf_linux::process::process_group;
use wiglaf_linux::shim::ShimCall;
use wiglaf_linux::status::{ProcessStatus, StatusError, read_status};
use wiglaf_wire::launch::{LaunchSpec, Limit, StdioKind, WindowSize};

/// The first descriptor that is no standard stream.
const FIRST_EXTRA: i32 = 3;
/// Generations between a command and the shim's that it is part of.
const MAX_ANCESTORS: usize = 32;
/// In `fdinfo`: closed by exec (`O_CLOEXEC`, fcntl(2)).
const CLOSE_ON_EXEC: u32 = 0o2_000_000;
/// `/dev/null` (linux/Documentation/admin-guide/devices.txt).
const NULL_DEVICE: (u32, u32) = (1, 3);

/// Why a command can't be described.
#[derive(thiserror::Error, Debug)]
pub(super) enum CallerError {
    /// One of its files in `/proc`.
    #[error("{path}: {source}")]
    Proc {
        /// The file.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Its status.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// A command that a shim stands for.
pub(super) struct Caller {
    pub(super) pid: i32,
    /// Its process group: who gets the terminal's signals with it.
    pub(super) group: i32,
    pub(super) program: PathBuf,
    argv: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    cwd: Vec<u8>,
    status: ProcessStatus,
    jobserver: bool,
    /// Another user, root directory or mount namespace than the build's: a node can't make it so.
    is_foreign: bool,
}

/// What this build's commands have in common.
pub(super) struct Home {
    uids: [u32; 4],
    gids: [u32; 4],
    groups: Vec<u32>,
    host_name: Vec<u8>,
    /// Descriptors that the build was started with, as `/proc/PID/fd` names them.
    inherited: HashSet<PathBuf>,
    /// The mount namespace of the build, once it runs.
    space: Option<PathBuf>,
}

impl Home {
    /// Of this process, before it has opened anything.
    pub(super) fn of_this_process() -> Result<Home, CallerError> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut status = read_status(own)?;
        status.groups.sort_unstable();
        let inherited = descriptors(own)?
            .into_iter()
            .filter(|(number, _)| *number >= FIRST_EXTRA && !closes_on_exec(own, *number))
            .map(|(_, name)| name)
            .collect();
        Ok(Home {
            uids: status.uids,
            gids: status.gids,
            groups: status.groups,
            host_name: rustix::system::uname().nodename().to_bytes().to_vec(),
            inherited,
            space: None,
        })
    }

    /// The build runs as this process.
    pub(super) fn entered_by(&mut self, pid: i32) {
        self.space = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    }

    fn has(&self, pid: i32, status: &ProcessStatus) -> bool {
        let mut groups = status.groups.clone();
        groups.sort_unstable();
        let is_ours = status.uids == self.uids
            && status.gids == self.gids
            && groups == self.groups
            && status.seccomp == 0;
        let is = |file: &str, expected: &Path| {
            fs::read_link(format!("/proc/{pid}/{file}")).is_ok_and(|found| found == expected)
        };
        is_ours
            && is("root", Path::new("/"))
            && self.space.as_ref().is_none_or(|space| is("ns/mnt", space))
    }
}

impl Caller {
    /// Reads the process behind a shim's call, which waits for its answer.
    pub(super) fn read(pid: i32, call: &ShimCall, home: &Home) -> Result<Caller, CallerError> {
        let status = read_status(pid)?;
        let env = strings(pid, "environ")?;
        let is_foreign = !home.has(pid, &status);
        Ok(Caller {
            pid,
            group: process_group(pid).unwrap_or(0),
            program: link(pid, "exe")?,
            argv: strings(pid, "cmdline")?,
            jobserver: has_jobserver(pid, &env, call.socket),
            env,
            cwd: link(pid, "cwd")?.into_os_string().into_vec(),
            status,
            is_foreign,
        })
    }

    /// The same for the broker's judgement. `local` tells which shim's command, running here, has
    /// a PID.
    pub(super) fn call(
        &self,
        call: &ShimCall,
        home: &Home,
        local: impl Fn(i32) -> Option<ShimId>,
    ) -> Call {
        let [stdin, stdout, _] = &call.stdio;
        Call {
            program: self.program.clone(),
            argv: self.argv.clone(),
            cwd: Path::new(std::ffi::OsStr::from_bytes(&self.cwd)).to_owned(),
            stdin: stdin_kind(stdin.as_ref()),
            captured: stdout
                .as_ref()
                .is_some_and(|fd| is_captured(fd, self.status.ppid)),
            jobserver: self.jobserver,
            extra_descriptors: self.has_extra_descriptors(call.socket, home),
            fake_root: self.is_foreign || self.has_variable("FAKEROOTKEY"),
            started_by: program_name(self.status.ppid),
            inside: nearest(self.status.ppid, local),
        }
    }

    fn has_extra_descriptors(&self, socket: i32, home: &Home) -> bool {
        let Ok(found) = descriptors(self.pid) else {
            // What can't be seen can't be passed on.
            return true;
        };
        let jobserver = jobserver_descriptors(&self.env);
        found.iter().any(|(number, name)| {
            let is_known = *number < FIRST_EXTRA
                || *number == socket
                || home.inherited.contains(name) && !names_descriptor(&self.argv, *number)
                || jobserver.is_some_and(|pair| pair.contains(number));
            !is_known && !closes_on_exec(self.pid, *number)
        })
    }

    fn has_variable(&self, name: &str) -> bool {
        value_of(&self.env, name).is_some()
    }

    /// The command for a node, with these streams.
    pub(super) fn spec(
        &self,
        stdio: [StdioKind; 3],
        window: WindowSize,
        private_tmp: bool,
        home: &Home,
    ) -> LaunchSpec {
        LaunchSpec {
            program: Some(self.program.as_os_str().as_bytes().to_vec()),
            argv: self.argv.clone(),
            env: self.environment(),
            cwd: self.cwd.clone(),
            umask: self.status.umask,
            limits: limits(self.pid).unwrap_or_default(),
            ignored_signals: self.status.ignored.bits(),
            blocked_signals: self.status.blocked.bits(),
            stdio,
            window,
            leave: false,
            private_tmp,
            undo: true,
            host_name: Some(home.host_name.clone()),
        }
    }

    /// As it is; a jobserver's descriptors are not on the node, nor who would answer by its pipe,
    /// and a compiler that is told of some would complain or wait (rustc does).
    fn environment(&self) -> Vec<Vec<u8>> {
        self.env
            .iter()
            .map(|entry| without_jobserver(entry))
            .collect()
    }

    /// Whether it ignores a signal, which then has no meaning for it.
    pub(super) fn ignores(&self, signal: u8) -> bool {
        self.status.ignored.contains(i32::from(signal))
    }
}

/// Whether a line names a descriptor that it has inherited: `>&3`, `/dev/fd/3`.
fn names_descriptor(argv: &[Vec<u8>], number: i32) -> bool {
    let is_named = |word: &[u8], sign: &str| {
        let name = format!("{sign}{number}");
        let mut found = word.windows(name.len() + 1);
        found.any(|part| part.starts_with(name.as_bytes()) && !part[name.len()].is_ascii_digit())
            || word.ends_with(name.as_bytes())
    };
    argv.iter().any(|word| {
        ["&", "fd/", "-fd=", "-fd "]
            .iter()
            .any(|sign| is_named(word, sign))
    })
}

/// Which streams the deputy relays. What both outputs write to one place keeps its order only if
/// it takes one way.
pub(super) fn stream_kinds(stdio: &[Option<OwnedFd>; 3]) -> [StdioKind; 3] {
    let kind = |fd: &Option<OwnedFd>| match fd {
        Some(fd) if rustix::termios::isatty(fd) => StdioKind::Screen,
        Some(_) => StdioKind::Relayed,
        None => StdioKind::Null,
    };
    let [_, stdout, stderr] = stdio;
    let is_same = match (stdout, stderr) {
        (Some(stdout), Some(stderr)) => is_same_file(stdout, stderr),
        _ => false,
    };
    [
        // What may read its input runs here.
        StdioKind::Null,
        kind(stdout),
        if is_same {
            StdioKind::WithOutput
        } else {
            kind(stderr)
        },
    ]
}

/// The size of the terminal that the outputs go to, if they do.
pub(super) fn window_of(stdio: &[Option<OwnedFd>; 3]) -> WindowSize {
    let sizes = stdio[1..].iter().flatten().map(tcgetwinsize);
    let size = sizes.flatten().next();
    size.map_or_else(WindowSize::default, |size| WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

fn is_same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

fn stdin_kind(fd: Option<&OwnedFd>) -> StdinKind {
    let Some(fd) = fd else {
        return StdinKind::Null;
    };
    let Ok(stat) = rustix::fs::fstat(fd) else {
        return StdinKind::Other;
    };
    let device = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice if device == NULL_DEVICE => StdinKind::Null,
        FileType::CharacterDevice if rustix::termios::isatty(fd) => StdinKind::Terminal,
        // What make gives to all jobs but one.
        FileType::Fifo if has_run_dry(fd) => StdinKind::Null,
        _ => StdinKind::Other,
    }
}

/// A pipe with nothing in it, and nobody left to write.
fn has_run_dry(fd: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    let answer = poll(&mut polled, Some(&Timespec::default()));
    answer.is_ok() && polled[0].revents() == PollFlags::HUP
}

/// Whether somebody in the build reads what this writes: it is a pipe, and not the one that the
/// parent writes to itself.
fn is_captured(stdout: &OwnedFd, parent: i32) -> bool {
    let Ok(stat) = rustix::fs::fstat(stdout.as_fd()) else {
        return false;
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::Fifo | FileType::Socket) {
        return false;
    }
    fs::metadata(format!("/proc/{parent}/fd/1")).map_or(true, |of| {
        (of.dev(), of.ino()) != (stat.st_dev, stat.st_ino)
    })
}

/// The file name of what a process executes.
fn program_name(pid: i32) -> String {
    fs::read_link(format!("/proc/{pid}/exe"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

/// The first of a process and its ancestors that runs a shim's command here.
fn nearest(pid: i32, local: impl Fn(i32) -> Option<ShimId>) -> Option<ShimId> {
    let mut pid = pid;
    for _ in 0..MAX_ANCESTORS {
        if let Some(shim) = local(pid) {
            return Some(shim);
        }
        pid = parent(pid).filter(|parent| *parent > 1)?;
    }
    None
}

/// Field 4 of `stat`, the second behind the name in parentheses.
fn parent(pid: i32) -> Option<i32> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn link(pid: i32, file: &str) -> Result<PathBuf, CallerError> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_link(&path).map_err(|source| CallerError::Proc { path, source })
}

fn strings(pid: i32, file: &str) -> Result<Vec<Vec<u8>>, CallerError> {
    let path = format!("/proc/{pid}/{file}");
    let bytes = fs::read(&path).map_err(|source| CallerError::Proc { path, source })?;
    let mut strings: Vec<Vec<u8>> = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    // Each ends with a zero, so behind the last is nothing.
    strings.pop();
    Ok(strings)
}

fn descriptors(pid: i32) -> Result<Vec<(i32, PathBuf)>, CallerError> {
    let path = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&path).map_err(|source| CallerError::Proc { path, source })?;
    Ok(entries
        .flatten()
        .filter_map(|entry| {
            let number: i32 = entry.file_name().to_str()?.parse().ok()?;
            if number < FIRST_EXTRA {
                return Some((number, PathBuf::new()));
            }
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect())
}

fn closes_on_exec(pid: i32, number: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))
        .ok()
        .and_then(|text| {
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
            u32::from_str_radix(flags.trim(), 8).ok()
        })
        .is_some_and(|flags| flags & CLOSE_ON_EXEC != 0)
}

fn value_of<'a>(env: &'a [Vec<u8>], name: &str) -> Option<&'a [u8]> {
    env.iter()
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn without_jobserver(entry: &[u8]) -> Vec<u8> {
    const NAMES: [&[u8]; 3] = [b"MAKEFLAGS=", b"MFLAGS=", b"CARGO_MAKEFLAGS="];
    let Some(name) = NAMES.iter().find(|name| entry.starts_with(name)) else {
        return entry.to_vec();
    };
    let words: Vec<_> = entry[name.len()..]
        .split(|byte| *byte == b' ')
        .filter(|word| !word.starts_with(b"--jobserver-"))
        .collect();
    [*name, &words.join(&b' ')].concat()
}

/// How make says where its jobserver is: `--jobserver-auth=3,4`, before 4.2 `--jobserver-fds`;
/// from 4.4 also `fifo:PATH`, and then only to those that may use it.
fn jobserver(env: &[Vec<u8>]) -> Option<&str> {
    ["MAKEFLAGS", "CARGO_MAKEFLAGS"].iter().find_map(|name| {
        let flags = std::str::from_utf8(value_of(env, name)?).ok()?;
        flags.split(' ').find_map(|word| {
            let auth = word.strip_prefix("--jobserver-auth=");
            auth.or_else(|| word.strip_prefix("--jobserver-fds="))
        })
    })
}

fn jobserver_descriptors(env: &[Vec<u8>]) -> Option<[i32; 2]> {
    let (read, write) = jobserver(env)?.split_once(',')?;
    Some([read.parse().ok()?, write.parse().ok()?])
}

/// Whether the command can use make's jobserver: make closes its descriptors for all others.
fn has_jobserver(pid: i32, env: &[Vec<u8>], socket: i32) -> bool {
    if let Some(pair) = jobserver_descriptors(env) {
        return pair.iter().all(|number| {
            let is_there = fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_ok();
            *number != socket && is_there
        });
    }
    jobserver(env).is_some_and(|auth| auth.starts_with("fifo:"))
}

/// Its limits, from the words of `/proc/PID/limits`.
fn limits(pid: i32) -> Option<Vec<Limit>> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    Some(text.lines().filter_map(limit).collect())
}

/// Names and numbers (fs/proc/base.c; asm-generic/resource.h).
const LIMITS: [(&str, u32); 16] = [
    ("Max cpu time", 0),
    ("Max file size", 1),
    ("Max data size", 2),
    ("Max stack size", 3),
    ("Max core file size", 4),
    ("Max resident set", 5),
    ("Max processes", 6),
    ("Max open files", 7),
    ("Max locked memory", 8),
    ("Max address space", 9),
    ("Max file locks", 10),
    ("Max pending signals", 11),
    ("Max msgqueue size", 12),
    ("Max nice priority", 13),
    ("Max realtime priority", 14),
    ("Max realtime timeout", 15),
];

fn limit(line: &str) -> Option<Limit> {
    let (rest, resource) = LIMITS
        .iter()
        .find_map(|(name, number)| Some((line.strip_prefix(name)?, *number)))?;
    let mut values = rest.split_ascii_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some(Limit {
        resource,
        soft: values.next()??,
        hard: values.next()??,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(text: &str) -> Vec<Vec<u8>> {
        text.split(';')
            .map(|entry| entry.as_bytes().to_vec())
            .collect()
    }

    #[test]
    fn a_jobserver_is_found_in_the_flags() {
        let make = env("A=1;MAKEFLAGS= -j4 --jobserver-auth=3,4 -- X=y");
        assert_eq!(jobserver_descriptors(&make), Some([3, 4]));
        let old = env("MAKEFLAGS= --jobserver-fds=5,6 -j");
        assert_eq!(jobserver_descriptors(&old), Some([5, 6]));
        let fifo = env("MAKEFLAGS= -j4 --jobserver-auth=fifo:/tmp/GMfifo1");
        assert_eq!(jobserver_descriptors(&fifo), None);
        assert!(has_jobserver(1, &fifo, -1));
        assert!(!has_jobserver(1, &env("MAKEFLAGS=w"), -1));
        let closed = env("MAKEFLAGS=--jobserver-auth=-2,-2");
        assert!(!has_jobserver(1, &closed, -1));
    }

    #[test]
    fn a_pipe_that_nobody_writes_to_is_no_input() {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(stdin_kind(Some(&read)), StdinKind::Other);
        rustix::io::write(&write, b"x").expect("written");
        drop(write);
        assert_eq!(stdin_kind(Some(&read)), StdinKind::Other);
        rustix::io::read(&read, &mut [0; 2]).expect("read");
        assert_eq!(stdin_kind(Some(&read)), StdinKind::Null);
    }

    #[test]
    fn descriptors_are_named_by_their_numbers() {
        let names = |line: &str, number| names_descriptor(&[line.into()], number);
        assert!(names("cc -c x.c; echo y >&3", 3) && names("cat /dev/fd/4; true", 4));
        assert!(!names("echo y >&31; cc 2>&1", 3) && !names("cc -c x3.c &", 3));
    }

    #[test]
    fn what_a_node_does_not_have_is_not_spoken_of() {
        let entry = b"CARGO_MAKEFLAGS=-j --jobserver-fds=8,9 --jobserver-auth=8,9";
        assert_eq!(without_jobserver(entry), b"CARGO_MAKEFLAGS=-j");
        assert_eq!(without_jobserver(b"A=--jobserver-x"), b"A=--jobserver-x");
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let limits = limits(own).expect("our limits");
        assert_eq!(limits.len(), LIMITS.len());
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let found = limits.iter().find(|limit| limit.resource == 7);
        assert_eq!(found.map(|limit| limit.soft), files.current);
    }

    #[test]
    fn one_file_for_both_outputs_is_one_stream() {
        let open = |path| Some(OwnedFd::from(fs::File::open(path).expect("it is there")));
        let one = [
            open("/dev/null"),
            open("/proc/self/stat"),
            open("/proc/self/stat"),
        ];
        let kinds = stream_kinds(&one);
        assert_eq!(
            kinds,
            [StdioKind::Null, StdioKind::Relayed, StdioKind::WithOutput]
        );
        let two = [open("/dev/null"), open("/dev/null"), None];
        let kinds = stream_kinds(&two);
        assert_eq!(
            kinds,
            [StdioKind::Null, StdioKind::Relayed, StdioKind::Null]
        );
    }
}
