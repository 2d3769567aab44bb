//! `wiglaf boot-service`: started by the head, not by people.

use std::path::PathBuf;

use wiglaf_boot::service::{ServiceConfig, prepare};
use wiglaf_linux::process::{Fork, fork};

use crate::CommandResult;
use crate::commands::keeper::DEFAULT_SERVICE_ID;
use crate::output;

/// Where distributions put network boot programs: Debian, Fedora and SUSE, Arch.
const LOADERS: [&str; 3] = ["/usr/lib/ipxe", "/usr/share/ipxe", "/usr/share/ipxe/x86_64"];

/// Serve machines that start from the network
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the head connects
    #[arg(long)]
    socket: PathBuf,
    /// The images' directory
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Where network boot programs are; the first that has one counts
    #[arg(long, value_name = "DIR", default_values = LOADERS)]
    loaders: Vec<PathBuf>,
}

pub(crate) fn run(args: Args) -> CommandResult {
    let uid = output::id_of("wiglaf", "/etc/passwd").unwrap_or(DEFAULT_SERVICE_ID);
    let gid = output::id_of("wiglaf", "/etc/group").unwrap_or(DEFAULT_SERVICE_ID);
    let service = prepare(ServiceConfig {
        socket: args.socket,
        images: args.images,
        loaders: args.loaders,
        account: (uid, gid),
    })?;
    // It is nobody's child: it outlives the head that started it, and no head has to reap it.
    if let Fork::Parent { .. } = fork()? {
        return Ok(0);
    }
    service.run()?;
    Ok(0)
}
