//! The connection to the head.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustls::ClientConfig;
use wiglaf_link::{Interest, LinkError, Poll, Role, TlsLink, Token, server_name};
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::frame::{Frame, FrameError};

/// A connection of an agent, as both conversations with the head use it.
pub(crate) type HeadTls = TlsLink<ToAgent, FromAgent>;

/// Begins to connect; what is queued meanwhile is sent once the connection stands.
pub(crate) fn dial(head: SocketAddr, config: Arc<ClientConfig>) -> Result<HeadTls, LinkError> {
    let family = if head.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &head) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    TlsLink::client(socket, config, server_name(Role::Head))
}

/// The connection as the agent's loop has it.
#[derive(Debug)]
pub(super) struct HeadLink {
    tls: HeadTls,
    token: Token,
    waits_for_room: bool,
}

impl HeadLink {
    pub(super) fn open(
        poll: &Poll,
        token: Token,
        head: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<HeadLink, LinkError> {
        let tls = dial(head, config)?;
        // Room to write is how a connection that stands shows.
        poll.add(&tls, token, Interest::Both)?;
        Ok(HeadLink {
            tls,
            token,
            waits_for_room: true,
        })
    }

    pub(super) fn queue(&mut self, message: &FromAgent) -> Result<(), LinkError> {
        self.tls.queue(message)
    }

    /// Reads what there is, once; an error is told when the messages before it are taken.
    pub(super) fn receive(&mut self) -> Result<(), LinkError> {
        self.tls.receive().map(|_| ())
    }

    pub(super) fn next_message(&mut self) -> Result<Option<ToAgent>, LinkError> {
        match self.tls.next_frame()? {
            Some(Frame::Message(message)) => Ok(Some(message)),
            Some(Frame::Data(..)) => Err(FrameError::BadDataHeader.into()),
            None => Ok(None),
        }
    }

    /// Whether the socket has not taken all of it yet.
    pub(super) fn is_sending(&self) -> bool {
        self.tls.wants_write()
    }

    /// Sends what is queued, and waits for what has to be waited for.
    pub(super) fn settle(&mut self, poll: &Poll) -> Result<(), LinkError> {
        self.tls.flush()?;
        let wants = self.tls.wants_write();
        if wants != self.waits_for_room {
            poll.modify(&self.tls, self.token, Interest::read_and(wants))?;
            self.waits_for_room = wants;
        }
        Ok(())
    }
}

impl AsFd for HeadLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tls.as_fd()
    }
}
