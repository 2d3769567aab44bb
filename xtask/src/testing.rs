//! Runs the tests and counts them.
//!
//! A test that can't run here prints `SKIPPED: reason` and returns. libtest calls that
//! passed; we call it skipped, and print the reason at the end.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run;

/// Building and running all tests; CI ends us after 90 minutes, without a word.
const TESTS_TIME_LIMIT: Duration = Duration::from_secs(40 * 60);
/// How long a program that outlived its test may keep the pipe open after cargo's end.
const LEFT_OPEN_TIME_LIMIT: Duration = Duration::from_secs(5);
/// How often we look whether cargo has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Longest line of a test's output that is kept.
const MAX_LINE_BYTES: u64 = 1 << 20;

const SKIPPED: &str = "SKIPPED: ";

/// How many tests ended how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// `SKIPPED: reason (test)`, in the order of the run.
    pub(crate) skip_lines: Vec<String>,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, failed, skipped) = (self.passed, self.failed, self.skipped);
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

pub(crate) fn run() -> Result<Totals> {
    let mut command = run::cargo();
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    // Only so do the lines of tests that passed come out, whole and under the test's name.
    command.args(["--", "--show-output"]);
    println!("$ {}", run::text_of(&command));
    let mut tally = Tally::default();
    let status = follow(&mut command, &mut |line| {
        if tally.take(line) {
            println!("{line}");
        }
    })?;
    let totals = tally.finish();
    if !status.success() || totals.failed > 0 {
        bail!("cargo test ended with {status}: {totals}");
    }
    Ok(totals)
}

/// Runs a command and gives each line that it prints.
fn follow(command: &mut Command, line: &mut dyn FnMut(&str)) -> Result<ExitStatus> {
    // With nobody at a terminal to press Ctrl-C, a group of its own lets us end all of it.
    let own_group = !io::stdin().is_terminal();
    if own_group {
        command.process_group(0);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run cargo test")?;
    let lines = read_lines(child.stdout.take().context("cargo test has no output")?)?;
    let started = Instant::now();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(POLL_INTERVAL) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() {
            ended = child.try_wait()?.map(|status| (status, Instant::now()));
        }
        match ended {
            Some((_, at)) if at.elapsed() > LEFT_OPEN_TIME_LIMIT => {
                println!("a program that a test started still holds our pipe open");
                break;
            }
            None if started.elapsed() > TESTS_TIME_LIMIT => {
                kill(&mut child, own_group)?;
                bail!(
                    "the tests did not end within {} s",
                    TESTS_TIME_LIMIT.as_secs()
                );
            }
            _ => {}
        }
    }
    match ended {
        Some((status, _)) => Ok(status),
        None => Ok(child.wait()?),
    }
}

fn kill(child: &mut Child, group: bool) -> Result<()> {
    if group {
        let group = format!("-{}", child.id());
        run::check(Command::new("kill").args(["-KILL", "--", &group]))?;
    } else {
        child.kill()?;
    }
    child.wait()?;
    Ok(())
}

/// Lines come through a thread, since a read could block after cargo's end.
fn read_lines(output: impl Read + Send + 'static) -> Result<Receiver<String>> {
    let (sender, receiver) = mpsc::channel();
    let mut reader = BufReader::new(output);
    thread::Builder::new()
        .name("test-output".to_owned())
        .spawn(move || {
            loop {
                let mut bytes = Vec::new();
                let read = reader
                    .by_ref()
                    .take(MAX_LINE_BYTES)
                    .read_until(b'\n', &mut bytes);
                if !matches!(read, Ok(1..)) {
                    return;
                }
                let line = String::from_utf8_lossy(&bytes);
                if sender
                    .send(line.trim_end_matches(['\n', '\r']).to_owned())
                    .is_err()
                {
                    return;
                }
            }
        })
        .context("can't start a thread")?;
    Ok(receiver)
}

/// Reads libtest's report line by line.
#[derive(Debug, Default)]
struct Tally {
    totals: Totals,
    /// A test program said `running` and has not yet said `test result`.
    running: bool,
    /// Between `successes:` and what follows it.
    in_successes: bool,
    /// Whose output we are reading.
    test: Option<String>,
    /// The tests of this program that skipped themselves.
    skipped: BTreeSet<String>,
}

impl Tally {
    /// Whether the line is worth showing: what passing tests print is not.
    fn take(&mut self, line: &str) -> bool {
        if let Some(reason) = line.strip_prefix(SKIPPED) {
            let test = self.test.as_deref().unwrap_or("a test");
            self.totals
                .skip_lines
                .push(format!("{SKIPPED}{reason} ({test})"));
            // A line outside of any test's output counts by itself.
            let key = self.test.clone();
            self.skipped.insert(key.unwrap_or_else(|| line.to_owned()));
            return true;
        }
        if is_running_line(line) {
            self.end_program();
            self.running = true;
        } else if line.starts_with("test result: ") {
            self.add_result(line);
            self.running = false;
            self.end_program();
        } else if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            (self.in_successes, self.test) = (false, None);
        } else if let Some(name) = block_name(line) {
            self.test = Some(name.to_owned());
        }
        !self.in_successes
    }

    fn add_result(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once(". ") else {
            return;
        };
        for count in counts.split("; ") {
            let mut words = count.split(' ');
            let number = words.next().and_then(|word| word.parse::<usize>().ok());
            match (number, words.next()) {
                (Some(number), Some("passed")) => self.totals.passed += number,
                (Some(number), Some("failed")) => self.totals.failed += number,
                (Some(number), Some("ignored")) => self.totals.skipped += number,
                _ => {}
            }
        }
    }

    fn end_program(&mut self) {
        // It was killed or aborted before its result: that is a failure, whatever it was.
        if std::mem::take(&mut self.running) {
            self.totals.failed += 1;
        }
        let skipped = std::mem::take(&mut self.skipped).len();
        self.totals.skipped += skipped;
        self.totals.passed = self.totals.passed.saturating_sub(skipped);
        (self.in_successes, self.test) = (false, None);
    }

    fn finish(mut self) -> Totals {
        self.end_program();
        self.totals
    }
}

fn is_running_line(line: &str) -> bool {
    let count = line
        .strip_prefix("running ")
        .and_then(|rest| rest.strip_suffix(" tests").or(rest.strip_suffix(" test")));
    count.is_some_and(|count| count.parse::<usize>().is_ok())
}

/// `---- NAME stdout ----`
fn block_name(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> (Totals, String) {
        let mut tally = Tally::default();
        let shown: Vec<&str> = text.lines().filter(|line| tally.take(line)).collect();
        (tally.finish(), shown.join("\n"))
    }

    const TWO_PROGRAMS: &str = "
running 3 tests
test a ... ok
test b ... ok
test c ... FAILED

successes:

---- a stdout ----
noise
---- b stdout ----
SKIPPED: not root
SKIPPED: nor can we become it

successes:
    a
    b

failures:

---- c stdout ----
why c failed

failures:
    c

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test d ... ignored

test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let (totals, shown) = tally(TWO_PROGRAMS);
        assert_eq!(totals.to_string(), "13 passed, 1 failed, 2 skipped");
        assert_eq!(
            totals.skip_lines,
            ["SKIPPED: not root (b)", "SKIPPED: nor can we become it (b)"]
        );
        assert!(shown.contains("why c failed") && shown.contains("test a ... ok"));
        assert!(!shown.contains("noise"));
    }

    #[test]
    fn a_program_without_a_result_failed() {
        let (totals, _) = tally(
            "running 2 tests\ntest a ... ok\nrunning 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored",
        );
        assert_eq!(totals.to_string(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(tally("running 2 tests").0.failed, 1);
    }

    #[test]
    fn a_program_that_keeps_the_pipe_does_not_hold_us_up() {
        let started = Instant::now();
        let mut seen = Vec::new();
        let status = follow(
            Command::new("sh").args(["-c", "sleep 30 & echo $!; echo last; exit 3"]),
            &mut |line| seen.push(line.to_owned()),
        );
        assert_eq!(status.ok().and_then(|status| status.code()), Some(3));
        assert_eq!(seen[1], "last");
        assert!(started.elapsed() < Duration::from_secs(25));
        assert!(
            Command::new("kill")
                .arg(&seen[0])
                .status()
                .is_ok_and(|s| s.success())
        );
    }
}
