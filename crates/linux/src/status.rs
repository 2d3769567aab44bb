//! What `/proc` says of a process.

use crate::signal::SignalSet;
use std::fs;
use std::io;

/// The lines of `/proc/PID/status` that decisions rest on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessStatus {
    /// The thread group, which is the process's PID.
    pub tgid: i32,
    /// The parent's PID.
    pub ppid: i32,
    /// The tracer's PID, 0 for none.
    pub tracer: i32,
    /// Real, effective, saved and file-system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system gid.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The file mode creation mask.
    pub umask: u32,
    /// Whether an exec can't raise its rights.
    pub no_new_privs: bool,
    /// The seccomp mode: 0 none, 1 strict, 2 filtered.
    pub seccomp: u32,
    /// Blocked signals of the main thread.
    pub blocked: SignalSet,
    /// Ignored signals.
    pub ignored: SignalSet,
    /// Caught signals.
    pub caught: SignalSet,
    /// The number of threads.
    pub threads: u32,
}

/// Why a process can't be described.
#[derive(thiserror::Error, Debug)]
pub enum StatusError {
    /// The file can't be read; `NotFound` when there is no such process.
    #[error("process {pid}: {source}")]
    Read {
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A line is missing or not understood.
    #[error("process {pid}: no usable {field} in /proc")]
    Field {
        /// The process.
        pid: i32,
        /// The line's name.
        field: &'static str,
    },
}

/// Reads `/proc/PID/status`.
pub fn read_status(pid: i32) -> Result<ProcessStatus, StatusError> {
    let text = read(pid, "status")?;
    parse_status(&text).map_err(|field| StatusError::Field { pid, field })
}

/// When the process started, in clock ticks since boot. Together with the PID this names a
/// process uniquely.
pub fn start_time(pid: i32) -> Result<u64, StatusError> {
    let text = read(pid, "stat")?;
    parse_start_time(&text).ok_or(StatusError::Field {
        pid,
        field: "starttime",
    })
}

fn read(pid: i32, file: &str) -> Result<String, StatusError> {
    let bytes = read_at_once(&format!("/proc/{pid}/{file}"))
        // A process that ends while it is read gives ESRCH, which means the same.
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ESRCH) => io::ErrorKind::NotFound.into(),
            _ => source,
        })
        .map_err(|source| StatusError::Read { pid, source })?;
    // The command's name may hold any byte.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Room for any `status` or `stat`, so that one read has it all.
const READ_BYTES: usize = 8192;

/// The standard library begins with 32 bytes and doubles: eight system calls for such a file.
fn read_at_once(path: &str) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let mut bytes = vec![0; READ_BYTES];
    let mut filled = 0;
    loop {
        match io::Read::read(&mut file, &mut bytes[filled..])? {
            0 => break,
            read => filled += read,
        }
        if filled == bytes.len() {
            bytes.resize(filled * 2, 0);
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn parse_start_time(text: &str) -> Option<u64> {
    /// `starttime`, counted from the field after the command's closing parenthesis.
    const START_TIME: usize = 22 - 3;
    let fields = text.rsplit_once(')')?.1;
    fields
        .split_ascii_whitespace()
        .nth(START_TIME)?
        .parse()
        .ok()
}

fn parse_status(text: &str) -> Result<ProcessStatus, &'static str> {
    Ok(ProcessStatus {
        tgid: number(text, "Tgid")?,
        ppid: number(text, "PPid")?,
        tracer: number(text, "TracerPid")?,
        uids: four(text, "Uid")?,
        gids: four(text, "Gid")?,
        groups: numbers(text, "Groups").ok_or("Groups")?,
        umask: line(text, "Umask")
            .and_then(|value| u32::from_str_radix(value, 8).ok())
            .ok_or("Umask")?,
        no_new_privs: number::<u32>(text, "NoNewPrivs")? != 0,
        // Absent from kernels that are built without it.
        seccomp: number(text, "Seccomp").unwrap_or(0),
        blocked: signals(text, "SigBlk")?,
        ignored: signals(text, "SigIgn")?,
        caught: signals(text, "SigCgt")?,
        threads: number(text, "Threads")?,
    })
}

fn line<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(str::trim)
}

fn number<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<T, &'static str> {
    line(text, field)
        .and_then(|value| value.parse().ok())
        .ok_or(field)
}

fn numbers(text: &str, field: &str) -> Option<Vec<u32>> {
    line(text, field)?
        .split_ascii_whitespace()
        .map(|value| value.parse().ok())
        .collect()
}

fn four(text: &str, field: &'static str) -> Result<[u32; 4], &'static str> {
    numbers(text, field)
        .and_then(|values| values.try_into().ok())
        .ok_or(field)
}

fn signals(text: &str, field: &'static str) -> Result<SignalSet, &'static str> {
    line(text, field)
        .and_then(|value| u64::from_str_radix(value, 16).ok())
        .map(SignalSet::from_bits)
        .ok_or(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_understood() {
        let text = "Name:\ta Uid: 9\nUmask:\t0027\nTgid:\t7\nPPid:\t3\nTracerPid:\t0\nUid:\t1\t2\t3\t4\n\
                    Gid:\t5\t6\t7\t8\nGroups:\t \nThreads:\t2\nSigBlk:\t0000000000000001\n\
                    SigIgn:\t0000000000001000\nSigCgt:\t0000000000000000\nNoNewPrivs:\t1\n\
                    Seccomp:\t2\n";
        let status = parse_status(text).expect("a whole status");
        assert_eq!(status.uids, [1, 2, 3, 4]);
        assert_eq!(status.gids, [5, 6, 7, 8]);
        assert_eq!(status.umask, 0o027);
        assert!(status.groups.is_empty() && status.no_new_privs);
        assert!(status.blocked.contains(libc::SIGHUP));
        assert!(status.ignored.contains(libc::SIGPIPE));
        assert_eq!(status.seccomp, 2);
        assert_eq!(parse_status("Tgid:\tx\n"), Err("Tgid"));
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_start_time() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse_start_time(text), Some(4242));
    }

    #[test]
    fn our_own_process_is_there_and_no_other() {
        let pid = std::process::id().cast_signed();
        assert_eq!(read_status(pid).expect("our status").tgid, pid);
        assert!(start_time(pid).expect("our start") > 0);
        assert!(matches!(
            read_status(i32::MAX),
            Err(StatusError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound
        ));
    }
}
