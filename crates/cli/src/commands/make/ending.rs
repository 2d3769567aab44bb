//! The end of a build: what is said of it, and ending as it ended.

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use wiglaf_build::Record;
use wiglaf_linux::process::{ExitStatus, kill};
use wiglaf_linux::signal::{Disposition, SignalSet, set_disposition, set_signal_mask};

use super::Options;
use crate::CommandResult;
use crate::commands::run::dump_no_core;
use crate::error::CommandError;
use crate::output;

/// The record, and what it does not know of.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    record: &'a Record,
    /// Lines that ran here and are in no row or sum, as there were too many open files.
    here_for_want_of_open_files: u64,
}

/// Prints what was asked for, and what fell back in any case.
pub(super) fn tell(
    options: &Options,
    record: &Record,
    turned_away: u64,
) -> Result<(), CommandError> {
    if turned_away > 0 {
        eprintln!("wiglaf: {}", words_of_turned_away(turned_away));
    }
    if options.json {
        let told = Told {
            record,
            here_for_want_of_open_files: turned_away,
        };
        let mut text = serde_json::to_string(&told)?;
        text.push('\n');
        return output::print(&text);
    }
    if options.plan {
        eprint!("{}", record.plan());
    }
    if options.report {
        eprint!("{}", record.report());
    }
    if let Some(sentence) = record.fallen_back() {
        eprintln!("wiglaf: {sentence}");
    }
    Ok(())
}

/// Never silently, as with all that falls back.
fn words_of_turned_away(lines: u64) -> String {
    let (lines, they) = match lines {
        1 => ("1 more line".to_owned(), "it is"),
        lines => (format!("{lines} more lines"), "they are"),
    };
    format!(
        "{lines} ran here: too many open files; {they} not in the report (raise `ulimit -Hn`, \
         which is {}, or lower -j)",
        limit_of_open_files()
    )
}

fn limit_of_open_files() -> String {
    let limit = getrlimit(Resource::Nofile).maximum;
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

/// Ends this process as the build's has ended, so that whoever waits sees no difference.
pub(super) fn end_as(end: ExitStatus) -> CommandResult {
    if let ExitStatus::Signaled { signal, .. } = end {
        // The command itself has left a core if there was to be one.
        dump_no_core();
        let _ = set_disposition(signal, Disposition::Default);
        let own = std::process::id().cast_signed();
        let _ = kill(own, signal);
        set_signal_mask(SignalSet::EMPTY);
    }
    Ok(u8::try_from(end.shell_code()).unwrap_or(u8::MAX))
}
