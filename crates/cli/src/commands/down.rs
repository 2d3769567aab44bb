//! `wiglaf down`

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use wiglaf_head::config::Layout;
use wiglaf_head::store::Store;
use wiglaf_link::Channel;
use wiglaf_wire::client::{Reply, Request};
use wiglaf_wire::keeper::{FromKeeper, ToKeeper};

use crate::CommandResult;
use crate::daemons::{self, Known};
use crate::error::CommandError;
use crate::head::Head;

/// End the cluster on this machine: its tasks, its virtual nodes and its daemons
///
/// Nodes, certificates and finished jobs are remembered for the next `wiglaf up`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> CommandResult {
    let layout = Layout::own()?;
    let rack_file = layout.run.join("rack.pid");
    let mut processes: Vec<_> = Known::read(&rack_file).into_iter().collect();
    let found = match Head::connect_to(&layout) {
        Ok(mut head) => {
            let status = daemons::status(&mut head)?;
            let pids = [status.pid, status.keeper_pid, status.rack_pid.unwrap_or(0)];
            let all = pids.into_iter().chain(status.deputy_pids);
            processes.extend(all.filter_map(Known::of));
            match head.ask(&Request::Shutdown)? {
                Reply::Done => {}
                other => return Err(CommandError::from_reply(other)),
            }
            true
        }
        Err(error) if error.is_refusal() => return Err(error),
        // The head has died. Only then may the keeper be called: it serves one caller, the last.
        Err(_) => match dial_keeper(&layout) {
            Some(keeper) => {
                if let Ok(peer) = rustix::net::sockopt::socket_peercred(&keeper) {
                    processes.extend(Known::of(peer.pid.as_raw_nonzero().get()));
                }
                end_keeper(keeper);
                true
            }
            None => !processes.is_empty(),
        },
    };
    daemons::end(&processes);
    remove_traces(&layout)?;
    if !found {
        return Err(
            CommandError::new("no cluster is running here").hint("`wiglaf up -n 4` starts one")
        );
    }
    Ok(0)
}

fn dial_keeper(layout: &Layout) -> Option<OwnedFd> {
    let address = SocketAddrUnix::new(layout.keeper_socket()).ok()?;
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&socket, &address).ok()?;
    Some(socket)
}

/// For a cluster whose head has died.
fn end_keeper(socket: OwnedFd) {
    let Ok(mut channel) = Channel::<FromKeeper, ToKeeper>::new(socket) else {
        return;
    };
    let text = "the cluster was ended (`wiglaf down`)".to_owned();
    let sent = channel
        .queue(&ToKeeper::Shutdown { text }, Vec::new())
        .and_then(|()| channel.wait_flushed());
    if sent.is_ok() {
        // Until it has gone.
        while channel.wait_message().is_ok() {}
    }
}

fn remove_traces(layout: &Layout) -> Result<(), CommandError> {
    let sockets = [
        layout.head_socket(),
        layout.keeper_socket(),
        layout.boot_socket(),
    ];
    for path in sockets.into_iter().chain([layout.run.join("rack.pid")]) {
        let _ = std::fs::remove_file(path);
    }
    if layout.database().exists()
        && let Some(secrets) = Store::open(&layout.database())?.secrets()?
    {
        wiglaf_node::rack::remove_leftovers(&secrets.cluster)?;
    }
    Ok(())
}
