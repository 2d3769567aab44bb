//! A command's connection to the head.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use wiglaf_head::config::Layout;
use wiglaf_link::{Channel, LinkError};
use wiglaf_linux::peer::peer_uid;
use wiglaf_wire::PROTOCOL_VERSION;
use wiglaf_wire::client::{Reply, Request};

use crate::error::{CommandError, connection_lost};

/// How long a command waits for a head that takes over.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(5);
const SUCCESSOR_POLL: Duration = Duration::from_millis(20);

/// A greeted connection.
pub(crate) struct Head {
    channel: Channel<Reply, Request>,
    is_greeted: bool,
}

impl Head {
    /// To the cluster that this user's commands talk to. A head that has just died is waited for
    /// while its keeper lives: another one takes over.
    pub(crate) fn connect() -> Result<Head, CommandError> {
        let layout = Layout::reachable()?;
        let deadline = Instant::now() + SUCCESSOR_WAIT;
        loop {
            match Head::connect_to(&layout) {
                Err(error)
                    if error.is_connection_lost()
                        && Head::is_expected()
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(SUCCESSOR_POLL);
                }
                result => return result,
            }
        }
    }

    /// Whether a head that does not answer is about to be replaced: its keeper lives.
    pub(crate) fn is_expected() -> bool {
        Layout::reachable().is_ok_and(|layout| layout.keeper_socket().exists())
    }

    /// To the cluster with these directories.
    pub(crate) fn connect_to(layout: &Layout) -> Result<Head, CommandError> {
        let mut head = Head {
            channel: Channel::new(dial(layout)?)?,
            is_greeted: false,
        };
        // Sent with the first request: its answer is not waited for by itself.
        head.channel
            .queue(
                &Request::Hello {
                    version: PROTOCOL_VERSION,
                },
                Vec::new(),
            )
            .map_err(|error| connection_lost(&error))?;
        Ok(head)
    }

    /// Sends a request and waits for the reply.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, CommandError> {
        self.ask_with(request, Vec::new())
    }

    /// The same with descriptors.
    pub(crate) fn ask_with(
        &mut self,
        request: &Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Reply, CommandError> {
        self.send(request, descriptors)?;
        self.next()
    }

    /// Sends a request whose answers come later.
    pub(crate) fn send(
        &mut self,
        request: &Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), CommandError> {
        let sent = self
            .channel
            .queue(request, descriptors)
            .and_then(|()| self.channel.wait_flushed());
        match sent {
            // A head that refuses a caller says why before it hangs up: that is read next.
            Ok(()) | Err(LinkError::Closed) => Ok(()),
            Err(error) => Err(connection_lost(&error)),
        }
    }

    /// The next reply.
    pub(crate) fn next(&mut self) -> Result<Reply, CommandError> {
        self.finish_greeting()?;
        self.receive()
    }

    fn finish_greeting(&mut self) -> Result<(), CommandError> {
        if self.is_greeted {
            return Ok(());
        }
        match self.receive()? {
            Reply::Done => self.is_greeted = true,
            other => return Err(CommandError::from_reply(other)),
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Reply, CommandError> {
        self.channel
            .wait_message()
            .map_err(|error| connection_lost(&error))
    }

    /// A descriptor that came with the last reply.
    pub(crate) fn descriptor(&mut self) -> Result<OwnedFd, CommandError> {
        Ok(self.channel.descriptors().take()?)
    }

    /// The connection before its greeting has been answered: `Done` comes first.
    pub(crate) fn into_ungreeted_channel(self) -> Channel<Reply, Request> {
        self.channel
    }

    /// The connection itself, for loops of their own.
    pub(crate) fn into_channel(mut self) -> Result<Channel<Reply, Request>, CommandError> {
        self.finish_greeting()?;
        Ok(self.channel)
    }
}

/// A command gives the head its descriptors and environment: only root's head or one of one's own
/// may have them.
fn check_owner(socket: OwnedFd, path: &Path) -> Result<OwnedFd, CommandError> {
    let owner = peer_uid(socket.as_fd())?;
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(socket);
    }
    Err(CommandError::new(format!(
        "{} belongs to user {owner}, neither root nor you: nothing was sent there",
        path.display()
    ))
    .hint("start a cluster of your own: `wiglaf up -n 4`"))
}

fn dial(layout: &Layout) -> Result<OwnedFd, CommandError> {
    let path = layout.head_socket();
    let address = SocketAddrUnix::new(&path).map_err(|_| {
        CommandError::new(format!(
            "{} is too long for a socket's path",
            path.display()
        ))
        .hint("set WIGLAF_DIR to a shorter one (108 bytes is the kernel's limit)")
    })?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => check_owner(socket, &path),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Err(CommandError::new(format!(
            "no head is running (looked at {})",
            path.display()
        ))
        .lost()
        .hint("start a cluster: `wiglaf up -n 4` for virtual nodes, or try `wiglaf demo`")),
        Err(errno) => Err(CommandError::new(format!("{}: {errno}", path.display()))),
    }
}
