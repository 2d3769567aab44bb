//! `wiglaf head`

use wiglaf_head::config::{Config, Layout};
use wiglaf_head::daemon::Daemon;
use wiglaf_linux::process::set_process_title;

use crate::CommandResult;

/// Run the head daemon in the foreground, for a service manager
#[derive(clap::Args)]
pub(crate) struct Args {
    /// In a session of its own, away from the terminal of whoever started it
    #[arg(long, hide = true)]
    background: bool,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    if args.background {
        rustix::process::setsid()?;
    }
    let layout = Layout::own()?;
    layout.make()?;
    let config = Config::load(&layout.config_file())?;
    let daemon = Daemon::start(layout, config)?;
    // Only how `ps` shows it depends on this.
    let _ = set_process_title("wiglaf: head");
    daemon.run()?;
    Ok(0)
}
