//! A link between a deputy and an agent, and what waits for room on it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use wiglaf_link::{Interest, LinkError, Poll, TlsLink, Token};
use wiglaf_linux::tcp;
use wiglaf_wire::frame::{Compression, DataHeader, Frame};
use wiglaf_wire::id::TaskId;
use wiglaf_wire::stream::{Relay, Stream};

use super::flow::FlowError;

/// Sources are not read while more than this waits for the socket: the network sets the pace.
const CONGESTED_BYTES: usize = 512 << 10;
/// A link on which the other machine acknowledges nothing for so long is broken. It is no lease:
/// that ends an agent's links when it is over, and the head's fence the deputies' ends of them.
/// Until then what is under way must not be lost; a longer lease than this would be.
const SILENCE_LIMIT: Duration = Duration::from_secs(900);
/// A quiet link is probed after this long, so that a dead machine is noticed some time.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// What is not acknowledged is sent again this often, so that a link goes on soon after the cable
/// does. Before Linux 6.15 it may take as long again as the cable was cut. Not less: if the other
/// end had no room at last, Linux asks only 15 times (`tcp_retries2`), which is to last a lease.
const LONGEST_RETRY: Duration = Duration::from_secs(6);

/// Why a link is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CarrierError {
    /// The connection's own failure.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer broke the agreement on a stream.
    #[error(transparent)]
    Flow(#[from] FlowError),
}

/// A link, errors kept: whoever writes to a broken link goes on, and its owner looks once.
#[derive(Debug)]
pub(crate) struct Carrier {
    tls: TlsLink<Relay, Relay>,
    token: Token,
    interest: Interest,
    /// Nothing more is read for now.
    is_paused: bool,
    failed: Option<CarrierError>,
    /// Streams that stopped reading because the link was congested, in their order.
    pub(crate) stalled: VecDeque<(TaskId, Stream)>,
}

impl Carrier {
    /// Takes a connected link into the loop.
    pub(crate) fn new(
        poll: &Poll,
        tls: TlsLink<Relay, Relay>,
        token: Token,
    ) -> Result<Carrier, Errno> {
        let silence_ms = u32::try_from(SILENCE_LIMIT.as_millis()).unwrap_or(u32::MAX);
        // Each helps in bad times only; a link works without.
        let _ = sockopt::set_tcp_user_timeout(&tls, silence_ms);
        let _ = tcp::set_longest_retry(&tls, LONGEST_RETRY);
        let _ = sockopt::set_socket_keepalive(&tls, true);
        let _ = sockopt::set_tcp_keepidle(&tls, PROBE_AFTER);
        let _ = sockopt::set_tcp_keepintvl(&tls, PROBE_AFTER / 2);
        poll.add(&tls, token, Interest::Read)?;
        let stalled = VecDeque::new();
        Ok(Carrier {
            tls,
            token,
            interest: Interest::Read,
            is_paused: false,
            failed: None,
            stalled,
        })
    }

    /// Says when both ends of the link compress what they send.
    pub(crate) fn offer_compression(&mut self, compression: Compression) {
        self.tls.offer_compression(compression);
    }

    /// Lets the other end say that.
    pub(crate) fn heed_compression(&mut self) {
        self.tls.heed_compression();
    }

    pub(crate) fn tls(&self) -> &TlsLink<Relay, Relay> {
        &self.tls
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Queues a message; it leaves with [`Carrier::settle`].
    pub(crate) fn say(&mut self, message: &Relay) {
        let result = self.tls.queue(message);
        self.note(result);
    }

    /// Sends bulk data.
    pub(crate) fn data(&mut self, header: DataHeader, bytes: &[u8]) {
        let result = self
            .tls
            .queue_data(header, bytes)
            .and_then(|()| self.tls.flush());
        self.note(result);
    }

    /// Whether sources should wait.
    pub(crate) fn is_congested(&self) -> bool {
        self.failed.is_some() || self.tls.queued_bytes() > CONGESTED_BYTES
    }

    /// Reads what has arrived.
    pub(crate) fn receive(&mut self) {
        let result = self.tls.receive().map(|_| ());
        self.note(result);
    }

    /// Whether the peer has to wait with what it sends; heeded by [`Carrier::settle`].
    pub(crate) fn pause(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// The next message; those that came before a failure are still given. Bytes that come before
    /// it are handed to `take`, which says whether anybody wanted them; whose they were is added
    /// to `taken`.
    pub(crate) fn next_message(
        &mut self,
        taken: &mut Vec<(TaskId, Stream)>,
        mut take: impl FnMut(DataHeader, &[u8]) -> Result<bool, FlowError>,
    ) -> Option<Relay> {
        loop {
            let error = match self.tls.next_frame() {
                Ok(Some(Frame::Message(message))) => return Some(message),
                Ok(Some(Frame::Data(header, bytes))) => match take(header, bytes) {
                    Ok(is_wanted) => {
                        let at = (header.task, header.stream);
                        if is_wanted && taken.last() != Some(&at) {
                            taken.push(at);
                        }
                        continue;
                    }
                    Err(error) => error.into(),
                },
                Ok(None) => return None,
                Err(error) => CarrierError::from(error),
            };
            self.fail(error);
            return None;
        }
    }

    /// Writes what is queued and waits for room if that is not all.
    pub(crate) fn settle(&mut self, poll: &Poll) {
        if self.failed.is_some() {
            return;
        }
        let result = self.tls.flush();
        self.note(result);
        let interest = Interest::of(!self.is_paused, self.tls.wants_write());
        if interest != self.interest {
            self.interest = interest;
            let result = poll.modify(&self.tls, self.token, interest);
            self.note(result.map_err(LinkError::from));
        }
    }

    /// The peer did what it must not.
    pub(crate) fn fail(&mut self, error: impl Into<CarrierError>) {
        self.note(Err(error.into()));
    }

    /// Why the link is over, if it is.
    pub(crate) fn failure(&self) -> Option<&CarrierError> {
        self.failed.as_ref()
    }

    /// Takes the link out of the loop.
    pub(crate) fn close(self, poll: &Poll) {
        // Fails only for a set that is broken itself.
        let _ = poll.remove(self.tls.as_fd());
    }

    fn note<E: Into<CarrierError>>(&mut self, result: Result<(), E>) {
        if let Err(error) = result
            && self.failed.is_none()
        {
            self.failed = Some(error.into());
        }
    }
}
