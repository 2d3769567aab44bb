//! The end of a build: what is said of it, and ending as it ended.

use wiglaf_build::Record;
use wiglaf_linux::process::{ExitStatus, kill};
use wiglaf_linux::signal::{Disposition, SignalSet, set_disposition, set_signal_mask};

use super::Options;
use crate::CommandResult;
use crate::commands::run::dump_no_core;
use crate::error::CommandError;
use crate::output;

/// Prints what was asked for, and what fell back in any case.
pub(super) fn tell(options: &Options, record: &Record) -> Result<(), CommandError> {
    if options.json {
        let mut text = serde_json::to_string(record)?;
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
pub(super) fn tell_turned_away(lines: u64) {
    if lines > 0 {
        eprintln!("wiglaf: {lines} more lines ran here: too many open files (see `ulimit -Hn`)");
    }
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
