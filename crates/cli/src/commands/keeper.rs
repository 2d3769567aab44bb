//! `wiglaf keeper`: started by the head, not by people.

use std::path::PathBuf;

use wiglaf_linux::process::{Fork, fork};
use wiglaf_process::keeper::{self, KeeperConfig};

use crate::CommandResult;
use crate::deputy;
use crate::output;

/// The user that deputies' real uid is, so that the user whom they act for can't signal them: an
/// account `wiglaf` if there is one, else a number that systemd keeps for dynamic users.
pub(crate) const DEFAULT_SERVICE_ID: u32 = 64_194;

/// Trace ghosts and keep deputies for the head
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the head connects
    #[arg(long)]
    socket: PathBuf,
    /// What no node may see, besides the socket's directory
    #[arg(long, value_name = "PATH")]
    hide: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args) -> CommandResult {
    let service = rustix::process::geteuid().is_root().then(|| {
        let uid = output::id_of("wiglaf", "/etc/passwd").unwrap_or(DEFAULT_SERVICE_ID);
        let gid = output::id_of("wiglaf", "/etc/group").unwrap_or(DEFAULT_SERVICE_ID);
        (uid, gid)
    });
    // It is nobody's child: it outlives the head that started it, and no head has to reap it.
    if let Fork::Parent { .. } = fork()? {
        return Ok(0);
    }
    let run_directory = args.socket.parent().map(PathBuf::from);
    let hidden = args.hide.iter().cloned().chain(run_directory).collect();
    keeper::run(KeeperConfig {
        socket: args.socket.clone(),
        service,
        deputy: deputy::live,
        hidden,
    })?;
    Ok(0)
}
