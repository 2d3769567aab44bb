//! The connection to the head.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustls::ClientConfig;
use wiglaf_link::{Interest, LinkError, Poll, Role, TlsLink, Token, server_name};
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::frame::{Frame, FrameError};

/// How long a message that nobody waits for may wait for another to go with.
const PATIENCE: Duration = Duration::from_millis(2);

/// Ports that only root may have and that no service is known by (`bindresvport(3)`).
const ROOT_PORTS: Range<u16> = 600..1024;

/// A connection of an agent, as both conversations with the head use it.
pub(crate) type HeadTls = TlsLink<ToAgent, FromAgent>;

/// Begins to connect; what is queued meanwhile is sent once the connection stands.
pub(crate) fn dial(head: SocketAddr, config: Arc<ClientConfig>) -> Result<HeadTls, LinkError> {
    let socket = open(head)?;
    connect(&socket, head)?;
    TlsLink::client(socket, config, server_name(Role::Head))
}

/// The same from a port that only root may have, which shows the head that no user of this
/// machine asks.
pub(crate) fn dial_as_root(
    head: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<HeadTls, LinkError> {
    // Not always the same one: the head may still hold a connection of this machine's last life.
    let start = (rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec >> 10)
        .cast_unsigned();
    let count = u64::from(ROOT_PORTS.end - ROOT_PORTS.start);
    let mut failure = Errno::ADDRINUSE;
    for step in 0..count {
        let offset = u16::try_from((start + step) % count).unwrap_or(0);
        let socket = open(head)?;
        let any = if head.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let own = SocketAddr::new(any, ROOT_PORTS.start + offset);
        match rustix::net::bind(&socket, &own).and_then(|()| connect(&socket, head)) {
            Ok(()) => return TlsLink::client(socket, config, server_name(Role::Head)),
            // That port is taken, or was lately.
            Err(errno @ (Errno::ADDRINUSE | Errno::ADDRNOTAVAIL)) => failure = errno,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(failure.into())
}

fn open(head: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if head.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
}

fn connect(socket: &OwnedFd, head: SocketAddr) -> Result<(), Errno> {
    match rustix::net::connect(socket, &head) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The connection as the agent's loop has it.
#[derive(Debug)]
pub(super) struct HeadLink {
    tls: HeadTls,
    token: Token,
    waits_for_room: bool,
    /// When what is queued has to leave, if all of it may wait.
    flush_at: Option<Instant>,
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
            flush_at: None,
        })
    }

    pub(super) fn queue(&mut self, message: &FromAgent) -> Result<(), LinkError> {
        self.flush_at = None;
        self.tls.queue(message)
    }

    /// Queues a message that leaves with the next one, or a little later.
    pub(super) fn queue_patiently(&mut self, message: &FromAgent) -> Result<(), LinkError> {
        if self.tls.queued_bytes() == 0 {
            self.flush_at = Some(Instant::now() + PATIENCE);
        }
        self.tls.queue(message)
    }

    /// When [`HeadLink::settle`] has something to send.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flush_at
    }

    /// Reads what there is, once; an error is told when the messages before it are taken.
    pub(super) fn receive(&mut self) -> Result<(), LinkError> {
        self.tls.receive().map(|_| ())
    }

    /// Whether the last read may have left something behind.
    pub(super) fn may_have_more(&self) -> bool {
        self.tls.may_have_more()
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

    /// Sends what is queued, unless it may wait, and waits for what has to be waited for.
    pub(super) fn settle(&mut self, poll: &Poll) -> Result<(), LinkError> {
        if self.flush_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        self.flush(poll)
    }

    /// The same for all that is queued.
    pub(super) fn flush(&mut self, poll: &Poll) -> Result<(), LinkError> {
        self.flush_at = None;
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
