//! `wiglaf kill`

use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::id::Pid;

use crate::CommandResult;
use crate::error::CommandError;
use crate::head::Head;

/// Signal processes on any node, by the PIDs that `wiglaf ps` shows
///
/// The PID of a task's main process is also its ghost's on this machine, so plain kill works for
/// it too; descendants are known to this command only.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Signal, by name or number
    #[arg(short, long, default_value = "TERM", value_parser = parse_signal)]
    signal: u8,
    /// PIDs
    #[arg(required = true, value_name = "PID")]
    pids: Vec<i32>,
}

/// Signals by their names on Linux (signal(7)); all architectures that we build for agree.
pub(crate) const SIGNALS: [(&str, u8); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

pub(crate) fn parse_signal(text: &str) -> Result<u8, String> {
    if let Ok(number) = text.parse::<u8>() {
        return (number <= 64)
            .then_some(number)
            .ok_or_else(|| "signals go up to 64".into());
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| "no such signal; see `kill -l`".into())
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let mut head = Head::connect()?;
    let mut code = 0;
    for pid in &args.pids {
        let request = Request::Signal {
            pid: Pid(*pid),
            signal: args.signal,
        };
        match head.ask(&request)? {
            Reply::Done => {}
            other => {
                CommandError::from_reply(other).report();
                code = 1;
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        assert_eq!(parse_signal("sigusr1"), Ok(10));
        assert_eq!(parse_signal("TERM"), Ok(15));
        assert_eq!(parse_signal("64"), Ok(64));
        assert!(parse_signal("65").is_err());
        assert!(parse_signal("NOPE").is_err());
    }
}
