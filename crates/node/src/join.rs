//! How a machine with a token becomes a node with a certificate.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use wiglaf_link::{AgentIdentity, JoinToken, LinkError, NodeIdentity, TrustError, joining_config};
use wiglaf_wire::PROTOCOL_VERSION;
use wiglaf_wire::agent::{FromAgent, ToAgent};
use wiglaf_wire::frame::Frame;

use crate::agent::HeadTls;
use crate::agent::dial;

/// A head that has not answered by then is asked again.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Why the machine is no node yet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The head does not want it. Asking again is of no use.
    #[error("the head at {head} refuses this machine: {reason}")]
    Refused {
        /// Where the head was asked.
        head: SocketAddr,
        /// Its own words.
        reason: String,
    },
    /// Keys or TLS can't be made.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The head can't be reached.
    #[error("can't join the head at {head}: {source}")]
    Link {
        /// Where the head was sought.
        head: SocketAddr,
        /// What went wrong.
        #[source]
        source: LinkError,
    },
    /// It is another cluster's. Asking again is of no use.
    #[error(
        "the head at {0} is not of the cluster that the token is for: make a token on that head \
         (`wiglaf node token`), or give the address of the token's"
    )]
    Foreign(SocketAddr),
    /// It does not answer.
    #[error("the head at {0} does not answer")]
    Silent(SocketAddr),
}

impl JoinError {
    /// Whether it may go better next time.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, JoinError::Link { .. } | JoinError::Silent(_))
    }
}

/// Asks the head, whose CA the token names, for a certificate. Waits for the answer.
pub(crate) fn join(
    head: SocketAddr,
    token: &JoinToken,
    name: Option<String>,
) -> Result<NodeIdentity, JoinError> {
    let failed = |source| JoinError::Link { head, source };
    let identity = AgentIdentity::create()?;
    let mut tls = dial(head, joining_config(token)?).map_err(failed)?;
    let request = FromAgent::Join {
        version: PROTOCOL_VERSION,
        token: token.secret.to_vec(),
        name,
        request: identity.public_point(),
    };
    tls.queue(&request).map_err(failed)?;
    let answer = wait_answer(&mut tls).map_err(|error| match error {
        // Its certificate is the first thing that is looked at, by [`joining_config`].
        LinkError::Tls(rustls::Error::General(_) | rustls::Error::InvalidCertificate(_)) => {
            JoinError::Foreign(head)
        }
        error => failed(error),
    })?;
    match answer {
        Some(ToAgent::Certificate {
            certificate,
            authority,
        }) => Ok(identity.certified(certificate, authority)),
        Some(ToAgent::Refused { reason }) => Err(JoinError::Refused { head, reason }),
        Some(_) => Err(failed(LinkError::Closed)),
        None => Err(JoinError::Silent(head)),
    }
}

fn wait_answer(tls: &mut HeadTls) -> Result<Option<ToAgent>, LinkError> {
    let until = Instant::now() + ANSWER_WAIT;
    loop {
        tls.flush()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let wait = Timespec::try_from(left).ok();
        let flags = if tls.wants_write() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        match poll(&mut [PollFd::new(tls, flags)], wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let received = tls.receive();
        match tls.next_frame()? {
            Some(Frame::Message(message)) => return Ok(Some(message)),
            Some(Frame::Data(..)) => return Err(LinkError::Closed),
            None => received.map(|_| ())?,
        }
    }
}
